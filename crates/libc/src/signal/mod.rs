//! Signals of fibers: what a fiber blocks (`mask`), what it is sent (`send`), how the program's handlers come to run on
//! it (`deliver`), and its waits for signals (`wait`).
//!
//! What is kept of a fiber, and how it is told, is the runtime's: [`sleave_runtime::signal`]. A signal for the process is
//! the kernel's to deliver, to any thread that lets it in; its handler runs on whatever runs there.
//!
//! A parked call that is interrupted asks [`interruption`] what becomes of it: it goes on, it ends with `EINTR`, or
//! its fiber is cancelled ([`crate::cancel`]). signal(7) says which calls go on after a handler with `SA_RESTART`; locks
//! and joins do not ask, and always go on.
//!
//! Source: signal(7), "Interruption of system calls".

mod deliver;
mod mask;
mod send;
mod wait;

pub(crate) use deliver::use_fibers_signals;

use sleave_runtime::signal;

use crate::{cancel, errno};

/// What becomes of the calling fiber's call, whose wait has been interrupted; `None`: it goes on. `restartable`: as
/// signal(7) has it, if all handlers say so.
#[cold]
pub(crate) fn interruption(restartable: bool) -> Option<isize> {
    let ends = signal::ended_by_handler(restartable);
    if let Some(error) = cancel::stops() {
        return Some(error);
    }
    ends.then_some(errno::error(libc::EINTR))
}
