//! Why there is no stack.

use core::fmt;
use syscalls::Errno;

/// Why a stack, or the reservation for all of them, cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A stack of no bytes was asked for.
    Zero,
    /// A stack larger than the largest class was asked for.
    TooLarge {
        /// What was asked for, in bytes.
        requested: usize,
        /// The most that can be had.
        limit: usize,
    },
    /// The memory supplied for a stack is less than any stack needs.
    TooSmall {
        /// What was supplied, in bytes.
        supplied: usize,
        /// The least that is of use.
        least: usize,
    },
    /// The reservation has no room left for another stack of this size.
    Exhausted {
        /// The size of the slot that was wanted.
        size: usize,
    },
    /// The kernel has no memory for this, or is not allowed to promise any (`vm.overcommit_memory` = 2).
    OutOfMemory,
    /// The kernel refused a guard page because the process has too many mappings (`vm.max_map_count`).
    /// Only possible where guards need a mapping each: of a [`Mapped`](super::Mapped), and of all before Linux 6.13.
    TooManyMappings,
    /// Not even the smallest useful reservation of address space was granted (`RLIMIT_AS`?).
    NoAddressSpace {
        /// The last size tried, in bytes.
        tried: usize,
        /// The kernel's answer.
        errno: i32,
    },
    /// The size asked for a reservation is not usable (see [`Options::reserve`](super::Options)).
    BadReservation {
        /// What was asked for, in bytes.
        requested: usize,
    },
    /// The kernel refused for a reason not listed above.
    Kernel {
        /// The kernel's answer.
        errno: i32,
    },
}

impl Error {
    /// From the kernel's answer to a memory call.
    pub(crate) fn from_kernel(errno: Errno) -> Error {
        match errno.into_raw() {
            libc::ENOMEM | libc::EAGAIN => Error::OutOfMemory,
            errno => Error::Kernel { errno },
        }
    }

    /// From the kernel's answer to mprotect(2) on a part of a mapping. ENOMEM is the limit of mappings there, or the
    /// kernel's own memory; the former by far the more likely, and the one that a person can do something about.
    pub(crate) fn from_split(errno: Errno) -> Error {
        match errno {
            Errno::ENOMEM => Error::TooManyMappings,
            other => Error::from_kernel(other),
        }
    }

    /// The error number that `pthread_create` or `mmap` would give for this.
    pub fn errno(&self) -> i32 {
        match *self {
            Error::Zero
            | Error::TooLarge { .. }
            | Error::TooSmall { .. }
            | Error::BadReservation { .. } => libc::EINVAL,
            Error::Exhausted { .. } | Error::OutOfMemory | Error::TooManyMappings => libc::ENOMEM,
            Error::NoAddressSpace { errno, .. } | Error::Kernel { errno } => errno,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::Zero => f.write_str("a stack of zero bytes was asked for"),
            Error::TooLarge { requested, limit } => {
                write!(
                    f,
                    "a stack of {requested} bytes was asked for; the largest has {limit} bytes"
                )
            }
            Error::TooSmall { supplied, least } => {
                write!(f, "{supplied} bytes cannot be a stack; the least are {least} bytes")
            }
            Error::Exhausted { size } => write!(
                f,
                "the address space reserved for stacks has no room for another one of {size} bytes"
            ),
            Error::OutOfMemory => f.write_str("the kernel has no memory for another stack"),
            Error::TooManyMappings => f.write_str(
                "the kernel refused the guard page of a stack: too many mappings \
                 (raise vm.max_map_count, or take stacks from an arena on Linux 6.13 or newer, \
                 where guards need none)",
            ),
            Error::NoAddressSpace { tried, errno } => write!(
                f,
                "not even {tried} bytes of address space for stacks were granted \
                 (errno {errno}; is RLIMIT_AS, `ulimit -v`, set?)"
            ),
            Error::BadReservation { requested } => write!(
                f,
                "a reservation of {requested} bytes cannot hold stacks: it must be a multiple \
                 of 64 MiB and at most 4 TiB"
            ),
            Error::Kernel { errno } => {
                write!(f, "the kernel refused memory for a stack (errno {errno})")
            }
        }
    }
}

impl core::error::Error for Error {}
