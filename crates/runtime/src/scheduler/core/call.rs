//! Workers in calls that block their thread: declared by the fiber that makes the call, or found by the monitor.
//!
//! ```text
//!            declare   the fiber, before its call
//!            block     the monitor, after some 15 ms
//!   counts ───────────────────────────────────────────▶ blocked    its place is free: a stand-in takes it
//!          ◀───────────────────────────────────────────            one worker is too many: whoever notices first
//!            unblock   the fiber, after its call; or                becomes a spare thread
//!                      the worker's own loop
//! ```
//!
//! A worker that is blocked keeps its processor, from which all that others want can be taken without it. So the call
//! may return at any moment, and the fiber goes on at once, on the same thread.
//!
//! # What a declared call costs
//!
//! If a worker sleeps in the driver: two holds of the staff's lock, and a ring if something lies in the queue. The
//! sleeper watches over descriptors and timers. If none sleeps, a thread is started or a spare one called. That one finds
//! nothing to do sooner or later, and sleeps; when the call returns nobody sends it away, so it is there for the next. A
//! runtime whose fibers make such calls again and again has one sleeper more than it has workers, and the cheap way.
//!
//! A call that is mostly over at once, and sometimes is not (opening a file, which may be a FIFO), is declared without
//! calling anybody: the monitor finds within one of its ticks, 5 ms, that nobody looks after the rest, or that something lies in
//! a queue.
//!
//! # The limit
//!
//! Declared calls leave as many processors free as the runtime has workers: fibers that do not block always run. A
//! call beyond that limit that waits for somebody (a child, a lock of another process) waits as a parked fiber until
//! another call has returned: if it took the last thread, whoever is to end the others might never run. A
//! call that ends by itself is made all the same, undeclared: who makes it may be the one that the others wait for.

use std::sync::atomic::Ordering;

use super::staff::Staff;
use super::{Core, MOST_PROCESSORS};
use crate::fiber::Control;
use crate::inspect::Awaited;
use crate::scheduler::monitor;
use crate::scheduler::processor::Processor;
use crate::wait::{Deadline, futex};

/// How a call that blocks its thread ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// By itself, and mostly at once.
    Glances,
    /// By itself, when its work is done: a disk, a resolver.
    Works,
    /// When somebody else does something, who may be a fiber: a child, a lock, the other end of a FIFO.
    Waits,
}

/// What came of counting a worker out.
pub(crate) enum Outcome {
    /// It does not count until it moves.
    Counted,
    /// It did not count before.
    Already,
    /// There are too many in calls.
    Refused,
}

impl Staff {
    /// The worker of `processor` counts, whatever was found or declared. Whether somebody has waited for that, who
    /// is to be let in when the lock is free.
    #[must_use]
    pub(super) fn unblock(&mut self, processor: &Processor) -> bool {
        // Relaxed: under the lock, as this method's caller has it.
        let was_blocked = processor.blocked.swap(false, Ordering::Relaxed);
        self.blocked -= usize::from(was_blocked);
        was_blocked && self.queued > 0
    }

    /// The worker of `processor` does not count; whether it did.
    fn block(&mut self, processor: &Processor) -> bool {
        // Relaxed: as above.
        let counted = !processor.blocked.swap(true, Ordering::Relaxed);
        self.blocked += usize::from(counted);
        if counted {
            // Relaxed, both: under the lock.
            let calls = processor.calls.load(Ordering::Relaxed) + 1;
            processor.calls.store(calls, Ordering::Relaxed);
        }
        counted
    }
}

impl Core {
    /// The calling fiber, whose control block it is, is about to make a call that blocks its thread; from now on others
    /// do what its worker did. What is `Counted` is to be taken back, by [`Core::unblock`]. If there are too many such calls, one that
    /// waits parks the fiber first, which may move it; another is `Refused`.
    pub(crate) fn declare(control: &Control, call: Call) -> Outcome {
        let core = control.processor().core();
        let mut queued = false;
        loop {
            // Acquire: with the Release in `let_in`; before the look under the lock.
            let turn = core.returns.load(Ordering::Acquire);
            let processor = control.processor();
            let outcome = core.enters_call(processor, call, &mut queued);
            match (&outcome, call) {
                (Outcome::Refused, Call::Waits) => {
                    // SAFETY: a core lives for ever; the caller is a fiber.
                    unsafe {
                        let word = &core.returns;
                        futex::wait_for(Awaited::Call, word, turn, u32::MAX, Deadline::NEVER)
                    };
                    continue;
                }
                (Outcome::Counted, Call::Works | Call::Waits) => core.call_stand_in(processor),
                _ => {}
            }
            return outcome;
        }
    }

    /// Counts the worker of `processor` out for a declared call, unless there are too many. `queued` says whether its fiber
    /// is counted as one that was refused and waits.
    fn enters_call(&self, processor: &Processor, call: Call, queued: &mut bool) -> Outcome {
        let mut staff = self.staff.lock();
        if std::mem::take(queued) {
            staff.queued -= 1;
        }
        // Relaxed: under the lock.
        if processor.blocked.load(Ordering::Relaxed) {
            return Outcome::Already;
        }
        if staff.blocked + staff.places() >= MOST_PROCESSORS {
            *queued = call == Call::Waits;
            staff.queued += usize::from(*queued);
            return Outcome::Refused;
        }
        staff.block(processor);
        self.count_active(&staff);
        Outcome::Counted
    }

    /// Somebody looks after what the worker of `processor` leaves, which does not count any more.
    fn call_stand_in(&self, processor: &Processor) {
        // What lies in the queue, or outside, may have been left to this worker.
        let left = processor.queue.len() > 0 || self.has_injected();
        // (Should the sleeper have got up for something else, it is a worker like any other. A fence is not
        // needed for that: it is the monitor that finds out if it then gets stuck.)
        if left || !self.someone_sleeps() {
            self.notify();
        }
    }

    /// The monitor has found the worker of `processor` stuck: it does not count until it moves.
    pub(in crate::scheduler) fn block(&self, processor: &Processor) {
        {
            let mut staff = self.staff.lock();
            // Relaxed: a worker that has left says so under the lock, and long before it
            // does it runs no fiber any more. Then there is nobody to be counted out.
            if processor.running.load(Ordering::Relaxed).is_null() || !staff.block(processor) {
                return;
            }
            self.count_active(&staff);
        }
        if self.start_worker_searching().is_err() {
            self.notify();
        }
    }

    /// The worker of `processor` moves.
    pub(crate) fn unblock(&self, processor: &Processor) {
        // Relaxed: set by the caller's own thread, or by the monitor; if that is seen late, then a loop later.
        if processor.blocked.load(Ordering::Relaxed) {
            let awaited = {
                let mut staff = self.staff.lock();
                let awaited = staff.unblock(processor);
                self.count_active(&staff);
                awaited
            };
            self.let_in(awaited);
            monitor::awake();
        }
    }

    /// Lets a fiber in that waits for its turn to make a call, if one does.
    pub(super) fn let_in(&self, awaited: bool) {
        if awaited {
            // Release: it looks under the lock, and finds a place, or another has been faster, who does the same
            // in the end.
            self.returns.fetch_add(1, Ordering::Release);
            futex::wake(self.returns.as_ptr() as usize, 1, u32::MAX);
        }
    }

    /// Whether all that work are in calls though there is room for others: nobody was called, or no thread could
    /// be had.
    pub(in crate::scheduler) fn is_deserted(&self) -> bool {
        self.active() == 0 && self.room() > 0 && self.staff.lock().blocked > 0
    }
}
