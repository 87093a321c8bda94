//! New descriptors: `socket socketpair pipe pipe2 eventfd timerfd_create signalfd inotify_init
//! inotify_init1 fanotify_init pidfd_open pidfd_getfd memfd_create`, and `__pipe`, an old name.
//!
//! None of them parks, and none of them changes what it makes. The table learns what the new
//! number names and whether the program wants it non-blocking, which saves asking the kernel
//! later; the reactor learns that the number has a new meaning.
//!
//! Reading a signalfd looks for signals of the *thread* that reads and of the process; on a fiber that is
//! the worker of the moment. Signals of the process, the usual use, are right on every worker.
//!
//! Sources: socket(2), socketpair(2), pipe(2), eventfd(2), timerfd_create(2), signalfd(2), inotify(7),
//! fanotify_init(2), pidfd_open(2), pidfd_getfd(2), memfd_create(2).

use std::ffi::{c_char, c_int, c_uint};

use libc::{clockid_t, sigset_t};
use sleave_runtime::reactor;

use crate::next;
use crate::table::{self, Kind, State};

/// `fd` is what a call answered that makes `kind`: new unless it is below zero, made with these flags
/// (`SOCK_NONBLOCK`, `EFD_NONBLOCK` and the like are all `O_NONBLOCK`). Hands it on.
pub(crate) fn opened(fd: c_int, kind: Kind, flags: c_int) -> c_int {
    opened_with(fd, kind, flags, 0)
}

/// As [`opened`], with facts that the table is to know. A new description has no timeouts.
fn opened_with(fd: c_int, kind: Kind, flags: c_int, facts: u64) -> c_int {
    if fd >= 0 {
        table::created(fd, kind, flags & libc::O_NONBLOCK != 0, facts, true);
        reactor::opened(fd);
    }
    fd
}

/// `fd` is what a call answered: a new number, unless it is below zero, for what the table does not
/// know, and shall ask the kernel about. Hands it on.
pub(crate) fn numbered(fd: c_int) -> c_int {
    if fd >= 0 {
        table::forget(fd);
        reactor::opened(fd);
    }
    fd
}

/// The two numbers at `pair` are new.
unsafe fn opened_pair(pair: *const c_int, kind: Kind, flags: c_int) {
    for i in 0..2 {
        // SAFETY: the kernel has just written two numbers there.
        opened(unsafe { *pair.add(i) }, kind, flags);
    }
}

/// socket(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let fd = unsafe { next::socket(domain, kind, protocol) };
    opened_with(fd, Kind::of_socket(domain, kind, protocol), kind, State::OWN)
}

/// socketpair(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn socketpair(
    domain: c_int,
    kind: c_int,
    protocol: c_int,
    pair: *mut c_int,
) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe {
        let result = next::socketpair(domain, kind, protocol, pair);
        if result == 0 {
            opened_pair(pair, Kind::of_socket(domain, kind, protocol), kind);
        }
        result
    }
}

/// pipe(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pipe(ends: *mut c_int) -> c_int {
    // SAFETY: the caller's argument for the same function.
    unsafe {
        let result = next::pipe(ends);
        if result == 0 {
            opened_pair(ends, Kind::Pipe, 0);
        }
        result
    }
}

/// `pipe`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __pipe(ends: *mut c_int) -> c_int {
    // SAFETY: the caller's argument for the same function.
    unsafe { pipe(ends) }
}

/// pipe2(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pipe2(ends: *mut c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe {
        let result = next::pipe2(ends, flags);
        if result == 0 {
            opened_pair(ends, Kind::Pipe, flags);
        }
        result
    }
}

/// eventfd(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn eventfd(value: c_uint, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    opened(unsafe { next::eventfd(value, flags) }, Kind::Device, flags)
}

/// timerfd_create(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn timerfd_create(clock: clockid_t, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    opened(unsafe { next::timerfd_create(clock, flags) }, Kind::Device, flags)
}

/// signalfd(2): a new one, or `fd` with another set of signals.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn signalfd(
    fd: c_int,
    signals: *const sigset_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let made = unsafe { next::signalfd(fd, signals, flags) };
    if fd >= 0 { made } else { opened(made, Kind::Device, flags) }
}

/// inotify_init(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn inotify_init() -> c_int {
    // SAFETY: no arguments.
    opened(unsafe { next::inotify_init() }, Kind::Device, 0)
}

/// inotify_init1(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn inotify_init1(flags: c_int) -> c_int {
    // SAFETY: the caller's argument for the same function.
    opened(unsafe { next::inotify_init1(flags) }, Kind::Device, flags)
}

/// fanotify_init(2). `FAN_NONBLOCK` is a bit of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fanotify_init(flags: c_uint, file_flags: c_uint) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let made = unsafe { next::fanotify_init(flags, file_flags) };
    let nonblocking = flags & libc::FAN_NONBLOCK != 0;
    opened(made, Kind::Device, if nonblocking { libc::O_NONBLOCK } else { 0 })
}

/// pidfd_open(2). `PIDFD_NONBLOCK` is `O_NONBLOCK`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pidfd_open(process: libc::pid_t, flags: c_uint) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    opened(unsafe { next::pidfd_open(process, flags) }, Kind::Device, flags as c_int)
}

/// memfd_create(2): a regular file.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn memfd_create(name: *const c_char, flags: c_uint) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    opened(unsafe { next::memfd_create(name, flags) }, Kind::File, 0)
}

/// pidfd_getfd(2): a descriptor of another process, which goes on using it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pidfd_getfd(process: c_int, theirs: c_int, flags: c_uint) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let ours = numbered(unsafe { next::pidfd_getfd(process, theirs, flags) });
    if ours >= 0 {
        reactor::shared(ours);
    }
    ours
}
