//! Descriptors that the C library closes by itself: `fclose freopen pclose closedir mq_close`, and
//! `_IO_fclose`, an old name.
//!
//! stdio and directory streams own a descriptor that the program may have made, tracked and waited on
//! (fdopen(3), fdopendir(3)), and close it past the symbol `close`; a message queue is a descriptor. These names are therefore
//! tracked as a `close` of that number: whoever waits for it hears of it, and the number has no
//! past when it is given out again.
//!
//! What *opens* behind the symbols (`fopen`, `opendir`, `popen`, `mq_open` …) needs nothing: since every
//! close is seen, such a number is unknown, and asked about when it is first used. Only what closes by
//! the bare instruction remains unseen; a number from any of the calls that this crate tracks is
//! then right again.
//!
//! Reading and writing a stream blocks the worker: glibc calls itself.
//!
//! Sources: fclose(3), freopen(3), closedir(3), popen(3), fileno(3), mq_overview(7).

use std::ffi::{c_char, c_int};

use libc::{DIR, FILE, mqd_t};
use sleave_runtime::{interpose, reactor};

use crate::handoff::{Call, hand_off};
use crate::{errno, next, table};

/// Closes `fd` by `call`, which answers as the C library does; a number below zero is none, and the runtime's
/// own are not tracked.
fn closing<T>(fd: c_int, call: impl FnOnce() -> T) -> T {
    if fd < 0 || reactor::is_own(fd) {
        return call();
    }
    table::forget(fd);
    let mut result = None;
    reactor::close(fd, || {
        result = Some(call());
        0
    });
    result.expect("close calls")
}

/// The number that `stream` stands on; -1 for one that is memory, or none.
///
/// # Safety
/// `stream` is null or the program's open stream.
unsafe fn number(stream: *mut FILE) -> c_int {
    if stream.is_null() {
        return -1;
    }
    let before = errno::get();
    // SAFETY: by contract.
    let fd = unsafe { libc::fileno(stream) };
    errno::set(before);
    fd
}

/// fclose(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fclose(stream: *mut FILE) -> c_int {
    // SAFETY: the caller's argument for the same function.
    unsafe { closing(number(stream), || next::fclose(stream)) }
}

/// `fclose`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _IO_fclose(stream: *mut FILE) -> c_int {
    // SAFETY: the caller's argument for the same function.
    unsafe { fclose(stream) }
}

/// pclose(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pclose(stream: *mut FILE) -> c_int {
    // SAFETY: the caller's argument for the same function.
    let call = || unsafe { next::pclose(stream) };
    // SAFETY: the caller's stream.
    let fd = unsafe { number(stream) };
    // It waits for the child.
    closing(fd, || if interpose::active() { hand_off(Call::Waits, call) } else { call() })
}

/// freopen(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn freopen(
    path: *const c_char,
    mode: *const c_char,
    stream: *mut FILE,
) -> *mut FILE {
    // SAFETY: the caller's arguments for the same function.
    unsafe { closing(number(stream), || next::freopen(path, mode, stream)) }
}

/// `freopen` as glibc's headers name it with 64-bit file offsets.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn freopen64(
    path: *const c_char,
    mode: *const c_char,
    stream: *mut FILE,
) -> *mut FILE {
    // SAFETY: the caller's arguments for the same function.
    unsafe { closing(number(stream), || next::freopen64(path, mode, stream)) }
}

/// closedir(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn closedir(directory: *mut DIR) -> c_int {
    // SAFETY: the caller's argument, for dirfd(3) and for the same function; a null pointer is its
    // EINVAL.
    unsafe {
        let fd = if directory.is_null() { -1 } else { libc::dirfd(directory) };
        closing(fd, || next::closedir(directory))
    }
}

/// mq_close(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mq_close(queue: mqd_t) -> c_int {
    // SAFETY: the caller's argument for the same function.
    closing(queue, || unsafe { next::mq_close(queue) })
}
