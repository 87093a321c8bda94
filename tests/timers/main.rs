//! Timers, as a program sees them: when they fire, who may end or move them, what becomes of them.
//!
//! Each behaviour is shown on runtimes of 1, 2 and 4 workers, with the timers started by a plain
//! thread and by a fiber of the runtime ([`each`]); and once more in a child process where fibers
//! are OS threads ([`where_fibers_are_threads_all_of_this_holds_as_well`]). That a timer is never
//! early is asserted of every single one; that it is not late, of the best of several.
//!
//! Sources: clock_gettime(2) (`CLOCK_MONOTONIC`, which `Instant` reads), getrusage(2).

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod changes;
mod ends;
mod fibers;
mod firing;
mod many;
mod recurring;

use std::time::Duration;

use sleave::{Runtime, Timer, TimerBuilder};
use support::watchdog::Watchdog;
use support::{Company, Count, Host, LONG_PATIENCE, PATIENCE, WORKERS};

const MS: Duration = Duration::from_millis(1);
/// Long enough that what should have been cancelled is not, on any machine.
const LONG: Duration = Duration::from_secs(1000);

/// A runtime under test, seen from a thread or from one of its fibers.
#[derive(Clone, Copy)]
struct Place<'a> {
    host: Host,
    runtime: &'a Runtime,
    fiber: bool,
}

impl Place<'_> {
    /// Starts timers on the runtime.
    fn timer(self) -> TimerBuilder {
        // A fiber finds its own runtime.
        if self.fiber { Timer::builder() } else { Timer::builder().on(self.runtime) }
    }

    fn after(self, delay: Duration, callback: impl FnOnce() + Send + 'static) -> Timer {
        self.timer().after(delay, callback).expect("a timer")
    }

    fn every(self, period: Duration, callback: impl FnMut(&Timer) + Send + 'static) -> Timer {
        self.timer().every(period, callback).expect("a timer")
    }

    /// Asserts that what `round` returns is in order, where one thing happens after the other: on
    /// one worker, with fibers to run on it. That a busy machine may stop for so long that another
    /// takes its place; so this is asked of the best of several rounds, as precision is.
    fn assert_in_order(self, round: impl Fn() -> Vec<usize>) {
        const ROUNDS: usize = 10;
        let asked = self.host == Host::Fibers { workers: 1 } && sleave::identity().is_ok();
        let mut last = Vec::new();
        for _ in 0..ROUNDS {
            last = round();
            if !asked || last.is_sorted() {
                return;
            }
        }
        panic!("never in order: {last:?}");
    }
}

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).build().expect("a runtime")
}

/// Runs `body` on runtimes of all sizes, on a plain thread and on a fiber.
fn each(body: impl Fn(Place) + Sync) {
    Company::Shared.keep(|| each_here(PATIENCE, &body));
}

/// As [`each`], with nothing else running in this process.
fn each_alone(body: impl Fn(Place) + Sync) {
    Company::Alone.keep(|| each_here(LONG_PATIENCE, &body));
}

fn each_here(patience: Duration, body: &(impl Fn(Place) + Sync)) {
    for workers in WORKERS {
        let host = Host::Fibers { workers };
        let _watchdog = Watchdog::over(host, patience);
        let runtime = runtime(workers);
        body(Place { host, runtime: &runtime, fiber: false });
        runtime.run(|| {
            // Where fibers are threads, nobody is found to be on a runtime.
            let fiber = sleave::identity().is_ok();
            body(Place { host, runtime: &runtime, fiber });
        });
        runtime.stop();
    }
}

fn count(calls: &Count) {
    calls.up();
}
