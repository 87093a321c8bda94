//! Cancellation and time limits: where they reach a fiber, where not, what has happened by then, and what they leave behind.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "its main prints")]
#[path = "../../examples/cancel.rs"]
mod cancel;

mod reach;
mod scopes;
mod storm;
mod timeouts;

use sleave::{Cancelled, JoinHandle, Runtime};

/// Runs `test` on runtimes of every size; not where fibers are OS threads, which hear of nothing while they wait.
fn on_runtimes(test: impl Fn(&Runtime)) {
    if sleave::identity().is_err() {
        return;
    }
    support::Company::Shared.keep(|| {
        for workers in support::WORKERS {
            let host = support::Host::Fibers { workers };
            let _watchdog = support::Watchdog::over(host, support::LONG_PATIENCE);
            let runtime = Runtime::builder().workers(workers).build().unwrap();
            test(&runtime);
            runtime.stop();
        }
    });
}

/// Whether the fiber has ended by its cancellation.
#[track_caller]
fn assert_cancelled<T>(fiber: JoinHandle<T>) {
    let payload = fiber.join().err().expect("it has returned");
    assert!(payload.is::<Cancelled>(), "it has panicked");
}

#[test]
fn the_example_tells_what_ends_and_what_is_put_back() {
    if sleave::identity().is_err() {
        return;
    }
    let told = support::Company::Shared.keep(cancel::story);
    let expected = [
        "the lock file is put back",
        "cancelled: true",
        "read: Operation canceled (os error 125)",
        "the connection is put back",
        "in time: false",
        "the other half is put back",
        "failed: true",
        "the cache is put back",
        "shut down: true",
    ];
    assert_eq!(told, expected);
}
