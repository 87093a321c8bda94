//! Interrupting a fiber: somebody wants it to do something before it waits any further.
//!
//! What is wanted is kept elsewhere, each kind in a place of its own: signals that the fiber has been sent, the mark
//! of a task that is to be cancelled. Here is the way to the fiber, wherever it may be:
//!
//! ```text
//!   who wants something:                     the fiber:
//!     (1) notes it in its place                (a) prepares a wait, parks: PREPARING ─▶ PARKED
//!     (2) sets `attention`                     (b) looks at `attention`, in the hook of the switch
//!     (3) claims PREPARING or PARKED           (c) its wait has ended, `Interrupted`: it attends, and
//!         for `Interrupted`                        waits on, or gives up
//! ```
//!
//! # Why no request is lost
//!
//! (2) and (3), (a) and (b) are sequentially consistent. If (3) comes before (a) parked, it finds PREPARING and wins, or
//! another waker has won and the fiber runs, or it found RUNNING; in the last case (2) came before (a) as well, and (b) sees
//! the flag. So the wait that the fiber is in, or else its next one, ends. A fiber that never waits is not interrupted.
//!
//! # Why a claim needs no list's lock
//!
//! Every other waker holds the lock of the list in which it found the fiber, which keeps the fiber inside *that* wait. This one
//! does not care which wait it ends: whoever waits takes `Interrupted` for "look, then wait on", also if nothing is
//! wanted. So a claim may be late: the wait that it ends may be a later one, or that of another fiber in the same slot, whose
//! control block lies at the same place and always holds a wait word. Slots are never unmapped.

use std::ptr::NonNull;

use super::{Batch, Reason};
use crate::fiber::{Control, current};
use crate::scheduler;
use crate::signal;
use crate::sync::{AtomicBool, Ordering};

/// The flag that says that something is wanted of a fiber.
pub(crate) struct Attention(AtomicBool);

impl Attention {
    pub(crate) fn new() -> Attention {
        Attention(AtomicBool::new(false))
    }

    /// (2) of the essay.
    pub(crate) fn call(&self) {
        // SeqCst, a read-modify-write: see the essay. It also releases what was noted before.
        self.0.swap(true, Ordering::SeqCst);
        full_fence_under_loom();
    }

    /// (b) of the essay, right after the wait word has become PARKED.
    #[inline(always)]
    pub(super) fn is_called(&self) -> bool {
        full_fence_under_loom();
        // SeqCst: see the essay.
        self.0.load(Ordering::SeqCst)
    }

    /// Whether it is set, for those who only want to know.
    pub(crate) fn is_set(&self) -> bool {
        // Relaxed: a question.
        self.0.load(Ordering::Relaxed)
    }

    /// Takes the flag back; whether it was set. What it stands for is looked at afterwards.
    #[inline(always)]
    pub(crate) fn take(&self) -> bool {
        // Relaxed, the load: whoever sets it later interrupts the next wait. Acquire pairs with `call`.
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Acquire)
    }
}

/// Loom knows sequential consistency of fences alone.
#[inline(always)]
fn full_fence_under_loom() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// Ends the wait that the fiber of `control` is in, or else its next one. What is wanted has been noted before.
///
/// The fiber may have ended, and the slot be another's: then that one's wait ends for nothing.
pub(crate) fn interrupt(control: NonNull<Control>) {
    // SAFETY: slots are never unmapped, and a control block's atomics are all that is touched.
    let (attention, word) = unsafe { (&(*control.as_ptr()).attention, &(*control.as_ptr()).wait) };
    attention.call();
    if word.interrupt() {
        let mut batch = Batch::new();
        batch.add(control.cast());
        batch.schedule();
    }
}

/// As [`interrupt`], for callers who may have interrupted anything: signal handlers.
pub(crate) fn interrupt_in_handler(control: NonNull<Control>) {
    // SAFETY: as above.
    let (attention, word) = unsafe { (&(*control.as_ptr()).attention, &(*control.as_ptr()).wait) };
    attention.call();
    if word.interrupt() {
        let mut batch = Batch::new();
        batch.add(control.cast());
        scheduler::post(batch);
    }
}

/// Does what is wanted of the calling fiber. Called when a wait has ended with [`Reason::Interrupted`], and wherever
/// else a fiber is ready for it.
pub(crate) fn attend() {
    if let Some(control) = current() {
        // SAFETY: the caller's own control block.
        if unsafe { control.as_ref() }.attention.take() {
            signal::look();
        }
    }
}

/// Does what is wanted if that is why a wait has ended, and passes the reason on.
pub(crate) fn attended(reason: Reason) -> Reason {
    if reason == Reason::Interrupted {
        attend();
    }
    reason
}

#[cfg(all(test, not(loom)))]
mod tests;
