//! Several messages in one call: `recvmmsg sendmmsg`.
//!
//! Both are loops in the kernel: message after message, and the first that fails ends them, with the
//! number of those that went. So a try takes as many as go without waiting, and the fiber parks
//! before the next. On sockets that keep messages apart a try is the same call with `MSG_DONTWAIT`; on a
//! stream each message may itself need several tries, and is received or sent by `message.rs`.
//!
//! - `recvmmsg` waits for all, unless `MSG_WAITFORONE` says that the first is enough.
//! - Its timeout is looked at after each message, never in the middle of waiting, and is
//!   counted down in place: so does the kernel (recvmmsg(2), "Bugs").
//! - An error that comes after some messages belongs to the next call: it is left where it is.
//! - Descriptors that travel (`SCM_RIGHTS`) are tracked as in recvmsg and sendmsg.
//!
//! Sources: recvmmsg(2), sendmmsg(2); `do_recvmmsg`, `__sys_sendmmsg` of Linux.

use std::ffi::{c_int, c_uint};

use libc::{mmsghdr, timespec};
use sleave_runtime::interpose;
use sleave_runtime::reactor::{self, Direction};
use sleave_runtime::wait::Deadline;

use crate::message::{receive_message, send_message};
use crate::table::{Descriptor, Kind};
use crate::wait::{Next, Wait};
use crate::{control, errno, kernel, next, time};

/// Flags with which a receive never waits.
const NEVER_WAITS: c_int = libc::MSG_DONTWAIT | libc::MSG_OOB | libc::MSG_ERRQUEUE;

/// `recvmmsg` in a fiber, until a message has come and `deadline` has passed; answers as the kernel
/// does.
///
/// # Safety
/// As recvmmsg(2).
unsafe fn receive_all(
    d: Descriptor,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    deadline: Deadline,
) -> isize {
    let one_is_enough = flags & libc::MSG_WAITFORONE != 0;
    let flags = flags & !libc::MSG_WAITFORONE;
    let mut wait = Wait::new(d, Direction::Read);
    let (mut done, count) = (0, count as usize);
    // A pending error comes before all else, also before the end of a stream: so does the kernel's.
    if d.kind().is_stream()
        && let Some(error @ 1..) = kernel::socket_int(d.fd, libc::SO_ERROR)
    {
        return errno::error(error);
    }
    while done < count {
        if done > 0 && kernel::ready(d.fd, 0) & libc::POLLERR != 0 {
            break;
        }
        // SAFETY: what is left of the caller's array, here and below.
        let at = unsafe { messages.add(done) };
        let waits = done == 0 || !one_is_enough;
        let result = if d.kind().is_stream() {
            let flags = if waits { flags } else { flags | libc::MSG_DONTWAIT };
            // SAFETY: as above.
            let result = unsafe { receive_message(d, &raw mut (*at).msg_hdr, flags) };
            // SAFETY: as above.
            unsafe { one(at, result) }
        } else {
            // If the time is over already, one message ends the call.
            let room = if deadline.passed() { 1 } else { (count - done) as c_uint };
            reactor::attempt(d.fd, Direction::Read);
            // SAFETY: as above.
            let mut result =
                unsafe { kernel::recvmmsg(d.fd, at, room, flags | libc::MSG_DONTWAIT) };
            if result == errno::AGAIN && waits {
                match wait.park() {
                    Next::Retry => continue,
                    Next::Fail(error) => result = error,
                    // SAFETY: as above.
                    Next::Block => result = unsafe { kernel::recvmmsg(d.fd, at, 1, flags) },
                }
            }
            if result != errno::AGAIN {
                reactor::leave(d.fd, Direction::Read, true);
            }
            result
        };
        match result {
            1.. => done += result as usize,
            _ if done == 0 => return result,
            _ => break,
        }
        // SAFETY: the kernel has written this header.
        let urgent = unsafe { (*messages.add(done - 1)).msg_hdr.msg_flags & libc::MSG_OOB != 0 };
        if urgent || deadline.passed() {
            break;
        }
        // The socket's own timeout is each message's.
        wait.restart();
    }
    done as isize
}

/// Notes what became of one message: one has gone, or none.
///
/// # Safety
/// If `result` is a length, `message` is an entry that the kernel has accepted.
unsafe fn one(message: *mut mmsghdr, result: isize) -> isize {
    if result < 0 {
        return result;
    }
    // SAFETY: by contract.
    unsafe { (*message).msg_len = result as c_uint };
    1
}

/// recvmmsg(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel; a timeout
    // that is not null can be read and written, messages that were received have valid headers.
    unsafe {
        let plain = || next::recvmmsg(fd, messages, count, flags, timeout);
        let fiber = || {
            let d = Descriptor::of(fd);
            let kernels = flags & NEVER_WAITS != 0 || !d.kind().is_socket();
            if count == 0 || kernels || d.known_nonblocking() {
                return plain();
            }
            let deadline = match time::timeout(timeout) {
                Ok(None) => Deadline::NEVER,
                Ok(Some(nanoseconds)) => Deadline::after(nanoseconds),
                Err(error) => return errno::finish_int(error),
            };
            let result = receive_all(d, messages, count, flags, deadline);
            if result > 0
                && let (Some(time), Some(left)) = (timeout.as_mut(), time::left(deadline))
            {
                *time = time::timespec(left);
            }
            errno::finish_int(result)
        };
        let result = if interpose::active() { fiber() } else { plain() };
        for i in 0..usize::try_from(result).unwrap_or(0) {
            control::received(&(*messages.add(i)).msg_hdr);
        }
        result
    }
}

/// `sendmmsg` in a fiber; answers as the kernel does.
///
/// # Safety
/// As sendmmsg(2).
unsafe fn send_all(d: Descriptor, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> isize {
    let mut wait = Wait::new(d, Direction::Write);
    // The kernel takes no more at once.
    let (mut done, count) = (0, count.min(libc::UIO_MAXIOV as c_uint) as usize);
    while done < count {
        // SAFETY: what is left of the caller's array, here and below.
        let at = unsafe { messages.add(done) };
        let left = (count - done) as c_uint;
        let result = if d.kind().is_stream() {
            // SAFETY: as above.
            let result = unsafe { send_message(d, &raw const (*at).msg_hdr, flags) };
            // SAFETY: as above.
            unsafe { one(at, result) }
        } else {
            reactor::attempt(d.fd, Direction::Write);
            // SAFETY: as above.
            let mut result =
                unsafe { kernel::sendmmsg(d.fd, at, left, flags | libc::MSG_DONTWAIT) };
            if result == errno::AGAIN {
                // SAFETY: an answer other than EFAULT: the kernel has read this header.
                let named = unsafe { !(*at).msg_hdr.msg_name.is_null() };
                let full = d.kind() == Kind::UnixMessage && named && !wait.nonblocking();
                let parked = if full { Next::Block } else { wait.park() };
                match parked {
                    Next::Retry => continue,
                    Next::Fail(error) if done == 0 => return error,
                    Next::Fail(_) => return done as isize,
                    // SAFETY: as above.
                    Next::Block => result = unsafe { kernel::sendmmsg(d.fd, at, 1, flags) },
                }
            }
            reactor::leave(d.fd, Direction::Write, true);
            result
        };
        match result {
            1.. => done += result as usize,
            _ if done == 0 => return result,
            _ => break,
        }
        wait.restart();
    }
    done as isize
}

/// sendmmsg(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel; messages
    // that were sent have valid headers and control data.
    unsafe {
        let plain = || next::sendmmsg(fd, messages, count, flags);
        let fiber = || {
            let d = Descriptor::of(fd);
            let kernels = flags & (libc::MSG_DONTWAIT | libc::MSG_FASTOPEN) != 0;
            if count == 0 || kernels || !d.kind().is_socket() || d.known_nonblocking() {
                return plain();
            }
            errno::finish_int(send_all(d, messages, count, flags))
        };
        let result = if interpose::active() { fiber() } else { plain() };
        for i in 0..usize::try_from(result).unwrap_or(0) {
            control::sent(&(*messages.add(i)).msg_hdr);
        }
        result
    }
}
