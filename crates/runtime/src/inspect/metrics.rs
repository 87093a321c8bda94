//! Numbers about the whole process: all runtimes together, counted when somebody asks.
//!
//! Whatever is counted as it happens is counted by the owner of a processor alone, in a word of its own, and added up here.

use crate::fiber::FiberId;
use crate::pool;
use crate::scheduler::watched;

/// Numbers about all runtimes of the process. They are read one after the other while everything goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Runtimes that have not come to their end.
    pub runtimes: usize,
    /// Fibers that have been made since the process began, callbacks of timers and events among them.
    pub spawned: u64,
    /// Fibers that have not ended, those of [`Statistics::fibers`](crate::Statistics::fibers).
    pub fibers: usize,
    /// Fibers that a worker is running.
    pub running: usize,
    /// Fibers that could run and wait for a worker.
    pub runnable: usize,
    /// Fibers that wait for something.
    pub waiting: usize,
    /// OS threads that run fibers or look for some.
    pub workers: usize,
    /// Workers that sleep because there is nothing to do.
    pub idle: usize,
    /// OS threads in a call that blocks them, beside the workers.
    pub blocked: usize,
    /// OS threads that runtimes have started: workers, those in calls, spare ones.
    pub threads: usize,
    /// Switches between fibers since the process began.
    pub switches: u64,
    /// Fibers that a worker has taken from another's queue, counted by the grab.
    pub steals: u64,
    /// Stacks and identities that are free and keep their memory.
    pub warm_slots: usize,
}

/// Numbers about all runtimes of the process at this moment.
///
/// # Examples
///
/// ```
/// let handle = sleave_runtime::spawn(|| 1);
/// handle.join().unwrap();
/// let metrics = sleave_runtime::metrics();
/// assert!(metrics.spawned >= 1 && metrics.runtimes >= 1);
/// ```
pub fn metrics() -> Metrics {
    let mut metrics = Metrics {
        spawned: FiberId::count(),
        warm_slots: pool::statistics().warm,
        ..Metrics::default()
    };
    for core in watched() {
        let (statistics, tally) = (core.statistics(), core.tally());
        metrics.runtimes += 1;
        metrics.fibers += statistics.fibers;
        metrics.running += statistics.running;
        metrics.runnable += statistics.runnable;
        metrics.waiting += statistics.waiting;
        metrics.workers += statistics.workers;
        metrics.idle += statistics.idle;
        metrics.blocked += statistics.blocked;
        metrics.threads += tally.threads;
        metrics.switches += tally.switches;
        metrics.steals += tally.steals;
    }
    metrics
}
