//! Timed waits: never early, on both clocks, and with the errors that glibc gives.

use std::sync::Arc;
use std::time::Duration;

use libc::timespec;

use crate::objects::{Cond, Mutex, RwLock, Semaphore, at};
use crate::support::timing::assert_waits;
use crate::support::{everywhere, everywhere_alone};

const CLOCKS: [libc::clockid_t; 2] = [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC];
const SHORT: Duration = Duration::from_millis(20);
const PAST: timespec = timespec { tv_sec: 1, tv_nsec: 0 };
const NEGATIVE: timespec = timespec { tv_sec: -1, tv_nsec: 0 };
const INVALID: [timespec; 2] =
    [timespec { tv_sec: 0, tv_nsec: 1_000_000_000 }, timespec { tv_sec: 1 << 40, tv_nsec: -1 }];

/// Objects that nobody lets go of: another holds them.
struct Held {
    mutex: Mutex,
    lock: RwLock,
    semaphore: Semaphore,
    own: Mutex,
    cond: [Cond; 2],
}

impl Held {
    fn by(host: crate::support::Host) -> Arc<Held> {
        let held = Arc::new(Held {
            mutex: Mutex::of_type(0),
            lock: RwLock::of_kind(0),
            semaphore: Semaphore::of(0),
            own: Mutex::of_type(0),
            cond: CLOCKS.map(|clock| Cond::with(clock, 0)),
        });
        let holder = Arc::clone(&held);
        host.spawn(move || (holder.mutex.lock(), holder.lock.write())).value();
        held.own.lock();
        held
    }
}

#[test]
fn timed_waits_end_in_time_and_never_early() {
    everywhere_alone(|host| {
        let held = Held::by(host);
        let over = |code| assert_eq!(code, libc::ETIMEDOUT);
        for (clock, cond) in CLOCKS.into_iter().zip(&held.cond) {
            let soon = || at(clock, SHORT);
            assert_waits(host, SHORT, || over(held.mutex.clock_lock(clock, &soon())));
            assert_waits(host, SHORT, || over(held.semaphore.clock_wait(clock, &soon())));
            assert_waits(host, SHORT, || over(cond.timed_wait(&held.own, &soon())));
            assert_waits(host, SHORT, || over(cond.clock_wait(&held.own, clock, &soon())));
        }
        let soon = || at(libc::CLOCK_REALTIME, SHORT);
        assert_waits(host, SHORT, || over(held.mutex.timed_lock(&soon())));
        assert_waits(host, SHORT, || over(held.lock.timed_read(&soon())));
        assert_waits(host, SHORT, || over(held.lock.timed_write(&soon())));
        assert_waits(host, SHORT, || over(held.semaphore.timed_wait(&soon())));
    });
}

#[test]
fn a_time_that_has_passed_or_is_none() {
    everywhere(|host| {
        let held = Held::by(host);
        [PAST, NEGATIVE]
            .iter()
            .chain(&INVALID)
            .map(|time| {
                [
                    held.mutex.timed_lock(time),
                    held.mutex.clock_lock(libc::CLOCK_MONOTONIC, time),
                    held.mutex.clock_lock(libc::CLOCK_BOOTTIME, time),
                    held.lock.timed_read(time),
                    held.lock.timed_write(time),
                    held.semaphore.timed_wait(time),
                    held.semaphore.clock_wait(libc::CLOCK_BOOTTIME, time),
                    held.cond[0].timed_wait(&held.own, time),
                    held.cond[1].timed_wait(&held.own, time),
                    held.cond[0].clock_wait(&held.own, libc::CLOCK_BOOTTIME, time),
                ]
            })
            .collect::<Vec<_>>()
    });
}

#[test]
fn a_wait_that_is_served_in_time_does_not_time_out() {
    everywhere(|host| {
        let shared = Arc::new((Mutex::of_type(0), RwLock::of_kind(0), Semaphore::of(0)));
        shared.0.lock();
        shared.1.write();
        let waiters: Vec<_> = (0..3)
            .map(|i| {
                let shared = Arc::clone(&shared);
                let later = at(libc::CLOCK_REALTIME, Duration::from_secs(30));
                host.spawn(move || match i {
                    0 => shared.0.timed_lock(&later),
                    1 => shared.1.timed_read(&later),
                    _ => shared.2.timed_wait(&later),
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(5));
        shared.0.unlock();
        shared.1.unlock();
        shared.2.post();
        waiters.into_iter().map(|waiter| waiter.value()).collect::<Vec<_>>()
    });
}
