//! Several messages in one call on threads and on fibers: `recvmmsg sendmmsg`.

use std::ffi::{c_int, c_uint};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::thread;
use std::time::{Duration, Instant};

use libc::{iovec, mmsghdr, timespec};
use support::{
    errno, everywhere, outcome, pattern, recv, send, set_errno, set_nonblocking, set_option,
    set_timeout, spawn, tcp_pair, unix_pair,
};

mod support;

const SHORT: Duration = Duration::from_millis(30);

/// Buffers and the array of messages over them.
struct Messages {
    buffers: Vec<Vec<u8>>,
    parts: Vec<iovec>,
    array: Vec<mmsghdr>,
}

impl Messages {
    fn new(buffers: Vec<Vec<u8>>) -> Messages {
        // SAFETY: zeroes are an mmsghdr: null pointers and no lengths.
        let empty = || unsafe { std::mem::zeroed::<mmsghdr>() };
        let array = buffers.iter().map(|_| empty()).collect();
        let mut messages = Messages { buffers, parts: Vec::new(), array };
        let parts = messages.buffers.iter_mut();
        messages.parts = parts
            .map(|buffer| iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
            .collect();
        for (header, part) in messages.array.iter_mut().zip(&mut messages.parts) {
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
        }
        messages
    }

    /// What the first `count` messages hold.
    fn contents(&self, count: usize) -> Vec<Vec<u8>> {
        let all = self.array.iter().zip(&self.buffers).take(count);
        all.map(|(header, buffer)| buffer[..header.msg_len as usize].to_vec()).collect()
    }
}

fn receive(
    fd: &impl AsRawFd,
    room: &[usize],
    flags: c_int,
    timeout: Option<&mut timespec>,
) -> Result<Vec<Vec<u8>>, c_int> {
    let mut messages = Messages::new(room.iter().map(|&len| vec![0; len]).collect());
    let (at, count) = (messages.array.as_mut_ptr(), room.len() as c_uint);
    let timeout = timeout.map_or(null_mut(), |time| time as *mut timespec);
    // SAFETY: recvmmsg(2) into an array of that many messages.
    let got = outcome(unsafe { libc::recvmmsg(fd.as_raw_fd(), at, count, flags, timeout) })?;
    Ok(messages.contents(got as usize))
}

fn send_all(fd: &impl AsRawFd, contents: &[&[u8]], flags: c_int) -> Result<i64, c_int> {
    let mut messages = Messages::new(contents.iter().map(|bytes| bytes.to_vec()).collect());
    let (at, count) = (messages.array.as_mut_ptr(), contents.len() as c_uint);
    // SAFETY: sendmmsg(2) of an array of that many messages.
    let sent = outcome(unsafe { libc::sendmmsg(fd.as_raw_fd(), at, count, flags) })?;
    for (header, bytes) in messages.array.iter().zip(contents).take(sent as usize) {
        assert_eq!(header.msg_len as usize, bytes.len(), "each is told its length");
    }
    Ok(sent)
}

fn udp_pair() -> (UdpSocket, UdpSocket) {
    let bind = || UdpSocket::bind("127.0.0.1:0").expect("a socket on loopback");
    let (a, b) = (bind(), bind());
    a.connect(b.local_addr().expect("its address")).expect("connect");
    b.connect(a.local_addr().expect("its address")).expect("connect");
    (a, b)
}

/// Sends these one by one, a little apart.
fn sends_slowly(fd: OwnedFd, contents: &'static [&'static [u8]]) -> support::JoinHandle<OwnedFd> {
    spawn(move || {
        for bytes in contents {
            thread::sleep(SHORT);
            assert_eq!(send(&fd, bytes, 0), Ok(bytes.len() as i64));
        }
        fd
    })
}

#[test]
fn receive_waits_for_all_messages() {
    everywhere(|| {
        let (a, b) = udp_pair();
        let sender = sends_slowly(b.into(), &[b"one", b"two", b"three"]);
        set_errno(libc::EXDEV);
        let got = receive(&a, &[2, 8, 8], 0, None).expect("three messages");
        assert_eq!(got, [&b"on"[..], b"two", b"three"], "each is cut to its buffer");
        assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
        sender.join().expect("the sender");
    });
}

#[test]
fn wait_for_one_takes_what_is_there() {
    everywhere(|| {
        let (a, b) = unix_pair(libc::SOCK_DGRAM);
        let sender = sends_slowly(b, &[b"one", b"two"]);
        let one = receive(&a, &[8; 4], libc::MSG_WAITFORONE, None);
        assert_eq!(one, Ok(vec![b"one".to_vec()]));
        let b = sender.join().expect("the sender");
        assert_eq!(send(&b, b"three", 0), Ok(5));
        let two = receive(&a, &[8; 4], libc::MSG_WAITFORONE, None);
        assert_eq!(two, Ok(vec![b"two".to_vec(), b"three".to_vec()]));
        assert_eq!(receive(&a, &[8; 4], libc::MSG_DONTWAIT, None), Err(libc::EAGAIN));
    });
}

#[test]
fn time_is_up_with_the_next_message() {
    everywhere(|| {
        let (a, b) = udp_pair();
        let sender = sends_slowly(b.into(), &[b"one", b"two", b"three"]);
        // Over after the first has come, seen when the second does.
        let mut time = timespec { tv_sec: 0, tv_nsec: 45_000_000 };
        let got = receive(&a, &[8; 9], 0, Some(&mut time)).expect("some");
        assert!((1..9).contains(&got.len()), "{got:?}");
        assert_eq!((time.tv_sec, time.tv_nsec), (0, 0), "nothing is left");
        let b = sender.join().expect("the sender");
        while receive(&a, &[8], libc::MSG_DONTWAIT, None).is_ok() {}
        for bytes in [b"1", b"2", b"3"] {
            assert_eq!(send(&b, bytes, 0), Ok(1));
        }
        let mut none = timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(receive(&a, &[8; 2], 0, Some(&mut none)), Ok(vec![b"1".to_vec()]));
        let mut long = timespec { tv_sec: 60, tv_nsec: 0 };
        let two = receive(&a, &[8; 2], 0, Some(&mut long));
        assert_eq!(two, Ok(vec![b"2".to_vec(), b"3".to_vec()]));
        assert!(long.tv_sec == 59, "the time left is written back: {}", long.tv_sec);
        let mut bad = timespec { tv_sec: 0, tv_nsec: -1 };
        assert_eq!(receive(&a, &[8], 0, Some(&mut bad)), Err(libc::EINVAL));
    });
}

#[test]
fn sockets_own_timeout_ends_the_wait_for_the_next() {
    everywhere(|| {
        let (a, b) = udp_pair();
        set_timeout(&a, libc::SO_RCVTIMEO, SHORT);
        let start = Instant::now();
        assert_eq!(receive(&a, &[8; 2], 0, None), Err(libc::EAGAIN));
        assert!(start.elapsed() >= SHORT - Duration::from_millis(10));
        assert_eq!(send(&b, b"x", 0), Ok(1));
        assert_eq!(receive(&a, &[8; 2], 0, None), Ok(vec![b"x".to_vec()]));
        set_nonblocking(&a, true);
        assert_eq!(receive(&a, &[8; 2], 0, None), Err(libc::EAGAIN));
    });
}

#[test]
fn streams_are_received_part_by_part() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        let sender = sends_slowly(b.into(), &[b"abc", b"defgh"]);
        let got = receive(&a, &[2, 3, 3], libc::MSG_WAITALL, None).expect("eight bytes");
        assert_eq!(got, [&b"ab"[..], b"cde", b"fgh"]);
        drop(sender.join().expect("the sender"));
        assert_eq!(receive(&a, &[2; 2], 0, None), Ok(vec![vec![], vec![]]), "the end, twice");
    });
}

#[test]
fn send_waits_for_room_and_sends_all() {
    everywhere(|| {
        let (a, b) = unix_pair(libc::SOCK_SEQPACKET);
        let small: c_int = 4096;
        set_option(&a, libc::SOL_SOCKET, libc::SO_SNDBUF, &small);
        let contents: Vec<Vec<u8>> = (0..100).map(|i| pattern(500 + i)).collect();
        let wanted = contents.clone();
        let receiver = spawn(move || {
            thread::sleep(SHORT);
            wanted.iter().for_each(|bytes| assert_eq!(recv(&b, 1000, 0).as_ref(), Ok(bytes)));
            b
        });
        let slices: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        set_errno(libc::EXDEV);
        assert_eq!(send_all(&a, &slices, 0), Ok(100));
        assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
        let b = receiver.join().expect("the receiver");
        set_timeout(&a, libc::SO_SNDTIMEO, SHORT);
        let some = send_all(&a, &slices, 0).expect("some go before the queue is full");
        assert!((1..100).contains(&some));
        assert_eq!(send_all(&a, &slices, 0), Err(libc::EAGAIN));
        drop(b);
        assert_eq!(send_all(&a, &slices, libc::MSG_NOSIGNAL), Err(libc::ECONNRESET), "unread");
        assert_eq!(send_all(&a, &slices, libc::MSG_NOSIGNAL), Err(libc::EPIPE));
    });
}

#[test]
fn streams_are_sent_whole() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        let contents = [pattern(3), pattern(3_000_000), pattern(5)];
        let wanted = contents.concat();
        let receiver = spawn(move || {
            thread::sleep(SHORT);
            assert!(recv(&b, wanted.len(), libc::MSG_WAITALL).as_ref() == Ok(&wanted));
        });
        let slices: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        assert_eq!(send_all(&a, &slices, 0), Ok(3));
        receiver.join().expect("the receiver");
    });
}

#[test]
fn errors_are_the_kernels() {
    everywhere(|| {
        let (a, _b) = udp_pair();
        let (from, _to) = support::pipe(0);
        assert_eq!(receive(&from, &[8], 0, None), Err(libc::ENOTSOCK));
        assert_eq!(send_all(&from, &[b"x"], 0), Err(libc::ENOTSOCK));
        assert_eq!(receive(&a, &[], 0, None), Ok(vec![]), "nothing is asked for");
        assert_eq!(send_all(&a, &[], 0), Ok(0));
        let nowhere = std::ptr::without_provenance_mut(8);
        // SAFETY: the kernel checks the array and answers EFAULT; the number names nothing.
        unsafe {
            let result = libc::recvmmsg(-1, null_mut(), 1, 0, null_mut());
            assert_eq!(outcome(result), Err(libc::EBADF));
            assert_eq!(outcome(libc::sendmmsg(a.as_raw_fd(), nowhere, 1, 0)), Err(libc::EFAULT));
            let result = libc::recvmmsg(a.as_raw_fd(), nowhere, 1, 0, null_mut());
            assert_eq!(outcome(result), Err(libc::EFAULT));
        }
    });
}

#[test]
fn error_after_some_messages_is_the_next_calls() {
    everywhere(|| {
        let (a, b) = udp_pair();
        assert_eq!(send(&b, b"last", 0), Ok(4));
        drop(b);
        // Nobody is there any more: an ICMP error comes back.
        assert_eq!(send(&a, b"?", 0), Ok(1));
        assert_eq!(receive(&a, &[8; 2], 0, None), Err(libc::ECONNREFUSED));
        set_timeout(&a, libc::SO_RCVTIMEO, SHORT);
        assert_eq!(receive(&a, &[8; 2], 0, None), Ok(vec![b"last".to_vec()]));
    });
}

#[test]
fn descriptors_travel_in_batches() {
    everywhere(|| {
        let (a, b) = unix_pair(libc::SOCK_DGRAM);
        let (from, to) = support::pipe(libc::O_CLOEXEC);
        let mut control = [[0u64; 4]; 2];
        let mut sent = Messages::new(vec![vec![1], vec![2]]);
        let mut got = Messages::new(vec![vec![0], vec![0]]);
        // SAFETY: cmsg(3): control buffers with room for one number, headers that outlive the calls.
        let received: Vec<OwnedFd> = unsafe {
            for (header, (buffer, fd)) in
                sent.array.iter_mut().zip(control.iter_mut().zip([&from, &to]))
            {
                header.msg_hdr.msg_control = buffer.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = libc::CMSG_SPACE(4) as _;
                let head = libc::CMSG_FIRSTHDR(&header.msg_hdr);
                (*head).cmsg_level = libc::SOL_SOCKET;
                (*head).cmsg_type = libc::SCM_RIGHTS;
                (*head).cmsg_len = libc::CMSG_LEN(4) as _;
                libc::CMSG_DATA(head).cast::<c_int>().write_unaligned(fd.as_raw_fd());
            }
            let result = libc::sendmmsg(a.as_raw_fd(), sent.array.as_mut_ptr(), 2, 0);
            assert_eq!(outcome(result), Ok(2));
            for (header, buffer) in got.array.iter_mut().zip(&mut control) {
                header.msg_hdr.msg_control = buffer.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = size_of_val(buffer) as _;
            }
            let at = got.array.as_mut_ptr();
            let result = libc::recvmmsg(b.as_raw_fd(), at, 2, libc::MSG_CMSG_CLOEXEC, null_mut());
            assert_eq!(outcome(result), Ok(2));
            let number = |header: &mmsghdr| {
                let head = libc::CMSG_FIRSTHDR(&header.msg_hdr);
                OwnedFd::from_raw_fd(libc::CMSG_DATA(head).cast::<c_int>().read_unaligned())
            };
            got.array.iter().map(number).collect()
        };
        drop((from, to));
        let [from, to] = <[OwnedFd; 2]>::try_from(received).expect("two");
        let writer = spawn(move || {
            thread::sleep(SHORT);
            assert_eq!(support::write(&to, b"through"), Ok(7));
            to
        });
        assert_eq!(support::read(&from, 9).as_deref(), Ok(&b"through"[..]));
        writer.join().expect("the writer");
    });
}
