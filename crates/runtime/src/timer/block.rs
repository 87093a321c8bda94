//! One timer: a counted block, and who may do what with it when.
//!
//! ```text
//!   Block { entry (links of the wheel) | home | host | schedule | callback with all it holds }
//!     ▲ ▲
//!     │ └── handles: `Timer`s, as many as there are clones
//!     └──── one token: while the timer is pending the wheel's, when it is due its fiber's
//! ```
//!
//! A timer stays with the wheel into which it was put first, its *home*, and that wheel's lock
//! guards its schedule as well as its links. So every step below is atomic, whatever threads and
//! fibers take them, and there are few:
//!
//! ```text
//!            start                 due                     begin
//!   (new) ──────────▶ Armed, linked ───▶ Armed, unlinked ─────────▶ Running
//!                       ▲  │  ▲ │          │      │ moved meanwhile:   │
//!                       │  │  └─┼──────────┼──────┘ linked again       │
//!                       │  │    cancel     │ cancel                    │ cancel, or the end of
//!                       │  reset ▼         ▼                           ▼ the last callback
//!                       │         Over, callback dropped by        Over, callback dropped by
//!                       │         whoever cancelled                the fiber
//!                       └───────────────────── next period ────────────┘
//! ```
//!
//! * **Expiry** unlinks a timer and passes the token on; it changes nothing else. Until its fiber
//!   begins, a cancel still wins, and a later deadline is respected: the fiber compares.
//! * **One token**, so one fiber at the most: a timer never overlaps itself. Who finds it unlinked
//!   does not link it; that is the token's business.
//! * **The callback** is touched by the fiber between begin and end, and by nobody else; otherwise by
//!   whoever moves the timer from Armed to Over, which happens once.
//! * **The memory** goes with the last reference. Linked means: the wheel has one; so a wheel never
//!   meets a block that is gone. What the callback holds goes when the timer is over.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Since, Timer};
use crate::wait::timer::{Entry, Expire, Locked, Wheel};
use crate::wait::{Batch, Deadline};

/// The runtime of a timer, or what stands for it in a test.
pub(super) trait Host: Sync {
    /// Nanoseconds of the clock.
    fn now(&self) -> u64;
    /// Something has been put into a wheel.
    fn started(&self, due: Deadline);
    /// Has [`Timer::run`] called on a fiber. What becomes runnable by that goes to `woken`.
    fn launch(&'static self, timer: Timer, woken: &mut Batch);
    /// Whether no new period is to begin.
    fn is_released(&self) -> bool;
}

/// What a timer does.
pub(super) trait Callback: Send {
    fn call(&mut self, timer: &Timer);
    /// Drops what it holds: it will not be called any more.
    fn discard(&mut self);
}

/// The first field first: a wheel's pointer is the block's.
#[repr(C)]
pub(super) struct Block<C: ?Sized> {
    entry: Entry,
    home: &'static Wheel,
    host: &'static dyn Host,
    recurring: bool,
    /// Guarded by the lock of `home`.
    schedule: UnsafeCell<Schedule>,
    callback: UnsafeCell<C>,
}

// SAFETY: the schedule is guarded by a lock, the callback passes from one owner to the next (see
// the module's essay) and may be sent.
unsafe impl<C: ?Sized + Send> Send for Block<C> {}
// SAFETY: as for Send.
unsafe impl<C: ?Sized + Send> Sync for Block<C> {}

struct Schedule {
    stage: Stage,
    /// When the present period began, in nanoseconds.
    start: u64,
    /// Nanoseconds.
    period: u64,
    /// Firings that were left out.
    missed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It will fire.
    Armed,
    /// The callback of a recurring timer runs.
    Running,
    /// It will not fire any more.
    Over,
}

impl Schedule {
    fn deadline(&self) -> Deadline {
        Deadline::at(self.start.saturating_add(self.period))
    }

    /// Begins the period that `now` lies in; those before it have been missed.
    fn catch_up(&mut self, now: u64) {
        let missed = now.saturating_sub(self.start) / self.period;
        self.start += missed * self.period;
        self.missed += missed;
    }
}

impl<C: Callback + 'static> Block<C> {
    /// A timer whose first period has begun at `start`. The period of a recurring one is not 0.
    pub(super) fn new(
        host: &'static dyn Host,
        home: &'static Wheel,
        start: u64,
        period: u64,
        recurring: bool,
        callback: C,
    ) -> Arc<Block<C>> {
        let schedule = Schedule { stage: Stage::Armed, start, period, missed: 0 };
        Arc::new(Block {
            entry: Entry::of_block(Block::<C>::from_entry),
            home,
            host,
            recurring,
            schedule: UnsafeCell::new(schedule),
            callback: UnsafeCell::new(callback),
        })
    }

    unsafe fn from_entry(entry: NonNull<Entry>) -> Arc<dyn Expire> {
        // SAFETY: the entry is a `Block<C>`'s first field, the pointer came from its `Arc`, and the
        // caller has a reference to give (`Expiry::Hand`).
        unsafe { Arc::from_raw(entry.as_ptr().cast::<Block<C>>()) }
    }
}

impl<C: Callback + 'static> Expire for Block<C> {
    fn expire(self: Arc<Self>, woken: &mut Batch) {
        let host = self.host;
        host.launch(Timer(self), woken);
    }

    fn abandon(self: Arc<Self>) {
        Timer(self).end();
    }
}

impl Timer {
    fn entry(&self) -> NonNull<Entry> {
        // From the `Arc`, not from a reference to the entry: `from_entry` makes it an `Arc` again.
        let block = Arc::as_ptr(&self.0).cast::<Entry>().cast_mut();
        NonNull::new(block).expect("an Arc is not null")
    }

    /// One step: wheel and schedule under the lock.
    fn step<R>(&self, step: impl FnOnce(&mut Locked, &mut Schedule) -> R) -> R {
        let mut wheel = self.0.home.lock();
        // SAFETY: guarded by the lock, which is held, and `step` is called once at a time.
        let schedule = unsafe { &mut *self.0.schedule.get() };
        step(&mut wheel, schedule)
    }

    /// Gives the token to the wheel; returns when the timer is due.
    ///
    /// # Safety
    /// The caller has the token, and gives a counted reference with it.
    unsafe fn link(&self, wheel: &mut Locked, deadline: Deadline) -> Deadline {
        // SAFETY: a token that is not the wheel's means that the entry is not linked. The block
        // does not move, and the reference that the wheel gets keeps it.
        unsafe { wheel.insert(self.entry(), deadline) }
    }

    fn give_reference(&self) {
        std::mem::forget(self.0.clone());
    }

    /// Drops what the callback holds.
    ///
    /// # Safety
    /// The callback is the caller's.
    unsafe fn discard(&self) {
        // SAFETY: by contract.
        unsafe { (*self.0.callback.get()).discard() }
    }

    /// Starts a new timer, once.
    pub(super) fn start(&self) {
        self.give_reference();
        // SAFETY: the timer is new, so the token is here.
        let due = self.step(|wheel, schedule| unsafe { self.link(wheel, schedule.deadline()) });
        self.0.host.started(due);
    }

    /// Starts it again as it was, because no fiber could be had: it is due at `deadline`.
    pub(super) fn postpone(&self, deadline: Deadline) {
        self.give_reference();
        // SAFETY: it has just expired, so the token is here.
        let due = self.step(|wheel, _| unsafe { self.link(wheel, deadline) });
        self.0.host.started(due);
    }

    /// See [`Timer::cancel`].
    pub(super) fn end(&self) -> bool {
        let (before, linked) = self.step(|wheel, schedule| {
            let before = std::mem::replace(&mut schedule.stage, Stage::Over);
            // SAFETY: its home is the only wheel that it may be in.
            (before, unsafe { wheel.remove(self.entry()) })
        });
        if linked {
            // SAFETY: the wheel's reference, which came with the token.
            unsafe { Arc::decrement_strong_count(Arc::as_ptr(&self.0)) };
        }
        if before == Stage::Armed {
            // SAFETY: it was this step that moved it from Armed to Over.
            unsafe { self.discard() };
        }
        before != Stage::Over
    }

    /// See [`Timer::refresh`] and [`Timer::reset`].
    pub(super) fn change(&self, period: Option<u64>, since: Since) -> bool {
        let now = self.0.host.now();
        let due = self.step(|wheel, schedule| {
            if schedule.stage == Stage::Over {
                return Err(());
            }
            schedule.period = period.unwrap_or(schedule.period);
            if since == Since::Now {
                schedule.start = now;
            }
            // SAFETY: its home is the only wheel that it may be in; taken from there the token is
            // here, with the reference that the wheel had.
            Ok(unsafe { wheel.remove(self.entry()).then(|| self.link(wheel, schedule.deadline())) })
        });
        if let Ok(Some(due)) = due {
            self.0.host.started(due);
        }
        due.is_ok()
    }

    pub(super) fn is_recurring(&self) -> bool {
        self.0.recurring
    }

    /// See [`Timer::is_over`] and [`Timer::missed`].
    pub(super) fn look(&self) -> (bool, u64) {
        self.step(|_, schedule| (schedule.stage == Stage::Over, schedule.missed))
    }

    /// What a timer does when it is due, on a fiber.
    pub(super) fn run(self) {
        if !self.begin() {
            return;
        }
        // SAFETY: from begin to end the callback is this fiber's.
        let callback = || unsafe { (*self.0.callback.get()).call(&self) };
        let result = catch_unwind(AssertUnwindSafe(callback));
        self.finish(result.is_ok());
        if let Err(payload) = result {
            resume_unwind(payload);
        }
    }

    /// Whether the callback is to be called now.
    fn begin(&self) -> bool {
        let now = self.0.host.now();
        let later = self.step(|wheel, schedule| {
            let deadline = schedule.deadline();
            match schedule.stage {
                Stage::Over => return Err(false),
                _ if deadline.nanoseconds() > now => {
                    self.give_reference();
                    // SAFETY: this fiber has the token.
                    return Ok(unsafe { self.link(wheel, deadline) });
                }
                _ if self.0.recurring => {
                    schedule.stage = Stage::Running;
                    schedule.start = deadline.nanoseconds();
                    schedule.catch_up(now);
                }
                _ => schedule.stage = Stage::Over,
            }
            Err(true)
        });
        match later {
            Ok(due) => {
                self.0.host.started(due);
                false
            }
            Err(begins) => begins,
        }
    }

    /// The callback has returned, or panicked.
    fn finish(&self, returned: bool) {
        let again = returned && !self.0.host.is_released();
        let now = self.0.host.now();
        let due = self.step(|wheel, schedule| {
            if schedule.stage == Stage::Over || !again {
                schedule.stage = Stage::Over;
                return None;
            }
            schedule.stage = Stage::Armed;
            schedule.catch_up(now);
            self.give_reference();
            // SAFETY: this fiber has the token.
            Some(unsafe { self.link(wheel, schedule.deadline()) })
        });
        match due {
            Some(due) => self.0.host.started(due),
            // SAFETY: not linked again, so the callback is still this fiber's.
            None => unsafe { self.discard() },
        }
    }
}
