//! Which calls give up, when, and with what.
//!
//! Sources: socket(7) (`SO_RCVTIMEO`, `SO_SNDTIMEO`), recv(2) (`MSG_WAITALL`), pipe(7) ("Pipe capacity").

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Read, Write, pipe};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use sleave::event::{Direction, wait_any};
use socket2::{MaybeUninitSlice, SockRef};

use super::{MS, on_runtimes};
use crate::support::timing::{assert_socket_durations, assert_socket_waits, assert_waits};
use crate::support::{Host, everywhere};

/// Limits the caller's waits: a fiber by its own limit, a thread by the timeouts of `sockets`.
fn limit(host: Host, timeout: Duration, sockets: &[&dyn AsFd]) {
    if host.is_fibers() && sleave::identity().is_ok() {
        sleave::set_wait_timeout(timeout).unwrap();
        return;
    }
    for socket in sockets {
        let socket = SockRef::from(socket);
        socket.set_read_timeout(Some(timeout)).unwrap();
        socket.set_write_timeout(Some(timeout)).unwrap();
    }
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

#[test]
fn every_way_to_receive_gives_up_as_with_a_timeout_of_the_socket() {
    everywhere(|host| {
        let asked = 20 * MS;
        let (mut tcp, _tcp) = tcp_pair();
        let (mut unix, _unix) = UnixStream::pair().unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (datagram, _datagram) = UnixDatagram::pair().unwrap();
        limit(host, asked, &[&tcp, &unix, &udp, &datagram]);
        let mut kinds = Vec::new();
        let mut gives_up = |wait: &mut dyn FnMut() -> std::io::Result<usize>| {
            assert_socket_waits(host, asked, || kinds.push(wait().unwrap_err().kind()));
        };
        let mut two = [[0; 4], [0; 4]];
        let [a, b] = &mut two;
        let mut parts = [IoSliceMut::new(a), IoSliceMut::new(b)];
        gives_up(&mut || tcp.read(&mut [0; 4]));
        gives_up(&mut || tcp.read_vectored(&mut parts));
        gives_up(&mut || tcp.peek(&mut [0; 4]));
        gives_up(&mut || unix.read(&mut [0; 4]));
        gives_up(&mut || unix.read_vectored(&mut parts));
        gives_up(&mut || udp.recv_from(&mut [0; 4]).map(|(count, _)| count));
        gives_up(&mut || datagram.recv(&mut [0; 4]));
        let unix = SockRef::from(&unix);
        gives_up(&mut || {
            let mut room = [MaybeUninit::uninit(); 4];
            unix.recv_vectored(&mut [MaybeUninitSlice::new(&mut room)]).map(|(count, _)| count)
        });
        kinds.dedup();
        kinds
    });
}

#[test]
fn accept_gives_up() {
    everywhere(|host| {
        let asked = 30 * MS;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        limit(host, asked, &[&listener]);
        let mut kind = ErrorKind::Other;
        assert_socket_waits(host, asked, || kind = listener.accept().unwrap_err().kind());
        kind
    });
}

#[test]
fn what_has_been_received_when_the_time_is_over_is_the_result() {
    everywhere(|host| {
        let asked = 40 * MS;
        let (near, mut far) = tcp_pair();
        limit(host, asked, &[&near, &far]);
        far.write_all(b"abc").unwrap();
        let mut room = [MaybeUninit::uninit(); 8];
        let begun = Instant::now();
        let count = SockRef::from(&near).recv_with_flags(&mut room, libc::MSG_WAITALL).unwrap();
        // On threads the first tick of the kernel's timeout has begun already.
        assert!(begun.elapsed() >= asked - 10 * MS);
        count
    });
}

/// Writes far more than fits, then more; whether the first call wrote a part, and how the last ended.
fn overfill(host: Host, mut stream: impl Write, asked: Duration) -> (bool, ErrorKind) {
    let block = vec![0; 64 << 20];
    let count = stream.write(&block).unwrap();
    let mut kind = ErrorKind::Other;
    assert_socket_durations(host, asked, || {
        // TCP goes on taking a little now and then while its window closes. Only the call that
        // could write nothing at all has waited its full time.
        loop {
            let start = Instant::now();
            if let Err(error) = stream.write(&block) {
                kind = error.kind();
                return start.elapsed();
            }
        }
    });
    (0 < count && count < block.len(), kind)
}

#[test]
fn a_write_that_nobody_reads_ends_with_what_was_taken() {
    everywhere(|host| {
        let asked = 60 * MS;
        let (tcp, _tcp) = tcp_pair();
        let (unix, _unix) = UnixStream::pair().unwrap();
        limit(host, asked, &[&tcp, &unix]);
        [overfill(host, tcp, asked), overfill(host, unix, asked)]
    });
}

#[test]
fn pipes_and_devices_give_up_too() {
    let asked = 30 * MS;
    on_runtimes(
        |builder| builder.wait_timeout(asked),
        |host| {
            let (mut reader, mut writer) = pipe().unwrap();
            let would_block = |result: std::io::Result<usize>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::WouldBlock);
            };
            assert_waits(host, asked, || would_block(reader.read(&mut [0; 4])));
            // SAFETY: eventfd(2) without flags; a new descriptor that nobody else closes.
            let mut eventfd = unsafe { File::from_raw_fd(libc::eventfd(0, 0)) };
            assert_waits(host, asked, || would_block(eventfd.read(&mut [0; 8])));

            const CAPACITY: usize = 1 << 16;
            let start = Instant::now();
            assert_eq!(writer.write(&vec![1; 1 << 20]).unwrap(), CAPACITY);
            assert!(start.elapsed() >= asked);
            assert_waits(host, asked, || would_block(writer.write(&[0])));
            // It can be used as before.
            assert_eq!(reader.read(&mut vec![0; 1 << 20]).unwrap(), CAPACITY);
            assert_eq!(writer.write(b"ab").unwrap(), 2);
            assert_eq!(reader.read(&mut [0; 4]).unwrap(), 2);
        },
    );
}

#[test]
fn wait_any_without_a_timeout_gives_up() {
    let asked = 30 * MS;
    on_runtimes(
        |builder| builder.wait_timeout(asked),
        |host| {
            let (a, _a) = UnixStream::pair().unwrap();
            let (b, mut b_far) = UnixStream::pair().unwrap();
            let interests = [(a.as_fd(), Direction::Read), (b.as_fd(), Direction::Read)];
            assert_waits(host, asked, || assert!(wait_any(&interests, None).unwrap().is_empty()));
            // One that states its time is not limited.
            assert_waits(host, 3 * asked, || {
                assert!(wait_any(&interests, Some(3 * asked)).unwrap().is_empty());
            });
            assert_waits(host, MS, || assert!(wait_any(&interests, Some(MS)).unwrap().is_empty()));
            b_far.write_all(b"x").unwrap();
            assert_eq!(wait_any(&interests, None).unwrap(), [1]);
        },
    );
}

#[test]
fn each_call_has_the_whole_time() {
    let asked = 60 * MS;
    on_runtimes(
        |builder| builder.wait_timeout(asked),
        |host| {
            let (mut near, mut far) = UnixStream::pair().unwrap();
            // The waits are longer than the limit together, but none is by itself.
            let writer = host.spawn(move || {
                for byte in 0..30 {
                    std::thread::sleep(10 * MS);
                    far.write_all(&[byte]).unwrap();
                }
                far
            });
            for byte in 0..30 {
                let mut one = [0];
                let mut wait = || {
                    let start = Instant::now();
                    let result = near.read(&mut one);
                    (result, start.elapsed())
                };
                // On a loaded machine it may be, after all.
                let count = loop {
                    match wait() {
                        (Ok(count), _) => break count,
                        (Err(_), time) => assert!(time >= asked, "given up after {time:?}"),
                    }
                };
                assert_eq!((count, one), (1, [byte]));
            }
            let _far = writer.value();
            assert_eq!(near.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        },
    );
}

#[test]
fn two_hundred_silent_streams_are_given_up_at_once() {
    let asked = 300 * MS;
    on_runtimes(
        |builder| builder.wait_timeout(asked),
        |host| {
            // One after the other they would take as long as the watchdog's patience.
            let times = host.spawn_many(200, |_| {
                let (mut near, _far) = UnixStream::pair().unwrap();
                let start = Instant::now();
                assert_eq!(near.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
                start.elapsed()
            });
            assert!(times.iter().all(|time| *time >= asked));
        },
    );
}
