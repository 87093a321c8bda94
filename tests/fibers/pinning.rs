//! Fibers that are pinned to a worker: the same OS thread runs them, and only that one.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use sleave::{Builder, Runtime};

use crate::support::kernel::{block_thread, tid};
use crate::support::timing::eventually;
use crate::support::watchdog::Watchdog;
use crate::support::{Company, Count, Gate, Host, PATIENCE, WORKERS, scaled};

/// Runs `body` on this plain thread, once for each number of workers.
fn for_each_size(body: impl Fn(usize, Runtime)) {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            body(workers, Runtime::builder().workers(workers).build().expect("a runtime"));
        }
    });
}

fn pinned(worker: usize) -> Builder {
    Builder::new().pin(worker)
}

/// Waits in as many ways as there are, and says on which threads it was meanwhile.
fn travel() -> BTreeSet<(Option<usize>, usize)> {
    let mut seen = BTreeSet::new();
    let (send, receive) = mpsc::channel();
    for round in 0..20 {
        seen.insert((sleave::worker(), tid()));
        match round % 4 {
            0 => sleave::yield_now(),
            1 => thread::sleep(Duration::from_micros(100)),
            2 => {
                let send = send.clone();
                sleave::spawn(move || send.send(()).unwrap());
                receive.recv().unwrap();
            }
            _ => sleave::spawn(|| ()).join().unwrap(),
        }
    }
    seen.insert((sleave::worker(), tid()));
    seen
}

#[test]
fn a_pinned_fiber_stays_on_one_thread_whatever_it_waits_for() {
    for_each_size(|workers, runtime| {
        let fibers: Vec<_> = (0..8 * workers)
            .map(|i| (i % workers, pinned(i % workers).spawn_on(&runtime, travel).unwrap()))
            .collect();
        let mut threads = vec![BTreeSet::new(); workers];
        for (worker, fiber) in fibers {
            let seen = fiber.join().unwrap();
            assert_eq!(seen.len(), 1, "a fiber pinned to {worker} of {workers} was on {seen:?}");
            threads[worker].extend(seen);
        }
        let all: BTreeSet<_> = threads.iter().flatten().map(|&(_, tid)| tid).collect();
        assert_eq!(all.len(), workers, "each worker is one thread, all different: {threads:?}");
        for (worker, seen) in threads.iter().enumerate() {
            assert_eq!(seen.first().unwrap().0, Some(worker), "{seen:?}");
        }
        runtime.stop();
    });
}

#[test]
fn a_pin_to_a_worker_that_does_not_exist_is_an_error() {
    for_each_size(|workers, runtime| {
        for worker in [workers, workers + 1, 255, 256, usize::MAX] {
            let refused = pinned(worker).spawn_on(&runtime, || ()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
            assert!(refused.to_string().contains(&worker.to_string()), "{refused}");
        }
        runtime.run(|| {
            assert_eq!(sleave::pin(workers).unwrap_err().kind(), ErrorKind::InvalidInput);
            let scoped = sleave::scope(|scope| pinned(workers).spawn_scoped(scope, || ()).is_err());
            assert!(scoped);
            // Who was refused is where and what it was before.
            sleave::spawn(|| ()).join().unwrap();
        });
        assert_eq!(sleave::pin(0).unwrap_err().kind(), ErrorKind::InvalidInput, "a plain thread");
        // None of the refused is waited for.
        runtime.stop();
    });
}

#[test]
fn a_fiber_moves_to_a_worker_and_from_there() {
    for_each_size(|workers, runtime| {
        let fibers: Vec<_> = (0..20)
            .map(|start| {
                runtime.spawn(move || {
                    let mut tids = vec![BTreeSet::new(); workers];
                    for worker in (start..start + 50).map(|step| step % workers) {
                        sleave::pin(worker).unwrap();
                        assert_eq!(sleave::worker(), Some(worker));
                        tids[worker].insert(tid());
                        sleave::yield_now();
                        assert_eq!(sleave::worker(), Some(worker), "it stays until it is unpinned");
                        tids[worker].insert(tid());
                    }
                    sleave::unpin();
                    tids
                })
            })
            .collect();
        let mut threads = vec![BTreeSet::new(); workers];
        for fiber in fibers {
            for (all, seen) in threads.iter_mut().zip(fiber.join().unwrap()) {
                all.extend(seen);
            }
        }
        assert!(threads.iter().all(|tids| tids.len() == 1), "{threads:?}");
        runtime.stop();
    });
}

#[test]
fn pinned_and_other_fibers_do_not_keep_each_other_waiting() {
    for_each_size(|workers, runtime| {
        // One of either kind yields for ever on each worker; one more of either kind must get through.
        let over = Arc::new(AtomicBool::new(false));
        let spin = || {
            let over = Arc::clone(&over);
            move || {
                while !over.load(Ordering::Relaxed) {
                    sleave::yield_now();
                }
            }
        };
        let spinners: Vec<_> = (0..workers)
            .flat_map(|worker| {
                [pinned(worker).spawn_on(&runtime, spin()), Ok(runtime.spawn(spin()))]
            })
            .map(Result::unwrap)
            .collect();
        for worker in 0..workers {
            pinned(worker).spawn_on(&runtime, travel).unwrap().join().unwrap();
            runtime.spawn(|| (0..100).for_each(|_| sleave::yield_now())).join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        spinners.into_iter().for_each(|spinner| spinner.join().unwrap());
        runtime.stop();
    });
}

#[test]
fn a_stuck_worker_holds_up_what_is_pinned_to_it_and_nothing_else() {
    for_each_size(|_, runtime| {
        let (stuck, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let blocker = {
            let (stuck, over) = (Arc::clone(&stuck), Arc::clone(&over));
            let block = move || {
                stuck.store(true, Ordering::SeqCst);
                while !over.load(Ordering::SeqCst) {
                    block_thread(Duration::from_millis(1));
                }
            };
            pinned(0).spawn_on(&runtime, block).unwrap()
        };
        eventually("the worker is stuck", || stuck.load(Ordering::SeqCst));
        let behind = pinned(0).spawn_on(&runtime, sleave::worker).unwrap();
        // The monitor finds a thread for the others.
        for _ in 0..20 {
            runtime.spawn(|| thread::sleep(Duration::from_millis(1))).join().unwrap();
        }
        assert!(!behind.is_finished(), "it is pinned behind the one that blocks");
        over.store(true, Ordering::SeqCst);
        assert_eq!(behind.join().unwrap(), Some(0));
        blocker.join().unwrap();
        runtime.stop();
    });
}

#[test]
fn a_pinned_fiber_is_woken_by_threads_timers_and_fibers_of_other_workers() {
    for_each_size(|workers, runtime| {
        let rounds = scaled(2000);
        let parked: Vec<_> = (0..workers)
            .map(|worker| {
                let body = move || {
                    let home = tid();
                    for _ in 0..rounds {
                        sleave::park();
                        assert_eq!(tid(), home);
                    }
                };
                pinned(worker).spawn_on(&runtime, body).unwrap()
            })
            .collect();
        // Each token ends exactly one park: give the next when the last one has been taken by all.
        let woken = |waker: &dyn Fn(&sleave::Fiber)| {
            while parked.iter().any(|fiber| !fiber.is_finished()) {
                parked.iter().for_each(|fiber| waker(fiber.fiber()));
                thread::yield_now();
            }
        };
        let turn = std::cell::Cell::new(0);
        woken(&|fiber| {
            turn.set(turn.get() + 1);
            if turn.get() % 3 == 0 {
                let fiber = fiber.clone();
                drop(runtime.spawn(move || fiber.unpark()));
            } else {
                fiber.unpark();
            }
        });
        parked.into_iter().for_each(|fiber| fiber.join().unwrap());
        runtime.stop();
    });
}

#[test]
fn pinned_fibers_and_callers_of_run_share_the_workers() {
    for_each_size(|workers, runtime| {
        // With all seats bound there is no place for a caller: it waits without working.
        let fibers: Vec<_> =
            (0..workers).map(|worker| pinned(worker).spawn_on(&runtime, travel).unwrap()).collect();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| runtime.run(|| assert!(sleave::worker().is_some())));
            }
        });
        fibers.into_iter().for_each(|fiber| assert_eq!(fiber.join().unwrap().len(), 1));
        // A seat that is bound while a caller works takes the caller's place.
        let fresh = Runtime::builder().workers(workers).build().unwrap();
        let own = fresh.run(|| {
            let (done, gate) = (Arc::new(Count::new()), Arc::new(Gate::default()));
            let fibers: Vec<_> = (0..workers)
                .map(|worker| {
                    let (done, gate) = (Arc::clone(&done), Arc::clone(&gate));
                    let body = move || {
                        done.up();
                        gate.pass();
                        (sleave::worker(), tid())
                    };
                    pinned(worker).spawn(body).unwrap()
                })
                .collect();
            while done.get() < workers {
                sleave::yield_now();
            }
            gate.open();
            fibers.into_iter().map(|fiber| fiber.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(own.iter().enumerate().all(|(worker, seen)| seen.0 == Some(worker)), "{own:?}");
        fresh.stop();
        runtime.stop();
    });
}

#[test]
fn a_scoped_fiber_can_be_pinned_and_a_runtime_with_pins_can_be_dropped() {
    for_each_size(|workers, runtime| {
        let mut seen = vec![None; workers];
        runtime.run(|| {
            sleave::scope(|scope| {
                for (worker, seen) in seen.iter_mut().enumerate() {
                    let look = move || *seen = sleave::worker();
                    pinned(worker).spawn_scoped(scope, look).unwrap();
                }
            });
        });
        assert!(seen.iter().enumerate().all(|(worker, &seen)| seen == Some(worker)), "{seen:?}");
        let sleeper = pinned(0)
            .spawn_on(&runtime, || {
                thread::sleep(Duration::from_millis(5));
                sleave::worker()
            })
            .unwrap();
        drop(runtime);
        assert_eq!(sleeper.join().unwrap(), Some(0));
    });
}
