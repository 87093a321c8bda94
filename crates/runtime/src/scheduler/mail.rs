//! The runtime's letter box: fibers woken by whoever may take no lock.
//!
//! A signal handler may call `sem_post`, wherever it has interrupted its thread: also half-way
//! through a push into a worker's own queue, or under the injector's lock. So it drops what it has woken here: a
//! stack without a lock (R. K. Treiber, "Systems Programming: Coping with Parallelism", 1986).
//! One compare-and-swap makes a letter visible, whatever was interrupted.
//!
//! ```text
//!   drop: top ─▶ c ─▶ b ─▶ a          collect: takes all at once, hands them out as a, b, c
//! ```
//!
//! Letters are only ever collected all together, by an exchange with null, so the stack knows no ABA
//! problem: a `top` that is compared equal is the top, whatever was there in between.

use std::ptr::{NonNull, null_mut};

use crate::fiber::Runnable;
use crate::sync::{AtomicPtr, Ordering};
use crate::wait::Batch;

pub(crate) struct Mail {
    top: AtomicPtr<Runnable>,
}

impl Mail {
    pub(crate) fn new() -> Mail {
        Mail { top: AtomicPtr::new(null_mut()) }
    }

    pub(super) fn is_empty(&self) -> bool {
        // Relaxed: a hint; the scheduler's fences order it where that matters.
        self.top.load(Ordering::Relaxed).is_null()
    }

    /// Leaves `letter`. May be called anywhere, also in a signal handler.
    pub(super) fn leave(&self, letter: NonNull<Runnable>) {
        // Relaxed: only the exchange says whether it still is the top.
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            // SAFETY: the letter is the caller's until the exchange. Relaxed: published by that.
            unsafe { letter.as_ref() }.next.store(top, Ordering::Relaxed);
            // Release: who collects sees the link, and what was done before the wake. Relaxed on
            // failure: tried again.
            match self.top.compare_exchange_weak(
                top,
                letter.as_ptr(),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Takes all letters, the oldest first.
    pub(super) fn collect(&self) -> Batch {
        let mut batch = Batch::new();
        if self.is_empty() {
            return batch;
        }
        // Acquire pairs with the Release of every letter: each exchange of `leave` continues the
        // release sequence of the ones before.
        let mut letter = self.top.swap(null_mut(), Ordering::Acquire);
        let mut reversed = null_mut();
        while let Some(now) = NonNull::new(letter) {
            // SAFETY: the letters are the caller's now. Relaxed: nobody else has them.
            letter = unsafe { now.as_ref() }.next.load(Ordering::Relaxed);
            // SAFETY: as above.
            unsafe { now.as_ref() }.next.store(reversed, Ordering::Relaxed);
            reversed = now.as_ptr();
        }
        while let Some(now) = NonNull::new(reversed) {
            // SAFETY: as above.
            reversed = unsafe { now.as_ref() }.next.load(Ordering::Relaxed);
            batch.add(now);
        }
        batch
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::fiber::Kind;
    use loom::sync::Arc;
    use loom::thread;

    fn letter() -> NonNull<Runnable> {
        NonNull::from(Box::leak(Box::new(Runnable::new(Kind::Fresh))))
    }

    fn open(mut batch: Batch, count: &mut usize) {
        while let Some(letter) = batch.take() {
            // SAFETY: made by `letter`, and in no list any more.
            drop(unsafe { Box::from_raw(letter.as_ptr()) });
            *count += 1;
        }
    }

    #[test]
    fn loom_every_letter_is_collected_once() {
        loom::model(|| {
            let mail = Arc::new(Mail::new());
            let senders = [(); 2].map(|()| {
                let mail = Arc::clone(&mail);
                thread::spawn(move || mail.leave(letter()))
            });
            let mut count = 0;
            open(mail.collect(), &mut count);
            senders.into_iter().for_each(|sender| sender.join().unwrap());
            open(mail.collect(), &mut count);
            assert_eq!(count, 2);
        });
    }
}
