//! What a fiber waits for, as it leaves word of it in its control block.
//!
//! Three words, written right before the fiber parks, in a cache line that the wait touches anyway:
//!
//! ```text
//!   what    kind (8 bits) | descriptor, address, count or number of a fiber (56 bits)
//!   until   the deadline, in nanoseconds; u64::MAX if there is none
//!   since   the coarse clock
//! ```
//!
//! They mean something while the wait word says that the fiber waits, and are left as they are when the wait ends: nobody
//! clears them. A reader reads the wait word, the three, and all of it once more; what has not changed is one wait's. (Or
//! two waits that are equal in the word that was read twice: for the same thing, with the same deadline, within the same
//! tick of the clock. Then it does not matter which.)
//!
//! # The coarse clock
//!
//! To ask the clock costs more than the rest of a wait. So a wait takes the time from a word that the monitor writes
//! whenever it looks, every 5 ms while any worker is awake, and that whoever wakes the monitor writes first. It is late by a tick of
//! the monitor, on a busy machine by as long as the monitor waits for a CPU: good enough to say "for 3 s".

use std::fmt;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fiber::FiberId;
use crate::kernel;
use crate::wait::Deadline;

/// What a fiber waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Awaited {
    /// This descriptor can be read.
    Readable(RawFd),
    /// This descriptor can be written.
    Writable(RawFd),
    /// Any of so many descriptors is ready: `poll`, `select`, `epoll_wait`, [`wait_any`](crate::event::wait_any).
    AnyOf(usize),
    /// The deadline: it sleeps.
    Time,
    /// A wake at the word of memory at this address: a lock, a condition variable, a channel, a semaphore,
    /// `std::thread::park`.
    Lock(usize),
    /// The end of this fiber.
    Fiber(FiberId),
    /// The end of all fibers in its [`scope`](crate::scope()).
    Scope,
    /// [`unpark`](crate::Fiber::unpark).
    Token,
    /// The end of a runtime, in [`Runtime::stop`](crate::Runtime::stop).
    Runtime,
    /// Its turn to make a call that blocks its thread: there are too many.
    Call,
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Awaited::Readable(fd) => write!(f, "to read descriptor {fd}"),
            Awaited::Writable(fd) => write!(f, "to write descriptor {fd}"),
            Awaited::AnyOf(count) => write!(f, "for any of {count} descriptors"),
            Awaited::Time => f.write_str("for a time"),
            Awaited::Lock(address) => write!(f, "for the lock at {address:#x}"),
            Awaited::Fiber(id) => write!(f, "for the end of fiber {id}"),
            Awaited::Scope => f.write_str("for the end of its scope"),
            Awaited::Token => f.write_str("to be unparked"),
            Awaited::Runtime => f.write_str("for the end of a runtime"),
            Awaited::Call => f.write_str("for its turn to make a call that blocks"),
        }
    }
}

/// Bits of a kind's particulars.
const BITS: u32 = 56;

impl Awaited {
    #[inline(always)]
    fn encode(self) -> u64 {
        let (kind, more) = match self {
            Awaited::Readable(fd) => (1, fd as u32 as u64),
            Awaited::Writable(fd) => (2, fd as u32 as u64),
            Awaited::AnyOf(count) => (3, count as u64),
            Awaited::Time => (4, 0),
            // User space ends below 2^56 on both processors.
            Awaited::Lock(address) => (5, address as u64),
            Awaited::Fiber(id) => (6, id.get()),
            Awaited::Scope => (7, 0),
            Awaited::Token => (8, 0),
            Awaited::Runtime => (9, 0),
            Awaited::Call => (10, 0),
        };
        kind << BITS | more & ((1 << BITS) - 1)
    }

    fn decode(word: u64) -> Option<Awaited> {
        let more = word & ((1 << BITS) - 1);
        Some(match word >> BITS {
            1 => Awaited::Readable(more as RawFd),
            2 => Awaited::Writable(more as RawFd),
            3 => Awaited::AnyOf(more as usize),
            4 => Awaited::Time,
            5 => Awaited::Lock(more as usize),
            6 => Awaited::Fiber(FiberId::known(more)),
            7 => Awaited::Scope,
            8 => Awaited::Token,
            9 => Awaited::Runtime,
            10 => Awaited::Call,
            _ => return None,
        })
    }
}

/// What a control block keeps for this file.
pub(crate) struct OfWait {
    what: AtomicU64,
    until: AtomicU64,
    since: AtomicU64,
}

/// A wait, as an onlooker has read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    what: u64,
    until: u64,
    since: u64,
}

impl OfWait {
    pub(crate) fn new() -> OfWait {
        OfWait { what: AtomicU64::new(0), until: AtomicU64::new(0), since: AtomicU64::new(0) }
    }

    /// The fiber, which calls, will wait.
    #[inline(always)]
    pub(crate) fn begins(&self, what: Awaited, deadline: Deadline) {
        // Relaxed, all: the wait word publishes them when the fiber parks, and a reader compares.
        self.what.store(what.encode(), Ordering::Relaxed);
        self.until.store(deadline.nanoseconds(), Ordering::Relaxed);
        self.since.store(CLOCK.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// What the last wait was, perhaps a mixture of two.
    pub(super) fn read(&self) -> Seen {
        // Acquire, all: one after the other, and before whatever the caller reads next.
        let what = self.what.load(Ordering::Acquire);
        let until = self.until.load(Ordering::Acquire);
        Seen { what, until, since: self.since.load(Ordering::Acquire) }
    }
}

impl Seen {
    pub(super) fn what(self) -> Option<Awaited> {
        Awaited::decode(self.what)
    }

    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) fn until(self) -> Option<u64> {
        (self.until != Deadline::NEVER.nanoseconds()).then_some(self.until)
    }

    /// Nanoseconds of `CLOCK_MONOTONIC`, late by some milliseconds at most where the machine is not busy.
    pub(super) fn since(self) -> u64 {
        self.since
    }
}

/// See the essay.
static CLOCK: AtomicU64 = AtomicU64::new(0);

/// Sets the coarse clock.
pub(crate) fn tick() {
    // Relaxed: a number for its own sake.
    CLOCK.store(kernel::now(), Ordering::Relaxed);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_read_as_it_was_written() {
        let words = OfWait::new();
        assert_eq!(words.read().what(), None);
        let all = [
            Awaited::Readable(0),
            Awaited::Readable(i32::MAX),
            Awaited::Writable(7),
            Awaited::AnyOf(20_000),
            Awaited::Time,
            Awaited::Lock((1 << 47) - 4),
            Awaited::Fiber(FiberId::known(1 << 40)),
            Awaited::Scope,
            Awaited::Token,
            Awaited::Runtime,
            Awaited::Call,
        ];
        for what in all {
            words.begins(what, Deadline::NEVER);
            assert_eq!((words.read().what(), words.read().until()), (Some(what), None));
        }
        let deadline = Deadline::after(1_000_000_000);
        words.begins(Awaited::Time, deadline);
        assert_eq!(words.read().until(), Some(deadline.nanoseconds()));
    }
}
