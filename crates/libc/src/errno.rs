//! `errno`: how a result of the kernel becomes a result of the C library.
//!
//! Inside this crate every call answers as the kernel does: a count, or an error number below
//! zero. Only the last line of an interposed function turns that into `-1` and `errno`, because
//! only there no park can follow: the address that `__errno_location` gives is asked for after
//! the fiber has come to rest on its last worker, so it is the fiber's own where identities are
//! full, and the current worker's where they are not. A call that succeeds leaves `errno` alone,
//! as the C library does (errno(3)); the tries in between never touch it.

use std::ffi::c_int;

use crate::cancel;

/// Sets `errno` of the caller.
pub(crate) fn set(code: c_int) {
    // SAFETY: errno(3): __errno_location gives the address of the caller's own `errno`, valid
    // as long as the caller lives; nothing parks between the call and the store.
    unsafe { *libc::__errno_location() = code };
}

/// The caller's `errno`.
pub(crate) fn get() -> c_int {
    // SAFETY: errno(3), as above, for reading.
    unsafe { *libc::__errno_location() }
}

/// The C library's form of the kernel's `result`.
#[inline(always)]
pub(crate) fn finish(result: isize) -> isize {
    if result < 0 { fail(result) } else { result }
}

/// [`finish`] for functions that return an `int`.
#[inline(always)]
pub(crate) fn finish_int(result: isize) -> c_int {
    finish(result) as c_int
}

#[cold]
fn fail(result: isize) -> isize {
    if result == cancel::CANCELLED {
        cancel::act();
    }
    set(-result as c_int);
    -1
}

/// The kernel's form of what a function of the C library has just returned.
pub(crate) fn kernel_form(result: c_int) -> isize {
    if result < 0 { error(get()) } else { result as isize }
}

/// The kernel's form of an error number.
pub(crate) const fn error(code: c_int) -> isize {
    -(code as isize)
}

/// `EAGAIN` as the kernel answers it: the call would block.
pub(crate) const AGAIN: isize = error(libc::EAGAIN);

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> c_int {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
    }

    #[test]
    fn success_leaves_errno_alone() {
        set(libc::EXDEV);
        assert_eq!(finish(7), 7);
        assert_eq!(finish(0), 0);
        assert_eq!(current(), libc::EXDEV);
    }

    #[test]
    fn failure_is_minus_one_and_errno() {
        assert_eq!(finish(error(libc::EPIPE)), -1);
        assert_eq!(current(), libc::EPIPE);
        assert_eq!(finish_int(AGAIN), -1);
        assert_eq!(current(), libc::EAGAIN);
    }
}
