//! Cached readiness, and who is told of it.

use std::ffi::c_int;
use std::os::fd::RawFd;
use std::pin::pin;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use syscalls::{Sysno, syscall};

use super::descriptor::Joined;
use super::queue::Waiter;
use super::table::{entry, event, join, part, register};
use super::*;
use crate::fiber::{Control, space};
use crate::kernel;
use crate::wait::Batch;

/// The two ends of a non-blocking pipe, the reading one first, as new descriptors.
fn pipe() -> [RawFd; 2] {
    let mut ends: [c_int; 2] = [-1; 2];
    // SAFETY: pipe2(2) writes two numbers.
    let made = unsafe { syscall!(Sysno::pipe2, ends.as_mut_ptr(), libc::O_NONBLOCK) };
    made.unwrap();
    ends.into_iter().for_each(opened);
    ends
}

fn close_now(fd: RawFd) {
    close(fd, || {
        kernel::close(fd);
        0
    });
}

/// A control block on which no fiber runs, in the state of one that is parked.
fn parked() -> NonNull<Control> {
    let space = space().expect("fibers can be had");
    let control = space.take(space.slot_size(Some(16 << 10)).unwrap()).unwrap();
    // SAFETY: just taken.
    let word = unsafe { &control.as_ref().wait };
    word.prepare();
    assert!(word.park());
    control
}

fn give_back(control: NonNull<Control>) {
    // SAFETY: made by `parked`; no list names it any more.
    unsafe {
        control.as_ref().wait.end();
        space().expect("there was one").give(control);
    }
}

/// Who only looks leaves readiness to those who will try: were it forgotten, the look after it
/// would be left out, for the descriptor would count as drained.
#[test]
fn readiness_that_a_looker_finds_on_joining_stays() {
    let _turn = turn();
    let driver = Driver::new().unwrap();
    let [reader, writer] = pipe();
    let control = parked();
    // Registers the reader, which is empty.
    let first = pin!(Waiter::new(control, true));
    // SAFETY: released below.
    let joined = unsafe { join(reader, Direction::Read, &driver, &first, true) };
    assert_eq!(joined, Joined::Waiting);
    part(reader, Direction::Read, &first);
    assert!(drained(reader, Direction::Read));
    // SAFETY: write(2) of one byte.
    unsafe { syscall!(Sysno::write, writer, c"x".as_ptr(), 1) }.unwrap();
    let mut woken = Batch::new();
    driver.poll(false, None, &mut woken);
    assert!(woken.first.is_none() && !drained(reader, Direction::Read));
    let second = pin!(Waiter::new(control, true));
    // SAFETY: not queued if ready.
    let joined = unsafe { join(reader, Direction::Read, &driver, &second, true) };
    assert_eq!(joined, Joined::Ready);
    assert!(!drained(reader, Direction::Read), "nobody has tried, yet it counts as drained");
    give_back(control);
    close_now(reader);
    close_now(writer);
}

/// A second registration would have the kernel report again what is there, and cost a system call for each wait.
#[test]
fn a_description_is_registered_once_and_its_successor_anew() {
    let _turn = turn();
    let driver = Driver::new().unwrap();
    let [reader, writer] = pipe();
    let registers = || {
        let descriptor = entry(reader).unwrap();
        register(descriptor, &mut descriptor.state.lock(), reader, &driver)
    };
    assert_eq!([registers(), registers(), registers()], [Ok(true), Ok(false), Ok(false)]);
    opened(reader);
    assert_eq!([registers(), registers()], [Ok(true), Ok(false)]);
    let another = Driver::new().unwrap();
    let descriptor = entry(reader).unwrap();
    let anew = register(descriptor, &mut descriptor.state.lock(), reader, &another);
    assert_eq!(anew, Ok(true), "each runtime's events come by its own driver");
    close_now(reader);
    close_now(writer);
}

/// A waiter joins at the very moment at which another one leaves something behind.
#[test]
fn readiness_left_behind_is_never_missed_by_one_who_joins() {
    let _turn = turn();
    const ROUNDS: usize = 60_000;
    let driver = Driver::new().unwrap();
    let [reader, writer] = pipe();
    let control = parked();
    // SAFETY: `control` stays taken for this test.
    let word = unsafe { &control.as_ref().wait };
    let round = AtomicUsize::new(0);
    let left = AtomicUsize::new(0);
    let missed = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    // Both must run at once to meet; on a busy machine they take turns instead.
    let wait_a_little = |spins: &mut usize| {
        *spins += 1;
        if spins.is_multiple_of(2000) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    };
    std::thread::scope(|s| {
        s.spawn(|| {
            let (mut last, mut spins) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let now = round.load(Ordering::Acquire);
                if now == last {
                    wait_a_little(&mut spins);
                } else {
                    last = now;
                    // A little earlier or later each time.
                    for _ in 0..now % 64 {
                        std::hint::spin_loop();
                    }
                    // The batch inside is of a fiber that nobody may run: none is scheduled, for
                    // the waiter's word says that it has not left its stack yet.
                    leave(reader, Direction::Read, true);
                    left.store(now, Ordering::Release);
                }
            }
        });
        let mut spins = 0;
        for now in 1..=ROUNDS {
            attempt(reader, Direction::Read);
            word.prepare();
            let waiter = pin!(Waiter::new(control, false));
            round.store(now, Ordering::Release);
            // SAFETY: released below.
            let joined = unsafe { join(reader, Direction::Read, &driver, &waiter, true) };
            while left.load(Ordering::Acquire) != now {
                wait_a_little(&mut spins);
            }
            // The other has left: either the joiner has seen it, or it has woken the joiner.
            if joined == Joined::Waiting && word.is_unclaimed() {
                missed.fetch_add(1, Ordering::Relaxed);
            }
            part(reader, Direction::Read, &waiter);
            word.end();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(missed.into_inner(), 0, "of {ROUNDS}");
    word.prepare();
    give_back(control);
    close_now(reader);
    close_now(writer);
}

/// An event of a description that is gone says nothing about its successor.
#[test]
fn an_event_of_a_former_generation_is_ignored() {
    let _turn = turn();
    let driver = Driver::new().unwrap();
    let [reader, writer] = pipe();
    let control = parked();
    let waiter = pin!(Waiter::new(control, false));
    // SAFETY: released below.
    let joined = unsafe { join(reader, Direction::Read, &driver, &waiter, true) };
    assert_eq!(joined, Joined::Waiting);
    let name = |generation: u64| (generation & 0x7FFF_FFFF) << 32 | reader as u64;
    let mut woken = Batch::new();
    // All generations but the present one, which is small: nothing was opened so often.
    for generation in (1 << 20)..(1 << 20) + 1000 {
        event(name(generation), libc::EPOLLIN as u32, &mut woken);
    }
    assert!(woken.first.is_none() && drained(reader, Direction::Read));
    part(reader, Direction::Read, &waiter);
    give_back(control);
    close_now(reader);
    close_now(writer);
}
