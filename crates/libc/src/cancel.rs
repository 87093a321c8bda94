//! Cancellation of threads that are fibers: `pthread_cancel pthread_testcancel pthread_setcancelstate
//! pthread_setcanceltype`.
//!
//! A request is a mark; what becomes of it is the target's affair:
//!
//! ```text
//!   pthread_cancel: mark, tell (runtime: interrupt, kick)
//!      on the fiber:  deferred      at the next cancellation point that waits, or pthread_testcancel
//!                     asynchronous  at once: in the kick's handler
//!                     disabled      when it is enabled again
//!   act: pthread_exit(PTHREAD_CANCELED): cleanup handlers, destructors of C++, thread-locals, keys
//! ```
//!
//! A call that is a cancellation point answers [`CANCELLED`] from within, as if it were an error of the kernel's. Only its
//! outermost function acts on it, in [`errno::finish`]: by then nothing of ours is on the stack that would have to be
//! dropped. That is why the interposed functions are declared `extern "C-unwind"`. A call that has done something, if only a
//! part, reports that, and the next one is the point.
//!
//! Locks, joins of locks' kind and everything that does not wait are no cancellation points here: a fiber that only makes
//! calls which never wait is cancelled at none of them, where glibc looks at each.
//!
//! Of OS threads all of this is glibc's.
//!
//! Sources: pthread_cancel(3), pthreads(7) on cancellation points, pthread_setcancelstate(3).

use std::ffi::{c_int, c_void};

use libc::pthread_t;
use sleave_runtime::green::{self, CANCEL_ASYNCHRONOUS, CANCEL_DISABLED, CANCEL_REQUESTED, Life};
use sleave_runtime::interpose;

use crate::signal::use_fibers_signals;
use crate::{errno, next};

/// What a cancellation point answers from within: no error number that the kernel knows.
pub(crate) const CANCELLED: isize = errno::error(4096);

/// `PTHREAD_CANCELED`
const CANCELED: *mut c_void = usize::MAX as *mut c_void;

/// `PTHREAD_CANCEL_ENABLE`, `PTHREAD_CANCEL_DISABLE`
const ENABLE: c_int = 0;
const DISABLE: c_int = 1;
/// `PTHREAD_CANCEL_DEFERRED`, `PTHREAD_CANCEL_ASYNCHRONOUS`
const DEFERRED: c_int = 0;
const ASYNCHRONOUS: c_int = 1;

/// Whether the calling fiber has been cancelled, and does not say no.
#[inline]
pub(crate) fn is_due() -> bool {
    green::cancellation()
        .is_some_and(|bits| bits & (CANCEL_REQUESTED | CANCEL_DISABLED) == CANCEL_REQUESTED)
}

/// What the calling fiber's wait fails with, if it is to stop: cancelled by pthread_cancel(3) or by sleave's own means, or out of
/// time ([`sleave_runtime::cancel`]).
#[inline]
pub(crate) fn stops() -> Option<isize> {
    if is_due() {
        return Some(CANCELLED);
    }
    sleave_runtime::cancel::error().map(errno::error)
}

/// As [`stops`], of a call that has not waited yet. Others have their turn, for who goes on all the same may do so at once.
#[inline]
pub(crate) fn stops_before() -> Option<isize> {
    let error = stops()?;
    if error != CANCELLED {
        sleave_runtime::scheduler::sched_yield();
    }
    Some(error)
}

/// As [`is_due`], wherever the fiber may be.
pub(crate) fn is_due_anywhere() -> bool {
    is_due() && green::cancellation().is_some_and(|bits| bits & CANCEL_ASYNCHRONOUS != 0)
}

/// Ends the calling fiber, which has been cancelled. Nothing that must be dropped is alive in the caller.
#[cold]
pub(crate) fn act() -> ! {
    // From now on it is on its way out.
    green::change_cancellation(CANCEL_REQUESTED | CANCEL_ASYNCHRONOUS, CANCEL_DISABLED);
    // SAFETY: pthread_exit(3).
    unsafe { crate::green::pthread_exit(CANCELED) }
}

/// pthread_cancel(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_cancel(thread: pthread_t) -> c_int {
    use_fibers_signals();
    match green::cancel(thread as usize) {
        // SAFETY: the caller's argument for the same function.
        Life::Foreign => unsafe { next::pthread_cancel(thread) },
        Life::Nobody => libc::ESRCH,
        Life::Ended => 0,
        Life::Runs => {
            // Oneself, if one may be cancelled anywhere.
            if thread as usize == sleave_runtime::identity::thread_pointer() && is_due_anywhere() {
                act();
            }
            0
        }
    }
}

/// pthread_testcancel(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_testcancel() {
    if is_due() {
        act();
    }
    if !green::is_fiber() {
        // SAFETY: no arguments.
        unsafe { next::pthread_testcancel() };
    }
}

/// Sets or clears `bit` by what the caller asks for, one of `no` and `yes`, and tells how it was.
unsafe fn set(
    bit: u32,
    [no, yes]: [c_int; 2],
    value: c_int,
    before: *mut c_int,
    old: u32,
) -> c_int {
    match value {
        _ if value == no => green::change_cancellation(bit, 0),
        _ if value == yes => green::change_cancellation(0, bit),
        _ => return libc::EINVAL,
    }
    if !before.is_null() {
        // SAFETY: the caller's place.
        unsafe { before.write(if old & bit == 0 { no } else { yes }) };
    }
    if is_due_anywhere() {
        act();
    }
    0
}

/// pthread_setcancelstate(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int {
    match green::cancellation() {
        // SAFETY: the caller's place.
        Some(old) => unsafe { set(CANCEL_DISABLED, [ENABLE, DISABLE], state, before, old) },
        // SAFETY: the caller's arguments for the same function.
        None => unsafe { next::pthread_setcancelstate(state, before) },
    }
}

/// pthread_setcanceltype(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_setcanceltype(kind: c_int, before: *mut c_int) -> c_int {
    match green::cancellation() {
        // SAFETY: the caller's place.
        Some(old) => unsafe {
            set(CANCEL_ASYNCHRONOUS, [DEFERRED, ASYNCHRONOUS], kind, before, old)
        },
        // SAFETY: the caller's arguments for the same function.
        None => unsafe { next::pthread_setcanceltype(kind, before) },
    }
}

/// A cancellation point of a call that waits without having done anything yet.
pub(crate) fn point() {
    if interpose::active() && is_due() {
        act();
    }
}
