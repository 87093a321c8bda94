//! Fibers that have been spawned and find no memory for a stack.
//!
//! A fiber gets its stack when it first runs, long after its spawn has succeeded. If there is none to be had
//! then, it *starves*: it stands aside, so that those who have theirs go on, and is tried again when a fiber has
//! ended, and after a pause, for memory may come back in other ways too. Meanwhile spawns that need as much are
//! refused, as a thread's would be.
//!
//! What starves sets an alarm like a timer: a runtime in which all others wait does not forget it.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use super::Core;
use crate::fiber::{Header, Runnable};
use crate::kernel;
use crate::wait::Batch;

/// Nanoseconds until somebody who starves is tried again.
const PAUSE: u64 = 1_000_000;

impl Core {
    /// There is no memory for the stack of `task`, a fresh one that is the caller's.
    #[cold]
    pub(in crate::scheduler) fn starve(&self, task: NonNull<Runnable>) {
        // SAFETY: a fresh task is the head of its header, and the caller's.
        let size = unsafe { task.cast::<Header>().as_ref() }.stack;
        let mut one = Batch::new();
        one.add(task);
        self.starving.push(one);
        let again = kernel::now() + PAUSE;
        // Relaxed, both: hints. Who misses them tries too early, or spawns one more who starves.
        self.hunger.fetch_min(size, Ordering::Relaxed);
        self.next_meal.store(again, Ordering::Relaxed);
        // SeqCst: as for a timer, see the essay of `scheduler`.
        fence(Ordering::SeqCst);
        if self.someone_sleeps() {
            self.driver.arm(again);
        }
    }

    /// One of those who starve, if it is time to try again at `now`.
    #[inline]
    pub(in crate::scheduler) fn feed(&self, now: u64) -> Batch {
        if now < self.next_meal() {
            return Batch::new();
        }
        let one = self.starving.pop(1);
        if self.starving.len() == 0 {
            // Relaxed: a hint. If `one` starves again it says so again.
            self.hunger.store(usize::MAX, Ordering::Relaxed);
        }
        one
    }

    /// When somebody who starves is to be tried again; `u64::MAX` if nobody does.
    pub(in crate::scheduler) fn next_meal(&self) -> u64 {
        // Relaxed: a hint that is looked at again.
        if self.starves() { self.next_meal.load(Ordering::Relaxed) } else { u64::MAX }
    }

    /// Whether anybody starves.
    #[inline]
    pub(in crate::scheduler) fn starves(&self) -> bool {
        self.starving.len() > 0
    }

    /// A fiber has ended, and a stack is free.
    #[inline]
    pub(crate) fn stack_returns(&self) {
        if self.starves() {
            // Relaxed: a hint; the caller will look itself.
            self.next_meal.store(0, Ordering::Relaxed);
        }
    }

    /// Whether a fiber with a slot of `size` bytes would find those before it starving.
    ///
    /// # Errors
    /// `OutOfMemory` if so.
    pub(crate) fn has_memory(&self, size: usize) -> io::Result<()> {
        // Relaxed: a hint, see `starve`.
        if size < self.hunger.load(Ordering::Relaxed) {
            return Ok(());
        }
        let message = "no memory for another fiber's stack: others wait for theirs";
        Err(io::Error::new(io::ErrorKind::OutOfMemory, message))
    }
}
