//! What becomes of timers when their runtime ends.

use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use sleave::{Runtime, Timer};

use crate::support::random::Random;
use crate::support::timing::eventually;
use crate::support::watchdog::Watchdog;
use crate::support::{Company, Count, Gate, Host, PATIENCE, WORKERS, scaled};
use crate::{LONG, MS, count, runtime};

/// Says when it is dropped, after a while.
struct Slow(Arc<Count>);

impl Drop for Slow {
    fn drop(&mut self) {
        thread::sleep(MS);
        self.0.up();
    }
}

#[test]
fn stop_drops_pending_timers_and_waits_for_calls_that_run() {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            let runtime = runtime(workers);
            let (dropped, ended, begun) =
                (Arc::new(Count::new()), Arc::new(Count::new()), Arc::new(Gate::default()));
            let timers: Vec<_> = (0..10)
                .map(|i| {
                    let slow = Slow(dropped.clone());
                    let body = move |_: &Timer| {
                        let _ = &slow;
                        unreachable!("stopped");
                    };
                    let timer = || Timer::builder().on(&runtime);
                    match i % 3 {
                        0 => timer().every(LONG, body).unwrap(),
                        1 => runtime.run(|| timer().every(LONG, body).unwrap()),
                        _ => runtime.run(|| timer().every(Duration::MAX, body).unwrap()),
                    }
                })
                .collect();
            let (done, open) = (ended.clone(), begun.clone());
            let call = move || {
                open.open();
                thread::sleep(20 * MS);
                done.up();
            };
            Timer::builder().on(&runtime).after(MS, call).unwrap();
            begun.pass();
            runtime.stop();
            assert_eq!(ended.get(), 1, "stop waits for a callback that runs");
            assert_eq!(dropped.get(), 10, "stop waits for the destructors");
            assert!(timers.iter().all(Timer::is_over));
            assert!(!timers.iter().any(|timer| timer.cancel() || timer.refresh()));
        }
    });
}

#[test]
fn until_its_last_fiber_has_ended_a_stopped_runtime_fires_timers() {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            for stopped in [true, false] {
                let runtime = runtime(workers);
                let ticks = Arc::new(Count::new());
                let tick = ticks.clone();
                Timer::builder().on(&runtime).every(2 * MS, move |_| count(&tick)).unwrap();
                let fiber = runtime.spawn(|| {
                    // By then the runtime is being stopped.
                    thread::sleep(10 * MS);
                    let (send, receive) = mpsc::channel();
                    Timer::after(10 * MS, move || send.send(5).unwrap());
                    receive.recv()
                });
                if stopped {
                    runtime.stop()
                } else {
                    drop(runtime)
                }
                assert_eq!(fiber.join().unwrap(), Ok(5));
                // A period that had begun may end; the timer does not go on.
                assert!(ticks.get() <= 3, "{} ticks of a stopped runtime", ticks.get());
            }
        }
    });
}

#[test]
fn a_dropped_runtime_drops_its_timers() {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            let runtime = runtime(workers);
            let dropped = Arc::new(Count::new());
            let [first, second] = [(); 2].map(|()| Slow(dropped.clone()));
            let thrower = Panics(dropped.clone());
            let timer = || Timer::builder().on(&runtime);
            timer().after(LONG, move || drop(first)).unwrap();
            timer().after(LONG, move || drop(thrower)).unwrap();
            runtime.run(|| timer().after(Duration::MAX, move || drop(second)).unwrap());
            drop(runtime);
            eventually("the callbacks are dropped", || dropped.get() == 3);
        }
    });
}

/// Panics when it is dropped.
struct Panics(Arc<Count>);

impl Drop for Panics {
    fn drop(&mut self) {
        self.0.up();
        resume_unwind(Box::new("a destructor's panic"));
    }
}

#[test]
fn timers_that_expire_while_their_runtime_ends_fire_or_are_dropped() {
    Company::Shared.keep(|| {
        let mut random = Random::new(11);
        for round in 0..scaled(1000) {
            let workers = WORKERS[round % WORKERS.len()];
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            let runtime = runtime(workers);
            let alive = Arc::new(());
            let timers: Vec<_> = (0..8)
                .map(|_| {
                    let alive = alive.clone();
                    let delay = Duration::from_micros(random.within(0..300) as u64);
                    Timer::builder().on(&runtime).after(delay, move || drop(alive)).unwrap()
                })
                .collect();
            thread::sleep(Duration::from_micros(random.within(0..150) as u64));
            runtime.stop();
            assert!(timers.iter().all(Timer::is_over));
            assert_eq!(Arc::strong_count(&alive), 1);
        }
    });
}

/// Whoever kept the builder may use it long after: the next runtime is not to be taken for the one that was chosen.
#[test]
fn a_timer_for_a_runtime_that_has_ended_is_refused() {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            let gone = runtime(workers);
            let builder = Timer::builder().on(&gone);
            builder.clone().after(LONG, || unreachable!("stopped")).unwrap();
            gone.stop();
            assert!(builder.clone().after(MS, || unreachable!("stopped")).is_err());
            drop(gone);
            // The runtimes that come next may have what it had.
            let next: Vec<_> = (0..4).map(|_| runtime(workers)).collect();
            assert!(builder.every(MS, |_| unreachable!("gone")).is_err());
            next.iter().for_each(Runtime::stop);
        }
    });
}
