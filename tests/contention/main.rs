//! Ten thousand fibers and some plain threads, all at the same lock, condition or channel.
//!
//! The tests in `tests/sync` show what each of these does. Here the queues are long: thousands wait at
//! one address, in the fibers' table and in the kernel's at once, guards are held over waits and over
//! moves to another worker, and all is counted exactly.
//!
//! ```text
//!     exclusion   a number under the lock, read before a wait and written after it, is never short
//!     delivery    each value that was sent has been received once: none lost, none twice
//!     order       what one sender sent comes in its order
//!     turns       a barrier, a once, a token: as often as it must be, and no oftener
//! ```
//!
//! Nothing here needs luck. What a lost wake-up leaves behind is a hang, which the watchdog names.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod crossbeam;
mod crowd;
mod flume;
mod parking_lot;
mod std_channels;
mod std_locks;
