//! The fibers that wait for one direction of a descriptor.
//!
//! A list through nodes on the waiting fibers' stacks, in the order of their coming, guarded by the
//! descriptor's lock. A node is a [`Waiter`]; one that is unlinked has been released by its waker as the
//! last thing that it does (`linked`, stored with Release), so that its owner may go on without the lock.

use std::marker::PhantomPinned;
use std::ptr::{NonNull, null};

use crate::fiber::Control;
use crate::sync::{AtomicBool, Ordering, UnsafeCell};
use crate::wait::{Batch, Reason};

/// Waiters of one direction, the longest waiting first.
pub(super) struct Queue {
    first: *const Waiter,
    last: *const Waiter,
}

// SAFETY: waiters are touched only under the lock of the descriptor that they wait for.
unsafe impl Send for Queue {}

/// One fiber waiting for one direction of one descriptor, on that fiber's stack.
pub(super) struct Waiter {
    control: NonNull<Control>,
    /// It will look only, and leaves readiness to others.
    pub(super) looks: bool,
    /// Written under the lock; `false` last, when the waiter is released.
    pub(super) linked: AtomicBool,
    links: UnsafeCell<Links>,
    _pinned: PhantomPinned,
}

/// Guarded by the descriptor's lock.
struct Links {
    previous: *const Waiter,
    next: *const Waiter,
}

impl Waiter {
    pub(super) fn new(control: NonNull<Control>, looks: bool) -> Waiter {
        Waiter {
            control,
            looks,
            linked: AtomicBool::new(false),
            links: UnsafeCell::new(Links { previous: null(), next: null() }),
            _pinned: PhantomPinned,
        }
    }

    /// # Safety
    /// The lock is held of the descriptor in whose queue the waiter is, or is being put.
    unsafe fn change(&self, change: impl FnOnce(&mut Links)) {
        // SAFETY: by contract, and `change` is called with one waiter at a time.
        self.links.with_mut(|links| change(unsafe { &mut *links }));
    }

    /// Its neighbours.
    ///
    /// # Safety
    /// As [`Waiter::change`].
    unsafe fn links(&self) -> (*const Waiter, *const Waiter) {
        // SAFETY: by contract.
        self.links.with(|links| unsafe { ((*links).previous, (*links).next) })
    }

    /// The memory goes: under loom, whoever touches it without an order to this is reported.
    #[cfg(all(test, loom))]
    pub(super) fn goes(&self) {
        self.links.with_mut(|_| ());
    }
}

impl Queue {
    pub(super) const fn new() -> Queue {
        Queue { first: null(), last: null() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    /// # Safety
    /// The lock is held; the waiter is in no queue and stays until it is released.
    pub(super) unsafe fn push(&mut self, waiter: &Waiter) {
        // SAFETY: by contract, and the last is in this queue.
        unsafe {
            waiter.change(|links| *links = Links { previous: self.last, next: null() });
            match self.last.as_ref() {
                Some(last) => last.change(|links| links.next = waiter),
                None => self.first = waiter,
            }
        }
        self.last = waiter;
        // Relaxed: under the lock.
        waiter.linked.store(true, Ordering::Relaxed);
    }

    /// # Safety
    /// The lock is held; the waiter is in this queue.
    pub(super) unsafe fn remove(&mut self, waiter: &Waiter) {
        // SAFETY: by contract, and its neighbours are in this queue as well.
        unsafe {
            let (previous, next) = waiter.links();
            match previous.as_ref() {
                Some(previous) => previous.change(|links| links.next = next),
                None => self.first = next,
            }
            match next.as_ref() {
                Some(next) => next.change(|links| links.previous = previous),
                None => self.last = previous,
            }
        }
    }

    /// Wakes waiters: those who look, and the first of the others, or `all`. The lock is held.
    pub(super) fn wake(&mut self, reason: Reason, all: bool, woken: &mut Batch) {
        let mut waiter = self.first;
        let mut one = false;
        // SAFETY: waiters in the queue are alive and guarded by the lock, which the caller holds.
        while let Some(candidate) = unsafe { waiter.as_ref() } {
            // SAFETY: as above.
            waiter = unsafe { candidate.links() }.1;
            if one && !all && !candidate.looks {
                continue;
            }
            // SAFETY: as above. One that its deadline has claimed already will not try.
            unsafe {
                self.remove(candidate);
                one |= woken.wake(candidate.control, reason) && !candidate.looks;
            }
            // Release: our accesses come before its owner's next.
            candidate.linked.store(false, Ordering::Release);
        }
    }
}
