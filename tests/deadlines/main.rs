//! Deadlines by default: waits that state no time of their own, limited by the runtime, the fiber's
//! builder, or the fiber itself.
//!
//! A limit is to be what a socket's own timeout is, so wherever a thread can have one of those the same
//! body runs on threads with `SO_RCVTIMEO` and `SO_SNDTIMEO` and on fibers with the limit. What is never
//! over without the limit is ended by the watchdog.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "its main prints")]
#[path = "../../examples/silent_clients.rs"]
mod silent_clients;

mod afterwards;
mod connects;
mod settings;
mod waits;

use std::time::Duration;

use sleave::{Runtime, RuntimeBuilder};
use support::watchdog::Watchdog;
use support::{Company, Host, PATIENCE, WORKERS};

const MS: Duration = Duration::from_millis(1);

/// Runs `body` on a fiber of runtimes with 1, 2 and 4 workers, as `choose` has them made. Limits are
/// refused where fibers are OS threads.
fn on_runtimes(choose: impl Fn(RuntimeBuilder) -> RuntimeBuilder, body: impl Fn(Host) + Sync) {
    on_watched_runtimes(choose, |host, _| body(host));
}

/// As [`on_runtimes`], for a body that asks its runtime what its fibers are doing.
fn on_watched_runtimes(
    choose: impl Fn(RuntimeBuilder) -> RuntimeBuilder,
    body: impl Fn(Host, &Runtime) + Sync,
) {
    if sleave::identity().is_err() {
        return;
    }
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let host = Host::Fibers { workers };
            let _watchdog = Watchdog::over(host, PATIENCE);
            let runtime = choose(Runtime::builder().workers(workers)).build().expect("a runtime");
            runtime.run(|| body(host, &runtime));
            runtime.stop();
        }
    });
}

#[test]
fn a_server_drops_silent_clients_and_serves_the_others() {
    let expected = [
        "client 1: said hello, and says no more",
        "server: client 1 was silent, and dropped",
        "client 1: has read 0 bytes, the end",
        "client 2: said hello, and hung up",
        "server: client 2 has hung up",
    ];
    if sleave::identity().is_ok() {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, PATIENCE);
        assert_eq!(silent_clients::story(), expected);
    }
}
