//! What the runtime can tell about itself while it runs, and when it ends.
//!
//! | part | what it tells |
//! |---|---|
//! | `wants` | what a fiber waits for, as it leaves word of it in its control block |
//! | `visit` | every fiber, looked at while all go on |
//! | `stack` | where in the program a parked fiber waits |
//! | `dump`, `metrics` | what all of them do; numbers |
//! | `calls` | calls that blocked a worker: which, where, how long |
//! | `deadlock` | that no fiber can ever run again |
//! | `signal` | the dump on a signal |
//! | [`report`] | a file at the process's end: what was not, or not for free, as the program asked for |
//!
//! Nothing here is called on the way of a fiber from wait to wait but three stores in `wants`.

mod calls;
mod deadlock;
mod dump;
mod metrics;
mod place;
pub mod report;
mod seconds;
mod signal;
mod stack;
mod visit;
mod wants;

pub use self::calls::{BlockedCall, blocked_calls};
pub use self::deadlock::Deadlock;
pub use self::dump::{Dump, FiberState, State, dump, dump_with_backtraces};
pub use self::metrics::{Metrics, metrics};
pub use self::place::name_places_by;
pub use self::signal::{dump_signal, prepare};
pub use self::wants::Awaited;

pub(crate) use self::calls::Watch;
pub(crate) use self::deadlock::Suspicion;
pub(crate) use self::visit::{about_to_go, about_to_run, forked, unseen};
pub(crate) use self::wants::{OfWait, tick};

/// What the environment asks for. Called whenever a runtime is made.
///
/// # Errors
/// `InvalidInput` for a variable that is not what it should be.
pub(crate) fn configure() -> std::io::Result<()> {
    report::configure()?;
    signal::configure()?;
    place::learn();
    Ok(())
}
