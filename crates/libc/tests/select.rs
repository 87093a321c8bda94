//! Waiting for sets of descriptors on threads and on fibers.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::{null, null_mut};
use std::thread;
use std::time::{Duration, Instant};

use libc::{fd_set, timespec, timeval};
use support::{
    errno, everywhere, outcome, own, pipe, read, set_errno, spawn, tcp_pair, unix_pair, write,
};

mod support;

const SHORT: Duration = Duration::from_millis(30);

/// A set of these numbers.
fn set(fds: &[RawFd]) -> fd_set {
    let mut set = MaybeUninit::<fd_set>::uninit();
    // SAFETY: FD_ZERO(3) fills the set; the tests' numbers are below FD_SETSIZE.
    unsafe {
        libc::FD_ZERO(set.as_mut_ptr());
        fds.iter().for_each(|&fd| libc::FD_SET(fd, set.as_mut_ptr()));
        set.assume_init()
    }
}

/// The numbers in a set.
fn members(set: &fd_set) -> Vec<RawFd> {
    // SAFETY: FD_ISSET(3) for numbers below FD_SETSIZE.
    (0..1024).filter(|&fd| unsafe { libc::FD_ISSET(fd, set) }).collect()
}

fn at(set: &mut Option<fd_set>) -> *mut fd_set {
    set.as_mut().map_or(null_mut(), |set| set as *mut fd_set)
}

/// What `select` leaves of three sets, and its result.
fn select(
    count: c_int,
    mut sets: [Option<fd_set>; 3],
    timeout: Option<&mut timeval>,
) -> (Result<i64, c_int>, [Vec<RawFd>; 3]) {
    let timeout = timeout.map_or(null_mut(), |t| t as *mut timeval);
    let [read, write, except] = sets.each_mut().map(at);
    // SAFETY: select(2) on sets and a timeout of ours, or none.
    let result = outcome(unsafe { libc::select(count, read, write, except, timeout) });
    (result, sets.each_ref().map(|set| set.as_ref().map_or(Vec::new(), members)))
}

fn readable(fds: &[RawFd], timeout: Option<&mut timeval>) -> (Result<i64, c_int>, Vec<RawFd>) {
    let count = fds.iter().max().map_or(0, |max| max + 1);
    let (result, [read, ..]) = select(count, [Some(set(fds)), None, None], timeout);
    (result, read)
}

fn time(millis: i64) -> timeval {
    timeval { tv_sec: millis / 1000, tv_usec: millis % 1000 * 1000 }
}

/// Writes a byte a little later.
fn writes_soon(to: OwnedFd) -> support::JoinHandle<OwnedFd> {
    spawn(move || {
        thread::sleep(SHORT);
        assert_eq!(write(&to, b"x"), Ok(1));
        to
    })
}

#[test]
fn select_waits_for_the_first_of_several() {
    everywhere(|| {
        let ((from, to), (a, _b)) = (pipe(0), tcp_pair());
        let writer = writes_soon(to);
        set_errno(libc::EXDEV);
        let fds = [from.as_raw_fd(), a.as_raw_fd()];
        assert_eq!(readable(&fds, None), (Ok(1), vec![from.as_raw_fd()]));
        assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
        let (all, fd) = (fds[0].max(fds[1]) + 1, a.as_raw_fd());
        let sets = [Some(set(&fds)), Some(set(&[fd])), Some(set(&fds))];
        let found = select(all, sets, Some(&mut time(10_000)));
        assert_eq!(found, (Ok(2), [vec![from.as_raw_fd()], vec![fd], vec![]]), "bits are counted");
        writer.join().expect("the writer");
    });
}

#[test]
fn time_left_is_written_back() {
    everywhere(|| {
        let (from, to) = pipe(0);
        let writer = writes_soon(to);
        let mut left = time(10_000);
        assert_eq!(readable(&[from.as_raw_fd()], Some(&mut left)).0, Ok(1));
        let left = Duration::new(left.tv_sec as u64, left.tv_usec as u32 * 1000);
        assert!(left <= Duration::from_secs(10) - SHORT + Duration::from_millis(1), "{left:?}");
        assert!(left > Duration::ZERO, "{left:?}");
        drop(writer.join().expect("the writer"));
        read(&from, 1).expect("the byte");
        let (from, _to) = pipe(0);
        let start = Instant::now();
        let mut left = time(30);
        assert_eq!(readable(&[from.as_raw_fd()], Some(&mut left)), (Ok(0), vec![]));
        assert!(start.elapsed() >= SHORT);
        assert_eq!((left.tv_sec, left.tv_usec), (0, 0), "nothing is left");
        assert_eq!(readable(&[from.as_raw_fd()], Some(&mut time(0))), (Ok(0), vec![]));
    });
}

#[test]
fn select_without_sets_sleeps() {
    everywhere(|| {
        let start = Instant::now();
        assert_eq!(select(0, [None; 3], Some(&mut time(30))).0, Ok(0));
        assert!(start.elapsed() >= SHORT);
        // More than a million microseconds are as good.
        let mut long = timeval { tv_sec: 0, tv_usec: 1_030_000 };
        let start = Instant::now();
        assert_eq!(select(0, [None; 3], Some(&mut long)).0, Ok(0));
        assert!(start.elapsed() >= Duration::from_secs(1) + SHORT);
    });
}

#[test]
fn pselect_keeps_its_timeout() {
    everywhere(|| {
        let (from, _to) = pipe(0);
        let mut fds = set(&[from.as_raw_fd()]);
        let time = timespec { tv_sec: 0, tv_nsec: 30_000_000 };
        let start = Instant::now();
        let count = from.as_raw_fd() + 1;
        // SAFETY: pselect(2) on a set and a timeout of ours.
        let result =
            unsafe { libc::pselect(count, &mut fds, null_mut(), null_mut(), &time, null()) };
        assert_eq!((outcome(result), members(&fds)), (Ok(0), vec![]));
        assert!(start.elapsed() >= SHORT);
        assert_eq!(time.tv_nsec, 30_000_000);
    });
}

#[test]
fn masks_are_taken_whether_or_not_they_let_signals_in() {
    everywhere(|| {
        let (from, _to) = pipe(0);
        let time = timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset(3) and sigfillset(3) fill the set, pthread_sigmask(3) writes the old
        // one, pselect(2) reads it.
        let select = |mask: *const libc::sigset_t| unsafe {
            let mut fds = set(&[from.as_raw_fd()]);
            let count = from.as_raw_fd() + 1;
            outcome(libc::pselect(count, &mut fds, null_mut(), null_mut(), &time, mask))
        };
        // SAFETY: as above.
        unsafe {
            libc::sigemptyset(mask.as_mut_ptr());
            assert_eq!(select(mask.as_ptr()), Ok(0));
            libc::sigfillset(mask.as_mut_ptr());
            assert_eq!(select(mask.as_ptr()), Ok(0));
            libc::pthread_sigmask(libc::SIG_BLOCK, null(), mask.as_mut_ptr());
            assert_eq!(select(mask.as_ptr()), Ok(0));
        }
    });
}

#[test]
fn errors_are_the_kernels_and_leave_the_sets_alone() {
    everywhere(|| {
        let (from, _to) = pipe(0);
        let fd = from.as_raw_fd();
        assert_eq!(select(-1, [None; 3], None).0, Err(libc::EINVAL));
        for (tv_sec, tv_usec) in [(-1, 0), (0, -1)] {
            let mut bad = timeval { tv_sec, tv_usec };
            assert_eq!(readable(&[fd], Some(&mut bad)), (Err(libc::EINVAL), vec![fd]));
            assert_eq!((bad.tv_sec, bad.tv_usec), (tv_sec, tv_usec));
        }
        for (tv_sec, tv_nsec) in [(-1, 0), (0, 1_000_000_000)] {
            let time = timespec { tv_sec, tv_nsec };
            // SAFETY: pselect(2) without sets.
            let result =
                unsafe { libc::pselect(0, null_mut(), null_mut(), null_mut(), &time, null()) };
            assert_eq!(outcome(result), Err(libc::EINVAL));
        }
        // SAFETY: dup2(2) and close(2) of numbers that nobody else uses.
        let number = unsafe {
            let number = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 950);
            libc::close(number);
            number
        };
        let bad = readable(&[fd, number], None);
        assert_eq!(bad, (Err(libc::EBADF), vec![fd, number]));
    });
}

#[test]
fn hang_up_of_a_writer_is_readable_and_no_exception() {
    everywhere(|| {
        let (from, to) = pipe(0);
        let fd = from.as_raw_fd();
        drop(to);
        assert_eq!(readable(&[fd], None), (Ok(1), vec![fd]));
        // poll would report the hang-up at once; select waits, and does not spin.
        let start = Instant::now();
        let found = select(fd + 1, [None, None, Some(set(&[fd]))], Some(&mut time(30)));
        assert_eq!(found, (Ok(0), [vec![], vec![], vec![]]));
        assert!(start.elapsed() >= SHORT);
    });
}

#[test]
fn urgent_data_is_an_exception() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        let fd = a.as_raw_fd();
        let writer = spawn(move || {
            thread::sleep(SHORT);
            assert_eq!(support::send(&b, b"!", libc::MSG_OOB), Ok(1));
            b
        });
        let found = select(fd + 1, [None, None, Some(set(&[fd]))], Some(&mut time(20_000)));
        assert_eq!(found, (Ok(1), [vec![], vec![], vec![fd]]));
        writer.join().expect("the writer");
    });
}

#[test]
fn bits_beyond_the_count_are_ignored() {
    everywhere(|| {
        let ((low, to), (b, _c)) = (pipe(0), unix_pair(libc::SOCK_STREAM));
        // SAFETY: fcntl(2) F_DUPFD takes numbers.
        let high = own(unsafe { libc::fcntl(b.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 900) });
        let (low_fd, high_fd) = (low.as_raw_fd(), high.as_raw_fd());
        let writer = writes_soon(to);
        let sets = [Some(set(&[low_fd])), Some(set(&[high_fd])), None];
        let (result, [read, _, _]) = select(low_fd + 1, sets, None);
        assert_eq!((result, read), (Ok(1), vec![low_fd]), "the other could be written");
        writer.join().expect("the writer");
    });
}

#[test]
fn sets_larger_than_an_fd_set_serve_numbers_beyond_it() {
    everywhere(|| {
        let (from, to) = pipe(0);
        // SAFETY: fcntl(2) F_DUPFD takes numbers.
        let high = unsafe { libc::fcntl(from.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3000) };
        let high = own(high);
        let fd = high.as_raw_fd() as usize;
        let mut bits = vec![0u64; fd / 64 + 1];
        bits[fd / 64] |= 1 << (fd % 64);
        let writer = writes_soon(to);
        let sets = bits.as_mut_ptr().cast();
        let before = bits.clone();
        // SAFETY: select(2) on a set with room for the number.
        let result =
            unsafe { libc::select(fd as c_int + 1, sets, null_mut(), null_mut(), null_mut()) };
        assert_eq!((outcome(result), &bits), (Ok(1), &before));
        writer.join().expect("the writer");
    });
}

#[test]
fn closing_a_member_ends_the_wait_of_a_fiber() {
    everywhere(|| {
        if !support::in_fiber() {
            return;
        }
        let (from, _to) = pipe(0);
        let fd = from.as_raw_fd();
        let closer = spawn(move || {
            thread::sleep(SHORT);
            drop(from);
        });
        assert_eq!(readable(&[fd], None), (Err(libc::EBADF), vec![fd]));
        closer.join().expect("the closer");
    });
}

#[test]
fn many_wait_for_the_same_descriptor() {
    everywhere(|| {
        let (from, to) = pipe(0);
        let fd = from.as_raw_fd();
        let waiters: Vec<_> = (0..50).map(|_| spawn(move || readable(&[fd], None))).collect();
        let writer = writes_soon(to);
        for waiter in waiters {
            assert_eq!(waiter.join().expect("a waiter"), (Ok(1), vec![fd]));
        }
        writer.join().expect("the writer");
    });
}
