//! The arena of the whole process, for those who bring none of their own.
//!
//! Made at its first use, never taken down. A failure is an answer and not a state: the next caller tries again.

use super::{Arena, Error};
use crate::lock::Lock;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

struct Global {
    ready: AtomicBool,
    making: Lock<()>,
    arena: UnsafeCell<MaybeUninit<Arena>>,
}

// SAFETY: `arena` is written once, under the lock and before `ready`; from then on it is only read.
unsafe impl Sync for Global {}

static GLOBAL: Global = Global {
    ready: AtomicBool::new(false),
    making: Lock::new(()),
    arena: UnsafeCell::new(MaybeUninit::uninit()),
};

impl Arena {
    /// The arena of the whole process, from which [`Slab::new`](super::Slab::new) takes: for its
    /// [`stats`](Arena::stats), and to [`trim`](Arena::trim) it.
    ///
    /// # Errors
    ///
    /// Those of [`reserve`](Arena::reserve), if this is the first use or all earlier ones failed.
    #[inline]
    pub fn global() -> Result<&'static Arena, Error> {
        // Acquire: pairs with the release in `make`, so that the arena is seen complete.
        if !GLOBAL.ready.load(Ordering::Acquire) {
            make()?;
        }
        // SAFETY: ready, hence written, and never written again.
        Ok(unsafe { (*GLOBAL.arena.get()).assume_init_ref() })
    }
}

#[cold]
fn make() -> Result<(), Error> {
    let _making = GLOBAL.making.lock();
    // Relaxed: stored under the lock.
    if !GLOBAL.ready.load(Ordering::Relaxed) {
        let arena = Arena::reserve()?;
        // SAFETY: not ready, so nobody reads it; the lock keeps other writers out.
        unsafe { (*GLOBAL.arena.get()).write(arena) };
        // Release: what the arena holds is seen by whoever sees that it is ready.
        GLOBAL.ready.store(true, Ordering::Release);
    }
    Ok(())
}
