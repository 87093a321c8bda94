//! A stack that overflows is reported, never silent: what the report says of a fiber.
//!
//! The handler of SIGSEGV, the list of stacks and the alternate signal stacks are those of
//! [`sleave_context::overflow`]. A fault in a guard of theirs comes here if a fiber's slot is around it, and
//! the fiber's control block says who it is.

use std::fmt::Write;
use std::mem::{ManuallyDrop, forget};

use sleave_context::overflow::{self, Describer, Line};
use sleave_context::stack::Location;

use super::control::in_slots;
use super::slot::space;
use super::task::TaskRef;

/// Installs the handler. Called when the first runtime is made.
pub(crate) fn watch() {
    static FIBERS: Describer = Describer::new(fiber);
    overflow::install();
    overflow::describe(&FIBERS);
}

/// Gives the calling OS thread a signal stack that is large enough for a report, for good: workers are
/// reused, and not many. Without memory for one, a report is all that is lost.
pub(crate) fn prepare_thread() {
    forget(overflow::prepare_thread());
}

/// Says which fiber runs on `stack`, if one does. Async-signal-safe.
fn fiber(stack: &Location, who: &mut Line) -> Option<&'static str> {
    if !in_slots(stack.base) {
        return None;
    }
    let (_, control) = space().ok()?.locate(stack.base)?;
    // What does not fit is cut off.
    let _ = who.write_str("fiber");
    if let Some(task) = control.task.get() {
        // SAFETY: a fiber that runs keeps its task; the reference is borrowed, not counted.
        let task = ManuallyDrop::new(unsafe { TaskRef::from_raw(task) });
        let name = task.name().unwrap_or("<unnamed>");
        let _ = write!(who, " '{name}' (number {})", task.id().get());
    }
    Some(
        "give it more with sleave::Builder::stack_size, or all fibers with SLEAVE_STACK=1M in the environment",
    )
}
