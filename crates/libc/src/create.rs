//! New descriptors: `socket socketpair pipe pipe2 eventfd timerfd_create`.
//!
//! None of them parks, and none of them changes what it makes. The table learns what the new
//! number names and whether the program wants it non-blocking, which saves asking the kernel
//! later; the reactor learns that the number has a new meaning.
//!
//! Sources: socket(2), socketpair(2), pipe(2), eventfd(2), timerfd_create(2).

use std::ffi::{c_int, c_uint};

use libc::clockid_t;
use sleave_runtime::reactor;

use crate::next;
use crate::table::{self, Kind, State};

/// `fd` is new, made with these flags (`SOCK_NONBLOCK`, `EFD_NONBLOCK` and `TFD_NONBLOCK` are
/// all `O_NONBLOCK`), and has no timeouts.
fn opened(fd: c_int, kind: Kind, flags: c_int, facts: u64) {
    table::created(fd, kind, flags & libc::O_NONBLOCK != 0, facts, true);
    reactor::opened(fd);
}

/// The two numbers at `pair` are new.
unsafe fn opened_pair(pair: *const c_int, kind: Kind, flags: c_int) {
    for i in 0..2 {
        // SAFETY: the kernel has just written two numbers there.
        opened(unsafe { *pair.add(i) }, kind, flags, 0);
    }
}

/// socket(2)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let fd = unsafe { next::socket(domain, kind, protocol) };
    if fd >= 0 {
        opened(fd, Kind::of_socket(domain, kind, protocol), kind, State::OWN);
    }
    fd
}

/// socketpair(2)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn socketpair(
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
pub unsafe extern "C" fn pipe(ends: *mut c_int) -> c_int {
    // SAFETY: the caller's argument for the same function.
    unsafe {
        let result = next::pipe(ends);
        if result == 0 {
            opened_pair(ends, Kind::Pipe, 0);
        }
        result
    }
}

/// pipe2(2)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pipe2(ends: *mut c_int, flags: c_int) -> c_int {
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
pub unsafe extern "C" fn eventfd(value: c_uint, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let fd = unsafe { next::eventfd(value, flags) };
    if fd >= 0 {
        opened(fd, Kind::Device, flags, 0);
    }
    fd
}

/// timerfd_create(2)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn timerfd_create(clock: clockid_t, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let fd = unsafe { next::timerfd_create(clock, flags) };
    if fd >= 0 {
        opened(fd, Kind::Device, flags, 0);
    }
    fd
}
