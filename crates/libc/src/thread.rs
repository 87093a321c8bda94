//! What threads do to each other: `sched_yield`.
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
