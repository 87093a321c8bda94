//! The bell: wakes one particular thread.
//!
//! All idle workers sleep in the driver, where nobody can be woken by name. Two things are for one thread
//! alone: the end of the fiber that a thread in `run` waits for, and what is pinned to a worker. So the driver's
//! bell wakes *every* sleeper, until the one that was meant takes it: rung only if that one
//! sleeps, and taken by it exactly then.
//!
//! ```text
//!            lies_down            rings: the driver's bell
//!   AWAKE ─────────────▶ ASLEEP ───────────────────────────▶ RUNG
//!    │ ▲ ◀───────────── gets_up                               │
//!    │ └── gets_up, and takes the ringing; lies_down in vain ─┘
//!    └──── rings, without a sound ────────────────────────▶ RUNG
//! ```
//!
//! Who rings has put something where the thread looks before it lies down. `RUNG` stays until the
//! thread has seen it, and then it looks again; so nothing is overlooked, whoever comes first.

#[cfg(all(test, loom))]
mod loom_models;

use super::core::Core;
use crate::fiber::Watcher;
use crate::sync::{AtomicU32, Ordering};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const RUNG: u32 = 2;

/// What one thread and those who call it agree on.
pub(crate) struct Bell(AtomicU32);

impl Bell {
    pub(crate) fn new() -> Bell {
        Bell(AtomicU32::new(AWAKE))
    }

    /// Calls the thread; whether the driver's bell must be rung for that.
    #[must_use]
    pub(super) fn ring(&self) -> bool {
        // Release: the thread sees what it is called for.
        self.0.swap(RUNG, Ordering::Release) == ASLEEP
    }

    /// The thread is about to sleep; `false` if it must not, because it has been called.
    pub(super) fn lies_down(&self) -> bool {
        // Relaxed: it publishes nothing, and on failure the swap decides.
        let asleep =
            self.0.compare_exchange(AWAKE, ASLEEP, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !asleep {
            // Acquire: what the thread has been called for is seen by its next look.
            self.0.swap(AWAKE, Ordering::Acquire);
        }
        asleep
    }

    /// The thread has slept; whether a ringing of the driver's bell is its own, and must be taken: it
    /// has been rung, or is about to be.
    #[must_use]
    pub(super) fn gets_up(&self) -> bool {
        // Acquire: as in `lies_down`.
        self.0.swap(AWAKE, Ordering::Acquire) == RUNG
    }
}

/// A thread in `run`, as the end of its fiber knows it.
pub(crate) struct Caller {
    core: &'static Core,
    pub(super) bell: Bell,
}

impl Caller {
    pub(crate) fn new(core: &'static Core) -> Caller {
        Caller { core, bell: Bell::new() }
    }
}

impl Watcher for Caller {
    fn ended(&self) {
        if self.bell.ring() {
            self.core.driver.ring_bell();
        }
        self.core.next_turn();
    }
}
