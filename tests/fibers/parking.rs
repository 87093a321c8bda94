//! `park` and `unpark` by a fiber's handle. (What std's own do on a fiber is in the tests of `sync`.)

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave::{Fiber, Runtime, park, park_deadline, park_timeout, uninterposed};

use crate::support::timing::{GENEROUS, assert_prompt, assert_waits};
use crate::support::watchdog::Watchdog;
use crate::support::{Company, Count, Flag, Host, PATIENCE, on_fibers, on_fibers_alone};

fn me() -> Fiber {
    sleave::current().expect("a fiber asks")
}

/// Spawns `f` and returns the fiber's handle beside the task.
fn spawn_known<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> (Fiber, sleave::JoinHandle<T>) {
    let handle = sleave::spawn(f);
    (handle.fiber().clone(), handle)
}

#[test]
fn a_token_given_before_is_kept_and_several_are_one() {
    on_fibers(|host| {
        me().unpark();
        park();
        for _ in 0..3 {
            me().unpark();
        }
        assert!(park_timeout(GENEROUS * 2));
        // None is left: only the time ends this.
        let asked = Duration::from_millis(10);
        assert_waits(host, asked, || assert!(!park_timeout(asked)));
    });
}

#[test]
fn a_token_for_a_fiber_that_has_not_begun_is_kept() {
    on_fibers(|_| {
        let (fiber, handle) = spawn_known(park);
        fiber.unpark();
        handle.join().unwrap();
    });
}

#[test]
fn threads_fibers_and_other_runtimes_unpark() {
    on_fibers(|_| {
        let flag = Arc::new(AtomicUsize::new(0));
        let (fiber, handle) = spawn_known({
            let flag = Arc::clone(&flag);
            move || {
                for turn in 1..=3 {
                    park();
                    // What the other did before is seen without further order.
                    assert_eq!(flag.load(Ordering::Relaxed), turn);
                    flag.store(10 * turn, Ordering::Relaxed);
                }
            }
        });
        let turn = |number: usize| {
            let (fiber, flag) = (fiber.clone(), Arc::clone(&flag));
            move || {
                flag.store(number, Ordering::Relaxed);
                fiber.unpark();
            }
        };
        let answered = |number: usize| {
            while flag.load(Ordering::Relaxed) != 10 * number {
                sleave::yield_now();
            }
        };
        thread::spawn(turn(1)).join().unwrap();
        answered(1);
        sleave::spawn(turn(2)).join().unwrap();
        answered(2);
        let other = Runtime::builder().workers(1).build().unwrap();
        other.spawn(turn(3)).join().unwrap();
        answered(3);
        other.stop();
        handle.join().unwrap();
    });
}

#[test]
fn a_time_limit_is_never_early_and_says_whether_it_was_reached() {
    on_fibers(|host| {
        for millis in [0, 1, 20] {
            let asked = Duration::from_millis(millis);
            assert_waits(host, asked, || assert!(!park_timeout(asked)));
            assert_waits(host, asked, || assert!(!park_deadline(Instant::now() + asked)));
        }
        // A deadline that has passed still finds a token.
        me().unpark();
        assert!(park_deadline(Instant::now()));
        assert!(!park_deadline(Instant::now()));
        for long in [GENEROUS * 2, Duration::MAX] {
            let (fiber, handle) = spawn_known(move || park_timeout(long));
            sleave::yield_now();
            fiber.unpark();
            assert!(assert_prompt(GENEROUS, || handle.join().unwrap()));
        }
    });
}

#[test]
fn a_fiber_that_has_ended_is_unparked_to_no_effect() {
    on_fibers(|_| {
        let (ended, handle) = spawn_known(|| ());
        handle.join().unwrap();
        // Its stack, and what else it had, is somebody else's now.
        let (next, handle) = spawn_known(|| park_timeout(Duration::from_millis(20)));
        ended.unpark();
        assert!(!handle.join().unwrap(), "{next:?} got the token of {ended:?}");
        ended.unpark();
    });
}

#[test]
fn the_token_of_std_is_another() {
    on_fibers(|_| {
        me().unpark();
        thread::park_timeout(Duration::from_millis(1));
        assert!(park_timeout(Duration::ZERO), "std's park took the fiber's token");
        thread::current().unpark();
        assert!(!park_timeout(Duration::ZERO), "the fiber's park took std's token");
        thread::park();
    });
}

#[test]
fn it_parks_the_fiber_with_interposition_off_too() {
    Company::Shared.keep(|| {
        Host::Fibers { workers: 1 }.run(PATIENCE, &|_| {
            let waker = me();
            let own = crate::support::kernel::tid();
            let other = sleave::spawn(move || {
                waker.unpark();
                crate::support::kernel::tid()
            });
            uninterposed(park);
            assert_eq!(other.join().unwrap(), own, "the fiber was to park");
        });
    });
}

#[test]
fn a_plain_thread_has_no_token() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Threads, PATIENCE);
        let thrown = thread::spawn(|| catch_unwind(park).is_err()).join().unwrap();
        assert!(thrown);
    });
}

#[test]
fn a_race_of_time_limit_and_token_loses_neither() {
    on_fibers(|host| {
        const ROUNDS: usize = 2000;
        let given = Arc::new(Count::new());
        let (hand, handed) = mpsc::channel::<Fiber>();
        let parker = host.spawn({
            let given = Arc::clone(&given);
            move || {
                hand.send(me()).unwrap();
                let mut taken = 0;
                for round in 0..ROUNDS {
                    // One token a round: in time, or found by the `park` after the time was over.
                    if !park_timeout(Duration::from_micros(round as u64 % 200)) {
                        park();
                    }
                    taken += 1;
                    given.up();
                }
                assert!(!park_timeout(Duration::ZERO));
                taken
            }
        });
        let parker_handle = handed.recv().unwrap();
        for round in 0..ROUNDS {
            while given.get() < round {
                host.yield_now();
            }
            if round % 3 == 0 {
                thread::sleep(Duration::from_micros(round as u64 % 150));
            }
            parker_handle.unpark();
        }
        assert_eq!(parker.value(), ROUNDS);
    });
}

/// Completion races suspension: each unparks the other and parks, so that tokens come before, during and
/// after the other's way to sleep. One that is lost is a hang, one too many puts the count out of step.
#[test]
fn a_million_parks_and_unparks_lose_none() {
    on_fibers_alone(|_| {
        const ROUNDS: usize = 1_000_000;
        let turns = Arc::new(AtomicUsize::new(0));
        let first = me();
        let (second, handle) = spawn_known({
            let turns = Arc::clone(&turns);
            move || {
                for round in 0..ROUNDS / 2 {
                    park();
                    assert_eq!(turns.load(Ordering::Relaxed), 2 * round + 1);
                    turns.store(2 * round + 2, Ordering::Relaxed);
                    first.unpark();
                }
            }
        });
        for round in 0..ROUNDS / 2 {
            turns.store(2 * round + 1, Ordering::Relaxed);
            second.unpark();
            park();
            assert_eq!(turns.load(Ordering::Relaxed), 2 * round + 2);
        }
        handle.join().unwrap();
        assert!(!park_timeout(Duration::ZERO));
    });
}

/// Many give at once and collapse: what counts is that the last of them is never the one that is missed.
#[test]
fn tokens_from_many_sides_never_leave_work_lying() {
    on_fibers_alone(|host| {
        const GIVERS: usize = 8;
        const GIFTS: usize = 5000;
        let (work, done) = (Arc::new(Count::new()), Arc::new(Flag::new()));
        let (fiber, handle) = spawn_known({
            let (work, done) = (Arc::clone(&work), Arc::clone(&done));
            move || {
                while work.get() < GIVERS * GIFTS {
                    park();
                }
                done.raise();
            }
        });
        let from_threads: Vec<_> = (0..GIVERS / 2)
            .map(|_| {
                let (work, fiber) = (Arc::clone(&work), fiber.clone());
                thread::spawn(move || {
                    for _ in 0..GIFTS {
                        work.up();
                        fiber.unpark();
                    }
                })
            })
            .collect();
        host.spawn_many(GIVERS / 2, {
            let (work, fiber) = (Arc::clone(&work), fiber.clone());
            move |_| {
                for gift in 0..GIFTS {
                    work.up();
                    fiber.unpark();
                    if gift % 7 == 0 {
                        host.yield_now();
                    }
                }
            }
        });
        from_threads.into_iter().for_each(|giver| giver.join().unwrap());
        handle.join().unwrap();
        assert!(done.is_up());
    });
}
