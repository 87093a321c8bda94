//! Moving bytes between descriptors on threads and on fibers: `sendfile splice tee vmsplice`.

use std::ffi::{c_int, c_uint};
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::null_mut;
use std::thread;
use std::time::Duration;

use support::{
    errno, everywhere, outcome, own, pattern, pipe, read, recv, set_errno, set_nonblocking,
    set_option, set_timeout, spawn, tcp_pair, unix_pair, write,
};

mod support;

const SHORT: Duration = Duration::from_millis(30);
const NONBLOCK: c_uint = libc::SPLICE_F_NONBLOCK;

/// A file in memory with these bytes, at its beginning.
fn file(bytes: &[u8]) -> std::fs::File {
    // SAFETY: memfd_create(2) with a NUL-terminated name.
    let fd = own(unsafe { libc::memfd_create(c"bytes".as_ptr(), libc::MFD_CLOEXEC) });
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes).expect("a file in memory");
    file.rewind().expect("its beginning");
    file
}

fn sendfile(to: &impl AsRawFd, from: &impl AsRawFd, len: usize) -> Result<i64, c_int> {
    // SAFETY: sendfile(2) without an offset.
    outcome(unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), null_mut(), len) })
}

fn splice(from: &impl AsRawFd, to: &impl AsRawFd, len: usize, flags: c_uint) -> Result<i64, c_int> {
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: splice(2) without offsets.
    outcome(unsafe { libc::splice(from, null_mut(), to, null_mut(), len, flags) })
}

fn tee(from: &impl AsRawFd, to: &impl AsRawFd, len: usize, flags: c_uint) -> Result<i64, c_int> {
    // SAFETY: tee(2) takes numbers.
    outcome(unsafe { libc::tee(from.as_raw_fd(), to.as_raw_fd(), len, flags) })
}

/// Reads everything, beginning a little later.
fn drains(from: impl AsRawFd + Send + 'static) -> support::JoinHandle<Vec<u8>> {
    spawn(move || {
        thread::sleep(SHORT);
        let mut all = Vec::new();
        loop {
            match read(&from, 30_000).expect("bytes or the end") {
                bytes if bytes.is_empty() => return all,
                bytes => all.extend(bytes),
            }
        }
    })
}

/// Writes later, and keeps the end open for the caller.
fn writes_soon(to: OwnedFd, bytes: &'static [u8]) -> support::JoinHandle<OwnedFd> {
    spawn(move || {
        thread::sleep(SHORT);
        assert_eq!(write(&to, bytes), Ok(bytes.len() as i64));
        to
    })
}

#[test]
fn sendfile_sends_all_to_a_slow_stream() {
    everywhere(|| {
        let bytes = pattern(5_000_000);
        let pairs: [fn() -> (OwnedFd, OwnedFd); 2] = [
            || {
                let (a, b) = tcp_pair();
                (a.into(), b.into())
            },
            || unix_pair(libc::SOCK_STREAM),
        ];
        for pair in pairs {
            let ((a, b), mut file) = (pair(), file(&bytes));
            let reader = drains(b);
            set_errno(libc::EXDEV);
            assert_eq!(sendfile(&a, &file, bytes.len() + 1000), Ok(bytes.len() as i64));
            assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
            assert_eq!(file.stream_position().ok(), Some(bytes.len() as u64));
            assert_eq!(sendfile(&a, &file, 1000), Ok(0), "the end of the file");
            drop(a);
            assert!(reader.join().expect("the reader") == bytes);
        }
    });
}

#[test]
fn sendfile_reports_a_part_when_the_time_is_over() {
    everywhere(|| {
        let bytes = pattern(30_000_000);
        let ((a, b), mut file) = (tcp_pair(), file(&bytes));
        set_timeout(&a, libc::SO_SNDTIMEO, SHORT);
        let mut sent = 0;
        // The buffers may grow meanwhile, and take some more.
        let end = loop {
            match sendfile(&a, &file, bytes.len()) {
                Ok(part) => sent += part,
                Err(error) => break error,
            }
            assert!((1..bytes.len() as i64).contains(&sent), "{sent}");
            assert_eq!(file.stream_position().ok(), Some(sent as u64), "no byte is lost");
        };
        assert_eq!(end, libc::EAGAIN);
        let reader = drains(b);
        set_timeout(&a, libc::SO_SNDTIMEO, Duration::ZERO);
        assert_eq!(sendfile(&a, &file, bytes.len()), Ok(bytes.len() as i64 - sent));
        drop(a);
        assert!(reader.join().expect("the reader") == bytes);
    });
}

#[test]
fn sendfile_takes_an_offset_and_leaves_the_position() {
    everywhere(|| {
        let ((a, b), mut file) = (tcp_pair(), file(b"0123456789"));
        let mut offset = 3;
        // SAFETY: sendfile(2) with an offset of ours.
        let sent = unsafe { libc::sendfile(a.as_raw_fd(), file.as_raw_fd(), &mut offset, 4) };
        assert_eq!((outcome(sent), offset), (Ok(4), 7));
        assert_eq!(file.stream_position().ok(), Some(0));
        assert_eq!(recv(&b, 10, 0).as_deref(), Ok(&b"3456"[..]));
    });
}

#[test]
fn sendfile_waits_for_room_in_a_pipe() {
    everywhere(|| {
        let ((from, to), file) = (pipe(0), file(&pattern(3_000_000)));
        let mut sent = sendfile(&to, &file, 3_000_000).expect("what the pipe takes");
        assert!((1..3_000_000).contains(&sent));
        let reader = drains(from);
        while sent < 3_000_000 {
            let more = sendfile(&to, &file, 3_000_000).expect("more");
            assert!(more > 0, "it waits for room");
            sent += more;
        }
        drop(to);
        assert!(reader.join().expect("the reader") == pattern(3_000_000));
    });
}

#[test]
fn sendfile_refuses_what_the_kernel_refuses() {
    everywhere(|| {
        let ((from, to), (a, b), mut file) = (pipe(0), tcp_pair(), file(b"file"));
        assert_eq!(sendfile(&from, &file, 1), Err(libc::EBADF), "not open for writing");
        assert_eq!(sendfile(&a, &b, 1), Err(libc::EINVAL), "not a file");
        assert_eq!(sendfile(&a, &to, 1), Err(libc::EBADF), "not open for reading");
        assert_eq!(sendfile(&a, &file, 0), Ok(0));
        struct Nothing;
        impl AsRawFd for Nothing {
            fn as_raw_fd(&self) -> RawFd {
                -1
            }
        }
        assert_eq!(sendfile(&a, &Nothing, 1), Err(libc::EBADF));
        assert_eq!(sendfile(&Nothing, &file, 1), Err(libc::EBADF));
        let mut offset = -1;
        // SAFETY: sendfile(2) with an offset of ours.
        let sent = unsafe { libc::sendfile(a.as_raw_fd(), file.as_raw_fd(), &mut offset, 4) };
        assert_eq!(outcome(sent), Err(libc::EINVAL));
        drop(b);
        set_nonblocking(&a, true);
        while sendfile(&a, &file, 4) != Err(libc::EPIPE) {
            file.rewind().expect("its beginning");
        }
    });
}

#[test]
fn splice_waits_for_a_pipe_and_for_a_socket() {
    everywhere(|| {
        let ((from, to), (other_from, other_to)) = (pipe(0), pipe(0));
        let writer = writes_soon(to, b"pipe");
        set_errno(libc::EXDEV);
        assert_eq!(splice(&from, &other_to, 100, 0), Ok(4));
        assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
        assert_eq!(read(&other_from, 9).as_deref(), Ok(&b"pipe"[..]));
        let (a, b) = unix_pair(libc::SOCK_STREAM);
        let other = writes_soon(b, b"socket");
        assert_eq!(splice(&a, &other_to, 100, 0), Ok(6));
        assert_eq!(read(&other_from, 9).as_deref(), Ok(&b"socket"[..]));
        let (a, b) = tcp_pair();
        let tcp = writes_soon(b.into(), b"tcp");
        assert_eq!(splice(&a, &other_to, 100, libc::SPLICE_F_MORE), Ok(3));
        assert_eq!(read(&other_from, 9).as_deref(), Ok(&b"tcp"[..]));
        drop(tcp.join().expect("the writer"));
        assert_eq!(splice(&a, &other_to, 100, 0), Ok(0), "the end");
        drop(writer.join().expect("the writer"));
        assert_eq!(splice(&from, &other_to, 100, 0), Ok(0), "the end");
        other.join().expect("the writer");
    });
}

#[test]
fn splice_to_a_socket_takes_all_that_the_pipe_has() {
    everywhere(|| {
        let ((from, to), (a, b)) = (pipe(0), unix_pair(libc::SOCK_STREAM));
        // SAFETY: fcntl(2) F_SETPIPE_SZ takes a number.
        outcome(unsafe { libc::fcntl(to.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 20) }).expect("room");
        let small: c_int = 1;
        set_option(&a, libc::SOL_SOCKET, libc::SO_SNDBUF, &small);
        let bytes = pattern(500_000);
        assert_eq!(write(&to, &bytes), Ok(500_000));
        let reader = drains(b);
        assert_eq!(splice(&from, &a, 600_000, 0), Ok(500_000));
        drop(a);
        assert!(reader.join().expect("the reader") == bytes);
    });
}

#[test]
fn splice_moves_a_stream_through_a_pipe() {
    const ALL: usize = 3_000_000;
    everywhere(|| {
        let ((a, b), (c, d), (from, to)) = (tcp_pair(), tcp_pair(), pipe(0));
        let source = spawn(move || {
            let bytes = pattern(ALL);
            assert_eq!(write(&a, &bytes), Ok(ALL as i64));
        });
        let sink = drains(d);
        let mut moved = 0;
        loop {
            let got = splice(&b, &to, 1 << 16, 0).expect("bytes or the end");
            if got == 0 {
                break;
            }
            assert_eq!(splice(&from, &c, got as usize, 0), Ok(got));
            moved += got;
        }
        assert_eq!(moved, ALL as i64);
        drop(c);
        source.join().expect("the source");
        assert!(sink.join().expect("the sink") == pattern(ALL));
    });
}

#[test]
fn std_io_copy_between_pipe_and_socket_arrives() {
    everywhere(|| {
        let (from, to) = pipe(0);
        let (mut near, far) = UnixStream::pair().expect("a pair");
        let source = spawn(move || {
            for chunk in pattern(1_000_000).chunks(50_000) {
                assert_eq!(write(&to, chunk), Ok(chunk.len() as i64));
            }
        });
        let sink = drains(far);
        let mut from = std::fs::File::from(from);
        assert_eq!(std::io::copy(&mut from, &mut near).ok(), Some(1_000_000));
        drop(near);
        source.join().expect("the source");
        assert!(sink.join().expect("the sink") == pattern(1_000_000));
    });
}

#[test]
fn splice_does_not_wait_where_it_is_told_not_to() {
    everywhere(|| {
        let ((from, to), (_other_from, other_to)) = (pipe(0), pipe(0));
        assert_eq!(splice(&from, &other_to, 9, NONBLOCK), Err(libc::EAGAIN));
        assert_eq!(tee(&from, &other_to, 9, NONBLOCK), Err(libc::EAGAIN));
        set_nonblocking(&from, true);
        assert_eq!(splice(&from, &other_to, 9, 0), Err(libc::EAGAIN));
        let (a, _b) = tcp_pair();
        set_nonblocking(&a, true);
        assert_eq!(splice(&a, &to, 9, 0), Err(libc::EAGAIN));
        set_nonblocking(&a, false);
        set_timeout(&a, libc::SO_RCVTIMEO, SHORT);
        assert_eq!(splice(&a, &to, 9, 0), Err(libc::EAGAIN), "its time is over");
    });
}

#[test]
fn splice_refuses_what_the_kernel_refuses() {
    everywhere(|| {
        let ((from, to), (a, b), file) = (pipe(0), tcp_pair(), file(b"file"));
        assert_eq!(splice(&a, &b, 9, 0), Err(libc::EINVAL), "no pipe");
        assert_eq!(splice(&to, &a, 9, 0), Err(libc::EBADF), "not open for reading");
        assert_eq!(splice(&file, &from, 9, 0), Err(libc::EBADF), "not open for writing");
        assert_eq!(splice(&from, &to, 9, 0), Err(libc::EINVAL), "the same pipe");
        assert_eq!(splice(&from, &a, 9, 1 << 20), Err(libc::EINVAL), "no such flag");
        assert_eq!(splice(&from, &a, 0, 0), Ok(0));
        let mut offset = 0;
        let (read_end, fd) = (from.as_raw_fd(), a.as_raw_fd());
        // SAFETY: splice(2) with an offset of ours.
        let moved = unsafe { libc::splice(read_end, &mut offset, fd, null_mut(), 9, 0) };
        assert_eq!(outcome(moved), Err(libc::ESPIPE));
        assert_eq!(tee(&from, &a, 9, 0), Err(libc::EINVAL));
        // SAFETY: as above; a file has an offset.
        let moved = unsafe {
            libc::splice(file.as_raw_fd(), &mut offset, to.as_raw_fd(), null_mut(), 3, 0)
        };
        assert_eq!((outcome(moved), offset), (Ok(3), 3));
        drop(from);
        let (other_from, other_to) = pipe(0);
        assert_eq!(write(&other_to, b"x"), Ok(1));
        assert_eq!(splice(&other_from, &to, 1, 0), Err(libc::EPIPE));
    });
}

#[test]
fn tee_waits_for_either_pipe_and_takes_nothing() {
    everywhere(|| {
        let ((from, to), (other_from, other_to)) = (pipe(0), pipe(0));
        let writer = writes_soon(to, b"tea");
        assert_eq!(tee(&from, &other_to, 100, 0), Ok(3));
        assert_eq!(read(&from, 9).as_deref(), Ok(&b"tea"[..]));
        assert_eq!(read(&other_from, 9).as_deref(), Ok(&b"tea"[..]));
        let to = writer.join().expect("the writer");
        assert_eq!(write(&to, b"more"), Ok(4));
        set_nonblocking(&other_to, true);
        while write(&other_to, &[0; 4096]).is_ok() {}
        set_nonblocking(&other_to, false);
        let reader = spawn(move || {
            thread::sleep(SHORT);
            read(&other_from, 70_000).expect("what filled it");
            other_from
        });
        assert_eq!(tee(&from, &other_to, 100, 0), Ok(4));
        reader.join().expect("the reader");
    });
}

#[test]
fn vmsplice_waits_for_room_and_for_bytes() {
    everywhere(|| {
        let (from, to) = pipe(0);
        let bytes = pattern(4096);
        let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: vmsplice(2) of an array of one, over bytes that outlive the pipe.
        let put = |flags| outcome(unsafe { libc::vmsplice(to.as_raw_fd(), &part, 1, flags) });
        let mut count = 0;
        while let Ok(n) = put(NONBLOCK) {
            assert_eq!(n, 4096);
            count += 1;
        }
        assert_eq!(put(NONBLOCK), Err(libc::EAGAIN));
        let reader = spawn(move || {
            thread::sleep(SHORT);
            let all = read(&from, 4096 * count).expect("bytes");
            (all.len(), from)
        });
        assert_eq!(put(0), Ok(4096), "it waits for room");
        let (len, from) = reader.join().expect("the reader");
        assert_eq!(len, 4096 * count);
        let mut into = [0u8; 4096];
        let place = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        // SAFETY: vmsplice(2) into a buffer of ours.
        let take = || outcome(unsafe { libc::vmsplice(from.as_raw_fd(), &place, 1, 0) });
        assert_eq!(take(), Ok(4096));
        assert_eq!(into[..], bytes[..]);
        let writer = writes_soon(to, b"bytes");
        assert_eq!(take(), Ok(5), "it waits for bytes");
        writer.join().expect("the writer");
    });
}
