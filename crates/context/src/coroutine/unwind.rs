//! Panics at a coroutine's boundary, and the unwinding of a coroutine that is dropped.
//!
//! A panic unwinds up to the coroutine's entry, where it is caught, carried to the resumer as a value and
//! raised again there. A coroutine that is dropped while it is suspended unwinds in the same way: its `suspend` raises a
//! payload that only this file makes, and whoever drops it takes that back.
//!
//! All this needs `std` (feature `std`) and `panic = "unwind"`. Without them a panic aborts, and a
//! suspended coroutine cannot be unwound.

#[cfg(feature = "std")]
mod imp {
    extern crate std;
    use std::any::Any;
    use std::boxed::Box;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    /// What a panic carries.
    pub(crate) type Payload = Box<dyn Any + Send>;

    /// The payload of a coroutine's own unwinding: an address that tells which one's.
    struct Ours(usize);

    /// Runs `f` and catches what it panics with.
    #[inline]
    pub(crate) fn catch<R>(f: impl FnOnce() -> R) -> Result<R, Payload> {
        // Unwind safety is the caller's affair, as it is at a thread's join.
        catch_unwind(AssertUnwindSafe(f))
    }

    /// Goes on with a panic that was caught.
    #[cold]
    pub(crate) fn resume(payload: Payload) -> ! {
        resume_unwind(payload)
    }

    /// Unwinds the calling coroutine, `of`; no panic hook runs.
    #[cold]
    pub(crate) fn unwind(of: usize) -> ! {
        resume_unwind(Box::new(Ours(of)))
    }

    /// Is this the unwinding of that coroutine?
    pub(crate) fn is_unwinding(payload: &Payload, of: usize) -> bool {
        payload.downcast_ref::<Ours>().is_some_and(|ours| ours.0 == of)
    }
}

#[cfg(not(feature = "std"))]
mod imp {
    /// No panic is ever caught, and no payload made.
    pub(crate) struct Payload;

    /// Runs `f`. A panic aborts, since it cannot leave the coroutine's entry, an `extern "C"` function.
    #[inline]
    pub(crate) fn catch<R>(f: impl FnOnce() -> R) -> Result<R, Payload> {
        Ok(f())
    }

    pub(crate) fn resume(_payload: Payload) -> ! {
        unreachable!("a panic was caught where none can be")
    }

    pub(crate) fn unwind(_of: usize) -> ! {
        unreachable!("a coroutine was told to unwind where nothing unwinds")
    }

    pub(crate) fn is_unwinding(_payload: &Payload, _of: usize) -> bool {
        false
    }
}

use core::cell::Cell;

pub(crate) use imp::{Payload, catch, is_unwinding, resume};

/// Can a suspended coroutine be unwound?
pub(crate) const POSSIBLE: bool = cfg!(all(feature = "std", panic = "unwind"));

/// How often one coroutine that is being dropped has begun to unwind.
///
/// Code that catches the unwinding and suspends again is unwound again, by the coroutine itself: whoever drops it sees only
/// its end.
pub(crate) struct Unwinding(Cell<u32>);

impl Unwinding {
    /// How often it may catch its unwinding and suspend again.
    const PATIENCE: u32 = 1000;

    pub(crate) const fn new() -> Unwinding {
        Unwinding(Cell::new(0))
    }

    /// Has it begun? Then the coroutine must not be suspended any more.
    #[inline(always)]
    pub(crate) fn has_begun(&self) -> bool {
        self.0.get() != 0
    }

    /// Unwinds the calling coroutine, `of`, again.
    #[cold]
    pub(crate) fn go(&self, of: usize) -> ! {
        self.0.set(self.0.get() + 1);
        if self.0.get() > Self::PATIENCE {
            crate::fatal(
                "a coroutine that is being dropped has caught its own unwinding, \
                 and suspended again, a thousand times",
            );
        }
        imp::unwind(of)
    }
}
