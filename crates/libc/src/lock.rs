//! Locks of files: `flock`, `lockf`, and what `fcntl` does with them.
//!
//! ```text
//!   try without waiting ── done, or an error that is none of the next ─▶ the result
//!          └─ held by somebody ─▶ hand off the call that waits
//! ```
//!
//! The try and the call that waits are the same lock at two moments: a lock that is free is taken without another
//! thread, and one that is not is waited for in the kernel's queue. Dead-locks are found (`EDEADLK`) by the call that
//! waits, as ever. Who owns a lock does not change: a process (`F_SETLKW`), or an open file description (`flock`,
//! `F_OFD_SETLKW`), never a thread.
//!
//! A failed try to convert a lock of `flock` loses the old one, as in a call that waits: there, too, it is
//! given up first (flock(2)).
//!
//! Sources: flock(2), fcntl(2) on advisory locks, lockf(3).

use std::ffi::c_int;

use libc::off_t;
use sleave_runtime::interpose;

use crate::handoff::hand_off_again;
use crate::{errno, next};

/// Makes the call that does not wait; the one that waits only if the lock is held.
fn take(try_call: impl FnOnce() -> c_int, waiting: impl Fn() -> c_int) -> c_int {
    let before = errno::get();
    let result = try_call();
    if result == -1 && matches!(errno::get(), libc::EAGAIN | libc::EACCES) {
        errno::set(before);
        return hand_off_again(waiting);
    }
    result
}

/// flock(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn flock(fd: c_int, operation: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function, here and below.
    let call = |operation| unsafe { next::flock(fd, operation) };
    if !interpose::active() || operation & libc::LOCK_NB != 0 {
        return call(operation);
    }
    take(|| call(operation | libc::LOCK_NB), || call(operation))
}

/// The work of `lockf` and `lockf64`, which are the same where `off_t` has 64 bits.
unsafe fn lock_section(
    fd: c_int,
    command: c_int,
    len: off_t,
    call: unsafe fn(c_int, c_int, off_t) -> c_int,
) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let call = |command| unsafe { call(fd, command, len) };
    if !interpose::active() || command != libc::F_LOCK {
        return call(command);
    }
    take(|| call(libc::F_TLOCK), || call(command))
}

/// lockf(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn lockf(fd: c_int, command: c_int, len: off_t) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { lock_section(fd, command, len, next::lockf) }
}

/// `lockf` as glibc's headers name it with 64-bit file offsets.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn lockf64(fd: c_int, command: c_int, len: off_t) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { lock_section(fd, command, len, next::lockf64) }
}

/// A command of `fcntl` that waits for a lock, and the one that does not.
pub(crate) fn waiting(command: c_int) -> Option<c_int> {
    match command {
        libc::F_SETLKW => Some(libc::F_SETLK),
        libc::F_OFD_SETLKW => Some(libc::F_OFD_SETLK),
        _ => None,
    }
}

/// A command of `fcntl` that waits for a lock; `call` makes any command with the program's argument.
pub(crate) fn control(command: c_int, try_command: c_int, call: impl Fn(c_int) -> c_int) -> c_int {
    if !interpose::active() {
        return call(command);
    }
    take(|| call(try_command), || call(command))
}
