//! How a runtime is stopped while it is busy: by whom, how often, against what.
//!
//! Each is shown on 1, 2 and 4 workers, which are threads of the runtime's own or the caller among them
//! ([`each`]). In the end nothing is lost ([`Census::assert_complete`](support::load::Census)), nobody is left,
//! and the runtime says so ([`assert_over`]).

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod callers;
mod racing;
mod stubborn;

use std::time::Duration;

use sleave::{Builder, Runtime, Statistics};
use support::kernel::threads_named;
use support::random::Random;
use support::timing::eventually;
use support::watchdog::Watchdog;
use support::{Company, Host, LONG_PATIENCE, WORKERS};

const MS: Duration = Duration::from_millis(1);

/// The names of the workers begin with this; each test has a process of threads to itself ([`Company::Alone`]).
const NAME: &str = "stopping";

/// Runs `body` with a runtime of each shape.
fn each(body: impl Fn(Runtime)) {
    Company::Alone.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, LONG_PATIENCE);
            for use_caller in [false, true] {
                let builder = Runtime::builder().workers(workers).name(NAME);
                let builder = if use_caller { builder.use_caller() } else { builder };
                body(builder.build().expect("a runtime"));
                // The kernel takes a thread that has been joined off the list a moment later.
                eventually("its threads are gone", || threads_named(NAME) == 0);
            }
        }
    });
}

/// Asserts that `runtime` has come to its end.
fn assert_over(runtime: &Runtime) {
    let Statistics { fibers, running, runnable, waiting, workers, idle, blocked } =
        runtime.statistics();
    assert_eq!([fibers, running, runnable, waiting, workers, idle, blocked], [0; 7]);
    let refused = Builder::new().spawn_on(runtime, || unreachable!()).unwrap_err();
    assert_eq!(refused.to_string(), "the runtime has been stopped");
    assert!(runtime.stop_timeout(Duration::ZERO), "it is over, however little time there is");
}

/// Numbers for this run's load.
fn random() -> Random {
    Random::new(7)
}
