//! An alarm: calls a thread that works for its runtime only until some time.
//!
//! The thread sleeps in the driver like any worker, and what wakes it must be its own bell. So an entry of
//! the core's wheel rings that bell, without a fiber: whoever fires timers does it.

use std::ptr::NonNull;
use std::sync::Arc;

use super::bell::Caller;
use super::core::Core;
use crate::fiber::Watcher;
use crate::wait::timer::{Entry, Expire};
use crate::wait::{Batch, Deadline};

/// A set alarm. Dropped, it does not ring any more.
pub(crate) struct Alarm {
    core: &'static Core,
    ringer: Arc<Ringer>,
}

#[repr(C)]
struct Ringer {
    /// First, so that the wheel's pointer is the ringer's.
    entry: Entry,
    caller: Arc<Caller>,
}

impl Ringer {
    unsafe fn from_entry(entry: NonNull<Entry>) -> Arc<dyn Expire> {
        // SAFETY: the entry is a `Ringer`'s first field, the pointer came from its `Arc`, and the wheel
        // has a reference to give.
        unsafe { Arc::from_raw(entry.as_ptr().cast::<Ringer>()) }
    }
}

impl Expire for Ringer {
    fn expire(self: Arc<Self>, _: &mut Batch) {
        self.caller.ended();
    }

    fn abandon(self: Arc<Self>) {}
}

// SAFETY: the entry's links are guarded by its wheel's lock; the rest is made to be shared.
unsafe impl Send for Ringer {}
// SAFETY: as above.
unsafe impl Sync for Ringer {}

impl Alarm {
    /// Has `caller` called at `deadline`; `None` if the runtime has ended, so that nobody would.
    pub(crate) fn set(
        core: &'static Core,
        deadline: Deadline,
        caller: Arc<Caller>,
    ) -> Option<Alarm> {
        if !core.keeps() {
            return None;
        }
        let ringer = Arc::new(Ringer { entry: Entry::of_block(Ringer::from_entry), caller });
        let alarm = Alarm { core, ringer: ringer.clone() };
        std::mem::forget(ringer);
        // SAFETY: a new entry, which does not move; the reference that was forgotten is the wheel's.
        let due = unsafe { core.timers().lock().insert(alarm.entry(), deadline) };
        core.timer_started(due);
        core.lets_go();
        Some(alarm)
    }

    fn entry(&self) -> NonNull<Entry> {
        // From the `Arc`, not from a reference to the entry: `from_entry` makes it an `Arc` again.
        let entry = Arc::as_ptr(&self.ringer).cast::<Entry>().cast_mut();
        NonNull::new(entry).expect("an Arc is not null")
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the entry is alive, and was put into no other wheel.
        if unsafe { self.core.timers().lock().remove(self.entry()) } {
            // SAFETY: the reference that the wheel had.
            unsafe { Arc::decrement_strong_count(Arc::as_ptr(&self.ringer)) };
        }
    }
}
