//! What threads do to each other: `sched_yield` and its other names, `pthread_join` and its siblings.
//!
//! A fiber that joins an OS thread (`std::thread::JoinHandle::join` is that) asks first whether it has ended, and
//! otherwise hands the wait off: glibc waits for the kernel to clear a word of the thread's, by the bare instruction.
//!
//! Sources: sched_yield(2), pthread_join(3), pthread_tryjoin_np(3), thrd_join of ISO C11.

use std::ffi::{c_int, c_void};

use libc::{clockid_t, pthread_t, timespec};
use sleave_runtime::{interpose, scheduler};

use crate::handoff::{Call, hand_off, hand_off_whole};
use crate::next;

/// sched_yield(2): the other fibers of this processor have their turn.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sched_yield() -> c_int {
    if !interpose::active() {
        // SAFETY: no arguments.
        return unsafe { next::sched_yield() };
    }
    scheduler::yield_now();
    0
}

/// thrd_yield(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn thrd_yield() {
    // SAFETY: no arguments.
    unsafe { sched_yield() };
}

/// `sched_yield`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sched_yield() -> c_int {
    // SAFETY: no arguments.
    unsafe { sched_yield() }
}

/// pthread_join(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_join(thread: pthread_t, result: *mut *mut c_void) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the one that does not wait.
    unsafe {
        if !interpose::active() {
            return next::pthread_join(thread, result);
        }
        match next::pthread_tryjoin_np(thread, result) {
            libc::EBUSY => hand_off(Call::Waits, || next::pthread_join(thread, result)),
            joined => joined,
        }
    }
}

hand_off_whole! {
    /// pthread_timedjoin_np(3)
    Waits pthread_timedjoin_np(thread: pthread_t, result: *mut *mut c_void, at: *const timespec) -> c_int;
    /// pthread_clockjoin_np(3)
    Waits pthread_clockjoin_np(thread: pthread_t, result: *mut *mut c_void, clock: clockid_t, at: *const timespec) -> c_int;
    /// thrd_join of C11
    Waits thrd_join(thread: pthread_t, result: *mut c_int) -> c_int;
}
