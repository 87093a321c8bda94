//! A runtime's time: its wheels, the alarm, the end of its timers.
//!
//! Each processor has a wheel, for its fibers' waits and for the timers that they start; one more
//! belongs to the core, for timers that are started from outside. Every worker that looks around
//! fires what is due in all of them; the last one to sleep sets the alarm for the earliest.
//!
//! Pending timers do not keep a runtime going. When its last fiber has ended, one more is begun,
//! which drops the timers' callbacks: what these hold may be anything, and its destructors may wait.
//! So that no timer expires behind its back, whoever fires timers keeps the runtime for that long
//! ([`Core::keeps`]), and once it has ended nobody fires.
//!
//! Where fibers are OS threads there are no workers; a thread of its own, the *timekeeper*, sleeps
//! until the earliest deadline of the core's wheel.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{Ordering, fence};

use super::{Core, WORKER_STACK};
use crate::fiber::{Task, space};
use crate::kernel::{self, OsThread};
use crate::wait::timer::{Expired, Wheel};
use crate::wait::{Batch, Deadline};

impl Core {
    fn wheels(&self) -> impl Iterator<Item = &Wheel> {
        let own = self.processors().iter().map(|processor| &processor.timers);
        own.chain(std::iter::once(&self.timers))
    }

    /// The wheel of timers that are started from outside.
    pub(crate) fn timers(&self) -> &'static Wheel {
        &self.forever().timers
    }

    /// The earliest time at which something may be due in any wheel; `u64::MAX` if never.
    pub(crate) fn next_due(&self) -> u64 {
        self.wheels().map(Wheel::next).min().unwrap_or(u64::MAX)
    }

    /// Fires what is due at `now`.
    pub(in crate::scheduler) fn due(&self, now: u64) -> Batch {
        let mut woken = Batch::new();
        if self.next_due() <= now && self.keeps() {
            self.wheels().for_each(|wheel| wheel.fire(now, &mut woken));
            self.lets_go();
        }
        woken
    }

    /// Sets the alarm to the earliest deadline of all wheels, or to when somebody who starves is tried again.
    pub(super) fn arm(&self) {
        match self.next_due().min(self.next_meal()) {
            u64::MAX => {}
            next => self.driver.arm(next),
        }
    }

    /// To be called when something has been put into a wheel: a sleeping worker must not oversleep
    /// it.
    pub(crate) fn timer_started(&self, due: Deadline) {
        // SeqCst: see the essay of `scheduler`; the wheel has published it.
        fence(Ordering::SeqCst);
        if self.someone_sleeps() {
            self.driver.arm(due.nanoseconds());
        }
    }

    /// The last fiber has ended: begins another if there are timers to be dropped, and says so.
    pub(super) fn says_farewell(&self) -> bool {
        let mut pending = Expired::new();
        self.wheels().for_each(|wheel| wheel.drain(&mut pending));
        if pending.is_empty() {
            return false;
        }
        let farewell = move || {
            for timer in pending {
                // One destructor that panics has been reported, and keeps no other from running.
                let _ = catch_unwind(AssertUnwindSafe(|| timer.abandon()));
            }
        };
        if space().is_err() {
            // Fibers are OS threads, and so is the caller.
            farewell();
            return false;
        }
        // SAFETY: the closure is Send and 'static, and returns nothing.
        let (_, task) = unsafe {
            Task::new(self.forever(), None, self.slot_size(), self.timeouts(), None, farewell)
        };
        self.fiber_begins();
        crate::scheduler::spawn(task);
        true
    }

    // ---- where fibers are OS threads ----

    /// Makes sure that the timekeeper is there.
    ///
    /// # Errors
    /// What pthread_create(3) says.
    pub(crate) fn ensure_timekeeper(&self) -> io::Result<()> {
        let core = self.forever();
        let name = format!("{}-timer", *self.name.lock());
        let mut staff = self.staff.lock();
        if staff.threads.is_empty() {
            staff.threads.push(OsThread::start(name, WORKER_STACK, || core.keep_time())?);
        }
        Ok(())
    }

    fn keep_time(&'static self) {
        loop {
            // Acquire, both: pairs with the Release in `end` and in `call_timekeeper`. The calls
            // are counted before the look at what they are about.
            let calls = self.calls.load(Ordering::Acquire);
            if self.stopped.load(Ordering::Acquire) != 0 {
                return;
            }
            // Nothing is woken but OS threads.
            self.due(kernel::now());
            let next = self.next_due();
            kernel::futex_wait(&self.calls, calls, (next != u64::MAX).then_some(next));
        }
    }

    /// Has the timekeeper look at the wheel.
    pub(crate) fn call_timekeeper(&self) {
        // Release: the wheel has the timer.
        self.calls.fetch_add(1, Ordering::Release);
        kernel::futex_wake(self.calls.as_ptr() as usize, 1);
    }
}
