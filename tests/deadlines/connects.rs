//! Connecting: a limit of its own, and a socket left as the kernel leaves one.
//!
//! Sources: connect(2), tcp(7) (`TCP_SYNCNT`, `TCP_INFO`), socket(7) (`SO_SNDTIMEO`).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use sleave::{Builder, set_connect_timeout, set_wait_timeout};
use socket2::{Domain, Socket, Type};

use super::{MS, on_runtimes, on_watched_runtimes};
use crate::support::everywhere;
use crate::support::sockets::full_listener;
use crate::support::timing::{assert_socket_waits, assert_waits, eventually};

fn tcp() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()
}

/// The error number that connecting `socket` ends with, 0 for none.
fn connect(socket: &Socket, address: SocketAddr) -> i32 {
    socket.connect(&address.into()).map_or_else(|error| error.raw_os_error().unwrap(), |()| 0)
}

/// The state of a TCP connection, the first byte of `struct tcp_info`: 2 while it asks, 7 when closed.
fn state(socket: &Socket) -> u8 {
    let mut info = [0u8; 8];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: getsockopt(2) writes at most `len` bytes of the live array.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut len,
        )
    };
    assert_eq!(result, 0);
    info[0]
}

/// Asks `socket` and a server that it knows of whether they are connected to each other.
fn assert_talks(socket: Socket, listener: &Socket) {
    let mut near = TcpStream::from(socket);
    let mut far = TcpStream::from(listener.accept().unwrap().0);
    near.write_all(b"hello").unwrap();
    near.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    far.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn connect_gives_up_after_the_runtimes_limit() {
    let asked = 60 * MS;
    on_runtimes(
        // The limit of other waits does not hold here, nor this one there.
        |builder| builder.connect_timeout(asked).wait_timeout(2 * asked),
        |host| {
            let (listener, address, waiting) = full_listener();
            assert_waits(host, asked, || {
                let error = TcpStream::connect(address).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TimedOut);
                assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
            });
            for _ in &waiting {
                listener.accept().unwrap();
            }
            let mut near = TcpStream::connect(address).unwrap();
            assert_waits(host, 2 * asked, || assert!(near.read(&mut [0]).is_err()));
        },
    );
}

#[test]
fn a_fibers_own_limit_and_the_sockets_come_first() {
    let asked = 150 * MS;
    on_runtimes(
        |builder| builder.connect_timeout(asked).wait_timeout(MS),
        |host| {
            let (_listener, address, _waiting) = full_listener();
            let shorter = Builder::new().connect_timeout(asked / 3).spawn(move || {
                assert_waits(host, asked / 3, || {
                    assert_eq!(connect(&tcp(), address), libc::ETIMEDOUT)
                });
                set_connect_timeout(2 * asked).unwrap()
            });
            assert_eq!(shorter.unwrap().join().unwrap(), Some(asked / 3));
            for own in [asked / 3, 2 * asked] {
                // What socket(7) says of SO_SNDTIMEO, and the attempt goes on.
                assert_socket_waits(host, own, || {
                    let socket = tcp();
                    socket.set_write_timeout(Some(own)).unwrap();
                    assert_eq!(connect(&socket, address), libc::EINPROGRESS);
                    assert_eq!(state(&socket), 2);
                });
                assert_waits(host, own, || {
                    let error = TcpStream::connect_timeout(&address, own).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::TimedOut);
                });
            }
            assert_waits(host, asked, || assert_eq!(connect(&tcp(), address), libc::ETIMEDOUT));
        },
    );
}

#[test]
fn connect_without_a_limit_waits_for_room() {
    let asked = 30 * MS;
    on_runtimes(
        |builder| builder.connect_timeout(asked).wait_timeout(asked),
        |_| {
            let (listener, address, waiting) = full_listener();
            assert_eq!(connect(&tcp(), address), libc::ETIMEDOUT);
            let client = Builder::new().connect_timeout(None).spawn(move || {
                let start = Instant::now();
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"at last").unwrap();
                start.elapsed()
            });
            thread::sleep(3 * asked);
            set_wait_timeout(None).unwrap();
            for _ in &waiting {
                listener.accept().unwrap();
            }
            let mut text = String::new();
            TcpStream::from(listener.accept().unwrap().0).read_to_string(&mut text).unwrap();
            assert_eq!(text, "at last");
            assert!(client.unwrap().join().unwrap() >= 2 * asked);
        },
    );
}

/// A thread's `connect` that the kernel gives up, after one more try, is what a fiber's is compared with.
#[test]
fn the_socket_is_left_as_the_kernel_leaves_one() {
    everywhere(|host| {
        let (listener, address, waiting) = full_listener();
        let socket = tcp();
        if host.is_fibers() && sleave::identity().is_ok() {
            set_connect_timeout(30 * MS).unwrap();
        } else {
            set_syn_retries(&socket, 1);
        }
        let error = connect(&socket, address);
        let seen = (error, state(&socket), socket.take_error().unwrap().map(|e| e.kind()));
        let peer = socket.peer_addr().unwrap_err().kind();
        let mut room = [std::mem::MaybeUninit::uninit(); 4];
        let reading = socket.recv(&mut room).unwrap_err().kind();
        for _ in &waiting {
            listener.accept().unwrap();
        }
        let again = connect(&socket, address);
        assert_talks(socket, &listener);
        (seen, peer, reading, again)
    });
}

/// tcp(7): how often a connection is asked for again.
fn set_syn_retries(socket: &Socket, retries: libc::c_int) {
    // SAFETY: setsockopt(2) reads one live int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SYNCNT,
            (&raw const retries).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

/// Two connect one socket. Who began it gives up and ends the attempt; the other, which has no limit, goes
/// on with another, and parks as for the first.
#[test]
fn who_waits_for_an_attempt_that_another_has_ended_begins_anew() {
    on_watched_runtimes(
        |builder| builder,
        |host, runtime| {
            let (listener, address, waiting) = full_listener();
            let socket = Arc::new(tcp());
            let began = {
                let socket = Arc::clone(&socket);
                let limited = Builder::new().connect_timeout(60 * MS);
                limited.spawn(move || connect(&socket, address)).unwrap()
            };
            while state(&socket) != 2 && !began.is_finished() {
                host.yield_now();
            }
            let joined = {
                let socket = Arc::clone(&socket);
                host.spawn(move || connect(&socket, address))
            };
            assert_eq!(began.join().unwrap(), libc::ETIMEDOUT);
            eventually("another attempt is under way", || state(&socket) == 2);
            eventually("who waits for it has parked", || runtime.statistics().waiting == 1);
            for _ in &waiting {
                listener.accept().unwrap();
            }
            assert_eq!(joined.value(), 0);
            assert_talks(Arc::into_inner(socket).unwrap(), &listener);
        },
    );
}

/// The other way round: who has only joined leaves the attempt to him who began it.
#[test]
fn who_has_joined_an_attempt_does_not_end_it() {
    on_runtimes(
        |builder| builder,
        |host| {
            let (listener, address, waiting) = full_listener();
            let socket = Arc::new(tcp());
            let began = {
                let socket = Arc::clone(&socket);
                host.spawn(move || connect(&socket, address))
            };
            while state(&socket) != 2 {
                host.yield_now();
            }
            set_connect_timeout(20 * MS).unwrap();
            assert_waits(host, 20 * MS, || assert_eq!(connect(&socket, address), libc::ETIMEDOUT));
            assert_eq!(state(&socket), 2);
            for _ in &waiting {
                listener.accept().unwrap();
            }
            assert_eq!(began.value(), 0);
            assert_talks(Arc::into_inner(socket).unwrap(), &listener);
        },
    );
}
