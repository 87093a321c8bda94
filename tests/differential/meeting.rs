//! Meetings: one actor waits for what another makes happen.
//!
//! A meeting is arranged only if it can end in one way, whichever of the two comes first: there is
//! nothing to read yet, the other end is there and open, and the wait has no timeout that could come
//! before. What cannot be waited for or made happen on this sort of descriptor is replaced by what can.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::calls::{self, Outcome, own, ready};
use crate::program::{Waiting, Waking};
use crate::world::{Kind, LONG, LONG_MS, SHORT, World, bytes, lock, show};

/// What two actors have agreed on.
pub struct Meeting {
    from: RawFd,
    kind: Kind,
    /// The slot of the other end.
    other: usize,
    waiting: Waiting,
    waking: Waking,
    /// What the wait needs besides.
    helpers: Vec<OwnedFd>,
}

impl World {
    /// Prepares a meeting on `slot`, where one waits for what another makes happen. `None` if it could
    /// end in another way.
    pub fn arrange(&self, slot: usize, waiting: Waiting, waking: Waking) -> Option<Meeting> {
        let seen = self.see(slot)?;
        let other = self.other_end(slot)?;
        let to = self.see(other)?;
        let readable = seen.kind.is_socket() || matches!(seen.kind, Kind::PipeReader | Kind::Event);
        let nothing_there = ready(seen.fd, libc::POLLIN | libc::POLLRDHUP, 0) == 0;
        let open = ready(to.fd, libc::POLLOUT, 0) == libc::POLLOUT;
        let (sole, closed) = {
            let slots = lock(&self.slots);
            let of = &slots[other].as_ref()?.of;
            (Arc::strong_count(of) == 1, *lock(&of.no_more_writes))
        };
        if !readable || !nothing_there || !open || closed || calls::is_nonblocking(to.fd) {
            return None;
        }
        let waiting = match waiting {
            Waiting::Receive | Waiting::ReceiveMany if !seen.kind.is_socket() => Waiting::Read,
            Waiting::Splice
                if matches!(seen.kind, Kind::Datagram | Kind::Packets | Kind::Event) =>
            {
                Waiting::Read
            }
            Waiting::Tee if seen.kind != Kind::PipeReader => Waiting::ReadParts,
            other => other,
        };
        let only_looks = matches!(
            waiting,
            Waiting::Poll | Waiting::Select | Waiting::Epoll { .. } | Waiting::NestedEpoll
        );
        if !only_looks && calls::is_nonblocking(seen.fd) {
            return None;
        }
        let waking = match waking {
            Waking::Shutdown if !seen.kind.is_connection() => Waking::Write(1),
            Waking::Close
                if !sole || !(seen.kind.is_connection() || seen.kind == Kind::PipeReader) =>
            {
                Waking::Write(2)
            }
            other => other,
        };
        if seen.kind.is_socket() {
            calls::set_timeout(seen.fd, libc::SO_RCVTIMEO, LONG).expect("a timeout");
        }
        let helpers = self.helpers(seen.fd, waiting);
        Some(Meeting { from: seen.fd, kind: seen.kind, other, waiting, waking, helpers })
    }

    fn helpers(&self, fd: RawFd, waiting: Waiting) -> Vec<OwnedFd> {
        // SAFETY: epoll_create1(2) takes a flag.
        let instance = || own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).expect("epoll");
        let readable = libc::EPOLLIN as u32;
        let enlist = |instance: &OwnedFd, fd, events| {
            let result = calls::epoll_ctl(instance.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, events, 0);
            result.expect("a member");
        };
        match waiting {
            Waiting::Epoll { edge } => {
                let instance = instance();
                enlist(&instance, fd, readable | if edge { libc::EPOLLET as u32 } else { 0 });
                vec![instance]
            }
            Waiting::NestedEpoll => {
                let (inner, outer) = (instance(), instance());
                enlist(&inner, fd, readable);
                enlist(&outer, inner.as_raw_fd(), readable);
                vec![outer, inner]
            }
            Waiting::Splice | Waiting::Tee => {
                // SAFETY: pipe2(2) writes two numbers.
                let pipe = calls::pair(|at| unsafe { libc::pipe2(at, libc::O_CLOEXEC) });
                let [from, to] = pipe.expect("a pipe");
                vec![to, from]
            }
            _ => Vec::new(),
        }
    }

    /// Waits as arranged.
    pub fn wait(&self, meeting: &Meeting) -> String {
        let (fd, helper) = (meeting.from, meeting.helpers.first().map(AsRawFd::as_raw_fd));
        let helper = helper.unwrap_or(-1);
        let moved = |count: Outcome| (count, calls::read(meeting.helpers[1].as_raw_fd(), 200));
        let nothing = |moved: &Outcome| !matches!(moved, Ok(1..));
        match meeting.waiting {
            Waiting::Read => show(calls::read(fd, 200)),
            Waiting::ReadParts => show(calls::readv(fd, 200)),
            Waiting::Receive => show(calls::recv(fd, 200, 0)),
            Waiting::ReceiveMany => show(calls::recvmmsg(fd, 1)),
            Waiting::Poll => show(ready(fd, libc::POLLIN, LONG_MS)),
            Waiting::Select => show(calls::select(&[fd], &[], None)),
            Waiting::Epoll { .. } => show(calls::epoll_wait(helper, 8, LONG_MS)),
            Waiting::NestedEpoll => show(calls::epoll_wait(helper, 8, -1)),
            Waiting::Splice | Waiting::Tee => {
                let count = match meeting.waiting {
                    Waiting::Splice => calls::splice(fd, helper, 200, 0),
                    _ => calls::tee(fd, helper, 200, 0),
                };
                if nothing(&count) { show(count) } else { show(moved(count)) }
            }
        }
    }

    /// Makes happen what is waited for, as arranged.
    pub fn wake(&self, step: usize, meeting: &Meeting) -> String {
        let write = |fd, len| match meeting.kind {
            Kind::Event => calls::write(fd, &(len as u64).to_ne_bytes()),
            _ => calls::write(fd, &bytes(step, len)),
        };
        let to = self.see(meeting.other).expect("the other end is there").fd;
        match meeting.waking {
            Waking::Write(len) => show(write(to, len)),
            Waking::WriteDuplicate(len) => {
                // SAFETY: dup(2) takes a number.
                let other = own(unsafe { libc::dup(to) }).expect("a duplicate");
                show(write(other.as_raw_fd(), len))
            }
            Waking::Shutdown => {
                // SAFETY: shutdown(2) takes numbers.
                let result = calls::outcome(unsafe { libc::shutdown(to, libc::SHUT_WR) });
                if let Some(slot) = &lock(&self.slots)[meeting.other] {
                    *lock(&slot.of.no_more_writes) = true;
                }
                show(result)
            }
            Waking::Close => {
                self.clear(meeting.other);
                "closed".into()
            }
        }
    }

    /// Leaves the slot as it was before the meeting.
    pub fn leave(&self, meeting: &Meeting) {
        if meeting.kind.is_socket() {
            calls::set_timeout(meeting.from, libc::SO_RCVTIMEO, SHORT).expect("a timeout");
        }
    }
}
