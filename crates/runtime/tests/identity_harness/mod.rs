//! The least that makes fibers of identities: slots, a switch, and OS threads that carry them.
//!
//! It knows nothing of the real scheduler, so that identity is tested by itself. A fiber moves
//! between carriers at every [`yield_now`], for carriers take the first of one common queue.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::arch::naked_asm;
use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::{env, ptr, thread};

use sleave_runtime::identity::{self, Kit};

/// Room for a backtrace in a debug build.
const SLOT: usize = 256 * 1024;

/// Ids above the kernel's.
static NEXT_TID: AtomicU32 = AtomicU32::new((1 << 22) + 1);

pub fn kit() -> &'static Kit {
    identity::kit().unwrap_or_else(|why| panic!("this machine must have identities: {why}"))
}

/// Below the floor of each identity.
struct Control {
    /// Stack pointer of the fiber while it does not run.
    sp: usize,
    /// Stack pointer and identity of the thread that carries it.
    carrier: (usize, usize),
    body: Option<Box<dyn FnOnce() + Send>>,
    done: bool,
    panic: Option<Box<dyn std::any::Any + Send>>,
    tid: u32,
}

/// A fiber: a slot with an identity.
pub struct Fiber {
    slot: usize,
    pub tp: usize,
    pub tid: u32,
}

// SAFETY: its body is `Send`, and it runs on one thread at a time.
unsafe impl Send for Fiber {}

fn control(tp: usize) -> *mut Control {
    (kit().floor(tp) - size_of::<Control>().next_multiple_of(64)) as *mut Control
}

impl Fiber {
    pub fn new(body: impl FnOnce() + Send + 'static) -> Self {
        // SAFETY: mmap(2) of fresh memory.
        let slot = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SLOT,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(slot, libc::MAP_FAILED);
        // A huge page would hide what an identity costs.
        // SAFETY: madvise(2) on the slot.
        unsafe { libc::madvise(slot, SLOT, libc::MADV_NOHUGEPAGE) };
        let slot = slot as usize;
        let tp = kit().thread_pointer_below(slot + SLOT);
        assert!(kit().floor(tp) >= slot + SLOT - kit().size());
        assert_eq!(kit().floor(tp) % 64, 0);
        assert_eq!(tp - kit().floor(tp), kit().floor_offset());
        let tid = NEXT_TID.fetch_add(1, Ordering::Relaxed);
        // SAFETY: zeroed memory of our own at the place that the kit chose; a fresh id.
        unsafe { kit().create(tp, slot..control(tp) as usize, tid) }.expect("memory for a dtv");
        let fiber = Fiber { slot, tp, tid };
        fiber.arm(body);
        fiber
    }

    fn arm(&self, body: impl FnOnce() + Send + 'static) {
        let control = control(self.tp);
        // Seen from `where_fibers_begin`, the stack is as after a call whose return address is null: there an
        // unwinder stops.
        let frame = (control as usize - 8) as *mut usize;
        // SAFETY: the slot is ours, and the control block lies in it. Six registers, then the
        // address to go to.
        unsafe {
            frame.write(0);
            frame.sub(1).write(where_fibers_begin as *const () as usize);
            for i in 2..8 {
                frame.sub(i).write(0);
            }
            control.write(Control {
                sp: frame.sub(7) as usize,
                carrier: (0, 0),
                body: Some(Box::new(body)),
                done: false,
                panic: None,
                tid: self.tid,
            });
        }
    }

    /// Another fiber with the same identity.
    pub fn recycle(mut self, body: impl FnOnce() + Send + 'static) -> Self {
        self.tid = NEXT_TID.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the fiber is done: fibers are given back by `resume` in that state only.
        unsafe {
            assert!((*control(self.tp)).done);
            kit().recycle(self.tp, self.tid);
        }
        self.arm(body);
        self
    }

    /// Runs it up to its next [`yield_now`] or its end; says whether it has ended.
    #[inline(never)]
    pub fn resume(&self) -> bool {
        let control = control(self.tp);
        // SAFETY: the fiber is suspended, for whoever holds the `Fiber` runs it. Between `enter`
        // and `switch` nothing uses a thread-local.
        unsafe {
            (*control).carrier.1 = identity::thread_pointer();
            let (save, to) = (&raw mut (*control).carrier.0, (*control).sp);
            kit().enter(self.tp);
            switch(save, to);
            if let Some(payload) = (*control).panic.take() {
                panic::resume_unwind(payload);
            }
            (*control).done
        }
    }

    pub fn destroy(self) {
        // SAFETY: the fiber has ended (checked), and nobody keeps its `pthread_t`.
        unsafe {
            assert!((*control(self.tp)).done);
            kit().destroy(self.tp);
            libc::munmap(self.slot as *mut _, SLOT);
        }
    }

    /// The bytes of the identity: static TLS and `struct pthread`.
    pub fn bytes(&self) -> Vec<u64> {
        let start = kit().floor(self.tp);
        let size = kit().floor_offset() + kit().report().pthread_size;
        // SAFETY: the identity lies there, and nothing runs on it.
        unsafe { std::slice::from_raw_parts(start as *const u64, size / 8) }.to_vec()
    }
}

/// Suspends the calling fiber; another carrier may go on with it.
#[inline(never)]
pub fn yield_now() {
    let control = control(identity::thread_pointer());
    // SAFETY: called on a fiber. Between `enter` and `switch` nothing uses a thread-local.
    unsafe {
        let (to, carrier) = (*control).carrier;
        let save = &raw mut (*control).sp;
        kit().enter(carrier);
        switch(save, to);
    }
}

/// Where every fiber begins. A name of its own for backtraces.
#[inline(never)]
extern "C" fn where_fibers_begin() -> ! {
    let control = control(identity::thread_pointer());
    // SAFETY: runs on a fiber, as its first act; `finish` is its last.
    unsafe {
        kit().start();
        let body = (*control).body.take().expect("an armed fiber");
        (*control).panic = panic::catch_unwind(AssertUnwindSafe(body)).err();
        kit().finish();
        (*control).done = true;
    }
    yield_now();
    unreachable!("a fiber that has ended was resumed");
}

/// Saves the callee-saved registers and the stack pointer, and takes the others'.
///
/// # Safety
/// `to` was saved by this function, or made by `Fiber::arm`.
#[unsafe(naked)]
unsafe extern "C" fn switch(save: *mut usize, to: usize) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Runs fibers to their ends on so many OS threads, and gives them back. Each goes to the end of the
/// queue when it yields. Says how often a fiber went on elsewhere than it had stopped.
pub fn run_counting(fibers: Vec<Fiber>, threads: usize) -> (Vec<Fiber>, usize) {
    let live = AtomicUsize::new(fibers.len());
    let moves = AtomicUsize::new(0);
    let queue: Mutex<VecDeque<(Fiber, usize)>> =
        Mutex::new(fibers.into_iter().map(|fiber| (fiber, usize::MAX)).collect());
    let ended = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for me in 0..threads {
            let (live, moves, queue, ended) = (&live, &moves, &queue, &ended);
            scope.spawn(move || {
                kit().adopt_thread();
                while live.load(Ordering::Acquire) > 0 {
                    let Some((fiber, last)) = queue.lock().unwrap().pop_front() else {
                        thread::yield_now();
                        continue;
                    };
                    moves.fetch_add(usize::from(last < threads && last != me), Ordering::Relaxed);
                    if fiber.resume() {
                        ended.lock().unwrap().push(fiber);
                        live.fetch_sub(1, Ordering::Release);
                    } else {
                        queue.lock().unwrap().push_back((fiber, me));
                    }
                }
            });
        }
    });
    (ended.into_inner().unwrap(), moves.into_inner())
}

/// [`run_counting`] without the count.
pub fn run(fibers: Vec<Fiber>, threads: usize) -> Vec<Fiber> {
    run_counting(fibers, threads).0
}

/// Runs one body on a fiber of the calling thread, and gives the fiber back.
pub fn on_a_fiber(body: impl FnOnce() + Send + 'static) -> Fiber {
    kit().adopt_thread();
    let fiber = Fiber::new(body);
    while !fiber.resume() {}
    fiber
}

/// Goes on with a fiber on the calling thread to its end.
pub fn finish(fiber: Fiber) -> Fiber {
    while !fiber.resume() {}
    fiber
}

const CHILD: &str = "SLEAVE_TEST_ALONE";

/// Runs the body of the test called `name` in a process of its own, with more environment.
pub fn alone(name: &str, environment: &[(&str, &str)], body: impl FnOnce()) {
    if env::var_os(CHILD).is_some() {
        return body();
    }
    let output = Command::new(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{name} alone: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
