//! The shelf: the free slots that one processor keeps for itself, the warmest of all.
//!
//! A fiber's life takes a slot from the shelf and puts one back, so both cost a handful of
//! instructions and no locked one. Yet whoever returns memory must reach the shelves of processors
//! that sleep. The owner pays nothing for that; the rare visitor pays for both, by membarrier(2):
//!
//! ```text
//!   owner:    busy := 1      (compiler's fence)    visited?   yes: leave it, use the stock
//!   visitor:  visited := 1   membarrier            busy?      yes: it is out in a moment
//! ```
//!
//! The membarrier makes every other thread of the process pass a full fence at some point of its
//! program. If that lies before the owner's question, the owner sees `visited`; if after, the
//! visitor sees `busy`. So never are both in. Where the kernel refuses the call, nobody visits.
//!
//! A slot on a shelf is covered by *credit* out of the pool's limit, see `stock`; the shelf fetches
//! credit a few slots' worth at a time.
//!
//! Source: membarrier(2), "asymmetric" use.

use std::cell::UnsafeCell;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, compiler_fence};

use sleave_context::lock::Lock;

use super::list::List;
use super::{Control, Space};
use crate::kernel;

/// The most slots on a shelf.
const MOST: usize = 128;
/// How many stay when it is full and sheds the colder ones.
const KEEP: usize = MOST / 2;
/// How many slots, or credits, are fetched at a time.
const FETCH: usize = 16;
/// The most credit on a shelf for which it has no slots.
const SPARE: usize = 2 * FETCH;

// What is fetched when it is empty adds no more than that.
const _: () = assert!(SPARE + FETCH <= MOST);

/// See the essay.
#[repr(align(128))]
pub(crate) struct Shelf {
    /// The owner is in.
    busy: AtomicBool,
    /// A visitor is in, or about to be.
    visited: AtomicBool,
    inside: UnsafeCell<Inside>,
    /// As `inside.list.count()`, for who counts.
    count: AtomicUsize,
    /// How many fibers began on a slot that was free. Written by the owner.
    reused: AtomicU64,
    /// The next of all shelves.
    next: AtomicPtr<Shelf>,
}

struct Inside {
    list: List,
    /// How many slots may be here; not less than there are.
    credit: usize,
}

// SAFETY: `inside` is touched by the owner between `enter` and the drop of what it returns, and by a
// visitor that has found it not there; the essay says why these exclude each other.
unsafe impl Sync for Shelf {}
// SAFETY: nothing in it belongs to a thread; the owner changes under the lock of a core's staff.
unsafe impl Send for Shelf {}

/// All shelves there are; they are never freed.
static SHELVES: AtomicPtr<Shelf> = AtomicPtr::new(null_mut());

/// Held by the visitor, and by who counts: so no slot is on its way meanwhile.
pub(super) static VISITING: Lock<()> = Lock::new(());

/// The owner, in.
struct Owner<'a>(&'a Shelf);

impl Drop for Owner<'_> {
    fn drop(&mut self) {
        // Release: a visitor that sees this sees what the owner did.
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Owner<'_> {
    fn inside(&mut self) -> &mut Inside {
        // SAFETY: the owner is in, so no visitor is, and it borrows itself exclusively.
        unsafe { &mut *self.0.inside.get() }
    }
}

impl Shelf {
    /// An empty shelf, for the life of the process.
    pub(crate) fn new() -> &'static Shelf {
        let shelf: &'static Shelf = Box::leak(Box::new(Shelf {
            busy: AtomicBool::new(false),
            visited: AtomicBool::new(false),
            inside: UnsafeCell::new(Inside { list: List::new(), credit: 0 }),
            count: AtomicUsize::new(0),
            reused: AtomicU64::new(0),
            next: AtomicPtr::new(null_mut()),
        }));
        let pointer = std::ptr::from_ref(shelf).cast_mut();
        // Relaxed: only a hint for the exchange.
        let mut first = SHELVES.load(Ordering::Relaxed);
        loop {
            // Relaxed: published by the exchange.
            shelf.next.store(first, Ordering::Relaxed);
            // Release publishes the shelf; those behind were published so, and are in the same release sequence.
            let (success, failure) = (Ordering::Release, Ordering::Relaxed);
            match SHELVES.compare_exchange_weak(first, pointer, success, failure) {
                Ok(_) => return shelf,
                Err(now) => first = now,
            }
        }
    }

    /// This shelf and all that were made before.
    fn and_behind(&'static self) -> impl Iterator<Item = &'static Shelf> {
        std::iter::successors(Some(self), |shelf| {
            // SAFETY: null or a shelf, which is never freed. Relaxed: not changed since it was published
            // with the first, whose finder has acquired it.
            unsafe { shelf.next.load(Ordering::Relaxed).as_ref() }
        })
    }

    /// The owner goes in, unless a visitor is there.
    #[inline]
    fn enter(&self) -> Option<Owner<'_>> {
        // Relaxed: the visitor's membarrier orders it against the question below, once the
        // compiler has been kept from turning the two round.
        self.busy.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        let owner = Owner(self);
        // Acquire: the owner sees what the visitor left.
        if self.visited.load(Ordering::Acquire) { None } else { Some(owner) }
    }

    /// A slot of `size` bytes, from here or from the stock; `None` if there is no free one. `usual`:
    /// it is the size of which the slots here are. The owner calls.
    #[inline]
    pub(crate) fn take(&self, space: &Space, size: usize, usual: bool) -> Option<NonNull<Control>> {
        let mut owner = if usual { self.enter() } else { None };
        let slot = match &mut owner {
            Some(owner) => {
                let inside = owner.inside();
                match inside.list.pop() {
                    Some(slot) => {
                        if inside.credit - inside.list.count() > SPARE {
                            inside.credit -= FETCH;
                            space.repay(FETCH);
                        }
                        slot
                    }
                    None => self.fetch(space, size, owner)?,
                }
            }
            None => space.take_free(size, 1).pop()?,
        };
        self.publish(owner);
        // Relaxed: the owner is the only writer, others read it for its own sake.
        self.reused.store(self.reused.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Some(slot)
    }

    /// Takes several from the stock, all but one for later.
    #[cold]
    fn fetch(&self, space: &Space, size: usize, owner: &mut Owner) -> Option<NonNull<Control>> {
        let mut fetched = space.take_free(size, FETCH);
        let slot = fetched.pop()?;
        let inside = owner.inside();
        inside.credit += fetched.count();
        inside.list.append(fetched);
        Some(slot)
    }

    /// Takes back the slot of a fiber that has ended. The owner calls.
    ///
    /// # Safety
    /// Nothing runs on the slot any more, and it is the caller's; its size is the usual one.
    #[inline]
    pub(crate) unsafe fn give(&self, space: &Space, slot: NonNull<Control>) {
        let Some(mut owner) = self.enter() else {
            // SAFETY: by contract.
            return unsafe { space.give(slot) };
        };
        let inside = owner.inside();
        if inside.list.count() < inside.credit || Self::make_room(space, inside) {
            // SAFETY: by contract.
            unsafe { inside.list.push(slot) };
            self.publish(Some(owner));
        } else {
            self.publish(Some(owner));
            // SAFETY: by contract.
            unsafe { space.discard(slot) };
        }
    }

    /// Makes room for one more; whether the limit allows it.
    #[cold]
    fn make_room(space: &Space, inside: &mut Inside) -> bool {
        if inside.credit == MOST {
            let cold = inside.list.split_off(KEEP);
            // Their credit goes with them.
            inside.credit -= cold.count();
            space.give_covered(cold);
        }
        inside.credit += space.borrow(FETCH.min(MOST - inside.credit));
        inside.list.count() < inside.credit
    }

    /// Gives everything to the stock. The owner calls, or whoever has taken the processor over.
    pub(crate) fn clear(&self, space: &Space) {
        loop {
            if let Some(mut owner) = self.enter() {
                owner.inside().empty(space);
                return self.publish(Some(owner));
            }
            // The visitor is gone in a moment; it may leave without having been able to do anything.
            kernel::sched_yield();
        }
    }

    /// Says how many there are, and lets others in.
    #[inline]
    fn publish(&self, owner: Option<Owner<'_>>) {
        if let Some(mut owner) = owner {
            // Relaxed: read for its own sake.
            self.count.store(owner.inside().list.count(), Ordering::Relaxed);
        }
    }
}

impl Inside {
    /// Gives all slots and all credit back.
    fn empty(&mut self, space: &Space) {
        let list = std::mem::replace(&mut self.list, List::new());
        let spare = self.credit - list.count();
        self.credit = 0;
        space.give_covered(list);
        space.repay(spare);
    }
}

fn shelves() -> impl Iterator<Item = &'static Shelf> {
    // SAFETY: null or a shelf, which is never freed. Acquire pairs with the Release in `new`.
    let first = unsafe { SHELVES.load(Ordering::Acquire).as_ref() };
    first.into_iter().flat_map(Shelf::and_behind)
}

/// Moves what is on all shelves into the stock.
pub(super) fn clear_all(space: &Space) {
    let _visiting = VISITING.lock();
    // One that is made meanwhile goes before the first, and is not visited.
    let Some(first) = shelves().next() else { return };
    // Relaxed: ordered by the membarrier, which the compiler moves nothing over.
    first.and_behind().for_each(|shelf| shelf.visited.store(true, Ordering::Relaxed));
    let fenced = kernel::membarrier();
    for shelf in first.and_behind() {
        if fenced {
            // Acquire pairs with the Release of the owner's leaving.
            while shelf.busy.load(Ordering::Acquire) {
                kernel::sched_yield();
            }
            // SAFETY: the owner is not in, and stays out.
            unsafe { &mut *shelf.inside.get() }.empty(space);
            // Relaxed: for who counts, under the lock.
            shelf.count.store(0, Ordering::Relaxed);
        }
        // Release: the owner that sees this sees what is left here.
        shelf.visited.store(false, Ordering::Release);
    }
}

/// How many slots are on all shelves, and how many fibers began on one that was free.
pub(super) fn counts() -> (usize, u64) {
    // Relaxed, both: a momentary view.
    shelves().fold((0, 0), |(count, reused), shelf| {
        let (here, times) =
            (shelf.count.load(Ordering::Relaxed), shelf.reused.load(Ordering::Relaxed));
        (count + here, reused + times)
    })
}

#[cfg(all(test, not(loom)))]
mod tests;
