//! Opening: `open openat creat`, and the names that glibc's headers give them; `open_by_handle_at`.
//!
//! The new number's past is forgotten (`create::numbered`), and what it names is asked about when it is
//! first used.
//!
//! Opening is over at once, mostly: so nobody is called to stand in, which would cost more than the call. But a FIFO waits
//! until somebody opens its other end, a device for its line, a file on a network for the network. Then the runtime's monitor
//! calls somebody within some 5 ms. (To ask beforehand whether the name is a FIFO's costs 40 % of a whole `open`. And
//! `O_NONBLOCK` would be no try: it means something else, as a reader is let in at once, and the
//! writer who waited for one believes that it has come.)
//!
//! Only where no more threads may be had (`Call::Glances`) a FIFO must be told from what ends by itself.
//!
//! `open` and `openat` are variadic in C; they are defined with a mode, as `fcntl` is with a word (`descriptor`).
//!
//! Sources: open(2), fifo(7), statx(2).

use std::ffi::{c_char, c_int, c_void};

use libc::mode_t;
use sleave_runtime::interpose;

use crate::create::numbered;
use crate::handoff::{Call, glance, hand_off};
use crate::{kernel, next};

/// Opens by `call`, in a fiber.
///
/// # Safety
/// `path` is the program's, for open(2).
unsafe fn open_by(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    call: impl FnOnce() -> c_int,
) -> c_int {
    if !interpose::active() || flags & (libc::O_NONBLOCK | libc::O_PATH) != 0 {
        return numbered(call());
    }
    numbered(glance(call).unwrap_or_else(|call| {
        // SAFETY: the caller's path: the kernel checks it.
        let waits = unsafe { kernel::is_fifo(directory, path) };
        hand_off(if waits { Call::Waits } else { Call::Works }, call)
    }))
}

/// Functions that open a path, in the working directory or in the one that stands in brackets, with these flags.
macro_rules! opens {
    ($(
        $(#[$doc:meta])*
        $name:ident[$($directory:ident)?]($($flags:ident)? $(= $fixed:expr)? $(; $mode:ident)?);
    )*) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            pub unsafe extern "C-unwind" fn $name(
                $($directory: c_int,)? path: *const c_char $(, $flags: c_int)? $(, $mode: mode_t)?
            ) -> c_int {
                let directory = opens!(@directory $($directory)?);
                let all_flags = opens!(@flags $($flags)? $($fixed)?);
                // SAFETY: the caller's arguments for the same function.
                unsafe {
                    open_by(directory, path, all_flags, || {
                        next::$name($($directory,)? path $(, $flags)? $(, $mode)?)
                    })
                }
            }
        )*
    };
    (@directory) => { libc::AT_FDCWD };
    (@directory $directory:ident) => { $directory };
    (@flags $flags:expr) => { $flags };
}

opens! {
    /// open(2)
    open[](flags; mode);
    /// `open` as glibc's headers name it with 64-bit file offsets.
    open64[](flags; mode);
    /// `open`, as old programs call it.
    __open[](flags; mode);
    /// `open64`, as old programs call it.
    __open64[](flags; mode);
    /// openat(2)
    openat[directory](flags; mode);
    /// `openat` as glibc's headers name it with 64-bit file offsets.
    openat64[directory](flags; mode);
    /// creat(2)
    creat[](= libc::O_WRONLY; mode);
    /// `creat` as glibc's headers name it with 64-bit file offsets.
    creat64[](= libc::O_WRONLY; mode);
    /// `open` without a mode, under `_FORTIFY_SOURCE`.
    __open_2[](flags);
    /// `open64` without a mode, under `_FORTIFY_SOURCE`.
    __open64_2[](flags);
    /// `openat` without a mode, under `_FORTIFY_SOURCE`.
    __openat_2[directory](flags);
    /// `openat64` without a mode, under `_FORTIFY_SOURCE`.
    __openat64_2[directory](flags);
}

/// open_by_handle_at(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn open_by_handle_at(
    mount: c_int,
    handle: *mut c_void,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    numbered(unsafe { next::open_by_handle_at(mount, handle, flags) })
}
