//! One call's waiting: between a try that found nothing and the next one.
//!
//! ```text
//!   try ──► EAGAIN ──► did the program ask not to wait? ── yes ─► EAGAIN
//!    ▲                                │ no
//!    │                                ▼
//!    └── ready ◄── the reactor, until the deadline ── over ─► EAGAIN
//!                                     ├── closed meanwhile ─► EBADF
//!                                     └── epoll refuses it ─► the plain call, which blocks the
//!                                         worker (the monitor hands its fibers on)
//! ```
//!
//! Both answers, the program's flag and the timeout, are asked for at the first park and then
//! kept: the kernel, too, reads them once per call. The timeout runs from there, over all parts
//! of a long transfer. It is the socket's own (`SO_RCVTIMEO`, `SO_SNDTIMEO`); of a socket that has
//! none, and of whatever is no socket, it is the calling fiber's for all waits, mostly none.
//!
//! Sources: socket(7) on `SO_RCVTIMEO`, epoll_ctl(2) on `EPERM`.

use sleave_runtime::reactor::{self, Direction, Readiness};
use sleave_runtime::wait::{Deadline, default_deadline};

use crate::errno;
use crate::table::{Descriptor, ENDLESS, NEVER, Side};

/// What to do after a try that would have blocked.
pub(crate) enum Next {
    /// Try again: the descriptor may be ready.
    Retry,
    /// Give up with this result (an error number below zero).
    Fail(isize),
    /// The descriptor cannot be waited for: make the plain, blocking call.
    Block,
}

/// The waiting of one call.
pub(crate) struct Wait {
    descriptor: Descriptor,
    direction: Direction,
    nonblocking: Option<bool>,
    deadline: Option<Deadline>,
}

impl Wait {
    #[inline(always)]
    pub(crate) fn new(descriptor: Descriptor, direction: Direction) -> Wait {
        Wait { descriptor, direction, nonblocking: None, deadline: None }
    }

    /// Whether the program asked not to wait.
    pub(crate) fn nonblocking(&mut self) -> bool {
        let descriptor = &self.descriptor;
        *self.nonblocking.get_or_insert_with(|| descriptor.nonblocking())
    }

    /// The wait ends at `deadline`, whatever the descriptor's timeout.
    pub(crate) fn until(&mut self, deadline: Deadline) {
        self.deadline = Some(deadline);
    }

    /// The kernel counts the timeout anew for the next part of a transfer.
    pub(crate) fn restart(&mut self) {
        self.deadline = None;
    }

    fn deadline(&mut self) -> Deadline {
        let side = match self.direction {
            Direction::Read => Side::Receive,
            Direction::Write => Side::Send,
        };
        let descriptor = &self.descriptor;
        *self.deadline.get_or_insert_with(|| match descriptor.timeout(side) {
            NEVER => default_deadline(),
            ENDLESS => Deadline::NEVER,
            microseconds => Deadline::after(microseconds.saturating_mul(1000)),
        })
    }

    /// Parks until the descriptor may be ready.
    #[cold]
    #[inline(never)]
    pub(crate) fn park(&mut self) -> Next {
        if self.nonblocking() {
            return Next::Fail(errno::AGAIN);
        }
        let deadline = self.deadline();
        match reactor::wait(self.descriptor.fd, self.direction, deadline) {
            Readiness::Ready => Next::Retry,
            Readiness::TimedOut => Next::Fail(errno::AGAIN),
            Readiness::Closed => Next::Fail(errno::error(libc::EBADF)),
            Readiness::Unpollable => Next::Block,
        }
    }
}

/// Waits first if nothing can have come since the last try proved the descriptor drained: then a
/// try is a wasted system call. A descriptor that the program made non-blocking is always tried.
#[inline(always)]
pub(crate) fn skip_wasted_try(wait: &mut Wait, fd: std::ffi::c_int) -> Next {
    if reactor::drained(fd, Direction::Read) && !wait.nonblocking() {
        wait.park()
    } else {
        Next::Retry
    }
}
