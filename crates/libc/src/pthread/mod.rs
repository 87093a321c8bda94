//! The locks of pthreads: a fiber that waits for one parks, whoever holds it.
//!
//! A lock may have threads and fibers waiting for it at once, so a thread's unlock must wake a
//! fiber and the other way round. The executable's symbols serve both, which leaves one question for each kind of
//! object: whose words and rules are in its memory?
//!
//! | object | rules | why |
//! |---|---|---|
//! | mutex | glibc's own words, ours on both sides | the lock word 0, 1, 2 has been the same since 2003; owner, count and users show what debuggers and `pthread_mutex_destroy` expect |
//! | semaphore | glibc's own; threads wait in glibc's code | value and number of waiters in one word: `sem_post` is all that must know of fibers, and a thread's `sem_wait` stays a cancellation point that signals interrupt |
//! | condition | ours on both sides, in its memory | glibc's rules have changed in 2.25 and 2.41 and need a dozen words; nobody else looks inside |
//! | read-write lock, barrier, once | the same | |
//!
//! "Both sides" is possible because every way into such an object is a symbol of this crate, the C11
//! names included. What glibc locks by itself are objects of its own. (It has kept ways for very old objects,
//! `__pthread_mutex_lock` and the like, to which nothing can be linked any more. An executable cannot
//! take their place: an object that calls them must not share the lock with fibers.)
//!
//! # What stays with glibc
//!
//! - Objects **shared between processes**: others look inside who know glibc's rules only. A
//!   fiber that waits for one holds its worker.
//! - **Robust** mutexes: glibc keeps them in a list that the kernel walks when the owner dies. As above.
//! - **Priority**-inheriting and -protecting mutexes: the kernel lends the owner's thread a priority.
//!   A fiber is no thread of the kernel's: glibc's own code would write the fiber's number into
//!   the word, the kernel would not find such a thread, and glibc then waits for ever. So on a
//!   fiber they are refused with `ENOTSUP`.
//! - Everything, where the C library is not a glibc whose objects look as [`layout`] expects.
//!
//! # Reading order
//! `layout` (what is where), `tables` (waiting and waking on both sides), then `mutex`, `cond`, `rwlock`,
//! `barrier`, `semaphore`, `once`.
//!
//! Sources: pthread_mutex_lock(3) and its siblings, POSIX.1-2017 "Thread Interfaces", ISO C11 7.26;
//! Drepper, "Futexes Are Tricky" (2011); glibc `nptl/` for what its words mean.

mod barrier;
mod cond;
mod layout;
mod mutex;
mod once;
mod rwlock;
mod semaphore;
mod tables;

/// What C11's functions answer, `threads.h`, for an error number of pthreads'.
pub(crate) fn thrd(code: std::ffi::c_int) -> std::ffi::c_int {
    const BUSY: std::ffi::c_int = 1;
    const ERROR: std::ffi::c_int = 2;
    const TIMEDOUT: std::ffi::c_int = 4;
    match code {
        0 => 0,
        libc::EBUSY => BUSY,
        libc::ETIMEDOUT => TIMEDOUT,
        _ => ERROR,
    }
}

/// Looks at glibc's objects, before `main`: afterwards the first to call may be a fiber, whose number the kernel
/// does not know.
pub(crate) fn know_objects() {
    layout::caller();
}

/// Runs [`in_child`] in every child of fork(2).
pub(crate) fn watch_fork() {
    // SAFETY: pthread_atfork(3) with a function that lives as long as this object.
    unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
}

/// The child of a fork has one thread: whoever waited, or ran a once routine, is not there.
unsafe extern "C" fn in_child() {
    tables::forget();
    once::forked();
    crate::green::in_child();
    // SAFETY: pthread_atfork(3): the child's only thread runs this.
    unsafe { sleave_runtime::wait::futex::forget_in_child() };
}
