//! The bell: wakes the one thread whose fiber has ended.
//!
//! A thread in `run` is a worker like any other and sleeps in the driver like any other, where nobody
//! can be woken by name. When its fiber ends it must wake nevertheless. So the driver's bell wakes
//! *every* sleeper, until the one that was meant takes it: rung only if that one sleeps, and
//! taken by it exactly then.
//!
//! ```text
//!            lies_down            ended: rings
//!   AWAKE ─────────────▶ ASLEEP ───────────────▶ OVER ── gets_up takes the ring
//!     │  ◀─────────────     (gets_up)
//!     └── ended: no ring ──▶ OVER, and it does not lie down any more
//! ```

use std::sync::atomic::{AtomicU32, Ordering};

use super::core::Core;
use crate::fiber::Watcher;

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const OVER: u32 = 2;

/// What a thread in `run` and the end of its fiber agree on.
pub(crate) struct Bell {
    core: &'static Core,
    state: AtomicU32,
}

impl Bell {
    pub(crate) fn new(core: &'static Core) -> Bell {
        Bell { core, state: AtomicU32::new(AWAKE) }
    }

    /// The thread is about to sleep; `false` if it must not, because its fiber has ended.
    pub(super) fn lies_down(&self) -> bool {
        // SeqCst: one order with `ended`; whichever exchange comes second sees the first.
        self.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The thread has slept.
    pub(super) fn gets_up(&self) {
        // SeqCst: as above.
        let up =
            self.state.compare_exchange(ASLEEP, AWAKE, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if !up {
            // It was asleep when its fiber ended, so the bell has been rung, or is about to be.
            self.core.driver.await_bell();
        }
    }
}

impl Watcher for Bell {
    fn ended(&self) {
        // SeqCst: as above.
        if self.state.swap(OVER, Ordering::SeqCst) == ASLEEP {
            self.core.driver.ring_bell();
        }
    }
}
