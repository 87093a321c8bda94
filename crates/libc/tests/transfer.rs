//! Reading and writing, receiving and sending, on threads and on fibers: what blocks, what comes in
//! parts, and every error number.

use std::ffi::c_int;
use std::io::{Read, Write};
use std::net::{Shutdown, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use libc::iovec;
use support::{
    JoinHandle, QUIET, errno, everywhere, outcome, own, pattern, pipe, read, recv, send, set_errno,
    set_nonblocking, set_option, set_timeout, spawn, tcp_pair, unix_pair, write,
};

mod support;

const SHORT: Duration = Duration::from_millis(30);

/// Lets `other` run while the caller's next call has begun to wait (or is about to: the test
/// holds either way).
fn later<T: Send + 'static>(other: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    spawn(move || {
        thread::sleep(SHORT);
        other()
    })
}

fn parts(buffers: &mut [Vec<u8>]) -> Vec<iovec> {
    let part = |b: &mut Vec<u8>| iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() };
    buffers.iter_mut().map(part).collect()
}

fn readv(fd: &impl AsRawFd, lens: &[usize]) -> Result<Vec<Vec<u8>>, c_int> {
    let mut buffers: Vec<Vec<u8>> = lens.iter().map(|len| vec![0; *len]).collect();
    let array = parts(&mut buffers);
    // SAFETY: readv(2) over live buffers.
    let n = unsafe { libc::readv(fd.as_raw_fd(), array.as_ptr(), array.len() as c_int) };
    let mut left = outcome(n)? as usize;
    for buffer in &mut buffers {
        buffer.truncate(left.min(buffer.len()));
        left -= buffer.len();
    }
    Ok(buffers)
}

fn writev(fd: &impl AsRawFd, bytes: &[u8], piece: usize) -> Result<i64, c_int> {
    let mut buffers: Vec<Vec<u8>> = bytes.chunks(piece).map(<[u8]>::to_vec).collect();
    let array = parts(&mut buffers);
    // SAFETY: writev(2) over live buffers.
    outcome(unsafe { libc::writev(fd.as_raw_fd(), array.as_ptr(), array.len() as c_int) })
}

/// Reads everything until the end, in pieces of `piece` bytes.
fn drain(mut from: impl Read, piece: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = vec![0u8; piece];
    loop {
        match from.read(&mut buffer).expect("a read") {
            0 => return all,
            n => all.extend_from_slice(&buffer[..n]),
        }
    }
}

#[test]
fn read_waits_for_data_and_reports_the_end() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        let (pipe_out, pipe_in) = pipe(0);
        let (unix_out, unix_in) = unix_pair(libc::SOCK_STREAM);
        let pairs: Vec<(OwnedFd, OwnedFd)> =
            vec![(a.into(), b.into()), (pipe_out, pipe_in), (unix_out, unix_in)];
        for (from, to) in pairs {
            let writer = later(move || {
                assert_eq!(write(&to, b"hello"), Ok(5));
                thread::sleep(SHORT);
                assert_eq!(write(&to, b"again"), Ok(5));
            });
            set_errno(libc::EXDEV);
            assert_eq!(read(&from, 100).as_deref(), Ok(&b"hello"[..]));
            assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
            assert_eq!(readv(&from, &[2, 0, 100]), Ok(vec![b"ag".into(), vec![], b"ain".into()]));
            writer.join().expect("the writer");
            assert_eq!(read(&from, 100), Ok(vec![]), "the end");
            assert_eq!(read(&from, 100), Ok(vec![]), "still the end");
        }
    });
}

#[test]
fn short_reads_leave_the_rest_for_the_next() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        assert_eq!(write(&b, b"abcdefgh"), Ok(8));
        assert_eq!(read(&a, 3).as_deref(), Ok(&b"abc"[..]));
        assert_eq!(read(&a, 3).as_deref(), Ok(&b"def"[..]));
        assert_eq!(read(&a, 3).as_deref(), Ok(&b"gh"[..]), "a short one: nothing is left");
        let writer = later(move || write(&b, b"more"));
        assert_eq!(read(&a, 3).as_deref(), Ok(&b"mor"[..]));
        assert_eq!(read(&a, 3).as_deref(), Ok(&b"e"[..]));
        assert_eq!(writer.join().expect("the writer"), Ok(4));
    });
}

#[test]
fn writes_go_on_until_all_is_written() {
    everywhere(|| {
        const LEN: usize = 5 << 20;
        let sent = pattern(LEN);
        let (a, b) = tcp_pair();
        let (pipe_out, pipe_in) = pipe(0);
        let (unix_out, unix_in) = unix_pair(libc::SOCK_STREAM);
        let pairs: Vec<(OwnedFd, OwnedFd)> =
            vec![(a.into(), b.into()), (pipe_out, pipe_in), (unix_out, unix_in)];
        for (from, to) in pairs {
            let reader = spawn(move || drain(std::fs::File::from(from), 10_007));
            assert_eq!(write(&to, &sent), Ok(LEN as i64));
            // 1,000 pieces: more than any stack copy holds.
            assert_eq!(writev(&to, &sent, LEN / 1000 + 1), Ok(LEN as i64));
            assert_eq!(writev(&to, &sent, LEN / 3), Ok(LEN as i64));
            drop(to);
            let received = reader.join().expect("the reader");
            assert_eq!(received.len(), 3 * LEN);
            assert!(received.chunks(LEN).all(|part| part == sent), "bytes in order");
        }
    });
}

#[test]
fn send_and_sendmsg_go_on_until_all_is_sent() {
    everywhere(|| {
        const LEN: usize = 5 << 20;
        let sent = pattern(LEN);
        let (a, b) = tcp_pair();
        let (unix_a, unix_b) = unix_pair(libc::SOCK_STREAM);
        let pairs: Vec<(OwnedFd, OwnedFd)> = vec![(a.into(), b.into()), (unix_a, unix_b)];
        for (from, to) in pairs {
            let reader = spawn(move || drain(std::fs::File::from(from), 65_536));
            assert_eq!(send(&to, &sent, QUIET), Ok(LEN as i64));
            let mut buffers: Vec<Vec<u8>> = sent.chunks(100_003).map(<[u8]>::to_vec).collect();
            let mut array = parts(&mut buffers);
            // SAFETY: zeroes are a msghdr.
            let mut message = unsafe { std::mem::zeroed::<libc::msghdr>() };
            message.msg_iov = array.as_mut_ptr();
            message.msg_iovlen = array.len() as _;
            // SAFETY: sendmsg(2) of live buffers.
            let n = unsafe { libc::sendmsg(to.as_raw_fd(), &message, QUIET) };
            assert_eq!(outcome(n), Ok(LEN as i64));
            assert_eq!(array[0].iov_len, 100_003, "the program's array is its own");
            drop(to);
            let received = reader.join().expect("the reader");
            assert!(received == [&sent[..], &sent[..]].concat(), "bytes in order");
        }
    });
}

#[test]
fn small_writes_to_a_full_pipe_are_not_torn() {
    everywhere(|| {
        let (from, to) = pipe(0);
        // SAFETY: fcntl(2) F_SETPIPE_SZ takes a number.
        outcome(unsafe { libc::fcntl(to.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) }).expect("a page");
        let to = std::sync::Arc::new(to);
        let writers: Vec<_> = (b'a'..b'e')
            .map(|letter| {
                let to = to.clone();
                spawn(move || {
                    for _ in 0..200 {
                        assert_eq!(write(&*to, &[letter; 1000]), Ok(1000));
                    }
                })
            })
            .collect();
        drop(to);
        let all = drain(std::fs::File::from(from), 1000);
        writers.into_iter().for_each(|w| w.join().expect("a writer"));
        assert_eq!(all.len(), 4 * 200 * 1000);
        assert!(all.chunks(1000).all(|c| c.iter().all(|b| *b == c[0])), "PIPE_BUF is atomic");
    });
}

#[test]
fn wait_all_waits_for_all() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        let (unix_a, unix_b) = unix_pair(libc::SOCK_STREAM);
        let pairs: Vec<(OwnedFd, OwnedFd)> = vec![(a.into(), b.into()), (unix_a, unix_b)];
        // A peek on a Unix socket ends with the first data all the same.
        for ((from, to), peeked) in pairs.into_iter().zip([6, 3]) {
            let writer = spawn(move || {
                for part in pattern(9).chunks(3) {
                    thread::sleep(SHORT);
                    assert_eq!(write(&to, part), Ok(3));
                }
                thread::sleep(SHORT);
                assert_eq!(write(&to, b"end"), Ok(3));
            });
            let all = libc::MSG_WAITALL;
            assert_eq!(recv(&from, 6, all | libc::MSG_PEEK), Ok(pattern(peeked)));
            assert_eq!(recv(&from, 9, all), Ok(pattern(9)));
            assert_eq!(recv(&from, 100, all).as_deref(), Ok(&b"end"[..]), "the end cuts it short");
            writer.join().expect("the writer");
        }
    });
}

#[test]
fn recvmsg_waits_for_all_over_several_buffers() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        let writer = spawn(move || {
            for part in pattern(40).chunks(7) {
                thread::sleep(Duration::from_millis(5));
                assert_eq!(write(&b, part), Ok(part.len() as i64));
            }
        });
        let mut buffers: Vec<Vec<u8>> = vec![vec![0; 3], vec![0; 17], vec![0; 20]];
        let mut array = parts(&mut buffers);
        // SAFETY: zeroes are a msghdr.
        let mut message = unsafe { std::mem::zeroed::<libc::msghdr>() };
        message.msg_iov = array.as_mut_ptr();
        message.msg_iovlen = array.len() as _;
        // SAFETY: recvmsg(2) into live buffers.
        let n = unsafe { libc::recvmsg(a.as_raw_fd(), &mut message, libc::MSG_WAITALL) };
        assert_eq!(outcome(n), Ok(40));
        assert_eq!(buffers.concat(), pattern(40));
        writer.join().expect("the writer");
    });
}

#[test]
fn low_water_mark_is_waited_for() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        set_option(&a, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &6);
        let writer = spawn(move || {
            for part in pattern(8).chunks(2) {
                assert_eq!(write(&b, part), Ok(2));
                thread::sleep(SHORT);
            }
            b
        });
        let got = read(&a, 100).expect("a read");
        assert!(got.len() >= 6, "{} bytes are below the mark", got.len());
        writer.join().expect("the writer");
    });
}

#[test]
fn peek_leaves_everything_where_it_is() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        let writer = later(move || write(&b, b"peek"));
        for _ in 0..3 {
            assert_eq!(recv(&a, 100, libc::MSG_PEEK).as_deref(), Ok(&b"peek"[..]));
        }
        assert_eq!(recv(&a, 100, 0).as_deref(), Ok(&b"peek"[..]));
        assert_eq!(writer.join().expect("the writer"), Ok(4));
    });
}

#[test]
fn program_that_asks_not_to_wait_does_not() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        assert_eq!(recv(&a, 10, libc::MSG_DONTWAIT), Err(libc::EAGAIN));
        set_nonblocking(&a, true);
        assert_eq!(read(&a, 10), Err(libc::EAGAIN));
        assert_eq!(recv(&a, 10, 0), Err(libc::EAGAIN));
        assert_eq!(readv(&a, &[4, 4]), Err(libc::EAGAIN));
        let full = pattern(1 << 20);
        let mut sent = 0;
        loop {
            match write(&a, &full) {
                Ok(n) => sent += n as usize,
                Err(code) => break assert_eq!(code, libc::EAGAIN),
            }
        }
        assert_eq!(writev(&a, b"xy", 1), Err(libc::EAGAIN));
        drop(a);
        assert_eq!(drain(b, 65_536).len(), sent, "what was accepted arrives");

        let (from, to) = pipe(libc::O_NONBLOCK);
        assert_eq!(read(&from, 10), Err(libc::EAGAIN));
        assert_eq!(readv(&from, &[4, 4]), Err(libc::EAGAIN));
        let n = write(&to, &full).expect("a part");
        assert!(n > 0 && (n as usize) < full.len(), "{n} of a pipe");
        assert_eq!(write(&to, b"x"), Err(libc::EAGAIN));
        set_nonblocking(&from, false);
        let on: c_int = 1;
        // SAFETY: ioctl(2) FIONBIO reads one int.
        outcome(unsafe { libc::ioctl(from.as_raw_fd(), libc::FIONBIO, &on) }).expect("FIONBIO");
        assert_eq!(read(&from, 1 << 21).expect("what was written").len(), n as usize);
        assert_eq!(read(&from, 10), Err(libc::EAGAIN));
    });
}

#[test]
fn timeouts_are_eagain_after_their_time() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        set_timeout(&a, libc::SO_RCVTIMEO, SHORT);
        set_timeout(&a, libc::SO_SNDTIMEO, SHORT);
        let timed = |call: &mut dyn FnMut() -> Result<(), c_int>| {
            let start = Instant::now();
            assert_eq!(call(), Err(libc::EAGAIN));
            assert!(start.elapsed() >= SHORT, "gave up after {:?}", start.elapsed());
        };
        timed(&mut || read(&a, 10).map(drop));
        timed(&mut || recv(&a, 10, 0).map(drop));
        timed(&mut || recv(&a, 10, libc::MSG_PEEK).map(drop));
        timed(&mut || readv(&a, &[1, 2]).map(drop));
        let clone = a.try_clone().expect("a duplicate");
        timed(&mut || read(&clone, 10).map(drop));

        // A send that times out after a part reports the part.
        let full = pattern(64 << 20);
        let sent = send(&a, &full, QUIET).expect("a part");
        assert!(sent > 0 && (sent as usize) < full.len(), "{sent} bytes");
        timed(&mut || {
            // The kernel may still find room for a little.
            while send(&a, &full, QUIET)? > 0 {}
            Ok(())
        });
        assert_eq!(write(&b, b"ab"), Ok(2));
        assert_eq!(recv(&a, 10, libc::MSG_WAITALL).as_deref(), Ok(&b"ab"[..]), "a part in time");
        set_timeout(&a, libc::SO_RCVTIMEO, Duration::ZERO);
        let writer = later(move || write(&b, b"x"));
        assert_eq!(read(&a, 10).as_deref(), Ok(&b"x"[..]), "no timeout any more");
        writer.join().expect("the writer").expect("a write");
    });
}

#[test]
fn peer_that_is_gone_is_epipe_or_reset() {
    everywhere(|| {
        let (from, to) = pipe(0);
        drop(from);
        assert_eq!(write(&to, b"x"), Err(libc::EPIPE));
        let (unix_a, unix_b) = unix_pair(libc::SOCK_STREAM);
        drop(unix_a);
        assert_eq!(write(&unix_b, b"x"), Err(libc::EPIPE));
        assert_eq!(writev(&unix_b, b"xy", 1), Err(libc::EPIPE));
        assert_eq!(send(&unix_b, b"x", QUIET), Err(libc::EPIPE));

        let (a, b) = tcp_pair();
        a.shutdown(Shutdown::Write).expect("a half close");
        assert_eq!(write(&a, b"x"), Err(libc::EPIPE));
        assert_eq!(read(&b, 10), Ok(vec![]));
        // Closed with data unread: a reset.
        assert_eq!(write(&b, b"unread"), Ok(6));
        assert_eq!(recv(&a, 1, libc::MSG_PEEK).as_deref(), Ok(&b"u"[..]));
        drop(a);
        let mut reset = read(&b, 10);
        while reset == Ok(vec![]) {
            reset = write(&b, b"x").map(|_| vec![]);
        }
        assert!([Err(libc::ECONNRESET), Err(libc::EPIPE)].contains(&reset), "{reset:?}");
    });
}

#[test]
fn peer_that_goes_away_ends_a_long_send_with_its_part() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        let full = pattern(64 << 20);
        let reader = later(move || {
            assert!(!read(&b, 1000).expect("a part").is_empty());
            drop(b);
        });
        let sent = send(&a, &full, QUIET).expect("a part");
        assert!(sent > 0 && (sent as usize) < full.len(), "{sent} bytes");
        reader.join().expect("the reader");
        assert_eq!(send(&a, &full, QUIET), Err(libc::ECONNRESET), "the next call has the error");
        assert_eq!(send(&a, &full, QUIET), Err(libc::EPIPE));
    });
}

#[test]
fn datagrams_keep_their_boundaries() {
    everywhere(|| {
        let a = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let b = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let to = a.local_addr().expect("its address");
        let writer = later(move || {
            b.send_to(b"first", to).expect("a datagram");
            b.send_to(b"", to).expect("an empty one");
            b.send_to(b"third", to).expect("another");
            b
        });
        let mut buffer = [0u8; 100];
        assert_eq!(a.recv_from(&mut buffer).expect("a datagram").0, 5);
        assert_eq!(readv(&a, &[0, 0]), Ok(vec![vec![], vec![]]), "readv of nothing asks nothing");
        assert_eq!(read(&a, 0), Ok(vec![]), "read of nothing asks nothing");
        assert_eq!(recv(&a, 100, libc::MSG_WAITALL), Ok(vec![]), "the empty datagram");
        assert_eq!(recv(&a, 2, libc::MSG_WAITALL).as_deref(), Ok(&b"th"[..]), "cut");
        assert_eq!(recv(&a, 100, libc::MSG_DONTWAIT), Err(libc::EAGAIN));
        writer.join().expect("the writer");
    });
}

#[test]
fn unix_datagrams_wait_for_room_in_the_receivers_queue() {
    everywhere(|| {
        let (a, b) = unix_pair(libc::SOCK_DGRAM);
        let writer = spawn(move || {
            for i in 0..2000u32 {
                assert_eq!(write(&b, &i.to_le_bytes()), Ok(4));
            }
        });
        for i in 0..2000u32 {
            assert_eq!(read(&a, 100), Ok(i.to_le_bytes().to_vec()));
        }
        writer.join().expect("the writer");
    });
}

#[test]
fn files_and_devices_are_read_as_ever() {
    everywhere(|| {
        let path = std::env::temp_dir().join(format!("sleave-libc-{}", std::process::id()));
        let mut file = std::fs::File::create_new(&path).expect("a file");
        file.write_all(&pattern(100_000)).expect("a write");
        assert_eq!(writev(&file, &pattern(999), 100), Ok(999));
        let again = std::fs::File::open(&path).expect("the file");
        assert_eq!(read(&again, 200_000).expect("a read").len(), 100_999);
        assert_eq!(read(&again, 10), Ok(vec![]));
        assert_eq!(write(&again, b"x"), Err(libc::EBADF), "opened for reading");
        std::fs::remove_file(&path).expect("the file");

        let null = std::fs::File::options().read(true).write(true).open("/dev/null").expect("null");
        assert_eq!(read(&null, 10), Ok(vec![]));
        assert_eq!(write(&null, b"gone"), Ok(4));
        let zero = std::fs::File::open("/dev/zero").expect("zero");
        assert_eq!(readv(&zero, &[3, 4]), Ok(vec![vec![0; 3], vec![0; 4]]));
        let folder = std::fs::File::open("/").expect("the root");
        assert_eq!(read(&folder, 10), Err(libc::EISDIR));
    });
}

#[test]
fn eventfds_and_timerfds_wait() {
    everywhere(|| {
        // SAFETY: eventfd(2) takes two numbers.
        let event = own(unsafe { libc::eventfd(0, 0) });
        let same = event.try_clone().expect("a duplicate");
        let writer = later(move || write(&same, &5u64.to_ne_bytes()));
        assert_eq!(read(&event, 8), Ok(5u64.to_ne_bytes().to_vec()));
        assert_eq!(writer.join().expect("the writer"), Ok(8));
        assert_eq!(read(&event, 4), Err(libc::EINVAL), "eight bytes or nothing");
        assert_eq!(write(&event, &[255; 8]), Err(libc::EINVAL));
        // Full: the next write waits until somebody reads.
        assert_eq!(write(&event, &(u64::MAX - 1).to_ne_bytes()), Ok(8));
        let same = event.try_clone().expect("a duplicate");
        let reader = later(move || read(&same, 8));
        assert_eq!(write(&event, &7u64.to_ne_bytes()), Ok(8));
        assert_eq!(reader.join().expect("the reader"), Ok((u64::MAX - 1).to_ne_bytes().to_vec()));
        assert_eq!(read(&event, 8), Ok(7u64.to_ne_bytes().to_vec()));

        // SAFETY: timerfd_create(2) takes two numbers.
        let timer = own(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) });
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = libc::timespec { tv_sec: 0, tv_nsec: SHORT.as_nanos() as i64 };
        let value = libc::itimerspec { it_interval: zero, it_value };
        let start = Instant::now();
        // SAFETY: timerfd_settime(2) reads one itimerspec; the old one is not wanted.
        let set =
            unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &value, std::ptr::null_mut()) };
        outcome(set).expect("timerfd_settime");
        assert_eq!(read(&timer, 8), Ok(1u64.to_ne_bytes().to_vec()));
        assert!(start.elapsed() >= SHORT);
    });
}

#[test]
fn fifos_are_pipes() {
    everywhere(|| {
        let path = std::env::temp_dir().join(format!("sleave-libc-fifo-{}", std::process::id()));
        let name = std::ffi::CString::new(path.to_str().expect("a name")).expect("no NUL");
        // SAFETY: mkfifo(3) reads a NUL-terminated name.
        outcome(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }).expect("a fifo");
        let both = std::fs::File::options().read(true).write(true).open(&path).expect("the fifo");
        let writer = std::fs::File::options().write(true).open(&path).expect("the fifo");
        std::fs::remove_file(&path).expect("the fifo");
        const LEN: usize = 1 << 20;
        let sender = later(move || {
            assert_eq!(write(&writer, &pattern(LEN)), Ok(LEN as i64));
            assert_eq!(writev(&writer, &pattern(LEN), 9_999), Ok(LEN as i64));
        });
        let mut all = Vec::new();
        while all.len() < 2 * LEN {
            all.extend(read(&both, 50_000).expect("a read"));
        }
        assert!(all == [pattern(LEN), pattern(LEN)].concat(), "bytes in order");
        sender.join().expect("the sender");
    });
}

#[test]
fn errors_are_the_kernels() {
    everywhere(|| {
        let nowhere = std::ptr::without_provenance_mut(8);
        let (a, b) = tcp_pair();
        let (from, to) = pipe(0);
        assert_eq!(write(&b, b"data"), Ok(4));
        assert_eq!(write(&to, b"data"), Ok(4));
        assert_eq!(read(&a, 2).as_deref(), Ok(&b"da"[..]), "there is something to fail on");
        // SAFETY: the kernel checks addresses and answers EFAULT; counts out of range are EINVAL
        // before any entry is looked at.
        unsafe {
            for fd in [a.as_raw_fd(), from.as_raw_fd()] {
                assert_eq!(outcome(libc::read(fd, nowhere, 9)), Err(libc::EFAULT));
                assert_eq!(outcome(libc::readv(fd, nowhere.cast(), 1)), Err(libc::EFAULT));
                assert_eq!(outcome(libc::readv(fd, nowhere.cast(), -1)), Err(libc::EINVAL));
                assert_eq!(outcome(libc::readv(fd, nowhere.cast(), 1025)), Err(libc::EINVAL));
                assert_eq!(outcome(libc::readv(fd, nowhere.cast(), 0)), Ok(0));
            }
            for fd in [a.as_raw_fd(), to.as_raw_fd()] {
                assert_eq!(outcome(libc::write(fd, nowhere, 9)), Err(libc::EFAULT));
                assert_eq!(outcome(libc::writev(fd, nowhere.cast(), 1)), Err(libc::EFAULT));
                assert_eq!(outcome(libc::writev(fd, nowhere.cast(), 1025)), Err(libc::EINVAL));
            }
            let fd = a.as_raw_fd();
            assert_eq!(outcome(libc::recv(fd, nowhere, 9, 0)), Err(libc::EFAULT));
            assert_eq!(outcome(libc::send(fd, nowhere, 9, QUIET)), Err(libc::EFAULT));
            assert_eq!(outcome(libc::recvmsg(fd, nowhere.cast(), 0)), Err(libc::EFAULT));
            assert_eq!(outcome(libc::sendmsg(fd, nowhere.cast(), QUIET)), Err(libc::EFAULT));
            assert_eq!(outcome(libc::recv(from.as_raw_fd(), nowhere, 9, 0)), Err(libc::ENOTSOCK));
            assert_eq!(outcome(libc::send(to.as_raw_fd(), nowhere, 9, 0)), Err(libc::ENOTSOCK));
            assert_eq!(outcome(libc::read(-1, nowhere, 9)), Err(libc::EBADF));
            assert_eq!(outcome(libc::write(-1, nowhere, 9)), Err(libc::EBADF));
            assert_eq!(outcome(libc::recv(-1, nowhere, 9, 0)), Err(libc::EBADF));
            assert_eq!(outcome(libc::send(-1, nowhere, 9, 0)), Err(libc::EBADF));
            assert_eq!(outcome(libc::readv(-1, nowhere.cast(), 1)), Err(libc::EBADF));
            assert_eq!(outcome(libc::writev(-1, nowhere.cast(), 1)), Err(libc::EBADF));
        }
        assert_eq!(recv(&a, 10, libc::MSG_OOB), Err(libc::EINVAL), "no urgent data");
        assert_eq!(recv(&a, 10, libc::MSG_ERRQUEUE), Err(libc::EAGAIN), "no queued errors");
        assert_eq!(read(&to, 1), Err(libc::EBADF), "the wrong end");
        assert_eq!(write(&from, b"x"), Err(libc::EBADF), "the wrong end");
        // SAFETY: socket(2) takes numbers.
        let fresh = own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) });
        assert_eq!(read(&fresh, 1), Err(libc::ENOTCONN));
        assert_eq!(send(&fresh, b"x", QUIET), Err(libc::EPIPE));
        // SAFETY: as above.
        let fresh = own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) });
        assert_eq!(write(&fresh, b"x"), Err(libc::EDESTADDRREQ));
    });
}

#[test]
fn fortified_names_do_the_same() {
    everywhere(|| {
        unsafe extern "C" {
            fn __read_chk(fd: c_int, buffer: *mut u8, len: usize, room: usize) -> isize;
            fn __recv_chk(
                fd: c_int,
                buffer: *mut u8,
                len: usize,
                room: usize,
                flags: c_int,
            ) -> isize;
            fn __recvfrom_chk(
                fd: c_int,
                buffer: *mut u8,
                len: usize,
                room: usize,
                flags: c_int,
                name: *mut libc::sockaddr,
                name_len: *mut libc::socklen_t,
            ) -> isize;
        }
        let (a, b) = tcp_pair();
        let fd = a.as_raw_fd();
        let mut buffer = [0u8; 16];
        let at = buffer.as_mut_ptr();
        let writer = later(move || write(&b, b"abcdef"));
        // SAFETY: read and recv into a buffer of 16 bytes.
        unsafe {
            assert_eq!(outcome(__read_chk(fd, at, 2, 16)), Ok(2));
            assert_eq!(outcome(__recv_chk(fd, at, 2, 16, 0)), Ok(2));
            let (name, len) = (std::ptr::null_mut(), std::ptr::null_mut());
            assert_eq!(outcome(__recvfrom_chk(fd, at, 16, 16, 0, name, len)), Ok(2));
        }
        assert_eq!(&buffer[..2], b"ef");
        assert_eq!(writer.join().expect("the writer"), Ok(6));
    });
}
