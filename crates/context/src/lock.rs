//! A lock for the layers below the scheduler: spin briefly, then sleep in the kernel.
//!
//! The locks of `std` cannot be used there: in a program that interposes `syscall` they park the
//! *fiber*, and the code that parks fibers would call itself. This one asks the kernel directly, and
//! so always blocks the thread. Hence its one rule:
//!
//! **Never hold it across user code, a switch, or anything that may wait.** Critical sections are a few
//! dozen instructions, at most a memory system call.
//!
//! One word of state, as in Ulrich Drepper's "Futexes Are Tricky" (2011), mutex 3:
//!
//! ```text
//!   0 free ──lock──▶ 1 held ──another waits──▶ 2 held, somebody may sleep
//!     ▲                │                         │
//!     └────unlock──────┘◀──unlock: wake one──────┘
//! ```
//!
//! A thread that has slept takes the lock as 2, since it cannot know whether it was the last sleeper: at
//! worst one wake-up is wasted, and none is ever lost.
//!
//! A signal handler that takes the same lock as the code it interrupted dead-locks, as with any
//! lock. Use [`Lock::try_lock`] there, or keep signals out.

use crate::sys;
use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// How often to look before sleeping: about half a microsecond (a pause took 13 ns where
/// it was measured), the length of a critical section with a memory call in it. To spin for longer than a
/// sleep and a wake-up take never pays.
const SPINS: u32 = 40;

/// Mutual exclusion around a `T`, for short critical sections that never park a fiber.
pub struct Lock<T: ?Sized> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands `&mut T` from thread to thread, one at a time: that is sending it.
unsafe impl<T: ?Sized + Send> Send for Lock<T> {}
// SAFETY: as above; no two threads ever have the value at once.
unsafe impl<T: ?Sized + Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Lock<T> {
        Lock { state: AtomicU32::new(FREE), value: UnsafeCell::new(value) }
    }

    /// The value, out of the lock.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> Lock<T> {
    /// Waits until the lock is free, and takes it.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        if !self.take() {
            self.lock_contended();
        }
        Guard { lock: self }
    }

    /// Takes the lock if it is free. Never blocks.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        self.take().then(|| Guard { lock: self })
    }

    /// The value, without locking: an exclusive reference says that nobody else is there.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    #[inline]
    fn take(&self) -> bool {
        // Acquire: what the last holder wrote, before its release in `unlock`, is seen after this.
        // Relaxed on failure: nothing is read that the lock protects.
        self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn lock_contended(&self) {
        for _ in 0..SPINS {
            core::hint::spin_loop();
            // Relaxed: only a hint whether taking is worth a try.
            match self.state.load(Ordering::Relaxed) {
                FREE if self.take() => return,
                // Others sleep already: spinning would only overtake them.
                CONTENDED => break,
                _ => {}
            }
        }
        // Acquire: as in `take`, for the case that it was free.
        while self.state.swap(CONTENDED, Ordering::Acquire) != FREE {
            sys::futex_wait(&self.state, CONTENDED);
        }
    }

    #[inline]
    fn unlock(&self) {
        // Release: everything written under the lock happens before the next holder's acquire.
        if self.state.swap(FREE, Ordering::Release) == CONTENDED {
            sys::futex_wake(&self.state, 1);
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(value) => f.debug_tuple("Lock").field(&&*value).finish(),
            None => f.write_str("Lock(<held>)"),
        }
    }
}

impl<T: Default> Default for Lock<T> {
    fn default() -> Lock<T> {
        Lock::new(T::default())
    }
}

/// The lock, held; dropping it unlocks. There is no poisoning: code under this lock does not panic half-way.
#[must_use = "the lock is free again as soon as the guard is dropped"]
pub struct Guard<'a, T: ?Sized> {
    lock: &'a Lock<T>,
}

// SAFETY: a shared guard gives `&T` only. (No claim is made for `Send`, which `&Lock<T>` has by
// itself: the lock does not care which thread unlocks it.)
unsafe impl<T: ?Sized + Sync> Sync for Guard<'_, T> {}

impl<T: ?Sized> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the lock is held for as long as the guard lives.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.unlock();
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Guard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
