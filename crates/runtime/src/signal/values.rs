//! The values that signals carry which were sent by `pthread_sigqueue`.
//!
//! A fiber's pending signals are bits ([`super::Signals`]). A signal with a value has, besides its bit, an entry in one queue
//! of the process, oldest first:
//!
//! ```text
//!   send:  lock { append (fiber, signal, value);  set the bit }
//!   take:  clear the bit;  lock { remove the fiber's first of that signal;  set the bit if it has another, else clear it }
//! ```
//!
//! So whoever has an entry has the bit: both are changed under the lock. `pthread_kill` sets the bit without it, and is
//! one with the signal that is being taken, whose handler has yet to run. If that sets the bit before `take` clears it, and the
//! queue is empty, there is no lock to take: the entry of a later `send` sets the bit again.
//!
//! A standard signal that is pending already is not queued again: its first value stays. Real-time signals are queued
//! each (signal(7)). The queue has room for [`ROOM`] of them, as a user's for `RLIMIT_SIGPENDING`, and allocates nothing: `malloc`
//! may be the program's.
//!
//! The lock is held by no fiber that a handler of the kick could run on: the runtime is at work there. A handler of the
//! program's that has interrupted a *thread* at it gives up after some tries.
//!
//! Sources: pthread_sigqueue(3), sigqueue(3), signal(7) on real-time signals.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use sleave_context::lock::Lock;

use super::bit;
use crate::fiber::{AtWork, Control};

/// How many values can wait for their fibers.
const ROOM: usize = 1024;

/// The first real-time signal of the kernel's.
const FIRST_REAL_TIME: c_int = 32;

#[derive(Clone, Copy)]
struct Sent {
    /// The address of its control block.
    fiber: usize,
    signal: c_int,
    value: usize,
}

struct Queue {
    len: usize,
    sent: [Sent; ROOM],
}

impl Queue {
    fn first(&self, fiber: usize, signal: c_int) -> Option<usize> {
        self.sent[..self.len].iter().position(|sent| sent.fiber == fiber && sent.signal == signal)
    }

    fn remove(&mut self, at: usize) -> usize {
        let value = self.sent[at].value;
        self.sent.copy_within(at + 1..self.len, at);
        self.set_len(self.len - 1);
        value
    }

    fn set_len(&mut self, len: usize) {
        self.len = len;
        // Relaxed: see `take`.
        LEN.store(len, Ordering::Relaxed);
    }
}

static QUEUE: Lock<Queue> =
    Lock::new(Queue { len: 0, sent: [Sent { fiber: 0, signal: 0, value: 0 }; ROOM] });

/// What the queue holds, for those who need not lock it if it is empty.
static LEN: AtomicUsize = AtomicUsize::new(0);

/// Makes `signal` with `value` pending for the fiber of `control`; `false` if there is no room.
pub(super) fn append(control: NonNull<Control>, signal: c_int, value: usize) -> bool {
    /// How often the lock is tried: it is held for some thousand instructions at most.
    const TRIES: usize = 100_000;
    let _at_work = AtWork::begin();
    let Some(mut queue) = (0..TRIES).find_map(|_| {
        std::hint::spin_loop();
        QUEUE.try_lock()
    }) else {
        return false;
    };
    // SAFETY: slots are never unmapped; an atomic.
    let pending = unsafe { &(*control.as_ptr()).signals.pending };
    // Relaxed: whether it is taken meanwhile is nobody's to say.
    if signal < FIRST_REAL_TIME && pending.load(Ordering::Relaxed) & bit(signal) != 0 {
        return true;
    }
    let len = queue.len;
    if len == ROOM {
        return false;
    }
    queue.sent[len] = Sent { fiber: control.as_ptr() as usize, signal, value };
    queue.set_len(len + 1);
    // AcqRel: the fiber sees the length, and what was done before the signal.
    pending.fetch_or(bit(signal), Ordering::AcqRel);
    true
}

/// The value of `signal`, whose bit the fiber of `own`, the caller, has just cleared; `None` if it was sent without one.
pub(super) fn take(own: &Control, signal: c_int) -> Option<usize> {
    // Relaxed: if the bit was set by `append`, clearing it (Acquire) has made the length visible; if not, see the essay.
    if LEN.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let _at_work = AtWork::begin();
    let fiber = std::ptr::from_ref(own) as usize;
    let mut queue = QUEUE.lock();
    let at = queue.first(fiber, signal)?;
    let value = queue.remove(at);
    // AcqRel, both: as in `append`.
    match queue.first(fiber, signal) {
        Some(_) => own.signals.pending.fetch_or(bit(signal), Ordering::AcqRel),
        None => own.signals.pending.fetch_and(!bit(signal), Ordering::AcqRel),
    };
    Some(value)
}

/// Forgets what was sent to the fiber that had this slot before.
pub(super) fn forget(own: &super::Signals) {
    if LEN.load(Ordering::Relaxed) == 0 {
        return;
    }
    let _at_work = AtWork::begin();
    let fiber = std::ptr::from_ref(own) as usize - std::mem::offset_of!(Control, signals);
    let mut queue = QUEUE.lock();
    while let Some(at) = queue.sent[..queue.len].iter().position(|sent| sent.fiber == fiber) {
        queue.remove(at);
    }
}
