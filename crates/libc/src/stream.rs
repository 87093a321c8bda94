//! Reading and writing whatever it is: `read readv write writev`, `preadv2 pwritev2` where they mean
//! the same, `eventfd_read eventfd_write`; and `__read __write`, old names.
//!
//! What a descriptor names decides how a call is tried without blocking:
//!
//! | it names | one buffer | several |
//! |---|---|---|
//! | a socket | `recvfrom`, `sendto` with `MSG_DONTWAIT` | `preadv2`, `pwritev2` with `RWF_NOWAIT` |
//! | a pipe or device | `preadv2`, `pwritev2` with `RWF_NOWAIT` | the same |
//! | one of those that answers `EOPNOTSUPP` (terminals, FIFOs, writing an eventfd) | `poll` that does not wait, then the plain call | the same |
//! | a file | `file`, or the plain call: see below | the same |
//!
//! The vector calls go through `preadv2` even on sockets: the kernel then reads the program's
//! array, not we, so that a bad one is `EFAULT` and an empty one is nothing, as in readv(2).
//!
//! **A regular file is never "not ready"**: how it is read is told in `file`; writing, the call is made as it is. If it
//! takes long, the runtime's monitor gives the worker's other fibers to another thread.
//!
//! **A plain call after poll** blocks only if somebody else took what poll had seen. Writing a
//! FIFO, poll promises room for `PIPE_BUF` bytes and no more: a longer write is made of pieces of
//! that size.
//!
//! Sources: read(2), readv(2), pipe(7), `fs/pipe.c` of Linux on `POLLOUT`.

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use libc::{iovec, off_t, size_t, ssize_t};
use sleave_runtime::interpose;
use sleave_runtime::reactor::{self, Direction};

use crate::message::{self, receive, receive_rest, send_buffer, send_rest};
use crate::table::{self, Descriptor, Kind, State};
use crate::vector::{self, Rest};
use crate::wait::{self, Next, Wait};
use crate::{errno, file, kernel, next};

const UNSUPPORTED: isize = errno::error(libc::EOPNOTSUPP);
const NO_SOCKET: isize = errno::error(libc::ENOTSOCK);

/// The table took `fd` for a socket and it is none: the C library closed and reopened the number
/// behind our back (`fclose`, `fopen`). Whatever was known is wrong.
#[cold]
fn mistaken(fd: c_int) {
    table::forget(fd);
    reactor::opened(fd);
}

/// One try to read without waiting.
unsafe fn try_read(d: &Descriptor, parts: *const iovec, count: c_int) -> isize {
    // SAFETY: the caller's array.
    unsafe {
        if !d.state.has(State::PLAIN_READ) {
            return kernel::readv_nowait(d.fd, parts, count);
        }
        if d.kind().is_socket() {
            // Kernels before 6.4 know no RWF_NOWAIT on sockets.
            if vector::total(parts, count as usize) == 0 {
                return 0;
            }
            let mut message = std::mem::zeroed::<libc::msghdr>();
            message.msg_iov = parts.cast_mut();
            message.msg_iovlen = count as _;
            return kernel::recvmsg(d.fd, &mut message, libc::MSG_DONTWAIT);
        }
        if kernel::ready(d.fd, libc::POLLIN) == 0 {
            return errno::AGAIN;
        }
        kernel::readv(d.fd, parts, count)
    }
}

/// One try to write without waiting.
unsafe fn try_write(d: &Descriptor, parts: *const iovec, count: c_int) -> isize {
    // SAFETY: the caller's array.
    unsafe {
        if !d.state.has(State::PLAIN_WRITE) {
            return kernel::writev_nowait(d.fd, parts, count);
        }
        if d.kind().is_socket() {
            // Kernels before 6.4 know no RWF_NOWAIT on sockets.
            if vector::total(parts, count as usize) == 0 {
                return 0;
            }
            let mut message = std::mem::zeroed::<libc::msghdr>();
            message.msg_iov = parts.cast_mut();
            message.msg_iovlen = count as _;
            return kernel::sendmsg(d.fd, &message, libc::MSG_DONTWAIT);
        }
        if kernel::ready(d.fd, libc::POLLOUT) == 0 {
            return errno::AGAIN;
        }
        if d.kind() == Kind::Pipe && vector::total(parts, count as usize) > libc::PIPE_BUF {
            // One piece that fits; the caller goes on with the rest.
            let mut rest = Rest::after(parts, count as usize, 0);
            if let Some(first) = rest.parts().first() {
                return kernel::write(d.fd, first.iov_base, first.iov_len.min(libc::PIPE_BUF));
            }
        }
        kernel::writev(d.fd, parts, count)
    }
}

/// `readv` in a fiber; answers as the kernel does.
///
/// # Safety
/// As readv(2).
unsafe fn input(mut d: Descriptor, parts: *const iovec, count: c_int) -> isize {
    // SAFETY: the caller's arguments, unchanged.
    let plain = move || unsafe { kernel::readv(d.fd, parts, count) };
    if d.kind() == Kind::File {
        // SAFETY: as above.
        return unsafe { file::readv(d, parts, count) };
    }
    let never_waits = d.kind() == Kind::Unknown || d.known_nonblocking();
    if never_waits || !(1..=libc::UIO_MAXIOV).contains(&count) {
        return plain();
    }
    let mut wait = Wait::new(d, Direction::Read);
    let mut parked = wait::skip_wasted_try(&mut wait);
    loop {
        match parked {
            Next::Retry => {}
            Next::Fail(error) => return error,
            Next::Block => return plain(),
        }
        reactor::attempt(d.fd, Direction::Read);
        // SAFETY: the caller's array.
        let result = unsafe { try_read(&d, parts, count) };
        if result == errno::AGAIN {
            parked = wait.park_empty();
            continue;
        }
        if result == UNSUPPORTED && !d.state.has(State::PLAIN_READ) {
            d.note(State::PLAIN_READ, 0);
            parked = Next::Retry;
            continue;
        }
        let mut left = true;
        if result > 0 && d.kind().is_stream() {
            let count = count as usize;
            // SAFETY: the kernel has accepted the array; a header without control data.
            unsafe {
                let total = vector::total(parts, count);
                if (result as usize) < message::target(&d, total, 0) {
                    let mut none = std::mem::zeroed::<libc::msghdr>();
                    return receive_rest(&mut wait, d, parts, count, result, 0, &mut none);
                }
                left = message::more(&d, result, total, 0);
            }
        }
        reactor::leave(d.fd, Direction::Read, left);
        return result;
    }
}

/// `writev` in a fiber; answers as the kernel does.
///
/// # Safety
/// As writev(2).
unsafe fn output(mut d: Descriptor, parts: *const iovec, count: c_int) -> isize {
    // SAFETY: the caller's arguments, unchanged.
    let plain = move || unsafe { kernel::writev(d.fd, parts, count) };
    let never_waits = matches!(d.kind(), Kind::File | Kind::Unknown) || d.known_nonblocking();
    if never_waits || !(1..=libc::UIO_MAXIOV).contains(&count) {
        return plain();
    }
    let mut wait = Wait::new(d, Direction::Write);
    loop {
        reactor::attempt(d.fd, Direction::Write);
        // SAFETY: the caller's array.
        let result = unsafe { try_write(&d, parts, count) };
        if result == errno::AGAIN {
            match wait.park() {
                Next::Retry => continue,
                Next::Fail(error) => return error,
                Next::Block => return plain(),
            }
        }
        if result == UNSUPPORTED && !d.state.has(State::PLAIN_WRITE) {
            d.note(State::PLAIN_WRITE, 0);
            continue;
        }
        if result >= 0 {
            // SAFETY: the kernel has accepted the array.
            unsafe {
                let short = || (result as usize) < vector::total(parts, count as usize);
                if d.kind().is_stream() && short() {
                    return send_rest(&mut wait, d, parts, count as usize, result, 0);
                }
                if d.kind() == Kind::Pipe && short() {
                    return write_rest(&mut wait, d, parts, count as usize, result);
                }
            }
        }
        reactor::leave(d.fd, Direction::Write, true);
        return result;
    }
}

/// Writes what is left of `count` buffers to a pipe after the first `written` bytes; returns the
/// whole number. (A reader that goes away after a part raises SIGPIPE all the same: so does the
/// kernel's write.)
///
/// # Safety
/// `parts` must be an array of `count` entries that the kernel has already accepted.
unsafe fn write_rest(
    wait: &mut Wait,
    d: Descriptor,
    parts: *const iovec,
    count: usize,
    written: isize,
) -> isize {
    let mut written = written as usize;
    // SAFETY: the caller's array; its buffers outlive the call.
    let mut rest = unsafe { Rest::after(parts, count, written) };
    while !rest.is_empty() {
        let left = rest.parts();
        let (parts, count) = (left.as_ptr(), left.len() as c_int);
        reactor::attempt(d.fd, Direction::Write);
        // SAFETY: buffers that the kernel has accepted.
        let mut result = unsafe { try_write(&d, parts, count) };
        if result == errno::AGAIN {
            match wait.park() {
                Next::Retry => continue,
                Next::Fail(_) => return written as isize,
                // SAFETY: as above.
                Next::Block => result = unsafe { kernel::writev(d.fd, parts, count) },
            }
        }
        if result <= 0 {
            break;
        }
        written += result as usize;
        rest.advance(result as usize);
    }
    reactor::leave(d.fd, Direction::Write, true);
    written as isize
}

/// `read` in a fiber; answers as the kernel does.
#[inline(always)]
unsafe fn read_buffer(d: Descriptor, buffer: *mut c_void, len: usize) -> isize {
    // SAFETY: the caller's buffer.
    unsafe {
        match d.kind() {
            // Of nothing, read asks nothing (where recv would wait).
            _ if len == 0 => kernel::read(d.fd, buffer, len),
            Kind::Tcp | Kind::Stream | Kind::Message | Kind::UnixMessage => {
                let result = receive(d, buffer, len, 0, null_mut(), null_mut());
                if result == NO_SOCKET {
                    mistaken(d.fd);
                    return kernel::read(d.fd, buffer, len);
                }
                result
            }
            Kind::Pipe | Kind::Device => input(d, &iovec { iov_base: buffer, iov_len: len }, 1),
            Kind::File => file::read(d, buffer, len),
            Kind::Unknown => kernel::read(d.fd, buffer, len),
        }
    }
}

/// `write` in a fiber; answers as the kernel does.
#[inline(always)]
unsafe fn write_buffer(d: Descriptor, buffer: *const c_void, len: usize) -> isize {
    // SAFETY: the caller's buffer.
    unsafe {
        match d.kind() {
            Kind::Tcp | Kind::Stream | Kind::Message | Kind::UnixMessage => {
                let result = send_buffer(d, buffer, len, 0, null(), 0);
                if result == NO_SOCKET {
                    mistaken(d.fd);
                    return kernel::write(d.fd, buffer, len);
                }
                result
            }
            Kind::Pipe | Kind::Device if len > 0 => {
                output(d, &iovec { iov_base: buffer.cast_mut(), iov_len: len }, 1)
            }
            _ => kernel::write(d.fd, buffer, len),
        }
    }
}

/// read(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::read(fd, buffer, len);
        }
        errno::finish(read_buffer(Descriptor::of(fd), buffer, len))
    }
}

/// readv(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::readv(fd, parts, count);
        }
        errno::finish(input(Descriptor::of(fd), parts, count))
    }
}

/// write(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::write(fd, buffer, len);
        }
        errno::finish(write_buffer(Descriptor::of(fd), buffer, len))
    }
}

/// writev(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::writev(fd, parts, count);
        }
        errno::finish(output(Descriptor::of(fd), parts, count))
    }
}

/// `read`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's arguments for the same function.
    unsafe { read(fd, buffer, len) }
}

/// `write`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's arguments for the same function.
    unsafe { write(fd, buffer, len) }
}

/// preadv2(2): at the offset -1 it is `readv`. At any other what has readiness refuses it, and files
/// have none; with flags it is the kernel's.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn preadv2(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or what it stands for.
    unsafe {
        if offset == -1 && flags == 0 {
            return readv(fd, parts, count);
        }
        next::preadv2(fd, parts, count, offset, flags)
    }
}

/// pwritev2(2): see `preadv2`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pwritev2(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or what it stands for.
    unsafe {
        if offset == -1 && flags == 0 {
            return writev(fd, parts, count);
        }
        next::pwritev2(fd, parts, count, offset, flags)
    }
}

/// `preadv2` as glibc's headers name it with 64-bit file offsets.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn preadv64v2(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's arguments for the same function.
    unsafe { preadv2(fd, parts, count, offset, flags) }
}

/// `pwritev2` as glibc's headers name it with 64-bit file offsets.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pwritev64v2(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's arguments for the same function.
    unsafe { pwritev2(fd, parts, count, offset, flags) }
}

/// eventfd_read(3): glibc's own would read past the symbol.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn eventfd_read(fd: c_int, value: *mut u64) -> c_int {
    // SAFETY: eventfd_read(3): a place for eight bytes.
    let n = unsafe { read(fd, value.cast(), size_of::<u64>()) };
    if n == size_of::<u64>() as ssize_t { 0 } else { -1 }
}

/// eventfd_write(3): glibc's own would write past the symbol.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn eventfd_write(fd: c_int, value: u64) -> c_int {
    // SAFETY: write(2) of eight bytes of ours.
    let n = unsafe { write(fd, (&raw const value).cast(), size_of::<u64>()) };
    if n == size_of::<u64>() as ssize_t { 0 } else { -1 }
}

/// `read` under `_FORTIFY_SOURCE`: the C library aborts if `len` exceeds the buffer's size.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __read_chk(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    room: size_t,
) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe {
        if len > room {
            return next::__read_chk(fd, buffer, len, room);
        }
        read(fd, buffer, len)
    }
}
