//! Waiting for a signal: `sigwait sigwaitinfo sigtimedwait pause sigsuspend`.
//!
//! The kernel knows signals of a process and of its threads, and a set of blocked ones for each thread: the worker's. So these calls
//! are the thread's own, handed off. What follows for a program:
//!
//! * A set of blocked signals that is to hold for all fibers is set before the runtime is made, in `main`: its
//!   workers begin with it. (A program with threads does the same, and for the same reason.) Then any
//!   fiber may wait for them.
//! * `pthread_sigmask` on a fiber is the worker's of the moment. Together with a wait it holds for a fiber
//!   that is pinned, or does not park in between.
//! * `pause` and `sigsuspend` return when a handler has run *on this thread*. A signal for the process goes to
//!   any thread that does not block it.
//!
//! A signalfd is a descriptor: reading it parks.
//!
//! Sources: sigwait(3), sigwaitinfo(2), sigtimedwait(2), pause(2), sigsuspend(2), signal(7).

use std::ffi::c_int;

use libc::{siginfo_t, sigset_t, timespec};

use crate::handoff::hand_off_whole;

hand_off_whole! {
    /// sigwait(3)
    Waits sigwait(set: *const sigset_t, signal: *mut c_int) -> c_int;
    /// sigwaitinfo(2)
    Waits sigwaitinfo(set: *const sigset_t, info: *mut siginfo_t) -> c_int;
    /// sigtimedwait(2)
    Waits sigtimedwait(set: *const sigset_t, info: *mut siginfo_t, timeout: *const timespec) -> c_int;
    /// pause(2)
    Waits pause() -> c_int;
    /// sigsuspend(2)
    Waits sigsuspend(mask: *const sigset_t) -> c_int;
}
