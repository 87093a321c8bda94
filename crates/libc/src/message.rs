//! Receiving from and sending to sockets: `recv recvfrom recvmsg send sendto sendmsg`, and what
//! `stream.rs` builds `read` and `write` from.
//!
//! The tries are the same calls with `MSG_DONTWAIT`. What a *blocking* call does beyond one try
//! is done here, as the kernel does it:
//!
//! - **A send on a stream goes on until all is sent.** If an error or the timeout comes after a
//!   part, the call reports the part; the error belongs to the next call. A try would *consume*
//!   it, so after a park that saw a hang-up the socket is asked (poll) before it is tried. Later
//!   parts carry `MSG_NOSIGNAL`: no SIGPIPE for a call that succeeds.
//! - **A receive ends with the first data**, except for `MSG_WAITALL` and `SO_RCVLOWAT`, which
//!   raise the number of bytes that it waits for. `MSG_PEEK` consumes nothing, so a short peek
//!   waits for more to arrive and then peeks again.
//! - **A short receive proves a TCP stream drained**: the kernel copies all there is up to the
//!   length. The next receive then parks without a try, which makes two system calls a request.
//!   That holds for nothing else: a Unix stream stops where the sender's credentials change, TLS
//!   at a record, a datagram at its end; nor for a stream that has seen a hang-up or urgent data.
//! - **Control data goes with the first part** of a send, and a receive that got some is over.
//!
//! `MSG_OOB` and `MSG_ERRQUEUE` pass in a receive, where they never wait; so does
//! `MSG_FASTOPEN`, a connect inside a send. So does, once it has found the queue full, a send to
//! a *named* Unix datagram socket: what it waits for is the other socket's queue, which no
//! readiness of its own announces.
//!
//! Sources: recv(2), send(2), unix(7), tcp(7); `tcp_sendmsg_locked`, `tcp_recvmsg_locked`,
//! `unix_dgram_sendmsg`, `unix_stream_read_generic` of Linux.

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use libc::{iovec, msghdr, size_t, sockaddr, socklen_t, ssize_t};
use sleave_runtime::interpose;
use sleave_runtime::reactor::{self, Direction};

use crate::table::{Descriptor, Kind, State};
use crate::vector::{self, Rest};
use crate::wait::{self, Next, Wait};
use crate::{control, errno, kernel, next};

/// Flags with which a receive never waits.
const NEVER_WAITS: c_int = libc::MSG_DONTWAIT | libc::MSG_OOB | libc::MSG_ERRQUEUE;
/// Flags with which a send is the kernel's alone.
const KERNELS: c_int = libc::MSG_DONTWAIT | libc::MSG_FASTOPEN;

/// How many bytes a blocking receive of `len` waits for: `sock_rcvlowat` of the kernel.
#[inline(always)]
pub(crate) fn target(d: &Descriptor, len: usize, flags: c_int) -> usize {
    if flags & libc::MSG_PEEK != 0 && d.kind() != Kind::Tcp {
        // Other streams end a peek with the first data, whatever is asked.
        return 1;
    }
    if flags & libc::MSG_WAITALL != 0 && d.kind().is_stream() {
        return len;
    }
    if d.state.has(State::LOW_WATER) && d.kind().is_stream() {
        let low = kernel::socket_int(d.fd, libc::SO_RCVLOWAT).unwrap_or(1);
        return len.min(usize::try_from(low).unwrap_or(1));
    }
    1
}

/// Whether an error waits for the next call: then it must not be consumed by this one, which has
/// something to report. Asked only when the reactor has seen the connection end in some way.
pub(crate) fn broken(fd: c_int, direction: Direction) -> bool {
    let ends = match direction {
        // A half-closed peer may still be sent to; only both halves make POLLHUP.
        Direction::Write => libc::POLLERR | libc::POLLHUP,
        Direction::Read => libc::POLLERR,
    };
    reactor::hung_up(fd) && kernel::ready(fd, 0) & ends != 0
}

/// Whether there may be more after a receive of `got` out of `wanted` bytes.
#[inline(always)]
pub(crate) fn more(d: &Descriptor, got: isize, wanted: usize, flags: c_int) -> bool {
    let drained = got > 0
        && (got as usize) < wanted
        && d.kind() == Kind::Tcp
        && flags & libc::MSG_PEEK == 0
        && !reactor::hung_up(d.fd);
    !drained
}

/// A header for nothing but `parts`.
fn header(parts: &mut [iovec]) -> msghdr {
    // SAFETY: zeroes are a msghdr: null pointers and no lengths (and padding, outside glibc).
    let mut header = unsafe { std::mem::zeroed::<msghdr>() };
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = parts.len() as _;
    header
}

/// A receive into one buffer, in a fiber; answers as the kernel does.
///
/// # Safety
/// As recvfrom(2).
#[inline]
pub(crate) unsafe fn receive(
    d: Descriptor,
    buffer: *mut c_void,
    len: usize,
    flags: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
) -> isize {
    // SAFETY: the caller's arguments, unchanged.
    let plain = move || unsafe { kernel::recvfrom(d.fd, buffer, len, flags, name, name_len) };
    if flags & NEVER_WAITS != 0 || !d.kind().is_socket() || d.known_nonblocking() {
        return plain();
    }
    let mut wait = Wait::new(d, Direction::Read);
    let try_flags = flags & !libc::MSG_WAITALL | libc::MSG_DONTWAIT;
    let mut parked = wait::skip_wasted_try(&mut wait);
    let mut last = false;
    loop {
        match parked {
            Next::Retry => {}
            Next::Fail(_) if last => {}
            Next::Fail(error) => return error,
            Next::Block => return plain(),
        }
        reactor::attempt(d.fd, Direction::Read);
        // SAFETY: the caller's buffer and name.
        let result = unsafe { kernel::recvfrom(d.fd, buffer, len, try_flags, name, name_len) };
        if result == errno::AGAIN && !last {
            parked = wait.park_empty();
            continue;
        }
        if result > 0 && !last && (result as usize) < target(&d, len, flags) {
            if flags & libc::MSG_PEEK == 0 {
                let part = iovec { iov_base: buffer, iov_len: len };
                // SAFETY: one entry over the caller's buffer.
                return unsafe {
                    receive_rest(&mut wait, d, &part, 1, result, flags, &mut header(&mut []))
                };
            }
            if !reactor::hung_up(d.fd) {
                // The bytes stay where they are, and what is new will be an event. When the
                // waiting is over, whatever is there then is the result.
                parked = wait.park();
                last = matches!(parked, Next::Fail(_));
                continue;
            }
        }
        reactor::leave(d.fd, Direction::Read, more(&d, result, len, flags));
        return result;
    }
}

/// Receives what is left of `count` buffers after the first `received` bytes, until there are as
/// many as a blocking receive waits for; returns the whole number. `message` has room for
/// control data (or none) and gets what control data comes.
///
/// # Safety
/// `parts` must be an array of `count` entries that the kernel has already accepted, and
/// `message` a header whose control buffer is valid.
pub(crate) unsafe fn receive_rest(
    wait: &mut Wait,
    d: Descriptor,
    parts: *const iovec,
    count: usize,
    received: isize,
    flags: c_int,
    message: &mut msghdr,
) -> isize {
    // SAFETY: the caller's array.
    let total = unsafe { vector::total(parts, count) };
    let target = target(&d, total, flags);
    let mut received = received as usize;
    // SAFETY: the caller's array; its buffers outlive the call.
    let mut rest = unsafe { Rest::after(parts, count, received) };
    let flags = flags & !libc::MSG_WAITALL | libc::MSG_DONTWAIT;
    while received < target {
        let mut part = header(rest.parts());
        part.msg_control = message.msg_control;
        part.msg_controllen = message.msg_controllen;
        reactor::attempt(d.fd, Direction::Read);
        // SAFETY: buffers that the kernel has accepted, and the caller's control buffer.
        let result = unsafe { kernel::recvmsg(d.fd, &mut part, flags) };
        if result == errno::AGAIN {
            match wait.park() {
                Next::Retry if !broken(d.fd, Direction::Read) => continue,
                Next::Retry => break,
                Next::Fail(_) | Next::Block => return received as isize,
            }
        }
        if result <= 0 {
            break;
        }
        received += result as usize;
        rest.advance(result as usize);
        message.msg_flags |= part.msg_flags;
        if part.msg_controllen > 0 {
            message.msg_controllen = part.msg_controllen;
            reactor::leave(d.fd, Direction::Read, true);
            return received as isize;
        }
    }
    // No proof of anything: the end, an error, or all that was wanted.
    reactor::leave(d.fd, Direction::Read, true);
    message.msg_controllen = 0;
    received as isize
}

/// `recvmsg` in a fiber; answers as the kernel does.
///
/// # Safety
/// As recvmsg(2).
pub(crate) unsafe fn receive_message(d: Descriptor, message: *mut msghdr, flags: c_int) -> isize {
    // SAFETY: the caller's arguments, unchanged.
    let plain = move || unsafe { kernel::recvmsg(d.fd, message, flags) };
    if flags & NEVER_WAITS != 0 || !d.kind().is_socket() || d.known_nonblocking() {
        return plain();
    }
    let mut wait = Wait::new(d, Direction::Read);
    let try_flags = flags & !libc::MSG_WAITALL | libc::MSG_DONTWAIT;
    // A success writes lengths into the header; who may receive again needs the old ones.
    let greedy =
        d.kind().is_stream() && (flags & libc::MSG_WAITALL != 0 || d.state.has(State::LOW_WATER));
    // SAFETY: recvmsg(2): the program's header, valid for reads.
    let asked = greedy.then(|| unsafe { *message });
    let mut parked = wait::skip_wasted_try(&mut wait);
    let mut last = false;
    loop {
        match parked {
            Next::Retry => {}
            Next::Fail(_) if last => {}
            Next::Fail(error) => return error,
            Next::Block => return plain(),
        }
        reactor::attempt(d.fd, Direction::Read);
        // SAFETY: the caller's message.
        let result = unsafe { kernel::recvmsg(d.fd, message, try_flags) };
        if result == errno::AGAIN && !last {
            parked = wait.park_empty();
            continue;
        }
        if result <= 0 || !d.kind().is_stream() {
            reactor::leave(d.fd, Direction::Read, true);
            return result;
        }
        // SAFETY: the kernel has just accepted the header and its array.
        let (reply, total) = unsafe {
            let reply = &mut *message;
            (reply, vector::total((*message).msg_iov, (*message).msg_iovlen as _))
        };
        if let Some(asked) = asked
            && !last
            && (result as usize) < target(&d, total, flags)
        {
            if flags & libc::MSG_PEEK != 0 {
                if !reactor::hung_up(d.fd) {
                    *reply = asked;
                    parked = wait.park();
                    last = matches!(parked, Next::Fail(_));
                    continue;
                }
            } else if reply.msg_controllen == 0 {
                let (parts, count) = (reply.msg_iov, reply.msg_iovlen as _);
                reply.msg_controllen = asked.msg_controllen;
                // SAFETY: the array that the kernel has accepted, and the program's control
                // buffer, of which nothing is used yet.
                return unsafe { receive_rest(&mut wait, d, parts, count, result, flags, reply) };
            }
        }
        reactor::leave(d.fd, Direction::Read, more(&d, result, total, flags));
        return result;
    }
}

/// A send from one buffer, in a fiber; answers as the kernel does.
///
/// # Safety
/// As sendto(2).
#[inline]
pub(crate) unsafe fn send_buffer(
    d: Descriptor,
    buffer: *const c_void,
    len: usize,
    flags: c_int,
    name: *const sockaddr,
    name_len: socklen_t,
) -> isize {
    // SAFETY: the caller's arguments, unchanged.
    let plain = move || unsafe { kernel::sendto(d.fd, buffer, len, flags, name, name_len) };
    if flags & KERNELS != 0 || !d.kind().is_socket() || d.known_nonblocking() {
        return plain();
    }
    let mut wait = Wait::new(d, Direction::Write);
    let try_flags = flags | libc::MSG_DONTWAIT;
    loop {
        reactor::attempt(d.fd, Direction::Write);
        // SAFETY: the caller's buffer and name.
        let result = unsafe { kernel::sendto(d.fd, buffer, len, try_flags, name, name_len) };
        if result == errno::AGAIN {
            if d.kind() == Kind::UnixMessage && !name.is_null() && !wait.nonblocking() {
                return plain();
            }
            match wait.park() {
                Next::Retry => continue,
                Next::Fail(error) => return error,
                Next::Block => return plain(),
            }
        }
        if result >= 0 && (result as usize) < len && d.kind().is_stream() {
            let part = iovec { iov_base: buffer.cast_mut(), iov_len: len };
            // SAFETY: one entry over the caller's buffer.
            return unsafe { send_rest(&mut wait, d, &part, 1, result, flags) };
        }
        reactor::leave(d.fd, Direction::Write, true);
        return result;
    }
}

/// Sends what is left of `count` buffers on a stream after the first `sent` bytes; returns the
/// whole number.
///
/// # Safety
/// `parts` must be an array of `count` entries that the kernel has already accepted.
pub(crate) unsafe fn send_rest(
    wait: &mut Wait,
    d: Descriptor,
    parts: *const iovec,
    count: usize,
    sent: isize,
    flags: c_int,
) -> isize {
    let mut sent = sent as usize;
    // SAFETY: the caller's array; its buffers outlive the call.
    let mut rest = unsafe { Rest::after(parts, count, sent) };
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // Unix streams count SO_SNDTIMEO anew for every piece that they queue.
    let restarts = d.kind() != Kind::Tcp;
    if restarts {
        wait.restart();
    }
    while !rest.is_empty() {
        reactor::attempt(d.fd, Direction::Write);
        // SAFETY: buffers that the kernel has accepted.
        let result = unsafe { kernel::sendmsg(d.fd, &header(rest.parts()), flags) };
        if result == errno::AGAIN {
            match wait.park() {
                Next::Retry if !broken(d.fd, Direction::Write) => continue,
                Next::Retry => break,
                Next::Fail(_) | Next::Block => return sent as isize,
            }
        }
        if result <= 0 {
            break;
        }
        sent += result as usize;
        rest.advance(result as usize);
        if restarts {
            wait.restart();
        }
    }
    reactor::leave(d.fd, Direction::Write, true);
    sent as isize
}

/// `sendmsg` in a fiber; answers as the kernel does.
///
/// # Safety
/// As sendmsg(2).
pub(crate) unsafe fn send_message(d: Descriptor, message: *const msghdr, flags: c_int) -> isize {
    // SAFETY: the caller's arguments, unchanged.
    let plain = move || unsafe { kernel::sendmsg(d.fd, message, flags) };
    if flags & KERNELS != 0 || !d.kind().is_socket() || d.known_nonblocking() {
        return plain();
    }
    let mut wait = Wait::new(d, Direction::Write);
    let try_flags = flags | libc::MSG_DONTWAIT;
    loop {
        reactor::attempt(d.fd, Direction::Write);
        // SAFETY: the caller's message.
        let result = unsafe { kernel::sendmsg(d.fd, message, try_flags) };
        if result == errno::AGAIN {
            // SAFETY: an answer other than EFAULT: the kernel has read the header.
            let named = || unsafe { !(*message).msg_name.is_null() };
            if d.kind() == Kind::UnixMessage && named() && !wait.nonblocking() {
                return plain();
            }
            match wait.park() {
                Next::Retry => continue,
                Next::Fail(error) => return error,
                Next::Block => return plain(),
            }
        }
        if result >= 0 && d.kind().is_stream() {
            // SAFETY: the kernel has accepted the header and its array.
            unsafe {
                let (parts, count) = ((*message).msg_iov, (*message).msg_iovlen as _);
                if (result as usize) < vector::total(parts, count) {
                    return send_rest(&mut wait, d, parts, count, result, flags);
                }
            }
        }
        reactor::leave(d.fd, Direction::Write, true);
        return result;
    }
}

/// recv(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recv(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::recv(fd, buffer, len, flags);
        }
        errno::finish(receive(Descriptor::of(fd), buffer, len, flags, null_mut(), null_mut()))
    }
}

/// recvfrom(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    flags: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::recvfrom(fd, buffer, len, flags, name, name_len);
        }
        errno::finish(receive(Descriptor::of(fd), buffer, len, flags, name, name_len))
    }
}

/// recvmsg(2). Descriptors that come with the message (`SCM_RIGHTS`) are new ones of this
/// process, whoever calls.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel; a
    // message that was received has a valid header and control buffer.
    unsafe {
        let result = if interpose::active() {
            errno::finish(receive_message(Descriptor::of(fd), message, flags))
        } else {
            next::recvmsg(fd, message, flags)
        };
        if result >= 0 {
            control::received(&*message);
        }
        result
    }
}

/// send(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn send(
    fd: c_int,
    buffer: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::send(fd, buffer, len, flags);
        }
        errno::finish(send_buffer(Descriptor::of(fd), buffer, len, flags, null(), 0))
    }
}

/// sendto(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendto(
    fd: c_int,
    buffer: *const c_void,
    len: size_t,
    flags: c_int,
    name: *const sockaddr,
    name_len: socklen_t,
) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::sendto(fd, buffer, len, flags, name, name_len);
        }
        errno::finish(send_buffer(Descriptor::of(fd), buffer, len, flags, name, name_len))
    }
}

/// `send`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __send(
    fd: c_int,
    buffer: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's arguments for the same function.
    unsafe { send(fd, buffer, len, flags) }
}

/// sendmsg(2). Descriptors that go with the message (`SCM_RIGHTS`) are shared from then on,
/// whoever calls.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmsg(
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel; a
    // message that was sent has a valid header and control data.
    unsafe {
        let result = if interpose::active() {
            errno::finish(send_message(Descriptor::of(fd), message, flags))
        } else {
            next::sendmsg(fd, message, flags)
        };
        if result >= 0 {
            control::sent(&*message);
        }
        result
    }
}

/// `recv` under `_FORTIFY_SOURCE`: the C library aborts if `len` exceeds the buffer's size.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recv_chk(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe {
        if len > room {
            return next::__recv_chk(fd, buffer, len, room, flags);
        }
        recv(fd, buffer, len, flags)
    }
}

/// `recvfrom` under `_FORTIFY_SOURCE`: see `__recv_chk`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recvfrom_chk(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    room: size_t,
    flags: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe {
        if len > room {
            return next::__recvfrom_chk(fd, buffer, len, room, flags, name, name_len);
        }
        recvfrom(fd, buffer, len, flags, name, name_len)
    }
}
