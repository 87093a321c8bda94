//! Runtimes that use their caller: one of the workers is whoever is inside `run` or `stop`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave::{Builder, Runtime, Timer};

use crate::support::kernel::{block_thread, cpu_time, threads_named, tid};
use crate::support::timing::eventually;
use crate::support::watchdog::Watchdog;
use crate::support::{Company, Host, PATIENCE, WORKERS};

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).use_caller().build().expect("a runtime")
}

/// Runs `body` on this plain thread, once for each number of workers.
fn for_each_size(body: impl Fn(usize, Runtime)) {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            body(workers, runtime(workers));
        }
    });
}

/// Runs `body` on this plain thread with a runtime that is confined to it.
fn confined(company: Company, body: impl Fn(Runtime)) {
    company.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, PATIENCE);
        body(runtime(1));
    });
}

#[test]
fn a_confined_runtime_runs_everything_on_its_caller_and_has_no_thread() {
    confined(Company::Shared, |_| {
        let builder = Runtime::builder().workers(1).use_caller().name("alone");
        let runtime = builder.build().unwrap();
        let own = tid();
        let early: Vec<_> = (0..10).map(|_| runtime.spawn(tid)).collect();
        let (inside, late) = runtime.run(|| {
            let mut seen = BTreeSet::new();
            for _ in 0..50 {
                let nap = || {
                    thread::sleep(Duration::from_micros(100));
                    // Blocks the only worker: nobody takes its place.
                    block_thread(Duration::from_micros(500));
                    tid()
                };
                seen.insert(sleave::spawn(nap).join().unwrap());
            }
            block_thread(Duration::from_millis(60));
            (seen, threads_named("alone"))
        });
        assert_eq!(inside, BTreeSet::from([own]));
        assert_eq!(late, 0, "threads of its own");
        assert!(early.into_iter().all(|fiber| fiber.is_finished() && fiber.join().unwrap() == own));
        runtime.stop();
    });
}

#[test]
fn what_is_spawned_before_waits_for_a_caller() {
    confined(Company::Shared, |runtime| {
        let (send, receive) = mpsc::channel();
        let fibers: Vec<_> = (0..5)
            .map(|i| {
                let send = send.clone();
                runtime.spawn(move || send.send((i, tid())).unwrap())
            })
            .collect();
        block_thread(Duration::from_millis(20));
        assert!(receive.try_recv().is_err(), "nobody may run it yet");
        assert_eq!(runtime.statistics().runnable, 5);
        // First come, first served; `run` is over with its own fiber, the last.
        runtime.run(|| ());
        let order: Vec<_> = receive.try_iter().collect();
        assert_eq!(order, (0..5).map(|i| (i, tid())).collect::<Vec<_>>());
        fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
        runtime.stop();
    });
}

#[test]
fn stop_runs_what_is_left() {
    for_each_size(|_, runtime| {
        let done = Arc::new(AtomicUsize::new(0));
        for i in 0..40 {
            let done = Arc::clone(&done);
            drop(runtime.spawn(move || {
                thread::sleep(Duration::from_millis(i % 7));
                let late = Arc::clone(&done);
                drop(sleave::spawn(move || {
                    sleave::yield_now();
                    late.fetch_add(1, Ordering::SeqCst);
                }));
                done.fetch_add(1, Ordering::SeqCst);
            }));
        }
        runtime.stop();
        assert_eq!(done.load(Ordering::SeqCst), 80);
    });
}

#[test]
fn the_first_worker_is_the_caller() {
    for_each_size(|workers, runtime| {
        for _ in 0..3 {
            let seats = runtime.run(|| {
                let pinned =
                    |worker| Builder::new().pin(worker).spawn(|| (sleave::worker(), tid()));
                let fibers: Vec<_> = (0..workers).map(|worker| pinned(worker).unwrap()).collect();
                fibers.into_iter().map(|fiber| fiber.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(seats[0], (Some(0), tid()));
            let others = seats[1..].iter().enumerate();
            assert!(others.into_iter().all(|(i, seen)| seen.0 == Some(i + 1) && seen.1 != tid()));
        }
        // Pinned to the caller, it waits for one; here that is whoever stops the runtime.
        let last = Builder::new().pin(0).spawn_on(&runtime, tid).unwrap();
        runtime.stop();
        assert_eq!(last.join().unwrap(), tid());
    });
}

#[test]
fn callers_take_turns_and_none_is_left_behind() {
    for_each_size(|_, runtime| {
        let served = AtomicUsize::new(0);
        thread::scope(|scope| {
            for i in 0..6 {
                let (runtime, served) = (&runtime, &served);
                scope.spawn(move || {
                    for round in 0..30_usize {
                        let answer = runtime.run(|| {
                            let child = sleave::spawn(move || {
                                thread::sleep(Duration::from_micros(50 * i));
                                round
                            });
                            child.join().unwrap()
                        });
                        assert_eq!(answer, round);
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(served.into_inner(), 180);
        runtime.stop();
    });
}

#[test]
fn timers_and_descriptors_wake_the_only_thread() {
    confined(Company::Shared, |runtime| {
        let (mut near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        let writer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(10));
            std::io::Write::write_all(&mut far, b"x").unwrap();
        });
        let fired = Arc::new(AtomicUsize::new(0));
        runtime.run(|| {
            let count = Arc::clone(&fired);
            let (send, receive) = mpsc::channel();
            Timer::after(Duration::from_millis(5), move || {
                count.fetch_add(1, Ordering::SeqCst);
                send.send(tid()).unwrap();
            });
            assert_eq!(receive.recv().unwrap(), tid());
            std::io::Read::read_exact(&mut near, &mut [0]).unwrap();
        });
        assert_eq!(fired.load(Ordering::SeqCst), 1);
        writer.join().unwrap();
        runtime.stop();
    });
}

#[test]
fn a_timer_of_a_confined_runtime_waits_for_a_caller() {
    confined(Company::Shared, |runtime| {
        let (send, receive) = mpsc::channel();
        let start = Instant::now();
        Timer::builder()
            .on(&runtime)
            .after(Duration::from_millis(1), move || send.send(tid()).unwrap())
            .unwrap();
        block_thread(Duration::from_millis(20));
        assert!(receive.try_recv().is_err());
        let other = runtime.spawn(|| thread::sleep(Duration::from_millis(1)));
        runtime.run(|| other.join().unwrap());
        assert_eq!(receive.recv().unwrap(), tid());
        assert!(start.elapsed() >= Duration::from_millis(20));
        runtime.stop();
    });
}

#[test]
fn a_stop_that_gives_up_returns_in_time_and_can_be_repeated() {
    for_each_size(|_, runtime| {
        let stubborn: Vec<_> = (0..3).map(|_| runtime.spawn(sleave::park)).collect();
        let begin = Instant::now();
        assert!(!runtime.stop_timeout(Duration::from_millis(30)));
        assert!(begin.elapsed() >= Duration::from_millis(30));
        assert_eq!(runtime.statistics().fibers, 3);
        assert!(!runtime.stop_timeout(Duration::ZERO));
        stubborn.iter().for_each(|fiber| fiber.fiber().unpark());
        assert!(runtime.stop_timeout(Duration::MAX));
        stubborn.into_iter().for_each(|fiber| fiber.join().unwrap());
    });
}

#[test]
fn a_runtime_that_can_expect_no_caller_gets_threads_of_its_own() {
    for_each_size(|_, dropped| {
        let pinned = Builder::new().pin(0).spawn_on(&dropped, tid).unwrap();
        let fibers: Vec<_> = (0..10)
            .map(|i| {
                dropped.spawn(move || {
                    thread::sleep(Duration::from_millis(i % 3));
                    tid()
                })
            })
            .collect();
        drop(dropped);
        let own = tid();
        assert!(fibers.into_iter().all(|fiber| fiber.join().unwrap() != own));
        assert_ne!(pinned.join().unwrap(), own);
    });
    for_each_size(|workers, outer| {
        // A fiber of another runtime cannot be a worker either.
        let inner = runtime(workers);
        let left = inner.spawn(|| thread::sleep(Duration::from_millis(2)));
        outer.run(|| inner.stop());
        assert!(left.is_finished());
        outer.stop();
    });
}

#[test]
fn a_confined_runtime_costs_nothing_while_nobody_calls() {
    confined(Company::Alone, |runtime| {
        let waiting: Vec<_> = (0..100).map(|_| runtime.spawn(sleave::park)).collect();
        runtime.run(|| (0..3).for_each(|_| sleave::yield_now()));
        // One more that nobody may run.
        let early = runtime.spawn(|| ());
        // The monitor goes to sleep when it has seen nothing happen for a while.
        let quiet = || {
            let before = cpu_time();
            block_thread(Duration::from_millis(200));
            cpu_time() - before
        };
        eventually("the process is idle", || quiet() < Duration::from_millis(1));
        waiting.iter().for_each(|fiber| fiber.fiber().unpark());
        runtime.stop();
        assert!(early.is_finished());
        waiting.into_iter().for_each(|fiber| fiber.join().unwrap());
    });
}
