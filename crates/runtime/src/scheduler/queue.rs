//! A processor's own queue: first in, first out; one owner pushes and pops, others steal.
//!
//! A growing ring after Chase & Lev ("Dynamic Circular Work-Stealing Deque", 2005), with the
//! owner at the same end as the thieves, so that the order is that of arrival: a fiber that
//! yields goes behind every other. `head` and `tail` count up for ever; `tail` is the owner's,
//! `head` moves by compare-and-swap of whoever takes something, which as it never repeats a
//! value cannot be fooled (no ABA).
//!
//! ```text
//!   buffer  | . | 3 | 4 | 5 | 6 | . | . | . |      head = 3, tail = 7: position = count mod size
//! ```
//!
//! The ring is unbounded: there is no overflow path that would shuffle the order. An outgrown
//! buffer is kept until the queue goes, since a thief may still be reading it; together they are
//! smaller than the last one.

#[cfg(all(test, loom))]
mod loom_models;

use std::cell::UnsafeCell;
use std::ptr::{NonNull, null_mut};

use super::super::fiber::Runnable;
use crate::sync::{AtomicPtr, AtomicU64, Ordering};

/// Slots of the first buffer, a power of two. Small under loom, so that growth is explored.
#[cfg(not(loom))]
const FIRST: u64 = 256;
#[cfg(loom)]
const FIRST: u64 = 2;

/// The most that a thief takes at once.
const MOST: u64 = 128;

pub(crate) struct Queue {
    /// Where the next is taken. On a line of its own: thieves write it, the owner's pushes do not.
    head: Line<AtomicU64>,
    tail: Line<AtomicU64>,
    buffer: AtomicPtr<Buffer>,
    /// The owner's: all buffers there ever were.
    buffers: UnsafeCell<Vec<NonNull<Buffer>>>,
}

#[repr(align(64))]
struct Line<T>(T);

struct Buffer {
    slots: Box<[AtomicPtr<Runnable>]>,
}

// SAFETY: the methods' contracts say which of them only the owner calls; everything that thieves
// share is atomic.
unsafe impl Sync for Queue {}
// SAFETY: as above; a runnable may run on any thread.
unsafe impl Send for Queue {}

impl Buffer {
    fn new(size: u64) -> Buffer {
        Buffer { slots: (0..size).map(|_| AtomicPtr::new(null_mut())).collect() }
    }

    fn slot(&self, position: u64) -> &AtomicPtr<Runnable> {
        &self.slots[position as usize & (self.slots.len() - 1)]
    }
}

impl Queue {
    pub(crate) fn new() -> Queue {
        let buffer = NonNull::from(Box::leak(Box::new(Buffer::new(FIRST))));
        Queue {
            head: Line(AtomicU64::new(0)),
            tail: Line(AtomicU64::new(0)),
            buffer: AtomicPtr::new(buffer.as_ptr()),
            buffers: UnsafeCell::new(vec![buffer]),
        }
    }

    /// How many there are, roughly, for anyone but the owner.
    pub(crate) fn len(&self) -> usize {
        // Acquire on both: a thief that sees the tail sees what lies before it. (Head first, so
        // that the difference is never negative.)
        let head = self.head.0.load(Ordering::Acquire);
        self.tail.0.load(Ordering::Acquire).saturating_sub(head) as usize
    }

    /// Appends.
    ///
    /// # Safety
    /// Only the owner calls this. The runnable is in no other list.
    pub(crate) unsafe fn push(&self, runnable: NonNull<Runnable>) {
        // Relaxed: the owner's own stores.
        let tail = self.tail.0.load(Ordering::Relaxed);
        // Acquire: thieves have read the slots before `head` by the time it moved.
        let head = self.head.0.load(Ordering::Acquire);
        // SAFETY: the current buffer lives as long as the queue. Relaxed: the owner's store.
        let mut buffer = unsafe { &*self.buffer.load(Ordering::Relaxed) };
        if tail - head == buffer.slots.len() as u64 {
            // SAFETY: the owner calls.
            buffer = unsafe { self.grow(buffer, head, tail) };
        }
        // Relaxed: published by the tail.
        buffer.slot(tail).store(runnable.as_ptr(), Ordering::Relaxed);
        // Release publishes the slot, and a new buffer, to thieves.
        self.tail.0.store(tail + 1, Ordering::Release);
    }

    /// # Safety
    /// Only the owner calls this.
    #[cold]
    unsafe fn grow(&self, old: &Buffer, head: u64, tail: u64) -> &Buffer {
        let new = Box::new(Buffer::new(old.slots.len() as u64 * 2));
        for position in head..tail {
            // Relaxed: the owner wrote these slots itself.
            let runnable = old.slot(position).load(Ordering::Relaxed);
            new.slot(position).store(runnable, Ordering::Relaxed);
        }
        let new = NonNull::from(Box::leak(new));
        // SAFETY: the owner's list.
        unsafe { (*self.buffers.get()).push(new) };
        // Release: a thief that finds the buffer finds its slots.
        self.buffer.store(new.as_ptr(), Ordering::Release);
        // SAFETY: just made; freed with the queue.
        unsafe { &*new.as_ptr() }
    }

    /// Takes the oldest.
    ///
    /// # Safety
    /// Only the owner calls this.
    pub(crate) unsafe fn pop(&self) -> Option<NonNull<Runnable>> {
        // Relaxed: the owner's own.
        let tail = self.tail.0.load(Ordering::Relaxed);
        // Relaxed: the exchange below decides.
        let mut head = self.head.0.load(Ordering::Relaxed);
        loop {
            if head == tail {
                return None;
            }
            // SAFETY: the current buffer lives as long as the queue. Relaxed: the owner's.
            let buffer = unsafe { &*self.buffer.load(Ordering::Relaxed) };
            let runnable = buffer.slot(head).load(Ordering::Relaxed);
            // Relaxed is enough: the slot was written by this thread, and a thief orders itself.
            match self.head.0.compare_exchange_weak(
                head,
                head + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return NonNull::new(runnable),
                Err(now) => head = now,
            }
        }
    }

    /// The address of the one that is `ahead` places behind the oldest; only an address, for it may
    /// be taken, and gone, at any time.
    ///
    /// # Safety
    /// Only the owner calls this.
    #[inline]
    pub(crate) unsafe fn peek(&self, ahead: u64) -> *const Runnable {
        // Relaxed, all three: a stale answer is a useless prefetch, no more.
        let position = self.head.0.load(Ordering::Relaxed) + ahead;
        if position >= self.tail.0.load(Ordering::Relaxed) {
            return null_mut();
        }
        // SAFETY: the current buffer lives as long as the queue.
        let buffer = unsafe { &*self.buffer.load(Ordering::Relaxed) };
        buffer.slot(position).load(Ordering::Relaxed)
    }

    /// Takes half of what is here, `MOST` at most: returns the oldest and appends the others
    /// to `thief`.
    ///
    /// # Safety
    /// The caller owns `thief`, which is not this queue.
    pub(crate) unsafe fn steal(&self, thief: &Queue) -> Option<NonNull<Runnable>> {
        loop {
            // Acquire: what is read below is at least as new as this head.
            let head = self.head.0.load(Ordering::Acquire);
            // Acquire pairs with the owner's publication in `push`.
            let tail = self.tail.0.load(Ordering::Acquire);
            let here = tail.saturating_sub(head);
            if here == 0 {
                return None;
            }
            let count = here.div_ceil(2).min(MOST);
            // SAFETY: buffers live as long as the queue. Acquire: see `grow`; and the tail that
            // was seen was stored after the buffer that holds everything up to it.
            let buffer = unsafe { &*self.buffer.load(Ordering::Acquire) };
            let mut taken = [null_mut(); MOST as usize];
            for (i, slot) in taken.iter_mut().take(count as usize).enumerate() {
                // Relaxed: valid if the exchange succeeds, else thrown away.
                *slot = buffer.slot(head + i as u64).load(Ordering::Relaxed);
            }
            // Release: the reads above come before the owner uses the slots again (its Acquire
            // in `push`). Relaxed on failure: everything is read anew.
            if self
                .head
                .0
                .compare_exchange(head, head + count, Ordering::Release, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            for &runnable in &taken[1..count as usize] {
                let runnable = NonNull::new(runnable).expect("a slot before the tail is filled");
                // SAFETY: the caller owns the thief; these left this queue by the exchange.
                unsafe { thief.push(runnable) };
            }
            return NonNull::new(taken[0]);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        for buffer in self.buffers.get_mut().drain(..) {
            // SAFETY: leaked by `new` and `grow`; no thief is left when the queue goes.
            drop(unsafe { Box::from_raw(buffer.as_ptr()) });
        }
    }
}
