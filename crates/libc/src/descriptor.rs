//! The descriptor itself: `close close_range closefrom dup dup2 dup3 fcntl ioctl`, and `__close __dup2
//! __fcntl`, old names.
//!
//! None of them parks (but an `fcntl` that waits for a file's lock, see `lock`). They tell the table and the reactor what happens to a number, whoever
//! calls, fiber or thread:
//!
//! ```text
//!   close(n)        n means nothing: forget, wake whoever waits on it with EBADF, then close
//!   dup(o) = n      n is new; o and n share a description: ask the kernel before each park
//!   dup2(o, n)      close(n), then the same; only if o is open and the call will succeed
//!   F_SETFL, FIONBIO     the program's own O_NONBLOCK
//!   F_GETFL         without the O_NONBLOCK that `connect` has borrowed for a moment
//! ```
//!
//! A close that takes long (`SO_LINGER`, a file on a network) blocks the worker, and the monitor
//! gives its other fibers to another thread.
//!
//! `fcntl` and `ioctl` are variadic in C. They are defined with one word instead, since on
//! x86-64 and AArch64 Linux a variadic integer or pointer travels where a fixed one does; a word
//! that the caller did not pass goes to a command that does not look at it.
//!
//! Sources: close(2), close_range(2), closefrom(3), dup(2), fcntl(2), ioctl_tty(2) on `FIONBIO`; System V AMD64 psABI, AAPCS64.

use std::ffi::{c_int, c_uint, c_ulong};

use sleave_runtime::reactor;

use crate::table::State;
use crate::{errno, kernel, lock, next, table};

/// `new` has become another name of what `old` names.
fn duplicated(old: c_int, new: c_int) {
    table::duplicated(old, new);
    reactor::shared(old);
    reactor::opened(new);
    reactor::shared(new);
}

/// close(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close(fd: c_int) -> c_int {
    // Before the number is free: afterwards it may be somebody else's already.
    table::forget(fd);
    // SAFETY: the caller's argument for the same function.
    let call = || errno::kernel_form(unsafe { next::close(fd) });
    errno::finish_int(reactor::close(fd, call))
}

/// `close`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __close(fd: c_int) -> c_int {
    // SAFETY: the caller's argument for the same function.
    unsafe { close(fd) }
}

/// close_range(2): all of them, unless they are only to be closed by the next exec.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let call = |first, last| errno::kernel_form(unsafe { next::close_range(first, last, flags) });
    // With flags nothing is closed that fibers share (CLOSE_RANGE_UNSHARE: the thread's own table).
    let closes = first <= last && flags == 0;
    errno::finish_int(if closes { close_all(first, last, call) } else { call(first, last) })
}

/// closefrom(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn closefrom(first: c_int) {
    // SAFETY: numbers that the caller wants to be closed. close_range(2) is older than what fibers need.
    let call = |first, last| errno::kernel_form(unsafe { next::close_range(first, last, 0) });
    if close_all(first.max(0) as c_uint, c_uint::MAX, call) < 0 {
        // SAFETY: the caller's argument for the same function.
        unsafe { next::closefrom(first) };
    }
}

/// Closes the numbers from `first` to `last` by `call`, but those that are the runtime's own, and tells whoever waits
/// for one of them.
fn close_all(first: c_uint, last: c_uint, call: impl Fn(c_uint, c_uint) -> isize) -> isize {
    // In a child of fork or vfork, the usual caller, nobody waits, and the table may be the parent's.
    if !reactor::is_this_process() {
        return call(first, last);
    }
    table::forget_range(first, last);
    let around_own = || {
        let mut from = first;
        while let Some(own) = reactor::next_own(from).filter(|&own| own <= last) {
            if from < own {
                let result = call(from, own - 1);
                if result < 0 {
                    return result;
                }
            }
            from = own + 1;
        }
        if from <= last { call(from, last) } else { 0 }
    };
    reactor::close_range(first, last, around_own)
}

/// dup(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup(fd: c_int) -> c_int {
    // SAFETY: the caller's argument for the same function.
    let new = unsafe { next::dup(fd) };
    if new >= 0 {
        duplicated(fd, new);
    }
    new
}

/// The part of dup2 and dup3 that they share: `call` makes `new` name what `old` names.
unsafe fn replace(old: c_int, new: c_int, call: impl FnOnce() -> c_int) -> c_int {
    if old == new || !kernel::is_open(old) || !kernel::is_open(new) {
        // Nothing is closed: an error, no change at all, or a number that was free.
        let result = call();
        if result >= 0 && old != new {
            duplicated(old, result);
        }
        return result;
    }
    table::forget(new);
    let result = errno::finish_int(reactor::close(new, || errno::kernel_form(call())));
    if result >= 0 {
        duplicated(old, result);
    }
    result
}

/// dup2(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { replace(old, new, || next::dup2(old, new)) }
}

/// dup3(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    if flags & !libc::O_CLOEXEC != 0 {
        // SAFETY: the caller's arguments for the same function, which refuses them.
        return unsafe { next::dup3(old, new, flags) };
    }
    // SAFETY: the caller's arguments for the same function.
    unsafe { replace(old, new, || next::dup3(old, new, flags)) }
}

/// The program has set its own `O_NONBLOCK`.
fn set_nonblocking(fd: c_int, on: bool) {
    if let Some(entry) = table::existing(fd) {
        entry.set_nonblocking(on);
    }
}

/// The work of `fcntl` and `fcntl64`; `call` is the C library's function of that name.
unsafe fn control(
    fd: c_int,
    command: c_int,
    argument: usize,
    call: unsafe fn(c_int, c_int, usize) -> c_int,
) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let call = |command| unsafe { call(fd, command, argument) };
    if let Some(try_command) = lock::waiting(command) {
        return lock::control(command, try_command, call);
    }
    let result = call(command);
    if result < 0 {
        return result;
    }
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicated(fd, result),
        libc::F_SETFL => set_nonblocking(fd, argument as c_int & libc::O_NONBLOCK != 0),
        libc::F_GETFL => {
            let state = table::existing(fd).map(|entry| entry.state());
            if let Some(state) = state.filter(|state| state.has(State::BORROWED)) {
                let own = if state.has(State::NONBLOCKING) { libc::O_NONBLOCK } else { 0 };
                return result & !libc::O_NONBLOCK | own;
            }
        }
        _ => {}
    }
    result
}

/// `dup2`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { dup2(old, new) }
}

/// fcntl(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { control(fd, command, argument, next::fcntl) }
}

/// `fcntl`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { fcntl(fd, command, argument) }
}

/// `fcntl` as glibc's headers name it with 64-bit file offsets.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { control(fd, command, argument, next::fcntl64) }
}

/// ioctl(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let result = unsafe { next::ioctl(fd, request, argument) };
    if result >= 0 && request == libc::FIONBIO as c_ulong {
        // SAFETY: ioctl(2): FIONBIO has read an int there.
        set_nonblocking(fd, unsafe { (argument as *const c_int).read_unaligned() } != 0);
    }
    result
}
