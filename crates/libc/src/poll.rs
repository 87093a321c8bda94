//! Waiting for one of several descriptors: `poll ppoll`, and `__poll`, an old name of the first.
//!
//! The kernel is asked first, without a timeout, with the program's own array: that settles what
//! is ready already, what is no descriptor (`POLLNVAL`), too many entries (`EINVAL`) and a bad
//! array (`EFAULT`). Only if nothing is ready is the array known to be readable, and parked on as
//! a whole.
//!
//! **A signal mask** (of `ppoll`, `pselect`, `epoll_pwait`, `epoll_pwait2`) is to be in force exactly while
//! the *thread* waits, and only the kernel can do that. If it lets a signal in that is blocked
//! otherwise, that signal is what the caller waits for: the call is handed off (`handoff`). A mask that
//! lets in nothing new, such as the present one, changes nothing that a fiber could see: then it parks.
//!
//! Sources: poll(2), signal(7).

use std::ffi::c_int;

use libc::{nfds_t, pollfd, sigset_t, size_t, timespec};
use sleave_runtime::wait::Deadline;
use sleave_runtime::{interpose, reactor};

use crate::handoff::{Call, hand_off};
use crate::signal::interruption;
use crate::{cancel, errno, kernel, next, time};

/// `poll` in a fiber for `timeout` nanoseconds (`None`: for ever); answers as the kernel does.
///
/// # Safety
/// As poll(2).
unsafe fn poll_for(fds: *mut pollfd, count: nfds_t, timeout: Option<u64>) -> isize {
    // SAFETY: the caller's array.
    let found = unsafe { kernel::poll_now(fds, count) };
    if found != 0 || timeout == Some(0) {
        return found;
    }
    let deadline = timeout.map_or(Deadline::NEVER, Deadline::after);
    // The kernel takes the count as 32 bits: so much of the array is known to be there.
    let count = count as u32;
    let fds: &mut [pollfd] = match count {
        0 => &mut [],
        // SAFETY: the kernel has just read and written these `count` entries.
        _ => unsafe { std::slice::from_raw_parts_mut(fds, count as usize) },
    };
    if let Some(error) = cancel::stops_before() {
        return error;
    }
    reactor::poll(fds, deadline, || interruption(false))
}

/// A timeout in milliseconds, negative for none, in nanoseconds.
pub(crate) fn milliseconds(timeout: c_int) -> Option<u64> {
    u64::try_from(timeout).ok().map(|ms| ms * 1_000_000)
}

/// Whether a wait under `mask` can be ended by a signal that the caller blocks otherwise.
///
/// # Safety
/// `mask` is null or readable.
pub(crate) unsafe fn lets_signals_in(mask: *const sigset_t) -> bool {
    // SAFETY: by contract; the kernel's part of a sigset_t are its first eight bytes.
    let mask = unsafe { mask.cast::<u64>().as_ref() };
    mask.is_some_and(|mask| kernel::blocked_signals() & !mask != 0)
}

/// poll(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::poll(fds, count, timeout);
        }
        errno::finish_int(poll_for(fds, count, milliseconds(timeout)))
    }
}

/// ppoll(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ppoll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel; a
    // timeout that is not null is readable.
    unsafe {
        let call = || next::ppoll(fds, count, timeout, mask);
        if !interpose::active() {
            return call();
        }
        if lets_signals_in(mask) {
            return hand_off(Call::Waits, call);
        }
        match time::timeout(timeout) {
            Ok(timeout) => errno::finish_int(poll_for(fds, count, timeout)),
            Err(error) => errno::finish_int(error),
        }
    }
}

/// `poll`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { poll(fds, count, timeout) }
}

/// `poll` under `_FORTIFY_SOURCE`: the C library aborts if there are more entries than room.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __poll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: c_int,
    room: size_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe {
        if room / size_of::<pollfd>() < count as usize {
            return next::__poll_chk(fds, count, timeout, room);
        }
        poll(fds, count, timeout)
    }
}

/// `ppoll` under `_FORTIFY_SOURCE`: see `__poll_chk`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __ppoll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    room: size_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    unsafe {
        if room / size_of::<pollfd>() < count as usize {
            return next::__ppoll_chk(fds, count, timeout, mask, room);
        }
        ppoll(fds, count, timeout, mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_milliseconds_are_for_ever() {
        assert_eq!(milliseconds(-1), None);
        assert_eq!(milliseconds(c_int::MIN), None);
        assert_eq!(milliseconds(0), Some(0));
        assert_eq!(milliseconds(c_int::MAX), Some(2_147_483_647_000_000));
    }
}
