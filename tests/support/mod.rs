//! The harness: one body, run on OS threads and on fibers.
//!
//! sleave's claim is that a fiber is a thread that the kernel does not know. So its tests do not
//! describe what a fiber should do; they ask a thread. A test body is written once against
//! [`Host`], which spawns, joins, scopes and yields on either side, and [`everywhere`] runs it
//!
//! ```text
//!                     ┌── OS threads ──────────────► reference value
//!     body(Host) ─────┼── fibers, 1 worker ────────► must be equal
//!                     ├── fibers, 2 workers ───────► must be equal
//!                     └── fibers, 4 workers ───────► must be equal
//! ```
//!
//! One worker shows that nothing holds the OS thread; two and four show that fibers may move.
//!
//! Invariants:
//! - every run stands under a [`watchdog`], so that a hang is a failure with a name;
//! - every runtime is stopped after its run, and `stop` waits for all fibers: none is lost;
//! - a lower bound on time is exact, an upper bound is what a loaded two-core machine can keep;
//! - a body whose load or CPU time would disturb the others runs alone (see [`Company`]).

pub mod count;
pub mod host;
pub mod kernel;
pub mod load;
pub mod random;
pub mod sockets;
pub mod timing;
pub mod watchdog;

use std::fmt::Debug;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

pub use count::{Count, Flag, Gate};
pub use host::{Host, Scope, ScopedTask, Task};
pub use watchdog::Watchdog;

/// The sizes of runtime that every behaviour is shown on.
pub const WORKERS: [usize; 3] = [1, 2, 4];

/// Whether a test may share the machine with the other tests of its binary.
///
/// libtest runs as many tests at once as there are cores. Tests of behaviour do not mind; tests
/// that measure the process (CPU time, mappings, descriptor numbers) or load it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// Beside other shared ones.
    Shared,
    /// With nothing else running.
    Alone,
}

/// Taken shared by every ordinary run and exclusively by those that must be alone. It is only
/// ever held by the plain threads of libtest.
static MACHINE: RwLock<()> = RwLock::new(());

impl Company {
    /// Runs `f` in this company.
    pub fn keep<T>(self, f: impl FnOnce() -> T) -> T {
        // A failed test poisons the lock; that says nothing about the next test.
        match self {
            Company::Shared => {
                let _machine = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
                f()
            }
            Company::Alone => {
                let _machine = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
                f()
            }
        }
    }
}

/// How long a single run may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The same for the runs with a heavy load.
pub const LONG_PATIENCE: Duration = Duration::from_secs(240);

/// Runs `body` on OS threads and on fibers, and asserts that every result is the threads' one.
pub fn everywhere<T, F>(body: F)
where
    T: PartialEq + Debug + Send,
    F: Fn(Host) -> T + Sync,
{
    Company::Shared.keep(|| compare(PATIENCE, &body));
}

/// As [`everywhere`], with nothing else running in this process.
pub fn everywhere_alone<T, F>(body: F)
where
    T: PartialEq + Debug + Send,
    F: Fn(Host) -> T + Sync,
{
    Company::Alone.keep(|| compare(LONG_PATIENCE, &body));
}

/// Runs `body` on fibers only: for what threads cannot do, or do differently by documentation.
pub fn on_fibers<F: Fn(Host) + Sync>(body: F) {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            Host::Fibers { workers }.run(PATIENCE, &body);
        }
    });
}

/// As [`on_fibers`], with nothing else running in this process.
pub fn on_fibers_alone<F: Fn(Host) + Sync>(body: F) {
    Company::Alone.keep(|| {
        for workers in WORKERS {
            Host::Fibers { workers }.run(LONG_PATIENCE, &body);
        }
    });
}

fn compare<T, F>(patience: Duration, body: &F)
where
    T: PartialEq + Debug + Send,
    F: Fn(Host) -> T + Sync,
{
    let reference = Host::Threads.run(patience, body);
    for workers in WORKERS {
        let host = Host::Fibers { workers };
        let result = host.run(patience, body);
        assert_eq!(result, reference, "{host} (left) differ from OS threads (right)");
    }
}

/// `full` in a release build, a fifth of it in a debug build: for loads that would take a debug
/// build longer than ten seconds.
pub fn scaled(full: usize) -> usize {
    if cfg!(debug_assertions) { full / 5 } else { full }
}
