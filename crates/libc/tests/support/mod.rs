//! Helpers of the integration tests: the same body on threads and on fibers, results with their
//! `errno`, descriptors that close themselves, and pairs of sockets.
//!
//! What a body asserts, it asserts on plain threads first: that is the C library's own behaviour,
//! and the measure of what the fibers show afterwards.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod elf;

use std::ffi::c_int;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

// The crate under test: naming it is what links it.
use sleave_libc as _;

/// Runs `body` on threads, then on the fibers of runtimes with one, two and four workers.
pub fn everywhere(body: fn()) {
    body();
    for workers in [1, 2, 4] {
        let runtime = sleave_runtime::Runtime::builder().workers(workers).build();
        let runtime = runtime.expect("a runtime");
        runtime.run(body);
        runtime.stop();
    }
}

/// Whether the caller is a fiber: then what it spawns are fibers, too.
pub fn in_fiber() -> bool {
    sleave_runtime::current().is_some()
}

/// What [`spawn`] made.
pub enum JoinHandle<T> {
    Thread(std::thread::JoinHandle<T>),
    Fiber(sleave_runtime::JoinHandle<T>),
}

impl<T> JoinHandle<T> {
    pub fn join(self) -> std::thread::Result<T> {
        match self {
            JoinHandle::Thread(handle) => handle.join(),
            JoinHandle::Fiber(handle) => handle.join(),
        }
    }
}

/// Another of the caller's sort, thread or fiber.
pub fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    if in_fiber() {
        JoinHandle::Fiber(sleave_runtime::spawn(body))
    } else {
        JoinHandle::Thread(std::thread::spawn(body))
    }
}

/// A scope of the caller's sort; the two scopes have different types, hence no function.
#[allow(unused_macros, reason = "each test binary uses its own part")]
macro_rules! scope {
    ($body:expr) => {
        if $crate::support::in_fiber() {
            sleave_runtime::scope($body)
        } else {
            std::thread::scope($body)
        }
    };
}

/// A result of the C library: the value, or `errno` where it is -1.
pub fn outcome(result: impl TryInto<i64>) -> Result<i64, c_int> {
    let result = result.try_into().unwrap_or(i64::MAX);
    if result == -1 {
        Err(io::Error::last_os_error().raw_os_error().expect("errno is set"))
    } else {
        Ok(result)
    }
}

/// Sets `errno`, to see whether a call leaves it alone.
pub fn set_errno(code: c_int) {
    // SAFETY: errno(3): the calling thread's own.
    unsafe { *libc::__errno_location() = code };
}

/// `errno` as it is.
pub fn errno() -> c_int {
    // SAFETY: errno(3): the calling thread's own.
    unsafe { *libc::__errno_location() }
}

/// Takes over a descriptor that a call returned.
pub fn own(fd: c_int) -> OwnedFd {
    let fd = outcome(fd).expect("a descriptor") as RawFd;
    // SAFETY: the call has just made it, and the test uses it through this owner alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `read` into a buffer of `len` bytes.
pub fn read(fd: &impl AsRawFd, len: usize) -> Result<Vec<u8>, c_int> {
    let mut buffer = vec![0u8; len];
    // SAFETY: read(2) into a buffer of that length.
    let n = outcome(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), len) })?;
    buffer.truncate(n as usize);
    Ok(buffer)
}

/// `write` of `bytes`.
pub fn write(fd: &impl AsRawFd, bytes: &[u8]) -> Result<i64, c_int> {
    // SAFETY: write(2) of a slice.
    outcome(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// `recv` into a buffer of `len` bytes.
pub fn recv(fd: &impl AsRawFd, len: usize, flags: c_int) -> Result<Vec<u8>, c_int> {
    let mut buffer = vec![0u8; len];
    let at = buffer.as_mut_ptr().cast();
    // SAFETY: recv(2) into a buffer of that length.
    let n = outcome(unsafe { libc::recv(fd.as_raw_fd(), at, len, flags) })?;
    buffer.truncate(n as usize);
    Ok(buffer)
}

/// `send` of `bytes`.
pub fn send(fd: &impl AsRawFd, bytes: &[u8], flags: c_int) -> Result<i64, c_int> {
    // SAFETY: send(2) of a slice.
    outcome(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Sets or clears `O_NONBLOCK` by fcntl(2).
pub fn set_nonblocking(fd: &impl AsRawFd, on: bool) {
    let flags = status_flags(fd);
    let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    // SAFETY: fcntl(2) F_SETFL takes a number.
    outcome(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).expect("F_SETFL");
}

/// `F_GETFL` of fcntl(2).
pub fn status_flags(fd: &impl AsRawFd) -> c_int {
    // SAFETY: fcntl(2) F_GETFL takes nothing.
    outcome(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }).expect("F_GETFL") as c_int
}

/// `setsockopt` of an option of any plain type.
pub fn set_option<T>(fd: &impl AsRawFd, level: c_int, name: c_int, value: &T) {
    let len = size_of::<T>() as libc::socklen_t;
    let value = (&raw const *value).cast();
    // SAFETY: setsockopt(2) reads `len` bytes of the value.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, len) };
    outcome(result).expect("setsockopt");
}

/// Sets `SO_RCVTIMEO` or `SO_SNDTIMEO`.
pub fn set_timeout(fd: &impl AsRawFd, name: c_int, timeout: Duration) {
    let tv_usec = libc::suseconds_t::from(timeout.subsec_micros());
    let value = libc::timeval { tv_sec: timeout.as_secs() as i64, tv_usec };
    set_option(fd, libc::SOL_SOCKET, name, &value);
}

/// Two connected TCP sockets on loopback.
pub fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener on loopback");
    let address = listener.local_addr().expect("its address");
    let client = TcpStream::connect(address).expect("a connection");
    let (server, _) = listener.accept().expect("the other end");
    (client, server)
}

/// Two connected Unix sockets of `kind`.
pub fn unix_pair(kind: c_int) -> (OwnedFd, OwnedFd) {
    let mut pair = [-1; 2];
    // SAFETY: socketpair(2) writes two descriptors.
    let result = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) };
    outcome(result).expect("socketpair");
    (own(pair[0]), own(pair[1]))
}

/// The two ends of a pipe: reading, writing.
pub fn pipe(flags: c_int) -> (OwnedFd, OwnedFd) {
    let mut ends = [-1; 2];
    // SAFETY: pipe2(2) writes two descriptors.
    outcome(unsafe { libc::pipe2(ends.as_mut_ptr(), flags) }).expect("pipe2");
    (own(ends[0]), own(ends[1]))
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

/// The flag of the C library for `SIGPIPE`: ignored by Rust's runtime, so that a write to nobody
/// is `EPIPE` and no more.
pub const QUIET: c_int = libc::MSG_NOSIGNAL;
