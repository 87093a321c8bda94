//! Words of a fiber that somebody else may look at while it runs: each is written as cheaply as a plain one, by whoever
//! has the fiber, and read at any time by who inspects ([`crate::inspect`]).

use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU16, Ordering};

/// A pointer or none.
pub(crate) struct Peek<T>(AtomicPtr<T>);

impl<T> Peek<T> {
    pub(crate) const fn none() -> Peek<T> {
        Peek(AtomicPtr::new(null_mut()))
    }

    /// For who has the fiber.
    #[inline(always)]
    pub(crate) fn get(&self) -> Option<NonNull<T>> {
        // Relaxed: the fiber was handed over with what it points to.
        NonNull::new(self.0.load(Ordering::Relaxed))
    }

    /// For who has the fiber.
    #[inline(always)]
    pub(crate) fn set(&self, value: Option<NonNull<T>>) {
        // Release publishes what it points to. It costs nothing on x86-64.
        self.0.store(value.map_or(null_mut(), NonNull::as_ptr), Ordering::Release);
    }

    /// For anybody. How long the pointer is good is the reader's care.
    pub(crate) fn peek(&self) -> Option<NonNull<T>> {
        // Acquire pairs with the Release in `set`.
        NonNull::new(self.0.load(Ordering::Acquire))
    }
}

/// The worker that something is pinned to, or none.
pub(crate) struct Pin(AtomicU16);

impl Pin {
    const NONE: u16 = u16::MAX;

    pub(crate) const fn none() -> Pin {
        Pin(AtomicU16::new(Pin::NONE))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> Option<u8> {
        // Relaxed, both: the number is all there is, and who schedules by it has the fiber.
        u8::try_from(self.0.load(Ordering::Relaxed)).ok()
    }

    #[inline(always)]
    pub(crate) fn set(&self, seat: Option<u8>) {
        self.0.store(seat.map_or(Pin::NONE, u16::from), Ordering::Relaxed);
    }
}
