//! Sleeping: `clock_nanosleep nanosleep sleep usleep thrd_sleep`, and `__nanosleep`, an old name.
//!
//! Nothing to try here: a sleep is a park with a deadline. The runtime counts on
//! `CLOCK_MONOTONIC`; a deadline on another clock is converted when the sleep begins and, when
//! it ends, compared with its own clock again, so that a clock that was set back makes it sleep
//! on, as in the kernel. (One that is set forward is noticed only at the end of the sleep.)
//!
//! A sleep ends before its time when a handler has run on its fiber (`EINTR`, and the time left), or its fiber is cancelled.
//! CPU-time clocks, alarm clocks (which may wake a suspended machine) and clock numbers
//! that do not exist pass to the C library. So does a null pointer, for its `EFAULT`; another bad
//! pointer faults here, in user space.
//!
//! Sources: clock_nanosleep(2), nanosleep(2), sleep(3), usleep(3).

use std::ffi::{c_int, c_uint};
use std::ptr::null_mut;

use libc::{clockid_t, timespec, useconds_t};
use sleave_runtime::interpose;
use sleave_runtime::wait::{Deadline, sleep as sleep_once};

use crate::signal::interruption;
use crate::{cancel, errno, next};

const SECOND: u64 = 1_000_000_000;

/// A time of the program in nanoseconds, saturating; `None` for one that is invalid to the
/// kernel (`timespec64_valid`).
pub(crate) fn nanoseconds(time: &timespec) -> Option<u64> {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec)) else {
        return None;
    };
    (nanos < SECOND).then(|| seconds.saturating_mul(SECOND).saturating_add(nanos))
}

/// What `clock` shows, in nanoseconds.
fn now(clock: clockid_t) -> u64 {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec; the callers pass clocks that exist.
    unsafe { libc::clock_gettime(clock, &mut time) };
    nanoseconds(&time).unwrap_or(0)
}

/// The deadline for the moment when `clock` shows `at`.
pub(crate) fn deadline_on(clock: clockid_t, at: u64) -> Deadline {
    if clock == libc::CLOCK_MONOTONIC {
        return Deadline::at(at);
    }
    if at == u64::MAX { Deadline::NEVER } else { Deadline::after(at.saturating_sub(now(clock))) }
}

/// The timeout of a call in nanoseconds, `None` for none (a null pointer); or `EINVAL`, as the kernel
/// answers it.
///
/// # Safety
/// `time` is null or readable.
pub(crate) unsafe fn timeout(time: *const timespec) -> Result<Option<u64>, isize> {
    // SAFETY: by contract.
    match unsafe { time.as_ref() } {
        None => Ok(None),
        Some(time) => nanoseconds(time).map(Some).ok_or(errno::error(libc::EINVAL)),
    }
}

/// `nanoseconds` as a program takes them.
pub(crate) fn timespec(nanoseconds: u64) -> timespec {
    timespec {
        tv_sec: (nanoseconds / SECOND) as libc::time_t,
        tv_nsec: (nanoseconds % SECOND) as libc::c_long,
    }
}

/// The nanoseconds until `deadline`; `None` for ever.
pub(crate) fn left(deadline: Deadline) -> Option<u64> {
    let left = || deadline.nanoseconds().saturating_sub(now(libc::CLOCK_MONOTONIC));
    (deadline != Deadline::NEVER).then(left)
}

/// Whether `clock` shows `at` or later.
pub(crate) fn passed(clock: clockid_t, at: u64) -> bool {
    now(clock) >= at
}

/// Sleeps until `deadline`; 0, or an error of the kernel's form if a handler has run before, with what is then left put into `left`, if
/// that is not null. If the caller is to stop, the sleep is over: those who sleep expect no failure.
///
/// # Safety
/// `left` is null or writable.
unsafe fn sleep_until(deadline: Deadline, left: *mut timespec) -> isize {
    const INTERRUPTED: isize = errno::error(libc::EINTR);
    let over = |error| if error == cancel::CANCELLED { error } else { 0 };
    if let Some(error) = cancel::stops_before() {
        return over(error);
    }
    while !sleep_once(deadline) {
        if let Some(error) = interruption(false) {
            if error != INTERRUPTED {
                return over(error);
            }
            if !left.is_null() {
                // SAFETY: by contract.
                unsafe { left.write(timespec(self::left(deadline).unwrap_or(u64::MAX))) };
            }
            return error;
        }
    }
    0
}

/// Sleeps until `clock` shows `at`; answers as [`sleep_until`].
fn sleep_on(clock: clockid_t, at: u64) -> isize {
    loop {
        // SAFETY: nobody asks what is left.
        let slept = unsafe { sleep_until(deadline_on(clock, at), null_mut()) };
        if slept != 0 || clock == libc::CLOCK_MONOTONIC || passed(clock, at) {
            return slept;
        }
    }
}

/// Whether a sleep on `clock` is ours to make.
fn is_ours(clock: clockid_t) -> bool {
    let ours = [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_TAI];
    ours.contains(&clock)
}

/// clock_nanosleep(2): answers an error number and leaves `errno` alone.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn clock_nanosleep(
    clock: clockid_t,
    flags: c_int,
    time: *const timespec,
    left: *mut timespec,
) -> c_int {
    if !interpose::active() || time.is_null() || !is_ours(clock) {
        // SAFETY: the caller's arguments for the same function.
        return unsafe { next::clock_nanosleep(clock, flags, time, left) };
    }
    // SAFETY: clock_nanosleep(2): the caller's time, valid for reads.
    let Some(value) = nanoseconds(unsafe { &*time }) else {
        return libc::EINVAL;
    };
    let slept = if flags & libc::TIMER_ABSTIME != 0 {
        sleep_on(clock, value)
    } else {
        // A relative sleep passes on the monotonic clock whatever clock was named: setting the
        // time of day does not change its length.
        // SAFETY: the caller's place for what is left.
        unsafe { sleep_until(Deadline::after(value), left) }
    };
    if slept == cancel::CANCELLED {
        cancel::act();
    }
    -slept as c_int
}

/// nanosleep(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn nanosleep(time: *const timespec, left: *mut timespec) -> c_int {
    if !interpose::active() || time.is_null() {
        // SAFETY: the caller's arguments for the same function.
        return unsafe { next::nanosleep(time, left) };
    }
    // SAFETY: nanosleep(2): the caller's time, valid for reads.
    let Some(value) = nanoseconds(unsafe { &*time }) else {
        return errno::finish_int(errno::error(libc::EINVAL));
    };
    // SAFETY: the caller's place for what is left.
    errno::finish_int(unsafe { sleep_until(Deadline::after(value), left) })
}

/// `nanosleep`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __nanosleep(time: *const timespec, left: *mut timespec) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { nanosleep(time, left) }
}

/// thrd_sleep(3): 0, or -2 for a time that is none. (-1 would be a signal.)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn thrd_sleep(time: *const timespec, left: *mut timespec) -> c_int {
    // SAFETY: the caller's arguments for a function that takes the same.
    match unsafe { clock_nanosleep(libc::CLOCK_REALTIME, 0, time, left) } {
        0 => 0,
        libc::EINTR => -1,
        _ => -2,
    }
}

/// sleep(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sleep(seconds: c_uint) -> c_uint {
    if !interpose::active() {
        // SAFETY: the caller's argument for the same function.
        return unsafe { next::sleep(seconds) };
    }
    let mut left = timespec(0);
    // SAFETY: a place of our own.
    match unsafe { sleep_until(Deadline::after(u64::from(seconds) * SECOND), &mut left) } {
        0 => 0,
        cancel::CANCELLED => cancel::act(),
        // As the kernel's alarm did: more than a half is a second.
        _ => (left.tv_sec + i64::from(left.tv_nsec >= 500_000_000)) as c_uint,
    }
}

/// usleep(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn usleep(microseconds: useconds_t) -> c_int {
    if !interpose::active() {
        // SAFETY: the caller's argument for the same function.
        return unsafe { next::usleep(microseconds) };
    }
    let deadline = Deadline::after(u64::from(microseconds) * 1000);
    // SAFETY: nobody asks what is left.
    errno::finish_int(unsafe { sleep_until(deadline, null_mut()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tv_sec: i64, tv_nsec: i64) -> Option<u64> {
        nanoseconds(&timespec { tv_sec, tv_nsec })
    }

    #[test]
    fn valid_times_in_nanoseconds() {
        assert_eq!(of(0, 0), Some(0));
        assert_eq!(of(1, 999_999_999), Some(1_999_999_999));
        assert_eq!(of(i64::MAX, 999_999_999), Some(u64::MAX), "saturates");
    }

    #[test]
    fn invalid_times_are_the_kernels() {
        assert_eq!(of(0, 1_000_000_000), None);
        assert_eq!(of(0, -1), None);
        assert_eq!(of(-1, 0), None);
    }

    #[test]
    fn clocks_have_passed_what_they_show() {
        for clock in [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME] {
            let at = now(clock);
            assert!(at > 0);
            assert!(passed(clock, at));
            assert!(!passed(clock, at + 3600 * SECOND));
        }
    }
}
