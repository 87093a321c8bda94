//! Which signals a fiber blocks: `pthread_sigmask sigprocmask sigpending`, and the jumps that put a mask back.
//!
//! A fiber begins with what its creator blocks, if a thread of `pthread_create`'s, else with what was blocked where its
//! runtime was made. The OS thread that runs it blocks the same for as long, so a signal for the process does not come to a
//! fiber that blocks it.
//!
//! `siglongjmp` puts back a mask by the bare instruction; so it is told here what it will be.
//!
//! Sources: pthread_sigmask(3), sigprocmask(2), sigpending(2), sigsetjmp(3).

use std::ffi::{c_int, c_void};

use libc::sigset_t;
use sleave_runtime::signal;

use crate::{errno, next};

/// What cannot be blocked, and what is not the program's: `SIGKILL`, `SIGSTOP`, the two that glibc keeps for itself, and the
/// runtime's kick.
const NEVER: u64 =
    1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1) | 0b11 << 31 | 1 << (signal::KICK - 1);

/// pthread_sigmask(3): answers an error number.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_sigmask(
    how: c_int,
    set: *const sigset_t,
    old: *mut sigset_t,
) -> c_int {
    let Some(before) = signal::mask() else {
        // SAFETY: the caller's arguments for the same function.
        return unsafe { next::pthread_sigmask(how, set, old) };
    };
    // SAFETY: the caller's sets: the kernel's part of one are its first eight bytes.
    let set = unsafe { set.cast::<u64>().as_ref() }.copied();
    let after = match (set, how) {
        (None, _) => before,
        (Some(set), libc::SIG_BLOCK) => before | set,
        (Some(set), libc::SIG_UNBLOCK) => before & !set,
        (Some(set), libc::SIG_SETMASK) => set,
        _ => return libc::EINVAL,
    };
    if !old.is_null() {
        // SAFETY: the caller's set; all of it is written, as glibc does not, for those who compare.
        unsafe {
            old.write_bytes(0, 1);
            old.cast::<u64>().write(before);
        }
    }
    if set.is_some() {
        signal::set_mask(after & !NEVER);
        signal::look();
    }
    0
}

/// sigprocmask(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigprocmask(
    how: c_int,
    set: *const sigset_t,
    old: *mut sigset_t,
) -> c_int {
    if signal::mask().is_none() {
        // SAFETY: the caller's arguments for the same function.
        return unsafe { next::sigprocmask(how, set, old) };
    }
    // SAFETY: the caller's arguments: it is pthread_sigmask, with `errno`.
    match unsafe { pthread_sigmask(how, set, old) } {
        0 => 0,
        error => errno::finish_int(errno::error(error)),
    }
}

/// sigpending(2): also what the fiber has been sent.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigpending(set: *mut sigset_t) -> c_int {
    // SAFETY: the caller's argument for the same function.
    let result = unsafe { next::sigpending(set) };
    if result == 0 {
        // SAFETY: written just now; see above.
        unsafe { *set.cast::<u64>() |= signal::pending() & signal::mask().unwrap_or(0) };
    }
    result
}

/// The part of `sigjmp_buf` behind the registers, setjmp.h of glibc on x86-64: whether a mask was saved, and which.
#[repr(C)]
struct Saved {
    #[cfg(target_arch = "x86_64")]
    registers: [u64; 8],
    #[cfg(target_arch = "aarch64")]
    registers: [u64; 22],
    has_mask: c_int,
    mask: u64,
}

/// # Safety
/// `buffer` was filled by sigsetjmp(3) or one of its kin.
unsafe fn will_restore(buffer: *const c_void) {
    // SAFETY: by contract.
    let saved = unsafe { &*buffer.cast::<Saved>() };
    if saved.has_mask != 0 && signal::mask().is_some() {
        signal::set_mask(saved.mask & !NEVER);
    }
}

macro_rules! jumps {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            pub unsafe extern "C-unwind" fn $name(buffer: *mut c_void, value: c_int) -> ! {
                // SAFETY: the caller's buffer, for the same function, which does not return.
                unsafe {
                    will_restore(buffer);
                    next::$name(buffer, value);
                }
                unreachable!("a jump has returned")
            }
        )*
    };
}

jumps! {
    /// siglongjmp(3)
    siglongjmp
    /// longjmp(3), which is the same
    longjmp
    /// `_longjmp`, which is the same
    _longjmp
    /// `longjmp` under `_FORTIFY_SOURCE`
    __longjmp_chk
}
