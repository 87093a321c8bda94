//! `pthread_once` and C11's `call_once`: a routine that runs once, and for which everybody waits.
//!
//! ```text
//!   0 ──first comes──▶ running in this process: 1 + 4 × forks ──routine returns──▶ 2 done
//!   ▲                       │ (others wait on the word)
//!   └── routine unwinds ────┘ and wakes them: one of them is the first now
//! ```
//!
//! In the child of a fork, a routine that another thread was running never ends; its word shows an
//! earlier number of forks, and the routine runs anew. A routine is left early by a panic, a C++ exception or the cancellation of
//! its thread. (In a program that is compiled to abort on panics, each of these aborts here.)
//!
//! Sources: pthread_once(3), POSIX.1-2017.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::pthread_once_t;

use super::{layout, tables};
use crate::next;

const NEW: u32 = 0;
const RUNNING: u32 = 1;
const DONE: u32 = 2;
const FORK: u32 = 4;

/// How many forks lie between the first process and this one, times [`FORK`].
static FORKS: AtomicU32 = AtomicU32::new(0);

/// This process is the child of a fork.
pub(super) fn forked() {
    // Relaxed: the child has one thread.
    FORKS.fetch_add(FORK, Ordering::Relaxed);
}

/// What a routine is.
type Routine = unsafe extern "C-unwind" fn();

/// pthread_once(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_once(once: *mut pthread_once_t, routine: Routine) -> c_int {
    // SAFETY: the caller's once: an int, which is shared.
    let word = unsafe { &*once.cast::<AtomicU32>() };
    // Acquire, here and below: with the Release of who has run the routine.
    if word.load(Ordering::Acquire) & DONE != 0 {
        return 0;
    }
    // SAFETY: the caller's arguments.
    unsafe {
        match layout::caller() {
            Some(_) => slow(word, routine),
            None => next::pthread_once(once, routine),
        }
    }
}

#[cold]
unsafe fn slow(word: &AtomicU32, routine: Routine) -> c_int {
    // Relaxed: set when this process began.
    let running = FORKS.load(Ordering::Relaxed) | RUNNING;
    let mut seen = word.load(Ordering::Acquire);
    loop {
        if seen & DONE != 0 {
            return 0;
        }
        if seen == running {
            // SAFETY: the word is borrowed.
            unsafe { tables::wait(word, running, None) };
            seen = word.load(Ordering::Acquire);
            continue;
        }
        match word.compare_exchange(seen, running, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => break,
            Err(now) => seen = now,
        }
    }
    struct Turn<'a>(&'a AtomicU32, u32);
    impl Drop for Turn<'_> {
        fn drop(&mut self) {
            let address = std::ptr::from_ref(self.0) as usize;
            // Release: what the routine did is seen by all who find it done.
            self.0.store(self.1, Ordering::Release);
            tables::wake_all(address);
        }
    }
    let mut turn = Turn(word, NEW);
    // SAFETY: pthread_once(3): the caller's routine.
    unsafe { routine() };
    turn.1 = DONE;
    0
}

/// `call_once` of C11: a `once_flag` is an int as well.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn call_once(once: *mut pthread_once_t, routine: Routine) {
    // SAFETY: the caller's arguments.
    unsafe { pthread_once(once, routine) };
}
