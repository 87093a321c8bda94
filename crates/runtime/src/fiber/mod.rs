//! What a fiber consists of.
//!
//! A fiber is two things in turn. From `spawn` until it first runs it is a **task**: a closure
//! in one heap block, which later holds its result and is what a `JoinHandle` refers to. From
//! its first run until its end it also occupies a **slot**: a piece of a slab that carries its
//! stack, its identity as a thread, and between them its control block.
//!
//! ```text
//!   slot, low to high:
//!   | guard | stack ↓ ............ | Control | static TLS | struct pthread | colour |
//!                                            ^ floor      ^ thread pointer
//! ```
//!
//! Both begin with a [`Runnable`], the link by which queues hold them, so a queue does not care
//! which of the two it carries.
//!
//! The control block lies at a fixed distance below the thread pointer, and thread pointers of
//! fibers lie inside the slabs' reservation. "Who runs here?" is therefore one load and one
//! compare ([`current`]), right on every stack and in a signal handler.

mod control;
mod list;
mod overflow;
mod peek;
mod shelf;
mod slot;
pub(crate) mod stock;
mod task;

pub(crate) use control::{
    AtWork, Control, current, current_by_register, in_fiber, in_slots, may_exist,
};
pub(crate) use overflow::{prepare_thread, watch};
pub(crate) use peek::{Peek, Pin};
pub(crate) use shelf::Shelf;
pub use slot::NoFibers;
pub(crate) use slot::{Space, known_space, space};
pub use task::{Fiber, FiberId};
pub(crate) use task::{Header, Task, TaskRef, Watcher};

use std::ptr::null_mut;

use crate::sync::AtomicPtr;

/// What a queue holds: the first field of a task that has not started and of a control block.
#[repr(C)]
pub(crate) struct Runnable {
    /// The next in an intrusive list; meaningful only while in one.
    pub(crate) next: AtomicPtr<Runnable>,
    /// Which of the two this is.
    pub(crate) kind: Kind,
    /// The worker that it is pinned to. Written by whoever may schedule it.
    pub(crate) seat: Pin,
}

/// The two things that can be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The `Header` of a task without a slot.
    Fresh,
    /// The `Control` of a fiber that has run before.
    Started,
}

impl Runnable {
    pub(crate) fn new(kind: Kind) -> Runnable {
        Runnable { next: AtomicPtr::new(null_mut()), kind, seat: Pin::none() }
    }
}
