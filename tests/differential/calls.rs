//! The C library's functions as the programs call them: a result is a value or an `errno`.

use std::ffi::c_int;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::time::Duration;

pub type Outcome<T = i64> = Result<T, c_int>;

pub fn outcome(result: impl TryInto<i64>) -> Outcome {
    match result.try_into().unwrap_or(i64::MAX) {
        -1 => Err(io::Error::last_os_error().raw_os_error().expect("errno is set")),
        result => Ok(result),
    }
}

/// Takes over a descriptor that a call has made.
pub fn own(result: c_int) -> Outcome<OwnedFd> {
    // SAFETY: the call has just made it, and nobody else has it.
    outcome(result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The first `count` of `bytes`, if the call succeeded.
fn taken(mut bytes: Vec<u8>, count: Outcome) -> Outcome<Vec<u8>> {
    bytes.truncate(count? as usize);
    Ok(bytes)
}

pub fn read(fd: RawFd, len: usize) -> Outcome<Vec<u8>> {
    let mut bytes = vec![0u8; len];
    // SAFETY: read(2) into a buffer of that length.
    let count = outcome(unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), len) });
    taken(bytes, count)
}

/// Two buffers over `bytes`, the first a third of it.
fn parts(bytes: &mut [u8]) -> [libc::iovec; 2] {
    let (first, second) = bytes.split_at_mut(bytes.len() / 3);
    [first, second]
        .map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() })
}

pub fn readv(fd: RawFd, len: usize) -> Outcome<Vec<u8>> {
    let mut bytes = vec![0u8; len];
    let parts = parts(&mut bytes);
    // SAFETY: readv(2) into two buffers that are alive.
    let count = outcome(unsafe { libc::readv(fd, parts.as_ptr(), 2) });
    taken(bytes, count)
}

pub fn write(fd: RawFd, bytes: &[u8]) -> Outcome {
    // SAFETY: write(2) of a slice.
    outcome(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) })
}

pub fn writev(fd: RawFd, bytes: &[u8]) -> Outcome {
    let mut bytes = bytes.to_vec();
    let parts = parts(&mut bytes);
    // SAFETY: writev(2) of two buffers that are alive.
    outcome(unsafe { libc::writev(fd, parts.as_ptr(), 2) })
}

pub fn recv(fd: RawFd, len: usize, flags: c_int) -> Outcome<Vec<u8>> {
    let mut bytes = vec![0u8; len];
    // SAFETY: recv(2) into a buffer of that length.
    let count = outcome(unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), len, flags) });
    taken(bytes, count)
}

pub fn send(fd: RawFd, bytes: &[u8]) -> Outcome {
    let flags = libc::MSG_NOSIGNAL;
    // SAFETY: send(2) of a slice.
    outcome(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Calls `f` with an array of messages, one for each buffer; the lengths that it leaves.
fn with_messages(
    buffers: &mut [Vec<u8>],
    f: impl FnOnce(*mut libc::mmsghdr, u32) -> c_int,
) -> Outcome<Vec<usize>> {
    let mut parts: Vec<_> = buffers
        .iter_mut()
        .map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() })
        .collect();
    let message = |part: &mut libc::iovec| {
        // SAFETY: zeroes are an mmsghdr: null pointers and no lengths.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message
    };
    let mut messages: Vec<_> = parts.iter_mut().map(message).collect();
    let count = outcome(f(messages.as_mut_ptr(), messages.len() as u32))? as usize;
    Ok(messages[..count].iter().map(|message| message.msg_len as usize).collect())
}

pub fn recvmmsg(fd: RawFd, count: usize) -> Outcome<Vec<Vec<u8>>> {
    let mut buffers = vec![vec![0u8; 200]; count];
    let flags = libc::MSG_WAITFORONE;
    // SAFETY: recvmmsg(2) into messages that are alive, without a timeout.
    let lens = with_messages(&mut buffers, |at, count| unsafe {
        libc::recvmmsg(fd, at, count, flags, null_mut())
    })?;
    Ok(buffers.iter().zip(lens).map(|(buffer, len)| buffer[..len].to_vec()).collect())
}

pub fn sendmmsg(fd: RawFd, mut buffers: Vec<Vec<u8>>) -> Outcome<Vec<usize>> {
    // SAFETY: sendmmsg(2) of messages that are alive.
    with_messages(&mut buffers, |at, count| unsafe {
        libc::sendmmsg(fd, at, count, libc::MSG_NOSIGNAL)
    })
}

pub fn splice(from: RawFd, to: RawFd, len: usize, flags: u32) -> Outcome {
    // SAFETY: splice(2) without offsets.
    outcome(unsafe { libc::splice(from, null_mut(), to, null_mut(), len, flags) })
}

pub fn tee(from: RawFd, to: RawFd, len: usize, flags: u32) -> Outcome {
    // SAFETY: tee(2) takes numbers.
    outcome(unsafe { libc::tee(from, to, len, flags) })
}

pub fn sendfile(to: RawFd, from: RawFd, len: usize) -> Outcome {
    let mut offset = 0;
    // SAFETY: sendfile(2) with an offset of ours.
    outcome(unsafe { libc::sendfile(to, from, &mut offset, len) })
}

/// Two descriptors that `f` makes.
pub fn pair(f: impl FnOnce(*mut c_int) -> c_int) -> Outcome<[OwnedFd; 2]> {
    let mut pair = [-1; 2];
    outcome(f(pair.as_mut_ptr()))?;
    // SAFETY: the call has just made both.
    Ok(pair.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

pub fn poll(entries: &mut [libc::pollfd], timeout: c_int) -> Outcome {
    // SAFETY: poll(2) of a slice.
    outcome(unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) })
}

/// What of `events` holds for `fd`, at once or within `timeout` milliseconds.
pub fn ready(fd: RawFd, events: i16, timeout: c_int) -> i16 {
    let mut entry = [libc::pollfd { fd, events, revents: 0 }];
    poll(&mut entry, timeout).expect("poll");
    entry[0].revents
}

/// Which of `readers` and `writers` are ready, and how many bits that makes.
pub fn select(
    readers: &[RawFd],
    writers: &[RawFd],
    timeout: Option<Duration>,
) -> Outcome<(i64, Vec<bool>)> {
    let mut time = timeout.map(|timeout| libc::timeval {
        tv_sec: timeout.as_secs() as i64,
        tv_usec: timeout.subsec_micros().into(),
    });
    let time = time.as_mut().map_or(null_mut(), |time| time as *mut libc::timeval);
    let count = readers.iter().chain(writers).max().map_or(0, |max| max + 1);
    // SAFETY: FD_ZERO(3) and its like, and select(2), on sets of ours; the numbers are below
    // FD_SETSIZE.
    unsafe {
        let set = |fds: &[RawFd]| {
            let mut set = std::mem::zeroed();
            libc::FD_ZERO(&mut set);
            fds.iter().for_each(|&fd| libc::FD_SET(fd, &mut set));
            set
        };
        let (mut read, mut write) = (set(readers), set(writers));
        let found = outcome(libc::select(count, &mut read, &mut write, null_mut(), time))?;
        let readable = readers.iter().map(|&fd| libc::FD_ISSET(fd, &read));
        let writable = writers.iter().map(|&fd| libc::FD_ISSET(fd, &write));
        Ok((found, readable.chain(writable).collect()))
    }
}

pub fn epoll_ctl(instance: RawFd, op: c_int, fd: RawFd, events: u32, name: u64) -> Outcome {
    let mut event = libc::epoll_event { events, u64: name };
    // SAFETY: epoll_ctl(2) reads one event.
    outcome(unsafe { libc::epoll_ctl(instance, op, fd, &mut event) })
}

/// The names and events that are reported, sorted by name.
pub fn epoll_wait(instance: RawFd, max: usize, timeout: c_int) -> Outcome<Vec<(u64, u32)>> {
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; max];
    let at = events.as_mut_ptr();
    // SAFETY: epoll_wait(2) writes at most `max` events.
    let count = outcome(unsafe { libc::epoll_wait(instance, at, max as c_int, timeout) })?;
    let mut found: Vec<_> =
        events[..count as usize].iter().map(|event| (event.u64, event.events)).collect();
    found.sort_unstable();
    Ok(found)
}

pub fn set_timeout(fd: RawFd, option: c_int, timeout: Duration) -> Outcome {
    let time =
        libc::timeval { tv_sec: timeout.as_secs() as i64, tv_usec: timeout.subsec_micros().into() };
    let (at, len) = ((&raw const time).cast(), size_of_val(&time) as libc::socklen_t);
    // SAFETY: setsockopt(2) reads a timeval.
    outcome(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, at, len) })
}

/// An `int` of `SOL_SOCKET`.
pub fn option(fd: RawFd, option: c_int) -> Outcome {
    let mut value: c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    let at = (&raw mut value).cast();
    // SAFETY: getsockopt(2) writes an int.
    outcome(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, at, &mut len) })?;
    Ok(value.into())
}

/// An `int` that ioctl(2) tells.
pub fn told(fd: RawFd, request: libc::c_ulong) -> Outcome {
    let mut value: c_int = 0;
    // SAFETY: ioctl(2): the requests used here write an int.
    outcome(unsafe { libc::ioctl(fd, request, &mut value) })?;
    Ok(value.into())
}

pub fn set_nonblocking(fd: RawFd, on: bool) -> Outcome {
    let on = c_int::from(on);
    // SAFETY: ioctl(2) FIONBIO reads an int.
    outcome(unsafe { libc::ioctl(fd, libc::FIONBIO, &on) })
}

pub fn is_nonblocking(fd: RawFd) -> bool {
    // SAFETY: fcntl(2) F_GETFL takes nothing.
    unsafe { libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK != 0 }
}
