//! Timeouts of sockets: exact, of the kind the kernel reports, shared by clones.
//!
//! Sources: socket(7) (`SO_RCVTIMEO`, `SO_SNDTIMEO`), connect(2).

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::pairs::{Stream, listen, over_both};
use crate::support::sockets::full_listener;
use crate::support::timing::{
    GENEROUS, assert_prompt, assert_socket_durations, assert_socket_waits, assert_waits,
};
use crate::support::{Host, everywhere};

over_both! {
    reading => a_read_times_out_over_tcp, a_read_times_out_over_unix;
    writing => a_write_times_out_over_tcp, a_write_times_out_over_unix;
    data_first => data_comes_before_the_timeout_over_tcp, data_comes_before_the_timeout_over_unix;
    shared => a_clone_shares_the_timeout_over_tcp, a_clone_shares_the_timeout_over_unix;
    many => a_hundred_timeouts_overlap_over_tcp, a_hundred_timeouts_overlap_over_unix;
}

/// The kinds of error that a stream of `tries` timed calls ends with.
fn reading<S: Stream>(host: Host) -> ErrorKind {
    let (mut near, _far) = S::pair();
    let mut kind = ErrorKind::Other;
    for millis in [1, 30, 120] {
        let asked = Duration::from_millis(millis);
        near.read_timeout(Some(asked));
        assert_socket_waits(host, asked, || kind = near.read(&mut [0; 4]).unwrap_err().kind());
    }
    kind
}

fn writing<S: Stream>(host: Host) -> ErrorKind {
    let (mut near, _far) = S::pair();
    let asked = Duration::from_millis(60);
    near.write_timeout(Some(asked));
    let block = vec![0; 1 << 16];
    let mut kind = ErrorKind::Other;
    assert_socket_durations(host, asked, || {
        // TCP goes on taking a little now and then while its window closes. Only the call that
        // could write nothing at all has waited its full time.
        loop {
            let start = Instant::now();
            if let Err(error) = near.write(&block) {
                kind = error.kind();
                return start.elapsed();
            }
        }
    });
    kind
}

fn data_first<S: Stream>(host: Host) -> (usize, ErrorKind) {
    let (mut near, mut far) = S::pair();
    near.read_timeout(Some(GENEROUS * 2));
    let writer = host.spawn(move || {
        thread::sleep(Duration::from_millis(20));
        far.write_all(b"abc").unwrap();
        far
    });
    let count = assert_prompt(GENEROUS, || near.read(&mut [0; 8]).unwrap());
    let _far = writer.value();
    near.read_timeout(Some(Duration::from_millis(5)));
    (count, near.read(&mut [0; 8]).unwrap_err().kind())
}

fn shared<S: Stream>(host: Host) -> Vec<ErrorKind> {
    // The timeout belongs to the socket: a clone has it, also when it is changed afterwards.
    let (near, _far) = S::pair();
    let asked = Duration::from_millis(25);
    let clones = [near.twin(), near.twin().twin()];
    near.read_timeout(Some(asked));
    let mut kinds = Vec::new();
    for mut clone in clones {
        assert_socket_waits(host, asked, || kinds.push(clone.read(&mut [0]).unwrap_err().kind()));
    }
    kinds.dedup();
    kinds
}

fn many<S: Stream>(host: Host) -> Vec<ErrorKind> {
    // One after the other they would take 30 s.
    assert_prompt(GENEROUS, || {
        host.spawn_many(100, |_| {
            let (mut near, _far) = S::pair();
            near.read_timeout(Some(Duration::from_millis(300)));
            near.read(&mut [0]).unwrap_err().kind()
        })
    })
}

#[test]
fn a_cleared_timeout_waits_again() {
    everywhere(|host| {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        near.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let first = near.read(&mut [0; 4]).unwrap_err().kind();
        near.set_read_timeout(None).unwrap();
        let kept = near.read_timeout().unwrap();
        let refused = near.set_read_timeout(Some(Duration::ZERO)).unwrap_err().kind();
        let writer = host.spawn(move || {
            thread::sleep(Duration::from_millis(60));
            far.write_all(b"late").unwrap();
        });
        let count = near.read(&mut [0; 4]).unwrap();
        writer.value();
        (first, kept, refused, count)
    });
}

#[test]
fn a_timeout_is_read_back_as_it_was_set() {
    everywhere(|_| {
        let (near, _far) = TcpStream::pair();
        let asked = Duration::from_millis(1500);
        near.set_read_timeout(Some(asked)).unwrap();
        near.set_write_timeout(Some(asked * 2)).unwrap();
        (near.read_timeout().unwrap(), near.write_timeout().unwrap())
    });
}

#[test]
fn datagram_sockets_time_out() {
    everywhere(|host| {
        let asked = Duration::from_millis(30);
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        udp.set_read_timeout(Some(asked)).unwrap();
        let (unix, _other) = UnixDatagram::pair().unwrap();
        unix.set_read_timeout(Some(asked)).unwrap();
        let mut kinds = Vec::new();
        assert_socket_waits(host, asked, || {
            kinds.push(udp.recv_from(&mut [0; 9]).unwrap_err().kind())
        });
        assert_socket_waits(host, asked, || kinds.push(unix.recv(&mut [0; 9]).unwrap_err().kind()));
        kinds.dedup();
        kinds
    });
}

#[test]
fn accept_times_out() {
    everywhere(|host| {
        let asked = Duration::from_millis(30);
        let listener = listen();
        SockRef::from(&listener).set_read_timeout(Some(asked)).unwrap();
        let mut kind = ErrorKind::Other;
        assert_socket_waits(host, asked, || kind = listener.accept().unwrap_err().kind());
        // The timeout is the listener's, not what it accepts'.
        SockRef::from(&listener).set_read_timeout(Some(GENEROUS * 2)).unwrap();
        let address = listener.local_addr().unwrap();
        let client = host.spawn(move || {
            thread::sleep(Duration::from_millis(20));
            TcpStream::connect(address).unwrap()
        });
        let (stream, _) = assert_prompt(GENEROUS, || listener.accept().unwrap());
        client.value();
        (kind, stream.read_timeout().unwrap())
    });
}

#[test]
fn connect_timeout_gives_up_on_a_full_listener() {
    everywhere(|host| {
        let (_listener, address, _waiting) = full_listener();
        let asked = Duration::from_millis(80);
        let mut kind = ErrorKind::Other;
        assert_waits(host, asked, || {
            kind = TcpStream::connect_timeout(&address, asked).unwrap_err().kind();
        });
        kind
    });
}

#[test]
fn connect_waits_for_room_in_a_full_listener() {
    everywhere(|host| {
        let (listener, address, waiting) = full_listener();
        let client = host.spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"at last").unwrap();
        });
        thread::sleep(Duration::from_millis(50));
        for _ in 0..waiting.len() {
            listener.accept().unwrap();
        }
        let mut text = String::new();
        let (stream, _) = listener.accept().unwrap();
        TcpStream::from(stream).read_to_string(&mut text).unwrap();
        client.value();
        text
    });
}

#[test]
fn a_blocking_connect_obeys_the_send_timeout() {
    everywhere(|host| {
        // socket(7): a connect that runs into SO_SNDTIMEO fails with EINPROGRESS.
        let (_listener, address, _waiting) = full_listener();
        let asked = Duration::from_millis(60);
        let mut error = None;
        assert_socket_waits(host, asked, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_write_timeout(Some(asked)).unwrap();
            error = socket.connect(&address.into()).unwrap_err().raw_os_error();
        });
        error
    });
}

#[test]
fn a_unix_connect_waits_for_room_and_times_out() {
    everywhere(|host| {
        let name =
            format!("sleave-{}-{}", std::process::id(), crate::support::random::fresh_seed());
        let path = std::env::temp_dir().join(name);
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let address = socket2::SockAddr::unix(&path).unwrap();
        let connect = |timeout| {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            socket.set_write_timeout(timeout).unwrap();
            socket.connect(&address).map(|()| socket).map_err(|error| error.kind())
        };
        let asked = Duration::from_millis(40);
        let mut waiting = Vec::new();
        while let Ok(socket) = connect(Some(asked)) {
            waiting.push(socket);
        }
        let mut kind = ErrorKind::Other;
        assert_socket_waits(host, asked, || kind = connect(Some(asked)).unwrap_err());
        let listener = UnixListener::from(std::os::fd::OwnedFd::from(listener));
        let accepted = host.scope(|scope| {
            let client = scope.spawn(|| connect(None).is_ok());
            for _ in 0..=waiting.len() {
                listener.accept().unwrap();
            }
            client.value()
        });
        std::fs::remove_file(&path).unwrap();
        (kind, accepted)
    });
}
