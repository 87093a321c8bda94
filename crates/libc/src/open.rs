//! Opening: `open openat creat`, and the names that glibc's headers give them; `open_by_handle_at`.
//!
//! The new number's past is forgotten (`create::numbered`), and what it names is asked about when it is
//! first used. To open a FIFO waits until somebody opens its other end; that, and whatever else is slow to
//! open (a device that waits for its line, a file on a network), blocks the worker.
//!
//! `open` and `openat` are variadic in C; they are defined with a mode, as `fcntl` is with a word
//! (`descriptor.rs`).
//!
//! Sources: open(2), fifo(7), open_by_handle_at(2).

use std::ffi::{c_char, c_int, c_void};

use libc::mode_t;

use crate::create::numbered;
use crate::next;

/// Functions that make a number and take these arguments.
macro_rules! opens {
    ($( $(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*); )*) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> c_int {
                // SAFETY: the caller's arguments for the same function.
                numbered(unsafe { next::$name($($arg),*) })
            }
        )*
    };
}

opens! {
    /// open(2)
    open(path: *const c_char, flags: c_int, mode: mode_t);
    /// `open` as glibc's headers name it with 64-bit file offsets.
    open64(path: *const c_char, flags: c_int, mode: mode_t);
    /// `open`, as old programs call it.
    __open(path: *const c_char, flags: c_int, mode: mode_t);
    /// `open64`, as old programs call it.
    __open64(path: *const c_char, flags: c_int, mode: mode_t);
    /// openat(2)
    openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t);
    /// `openat` as glibc's headers name it with 64-bit file offsets.
    openat64(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t);
    /// creat(2)
    creat(path: *const c_char, mode: mode_t);
    /// `creat` as glibc's headers name it with 64-bit file offsets.
    creat64(path: *const c_char, mode: mode_t);
    /// `open` without a mode, under `_FORTIFY_SOURCE`.
    __open_2(path: *const c_char, flags: c_int);
    /// `open64` without a mode, under `_FORTIFY_SOURCE`.
    __open64_2(path: *const c_char, flags: c_int);
    /// `openat` without a mode, under `_FORTIFY_SOURCE`.
    __openat_2(directory: c_int, path: *const c_char, flags: c_int);
    /// `openat64` without a mode, under `_FORTIFY_SOURCE`.
    __openat64_2(directory: c_int, path: *const c_char, flags: c_int);
    /// open_by_handle_at(2)
    open_by_handle_at(mount: c_int, handle: *mut c_void, flags: c_int);
}
