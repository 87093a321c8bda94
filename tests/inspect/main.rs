//! What the runtime tells about its fibers: each wait by its name, while everything moves, and when nothing does any more.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod calls;
mod churn;
mod deadlocks;
mod example;
#[cfg(feature = "backtrace")]
mod names;
mod waits;

use sleave::{FiberState, State};

/// The fiber called `name`, if it has begun and not ended.
fn fiber(name: &str) -> Option<FiberState> {
    sleave::dump().fibers.into_iter().find(|fiber| fiber.name.as_deref() == Some(name))
}

/// What the fiber called `name` does.
fn state(name: &str) -> Option<State> {
    fiber(name).map(|fiber| fiber.state)
}

/// Whether there are fibers that can be looked at.
fn can() -> bool {
    let can = sleave::identity();
    can.inspect_err(|why| println!("skipped: {why}")).is_ok()
}
