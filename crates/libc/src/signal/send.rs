//! Sending signals to threads: `pthread_kill raise pthread_sigqueue`.
//!
//! ```text
//!   to an OS thread ─▶ libc's      to a fiber ─▶ kept in its slot; it is told (`sleave_runtime::signal`)
//!   to itself, let in ─▶ libc's: the thread that runs the fiber gets it at once;  blocked ─▶ kept
//!   with a value      ─▶ kept, with the value, whoever sends it
//! ```
//!
//! Sources: pthread_kill(3), raise(3), pthread_sigqueue(3).

use std::ffi::c_int;

use libc::pthread_t;
use sleave_runtime::green::{self, Life};
use sleave_runtime::{identity, signal};

use super::use_fibers_signals;
use crate::next;

fn is_caller(thread: pthread_t) -> bool {
    thread as usize == identity::thread_pointer()
}

fn is_valid(number: c_int) -> bool {
    (0..=libc::SIGRTMAX()).contains(&number)
}

/// Whether `number` is one that the calling fiber blocks, and which is kept for it now.
fn kept_for_caller(number: c_int) -> bool {
    number > 0 && signal::mask().is_some_and(|mask| mask & signal::bit(number) != 0) && {
        use_fibers_signals();
        signal::keep(number)
    }
}

/// pthread_kill(3). Async-signal-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_kill(thread: pthread_t, number: c_int) -> c_int {
    let life = green::life(thread as usize);
    if life == Life::Foreign || is_caller(thread) {
        if is_valid(number) && is_caller(thread) && kept_for_caller(number) {
            return 0;
        }
        // SAFETY: the caller's arguments for the same function; to itself glibc sends by the kernel's number.
        return unsafe { next::pthread_kill(thread, number) };
    }
    match life {
        Life::Nobody => libc::ESRCH,
        _ if !is_valid(number) => libc::EINVAL,
        // Nothing is sent to what has ended, as with glibc.
        Life::Runs if number != 0 => {
            use_fibers_signals();
            green::send(thread as usize, number);
            0
        }
        _ => 0,
    }
}

/// raise(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn raise(number: c_int) -> c_int {
    if is_valid(number) && kept_for_caller(number) {
        return 0;
    }
    // SAFETY: the caller's argument for the same function.
    unsafe { next::raise(number) }
}

/// pthread_sigqueue(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_sigqueue(
    thread: pthread_t,
    number: c_int,
    value: libc::sigval,
) -> c_int {
    match green::life(thread as usize) {
        // SAFETY: the caller's arguments for the same function.
        Life::Foreign => unsafe { next::pthread_sigqueue(thread, number, value) },
        Life::Nobody if is_caller(thread) => libc::ENOSYS,
        Life::Nobody => libc::ESRCH,
        _ if !is_valid(number) => libc::EINVAL,
        Life::Runs if number != 0 => {
            use_fibers_signals();
            let (_, sent) = green::send_value(thread as usize, number, value.sival_ptr as usize);
            // By itself: its handler runs before this returns, unless it blocks the signal.
            signal::look();
            if sent { 0 } else { libc::EAGAIN }
        }
        _ => 0,
    }
}
