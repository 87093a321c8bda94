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

use crate::cancel;
use crate::signal::interruption;
use crate::table::{Descriptor, ENDLESS, Kind, NEVER, Side, State};
use crate::{errno, kernel};

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

    /// Whether a datagram socket's receiving half has been shut down: then a call that may wait answers
    /// 0 at once, where one that may not says `EAGAIN` (`__skb_wait_for_more_packets`). The reactor has
    /// seen it, or will as soon as it is asked.
    fn is_over(&self) -> bool {
        let d = &self.descriptor;
        self.direction == Direction::Read
            && matches!(d.kind(), Kind::Message | Kind::UnixMessage)
            && reactor::hung_up(d.fd)
            && kernel::ready(d.fd, libc::POLLRDHUP) & libc::POLLRDHUP != 0
    }

    /// As [`park`](Wait::park), after a read that has found nothing.
    #[cold]
    #[inline(never)]
    pub(crate) fn park_empty(&mut self) -> Next {
        if !self.descriptor.state.has(State::EMPTIED) {
            self.descriptor.note(State::EMPTIED, 0);
        }
        self.park()
    }

    /// Parks until the descriptor may be ready.
    #[cold]
    #[inline(never)]
    pub(crate) fn park(&mut self) -> Next {
        if self.nonblocking() {
            return Next::Fail(errno::AGAIN);
        }
        if self.is_over() {
            return Next::Block;
        }
        if let Some(error) = cancel::stops_before() {
            return Next::Fail(error);
        }
        let deadline = self.deadline();
        match reactor::wait(self.descriptor.fd, self.direction, deadline) {
            Readiness::Ready => Next::Retry,
            // A socket's own timeout makes its calls ones that do not go on (signal(7)).
            Readiness::Interrupted => match interruption(deadline == Deadline::NEVER) {
                None => Next::Retry,
                Some(error) => Next::Fail(error),
            },
            Readiness::TimedOut => Next::Fail(errno::AGAIN),
            Readiness::Closed => Next::Fail(errno::error(libc::EBADF)),
            Readiness::Unpollable => Next::Block,
        }
    }
}

/// Waits first if nothing can have come since the last try proved the descriptor drained: then a
/// try is a wasted system call. There must have been such a try: one on what can only be waited for (an epoll
/// instance, the writing end of a pipe) fails at once, however little there is. A descriptor that the
/// program made non-blocking is always tried.
#[inline(always)]
pub(crate) fn skip_wasted_try(wait: &mut Wait) -> Next {
    if wait.descriptor.state.has(State::EMPTIED) { skip_wasted_look(wait) } else { Next::Retry }
}

/// As [`skip_wasted_try`], for a socket that is known to listen.
#[inline(always)]
pub(crate) fn skip_wasted_look(wait: &mut Wait) -> Next {
    if reactor::drained(wait.descriptor.fd, Direction::Read) && !wait.nonblocking() {
        wait.park()
    } else {
        Next::Retry
    }
}
