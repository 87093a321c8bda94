//! Waiting for a signal: `sigwait sigwaitinfo sigtimedwait pause sigsuspend`.
//!
//! What is waited for may be sent to the fiber, or to the process. The second is the kernel's, and comes to a thread: so the
//! wait is the thread's own, handed off, and sleeps for the runtime's kick as well:
//!
//! ```text
//!   sigwait:     block the kick ─▶ was the fiber sent one of the set? ── yes ─▶ done
//!                   ▲                       └ no: sigtimedwait(set and the kick) ─▶ one of the set ─▶ done
//!                   └────────────────────────────────── the kick ◀─┘
//!   sigsuspend:  the mask is the fiber's ─▶ block the kick ─▶ was it sent one that it lets in? its handler, done
//!                   ▲                       └ no: sigsuspend(mask, which lets the kick in)
//!                   └───── no handler has run ◀─┘─▶ one has: EINTR
//! ```
//!
//! The kick is blocked from the look to the wait, so none is lost in between.
//!
//! Signals that are to be waited for are blocked in all threads, before there are others (sigwait(3)): in `main`,
//! before the runtime is made. A signalfd is a descriptor: reading it parks.
//!
//! Sources: sigwait(3), sigwaitinfo(2), sigtimedwait(2), pause(2), sigsuspend(2), signal(7).

use std::ffi::c_int;
use std::mem::zeroed;
use std::ptr::null;

use libc::{siginfo_t, sigset_t, timespec};
use sleave_runtime::signal::{self, KICK, bit};
use sleave_runtime::wait::Deadline;

use super::deliver::{TKILL, sent_by_this_process};
use super::{interruption, use_fibers_signals};
use crate::handoff::{Call, hand_off};
use crate::{cancel, errno, kernel, time};

/// The kick, blocked on this thread until it is dropped.
struct KickBlocked(u64);

impl KickBlocked {
    fn begin() -> KickBlocked {
        let mask = kernel::blocked_signals();
        kernel::block_signals(mask | bit(KICK));
        KickBlocked(mask)
    }
}

impl Drop for KickBlocked {
    fn drop(&mut self) {
        kernel::block_signals(self.0);
    }
}

/// One of `set`, sent to the fiber or to the process, until `deadline`; or an error.
fn wait_for(set: u64, deadline: Deadline, info: &mut siginfo_t) -> isize {
    use_fibers_signals();
    loop {
        if cancel::is_due() {
            return cancel::CANCELLED;
        }
        let result = hand_off(Call::Waits, || {
            let _blocked = KickBlocked::begin();
            if let Some((number, value)) = signal::take(set) {
                *info = sent_by_this_process(number, value);
                return number as isize;
            }
            let left = time::left(deadline).map(time::timespec);
            let left = left.as_ref().map_or(null(), |left| &raw const *left);
            // SAFETY: rt_sigtimedwait(2): a set, a place for the info, and a time or none.
            unsafe { kernel::sigtimedwait(set | bit(KICK), info, left) }
        });
        // What has come in between, and is let in, has its handler run now.
        signal::look();
        const INTERRUPTED: isize = errno::error(libc::EINTR);
        match result {
            number if number == KICK as isize => {}
            INTERRUPTED => return INTERRUPTED,
            result => return result,
        }
        match interruption(false) {
            None => {}
            Some(error) => return error,
        }
    }
}

/// # Safety
/// `set` is readable.
unsafe fn of(set: *const sigset_t) -> u64 {
    // SAFETY: by contract: the kernel's part of a set are its first eight bytes.
    unsafe { set.cast::<u64>().read() & !bit(KICK) }
}

/// sigtimedwait(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigtimedwait(
    set: *const sigset_t,
    info: *mut siginfo_t,
    timeout: *const timespec,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or as it reads and writes them.
    unsafe {
        if signal::mask().is_none() {
            return crate::next::sigtimedwait(set, info, timeout);
        }
        let deadline = match time::timeout(timeout) {
            Ok(timeout) => timeout.map_or(Deadline::NEVER, Deadline::after),
            Err(error) => return errno::finish_int(error),
        };
        let mut own: siginfo_t = zeroed();
        let result = wait_for(of(set), deadline, &mut own);
        if result > 0 && !info.is_null() {
            // As glibc does: who waits need not know by which call a signal was sent.
            if own.si_code == TKILL {
                own.si_code = libc::SI_USER;
            }
            info.write(own);
        }
        errno::finish_int(result)
    }
}

/// sigwaitinfo(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigwaitinfo(set: *const sigset_t, info: *mut siginfo_t) -> c_int {
    // SAFETY: the caller's arguments: it is sigtimedwait without a time.
    unsafe { sigtimedwait(set, info, null()) }
}

/// sigwait(3): answers an error number, and is not interrupted.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigwait(set: *const sigset_t, number: *mut c_int) -> c_int {
    // SAFETY: the caller's arguments, for the same function or as it reads and writes them.
    unsafe {
        if signal::mask().is_none() {
            return crate::next::sigwait(set, number);
        }
        loop {
            let result = wait_for(of(set), Deadline::NEVER, &mut zeroed());
            if result > 0 {
                number.write(result as c_int);
                return 0;
            }
            if result == cancel::CANCELLED {
                cancel::act();
            }
            if result != errno::error(libc::EINTR) {
                return -result as c_int;
            }
        }
    }
}

/// Waits under `mask` until a handler has run. Answers as the kernel does.
fn suspend(mask: u64) -> isize {
    use_fibers_signals();
    let before = signal::mask().unwrap_or(0);
    signal::set_mask(mask);
    signal::look();
    let mut result = interruption(false);
    while result.is_none() {
        let ended = hand_off(Call::Waits, || {
            let _blocked = KickBlocked::begin();
            if signal::pending() & !mask != 0 {
                return 0;
            }
            // SAFETY: rt_sigsuspend(2) reads a mask.
            unsafe { kernel::sigsuspend(mask & !bit(KICK)) }
        });
        signal::look();
        result = interruption(false);
        // A signal for the process, whose handler the kernel has called. A kick alone is none.
        if result.is_none() && ended != 0 && !signal::was_kicked() {
            result = Some(ended);
        }
    }
    signal::set_mask(before);
    signal::look();
    result.unwrap_or(0)
}

/// sigsuspend(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigsuspend(mask: *const sigset_t) -> c_int {
    // SAFETY: the caller's argument, for the same function or to be read.
    unsafe {
        if signal::mask().is_none() {
            return crate::next::sigsuspend(mask);
        }
        errno::finish_int(suspend(of(mask)))
    }
}

/// pause(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pause() -> c_int {
    match signal::mask() {
        Some(mask) => errno::finish_int(suspend(mask)),
        // SAFETY: no arguments.
        None => unsafe { crate::next::pause() },
    }
}
