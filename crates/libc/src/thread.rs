//! What threads do to each other: `sched_yield` and its other names, `pthread_join` and its siblings, `pthread_detach`.
//!
//! ```text
//!   an id ─▶ green thread ─▶ the runtime's: a fiber parks, an OS thread blocks
//!     ├────▶ fiber that was spawned by Rust, or stale id of one ─▶ ESRCH: only its handle joins it
//!     └────▶ OS thread ─▶ libc's
//! ```
//!
//! A fiber that joins an OS thread asks first whether it has ended, and
//! otherwise hands the wait off: glibc waits for the kernel to clear a word of the thread's, by the bare instruction.
//!
//! Sources: sched_yield(2), pthread_join(3), pthread_tryjoin_np(3), pthread_detach(3), thrd_join of ISO C11.

use std::ffi::{c_int, c_void};

use libc::{clockid_t, pthread_t, timespec};
use sleave_runtime::green::{self, Found, Green, Refusal};
use sleave_runtime::wait::Deadline;
use sleave_runtime::{identity, interpose, scheduler};

use crate::handoff::{Call, hand_off};
use crate::pthread::thrd;
use crate::{cancel, next, time};

/// sched_yield(2): the other fibers of this processor have their turn.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sched_yield() -> c_int {
    if !interpose::active() {
        // SAFETY: no arguments.
        return unsafe { next::sched_yield() };
    }
    scheduler::sched_yield();
    0
}

/// thrd_yield(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn thrd_yield() {
    // SAFETY: no arguments.
    unsafe { sched_yield() };
}

/// `sched_yield`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __sched_yield() -> c_int {
    // SAFETY: no arguments.
    unsafe { sched_yield() }
}

/// Joins `green` until `deadline`; the answer to what is late is `late`.
///
/// # Safety
/// `result` is null or the caller's place for the result.
unsafe fn join(green: &Green, result: *mut *mut c_void, deadline: Deadline, late: c_int) -> c_int {
    match green.join(deadline) {
        Ok(value) => {
            if !result.is_null() {
                // SAFETY: by contract.
                unsafe { result.write(value) };
            }
            0
        }
        Err(Refusal::TimedOut) => late,
        Err(Refusal::Cancelled) => cancel::act(),
        Err(refusal) => code(refusal),
    }
}

fn code(refusal: Refusal) -> c_int {
    match refusal {
        Refusal::NoSuchThread => libc::ESRCH,
        Refusal::NotJoinable => libc::EINVAL,
        Refusal::Deadlock => libc::EDEADLK,
        Refusal::TimedOut => libc::ETIMEDOUT,
        Refusal::Cancelled => libc::EINTR,
    }
}

/// The answer for a fiber that is no green thread, or was.
fn not_green(thread: pthread_t) -> c_int {
    if thread as usize == identity::thread_pointer() { libc::EDEADLK } else { libc::ESRCH }
}

/// pthread_join(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_join(thread: pthread_t, result: *mut *mut c_void) -> c_int {
    match green::find(thread as usize) {
        // SAFETY: the caller's place.
        Found::Green(green) => unsafe { join(&green, result, Deadline::NEVER, 0) },
        Found::Fiber => not_green(thread),
        // SAFETY: the caller's arguments, for the same function or the one that does not wait.
        Found::Foreign => unsafe {
            if !interpose::active() {
                return next::pthread_join(thread, result);
            }
            match next::pthread_tryjoin_np(thread, result) {
                libc::EBUSY => hand_off(Call::Waits, || next::pthread_join(thread, result)),
                joined => joined,
            }
        },
    }
}

/// pthread_tryjoin_np(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_tryjoin_np(
    thread: pthread_t,
    result: *mut *mut c_void,
) -> c_int {
    match green::find(thread as usize) {
        // As glibc: whether it could be joined is asked when it has ended.
        Found::Green(green) if !green.is_ended() => libc::EBUSY,
        // SAFETY: the caller's place. The time is over.
        Found::Green(green) => unsafe { join(&green, result, Deadline::at(0), libc::EBUSY) },
        Found::Fiber => not_green(thread),
        // SAFETY: the caller's arguments for the same function.
        Found::Foreign => unsafe { next::pthread_tryjoin_np(thread, result) },
    }
}

/// pthread_timedjoin_np(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_timedjoin_np(
    thread: pthread_t,
    result: *mut *mut c_void,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's arguments, for the same with the clock that is meant.
    unsafe { pthread_clockjoin_np(thread, result, libc::CLOCK_REALTIME, at) }
}

/// pthread_clockjoin_np(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_clockjoin_np(
    thread: pthread_t,
    result: *mut *mut c_void,
    clock: clockid_t,
    at: *const timespec,
) -> c_int {
    match green::find(thread as usize) {
        // SAFETY: the caller's place, and its point in time.
        Found::Green(green) => unsafe { join_until(&green, result, clock, at.as_ref()) },
        Found::Fiber => not_green(thread),
        Found::Foreign => {
            // SAFETY: the caller's arguments for the same function.
            let call = || unsafe { next::pthread_clockjoin_np(thread, result, clock, at) };
            if interpose::active() { hand_off(Call::Waits, call) } else { call() }
        }
    }
}

/// # Safety
/// As [`join`].
unsafe fn join_until(
    green: &Green,
    result: *mut *mut c_void,
    clock: clockid_t,
    at: Option<&timespec>,
) -> c_int {
    // What makes no sense is refused only if the call would wait.
    // SAFETY: by contract, here and below.
    let now = unsafe { join(green, result, Deadline::at(0), libc::EBUSY) };
    if now != libc::EBUSY {
        return now;
    }
    let Some(at) = at else {
        // SAFETY: as above.
        return unsafe { join(green, result, Deadline::NEVER, 0) };
    };
    let known = clock == libc::CLOCK_REALTIME || clock == libc::CLOCK_MONOTONIC;
    if !known || !(0..1_000_000_000).contains(&at.tv_nsec) {
        return libc::EINVAL;
    }
    // Before the epoch is over, too.
    let at = time::nanoseconds(at).unwrap_or(0);
    loop {
        let deadline = time::deadline_on(clock, at);
        // SAFETY: as above.
        let joined = unsafe { join(green, result, deadline, libc::EBUSY) };
        // The time of day may have been set back meanwhile.
        if joined != libc::EBUSY {
            return joined;
        }
        if time::passed(clock, at) {
            return libc::ETIMEDOUT;
        }
    }
}

/// thrd_join of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn thrd_join(thread: pthread_t, result: *mut c_int) -> c_int {
    let mut value = std::ptr::null_mut();
    // SAFETY: thrd_join is pthread_join with a number.
    let joined = unsafe { pthread_join(thread, &raw mut value) };
    if joined == 0 && !result.is_null() {
        // SAFETY: the caller's place.
        unsafe { result.write(value as usize as c_int) };
    }
    thrd(joined)
}

/// pthread_detach(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_detach(thread: pthread_t) -> c_int {
    match green::find(thread as usize) {
        Found::Green(green) => green.detach().map_or_else(code, |()| 0),
        Found::Fiber => libc::ESRCH,
        // SAFETY: the caller's argument for the same function.
        Found::Foreign => unsafe { next::pthread_detach(thread) },
    }
}

/// thrd_detach of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn thrd_detach(thread: pthread_t) -> c_int {
    // SAFETY: thrd_detach is pthread_detach.
    thrd(unsafe { pthread_detach(thread) })
}
