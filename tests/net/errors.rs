//! What goes wrong on a socket goes wrong on a fiber as it does on a thread.
//!
//! Sources: tcp(7), close(2), signal(7) (Rust ignores SIGPIPE, so a broken pipe is an error).

use std::io::{ErrorKind, Read, Write};
use std::mem::ManuallyDrop;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::pairs::{Stream, connect, listen, over_both};
use crate::support::timing::{GENEROUS, assert_prompt};
use crate::support::{Host, everywhere, on_fibers_alone};

over_both! {
    broken_pipe => a_write_to_nobody_is_a_broken_pipe_over_tcp,
        a_write_to_nobody_is_a_broken_pipe_over_unix;
    closed_while_writing => a_waiting_writer_learns_of_the_close_over_tcp,
        a_waiting_writer_learns_of_the_close_over_unix;
    nonblocking => set_nonblocking_is_respected_over_tcp, set_nonblocking_is_respected_over_unix;
    flags => the_flags_of_a_descriptor_are_the_programs_over_tcp,
        the_flags_of_a_descriptor_are_the_programs_over_unix;
}

#[test]
fn a_reset_reaches_the_reader() {
    everywhere(|host| {
        let (mut near, far) = TcpStream::pair();
        let resetter = host.spawn(move || {
            thread::sleep(Duration::from_millis(20));
            SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
            drop(far);
        });
        let first = near.read(&mut [0; 8]).map_err(|error| error.kind());
        resetter.value();
        let second = near.read(&mut [0; 8]).map_err(|error| error.kind());
        let write = near.write(b"anybody?").map_err(|error| error.kind());
        (first, second, write)
    });
}

#[test]
fn a_reset_reaches_a_waiting_writer() {
    everywhere(|host| {
        let (mut near, far) = TcpStream::pair();
        let resetter = host.spawn(move || {
            thread::sleep(Duration::from_millis(50));
            SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
            drop(far);
        });
        let block = vec![0; 1 << 20];
        let kind = loop {
            // A write that was cut short returns its count; the next one says why.
            if let Err(error) = near.write(&block) {
                break error.kind();
            }
        };
        resetter.value();
        kind
    });
}

fn broken_pipe<S: Stream>(host: Host) -> ErrorKind {
    let (mut near, far) = S::pair();
    host.spawn(move || drop(far)).value();
    // TCP takes what is written before the other end's answer has come.
    loop {
        if let Err(error) = near.write(b"anybody?") {
            return error.kind();
        }
        host.yield_now();
    }
}

fn closed_while_writing<S: Stream>(host: Host) -> bool {
    let (mut near, far) = S::pair();
    let writer = host.spawn(move || {
        let block = vec![0; 1 << 20];
        loop {
            if let Err(error) = near.write(&block) {
                return error.kind();
            }
        }
    });
    thread::sleep(Duration::from_millis(30));
    drop(far);
    // TCP answers a close with unread data by a reset, and which of the two errors the writer
    // sees depends on when it looks.
    matches!(writer.value(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

fn nonblocking<S: Stream>(host: Host) -> Vec<Result<usize, ErrorKind>> {
    let (mut near, mut far) = S::pair();
    near.nonblocking(true);
    let mut results = Vec::new();
    let read = assert_prompt(GENEROUS, || near.read(&mut [0; 8]));
    results.push(read.map_err(|error| error.kind()));
    let block = vec![0; 1 << 16];
    results.push(assert_prompt(GENEROUS, || {
        loop {
            if let Err(error) = near.write(&block) {
                break Err(error.kind());
            }
        }
    }));
    // The flag belongs to the description: the clone has it, and loses it again for both.
    let mut twin = near.twin();
    results.push(twin.read(&mut [0; 8]).map_err(|error| error.kind()));
    twin.nonblocking(false);
    let answer = host.spawn(move || {
        thread::sleep(Duration::from_millis(20));
        far.write_all(b"now").unwrap();
        far
    });
    results.push(near.read(&mut [0; 8]).map_err(|error| error.kind()));
    answer.value();
    results
}

fn flags<S: Stream>(host: Host) -> Vec<i32> {
    let (mut near, mut far) = S::pair();
    let status = |stream: &S| {
        // SAFETY: fcntl(2): F_GETFL only reads the flags of an open descriptor.
        unsafe { libc::fcntl(stream.as_fd().as_raw_fd(), libc::F_GETFL) }
    };
    let mut seen = vec![status(&near)];
    let writer = host.spawn(move || {
        thread::sleep(Duration::from_millis(10));
        far.write_all(b"x").unwrap();
        far
    });
    near.read_exact(&mut [0]).unwrap();
    let _far = writer.value();
    // Having waited leaves no trace; having asked does.
    seen.push(status(&near));
    near.nonblocking(true);
    seen.push(status(&near));
    near.nonblocking(false);
    seen.push(status(&near));
    seen
}

#[test]
fn a_listeners_flags_are_the_programs() {
    everywhere(|host| {
        let listener = listen();
        let status = || {
            // SAFETY: as in `flags`.
            unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_GETFL) }
        };
        let before = status();
        let address = listener.local_addr().unwrap();
        let client = host.spawn(move || {
            thread::sleep(Duration::from_millis(10));
            TcpStream::connect(address).unwrap()
        });
        let (accepted, _) = listener.accept().unwrap();
        client.value();
        // SAFETY: as in `flags`.
        let of_accepted = unsafe { libc::fcntl(accepted.as_raw_fd(), libc::F_GETFL) };
        let after = status();
        listener.set_nonblocking(true).unwrap();
        let refused = assert_prompt(GENEROUS, || listener.accept().unwrap_err().kind());
        (before, after, of_accepted, status(), refused)
    });
}

#[test]
fn a_refused_connection_says_so() {
    everywhere(|host| {
        // Bound, so that nobody else gets the port, and not listening.
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        bound.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let address = bound.local_addr().unwrap().as_socket().unwrap();
        let missing = std::env::temp_dir().join("sleave-there-is-no-such-socket");
        host.spawn(move || {
            (
                TcpStream::connect(address).unwrap_err().kind(),
                TcpStream::connect_timeout(&address, GENEROUS).unwrap_err().kind(),
                UnixStream::connect(missing).unwrap_err().kind(),
            )
        })
        .value()
    });
}

#[test]
fn a_refused_datagram_is_reported_to_the_connected_sender() {
    everywhere(|host| {
        let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = closed.local_addr().unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sender.connect(address).unwrap();
        drop(closed);
        let task = host.spawn(move || {
            sender.send(b"anybody?").unwrap();
            sender.recv(&mut [0; 8]).map_err(|error| error.kind())
        });
        task.value()
    });
}

#[test]
fn calls_on_what_is_no_descriptor_or_no_socket_fail_at_once() {
    everywhere(|_| {
        let error = |result: isize| {
            assert_eq!(result, -1);
            std::io::Error::last_os_error().raw_os_error()
        };
        let (reader, _writer) = std::io::pipe().unwrap();
        let (pipe, mut byte) = (reader.as_raw_fd(), [0_u8; 1]);
        let buffer = byte.as_mut_ptr().cast::<libc::c_void>();
        // SAFETY: read(2), write(2), recv(2), send(2): one live byte each; the numbers are no
        // descriptor, or a pipe where a socket is asked for, so none of them transfers anything.
        unsafe {
            [
                error(libc::read(-1, buffer, 1)),
                error(libc::write(-1, buffer, 1)),
                error(libc::recv(-1, buffer, 1, 0)),
                error(libc::send(-1, buffer, 1, 0)),
                error(libc::recv(pipe, buffer, 1, 0)),
                error(libc::write(pipe, buffer, 1)),
                error(libc::close(-1) as isize),
                error(libc::accept(pipe, std::ptr::null_mut(), std::ptr::null_mut()) as isize),
            ]
        }
    });
}

/// Closes a descriptor by its number, as a program may that keeps track of its own.
fn close_raw(fd: i32) {
    // SAFETY: close(2); the caller owns the number and nothing uses it as an owner afterwards.
    assert_eq!(unsafe { libc::close(fd) }, 0);
}

/// Runs `wait` in a fiber on `fd`, closes the descriptor under it, and returns its error.
fn error_when_closed<T: From<OwnedFd> + Send>(
    host: Host,
    fd: impl IntoRawFd,
    wait: impl FnOnce(&mut T) -> std::io::Result<usize> + Send + 'static,
) -> Option<i32> {
    let fd = fd.into_raw_fd();
    let waiter = host.spawn(move || {
        // SAFETY: nobody else owns the number; `ManuallyDrop` leaves closing to the other fiber.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut borrowed = ManuallyDrop::new(T::from(owned));
        wait(&mut borrowed).unwrap_err().raw_os_error()
    });
    // Whether it waits already or comes later, the number is closed and stays so until it ended.
    thread::sleep(Duration::from_millis(30));
    close_raw(fd);
    waiter.value()
}

#[test]
fn closing_a_descriptor_wakes_who_waits_for_it() {
    // On threads the kernel leaves the waiter asleep until data comes; the difference is
    // documented. Alone, because another test could be given the number at once.
    on_fibers_alone(|host| {
        let ebadf = Some(libc::EBADF);
        for _ in 0..3 {
            let (near, _far) = TcpStream::pair();
            let error = error_when_closed(host, near, |s: &mut TcpStream| s.read(&mut [0; 8]));
            assert_eq!(error, ebadf);

            let (near, _far) = UnixStream::pair().unwrap();
            let error = error_when_closed(host, near, |s: &mut UnixStream| {
                let block = vec![0; 1 << 20];
                loop {
                    let count = s.write(&block)?;
                    assert!(count > 0);
                }
            });
            assert_eq!(error, ebadf);

            let error = error_when_closed(host, listen(), |l: &mut std::net::TcpListener| {
                l.accept().map(|_| 0)
            });
            assert_eq!(error, ebadf);

            let (near, _far) = UnixDatagram::pair().unwrap();
            let error = error_when_closed(host, near, |s: &mut UnixDatagram| s.recv(&mut [0; 8]));
            assert_eq!(error, ebadf);

            let (reader, _writer) = std::io::pipe().unwrap();
            let error =
                error_when_closed(host, reader, |file: &mut std::fs::File| file.read(&mut [0; 8]));
            assert_eq!(error, ebadf);
        }
    });
}

#[test]
fn a_number_that_is_used_again_serves_its_new_connection() {
    everywhere(|host| {
        // The same few numbers, over and over, each time with somebody waiting on them.
        let listener = listen();
        for round in 0..200_u8 {
            let (mut near, mut far) = connect(&listener);
            let reader = host.spawn(move || {
                let mut byte = [0];
                let count = near.read(&mut byte).unwrap();
                (count, byte[0])
            });
            host.yield_now();
            far.write_all(&[round]).unwrap();
            assert_eq!(reader.value(), (1, round));
        }
    });
}
