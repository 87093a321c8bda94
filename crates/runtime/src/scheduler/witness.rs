//! The witness: a thread that looks at other threads, with a descriptor table of its own.
//!
//! Whether a thread sleeps in a call is to be read in proc(5) only, and what opens a file there takes
//! a number. In the process's table that would be the *lowest* number for a moment, at a time when
//! nobody in the program does anything: it would get the next one from its `open`, where it has every right to
//! expect 0 after it has closed 0, or `EMFILE`. So this thread looks, whose table is empty and shared with
//! nobody. Where that cannot be had (`CLOSE_RANGE_UNSHARE`, Linux 5.9), it looks all the same.
//!
//! ```text
//!   who asks:  JOB ─▶ STATE = ASKED ─▶ wake ─▶ waits ─▶ the answer
//!   witness:               waits ─▶ does it ─▶ STATE = IDLE ─▶ wake
//! ```
//!
//! Sources: close_range(2), unshare(2) on `CLONE_FILES`, proc(5).

use std::sync::atomic::{AtomicU32, Ordering};

use sleave_context::lock::Lock;

use crate::kernel::{self, OsThread, task};

const IDLE: u32 = 0;
const ASKED: u32 = 1;

/// Whether there is something to do; a futex.
static STATE: AtomicU32 = AtomicU32::new(IDLE);

/// What is to be done, for as long as `STATE` is `ASKED`.
static JOB: Lock<Option<Job>> = Lock::new(None);

/// One at a time asks. Inside: whether the thread has been started.
static ASKING: Lock<bool> = Lock::new(false);

struct Job(*mut (dyn FnMut() + Send));

// SAFETY: who asks waits for the end, and what it refers to may be used by another thread.
unsafe impl Send for Job {}

/// Whether the OS thread `thread` of this process runs or is about to; `false` also if that cannot be
/// found out.
pub(super) fn is_runnable(thread: u32) -> bool {
    look(|| task::is_runnable(thread))
}

/// Has the witness call `f`, which looks at proc(5). For threads of the runtime's own: it blocks them.
pub(crate) fn look<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let mut started = ASKING.lock();
    if !*started {
        *started = OsThread::start("sleave-witness".into(), 64 << 10, witness).is_ok();
    }
    if !*started {
        return f();
    }
    let (mut f, mut answer) = (Some(f), None);
    let mut job = || answer = f.take().map(|f| f());
    let job: &mut (dyn FnMut() + Send) = &mut job;
    // SAFETY: only the lifetime changes; this function does not return before the job is done.
    let job = unsafe {
        std::mem::transmute::<*mut (dyn FnMut() + Send + '_), *mut (dyn FnMut() + Send + 'static)>(
            job,
        )
    };
    *JOB.lock() = Some(Job(job));
    // Release: with the witness's Acquire, beside the lock.
    STATE.store(ASKED, Ordering::Release);
    kernel::futex_wake(STATE.as_ptr() as usize, 1);
    // Acquire pairs with the witness's Release: the answer is there.
    while STATE.load(Ordering::Acquire) == ASKED {
        kernel::futex_wait(&STATE, ASKED, None);
    }
    drop(started);
    answer.expect("the witness has done what it was asked for")
}

fn witness() {
    kernel::leave_descriptors();
    loop {
        // Acquire pairs with the Release of who asks.
        let state = STATE.load(Ordering::Acquire);
        if state != ASKED {
            kernel::futex_wait(&STATE, state, None);
            continue;
        }
        let job = JOB.lock().take();
        if let Some(Job(job)) = job {
            // SAFETY: who asks waits until `STATE` says that this is over.
            unsafe { (*job)() };
        }
        // Release gives the answer away.
        STATE.store(IDLE, Ordering::Release);
        kernel::futex_wake(STATE.as_ptr() as usize, i32::MAX);
    }
}
