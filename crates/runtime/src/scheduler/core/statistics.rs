//! What a runtime is doing, counted when somebody asks and at no cost otherwise.
//!
//! Everything but the number of fibers is read off the processors and the queues. What waits is what
//! is left, since those who wait are in no list of the runtime's:
//!
//! ```text
//!   fibers  =  running (on a processor)  +  runnable (in a queue)  +  waiting (the rest)
//! ```

use std::sync::atomic::Ordering;

use super::Core;
use super::end::KEEPER;

/// What a runtime is doing, at one moment.
///
/// The numbers are read one after the other while the runtime goes on: each was right a moment ago, and
/// where nothing moves all are right together. A fiber on its way from one state to the next may
/// count in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Fibers that have been spawned and have not ended.
    pub fibers: usize,
    /// Fibers of these that a worker is running, those in a call that blocks their worker included.
    pub running: usize,
    /// Fibers of these that could run and wait for a worker, those that have not begun included.
    pub runnable: usize,
    /// Fibers of these that wait for something: a descriptor, a time, a lock, a join, a token. 0 where
    /// each fiber is an OS thread, as are `running` and `runnable`.
    pub waiting: usize,
    /// OS threads that run fibers or look for some, those in a call that blocks them left out.
    pub workers: usize,
    /// Workers of these that sleep because there is nothing to do.
    pub idle: usize,
    /// OS threads in a call that blocks them: a declared one ([`blocking`](crate::blocking())), or one that the
    /// monitor has found them stuck in.
    pub blocked: usize,
}

/// What the processors of a runtime have counted since the process began.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) switches: u64,
    pub(crate) steals: u64,
    /// OS threads of the runtime's own, spare ones included.
    pub(crate) threads: usize,
}

impl Core {
    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally { threads: self.staff.lock().threads.len(), ..Tally::default() };
        for processor in self.processors() {
            // Relaxed, both: a momentary view.
            tally.switches += processor.switches.load(Ordering::Relaxed);
            tally.steals += processor.steals.load(Ordering::Relaxed);
        }
        tally
    }

    /// Fibers that have been spawned and have not ended.
    pub(crate) fn fibers(&self) -> usize {
        // Relaxed: a momentary view.
        self.fibers.load(Ordering::Relaxed) % KEEPER
    }

    /// OS threads that have a processor.
    pub(crate) fn live(&self) -> usize {
        self.staff.lock().live
    }

    /// What the names of its workers begin with.
    pub(crate) fn name(&self) -> String {
        self.name.lock().clone()
    }

    /// Costs a lock that is held for a moment, and a look at each processor.
    pub(crate) fn statistics(&self) -> Statistics {
        let (live, blocked) = {
            let staff = self.staff.lock();
            (staff.live, staff.blocked)
        };
        let processors = self.processors();
        // Relaxed, all: a momentary view.
        let running =
            processors.iter().filter(|p| !p.running.load(Ordering::Relaxed).is_null()).count();
        let queued: usize = processors.iter().map(|p| p.queue.len()).sum();
        let pinned: usize = self.seats().iter().map(|seat| seat.len()).sum();
        let runnable = queued + pinned + self.injector.len();
        let fibers = self.fibers();
        // Without a processor nothing of this runtime has run: fibers are OS threads, or none has begun.
        let waiting =
            if processors.is_empty() { 0 } else { fibers.saturating_sub(running + runnable) };
        Statistics {
            fibers,
            running,
            runnable,
            waiting,
            workers: live - blocked,
            idle: self.sleeping.load(Ordering::Relaxed).min(live - blocked),
            blocked,
        }
    }
}
