//! Making, accepting and connecting sockets on threads and on fibers.

use std::ffi::c_int;
use std::io::{ErrorKind, Read, Write};
use std::mem::zeroed;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::ptr::null_mut;
use std::thread;
use std::time::{Duration, Instant};

use support::{
    errno, everywhere, outcome, own, pipe, read, set_errno, set_nonblocking, set_option,
    set_timeout, spawn, status_flags, tcp_pair, unix_pair, write,
};

#[macro_use]
mod support;

const SHORT: Duration = Duration::from_millis(30);

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener on loopback");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

fn socket(kind: c_int) -> OwnedFd {
    // SAFETY: socket(2) takes numbers.
    own(unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, 0) })
}

fn name(address: SocketAddr) -> libc::sockaddr_in {
    let SocketAddr::V4(address) = address else { panic!("IPv4 only") };
    // SAFETY: zeroes are a sockaddr_in.
    let mut name: libc::sockaddr_in = unsafe { zeroed() };
    name.sin_family = libc::AF_INET as libc::sa_family_t;
    name.sin_port = address.port().to_be();
    name.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
    name
}

fn connect(fd: &impl AsRawFd, address: SocketAddr) -> Result<i64, c_int> {
    let name = name(address);
    let len = size_of_val(&name) as libc::socklen_t;
    // SAFETY: connect(2) reads one sockaddr_in.
    outcome(unsafe { libc::connect(fd.as_raw_fd(), (&raw const name).cast(), len) })
}

fn accept(fd: &impl AsRawFd, flags: c_int) -> Result<OwnedFd, c_int> {
    // SAFETY: accept4(2) without a name.
    let new = outcome(unsafe { libc::accept4(fd.as_raw_fd(), null_mut(), null_mut(), flags) })?;
    Ok(own(new as c_int))
}

#[test]
fn accept_waits_for_a_connection_and_names_it() {
    everywhere(|| {
        let (listener, address) = listener();
        let client = spawn(move || {
            thread::sleep(SHORT);
            let mut client = TcpStream::connect(address).expect("a connection");
            client.write_all(b"hi").expect("a write");
            client.local_addr().expect("its address")
        });
        set_errno(libc::EXDEV);
        let (mut server, from) = listener.accept().expect("a connection");
        assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
        let mut all = String::new();
        server.read_to_string(&mut all).expect("everything");
        assert_eq!(all, "hi");
        assert_eq!(client.join().expect("the client"), from);
    });
}

#[test]
fn accept_and_accept4_differ_in_flags_only() {
    everywhere(|| {
        let (listener, address) = listener();
        let _clients = [TcpStream::connect(address), TcpStream::connect(address)];
        let plain = accept(&listener, 0).expect("a connection");
        assert_eq!(status_flags(&plain) & libc::O_NONBLOCK, 0);
        let flagged = accept(&listener, libc::SOCK_NONBLOCK).expect("a connection");
        assert_ne!(status_flags(&flagged) & libc::O_NONBLOCK, 0);
        assert_eq!(read(&flagged, 1), Err(libc::EAGAIN));
        let _client = TcpStream::connect(address).expect("a connection");
        // SAFETY: accept(2) without a name.
        let third = own(unsafe { libc::accept(listener.as_raw_fd(), null_mut(), null_mut()) });
        assert_eq!(status_flags(&third) & libc::O_NONBLOCK, 0);
    });
}

#[test]
fn accept_gives_up_when_asked_to() {
    everywhere(|| {
        let (listener, _) = listener();
        set_timeout(&listener, libc::SO_RCVTIMEO, SHORT);
        let start = Instant::now();
        assert_eq!(accept(&listener, 0).err(), Some(libc::EAGAIN));
        assert!(start.elapsed() >= SHORT);
        set_nonblocking(&listener, true);
        assert_eq!(accept(&listener, 0).err(), Some(libc::EAGAIN));
    });
}

#[test]
fn accepted_tcp_socket_inherits_the_timeout() {
    everywhere(|| {
        let (listener, address) = listener();
        set_timeout(&listener, libc::SO_RCVTIMEO, SHORT);
        let _client = TcpStream::connect(address).expect("a connection");
        let server = accept(&listener, 0).expect("a connection");
        let start = Instant::now();
        assert_eq!(read(&server, 1), Err(libc::EAGAIN));
        assert!(start.elapsed() >= SHORT);
    });
}

#[test]
fn accept_on_what_does_not_listen_fails_at_once() {
    everywhere(|| {
        let (a, _b) = tcp_pair();
        assert_eq!(accept(&a, 0).err(), Some(libc::EINVAL));
        assert_eq!(accept(&socket(libc::SOCK_STREAM), 0).err(), Some(libc::EINVAL));
        assert_eq!(accept(&socket(libc::SOCK_DGRAM), 0).err(), Some(libc::EOPNOTSUPP));
        let (from, _to) = pipe(0);
        assert_eq!(accept(&from, 0).err(), Some(libc::ENOTSOCK));
        // SAFETY: accept(2) of no descriptor.
        let none = unsafe { libc::accept(-1, null_mut(), null_mut()) };
        assert_eq!(outcome(none), Err(libc::EBADF));
        let (listener, _) = listener();
        assert_eq!(accept(&listener, 1).err(), Some(libc::EINVAL), "an unknown flag");
    });
}

#[test]
fn shutdown_of_a_listener_ends_an_accept() {
    everywhere(|| {
        let (listener, _) = listener();
        let same = listener.try_clone().expect("a duplicate");
        let other = spawn(move || {
            thread::sleep(SHORT);
            // SAFETY: shutdown(2) takes numbers.
            outcome(unsafe { libc::shutdown(same.as_raw_fd(), libc::SHUT_RDWR) })
        });
        assert_eq!(accept(&listener, 0).err(), Some(libc::EINVAL));
        assert_eq!(other.join().expect("the other"), Ok(0));
    });
}

#[test]
fn several_threads_share_one_listener() {
    everywhere(|| {
        const EACH: usize = 50;
        let (listener, address) = listener();
        scope!(|s| {
            let acceptors: Vec<_> = (0..4)
                .map(|_| {
                    s.spawn(|| {
                        for _ in 0..EACH {
                            let server = accept(&listener, 0).expect("a connection");
                            assert_eq!(write(&server, b"!"), Ok(1));
                        }
                    })
                })
                .collect();
            for _ in 0..4 * EACH {
                let client = TcpStream::connect(address).expect("a connection");
                assert_eq!(read(&client, 10).as_deref(), Ok(&b"!"[..]));
            }
            acceptors.into_iter().for_each(|a| a.join().expect("an acceptor"));
        });
    });
}

#[test]
fn connect_succeeds_and_leaves_the_flags() {
    everywhere(|| {
        let (listener, address) = listener();
        let fd = socket(libc::SOCK_STREAM);
        set_errno(libc::EXDEV);
        assert_eq!(connect(&fd, address), Ok(0));
        assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
        assert_eq!(status_flags(&fd) & libc::O_NONBLOCK, 0);
        assert_eq!(connect(&fd, address), Err(libc::EISCONN));
        let server = accept(&listener, 0).expect("a connection");
        assert_eq!(write(&server, b"x"), Ok(1));
        assert_eq!(read(&fd, 10).as_deref(), Ok(&b"x"[..]));
    });
}

#[test]
fn refused_connect_may_be_tried_again_on_the_same_socket() {
    everywhere(|| {
        let (listener, address) = listener();
        drop(listener);
        let fd = socket(libc::SOCK_STREAM);
        for _ in 0..3 {
            assert_eq!(connect(&fd, address), Err(libc::ECONNREFUSED));
            assert_eq!(status_flags(&fd) & libc::O_NONBLOCK, 0);
        }
        let _again = TcpListener::bind(address).expect("the same port");
        assert_eq!(connect(&fd, address), Ok(0));
    });
}

/// A listener with a full backlog: connections to it hang.
fn full() -> (OwnedFd, SocketAddr, Vec<TcpStream>) {
    let fd = socket(libc::SOCK_STREAM);
    let any = name("127.0.0.1:0".parse().expect("an address"));
    let mut bound = any;
    let mut len = size_of_val(&any) as libc::socklen_t;
    // SAFETY: bind(2), listen(2) and getsockname(2) on one sockaddr_in.
    unsafe {
        outcome(libc::bind(fd.as_raw_fd(), (&raw const any).cast(), len)).expect("bind");
        outcome(libc::listen(fd.as_raw_fd(), 0)).expect("listen");
        let at = (&raw mut bound).cast();
        outcome(libc::getsockname(fd.as_raw_fd(), at, &mut len)).expect("getsockname");
    }
    let address = SocketAddr::from(([127, 0, 0, 1], u16::from_be(bound.sin_port)));
    let mut waiting = Vec::new();
    let limit = Duration::from_millis(200);
    while let Ok(stream) = TcpStream::connect_timeout(&address, limit) {
        waiting.push(stream);
        assert!(waiting.len() < 100, "the backlog has no end");
    }
    (fd, address, waiting)
}

#[test]
fn connect_that_takes_too_long_is_einprogress() {
    everywhere(|| {
        let (_listener, address, _waiting) = full();
        let fd = socket(libc::SOCK_STREAM);
        set_timeout(&fd, libc::SO_SNDTIMEO, SHORT);
        let start = Instant::now();
        assert_eq!(connect(&fd, address), Err(libc::EINPROGRESS));
        assert!(start.elapsed() >= SHORT);
        assert_eq!(connect(&fd, address), Err(libc::EALREADY), "the second waits as long");
        assert!(start.elapsed() >= 2 * SHORT);
        assert_eq!(status_flags(&fd) & libc::O_NONBLOCK, 0);

        let fd = socket(libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
        assert_eq!(connect(&fd, address), Err(libc::EINPROGRESS));
        assert_eq!(connect(&fd, address), Err(libc::EALREADY));
    });
}

#[test]
fn std_connect_timeout_times_out() {
    everywhere(|| {
        let (_listener, address, _waiting) = full();
        let start = Instant::now();
        let error = TcpStream::connect_timeout(&address, SHORT).expect_err("nobody accepts");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(start.elapsed() >= SHORT);
    });
}

#[test]
fn waiting_connect_goes_through_when_there_is_room() {
    everywhere(|| {
        let (listener, address, waiting) = full();
        let fd = socket(libc::SOCK_STREAM);
        let acceptor = spawn(move || {
            thread::sleep(SHORT);
            let taken: Vec<OwnedFd> =
                (0..=waiting.len()).map(|_| accept(&listener, 0).expect("a connection")).collect();
            (taken, waiting, listener)
        });
        assert_eq!(connect(&fd, address), Ok(0));
        assert_eq!(connect(&fd, address), Err(libc::EISCONN));
        acceptor.join().expect("the acceptor");
    });
}

#[test]
fn datagram_and_unix_connects() {
    everywhere(|| {
        let fd = socket(libc::SOCK_DGRAM);
        assert_eq!(connect(&fd, "127.0.0.1:9".parse().expect("an address")), Ok(0));
        let path = std::env::temp_dir().join(format!("sleave-libc-socket-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a listener");
        let client = spawn({
            let path = path.clone();
            move || std::os::unix::net::UnixStream::connect(path).expect("a connection")
        });
        let server = accept(&listener, 0).expect("a connection");
        let client = client.join().expect("the client");
        assert_eq!(write(&client, b"x"), Ok(1));
        assert_eq!(read(&server, 9).as_deref(), Ok(&b"x"[..]));
        std::fs::remove_file(&path).expect("the socket");
        drop(listener);
        let gone = std::os::unix::net::UnixStream::connect(&path).expect_err("nobody there");
        assert_eq!(gone.kind(), ErrorKind::NotFound);
    });
}

#[test]
fn connect_errors_are_the_kernels() {
    everywhere(|| {
        let address = "127.0.0.1:9".parse().expect("an address");
        let (from, _to) = pipe(0);
        assert_eq!(connect(&from, address), Err(libc::ENOTSOCK));
        let fd = socket(libc::SOCK_STREAM);
        let nowhere = std::ptr::without_provenance(8);
        // SAFETY: the kernel checks the address and answers EFAULT.
        unsafe {
            assert_eq!(outcome(libc::connect(fd.as_raw_fd(), nowhere, 16)), Err(libc::EFAULT));
            assert_eq!(outcome(libc::connect(-1, nowhere, 16)), Err(libc::EBADF));
        }
        assert_eq!(status_flags(&fd) & libc::O_NONBLOCK, 0);
    });
}

#[test]
fn options_read_back_and_errors_are_the_kernels() {
    everywhere(|| {
        let (a, _b) = tcp_pair();
        a.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        assert_eq!(a.read_timeout().expect("the timeout"), Some(Duration::from_secs(2)));
        let bad = libc::timeval { tv_sec: 0, tv_usec: 1_000_000 };
        let len = size_of_val(&bad) as libc::socklen_t;
        let (level, option, at) = (libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const bad).cast());
        // SAFETY: setsockopt(2) and getsockopt(2) with buffers of the length given.
        unsafe {
            let set = libc::setsockopt(a.as_raw_fd(), level, option, at, len);
            assert_eq!(outcome(set), Err(libc::EDOM));
            assert_eq!(outcome(libc::setsockopt(-1, level, option, at, len)), Err(libc::EBADF));
            let (mut value, mut len) = (0 as c_int, size_of::<c_int>() as libc::socklen_t);
            let at = (&raw mut value).cast();
            let got = libc::getsockopt(a.as_raw_fd(), level, libc::SO_TYPE, at, &mut len);
            assert_eq!((outcome(got), value), (Ok(0), libc::SOCK_STREAM));
            assert_eq!(outcome(libc::shutdown(-1, libc::SHUT_RD)), Err(libc::EBADF));
            assert_eq!(outcome(libc::socket(-1, 0, 0)), Err(libc::EAFNOSUPPORT));
        }
        assert_eq!(a.read_timeout().expect("the timeout"), Some(Duration::from_secs(2)));
    });
}

#[test]
fn negative_timeout_has_passed_at_once() {
    everywhere(|| {
        let (a, _b) = tcp_pair();
        let value = libc::timeval { tv_sec: -1, tv_usec: 0 };
        set_option(&a, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &value);
        assert_eq!(read(&a, 1), Err(libc::EAGAIN));
    });
}

/// Room for the control data of a few descriptors, aligned as cmsg(3) wants it.
type Control = [u64; 8];

fn pass(to: &OwnedFd, fd: &impl AsRawFd) {
    let mut control: Control = [0; 8];
    let mut byte = [b'f'];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: sendmsg(2) and cmsg(3): one control message in an aligned buffer with room for it.
    unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let head = libc::CMSG_FIRSTHDR(&message);
        (*head).cmsg_level = libc::SOL_SOCKET;
        (*head).cmsg_type = libc::SCM_RIGHTS;
        (*head).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(head).cast::<c_int>().write_unaligned(fd.as_raw_fd());
        let sent = libc::sendmsg(to.as_raw_fd(), &message, libc::MSG_NOSIGNAL);
        assert_eq!(outcome(sent), Ok(1));
    }
}

fn take(from: &OwnedFd) -> OwnedFd {
    let mut control: Control = [0; 8];
    let mut byte = [0u8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: recvmsg(2) and cmsg(3): a control buffer of the length given.
    unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let got = libc::recvmsg(from.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC);
        assert_eq!(outcome(got), Ok(1));
        let head = libc::CMSG_FIRSTHDR(&message);
        assert!(!head.is_null(), "no descriptor came");
        own(libc::CMSG_DATA(head).cast::<c_int>().read_unaligned())
    }
}

#[test]
fn descriptors_travel() {
    everywhere(|| {
        let (a, b) = unix_pair(libc::SOCK_STREAM);
        let (from, to) = pipe(0);
        let sender = spawn(move || {
            thread::sleep(SHORT);
            pass(&a, &from);
            (a, from)
        });
        let same = take(&b);
        let (_a, from) = sender.join().expect("the sender");
        let writer = spawn(move || {
            thread::sleep(SHORT);
            assert_eq!(write(&to, b"travelled"), Ok(9));
            to
        });
        assert_eq!(read(&same, 100).as_deref(), Ok(&b"travelled"[..]));
        let _to = writer.join().expect("the writer");
        // One description, two names: a flag set through one is the other's.
        set_nonblocking(&same, true);
        assert_eq!(read(&from, 1), Err(libc::EAGAIN));
        set_nonblocking(&from, false);
        assert_eq!(status_flags(&same) & libc::O_NONBLOCK, 0);
    });
}
