//! Parking by handle: one token for each fiber, which its owner waits for and anybody gives.
//!
//! As `std::thread::park`: a token given before the owner waits is kept, several given before it is
//! taken are one. The word is a futex of its fiber's own, for fibers in the runtime's table, for
//! an OS thread that stands for a fiber in the kernel's.
//!
//! ```text
//!            give                    give: wakes
//!    NONE ──────────▶ GIVEN ◀───────────────────────── WAITS
//!     ▲ ▲ ◀── take ────┘                                ▲ │
//!     │ └──── announce, then sleep ─────────────────────┘ │
//!     └────── give up: the time is over ──────────────────┘
//! ```
//!
//! # Why none is lost and none is taken twice
//!
//! * Only the owner leaves `GIVEN`, by a swap: each token is taken once. One that is given between two
//!   of the owner's steps makes its announcement fail, or is what its last swap finds, even if the
//!   time is over: then it counts as in time.
//! * The owner sleeps only while the word is `WAITS`. The giver first makes it `GIVEN`, then wakes
//!   whom it found waiting. The futex looks at the word under its bucket's lock: either the owner
//!   is queued before the giver takes that lock and is woken, or it sees `GIVEN` and does not sleep.
//! * A giver that has made it `GIVEN` may be slow to wake; the owner may meanwhile have taken the
//!   token by itself and wait for the next. Such a wake finds no token, and the owner sleeps again.
//!   The giver's handle keeps the word alive that long.
//! * The giver's Release and the taker's Acquire order what either does; givers replace each
//!   other's `GIVEN` by exchanges, which keeps all of them in one release sequence.

#[cfg(all(test, loom))]
mod loom_models;

use super::{Deadline, futex};
use crate::cancel;
use crate::inspect::Awaited;
use crate::kernel;
use crate::sync::{AtomicU32, Ordering};
use crate::trace::{self, Why};

const NONE: u32 = 0;
const GIVEN: u32 = 1;
/// A fiber waits for the token.
const FIBER_WAITS: u32 = 2;
/// An OS thread that stands for a fiber waits for the token.
const THREAD_WAITS: u32 = 3;

/// The token of one fiber.
pub(crate) struct Token(AtomicU32);

impl Token {
    pub(crate) fn new() -> Token {
        Token(AtomicU32::new(NONE))
    }

    /// What the futexes know the word by. (Under loom, which models the word, no futex is called.)
    fn word(&self) -> *const std::sync::atomic::AtomicU32 {
        std::ptr::from_ref(&self.0).cast()
    }

    /// Gives the token, and wakes the owner if it waits.
    pub(crate) fn give(&self) {
        match self.put() {
            Some(FIBER_WAITS) => {
                futex::wake(self.word() as usize, 1, u32::MAX);
            }
            Some(_) => kernel::futex_wake(self.word() as usize, 1),
            None => {}
        }
    }

    /// Waits for the token as a fiber, until `deadline`; whether it was given.
    ///
    /// # Panics
    /// If the caller is not a fiber. It is the token's owner.
    pub(crate) fn take_as_fiber(&self, deadline: Deadline) -> bool {
        let _why = trace::because(Why::Token);
        self.take(FIBER_WAITS, || {
            // SAFETY: the word is borrowed for the call; the caller is a fiber.
            let waited = unsafe {
                futex::wait_for(Awaited::Token, self.word(), FIBER_WAITS, u32::MAX, deadline)
            };
            match waited {
                futex::Waited::TimedOut => false,
                futex::Waited::Interrupted => !cancel::is_due(),
                futex::Waited::Woken | futex::Waited::Mismatch => true,
            }
        })
    }

    /// As [`Token::take_as_fiber`], as an OS thread that stands for the fiber.
    pub(crate) fn take_as_thread(&self, deadline: Deadline) -> bool {
        self.take(THREAD_WAITS, || {
            // SAFETY: the word is borrowed for the call.
            kernel::futex_wait(unsafe { &*self.word() }, THREAD_WAITS, deadline.until());
            !deadline.passed()
        })
    }

    /// The giver's step: says how the owner waited, if it did.
    fn put(&self) -> Option<u32> {
        // Release: the taker sees what the giver did before.
        let before = self.0.swap(GIVEN, Ordering::Release);
        (before == FIBER_WAITS || before == THREAD_WAITS).then_some(before)
    }

    /// The owner's steps: announces that it `waits` unless the token is there, sleeps until it is, and takes
    /// it. `sleep` sleeps while the word is `waits`, may return at any time, and answers `false`
    /// when the time is over.
    fn take(&self, waits: u32, mut sleep: impl FnMut() -> bool) -> bool {
        // Relaxed, the exchange and the load: they publish nothing, and the swap decides. The exchange
        // fails only if the token is there, for the owner has left NONE behind.
        if self.0.compare_exchange(NONE, waits, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            while self.0.load(Ordering::Relaxed) == waits && sleep() {}
        }
        // Acquire pairs with `put`. It also takes back the announcement if the time is over.
        self.0.swap(NONE, Ordering::Acquire) == GIVEN
    }
}
