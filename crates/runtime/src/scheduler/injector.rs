//! The runtime's common queue: what comes from outside its workers.
//!
//! Spawns and wakes by plain threads and by other runtimes, and what a leaving worker has left
//! over. A locked list suffices: workers come here rarely and take many at once.

use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

use sleave_context::lock::Lock;

use crate::fiber::Runnable;
use crate::wait::Batch;

pub(crate) struct Injector {
    list: Lock<List>,
    /// The list's length, for those who ask without taking.
    len: AtomicUsize,
}

struct List {
    first: *mut Runnable,
    last: *mut Runnable,
}

// SAFETY: the runnables belong to the list they are in.
unsafe impl Send for List {}

impl Injector {
    pub(crate) fn new() -> Injector {
        Injector {
            list: Lock::new(List { first: null_mut(), last: null_mut() }),
            len: AtomicUsize::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        // Relaxed: a hint; the scheduler's fences order it where that matters.
        self.len.load(Ordering::Relaxed)
    }

    /// Appends all of `batch`.
    pub(crate) fn push(&self, batch: Batch) {
        let (Some(first), Some(last)) = (batch.first, batch.last()) else { return };
        let mut list = self.list.lock();
        match NonNull::new(list.last) {
            Some(before) => {
                // SAFETY: a runnable in this list. Relaxed: under the lock.
                unsafe { before.as_ref() }.next.store(first.as_ptr(), Ordering::Relaxed);
            }
            None => list.first = first.as_ptr(),
        }
        list.last = last.as_ptr();
        self.len.fetch_add(batch.count, Ordering::Relaxed);
    }

    /// Takes up to `count` from the front.
    pub(crate) fn pop(&self, count: usize) -> Batch {
        let mut batch = Batch::new();
        if self.len() == 0 {
            return batch;
        }
        let mut list = self.list.lock();
        while batch.count < count
            && let Some(first) = NonNull::new(list.first)
        {
            // SAFETY: a runnable in this list. Relaxed: under the lock.
            list.first = unsafe { first.as_ref() }.next.load(Ordering::Relaxed);
            if list.first.is_null() {
                list.last = null_mut();
            }
            batch.add(first);
        }
        self.len.fetch_sub(batch.count, Ordering::Relaxed);
        batch
    }
}
