//! The timer wheel: who waits until when.
//!
//! A hierarchical wheel (Varghese & Lauck, "Hashed and Hierarchical Timing Wheels", 1987): level
//! `l` has 64 slots, each 64^l ticks wide. A timer goes into the lowest level at which its tick
//! differs from the wheel's present one, and moves down as its time comes near. Insertion and
//! removal are O(1); the entry is part of the waiting fiber's stack, so nothing is allocated.
//!
//! A tick is 2^16 ns (65.5 µs), about the kernel's own default timer slack (50 µs). Deadlines are
//! rounded **up** to a tick, so a timer is never early. Eight levels span all of `u64`: there is
//! no longest timer.
//!
//! Each processor has a wheel, under a lock that is held for a few instructions. A fiber that
//! was woken on another processor still finds its timer's wheel: the entry names it. `next`
//! repeats the earliest tick outside the lock, for everyone who asks whether it is time.

use std::cell::UnsafeCell;
use std::marker::PhantomPinned;
use std::pin::Pin;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use sleave_context::lock::Lock;

use super::{Batch, Deadline, Reason};
use crate::fiber::Control;

/// log2 of a tick in nanoseconds.
const TICK: u32 = 16;
const LEVELS: usize = 8;
/// How many fibers are taken out under one hold of the lock.
const BATCH: usize = 256;

/// One pending deadline of one fiber, on that fiber's stack.
pub(crate) struct Timer {
    control: NonNull<Control>,
    tick: u64,
    /// The wheel that holds this entry; null when none does. Written under that wheel's lock,
    /// last when the entry is released.
    wheel: AtomicPtr<Wheel>,
    links: UnsafeCell<Links>,
    _pinned: PhantomPinned,
}

struct Links {
    previous: *const Timer,
    next: *const Timer,
    /// level * 64 + slot
    place: u16,
}

impl Timer {
    pub(crate) fn new(control: NonNull<Control>, deadline: Deadline) -> Timer {
        // The last tick stands for "at the end of time": all levels hold 48 bits of ticks.
        let tick = deadline.nanoseconds().div_ceil(1 << TICK).min((1 << 48) - 1);
        Timer {
            control,
            tick,
            wheel: AtomicPtr::new(null_mut()),
            links: UnsafeCell::new(Links {
                previous: std::ptr::null(),
                next: std::ptr::null(),
                place: 0,
            }),
            _pinned: PhantomPinned,
        }
    }

    /// Starts the timer on `wheel`.
    pub(crate) fn start(self: Pin<&Self>, wheel: &'static Wheel) {
        let mut inner = wheel.inner.lock();
        // Relaxed: published by the lock.
        self.wheel.store(std::ptr::from_ref(wheel).cast_mut(), Ordering::Relaxed);
        // SAFETY: pinned, and not in a wheel: `cancel` runs before it goes out of scope.
        unsafe { inner.insert(&self) };
        wheel.publish(&inner);
    }

    /// Wakes the fiber; the caller holds the wheel's lock and has unlinked the timer.
    fn fire(&self, woken: &mut Batch) {
        // SAFETY: the fiber cannot leave its wait before it has seen its timer released, or
        // held the lock that the caller holds.
        unsafe { woken.wake(self.control, Reason::TimedOut) };
        // Release: our accesses come before the owner's next; the timer may be gone after this.
        self.wheel.store(null_mut(), Ordering::Release);
    }

    /// Takes the timer out if it has not fired.
    pub(crate) fn cancel(self: Pin<&Self>) {
        // Acquire: null was stored by the wheel that fired us, as its last access.
        let wheel = self.wheel.load(Ordering::Acquire);
        // SAFETY: wheels belong to processors, which are never freed.
        let Some(wheel) = (unsafe { wheel.as_ref() }) else { return };
        let mut inner = wheel.inner.lock();
        // Relaxed: under the lock that guards it.
        if !self.wheel.load(Ordering::Relaxed).is_null() {
            // SAFETY: non-null under the lock means linked in this wheel.
            unsafe { inner.remove(&self) };
            self.wheel.store(null_mut(), Ordering::Relaxed);
            // `next` may now be too early: one needless look, cheaper than a search here.
        }
    }
}

/// The deadlines of the fibers that parked on one processor.
pub(crate) struct Wheel {
    /// No timer is due before this time in nanoseconds; `u64::MAX` if there is none.
    next: AtomicU64,
    inner: Lock<Inner>,
}

struct Inner {
    /// All ticks up to this one have fired. Every occupied slot of a level lies beyond the
    /// level's digit of `now`, under the same higher digits.
    now: u64,
    levels: [Level; LEVELS],
}

struct Level {
    /// Bit `s` is set if slot `s` holds a timer.
    occupied: u64,
    slots: [*const Timer; 64],
}

// SAFETY: `Inner` points to timers, which are touched only under the wheel's lock.
unsafe impl Send for Inner {}

impl Wheel {
    pub(crate) fn new() -> Wheel {
        let level = || Level { occupied: 0, slots: [std::ptr::null(); 64] };
        Wheel {
            next: AtomicU64::new(u64::MAX),
            inner: Lock::new(Inner {
                now: crate::kernel::now() >> TICK,
                levels: std::array::from_fn(|_| level()),
            }),
        }
    }

    /// A time in nanoseconds before which nothing is due; `u64::MAX` if nothing is pending.
    pub(crate) fn next(&self) -> u64 {
        // SeqCst: the sleeper's part of the argument in `scheduler`: it announces itself, then
        // looks here; who starts a timer writes here, then looks for sleepers.
        self.next.load(Ordering::SeqCst)
    }

    fn publish(&self, inner: &Inner) {
        let next = inner.next().map_or(u64::MAX, |(_, _, tick)| tick << TICK);
        // SeqCst: see `next`.
        self.next.store(next, Ordering::SeqCst);
    }

    /// Wakes every fiber whose deadline is `now` (in nanoseconds) or earlier.
    pub(crate) fn fire(&self, now: u64) -> Batch {
        let mut all = Batch::new();
        while self.next() <= now {
            let mut inner = self.inner.lock();
            let more = inner.advance(now >> TICK, &mut all);
            self.publish(&inner);
            if !more {
                break;
            }
        }
        all
    }
}

impl Inner {
    /// # Safety
    /// `timer` is pinned, in no wheel, and removed before it is dropped.
    unsafe fn insert(&mut self, timer: &Timer) {
        // What is due already goes to the next tick.
        let tick = timer.tick.max(self.now + 1);
        // The level is that of the highest six-bit digit in which `tick` is not the present.
        let level = (63 - (tick ^ self.now).leading_zeros()) as usize / 6;
        let slot = (tick >> (6 * level)) as usize & 63;
        let next = std::mem::replace(&mut self.levels[level].slots[slot], timer);
        self.levels[level].occupied |= 1 << slot;
        // SAFETY: links of timers in this wheel are guarded by its lock, which is held.
        unsafe {
            *timer.links.get() =
                Links { previous: std::ptr::null(), next, place: (level * 64 + slot) as u16 };
            if let Some(next) = next.as_ref() {
                (*next.links.get()).previous = timer;
            }
        }
    }

    /// # Safety
    /// `timer` is linked in this wheel.
    unsafe fn remove(&mut self, timer: &Timer) {
        // SAFETY: links of timers in this wheel are guarded by its lock, which is held.
        unsafe {
            let Links { previous, next, place } = *timer.links.get();
            if let Some(next) = next.as_ref() {
                (*next.links.get()).previous = previous;
            }
            if let Some(previous) = previous.as_ref() {
                (*previous.links.get()).next = next;
                return;
            }
            let (level, slot) = (usize::from(place) / 64, usize::from(place) % 64);
            self.levels[level].slots[slot] = next;
            if next.is_null() {
                self.levels[level].occupied &= !(1 << slot);
            }
        }
    }

    /// The earliest slot that holds anything, and the tick at which it begins.
    fn next(&self) -> Option<(usize, usize, u64)> {
        // Whatever stands on a level comes before everything on a higher one.
        let level = self.levels.iter().position(|l| l.occupied != 0)?;
        let slot = self.levels[level].occupied.trailing_zeros() as usize;
        let above = 6 * (level as u32 + 1);
        Some((level, slot, (self.now >> above << above) + ((slot as u64) << (6 * level))))
    }

    /// Advances to `target`, waking what is due; returns whether the batch was full before.
    fn advance(&mut self, target: u64, woken: &mut Batch) -> bool {
        let mut fired = 0;
        while let Some((level, slot, tick)) = self.next().filter(|next| next.2 <= target) {
            if level > 0 {
                // The wheel enters this slot: spread it over the levels below. What is due at
                // once is woken here, for there is no slot for the present tick.
                let level = &mut self.levels[level];
                let mut list = std::mem::replace(&mut level.slots[slot], std::ptr::null());
                level.occupied &= !(1 << slot);
                self.now = tick;
                // SAFETY: timers in this wheel are alive and guarded by its lock.
                while let Some(timer) = unsafe { list.as_ref() } {
                    // SAFETY: as above, and it is in no slot now.
                    list = unsafe { (*timer.links.get()).next };
                    if timer.tick <= tick {
                        timer.fire(woken);
                    } else {
                        // SAFETY: as above.
                        unsafe { self.insert(timer) };
                    }
                }
                continue;
            }
            self.now = tick - 1;
            // SAFETY: timers in this wheel are alive and guarded by its lock.
            while let Some(timer) = unsafe { self.levels[0].slots[slot].as_ref() } {
                if fired == BATCH {
                    return true;
                }
                fired += 1;
                // SAFETY: it is linked in this slot.
                unsafe { self.remove(timer) };
                timer.fire(woken);
            }
            self.now = tick;
        }
        self.now = self.now.max(target);
        false
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
