//! epoll inside a fiber: `epoll_create epoll_create1 epoll_wait epoll_pwait epoll_pwait2`.
//!
//! An epoll instance is itself a descriptor that can be waited for: it is readable as long as one of
//! its members is ready. So a fiber tries without a timeout, waits for the *instance* in the
//! reactor, and tries again. That is what lets an event loop (mio, tokio's current-thread runtime,
//! libevent) run in a fiber.
//!
//! ```text
//!   member ── its event ─▶ the program's instance ── an event each time ─▶ the driver ─▶ fiber
//!                          (level or edge: the          (edge-triggered)        epoll_wait(…, 0)
//!                           members' business)
//! ```
//!
//! **No event is lost.** The reactor's invariant is "flag clear and registered: nothing is there, and
//! an event will come when that changes". For an instance it holds whatever its members are, since
//! the kernel tells the driver of each event of a member, also of one that is on the ready list
//! already (`ep_poll_callback` wakes `poll_wait` each time), and of members that are ready when they
//! are added or changed (`ep_insert`, `ep_modify`). That the set *stays* ready, by a level-triggered
//! member or by more members than the caller had room for, makes no event; hence
//!
//! - every call tries first: a set that stayed ready is found so;
//! - who has found something leaves the flag set and wakes the next fiber that waits on the instance,
//!   as the kernel does with its next sleeper (`ep_done_scan`). If nothing is left for that one, it
//!   waits on.
//!
//! Threads that sleep in the kernel on the same instance are woken by the kernel as before, beside the
//! driver: whoever comes first takes the event.
//!
//! The driver is one more level of nesting, of which the kernel allows five. An instance that is
//! nested as deeply as it can be is refused by the driver, and waiting for it blocks the worker.
//!
//! A signal mask: see `poll.rs`. `O_NONBLOCK` of an instance means nothing, as in the kernel.
//! `epoll_ctl` never waits, and passes.
//!
//! Sources: epoll(7), epoll_wait(2); `fs/eventpoll.c` of Linux.

use std::ffi::c_int;

use libc::{epoll_event, sigset_t, timespec};
use sleave_runtime::interpose;
use sleave_runtime::reactor::{self, Direction, Readiness};
use sleave_runtime::wait::Deadline;

use crate::create::opened;
use crate::handoff::{Call, hand_off};
use crate::poll::{lets_signals_in, milliseconds};
use crate::signal::interruption;
use crate::table::Kind;
use crate::{cancel, errno, kernel, next, time};

/// epoll_create(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_create(size: c_int) -> c_int {
    // SAFETY: the caller's argument for the same function.
    opened(unsafe { next::epoll_create(size) }, Kind::Device, 0)
}

/// epoll_create1(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: the caller's argument for the same function.
    opened(unsafe { next::epoll_create1(flags) }, Kind::Device, 0)
}

/// `epoll_wait` in a fiber for `timeout` nanoseconds (`None`: for ever); answers as the kernel does.
///
/// # Safety
/// As epoll_wait(2).
unsafe fn wait_for(
    epoll: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: Option<u64>,
) -> isize {
    let look = || {
        reactor::attempt(epoll, Direction::Read);
        // SAFETY: the caller's buffer.
        let found = unsafe { kernel::epoll_wait(epoll, events, max, 0) };
        if found != 0 {
            reactor::leave(epoll, Direction::Read, true);
        }
        found
    };
    let found = look();
    if found != 0 || timeout == Some(0) {
        return found;
    }
    let deadline = timeout.map_or(Deadline::NEVER, Deadline::after);
    if let Some(error) = cancel::stops_before() {
        return error;
    }
    loop {
        let readiness = reactor::wait(epoll, Direction::Read, deadline);
        match readiness {
            Readiness::Ready | Readiness::TimedOut => {}
            Readiness::Interrupted => {
                if let Some(error) = interruption(false) {
                    return error;
                }
            }
            Readiness::Closed => return errno::error(libc::EBADF),
            Readiness::Unpollable => {
                let left = left_milliseconds(deadline);
                // SAFETY: the caller's buffer.
                return unsafe { kernel::epoll_wait(epoll, events, max, left) };
            }
        }
        let found = look();
        if found != 0 || readiness == Readiness::TimedOut {
            return found;
        }
    }
}

/// The time until `deadline` in milliseconds, rounded up; -1 for ever.
fn left_milliseconds(deadline: Deadline) -> c_int {
    let milliseconds = |left: u64| left.div_ceil(1_000_000).try_into().unwrap_or(c_int::MAX);
    time::left(deadline).map_or(-1, milliseconds)
}

/// epoll_wait(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: c_int,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::epoll_wait(epoll, events, max, timeout);
        }
        errno::finish_int(wait_for(epoll, events, max, milliseconds(timeout)))
    }
}

/// epoll_pwait(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait(
    epoll: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: c_int,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        let call = || next::epoll_pwait(epoll, events, max, timeout, mask);
        if !interpose::active() {
            return call();
        }
        if lets_signals_in(mask) {
            return hand_off(Call::Waits, call);
        }
        errno::finish_int(wait_for(epoll, events, max, milliseconds(timeout)))
    }
}

/// epoll_pwait2(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_pwait2(
    epoll: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel; a
    // timeout that is not null is readable.
    unsafe {
        let call = || next::epoll_pwait2(epoll, events, max, timeout, mask);
        if !interpose::active() {
            return call();
        }
        if lets_signals_in(mask) {
            return hand_off(Call::Waits, call);
        }
        match time::timeout(timeout) {
            Ok(timeout) => errno::finish_int(wait_for(epoll, events, max, timeout)),
            Err(error) => errno::finish_int(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_rounded_up_and_for_ever_stays_so() {
        assert_eq!(left_milliseconds(Deadline::NEVER), -1);
        assert_eq!(left_milliseconds(Deadline::at(1)), 0);
        let left = left_milliseconds(Deadline::after(60_000_000_001));
        assert!((59_000..=60_001).contains(&left), "{left}");
        assert_eq!(left_milliseconds(Deadline::after(u64::MAX / 2)), c_int::MAX);
    }
}
