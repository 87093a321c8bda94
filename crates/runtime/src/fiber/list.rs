//! A list of free slots, linked through their control blocks, the warmest first.
//!
//! ```text
//!   push, pop ▶ first ─▶ … ─▶ last ◀ append
//!               warmest       coldest
//! ```

use std::ptr::{NonNull, null_mut};
use std::sync::atomic::Ordering;

use super::Control;

/// Free slots. Whoever has the list has what is in it: nothing runs there, and nobody else looks.
pub(super) struct List {
    first: *mut Control,
    /// Meaningless while the list is empty.
    last: *mut Control,
    count: usize,
}

// SAFETY: a free slot belongs to the list it is in, on whatever thread that is.
unsafe impl Send for List {}

/// The slot behind `slot`.
///
/// # Safety
/// `slot` is in a list of the caller's.
unsafe fn next(slot: NonNull<Control>) -> *mut Control {
    // SAFETY: a free slot keeps its control block. Relaxed: the list is the caller's.
    unsafe { slot.as_ref() }.link.next.load(Ordering::Relaxed).cast()
}

/// Makes `behind` the slot behind `slot`.
///
/// # Safety
/// As for [`next`].
unsafe fn link(slot: NonNull<Control>, behind: *mut Control) {
    // SAFETY: as in `next`.
    unsafe { slot.as_ref() }.link.next.store(behind.cast(), Ordering::Relaxed);
}

impl List {
    pub(super) const fn new() -> List {
        List { first: null_mut(), last: null_mut(), count: 0 }
    }

    /// A list of one.
    ///
    /// # Safety
    /// As for [`List::push`].
    pub(super) unsafe fn of(slot: NonNull<Control>) -> List {
        let mut list = List::new();
        // SAFETY: by contract.
        unsafe { list.push(slot) };
        list
    }

    /// The warmest.
    pub(super) fn first(&self) -> Option<NonNull<Control>> {
        NonNull::new(self.first).filter(|_| self.count > 0)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Puts a slot in front, as the warmest.
    ///
    /// # Safety
    /// The slot is the caller's, nothing runs on it any more, and it is in no list.
    #[inline]
    pub(super) unsafe fn push(&mut self, slot: NonNull<Control>) {
        // SAFETY: by contract.
        unsafe { link(slot, self.first) };
        if self.count == 0 {
            self.last = slot.as_ptr();
        }
        self.first = slot.as_ptr();
        self.count += 1;
    }

    /// Takes the warmest.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<NonNull<Control>> {
        self.count = self.count.checked_sub(1)?;
        let slot = NonNull::new(self.first)?;
        // SAFETY: it was in this list.
        self.first = unsafe { next(slot) };
        Some(slot)
    }

    /// Puts all of `colder` behind.
    pub(super) fn append(&mut self, colder: List) {
        if colder.count == 0 {
            return;
        }
        match NonNull::new(self.last).filter(|_| self.count > 0) {
            // SAFETY: in this list.
            Some(last) => unsafe { link(last, colder.first) },
            None => self.first = colder.first,
        }
        self.last = colder.last;
        self.count += colder.count;
    }

    /// Puts all of `warmer` in front.
    pub(super) fn prepend(&mut self, mut warmer: List) {
        warmer.append(std::mem::replace(self, List::new()));
        *self = warmer;
    }

    /// Keeps the `keep` warmest and returns the rest.
    pub(super) fn split_off(&mut self, keep: usize) -> List {
        if keep >= self.count {
            return List::new();
        }
        let rest = self.count - keep;
        let mut last_kept = None;
        let mut slot = self.first;
        for _ in 0..keep {
            last_kept = NonNull::new(slot);
            // SAFETY: in this list.
            slot = last_kept.map_or(null_mut(), |slot| unsafe { next(slot) });
        }
        let cold = List { first: slot, last: self.last, count: rest };
        self.last = last_kept.map_or(null_mut(), NonNull::as_ptr);
        self.count = keep;
        cold
    }
}
