//! Waiting for descriptors.
//!
//! * `descriptor` is what is known of one descriptor: its readiness, which fibers wait for it (`queue`)
//!   and which callbacks (`registrations`); that is the same whatever asks the kernel.
//! * `table` finds it by its number.
//! * `poll` waits for several descriptors at once.
//! * [`event`] is what a program calls: callbacks, and the wait for any of several.
//! * `epoll` asks the kernel: the **driver**, one for each runtime. It must provide `new`,
//!   `register` (have events of a descriptor reported from now on, including what is ready already),
//!   `poll` (collect events, sleeping for the first one if asked), `ring` (end one sleep), `arm`
//!   (end one sleep at a given time) and `dismiss` (end all, for good).
//! * `own` knows the driver's own descriptors, which a program may not close.
//!
//! # Readiness is cached
//!
//! Events are edge-triggered: the kernel reports that something has *arrived*, once. The table
//! keeps that as a flag for each direction. Who tries an operation clears the flag just before
//! (`attempt`), so that an event that comes during the try is kept; who finds that the try
//! has not emptied the descriptor sets it again (`leave`). So at any time: **flag clear and
//! registered ⇒ nothing is there, and an event will come when that changes**. A reader that knows
//! this waits without a wasted try (`drained`): a request costs one read and one write.

mod descriptor;
mod epoll;
pub mod event;
mod own;
mod poll;
mod queue;
mod registrations;
mod table;

/// Tests take turns: there is one table of descriptors, and a number that one of them has closed is
/// another's next.
#[cfg(all(test, not(loom)))]
fn turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(all(test, not(loom)))]
mod stress;
#[cfg(all(test, not(loom)))]
mod tests;

pub use descriptor::Direction;
pub(crate) use epoll::Driver;
pub use own::{is_own, next_own};
pub use poll::{Watched, poll, watch};
pub use table::{Readiness, attempt, close, close_range, drained, hung_up, leave};
pub use table::{is_this_process, opened, shared, wait};
