//! Who stops: a thread, a fiber, a fiber of another runtime, several at once, one after the other, nobody.

use std::sync::{Arc, Barrier};
use std::thread;

use sleave::{Builder, Runtime};

use super::*;
use crate::support::load::{Census, KINDS, spawn_all};
use crate::support::{Count, Flag};

/// Bits of everything.
const ROUNDS: usize = if cfg!(debug_assertions) { 4 } else { 20 };

/// Runs `stop` with a runtime under load; nothing may be lost.
fn under_load(stop: impl Fn(&Runtime)) {
    each(|runtime| {
        let census = Census::new();
        spawn_all(&runtime, &census, ROUNDS, &mut random());
        stop(&runtime);
        census.assert_complete();
        assert!(census.begun() >= ROUNDS * KINDS);
        assert_over(&runtime);
    });
}

#[test]
fn a_thread_stops_it() {
    under_load(Runtime::stop);
}

#[test]
fn another_thread_stops_it_than_the_one_inside_run() {
    each(|runtime| {
        let (census, stopped) = (Census::new(), Flag::new());
        thread::scope(|threads| {
            runtime.run(|| {
                spawn_all(&runtime, &census, ROUNDS, &mut random());
                threads.spawn(|| {
                    runtime.stop();
                    stopped.raise();
                });
                // Still inside, so it cannot be over.
                thread::sleep(5 * MS);
                assert!(!stopped.is_up());
            });
        });
        census.assert_complete();
        assert_over(&runtime);
    });
}

#[test]
fn it_is_stopped_twice_one_after_the_other() {
    under_load(|runtime| {
        runtime.stop();
        runtime.stop();
    });
}

#[test]
fn it_is_stopped_by_several_threads_at_once_and_each_returns_when_all_is_over() {
    each(|runtime| {
        const THREADS: usize = 4;
        let (census, together) = (Census::new(), Barrier::new(THREADS));
        spawn_all(&runtime, &census, ROUNDS, &mut random());
        thread::scope(|threads| {
            for _ in 0..THREADS {
                threads.spawn(|| {
                    together.wait();
                    runtime.stop();
                    census.assert_complete();
                    assert_eq!(runtime.statistics().fibers, 0);
                });
            }
        });
        // Among them were callers, who are workers until they return.
        assert_over(&runtime);
    });
}

#[test]
fn a_fiber_of_its_own_only_asks_and_goes_on() {
    if sleave::identity().is_err() {
        return;
    }
    each(|runtime| {
        let census = Census::new();
        spawn_all(&runtime, &census, ROUNDS, &mut random());
        let after = Arc::new(Count::new());
        let late = Arc::clone(&after);
        runtime.run(|| {
            runtime.stop();
            runtime.stop();
            assert!(!runtime.stop_timeout(Duration::MAX), "it has not ended itself");
            assert!(runtime.statistics().fibers > 0);
            // From inside, life goes on. Nobody but the stop waits for this one.
            drop(sleave::spawn(move || {
                thread::sleep(3 * MS);
                late.up();
            }));
        });
        let refused = Builder::new().spawn_on(&runtime, || unreachable!());
        assert!(refused.is_err(), "what comes from outside is refused from then on");
        runtime.stop();
        assert_eq!(after.get(), 1);
        census.assert_complete();
        assert_over(&runtime);
    });
}

#[test]
fn a_fiber_of_another_runtime_parks_until_it_is_over() {
    let other = Runtime::builder().workers(1).build().unwrap();
    under_load(|runtime| {
        let beside = Count::new();
        other.run(|| {
            sleave::scope(|fibers| {
                let stopper = fibers.spawn(|| runtime.stop());
                // On the one worker that the two share.
                while !stopper.is_finished() {
                    beside.up();
                    thread::sleep(MS / 10);
                }
            });
        });
        assert!(beside.get() > 0);
    });
    other.stop();
}

#[test]
fn one_that_is_dropped_instead_loses_nothing_either() {
    each(|runtime| {
        let census = Census::new();
        spawn_all(&runtime, &census, ROUNDS, &mut random());
        drop(runtime);
        eventually("all have ended", || Arc::strong_count(&census) == 1);
        census.assert_complete();
    });
}
