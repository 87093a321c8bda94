//! The end of a process that cannot go on: a message, then SIGABRT, without the C library.

use crate::sys;

/// Writes `message` to standard error and aborts the process.
#[cold]
pub(crate) fn fatal(message: &str) -> ! {
    for part in ["fatal: ", message, "\n"] {
        sys::complain(part.as_bytes());
    }
    sys::abort()
}
