//! The stock: the free slots common to all processors, how many there may be, and how their memory goes
//! back to the kernel.
//!
//! ```text
//!               give                         round: shrunk          round, trim, limit
//!   a fiber's end ────▶ shelf ◀────▶ young ────────────────▶ settled ──────────────────▶ arena
//!   its beginning ◀──── first choice,    second,             third,       last: made anew, as it has
//!               take                                                      neither identity nor memory
//! ```
//!
//! # The limit
//!
//! At most so many slots are free and keep their memory. Each is covered by one unit of **credit**:
//!
//! > limit = balance + credit of all shelves + slots in the stock (+ slots on the way between the two)
//!
//! A shelf borrows credit a few units at a time, so a fiber's end asks nobody; when there is none, the
//! slot's memory goes back at once. Lowering the limit leaves a negative balance, which is made good from the
//! stock. "No limit" is a limit that no machine reaches.
//!
//! # What decays
//!
//! The monitor makes a **round** every two seconds while there is something to return.
//!
//! * Of the slots of a size that were free all the time since the last round, but for [`WARM`], half go
//!   back altogether. So a burst is forgotten in a minute, a load that comes and goes is not.
//! * Those that stay keep the top [`SHALLOW`] bytes. What one deep fiber has touched is not kept for ever; a
//!   load that is deep all the time pays for its pages every two seconds, not for each fiber. (To do it when
//!   the slot is given back would cost a system call for each fiber: glibc does so for threads.)

use std::ptr::NonNull;
use std::sync::atomic::{AtomicIsize, AtomicU64, AtomicUsize, Ordering};

use sleave_context::lock::Lock;

use super::list::List;
use super::shelf::{self, VISITING};
use super::{Control, Space};

/// How many slots of each size stay whatever happens, or does not.
const WARM: usize = 64;

/// Bytes at the top of a slot, identity included, that a free slot keeps for long; more if the identity
/// is so large that less than half of this would be left for the stack.
const SHALLOW: usize = 32 << 10;

/// How many slots are on the way at a time.
const BATCH: usize = 32;

/// More than any machine has room for: no limit.
pub(crate) const NO_LIMIT: usize = isize::MAX as usize / 2;

/// The limit in force. Changed under `CHANGING`.
static LIMIT: AtomicUsize = AtomicUsize::new(NO_LIMIT);
static CHANGING: Lock<()> = Lock::new(());

/// Credit that nobody has; negative while a lowered limit is being enforced.
static BALANCE: AtomicIsize = AtomicIsize::new(NO_LIMIT as isize);

/// Free slots of one size.
pub(super) struct Free {
    /// Given since the last round.
    young: List,
    settled: List,
    /// Young ones that are being shrunk, in the hands of a round.
    away: usize,
    /// The least `count` since the last round: so many were not needed.
    least: usize,
}

/// What has happened to slots so far.
pub(super) struct Counters {
    /// Identities made.
    pub(super) made: AtomicU64,
    /// Identities that were destroyed, and their memory returned.
    pub(super) trimmed: AtomicU64,
    /// Fibers that began on a free slot out of the stock, not through a shelf.
    reused: AtomicU64,
}

impl Counters {
    pub(super) const fn new() -> Counters {
        Counters { made: AtomicU64::new(0), trimmed: AtomicU64::new(0), reused: AtomicU64::new(0) }
    }
}

/// What [`Space::count`] has counted.
pub(crate) struct Counted {
    pub(crate) warm: usize,
    pub(crate) empty: usize,
    pub(crate) made: u64,
    pub(crate) reused: u64,
    pub(crate) trimmed: u64,
}

impl Free {
    pub(super) const fn new() -> Free {
        Free { young: List::new(), settled: List::new(), away: 0, least: 0 }
    }

    fn count(&self) -> usize {
        self.young.count() + self.settled.count() + self.away
    }

    /// The warmest.
    fn pop(&mut self) -> Option<NonNull<Control>> {
        let slot = self.young.pop().or_else(|| self.settled.pop());
        self.least = self.least.min(self.count());
        slot
    }

    /// One that has been free for long, if there is one.
    fn pop_cold(&mut self) -> Option<NonNull<Control>> {
        let slot = self.settled.pop().or_else(|| self.young.pop());
        self.least = self.least.min(self.count());
        slot
    }
}

/// The limit in force.
pub(crate) fn limit() -> usize {
    // Relaxed: a number for its own sake.
    LIMIT.load(Ordering::Relaxed)
}

/// Puts a limit in force, in `space` if that exists already.
pub(crate) fn set_limit(limit: usize, space: Option<&Space>) {
    let limit = limit.min(NO_LIMIT);
    {
        let _changing = CHANGING.lock();
        // Relaxed, both: under the lock.
        let before = LIMIT.swap(limit, Ordering::Relaxed);
        // Relaxed: see `borrow`.
        BALANCE.fetch_add(limit as isize - before as isize, Ordering::Relaxed);
    }
    if let Some(space) = space {
        space.enforce();
    }
}

impl Space {
    /// Takes up to `count` free slots of exactly `size` bytes. The first is for a fiber; the others are
    /// covered, and the caller's to keep so.
    pub(super) fn take_free(&self, size: usize, count: usize) -> List {
        let mut taken = List::new();
        {
            let mut free = self.free(size).lock();
            while taken.count() < count
                && let Some(slot) = free.pop()
            {
                // SAFETY: just taken out of the list.
                taken.append(unsafe { List::of(slot) });
            }
        }
        if taken.count() > 0 {
            self.repay(1);
        }
        taken
    }

    /// A slot of exactly `size` bytes, free or new, for a fiber to begin on.
    ///
    /// # Errors
    /// `OutOfMemory` and what mmap(2) says.
    pub(crate) fn take(&self, size: usize) -> std::io::Result<NonNull<Control>> {
        match self.take_free(size, 1).pop() {
            Some(slot) => {
                // Relaxed: counts only.
                self.counters.reused.fetch_add(1, Ordering::Relaxed);
                Ok(slot)
            }
            None => self.create(size),
        }
    }

    /// Takes back one slot, to keep it if the limit allows.
    ///
    /// # Safety
    /// Nothing runs on it any more and nobody else has it.
    pub(crate) unsafe fn give(&self, slot: NonNull<Control>) {
        // SAFETY: by contract, all.
        unsafe {
            if self.borrow(1) == 1 {
                self.give_covered(List::of(slot));
            } else {
                self.discard(slot);
            }
        }
    }

    /// Takes back slots of one size that are covered.
    pub(super) fn give_covered(&self, slots: List) {
        let Some(first) = slots.first() else { return };
        // SAFETY: a free slot keeps its control block.
        let size = unsafe { first.as_ref() }.slot.size();
        self.free(size).lock().young.prepend(slots);
    }

    /// As much credit as can be had, up to `wanted`.
    pub(super) fn borrow(&self, wanted: usize) -> usize {
        // Relaxed, here and wherever the balance changes: it is a number that nothing else is read by.
        let mut balance = BALANCE.load(Ordering::Relaxed);
        loop {
            let granted = wanted.min(usize::try_from(balance).unwrap_or(0));
            if granted == 0 {
                return 0;
            }
            let after = balance - granted as isize;
            match BALANCE.compare_exchange_weak(
                balance,
                after,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return granted,
                Err(now) => balance = now,
            }
        }
    }

    /// Gives credit back.
    pub(super) fn repay(&self, credit: usize) {
        if credit > 0 {
            // Relaxed: see `borrow`.
            BALANCE.fetch_add(credit as isize, Ordering::Relaxed);
        }
    }

    /// Makes a negative balance good.
    fn enforce(&self) {
        // Relaxed: see `borrow`.
        if BALANCE.load(Ordering::Relaxed) >= 0 {
            return;
        }
        shelf::clear_all(self);
        for free in &self.free {
            while BALANCE.load(Ordering::Relaxed) < 0 && self.discard_from(free) {}
        }
    }

    /// Returns one of the free slots of a size; whether there was one.
    fn discard_from(&self, free: &Lock<Free>) -> bool {
        let Some(slot) = free.lock().pop_cold() else { return false };
        self.repay(1);
        // SAFETY: a free slot, taken out of its list.
        unsafe { self.discard(slot) };
        true
    }

    /// Returns the memory of every slot that is free; returns how many.
    pub(crate) fn trim(&self) -> usize {
        shelf::clear_all(self);
        let mut trimmed = 0;
        for free in &self.free {
            // Not more than there are now: others may go on giving.
            let count = free.lock().count();
            trimmed += (0..count).take_while(|_| self.discard_from(free)).count();
        }
        trimmed
    }

    /// Returns memory that has not been needed since the last call. For whoever comes by every two seconds.
    pub(crate) fn round(&self) {
        // What was not needed, of what the shelves did not have.
        for free in &self.free {
            let surplus = free.lock().least.saturating_sub(WARM).div_ceil(2);
            // One by one, so that the lock is never held long.
            let _ = (0..surplus).take_while(|_| self.discard_from(free)).count();
        }
        shelf::clear_all(self);
        for free in &self.free {
            while self.settle(free) {}
            let mut free = free.lock();
            free.least = free.count();
        }
    }

    /// Settles a few of the young ones; whether there were any.
    fn settle(&self, free: &Lock<Free>) -> bool {
        let (mut young, mut settled) = (List::new(), List::new());
        {
            let mut free = free.lock();
            while young.count() < BATCH
                && let Some(slot) = free.young.pop()
            {
                // SAFETY: just taken out of its list.
                unsafe { young.push(slot) };
            }
            free.away += young.count();
        }
        let keep = SHALLOW.max(self.overhead() + SHALLOW / 2);
        while let Some(slot) = young.pop() {
            // SAFETY: nothing runs on a free slot, so nobody needs what is on its stack; identity and control
            // block lie in the part that stays.
            unsafe {
                slot.as_ref().slot.shrink(keep);
                settled.push(slot);
            }
        }
        let count = settled.count();
        let mut free = free.lock();
        free.away -= count;
        free.settled.prepend(settled);
        count > 0
    }

    /// Whether the next round would return something.
    pub(crate) fn has_surplus(&self) -> bool {
        shelf::counts().0 > 0
            || self.free.iter().any(|free| {
                let free = free.lock();
                free.young.count() > 0 || free.count() > WARM
            })
    }

    /// Counts everything.
    pub(crate) fn count(&self) -> Counted {
        let _visiting = VISITING.lock();
        let (on_shelves, through_shelves) = shelf::counts();
        let in_stock: usize = self.free.iter().map(|free| free.lock().count()).sum();
        // Relaxed, all: a momentary view.
        Counted {
            warm: on_shelves + in_stock,
            empty: self.arena_free(),
            made: self.counters.made.load(Ordering::Relaxed),
            reused: through_shelves + self.counters.reused.load(Ordering::Relaxed),
            trimmed: self.counters.trimmed.load(Ordering::Relaxed),
        }
    }
}
