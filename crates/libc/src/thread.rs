//! What threads do to each other: `sched_yield`, and its other names.
//!
//! Spawning, joining and the rest of pthreads come with the fibers that are made by
//! `pthread_create`; here is what std calls on a fiber that exists.
//!
//! Sources: sched_yield(2).

use std::ffi::c_int;

use sleave_runtime::{interpose, scheduler};

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
