//! A seat: the numbered place of a worker, and what is pinned to it.
//!
//! A runtime has as many seats as workers. An OS thread that becomes a worker takes a free one, and leaves it when
//! it is one too many. Once something has been pinned to a seat the seat is *bound*: whoever holds it then
//! keeps it until the runtime stops, so a pinned fiber is always run by the same OS thread. Threads that stand in
//! for a stuck worker, and callers of `run`, have no seat. In a runtime that uses its caller the
//! first seat is the caller's: of whichever thread is inside `run` or `stop`.
//!
//! ```text
//!   seat 0 ─▶ [ pinned, pinned, … ]   taken by its holder only, by turns with the holder's queue
//!   seat 1 ─▶ [ ]                     bell: calls the holder if it sleeps
//! ```
//!
//! What is pinned lies in the seat and not in the queue of the holder's processor, from which everybody may
//! steal. So a worker that is stuck holds up what is pinned to it, and nothing else.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bell::Bell;
use super::injector::Injector;
use crate::fiber::Runnable;
use crate::reactor::Driver;
use crate::wait::Batch;

/// A worker's place. Never freed, as its core.
pub(crate) struct Seat {
    number: u8,
    pinned: Injector,
    pub(super) bell: Bell,
    /// Something has been pinned here. Changed under the lock of the core's staff.
    bound: AtomicBool,
}

impl Seat {
    pub(super) fn new(number: u8) -> Seat {
        Seat { number, pinned: Injector::new(), bell: Bell::new(), bound: AtomicBool::new(false) }
    }

    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// Whether its holder must not leave it.
    pub(super) fn is_bound(&self) -> bool {
        // Relaxed: decided upon under the lock; elsewhere a hint.
        self.bound.load(Ordering::Relaxed)
    }

    /// Says whether it must not, and how that was before. The caller has the lock of the core's staff, or the
    /// core for itself.
    pub(super) fn bind(&self, yes: bool) -> bool {
        // Relaxed: under the lock.
        self.bound.swap(yes, Ordering::Relaxed)
    }

    /// How many wait here for the holder.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.pinned.len()
    }

    /// Queues something that is pinned here, and calls the holder.
    pub(super) fn give(&self, runnable: NonNull<Runnable>, driver: &Driver) {
        let mut one = Batch::new();
        one.add(runnable);
        self.pinned.push(one);
        if self.bell.ring() {
            driver.ring_bell();
        }
    }

    /// Takes the oldest. The holder calls.
    pub(super) fn take(&self) -> Option<NonNull<Runnable>> {
        self.pinned.pop(1).take()
    }
}
