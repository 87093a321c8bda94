//! A point in time at which a wait gives up.

use std::time::Duration;

/// Nanoseconds of `CLOCK_MONOTONIC`, or never.
///
/// Every wait of the runtime is measured on this one clock; calls that name another clock
/// convert when they are made. See clock_gettime(2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Deadline(u64);

impl Deadline {
    /// No deadline: 584 years after boot.
    pub const NEVER: Deadline = Deadline(u64::MAX);

    /// `nanoseconds` from now; what does not fit is [`Deadline::NEVER`].
    pub fn after(nanoseconds: u64) -> Deadline {
        Deadline(crate::kernel::now().saturating_add(nanoseconds))
    }

    /// After `timeout`; what does not fit is [`Deadline::NEVER`].
    pub fn in_time(timeout: Duration) -> Deadline {
        u64::try_from(timeout.as_nanos()).map_or(Deadline::NEVER, Deadline::after)
    }

    /// As a futex takes it.
    pub(crate) fn until(self) -> Option<u64> {
        (self != Deadline::NEVER).then_some(self.0)
    }

    /// The given reading of `CLOCK_MONOTONIC`, in nanoseconds.
    pub const fn at(nanoseconds: u64) -> Deadline {
        Deadline(nanoseconds)
    }

    /// The reading of `CLOCK_MONOTONIC`, in nanoseconds.
    pub const fn nanoseconds(self) -> u64 {
        self.0
    }

    /// Whether the time has come.
    pub fn passed(self) -> bool {
        self != Deadline::NEVER && crate::kernel::now() >= self.0
    }
}
