//! How a fiber waits: one protocol for descriptors, timers, locks and joins.
//!
//! A waiting fiber puts **nodes** into lists (a futex queue, a descriptor's readers, a timer
//! wheel). The nodes live on its own stack, so a wait allocates nothing, and several may stand
//! in several lists at once. One word in the control block decides who wakes it:
//!
//! ```text
//!             prepare                 commit (hook, registers are saved)
//!   RUNNING ───────────▶ PREPARING ──────────────────────────▶ PARKED
//!      ▲                     │ wake: noted, no scheduling         │ wake: schedule it
//!      │                     ▼                                    ▼
//!      └──────────────── WOKEN(reason) ◀──────────────────────────┘
//! ```
//!
//! 1. The fiber *prepares*, then links its nodes. From then on wakers may find it.
//! 2. It *commits* by switching away; the switch's hook, which runs on the next fiber's stack
//!    when the registers are saved, moves PREPARING to PARKED. If a waker was faster, the hook
//!    puts the fiber back into the queue: a half-saved fiber can never be resumed, and a wake
//!    between 1 and 2 is never lost.
//! 3. A waker changes the word by compare-and-swap **while it holds the lock of the list in
//!    which it found the node**, and unlinks the node under the same lock. The first one wins.
//! 4. Running again, the fiber unlinks whichever nodes are still linked, taking each list's
//!    lock. A node that is found unlinked has been released by its waker (`linked` is stored
//!    last, with Release), so after this no waker can touch the fiber's stack or its word, and
//!    the next wait starts clean.

mod deadline;
pub mod futex;
pub(crate) mod interrupt;
pub(crate) mod park;
mod timeouts;
pub(crate) mod timer;

pub use deadline::Deadline;
pub(crate) use timeouts::Wishes;
pub use timeouts::{Timeouts, connect_deadline, default_deadline};
pub use timeouts::{set_connect_timeout, set_wait_timeout};

#[cfg(all(test, loom))]
mod loom_models;

use std::ptr::NonNull;

use crate::fiber::{Control, Runnable, current};
use crate::inspect::Awaited;
use crate::scheduler;
use crate::sync::{AtomicU32, Ordering};
use crate::trace::{self, Why};

const RUNNING: u32 = 0;
const PREPARING: u32 = 1;
const PARKED: u32 = 2;

/// What ended a wait. The number is the wait word's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Reason {
    /// What was waited for has happened.
    Woken = 3,
    /// The deadline came first.
    TimedOut = 4,
    /// The descriptor was closed.
    Closed = 5,
    /// Something else is wanted of the fiber, or was: it looks, and waits on. See [`interrupt`].
    Interrupted = 6,
}

/// What [`WaitWord::look`] sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// It waits.
    Parked,
    /// It runs, is in a queue or about to be in one, prepares a wait.
    Other,
}

/// The word by which the first of several wakes wins.
pub(crate) struct WaitWord(AtomicU32);

impl WaitWord {
    pub(crate) fn new() -> WaitWord {
        WaitWord(AtomicU32::new(RUNNING))
    }

    /// The fiber will wait: from now on it may be claimed.
    pub(crate) fn prepare(&self) {
        // Relaxed: the locks of the lists into which the nodes go publish it.
        self.0.store(PREPARING, Ordering::Relaxed);
    }

    /// Whether nobody has claimed the fiber yet.
    pub(crate) fn is_unclaimed(&self) -> bool {
        // Relaxed: a shortcut only; `park` decides.
        self.0.load(Ordering::Relaxed) == PREPARING
    }

    /// The fiber is saved: who claims it from now on schedules it. `false` if somebody has
    /// claimed it before: then the caller does.
    pub(crate) fn park(&self) -> bool {
        // SeqCst: see `interrupt`. As a Release it publishes the saved registers to the waker; Acquire on
        // failure sees what the faster waker did.
        self.0.compare_exchange(PREPARING, PARKED, Ordering::SeqCst, Ordering::Acquire).is_ok()
    }

    /// What an onlooker sees at this moment. Acquire: with it what the fiber wrote before it parked.
    pub(crate) fn look(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            PARKED => Phase::Parked,
            _ => Phase::Other,
        }
    }

    /// Why the fiber has been claimed.
    pub(crate) fn reason(&self) -> Reason {
        // Acquire pairs with the waker's Release.
        match self.0.load(Ordering::Acquire) {
            4 => Reason::TimedOut,
            5 => Reason::Closed,
            6 => Reason::Interrupted,
            _ => Reason::Woken,
        }
    }

    /// The fiber waits no longer; says why. Who still finds a node of it claims nothing.
    pub(crate) fn end(&self) -> Reason {
        let reason = self.reason();
        // Relaxed: all nodes but those of the caller are unlinked; those it unlinks under their
        // locks before its next wait.
        self.0.store(RUNNING, Ordering::Relaxed);
        reason
    }

    /// Claims whatever wait the fiber may be in; whether the caller must schedule it.
    fn interrupt(&self) -> bool {
        // SeqCst, both: see `interrupt`; else as in `claim`.
        let mut seen = self.0.load(Ordering::SeqCst);
        while seen == PREPARING || seen == PARKED {
            match self.0.compare_exchange_weak(
                seen,
                Reason::Interrupted as u32,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => return seen == PARKED,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Claims the wake for `reason`: `None` if another came first, else whether the fiber must
    /// be scheduled by the caller (it is parked) or will notice by itself.
    fn claim(&self, reason: Reason) -> Option<bool> {
        // Relaxed: only a hint for the exchange.
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            if seen != PREPARING && seen != PARKED {
                return None;
            }
            // Acquire on PARKED sees the saved registers; Release gives the fiber what the
            // waker did before. Relaxed on failure: only the value is used.
            match self.0.compare_exchange_weak(
                seen,
                reason as u32,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(seen == PARKED),
                Err(now) => seen = now,
            }
        }
    }
}

/// Fibers that a waker has won and must schedule, linked through themselves.
pub(crate) struct Batch {
    pub(crate) first: Option<NonNull<Runnable>>,
    last: Option<NonNull<Runnable>>,
    pub(crate) count: usize,
}

impl Batch {
    pub(crate) const fn new() -> Batch {
        Batch { first: None, last: None, count: 0 }
    }

    /// Wakes `control` for `reason` unless another wake came first; says whether this one won.
    ///
    /// # Safety
    /// The caller holds the lock of the list in which it found a node of this fiber: that keeps
    /// the fiber inside its wait.
    pub(crate) unsafe fn wake(&mut self, control: NonNull<Control>, reason: Reason) -> bool {
        // SAFETY: a fiber inside a wait has a control block.
        let word = unsafe { &control.as_ref().wait };
        match word.claim(reason) {
            None => false,
            Some(parked) => {
                if parked {
                    self.add(control.cast());
                }
                true
            }
        }
    }

    /// Appends what is in no other list.
    pub(crate) fn add(&mut self, runnable: NonNull<Runnable>) {
        // SAFETY: the runnable belongs to this batch now, so its link is ours. Relaxed: the
        // batch is local to one thread until a queue publishes it.
        unsafe {
            runnable.as_ref().next.store(std::ptr::null_mut(), Ordering::Relaxed);
            match self.last {
                Some(last) => last.as_ref().next.store(runnable.as_ptr(), Ordering::Relaxed),
                None => self.first = Some(runnable),
            }
        }
        self.last = Some(runnable);
        self.count += 1;
    }

    /// Adds all of `other`, in its order.
    pub(crate) fn append(&mut self, mut other: Batch) {
        while let Some(runnable) = other.take() {
            self.add(runnable);
        }
    }

    /// Takes the first.
    pub(crate) fn take(&mut self) -> Option<NonNull<Runnable>> {
        let first = self.first?;
        // SAFETY: as in `add`.
        self.first = NonNull::new(unsafe { first.as_ref() }.next.load(Ordering::Relaxed));
        if self.first.is_none() {
            self.last = None;
        }
        self.count -= 1;
        Some(first)
    }

    /// The last element, for whoever links the whole batch into a list of its own.
    pub(crate) fn last(&self) -> Option<NonNull<Runnable>> {
        self.last
    }

    /// Hands every fiber to its scheduler.
    pub(crate) fn schedule(self) {
        if self.first.is_some() {
            scheduler::schedule(self);
        }
    }
}

/// The calling fiber between "prepare" and the end of its wait.
pub(crate) struct Wait {
    control: NonNull<Control>,
}

impl Wait {
    /// Begins a wait of the calling fiber.
    ///
    /// # Panics
    /// If the caller is not a fiber: every public entry has checked.
    pub(crate) fn prepare() -> Wait {
        let control = current().expect("only a fiber waits here");
        // SAFETY: the caller's own control block.
        unsafe { control.as_ref() }.wait.prepare();
        Wait { control }
    }

    /// Whom a node names.
    pub(crate) fn control(&self) -> NonNull<Control> {
        self.control
    }

    /// Parks until a waker claims this fiber or `deadline` passes, and says which.
    ///
    /// Afterwards the caller unlinks its nodes, before they go out of scope, and then attends to what it was
    /// interrupted for ([`interrupt::attended`]).
    ///
    /// `what` is for whoever looks at the fiber meanwhile.
    pub(crate) fn commit(self, what: Awaited, deadline: Deadline) -> Reason {
        // SAFETY: the caller's own control block.
        let control = unsafe { self.control.as_ref() };
        control.wants.begins(what, deadline);
        if deadline == Deadline::NEVER {
            self.park(control);
        } else {
            let timer = std::pin::pin!(timer::Entry::of_wait(self.control));
            let processor = control.processor();
            let due = timer.as_ref().start(&processor.timers, deadline);
            processor.core().timer_started(due);
            self.park(control);
            timer.as_ref().cancel();
        }
        self.end()
    }

    fn park(&self, control: &Control) {
        if control.wait.is_unclaimed() {
            // SAFETY: `control` is the calling fiber's; `parked` takes it as its argument.
            unsafe { scheduler::leave(control, parked, self.control.as_ptr() as usize) };
        }
    }

    /// Ends a wait that turned out to be unnecessary, or reads why it ended.
    fn end(self) -> Reason {
        // SAFETY: the caller's own control block.
        unsafe { self.control.as_ref() }.wait.end()
    }

    /// Abandons the wait before committing. Who finds a node that is still linked claims nothing
    /// any more; the caller unlinks it before it goes out of scope.
    pub(crate) fn abandon(self) {
        self.end();
    }
}

/// The hook of a parking switch.
unsafe extern "C" fn parked(control: usize) -> usize {
    let control = NonNull::new(control as *mut Control).expect("the hook's own argument");
    // SAFETY: the fiber is neither running nor scheduled until the exchange succeeds or it is
    // scheduled below; afterwards its control block is still there, as `interrupt` has it.
    let fiber = unsafe { control.as_ref() };
    if !fiber.wait.park() || (fiber.attention.is_called() && fiber.wait.interrupt()) {
        let mut batch = Batch::new();
        batch.add(control.cast());
        batch.schedule();
    }
    0
}

/// Parks the calling fiber until `deadline`. Never returns early.
///
/// # Panics
/// If the caller is not a fiber.
pub fn sleep_until(deadline: Deadline) {
    while !sleep(deadline) {}
}

/// Parks the calling fiber until `deadline`; `false` if it was interrupted before.
///
/// # Panics
/// If the caller is not a fiber.
pub fn sleep(deadline: Deadline) -> bool {
    let _why = trace::because(Why::Timer);
    let reason = Wait::prepare().commit(Awaited::Time, deadline);
    interrupt::attended(reason) == Reason::TimedOut
}
