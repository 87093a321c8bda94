//! Waiting for several descriptors on threads and on fibers.

use std::ffi::{c_int, c_short};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::null;
use std::thread;
use std::time::{Duration, Instant};

use libc::{nfds_t, pollfd, timespec};
use support::{errno, everywhere, outcome, pipe, set_errno, spawn, tcp_pair, write};

mod support;

const SHORT: Duration = Duration::from_millis(30);

fn entry(fd: RawFd, events: c_short) -> pollfd {
    pollfd { fd, events, revents: -1 }
}

fn poll(fds: &mut [pollfd], timeout: c_int) -> Result<i64, c_int> {
    // SAFETY: poll(2) on a slice.
    outcome(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as nfds_t, timeout) })
}

fn ppoll(fds: &mut [pollfd], timeout: Option<&timespec>) -> Result<i64, c_int> {
    let timeout = timeout.map_or(null(), |t| t as *const timespec);
    // SAFETY: ppoll(2) on a slice, with a timespec or none and no mask.
    outcome(unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as nfds_t, timeout, null()) })
}

#[test]
fn poll_waits_for_the_first_of_several() {
    everywhere(|| {
        let (from, _to) = pipe(0);
        let (a, b) = tcp_pair();
        let writer = spawn(move || {
            thread::sleep(SHORT);
            assert_eq!(write(&b, b"x"), Ok(1));
            b
        });
        let mut fds = [
            entry(from.as_raw_fd(), libc::POLLIN),
            entry(-1, libc::POLLIN),
            entry(a.as_raw_fd(), libc::POLLIN),
        ];
        set_errno(libc::EXDEV);
        assert_eq!(poll(&mut fds, -1), Ok(1));
        assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
        assert_eq!(fds.map(|f| f.revents), [0, 0, libc::POLLIN]);
        fds[2].events |= libc::POLLOUT;
        assert_eq!(poll(&mut fds, 10_000), Ok(1));
        assert_eq!(fds[2].revents, libc::POLLIN | libc::POLLOUT);
        writer.join().expect("the writer");
    });
}

#[test]
fn timeouts_take_their_time() {
    everywhere(|| {
        let (from, _to) = pipe(0);
        let mut fds = [entry(from.as_raw_fd(), libc::POLLIN)];
        let start = Instant::now();
        assert_eq!(poll(&mut fds, 30), Ok(0));
        assert!(start.elapsed() >= SHORT);
        assert_eq!(fds[0].revents, 0, "written even if nothing came");
        let start = Instant::now();
        let time = timespec { tv_sec: 0, tv_nsec: 30_000_000 };
        assert_eq!(ppoll(&mut fds, Some(&time)), Ok(0));
        assert!(start.elapsed() >= SHORT);
        assert_eq!(time.tv_nsec, 30_000_000, "the timeout is the program's");
        let start = Instant::now();
        assert_eq!(poll(&mut [], 30), Ok(0), "a sleep");
        assert!(start.elapsed() >= SHORT);
        assert_eq!(poll(&mut fds, 0), Ok(0));
    });
}

#[test]
fn hang_ups_and_bad_numbers_are_reported() {
    everywhere(|| {
        let (from, to) = pipe(0);
        drop(to);
        let mut fds = [entry(from.as_raw_fd(), 0), entry(100_000_000, libc::POLLIN)];
        assert_eq!(poll(&mut fds, -1), Ok(2));
        assert_eq!(fds.map(|f| f.revents), [libc::POLLHUP, libc::POLLNVAL]);
        assert_eq!(ppoll(&mut fds, None), Ok(2));
    });
}

#[test]
fn signal_mask_goes_to_the_kernel() {
    everywhere(|| {
        let (from, _to) = pipe(0);
        let mut fds = [entry(from.as_raw_fd(), libc::POLLIN)];
        let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let time = timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        // SAFETY: sigemptyset(3) fills the set; ppoll(2) reads it.
        let result = unsafe {
            libc::sigemptyset(mask.as_mut_ptr());
            libc::ppoll(fds.as_mut_ptr(), 1, &time, mask.as_ptr())
        };
        assert_eq!(outcome(result), Ok(0));
    });
}

#[test]
fn errors_are_the_kernels() {
    everywhere(|| {
        let nowhere = std::ptr::without_provenance_mut(8);
        let mut fds = [entry(-1, 0)];
        // SAFETY: the kernel checks the array and answers EFAULT; too many entries are EINVAL before
        // the array is looked at.
        unsafe {
            assert_eq!(outcome(libc::poll(nowhere, 1, -1)), Err(libc::EFAULT));
            assert_eq!(outcome(libc::poll(nowhere, nfds_t::from(u32::MAX), -1)), Err(libc::EINVAL));
        }
        for (tv_sec, tv_nsec) in [(0, 1_000_000_000), (-1, 0), (0, -1)] {
            let time = timespec { tv_sec, tv_nsec };
            assert_eq!(ppoll(&mut fds, Some(&time)), Err(libc::EINVAL));
        }
    });
}

#[test]
fn fortified_poll_does_the_same() {
    everywhere(|| {
        unsafe extern "C" {
            fn __poll_chk(fds: *mut pollfd, count: nfds_t, timeout: c_int, room: usize) -> c_int;
        }
        let (_from, to) = pipe(0);
        let mut fds = [entry(to.as_raw_fd(), libc::POLLOUT)];
        // SAFETY: an array of one entry.
        let found = unsafe { __poll_chk(fds.as_mut_ptr(), 1, -1, size_of_val(&fds)) };
        assert_eq!((outcome(found), fds[0].revents), (Ok(1), libc::POLLOUT));
    });
}
