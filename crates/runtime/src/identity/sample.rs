//! Three real threads that show themselves.
//!
//! They are made with glibc's own `pthread_create` on stacks of ours, so that base and size of
//! each are known, and all live at once, so that nothing per thread can look the same in
//! two of them. Each first copies its `struct pthread` and libc's block of thread-locals, before
//! anything has touched them; when all have, each looks for the words of malloc and for what a
//! thread leaves behind at its end.
//!
//! ```text
//!   mapping   │ stack 0 ↓ │pd│ stack 1  ↓ │pd│ stack 2    ↓ │pd│      three sizes
//! ```
//!
//! That they exist has an effect of its own which fibers need: glibc leaves its single-threaded
//! short cuts for good.
//!
//! No lock of std here: those wait by libc's `syscall`, which the program may replace.
//! Sources: pthread_attr_setstack(3), get_robust_list(2), futex(2).

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use syscalls::{Sysno, syscall};

use super::end::Leftovers;
use super::glibc::Glibc;
use super::malloc::{self, Unknown, Words};
use super::template::{SAMPLES, Sample};
use super::{Reason, Unavailable, thread_pointer};

/// What the three threads told.
pub(super) struct Findings {
    pub samples: [Sample; SAMPLES],
    pub malloc: Result<Words, Unknown>,
    pub leftovers: Leftovers,
}

/// Frames of the probes: a window on the stack and what libc's functions need.
const FRAMES: usize = 128 * 1024;

/// A page more for each thread, so that no two sizes are equal.
const STEP: usize = 8 * 1024;

struct Seat {
    sample: Sample,
    malloc: Result<Words, Unknown>,
    leftovers: Leftovers,
}

struct Shared<'a> {
    glibc: &'a Glibc,
    seats: [UnsafeCell<Seat>; SAMPLES],
    /// The next seat to take.
    seat: AtomicU32,
    /// Threads that have copied; [`GIVE_UP`] if one could not be made. A futex.
    copied: AtomicU32,
}

const GIVE_UP: u32 = u32::MAX;

/// Runs the threads. Signals are blocked meanwhile: a handler has no business on these stacks.
pub(super) fn take(glibc: &Glibc) -> Result<Findings, Unavailable> {
    let sizes: [usize; SAMPLES] = std::array::from_fn(|i| {
        (glibc.static_size + glibc.static_align + FRAMES + i * STEP).next_multiple_of(STEP)
    });
    let stacks = Mapping::new(sizes.iter().sum())?;
    let mut base = stacks.start;
    let stack = sizes.map(|size| {
        let start = base;
        base += size;
        start..base
    });
    let mut shared = Shared {
        glibc,
        seats: stack.each_ref().map(|stack| {
            UnsafeCell::new(Seat {
                sample: Sample {
                    tp: 0,
                    tid: 0,
                    stack: stack.clone(),
                    argument: 0,
                    robust: 0,
                    // Room is made here: the threads must not allocate before they have copied.
                    pthread: vec![0; glibc.pthread_size / 8],
                    libc_tls: vec![0; glibc.libc_tls.1 / 8],
                },
                malloc: Err(Unknown::Blind),
                leftovers: Leftovers::default(),
            })
        }),
        seat: AtomicU32::new(0),
        copied: AtomicU32::new(0),
    };

    let mut all = u64::MAX;
    // SAFETY: rt_sigprocmask(2) with the kernel's eight-byte set, in place.
    unsafe {
        let mask = &raw mut all;
        let _ = syscall!(Sysno::rt_sigprocmask, libc::SIG_SETMASK, mask, mask, size_of::<u64>());
    }
    let mut threads = [0; SAMPLES];
    let mut made = 0;
    let mut error = 0;
    for (thread, stack) in threads.iter_mut().zip(&stack) {
        // SAFETY: the stack is ours alone and outlives the thread, which is joined below.
        error = unsafe { create(glibc, thread, stack, (&raw const shared).cast_mut().cast()) };
        if error != 0 {
            shared.copied.store(GIVE_UP, Ordering::Release); // for `main`: no seat is written now
            wake(&shared.copied);
            break;
        }
        made += 1;
    }
    for &thread in &threads[..made] {
        // SAFETY: pthread_join(3): each thread is joined once.
        unsafe { (glibc.pthread_join)(thread, ptr::null_mut()) };
    }
    // SAFETY: as above; the old mask comes back.
    unsafe {
        let (mask, none) = (&raw const all, ptr::null::<u64>());
        let _ = syscall!(
            Sysno::rt_sigprocmask,
            libc::SIG_SETMASK,
            mask,
            none.cast_mut(),
            size_of::<u64>()
        );
    }
    if error != 0 {
        return Err(Reason::NoThreads(error).into());
    }

    let argument = &raw const shared as usize;
    for seat in &mut shared.seats {
        let sample = &mut seat.get_mut().sample;
        sample.argument = argument;
        // Seats are taken in any order; the thread pointer tells the stack.
        if let Some(own) = stack.iter().find(|stack| stack.contains(&sample.tp)) {
            sample.stack = own.clone();
        }
    }
    let [a, b, c] = shared.seats.map(UnsafeCell::into_inner);
    let malloc = if a.malloc == b.malloc && b.malloc == c.malloc {
        a.malloc
    } else {
        // Those that found something found different things, or one found nothing.
        let failed = [a.malloc, b.malloc, c.malloc].into_iter().find(Result::is_err);
        failed.unwrap_or(Err(Unknown::Cache))
    };
    let leftovers = a.leftovers.agreed(&b.leftovers).agreed(&c.leftovers);
    Ok(Findings { samples: [a.sample, b.sample, c.sample], malloc, leftovers })
}

/// pthread_create on a stack of ours.
///
/// # Safety
/// `stack` is mapped, ours alone, and stays until the thread is joined; so does `shared`.
unsafe fn create(
    glibc: &Glibc,
    thread: &mut libc::pthread_t,
    stack: &std::ops::Range<usize>,
    shared: *mut c_void,
) -> i32 {
    let mut attributes = std::mem::MaybeUninit::uninit();
    let attr = attributes.as_mut_ptr();
    // SAFETY: pthread_attr_init(3), pthread_attr_setstack(3), pthread_create(3): attributes are
    // initialised, used and destroyed; the stack is the caller's promise.
    unsafe {
        let mut error = (glibc.attr_init)(attr);
        if error != 0 {
            return error;
        }
        error = (glibc.attr_setstack)(attr, stack.start as *mut c_void, stack.len());
        if error == 0 {
            error = (glibc.pthread_create)(thread, attr, main, shared);
        }
        (glibc.attr_destroy)(attr);
        error
    }
}

/// The three threads' program.
extern "C" fn main(argument: *mut c_void) -> *mut c_void {
    // SAFETY: `take` passes its `Shared` and joins before that goes.
    let shared = unsafe { &*argument.cast::<Shared>() };
    // Relaxed: only the number matters.
    let seat = shared.seat.fetch_add(1, Ordering::Relaxed) as usize;
    // SAFETY: each thread has a seat of its own, and `take` looks at none before it has joined.
    let seat = unsafe { &mut *shared.seats[seat].get() };
    copy(shared.glibc, &mut seat.sample);
    // AcqRel with the load below: nobody allocates before all have copied.
    shared.copied.fetch_add(1, Ordering::AcqRel);
    wake(&shared.copied);
    loop {
        let copied = shared.copied.load(Ordering::Acquire);
        if copied >= GIVE_UP - SAMPLES as u32 {
            return ptr::null_mut();
        }
        if copied == SAMPLES as u32 {
            break;
        }
        wait(&shared.copied, copied);
    }
    seat.malloc = malloc::probe(shared.glibc);
    seat.leftovers = Leftovers::probe(shared.glibc);
    ptr::null_mut()
}

fn copy(glibc: &Glibc, sample: &mut Sample) {
    sample.tp = thread_pointer();
    // SAFETY: gettid(2), get_robust_list(2): the calling thread's, into two words of ours.
    unsafe {
        sample.tid = syscall!(Sysno::gettid).map_or(0, |tid| tid as u32);
        let (mut head, mut length) = (0usize, 0usize);
        if syscall!(Sysno::get_robust_list, 0, &raw mut head, &raw mut length).is_ok() {
            sample.robust = head;
        }
    }
    let words = |from: usize, to: &mut [u64]| {
        for (i, word) in to.iter_mut().enumerate() {
            // SAFETY: `struct pthread` and libc's block are this thread's. Volatile: the kernel
            // writes the rseq area.
            *word = unsafe { ptr::read_volatile((from as *const u64).add(i)) };
        }
    };
    words(sample.tp, &mut sample.pthread);
    words(sample.tp.wrapping_add_signed(glibc.libc_tls.0), &mut sample.libc_tls);
}

fn wait(word: &AtomicU32, seen: u32) {
    // SAFETY: futex(2): waits while the word has the value; the word is alive.
    unsafe {
        let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let _ = syscall!(Sysno::futex, word.as_ptr(), op, seen, ptr::null_mut::<u8>());
    }
}

fn wake(word: &AtomicU32) {
    // SAFETY: futex(2): wakes all; the word is alive.
    unsafe {
        let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        let _ = syscall!(Sysno::futex, word.as_ptr(), op, i32::MAX);
    }
}

/// Memory for the stacks.
struct Mapping {
    start: usize,
    size: usize,
}

impl Mapping {
    fn new(size: usize) -> Result<Self, Unavailable> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: mmap(2) of fresh memory where the kernel likes.
        match unsafe { syscall!(Sysno::mmap, 0, size, access, kind, -1isize, 0) } {
            Ok(start) => Ok(Mapping { start, size }),
            Err(error) => Err(Reason::NoThreads(error.into_raw()).into()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: munmap(2): the threads that ran here are joined.
        let _ = unsafe { syscall!(Sysno::munmap, self.start, self.size) };
    }
}
