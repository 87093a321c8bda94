//! epoll instances on threads and on fibers: events, levels and edges, several who wait, nesting.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libc::{epoll_event, timespec};
use support::{errno, everywhere, outcome, own, pipe, read, set_errno, spawn, tcp_pair, write};

mod support;

const SHORT: Duration = Duration::from_millis(30);
const IN: u32 = libc::EPOLLIN as u32;
const EDGE: u32 = libc::EPOLLET as u32;
const ONCE: u32 = libc::EPOLLONESHOT as u32;

fn instance() -> OwnedFd {
    // SAFETY: epoll_create1(2) takes a flag.
    own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

fn control(epoll: &impl AsRawFd, op: c_int, fd: &impl AsRawFd, events: u32, name: u64) {
    let mut event = epoll_event { events, u64: name };
    // SAFETY: epoll_ctl(2) reads one event.
    let result = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), op, fd.as_raw_fd(), &mut event) };
    outcome(result).expect("epoll_ctl");
}

fn add(epoll: &impl AsRawFd, fd: &impl AsRawFd, events: u32, name: u64) {
    control(epoll, libc::EPOLL_CTL_ADD, fd, events, name);
}

/// The names and events that `epoll_wait` reports, in the order of their names.
fn wait(epoll: &impl AsRawFd, max: usize, timeout: c_int) -> Result<Vec<(u64, u32)>, c_int> {
    let mut events = vec![epoll_event { events: 0, u64: 0 }; max.max(1)];
    let (fd, at) = (epoll.as_raw_fd(), events.as_mut_ptr());
    // SAFETY: epoll_wait(2) writes at most `max` events.
    let count = outcome(unsafe { libc::epoll_wait(fd, at, max as c_int, timeout) })?;
    let mut found: Vec<_> =
        events[..count as usize].iter().map(|event| (event.u64, event.events)).collect();
    found.sort_unstable();
    Ok(found)
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
fn events_come_when_they_happen() {
    everywhere(|| {
        let (epoll, (from, to), (a, b)) = (instance(), pipe(0), tcp_pair());
        add(&epoll, &from, IN, 1);
        add(&epoll, &a, IN, 2);
        assert_eq!(wait(&epoll, 8, 0), Ok(vec![]));
        let writer = writes_soon(to);
        set_errno(libc::EXDEV);
        assert_eq!(wait(&epoll, 8, -1), Ok(vec![(1, IN)]));
        assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
        assert_eq!(wait(&epoll, 8, -1), Ok(vec![(1, IN)]), "a level stays");
        assert_eq!(write(&b, b"y"), Ok(1));
        assert_eq!(wait(&epoll, 8, 10_000), Ok(vec![(1, IN), (2, IN)]));
        read(&from, 1).expect("the byte");
        let to = writer.join().expect("the writer");
        let closer = spawn(move || {
            thread::sleep(SHORT);
            drop(to);
        });
        read(&a, 1).expect("the byte");
        assert_eq!(wait(&epoll, 8, -1), Ok(vec![(1, libc::EPOLLHUP as u32)]));
        closer.join().expect("the closer");
    });
}

#[test]
fn edges_come_once_and_again() {
    everywhere(|| {
        let (epoll, (from, to)) = (instance(), pipe(0));
        add(&epoll, &from, IN | EDGE, 7);
        let mut to = to;
        for _ in 0..5 {
            let writer = writes_soon(to);
            assert_eq!(wait(&epoll, 8, -1), Ok(vec![(7, IN)]));
            assert_eq!(wait(&epoll, 8, 0), Ok(vec![]), "an edge comes once");
            // Nothing is read: the next write is an edge all the same.
            to = writer.join().expect("the writer");
        }
        let start = Instant::now();
        assert_eq!(wait(&epoll, 8, 30), Ok(vec![]));
        assert!(start.elapsed() >= SHORT);
    });
}

#[test]
fn one_shots_are_armed_again() {
    everywhere(|| {
        let (epoll, (from, to)) = (instance(), pipe(0));
        add(&epoll, &from, IN | ONCE, 7);
        assert_eq!(write(&to, b"x"), Ok(1));
        assert_eq!(wait(&epoll, 8, -1), Ok(vec![(7, IN)]));
        assert_eq!(wait(&epoll, 8, 10), Ok(vec![]), "it is disarmed");
        let (epoll, from) = (Arc::new(epoll), Arc::new(from));
        let waiter = spawn({
            let epoll = Arc::clone(&epoll);
            move || wait(&*epoll, 8, -1)
        });
        thread::sleep(SHORT);
        control(&*epoll, libc::EPOLL_CTL_MOD, &*from, IN | ONCE, 8);
        assert_eq!(waiter.join().expect("the waiter"), Ok(vec![(8, IN)]));
    });
}

#[test]
fn members_added_while_somebody_waits_are_heard_of() {
    everywhere(|| {
        let (epoll, (from, to)) = (Arc::new(instance()), pipe(0));
        assert_eq!(write(&to, b"x"), Ok(1));
        let waiter = spawn({
            let epoll = Arc::clone(&epoll);
            move || wait(&*epoll, 8, -1)
        });
        thread::sleep(SHORT);
        add(&*epoll, &from, IN, 3);
        assert_eq!(waiter.join().expect("the waiter"), Ok(vec![(3, IN)]));
    });
}

#[test]
fn timeouts_take_their_time() {
    everywhere(|| {
        let epoll = instance();
        let mut event = epoll_event { events: 0, u64: 0 };
        let (fd, at) = (epoll.as_raw_fd(), &raw mut event);
        let time = timespec { tv_sec: 0, tv_nsec: 30_000_000 };
        // SAFETY: all write at most one event, with no mask.
        let waits: [fn(c_int, *mut epoll_event, &timespec) -> c_int; 3] = unsafe {
            [
                |fd, at, _| libc::epoll_wait(fd, at, 1, 30),
                |fd, at, _| libc::epoll_pwait(fd, at, 1, 30, null()),
                |fd, at, time| epoll_pwait2(fd, at, 1, time, null()),
            ]
        };
        for wait in waits {
            let start = Instant::now();
            assert_eq!(outcome(wait(fd, at, &time)), Ok(0));
            assert!(start.elapsed() >= SHORT);
        }
        assert_eq!(time.tv_nsec, 30_000_000, "the timeout is the program's");
    });
}

unsafe extern "C" {
    fn epoll_pwait2(
        epoll: c_int,
        events: *mut epoll_event,
        max: c_int,
        timeout: *const timespec,
        mask: *const libc::sigset_t,
    ) -> c_int;
}

#[test]
fn errors_are_the_kernels() {
    everywhere(|| {
        let (epoll, (from, to)) = (instance(), pipe(0));
        assert_eq!(wait(&from, 1, -1), Err(libc::EINVAL), "no instance");
        assert_eq!(wait(&epoll, 0, -1), Err(libc::EINVAL), "no room");
        let nowhere = std::ptr::without_provenance_mut(8);
        let bad_time = timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
        let mut event = epoll_event { events: 0, u64: 0 };
        let fd = epoll.as_raw_fd();
        add(&epoll, &to, libc::EPOLLOUT as u32, 1);
        // SAFETY: the kernel checks the buffer and answers EFAULT.
        unsafe {
            assert_eq!(outcome(libc::epoll_wait(-1, &mut event, 1, -1)), Err(libc::EBADF));
            assert_eq!(outcome(libc::epoll_wait(fd, nowhere, 1, -1)), Err(libc::EFAULT));
            let bad = epoll_pwait2(fd, &mut event, 1, &bad_time, null());
            assert_eq!(outcome(bad), Err(libc::EINVAL));
        }
    });
}

#[test]
fn masks_are_taken() {
    everywhere(|| {
        let epoll = instance();
        let mut event = epoll_event { events: 0, u64: 0 };
        let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let time = timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        // SAFETY: sigemptyset(3) and sigfillset(3) fill the set.
        unsafe {
            for fill in [libc::sigemptyset, libc::sigfillset] {
                fill(mask.as_mut_ptr());
                let fd = epoll.as_raw_fd();
                let found = libc::epoll_pwait(fd, &mut event, 1, 1, mask.as_ptr());
                assert_eq!(outcome(found), Ok(0));
                let found = epoll_pwait2(fd, &mut event, 1, &time, mask.as_ptr());
                assert_eq!(outcome(found), Ok(0));
            }
        }
    });
}

#[test]
fn every_event_is_taken_by_one_of_several_who_wait() {
    const WAITERS: usize = 8;
    const EVENTS: usize = 400;
    everywhere(|| {
        let epoll = Arc::new(instance());
        let (from, to) = pipe(0);
        add(&*epoll, &from, IN, 1);
        let (from, taken) = (Arc::new(from), Arc::new(AtomicUsize::new(0)));
        support::set_nonblocking(&*from, true);
        let waiters: Vec<_> = (0..WAITERS)
            .map(|_| {
                let (epoll, from, taken) = (epoll.clone(), from.clone(), taken.clone());
                spawn(move || {
                    // The last byte is left: everybody sees it, and ends.
                    while taken.load(Ordering::SeqCst) < EVENTS {
                        let found = wait(&*epoll, 1, -1).expect("an event");
                        assert_eq!(found.len(), 1, "it waits for ever");
                        if taken.fetch_add(1, Ordering::SeqCst) < EVENTS {
                            match read(&*from, 1) {
                                Ok(byte) => assert_eq!(byte.len(), 1),
                                Err(error) => {
                                    assert_eq!(error, libc::EAGAIN, "another was faster");
                                    taken.fetch_sub(1, Ordering::SeqCst);
                                }
                            }
                        }
                    }
                })
            })
            .collect();
        for _ in 0..EVENTS + 1 {
            assert_eq!(write(&to, b"x"), Ok(1));
            thread::yield_now();
        }
        for waiter in waiters {
            waiter.join().expect("a waiter");
        }
        assert_eq!(read(&*from, 9).map(|left| left.len()), Ok(1));
    });
}

#[test]
fn edges_of_many_members_reach_all_who_wait() {
    const PIPES: usize = 50;
    everywhere(|| {
        let epoll = Arc::new(instance());
        let pipes: Vec<_> = (0..PIPES).map(|_| pipe(0)).collect();
        for (i, (from, _)) in pipes.iter().enumerate() {
            add(&*epoll, from, IN | EDGE, i as u64);
        }
        // Each edge is reported once, to one of them; who has no more room than one event leaves the
        // others to the next.
        let waiters: Vec<_> = (0..PIPES)
            .map(|_| {
                let epoll = Arc::clone(&epoll);
                spawn(move || wait(&*epoll, 1, -1).expect("an event")[0].0)
            })
            .collect();
        thread::sleep(SHORT);
        for (_, to) in &pipes {
            assert_eq!(write(to, b"x"), Ok(1));
        }
        let mut seen: Vec<_> = waiters.into_iter().map(|w| w.join().expect("a waiter")).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..PIPES as u64).collect::<Vec<_>>());
    });
}

#[test]
fn instances_are_nested_and_polled() {
    everywhere(|| {
        let (outer, inner, (from, to)) = (instance(), instance(), pipe(0));
        add(&inner, &from, IN, 1);
        add(&outer, &inner, IN, 2);
        let writer = writes_soon(to);
        assert_eq!(wait(&outer, 8, -1), Ok(vec![(2, IN)]));
        assert_eq!(wait(&inner, 8, -1), Ok(vec![(1, IN)]));
        read(&from, 1).expect("the byte");
        assert_eq!(wait(&outer, 8, 0), Ok(vec![]));
        let to = writer.join().expect("the writer");
        let writer = writes_soon(to);
        let mut entry = [libc::pollfd { fd: inner.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        // SAFETY: poll(2) of one entry.
        assert_eq!(outcome(unsafe { libc::poll(entry.as_mut_ptr(), 1, -1) }), Ok(1));
        writer.join().expect("the writer");
    });
}

#[test]
fn instances_nested_as_deeply_as_can_be_work() {
    everywhere(|| {
        let (from, to) = pipe(0);
        let innermost = instance();
        add(&innermost, &from, IN, 0);
        let mut nest = vec![innermost];
        loop {
            let outer = instance();
            let mut event = epoll_event { events: IN, u64: 0 };
            let inner = nest.last().expect("one at least").as_raw_fd();
            let (fd, op) = (outer.as_raw_fd(), libc::EPOLL_CTL_ADD);
            // SAFETY: epoll_ctl(2) reads one event.
            match outcome(unsafe { libc::epoll_ctl(fd, op, inner, &mut event) }) {
                Ok(_) => nest.push(outer),
                Err(error) => {
                    assert!([libc::ELOOP, libc::EINVAL].contains(&error), "{error}");
                    break;
                }
            }
            assert!(nest.len() < 20, "there is a limit");
        }
        let writer = writes_soon(to);
        let outermost = nest.last().expect("one at least");
        assert_eq!(wait(outermost, 1, 20_000), Ok(vec![(0, IN)]));
        writer.join().expect("the writer");
    });
}

#[test]
fn duplicates_of_an_instance_wait_for_the_same() {
    everywhere(|| {
        let (epoll, (from, to)) = (instance(), pipe(0));
        add(&epoll, &from, IN, 1);
        // SAFETY: dup(2) takes a number.
        let other = own(unsafe { libc::dup(epoll.as_raw_fd()) });
        let waiter = spawn(move || wait(&other, 8, -1));
        let writer = writes_soon(to);
        assert_eq!(wait(&epoll, 8, -1), Ok(vec![(1, IN)]));
        assert_eq!(waiter.join().expect("the waiter"), Ok(vec![(1, IN)]));
        writer.join().expect("the writer");
    });
}

#[test]
fn closing_an_instance_ends_the_wait_of_a_fiber() {
    everywhere(|| {
        if !support::in_fiber() {
            return;
        }
        let epoll = instance();
        let mut event = epoll_event { events: 0, u64: 0 };
        let fd = epoll.as_raw_fd();
        let closer = spawn(move || {
            thread::sleep(SHORT);
            drop(epoll);
        });
        // SAFETY: epoll_wait(2) writes at most one event.
        let found = unsafe { libc::epoll_wait(fd, &mut event, 1, -1) };
        assert_eq!(outcome(found), Err(libc::EBADF));
        closer.join().expect("the closer");
    });
}

#[test]
fn threads_and_fibers_wait_on_one_instance() {
    const EVENTS: usize = 200;
    everywhere(|| {
        let (epoll, (from, to)) = (Arc::new(instance()), pipe(libc::O_NONBLOCK));
        add(&*epoll, &from, IN, 1);
        let (from, taken) = (Arc::new(from), Arc::new(AtomicUsize::new(0)));
        let serve = {
            let (epoll, taken) = (epoll.clone(), taken.clone());
            move || {
                while taken.load(Ordering::SeqCst) < EVENTS {
                    // The timeout is for the end: the other has taken the last.
                    wait(&*epoll, 1, 50).expect("an event or none");
                    if read(&*from, 1).is_ok() {
                        taken.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        };
        let thread = thread::spawn(serve.clone());
        let other = spawn(serve);
        for _ in 0..EVENTS {
            assert_eq!(write(&to, b"x"), Ok(1));
            thread::yield_now();
        }
        other.join().expect("one of its own sort");
        thread.join().expect("the thread");
        assert_eq!(taken.load(Ordering::SeqCst), EVENTS);
    });
}
