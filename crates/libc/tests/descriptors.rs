//! The numbers themselves on threads and on fibers: closing, duplicating, flags.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use support::{
    errno, everywhere, outcome, own, pipe, read, set_errno, set_nonblocking, set_timeout, spawn,
    status_flags, tcp_pair, write,
};

mod support;

fn close(fd: c_int) -> Result<i64, c_int> {
    // SAFETY: close(2) of a number that the test owns, or that names nothing.
    outcome(unsafe { libc::close(fd) })
}

/// A number that is certainly free: descriptors that others open are the lowest ones.
fn free_number(above: c_int) -> c_int {
    let (fd, _other) = pipe(libc::O_CLOEXEC);
    // SAFETY: fcntl(2) F_DUPFD_CLOEXEC takes a number.
    let fd = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
    let number = outcome(fd).expect("a number") as c_int;
    assert_eq!(close(number), Ok(0));
    number
}

#[test]
fn close_closes_once() {
    everywhere(|| {
        let number = free_number(500);
        let (from, _to) = pipe(libc::O_CLOEXEC);
        // SAFETY: dup3(2) takes numbers; this one is free.
        let fd = unsafe { libc::dup3(from.as_raw_fd(), number, libc::O_CLOEXEC) };
        assert_eq!(fd, number);
        set_errno(libc::EXDEV);
        assert_eq!(close(fd), Ok(0));
        assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
        assert_eq!(close(fd), Err(libc::EBADF));
        assert_eq!(close(-1), Err(libc::EBADF));
        assert_eq!(close(c_int::MAX), Err(libc::EBADF));
    });
}

#[test]
fn reused_number_has_none_of_the_old_ones_properties() {
    everywhere(|| {
        let number = free_number(600);
        let (a, _b) = tcp_pair();
        set_nonblocking(&a, true);
        set_timeout(&a, libc::SO_RCVTIMEO, Duration::from_millis(1));
        let (from, to) = pipe(libc::O_CLOEXEC);
        // SAFETY: dup3(2) takes numbers; this one is free, then a socket, then a pipe.
        unsafe {
            let first = libc::dup3(a.as_raw_fd(), number, libc::O_CLOEXEC);
            assert_eq!(first, number);
            let mut byte = 0u8;
            let at = (&raw mut byte).cast();
            assert_eq!(outcome(libc::read(number, at, 1)), Err(libc::EAGAIN));
            assert_eq!(libc::dup2(from.as_raw_fd(), number), number);
        }
        let same = own(number);
        let writer = spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            write(&to, b"pipe")
        });
        assert_eq!(read(&same, 100).as_deref(), Ok(&b"pipe"[..]), "it waits as a pipe does");
        assert_eq!(writer.join().expect("the writer"), Ok(4));
    });
}

/// Every way to duplicate a descriptor.
fn duplicates(fd: &impl AsRawFd, above: c_int) -> Vec<OwnedFd> {
    let fd = fd.as_raw_fd();
    // SAFETY: dup(2) and fcntl(2) take numbers; the targets are free.
    unsafe {
        vec![
            own(libc::dup(fd)),
            own(libc::dup2(fd, free_number(above))),
            own(libc::dup3(fd, free_number(above + 10), libc::O_CLOEXEC)),
            own(libc::fcntl(fd, libc::F_DUPFD, 3)),
            own(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3)),
        ]
    }
}

#[test]
fn duplicates_share_flags_and_timeouts() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        for other in duplicates(&a, 700) {
            set_nonblocking(&other, true);
            assert_ne!(status_flags(&a) & libc::O_NONBLOCK, 0);
            assert_eq!(read(&a, 1), Err(libc::EAGAIN));
            let off: c_int = 0;
            // SAFETY: ioctl(2) FIONBIO reads one int.
            outcome(unsafe { libc::ioctl(a.as_raw_fd(), libc::FIONBIO, &off) }).expect("FIONBIO");
            assert_eq!(status_flags(&other) & libc::O_NONBLOCK, 0);
            set_timeout(&a, libc::SO_RCVTIMEO, Duration::from_millis(20));
            let start = std::time::Instant::now();
            assert_eq!(read(&other, 1), Err(libc::EAGAIN));
            assert!(start.elapsed() >= Duration::from_millis(20));
            set_timeout(&other, libc::SO_RCVTIMEO, Duration::ZERO);
            assert_eq!(write(&b, b"!"), Ok(1));
            assert_eq!(read(&a, 1).as_deref(), Ok(&b"!"[..]));
        }
        assert_eq!(write(&b, b"still"), Ok(5));
        assert_eq!(read(&a, 9).as_deref(), Ok(&b"still"[..]), "closed duplicates close nothing");
    });
}

#[test]
fn dup2_onto_itself_changes_nothing() {
    everywhere(|| {
        let (from, to) = pipe(libc::O_CLOEXEC);
        let fd = from.as_raw_fd();
        // SAFETY: dup2(2), dup3(2) and fcntl(2) take numbers.
        unsafe {
            assert_eq!(outcome(libc::dup2(fd, fd)), Ok(i64::from(fd)));
            assert_eq!(outcome(libc::fcntl(fd, libc::F_GETFD)), Ok(i64::from(libc::FD_CLOEXEC)));
            assert_eq!(outcome(libc::dup3(fd, fd, 0)), Err(libc::EINVAL));
        }
        assert_eq!(write(&to, b"x"), Ok(1));
        assert_eq!(read(&from, 9).as_deref(), Ok(&b"x"[..]));
    });
}

#[test]
fn duplicating_errors_close_nothing() {
    everywhere(|| {
        let (from, to) = pipe(libc::O_CLOEXEC);
        let (fd, nothing) = (from.as_raw_fd(), free_number(800));
        // SAFETY: all take numbers.
        unsafe {
            assert_eq!(outcome(libc::dup(nothing)), Err(libc::EBADF));
            assert_eq!(outcome(libc::dup2(nothing, fd)), Err(libc::EBADF));
            assert_eq!(outcome(libc::dup2(fd, -1)), Err(libc::EBADF));
            assert_eq!(outcome(libc::dup2(fd, c_int::MAX)), Err(libc::EBADF));
            assert_eq!(outcome(libc::dup3(to.as_raw_fd(), fd, 12345)), Err(libc::EINVAL));
            assert_eq!(outcome(libc::fcntl(fd, libc::F_DUPFD, -1)), Err(libc::EINVAL));
            assert_eq!(outcome(libc::fcntl(nothing, libc::F_GETFL)), Err(libc::EBADF));
            assert_eq!(outcome(libc::fcntl(fd, 4711)), Err(libc::EINVAL));
            let on: c_int = 1;
            assert_eq!(outcome(libc::ioctl(nothing, libc::FIONBIO, &on)), Err(libc::EBADF));
        }
        assert_eq!(write(&to, b"x"), Ok(1));
        assert_eq!(read(&from, 9).as_deref(), Ok(&b"x"[..]), "the descriptor is still there");
    });
}

#[test]
fn fcntl_passes_numbers_and_pointers() {
    everywhere(|| {
        let (from, to) = pipe(libc::O_CLOEXEC);
        let page = 4096;
        // SAFETY: fcntl(2): F_SETPIPE_SZ takes a number, F_GETLK a `struct flock`; ioctl(2)
        // FIONREAD writes an int.
        unsafe {
            let size = libc::fcntl(to.as_raw_fd(), libc::F_SETPIPE_SZ, page);
            assert_eq!(outcome(size), Ok(i64::from(page)));
            let size = libc::fcntl(from.as_raw_fd(), libc::F_GETPIPE_SZ);
            assert_eq!(outcome(size), Ok(i64::from(page)));
            assert_eq!(write(&to, b"seven b"), Ok(7));
            let mut left: c_int = -1;
            outcome(libc::ioctl(from.as_raw_fd(), libc::FIONREAD, &mut left)).expect("FIONREAD");
            assert_eq!(left, 7);
            let file = std::fs::File::open("/proc/self/exe").expect("this program");
            let mut lock: libc::flock = std::mem::zeroed();
            lock.l_type = libc::F_RDLCK as _;
            outcome(libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock)).expect("F_GETLK");
            assert_eq!(c_int::from(lock.l_type), libc::F_UNLCK);
        }
    });
}

#[test]
fn files_that_std_opens_and_closes_work_on_reused_numbers() {
    everywhere(|| {
        for round in 0..20 {
            let (a, b) = tcp_pair();
            let number = a.as_raw_fd();
            assert_eq!(write(&b, b"x"), Ok(1));
            assert_eq!(read(&a, 9).as_deref(), Ok(&b"x"[..]));
            assert_eq!(close(a.into_raw_fd()), Ok(0));
            let file = std::fs::File::open("/proc/self/exe").expect("this program");
            let magic = read(&file, 4).expect("its magic number");
            assert_eq!(magic, b"\x7fELF", "round {round}, numbers {number} {}", file.as_raw_fd());
        }
    });
}
