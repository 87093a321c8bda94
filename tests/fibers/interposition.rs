//! The switch that a fiber has for itself: with it off, the C library's calls are libc's own.
//!
//! How a test knows that a call has blocked its worker's thread: what ends the call is done by another
//! fiber, and on a runtime of one worker that fiber can run on the caller's thread only while the caller
//! is parked. If it ran on another, the thread was blocked, and the monitor has put one in its place.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use sleave::{interpose, uninterposed};

use crate::support::kernel::{Moves, tid};
use crate::support::watchdog::Watchdog;
use crate::support::{Company, Count, Flag, Gate, Host, PATIENCE, on_fibers};

/// Whether interposition is on for the caller.
fn is_on() -> bool {
    let on = interpose(true);
    interpose(on);
    on
}

/// Runs `body` on a fiber of a runtime with one worker.
fn on_one_worker(body: impl Fn(Host) + Sync) {
    Company::Shared.keep(|| Host::Fibers { workers: 1 }.run(PATIENCE, &body));
}

/// Calls `wait`, which `end` ends; returns the threads of both, that of the caller after its wait.
fn threads_of(wait: impl FnOnce(), end: impl FnOnce() + Send + 'static) -> (usize, usize) {
    let before = tid();
    let other = sleave::spawn(move || {
        let here = tid();
        end();
        here
    });
    wait();
    let after = tid();
    assert_eq!(before, after, "one worker has one thread, and a blocked fiber stays where it is");
    (after, other.join().unwrap())
}

/// A thread that has blocked is one too many for a moment, and its fibers may move: so what parks comes
/// first, and each kind of wait has a runtime of its own.
fn assert_parks_and_blocks(threads_of_wait: impl Fn() -> (usize, usize) + Sync) {
    on_one_worker(|_| {
        let (own, others) = threads_of_wait();
        assert_eq!(own, others, "the fiber was to park");
        let (own, others) = uninterposed(&threads_of_wait);
        assert_ne!(own, others, "the thread was to block");
        assert!(is_on());
    });
}

#[test]
fn a_read_parks_the_fiber_with_it_on_and_blocks_the_thread_with_it_off() {
    assert_parks_and_blocks(|| {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        threads_of(
            move || assert_eq!(near.read(&mut [0]).unwrap(), 1),
            move || assert_eq!(far.write(b"x").unwrap(), 1),
        )
    });
}

#[test]
fn a_condition_variable_that_blocks_the_thread_is_notified_by_a_fiber() {
    assert_parks_and_blocks(|| {
        let pair = Arc::new((Mutex::new(false), Condvar::new()));
        let other = Arc::clone(&pair);
        threads_of(
            move || {
                let set = pair.0.lock().unwrap();
                drop(pair.1.wait_while(set, |set| !*set).unwrap());
            },
            move || {
                *other.0.lock().unwrap() = true;
                other.1.notify_one();
            },
        )
    });
}

#[test]
fn a_channel_that_blocks_the_thread_is_sent_to_by_a_fiber() {
    assert_parks_and_blocks(|| {
        let (sender, receiver) = mpsc::channel();
        threads_of(move || receiver.recv().unwrap(), move || sender.send(()).unwrap())
    });
}

#[test]
fn a_mutex_is_handed_between_fibers_that_block_and_fibers_that_park() {
    on_fibers(|host| {
        const ROUNDS: usize = 200;
        let sum = Arc::new(Mutex::new(0));
        host.spawn_many(8, {
            let sum = Arc::clone(&sum);
            move |i| {
                for round in 0..ROUNDS {
                    let add = || {
                        let mut sum = sum.lock().unwrap();
                        *sum += 1;
                        // Held over a wait, so that the others queue.
                        if round % 50 == 0 {
                            thread::sleep(Duration::from_micros(100));
                        }
                    };
                    if (i + round) % 2 == 0 { uninterposed(add) } else { add() }
                }
            }
        });
        assert_eq!(*sum.lock().unwrap(), 8 * ROUNDS);
    });
}

#[test]
fn a_sleep_with_it_off_holds_its_thread() {
    on_one_worker(|host| {
        let (asleep, over, seen) = (Flag::new(), Flag::new(), Count::new());
        let (asleep, over, seen) = (Arc::new(asleep), Arc::new(over), Arc::new(seen));
        let own = tid();
        let watcher = host.spawn({
            let (asleep, over, seen) = (Arc::clone(&asleep), Arc::clone(&over), Arc::clone(&seen));
            move || {
                while !over.is_up() {
                    let here = tid();
                    if asleep.is_up() {
                        assert_ne!(here, own, "another fiber on a thread that sleeps");
                        seen.up();
                    }
                    host.yield_now();
                }
            }
        });
        // No fiber runs on this thread from here on, until this one leaves it.
        uninterposed(|| {
            asleep.raise();
            while seen.get() == 0 {
                thread::sleep(Duration::from_millis(5));
            }
            asleep.lower();
        });
        assert_eq!(tid(), own);
        over.raise();
        watcher.value();
    });
}

#[test]
fn it_nests_and_a_panic_puts_it_back() {
    on_fibers(|_| {
        assert!(is_on(), "a fiber begins with it on");
        uninterposed(|| {
            assert!(!is_on());
            uninterposed(|| assert!(!is_on()));
            assert!(!is_on(), "the inner one leaves it as it was");
            assert!(!interpose(true));
            uninterposed(|| assert!(!is_on()));
            assert!(is_on(), "the inner one leaves it as it was");
        });
        assert!(is_on());
        for on in [true, false] {
            interpose(on);
            let thrown = catch_unwind(AssertUnwindSafe(|| {
                uninterposed(|| resume_unwind(Box::new("thrown")));
            }));
            assert!(thrown.is_err());
            assert_eq!(is_on(), on);
        }
    });
}

#[test]
fn it_belongs_to_its_fiber_wherever_that_runs() {
    on_fibers(|host| {
        // Those with an odd number switch off; all wait by the runtime's own means, and move.
        let gate = Arc::new(Gate::default());
        let tasks: Vec<_> = (0..40)
            .map(|i| {
                let gate = Arc::clone(&gate);
                host.spawn(move || {
                    gate.pass();
                    let on = i % 2 == 0;
                    interpose(on);
                    let mut moves = Moves::new();
                    for round in 0..200 {
                        host.yield_now();
                        // Now and then it moves for certain, however busy the machine.
                        if round % 20 == 0 {
                            sleave::pin((i + round / 20) % host.workers()).unwrap();
                            sleave::unpin();
                        }
                        moves.look();
                        assert_eq!(is_on(), on);
                        let child = host.spawn(is_on);
                        assert!(child.value(), "a fiber begins with it on");
                    }
                    moves.look()
                })
            })
            .collect();
        gate.open();
        let moves: usize = tasks.into_iter().map(|task| task.value()).sum();
        assert!(!host.moves() || moves > 0, "{host}: no fiber has moved");
    });
}

#[test]
fn a_stack_used_again_begins_with_it_on() {
    on_one_worker(|host| {
        for _ in 0..100 {
            assert!(host.spawn(|| interpose(false)).value());
        }
    });
}

#[test]
fn on_a_plain_thread_there_is_nothing_to_switch() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Threads, PATIENCE);
        assert!(!interpose(false));
        assert!(!interpose(true));
        uninterposed(|| thread::sleep(Duration::from_millis(1)));
        assert!(!interpose(true));
        // What a fiber of the same process has switched is its own.
        assert!(sleave::spawn(is_on).join().unwrap());
    });
}
