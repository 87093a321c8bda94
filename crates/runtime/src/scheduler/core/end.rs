//! How a runtime ends: its last fiber does, then its threads.
//!
//! ```text
//!   release ──▶ the last fiber ends ──▶ farewell to timers ──▶ stopped: workers go ──▶ ended
//!   the handle no longer                                                               │
//!   counts as a fiber                                              join: threads are gone
//!                                                                                      │
//!                                       retire: the handle is gone, the core is the next runtime's
//! ```
//!
//! One word counts the fibers that have not ended and, above them, the *keepers*: the handle until it is released, and
//! whoever is at work from outside for a moment (starts a timer, fires some). Who comes from outside is counted only while
//! the word is not 0: so each spawn that races with a stop either runs to its end or is refused.
//!
//! ```text
//!   fibers:  | keepers | fibers |      0: the end
//!             63 …  40   39 … 0
//! ```

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Core, RETIRED};
use crate::fiber::{self, Fiber, in_fiber, known_space, space};
use crate::inspect::Awaited;
use crate::kernel;
use crate::scheduler::monitor;
use crate::trace::{self, Why};
use crate::wait::{Deadline, futex};

/// What those are told who come too late.
pub(crate) fn stopped() -> io::Error {
    io::Error::other("the runtime has been stopped")
}

/// One keeper, in `Core::fibers`.
pub(super) const KEEPER: usize = 1 << 40;

impl Core {
    /// Counts a fiber that the caller makes, itself one that counts: for a callback, which must run.
    pub(crate) fn fiber_begins(&self) {
        // Relaxed: as below.
        self.fibers.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a fiber that the caller spawns, itself a fiber that counts.
    ///
    /// # Errors
    /// `QuotaExceeded` if there are as many as there may be.
    pub(crate) fn admit_from_inside(&self) -> io::Result<()> {
        // Relaxed: the spawner is counted itself.
        self.within_limit(self.fibers.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether one more than `before` may be; counts it out again if not.
    #[inline]
    fn within_limit(&self, before: usize) -> io::Result<()> {
        // Relaxed: set before the core is shared.
        let most = self.most.load(Ordering::Relaxed);
        if before % KEEPER < most { Ok(()) } else { Err(self.too_many(most)) }
    }

    #[cold]
    fn too_many(&self, most: usize) -> io::Error {
        self.fiber_ends();
        let message = format!(
            "the runtime has {most} fibers, as many as it may \
             (RuntimeBuilder::max_fibers, SLEAVE_MAX_FIBERS)"
        );
        io::Error::new(io::ErrorKind::QuotaExceeded, message)
    }

    /// Counts a fiber out.
    pub(crate) fn fiber_ends(&self) {
        self.count_out(1);
    }

    /// Counts a fiber that comes from outside.
    ///
    /// # Errors
    /// If the runtime has been stopped; and as [`Core::admit_from_inside`].
    pub(crate) fn admit(&self) -> io::Result<()> {
        if self.is_released() {
            return Err(stopped());
        }
        self.within_limit(self.count_in(1).ok_or_else(stopped)?)
    }

    /// Whether the caller is a fiber of this runtime, or an OS thread that stands for one.
    pub(crate) fn is_callers(&self) -> bool {
        match fiber::current() {
            // SAFETY: the caller's own control block.
            Some(control) => std::ptr::eq(unsafe { control.as_ref() }.processor().core(), self),
            None => crate::current().is_some_and(|Fiber(own)| std::ptr::eq(own.core(), self)),
        }
    }

    /// Keeps the runtime from its end until [`Core::lets_go`], unless that has come; whether it does.
    pub(crate) fn keeps(&self) -> bool {
        self.count_in(KEEPER).is_some()
    }

    /// The end of what [`Core::keeps`] began.
    pub(crate) fn lets_go(&self) {
        self.count_out(KEEPER);
    }

    /// What was counted before; `None` if that was 0, and nothing is counted.
    fn count_in(&self, what: usize) -> Option<usize> {
        let more = |fibers| (fibers > 0).then_some(fibers + what);
        // Relaxed, both: what keeps the word from 0 is counted itself.
        self.fibers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()
    }

    fn count_out(&self, what: usize) {
        // AcqRel: the last sees what all the others did.
        if self.fibers.fetch_sub(what, Ordering::AcqRel) == what && !self.says_farewell() {
            self.end();
        }
    }

    /// Lets the workers go when the last fiber has ended. The first call does it.
    pub(crate) fn release(&self) {
        // Relaxed: see `is_released`; one of several finds `false`.
        if !self.released.swap(true, Ordering::Relaxed) {
            self.lets_go();
        }
    }

    /// Cancels every fiber, those that are spawned from now on as well.
    pub(crate) fn cancel_all(&self) {
        // SeqCst: before the look at all slots, and the barrier; see `TaskRef::nudge`.
        self.cancelled.store(true, Ordering::SeqCst);
        kernel::membarrier();
        if let Some(space) = known_space() {
            // Those of other runtimes look, and find nothing.
            space.visit(&mut |control| crate::cancel::nudge(control.into()));
        }
    }

    /// Whether [`Core::cancel_all`] has been called.
    #[inline]
    pub(crate) fn is_cancelled(&self) -> bool {
        // Relaxed: whoever sets it nudges all fibers.
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether the handle has been released.
    pub(crate) fn is_released(&self) -> bool {
        // Relaxed: says nothing about anything else.
        self.released.load(Ordering::Relaxed)
    }

    /// The handle goes. What is left runs to its end in the background; the monitor joins the threads.
    pub(crate) fn abandon(&'static self) {
        // Relaxed: under no race, for the handle is the caller's alone.
        if self.joined.load(Ordering::Relaxed) != 0 {
            return self.retire();
        }
        if self.uses_caller() && space().is_ok() {
            self.expects_no_caller();
        }
        // SeqCst: before the look in `awake`. The last fiber may have ended already, and nobody else tells
        // the monitor then.
        self.orphaned.store(true, Ordering::SeqCst);
        self.release();
        monitor::awake();
    }

    /// Whether the core has been abandoned, and is to be joined now.
    pub(in crate::scheduler) fn is_orphaned(&self) -> bool {
        // SeqCst, both: the monitor looks here after it has said that it sleeps, see `monitor::awake`.
        self.ended.load(Ordering::SeqCst) != 0 && self.orphaned.load(Ordering::SeqCst)
    }

    fn end(&self) {
        // Release: who sees it sees everything that the fibers did.
        self.stopped.store(1, Ordering::Release);
        self.calls.fetch_add(1, Ordering::Release);
        kernel::futex_wake(self.calls.as_ptr() as usize, i32::MAX);
        self.driver.dismiss(true);
        self.next_turn();
        // SeqCst: before the look in `awake`. The last access to this core by who ends it: it may
        // belong to another runtime after this. (A wake only names the address.)
        self.ended.store(1, Ordering::SeqCst);
        let address = self.ended.as_ptr() as usize;
        futex::wake(address, usize::MAX, u32::MAX);
        kernel::futex_wake(address, i32::MAX);
        monitor::awake();
    }

    /// Whether the last fiber has ended.
    pub(crate) fn has_ended(&self) -> bool {
        // Acquire pairs with the store in `end`.
        self.ended.load(Ordering::Acquire) != 0
    }

    /// Waits until every fiber has ended and every thread is gone, after [`Core::release`]; for the fibers' end
    /// until `deadline` at most. Whether that has come. Any number may call.
    pub(crate) fn join(&self, deadline: Deadline) -> bool {
        while !self.has_ended() {
            if deadline.passed() {
                return false;
            }
            wait_for(&self.ended, deadline);
        }
        // Only one may join a thread. Relaxed: one of several finds `false`.
        if !self.joining.swap(true, Ordering::Relaxed) {
            loop {
                let thread = self.staff.lock().threads.pop();
                match thread {
                    Some(thread) => thread.join(),
                    None => break,
                }
            }
            self.driver.dismiss(false);
            // Release: who sees it sees that all are gone.
            self.joined.store(1, Ordering::Release);
            let address = self.joined.as_ptr() as usize;
            futex::wake(address, usize::MAX, u32::MAX);
            kernel::futex_wake(address, i32::MAX);
        }
        // Acquire: as above.
        while self.joined.load(Ordering::Acquire) == 0 {
            wait_for(&self.joined, Deadline::NEVER);
        }
        true
    }

    /// Hands the core to the next runtime: after [`Core::join`], by whom it belongs to.
    pub(in crate::scheduler) fn retire(&'static self) {
        monitor::forget(self);
        debug_assert!(self.is_at_rest(), "a core is as new when the next runtime gets it");
        RETIRED.lock().push(self);
    }

    /// Whether nobody is left, nobody is counted and no timer is pending. (A ring that no worker has collected counts
    /// as one who searches, and whoever collects it will search.)
    fn is_at_rest(&self) -> bool {
        // Relaxed, both: every thread that changed them has been joined.
        let sleeping = self.sleeping.load(Ordering::Relaxed);
        let searching = self.searching.load(Ordering::Relaxed);
        self.staff.lock().is_gone()
            && sleeping == 0
            && searching <= 1
            && self.next_due() == u64::MAX
    }
}

/// Waits until `word` is not 0 any more, or until `deadline`; perhaps not that long. Parks a fiber, blocks a thread.
fn wait_for(word: &AtomicU32, deadline: Deadline) {
    if in_fiber() {
        let _why = trace::because(Why::Join);
        // SAFETY: the word is borrowed for the call; the caller is a fiber.
        unsafe { futex::wait_for(Awaited::Runtime, word, 0, u32::MAX, deadline) };
    } else {
        kernel::futex_wait(word, 0, deadline.until());
    }
}
