//! Runtimes: who runs a fiber, who waits for it, how many may live side by side.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave::Runtime;

use crate::support::kernel::{block_thread, cpu_time, os_threads, threads_named, tid};
use crate::support::timing::eventually;
use crate::support::watchdog::Watchdog;
use crate::support::{Company, Count, Gate, Host, PATIENCE, WORKERS};

/// Runs `body` on this plain thread, which `Host::run` would not, once for each number of workers.
fn for_each_size(body: impl Fn(usize)) {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            body(workers);
        }
    });
}

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).build().expect("a runtime")
}

#[test]
fn stop_waits_for_every_fiber() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let done = Arc::new(Count::new());
        for i in 0..100 {
            let done = Arc::clone(&done);
            drop(runtime.spawn(move || {
                thread::sleep(Duration::from_millis(i % 50));
                // What a fiber spawns is waited for as well.
                let grandchild = Arc::clone(&done);
                drop(sleave::spawn(move || {
                    thread::sleep(Duration::from_millis(10));
                    grandchild.up();
                }));
                done.up();
            }));
        }
        runtime.stop();
        assert_eq!(done.get(), 200);
    });
}

#[test]
fn fibers_left_behind_by_run_end_before_stop() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let (done, gate) = (Arc::new(Count::new()), Arc::new(Gate::default()));
        runtime.run(|| {
            for _ in 0..10 {
                let (done, gate) = (Arc::clone(&done), Arc::clone(&gate));
                drop(sleave::spawn(move || {
                    gate.pass();
                    thread::sleep(Duration::from_millis(10));
                    done.up();
                }));
            }
        });
        // `run` is over when its own closure is.
        assert_eq!(done.get(), 0);
        gate.open();
        runtime.stop();
        assert_eq!(done.get(), 10);
    });
}

#[test]
fn run_borrows_returns_and_panics_like_a_call() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let mut text = String::from("borrowed");
        let length = runtime.run(|| {
            thread::sleep(Duration::from_millis(1));
            text.push_str(" and changed");
            text.len()
        });
        assert_eq!((text.as_str(), length), ("borrowed and changed", 20));
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.run(|| std::panic::resume_unwind(Box::new("out of run")))
        }));
        let payload = caught.map(|(): ()| ()).unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"out of run"));
        assert_eq!(runtime.run(|| 5), 5, "the runtime has survived it");
        runtime.stop();
    });
}

#[test]
fn run_makes_its_caller_a_worker() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let caller = tid();
        // With other workers about any of them may be first; a lone one is the caller.
        if workers == 1 {
            assert_eq!(runtime.run(tid), caller);
        }
        assert_eq!(tid(), caller, "the caller comes back on its own thread");
        runtime.stop();
    });
}

#[test]
fn a_plain_thread_spawns_and_joins() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let handles: Vec<_> = (0..50)
            .map(|i| {
                runtime.spawn(move || {
                    thread::sleep(Duration::from_millis(i % 5));
                    i
                })
            })
            .collect();
        let sum: u64 = handles.into_iter().map(|handle| handle.join().unwrap()).sum();
        assert_eq!(sum, (0..50).sum());
        runtime.stop();
    });
}

#[test]
fn several_plain_threads_run_on_one_runtime() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        thread::scope(|scope| {
            let callers: Vec<_> = (0..4)
                .map(|i| {
                    let runtime = &runtime;
                    scope.spawn(move || {
                        runtime.run(|| {
                            let child = sleave::spawn(move || {
                                thread::sleep(Duration::from_millis(5));
                                i
                            });
                            child.join().unwrap() * 2
                        })
                    })
                })
                .collect();
            for (i, caller) in callers.into_iter().enumerate() {
                assert_eq!(caller.join().unwrap(), 2 * i);
            }
        });
        runtime.stop();
    });
}

/// Callers of `run` that end at the same time wake and ring each other on their way out. Whoever goes last leaves
/// a worker behind: there are more callers than workers, so fibers still wait for a deadline.
#[test]
fn runs_that_end_together_leave_a_worker_for_the_rest() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        for _ in 0..300 {
            thread::scope(|scope| {
                for _ in 0..workers + 2 {
                    let runtime = &runtime;
                    let nap = || thread::sleep(Duration::from_micros(200));
                    scope.spawn(move || runtime.run(|| sleave::spawn(nap).join().unwrap()));
                }
            });
        }
        runtime.stop();
    });
}

#[test]
fn two_runtimes_talk_to_each_other() {
    for_each_size(|workers| {
        let (near, far) = (runtime(workers), runtime(workers));
        let (question, questions) = mpsc::sync_channel::<u32>(0);
        let (answer, answers) = mpsc::sync_channel(0);
        // A fiber of one waits at a channel, a gate and a join for fibers of the other.
        let gate = Arc::new(Gate::default());
        let responder = far.spawn({
            let gate = Arc::clone(&gate);
            move || {
                gate.pass();
                for number in questions {
                    answer.send(number + 1).unwrap();
                }
                "done"
            }
        });
        let sum = near.run(|| {
            gate.open();
            let asker = sleave::spawn(move || {
                (0..500)
                    .map(|number| {
                        question.send(number).unwrap();
                        answers.recv().unwrap()
                    })
                    .sum::<u32>()
            });
            (asker.join().unwrap(), responder.join().unwrap())
        });
        assert_eq!(sum, ((1..=500).sum(), "done"));
        near.stop();
        far.stop();
    });
}

#[test]
fn the_default_runtime_starts_on_first_use() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 0 }, PATIENCE);
        let handle = sleave::spawn(|| {
            sleave::yield_now();
            thread::sleep(Duration::from_millis(1));
            sleave::current().is_some()
        });
        assert!(handle.join().unwrap());
        let sum = sleave::run(|| {
            let handles: Vec<_> = (0..10).map(|i| sleave::spawn(move || i)).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).sum::<i32>()
        });
        assert_eq!(sum, 45);
    });
}

#[test]
fn a_stopped_runtime_leaves_no_threads_and_no_descriptors() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let cycle = |workers| {
        let runtime = runtime(workers);
        runtime.run(|| {
            let (mut near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
            let child = sleave::spawn(move || std::io::Read::read(&mut near, &mut [0]).unwrap());
            std::io::Write::write_all(&mut far, b"x").unwrap();
            assert_eq!(child.join().unwrap(), 1);
        });
        runtime.stop();
    };
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 4 }, PATIENCE);
        // What the process starts once (a monitor, the default runtime) may stay.
        cycle(4);
        let threads = os_threads();
        let open = descriptors();
        for workers in WORKERS.into_iter().cycle().take(150) {
            cycle(workers);
        }
        // The kernel takes a joined thread off the list a moment after its join. libtest's threads
        // for other tests may start meanwhile and wait for their turn: one for each core.
        let of_libtest = thread::available_parallelism().map_or(1, usize::from);
        eventually("the workers end", || os_threads() <= threads + of_libtest);
        assert!(descriptors() <= open + 2, "{} descriptors, {open} before", descriptors());
    });
}

#[test]
fn a_dropped_runtime_leaves_no_threads_and_no_descriptors() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let cycle = |workers| {
        let runtime = Runtime::builder().workers(workers).name("dropped").build().unwrap();
        // Still asleep when its runtime is dropped.
        let sleeper = runtime.spawn(|| thread::sleep(Duration::from_millis(3)));
        drop(runtime);
        sleeper.join().unwrap();
    };
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 4 }, PATIENCE);
        let at_rest = || eventually("the workers end", || threads_named("dropped") == 0);
        // In a hurry: as many are there at once as the monitor has not taken apart yet.
        for workers in WORKERS.into_iter().cycle().take(60) {
            cycle(workers);
        }
        at_rest();
        // One after the other: each finds the descriptors of one that is gone, or of none, if it comes
        // between the end of that one's threads and its own: then there is one more to be found by the next.
        // If all left some behind, there would never be so many in a row that need no more.
        let (mut open, mut in_a_row) = (descriptors(), 0);
        for workers in WORKERS.into_iter().cycle().take(1000) {
            cycle(workers);
            at_rest();
            in_a_row = if descriptors() > open { 0 } else { in_a_row + 1 };
            open = open.max(descriptors());
            if in_a_row == 60 {
                return;
            }
        }
        panic!("{open} descriptors, and ever more");
    });
}

#[test]
fn a_run_that_ends_while_its_thread_is_busy_keeps_nobody_spinning() {
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 4 }, PATIENCE);
        let runtime = runtime(4);
        let begun = Instant::now();
        let used = cpu_time();
        runtime.run(|| {
            // Many fibers that block the threads they are on, the caller's among them.
            for _ in 0..4 {
                sleave::spawn(|| block_thread(Duration::from_millis(300)));
            }
            sleave::yield_now();
        });
        runtime.stop();
        let (elapsed, used) = (begun.elapsed(), cpu_time() - used);
        assert!(used < elapsed / 2, "{used:?} of CPU in {elapsed:?}");
    });
}

#[test]
fn fibers_run_on_as_many_threads_as_there_are_workers() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let tids = runtime.run(|| {
            let handles: Vec<_> = (0..200)
                .map(|_| {
                    sleave::spawn(|| {
                        let mut seen = Vec::new();
                        for _ in 0..20 {
                            seen.push(tid());
                            sleave::yield_now();
                        }
                        seen
                    })
                })
                .collect();
            let mut tids: Vec<_> =
                handles.into_iter().flat_map(|handle| handle.join().unwrap()).collect();
            tids.sort_unstable();
            tids.dedup();
            tids.len()
        });
        // A machine that stops a worker for long makes the monitor put another in its place: a
        // few more than asked for are right, one for each of 200 fibers is not.
        assert!(tids <= workers + 8, "{tids} OS threads for {workers} workers");
        runtime.stop();
    });
}

#[test]
fn fibers_are_counted_by_what_they_do() {
    const PARKED: usize = 5;
    const QUEUED: usize = 10;
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, PATIENCE);
        let runtime = runtime(1);
        let (counted, handles) = runtime.run(|| {
            let arrived = Arc::new(Count::new());
            let spawn_parked = || {
                let arrived = Arc::clone(&arrived);
                sleave::spawn(move || {
                    arrived.up();
                    sleave::park();
                })
            };
            let handles: Vec<_> = (0..PARKED).map(|_| spawn_parked()).collect();
            while arrived.get() < PARKED {
                sleave::yield_now();
            }
            // The one worker is here: those have parked, and these cannot begin.
            (0..QUEUED).for_each(|_| drop(sleave::spawn(|| ())));
            (runtime.statistics(), handles)
        });
        assert_eq!(counted.fibers, 1 + PARKED + QUEUED, "{counted:?}");
        assert_eq!((counted.running, counted.runnable), (1, QUEUED), "{counted:?}");
        assert_eq!((counted.waiting, counted.idle), (PARKED, 0), "{counted:?}");
        handles.iter().for_each(|handle| handle.fiber().unpark());
        handles.into_iter().for_each(|handle| handle.join().unwrap());
        runtime.stop();
    });
}

#[test]
fn what_comes_from_outside_counts_as_runnable() {
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, PATIENCE);
        let runtime = runtime(1);
        // Three from a plain thread, while the only worker computes: so long that it is replaced, if
        // the machine is busy. One try of several must be good.
        let counted = || {
            runtime.run(|| {
                thread::scope(|scope| {
                    let spawner = scope.spawn(|| [(); 3].map(|()| runtime.spawn(|| ())));
                    while !spawner.is_finished() {
                        std::hint::spin_loop();
                    }
                    let runnable = runtime.statistics().runnable;
                    for handle in spawner.join().unwrap() {
                        handle.join().unwrap();
                    }
                    runnable
                })
            })
        };
        let seen: Vec<_> = std::iter::repeat_with(counted).take(20).collect();
        assert!(seen.contains(&3), "runnable in each try: {seen:?}");
        runtime.stop();
    });
}

#[test]
fn at_rest_every_fiber_waits_and_every_worker_is_idle() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let handles: Vec<_> = (0..50).map(|_| runtime.spawn(sleave::park)).collect();
        eventually("all have parked", || {
            let now = runtime.statistics();
            let fibers = (now.fibers, now.running, now.runnable, now.waiting);
            fibers == (50, 0, 0, 50) && now.idle == now.workers && now.workers > 0
        });
        handles.iter().for_each(|handle| handle.fiber().unpark());
        handles.into_iter().for_each(|handle| handle.join().unwrap());
        eventually("all have ended", || {
            let now = runtime.statistics();
            (now.fibers, now.running, now.runnable, now.waiting) == (0, 0, 0, 0)
        });
        runtime.stop();
    });
}
