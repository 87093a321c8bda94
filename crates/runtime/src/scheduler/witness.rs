//! The witness: a thread that looks at other threads, with a descriptor table of its own.
//!
//! Whether a thread sleeps in a call is to be read in proc(5) only, and what opens a file there takes
//! a number. In the process's table that would be the *lowest* number for a moment, at a time when
//! nobody in the program does anything: it would get the next one from its `open`, where it has every right to
//! expect 0 after it has closed 0, or `EMFILE`. So the monitor asks this thread, whose table is empty and shared with
//! nobody. Where that cannot be had (`CLOSE_RANGE_UNSHARE`, Linux 5.9), it reads all the same.
//!
//! ```text
//!   monitor:  thread ─▶ STATE = ASKED ─▶ wake ─▶ waits ─▶ the answer
//!   witness:             waits ─▶ reads ─▶ STATE = RUNNABLE or SLEEPING ─▶ wake
//! ```
//!
//! Sources: close_range(2), unshare(2) on `CLONE_FILES`, proc(5).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::kernel::{self, OsThread};

const IDLE: u32 = 0;
const ASKED: u32 = 1;
const RUNNABLE: u32 = 2;
const SLEEPING: u32 = 3;

/// What is asked, or the answer; a futex. One thread asks at a time: the monitor.
static STATE: AtomicU32 = AtomicU32::new(IDLE);
/// The thread in question.
static THREAD: AtomicU32 = AtomicU32::new(0);

/// Whether the OS thread `thread` of this process runs or is about to; `false` also if that cannot be
/// found out. For the monitor alone.
pub(super) fn is_runnable(thread: u32) -> bool {
    static STARTED: AtomicBool = AtomicBool::new(false);
    // Relaxed: only the monitor comes here.
    if !STARTED.swap(true, Ordering::Relaxed)
        && OsThread::start("sleave-witness".into(), 64 << 10, witness).is_err()
    {
        STARTED.store(false, Ordering::Relaxed);
        return kernel::is_runnable(thread);
    }
    // Relaxed: published by the store below.
    THREAD.store(thread, Ordering::Relaxed);
    STATE.store(ASKED, Ordering::Release);
    kernel::futex_wake(STATE.as_ptr() as usize, 1);
    loop {
        // Relaxed: the word is the whole answer.
        match STATE.load(Ordering::Relaxed) {
            ASKED => kernel::futex_wait(&STATE, ASKED, None),
            answer => return answer == RUNNABLE,
        }
    }
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
        let runnable = kernel::is_runnable(THREAD.load(Ordering::Relaxed));
        // Relaxed: see `is_runnable`.
        STATE.store(if runnable { RUNNABLE } else { SLEEPING }, Ordering::Relaxed);
        kernel::futex_wake(STATE.as_ptr() as usize, 1);
    }
}
