//! A stack that overflows is reported, never silent: what the report says of a fiber.
//!
//! The handler of SIGSEGV, the list of stacks and the alternate signal stacks are those of
//! [`sleave_context::overflow`]. A fault in a guard of theirs comes here if a fiber's slot is around it, and
//! the fiber's control block says who it is.

use std::cell::RefCell;
use std::fmt::Write;
use std::mem::ManuallyDrop;

use sleave_context::overflow::{self, AlternateStack, Describer, Line};
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

thread_local! {
    /// The signal stack of an OS thread that has been a worker. It goes with the thread: a caller of `run` will come
    /// again, and to map one for each call would cost more than the call.
    static ALTERNATE: RefCell<Option<AlternateStack>> = const { RefCell::new(None) };
}

/// Gives the calling OS thread, when it first becomes a worker, a signal stack that is large enough for a report.
/// Without memory for one, a report is all that is lost.
pub(crate) fn prepare_thread() {
    // A thread that is about to end, from whose destructors `run` is called, does without.
    let _ = ALTERNATE.try_with(|alternate| {
        let mut alternate = alternate.borrow_mut();
        if alternate.is_none() {
            *alternate = overflow::prepare_thread().ok();
        }
    });
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
