//! The timer wheel: what is due when.
//!
//! A hierarchical wheel (Varghese & Lauck, "Hashed and Hierarchical Timing Wheels", 1987): level
//! `l` has 64 slots, each 64^l ticks wide. An entry goes into the lowest level at which its tick
//! differs from the wheel's present one, and moves down as its time comes near. Insertion and
//! removal are O(1), and allocate nothing: the links are part of the entry.
//!
//! ```text
//!   level 1   │   │ ● │   │ … │     64 slots of 64 ticks, beyond those of level 0
//!               ▲   ╰─ entered when the wheel comes there: its entries move down, or fire
//!   level 0   │ ● │ ● │   │ … │     64 slots of one tick
//!               ▲ now
//! ```
//!
//! There are two kinds of [`Entry`]:
//!
//! * A **wait's** deadline lies on the stack of the fiber that waits. It fires under the wheel's
//!   lock, by claiming the fiber: that keeps the fiber inside its wait until the entry has been
//!   released (`wheel` is stored last).
//! * A **timer** ([`crate::Timer`]) is a heap block. While it is linked, the wheel owns one counted
//!   reference to it; when it is due, it is unlinked under the lock and that reference is handed on
//!   to [`Expire::expire`] outside of it.
//!
//! A tick is 2^16 ns (65.5 µs), about the kernel's own default timer slack (50 µs). Deadlines are
//! rounded **up** to a tick, so nothing fires early. Eight levels span all of `u64`: there is
//! no longest timer. What is due at the same tick fires in the order in which it was started.
//!
//! Each processor has a wheel, and each runtime one for those who start a timer from outside. No
//! hold of a wheel's lock deals with more than [`BATCH`] entries, however many are due or move
//! down: a slot that the wheel has *entered* is emptied step by step, and nothing else goes on in
//! this wheel before it is empty. `next` repeats the earliest tick outside the lock, for everyone
//! who asks whether it is time.

use std::cell::UnsafeCell;
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::ptr::{NonNull, null, null_mut};
use std::sync::Arc;

use super::{Batch, Deadline, Reason};
use crate::fiber::Control;
use crate::sync::{AtomicPtr, AtomicU64, Guard, Lock, Ordering};

/// log2 of a tick in nanoseconds.
const TICK: u32 = 16;
const LEVELS: usize = 8;
/// The last tick, "at the end of time": all levels hold 48 bits of ticks.
const LAST: u64 = (1 << (6 * LEVELS)) - 1;
/// How many entries are moved or fired under one hold of the lock.
const BATCH: usize = 256;

/// One pending deadline.
pub(crate) struct Entry {
    expiry: Expiry,
    /// The wheel that holds this entry; null when none does. Written under that wheel's lock,
    /// last when the entry is released.
    wheel: AtomicPtr<Wheel>,
    links: UnsafeCell<Links>,
    _pinned: PhantomPinned,
}

/// What happens when the time has come.
enum Expiry {
    /// This fiber's wait ends.
    Wake(NonNull<Control>),
    /// The entry is the first field of a counted block; this takes over the wheel's reference.
    Hand(unsafe fn(NonNull<Entry>) -> Arc<dyn Expire>),
}

/// A counted block with an entry.
pub(crate) trait Expire: Send + Sync {
    /// It is due. What becomes runnable by that goes to `woken`.
    fn expire(self: Arc<Self>, woken: &mut Batch);
    /// It will not come to that: the runtime has ended.
    fn abandon(self: Arc<Self>);
}

/// Guarded by the wheel's lock.
struct Links {
    /// A slot is a ring: the first entry's `previous` is the last.
    previous: *const Entry,
    next: *const Entry,
    tick: u64,
    /// level * 64 + slot
    place: u16,
}

/// The first tick that is not before `deadline`.
fn tick_of(deadline: Deadline) -> u64 {
    deadline.nanoseconds().div_ceil(1 << TICK).min(LAST)
}

impl Entry {
    fn new(expiry: Expiry) -> Entry {
        Entry {
            expiry,
            wheel: AtomicPtr::new(null_mut()),
            links: UnsafeCell::new(Links { previous: null(), next: null(), tick: 0, place: 0 }),
            _pinned: PhantomPinned,
        }
    }

    /// The deadline of a wait of the fiber `control`.
    pub(crate) fn of_wait(control: NonNull<Control>) -> Entry {
        Entry::new(Expiry::Wake(control))
    }

    /// The first field of a counted block, which `owner` finds from it.
    pub(crate) fn of_block(owner: unsafe fn(NonNull<Entry>) -> Arc<dyn Expire>) -> Entry {
        Entry::new(Expiry::Hand(owner))
    }

    /// Puts the deadline of a wait into `wheel`; returns when it is due. [`Entry::cancel`] is
    /// called before it goes out of scope.
    pub(crate) fn start(self: Pin<&Self>, wheel: &'static Wheel, deadline: Deadline) -> Deadline {
        // SAFETY: pinned, in no wheel, and alive until it is removed, which `cancel` does.
        unsafe { wheel.lock().insert(NonNull::from(&*self), deadline) }
    }

    /// Takes the deadline of a wait out if it has not fired.
    pub(crate) fn cancel(self: Pin<&Self>) {
        // Acquire: null was stored by the wheel that fired us, as its last access.
        let wheel = self.wheel.load(Ordering::Acquire);
        // SAFETY: wheels belong to processors, which are never freed.
        let Some(wheel) = (unsafe { wheel.as_ref() }) else { return };
        // SAFETY: it is ours, and was put into no other wheel.
        unsafe { wheel.lock().remove(NonNull::from(&*self)) };
    }

    /// # Safety
    /// The lock of the wheel is held in which this entry is linked, or is being linked; or it is
    /// in no wheel and the caller's.
    #[allow(clippy::mut_from_ref)]
    unsafe fn links(&self) -> &mut Links {
        // SAFETY: by contract nobody else has a reference to these links now.
        unsafe { &mut *self.links.get() }
    }
}

/// Deadlines, in the order of their ticks.
pub(crate) struct Wheel {
    /// Nothing is due before this time in nanoseconds; `u64::MAX` if nothing is pending.
    next: AtomicU64,
    inner: Lock<Inner>,
}

/// A wheel whose lock is held.
pub(crate) struct Locked<'a> {
    wheel: &'a Wheel,
    inner: Guard<'a, Inner>,
}

struct Inner {
    /// All ticks up to this one have fired, but for what is left in the entered slot. Every other
    /// occupied slot of a level lies beyond the level's digit of `now`, under the same higher
    /// digits.
    now: u64,
    /// The place that the wheel has entered at `now` and not found empty yet. Nothing is inserted
    /// there, for it does not lie beyond a digit of `now`.
    entered: Option<usize>,
    /// Bit `s` of word `l` is set if slot `s` of level `l` holds an entry and is not entered.
    occupied: [u64; LEVELS],
    /// The first entry of each place.
    slots: [*const Entry; LEVELS * 64],
}

// SAFETY: `Inner` points to entries, which are touched only under the wheel's lock.
unsafe impl Send for Inner {}

impl Wheel {
    /// An empty wheel that begins at `now`, in nanoseconds.
    pub(crate) fn new(now: u64) -> Wheel {
        Wheel {
            next: AtomicU64::new(u64::MAX),
            inner: Lock::new(Inner {
                now: now >> TICK,
                entered: None,
                occupied: [0; LEVELS],
                slots: [null(); LEVELS * 64],
            }),
        }
    }

    pub(crate) fn lock(&self) -> Locked<'_> {
        Locked { wheel: self, inner: self.inner.lock() }
    }

    /// A time in nanoseconds before which nothing is due; `u64::MAX` if nothing is pending.
    pub(crate) fn next(&self) -> u64 {
        // SeqCst: the sleeper's part of the argument in `scheduler`: it announces itself, then
        // looks here; who starts a timer writes here, then looks for sleepers.
        self.next.load(Ordering::SeqCst)
    }

    fn publish(&self, inner: &Inner) {
        let next = inner.next().map_or(u64::MAX, |(_, tick)| tick << TICK);
        // SeqCst: see `next`.
        self.next.store(next, Ordering::SeqCst);
    }

    /// Adds to `woken` what is due at `now` (in nanoseconds) or earlier; once that are some
    /// hundreds it leaves the rest for later, and `next` says so.
    pub(crate) fn fire(&self, now: u64, woken: &mut Batch) {
        let enough = woken.count + BATCH;
        while self.next() <= now && woken.count < enough {
            let mut expired = Expired::new();
            {
                let mut inner = self.inner.lock();
                inner.advance(now >> TICK, woken, &mut expired);
                self.publish(&inner);
            }
            expired.for_each(|block| block.expire(woken));
        }
    }

    /// Takes out all timers, in a wheel that no fiber waits in any more.
    pub(crate) fn drain(&self, expired: &mut Expired) {
        let mut inner = self.inner.lock();
        for place in 0..inner.slots.len() {
            while let Some(entry) = NonNull::new(inner.slots[place].cast_mut()) {
                // SAFETY: it is linked in this wheel, whose lock is held.
                unsafe {
                    inner.remove(entry);
                    expired.add(entry);
                }
            }
        }
        self.publish(&inner);
    }
}

impl Locked<'_> {
    /// Links `entry`; returns when it is due, at or after `deadline`.
    ///
    /// # Safety
    /// The entry is in no wheel, and stays where it is until it has been removed or has fired. If
    /// it is a block's, the wheel gets a counted reference.
    pub(crate) unsafe fn insert(&mut self, entry: NonNull<Entry>, deadline: Deadline) -> Deadline {
        // SAFETY: by contract.
        let tick = unsafe { self.inner.insert(entry, tick_of(deadline)) };
        // Relaxed: published by the lock.
        let wheel = std::ptr::from_ref(self.wheel).cast_mut();
        // SAFETY: by contract the entry is alive.
        unsafe { entry.as_ref() }.wheel.store(wheel, Ordering::Relaxed);
        let due = tick << TICK;
        // Relaxed: under the lock that it is written under.
        if due < self.wheel.next.load(Ordering::Relaxed) {
            // SeqCst: see `next`.
            self.wheel.next.store(due, Ordering::SeqCst);
        }
        Deadline::at(due)
    }

    /// Unlinks `entry` if it is linked; whether it was. A block's reference is the caller's then.
    ///
    /// # Safety
    /// The entry is alive, and is linked in this wheel or in none.
    pub(crate) unsafe fn remove(&mut self, entry: NonNull<Entry>) -> bool {
        // SAFETY: by contract.
        let wheel = unsafe { &entry.as_ref().wheel };
        // Relaxed, both: under the lock that guards it.
        if wheel.load(Ordering::Relaxed).is_null() {
            return false;
        }
        // SAFETY: non-null under the lock means linked in this wheel.
        unsafe { self.inner.remove(entry) };
        wheel.store(null_mut(), Ordering::Relaxed);
        // `next` may now be too early: one needless look, cheaper than a search here.
        true
    }
}

impl Inner {
    /// Links an entry for `tick`, or the next one if that is over; returns which.
    ///
    /// # Safety
    /// As [`Locked::insert`].
    unsafe fn insert(&mut self, entry: NonNull<Entry>, tick: u64) -> u64 {
        let due = tick.max(self.now + 1);
        // The level is that of the highest six-bit digit in which it is not the present.
        let level = (63 - (due ^ self.now).leading_zeros()) as usize / 6;
        let slot = (due >> (6 * level)) as usize & 63;
        let place = level * 64 + slot;
        self.occupied[level] |= 1 << slot;
        let this = entry.as_ptr().cast_const();
        // SAFETY: links of entries in this wheel are guarded by its lock, which is held; the
        // first's `previous` is the last.
        unsafe {
            let (previous, next) = match NonNull::new(self.slots[place].cast_mut()) {
                Some(first) => {
                    let last = std::mem::replace(&mut first.as_ref().links().previous, this);
                    (*last).links().next = this;
                    (last, first.as_ptr().cast_const())
                }
                None => {
                    self.slots[place] = this;
                    (this, this)
                }
            };
            *entry.as_ref().links() = Links { previous, next, tick, place: place as u16 };
        }
        due
    }

    /// # Safety
    /// `entry` is linked in this wheel.
    unsafe fn remove(&mut self, entry: NonNull<Entry>) {
        let this = entry.as_ptr().cast_const();
        // SAFETY: links of entries in this wheel are guarded by its lock, which is held.
        unsafe {
            let Links { previous, next, place, .. } = *entry.as_ref().links();
            let place = usize::from(place);
            if next == this {
                self.slots[place] = null();
                self.occupied[place / 64] &= !(1 << (place % 64));
                return;
            }
            (*previous).links().next = next;
            (*next).links().previous = previous;
            if self.slots[place] == this {
                self.slots[place] = next;
            }
        }
    }

    /// The first entry of the entered slot.
    fn first(&self) -> Option<NonNull<Entry>> {
        NonNull::new(self.slots[self.entered?].cast_mut())
    }

    /// The earliest place that holds anything, and the tick at which it begins.
    fn next(&self) -> Option<(usize, u64)> {
        if let (Some(place), Some(_)) = (self.entered, self.first()) {
            return Some((place, self.now));
        }
        // Whatever stands on a level comes before everything on a higher one.
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let above = 6 * (level as u32 + 1);
        let tick = (self.now >> above << above) + ((slot as u64) << (6 * level));
        Some((level * 64 + slot, tick))
    }

    /// Advances towards `target`, taking out what is due, in not too many steps.
    fn advance(&mut self, target: u64, woken: &mut Batch, expired: &mut Expired) {
        for _ in 0..BATCH {
            if let Some(entry) = self.first() {
                // SAFETY: it is linked in this wheel, whose lock is held. When it has fired it is
                // not touched any more.
                unsafe {
                    self.remove(entry);
                    let tick = entry.as_ref().links().tick;
                    if tick > self.now {
                        self.insert(entry, tick);
                    } else {
                        fire(entry, woken, expired);
                    }
                }
                continue;
            }
            self.entered = None;
            let Some((place, tick)) = self.next().filter(|next| next.1 <= target) else {
                self.now = self.now.max(target);
                return;
            };
            self.occupied[place / 64] &= !(1 << (place % 64));
            self.entered = Some(place);
            self.now = tick;
        }
    }
}

/// Ends the pending of an entry that is due.
///
/// # Safety
/// The caller holds the wheel's lock and has unlinked the entry, which may be gone afterwards.
unsafe fn fire(entry: NonNull<Entry>, woken: &mut Batch, expired: &mut Expired) {
    // SAFETY: by contract. A fiber cannot leave its wait before it has seen its entry released, or
    // held the lock that the caller holds. A block is kept alive by the wheel's reference.
    unsafe {
        match entry.as_ref().expiry {
            Expiry::Wake(control) => {
                woken.wake(control, Reason::TimedOut);
                // Release: our accesses come before the owner's next.
                entry.as_ref().wheel.store(null_mut(), Ordering::Release);
            }
            Expiry::Hand(_) => expired.add(entry),
        }
    }
}

/// Blocks that have been taken out of a wheel, linked through their entries, with the references
/// that the wheel had.
pub(crate) struct Expired {
    first: *const Entry,
    last: *const Entry,
}

// SAFETY: what is in the list belongs to it, and may be sent (`Expire: Send + Sync`).
unsafe impl Send for Expired {}

impl Expired {
    pub(crate) const fn new() -> Expired {
        Expired { first: null(), last: null() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    /// # Safety
    /// The caller holds the lock of the wheel from which it has just unlinked `entry`, a block's.
    unsafe fn add(&mut self, entry: NonNull<Entry>) {
        let this = entry.as_ptr().cast_const();
        // SAFETY: by contract, and for the last because it is in this list. Relaxed: under the
        // lock. Once `wheel` is null, whoever has the lock leaves the links alone.
        unsafe {
            entry.as_ref().wheel.store(null_mut(), Ordering::Relaxed);
            entry.as_ref().links().next = null();
            match self.last.as_ref() {
                Some(last) => last.links().next = this,
                None => self.first = this,
            }
        }
        self.last = this;
    }
}

impl Iterator for Expired {
    type Item = Arc<dyn Expire>;

    fn next(&mut self) -> Option<Arc<dyn Expire>> {
        let first = NonNull::new(self.first.cast_mut())?;
        // SAFETY: in this list, which has the links and the reference.
        unsafe {
            self.first = first.as_ref().links().next;
            if self.first.is_null() {
                self.last = null();
            }
            match first.as_ref().expiry {
                Expiry::Hand(owner) => Some(owner(first)),
                Expiry::Wake(_) => unreachable!("a fiber waits in a runtime that has none"),
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
