//! What this machine allows: open files and threads.
//!
//! Each end of a connection costs a descriptor, and the customary soft limit of 1,024 exists only for programs
//! that still use select(2); any other may raise it to the hard limit without privilege.
//!
//! A thread costs mappings. glibc's stack and its guard page are two, the alternate signal stack that Rust's std sets up
//! for the overflow message and its guard are two more, and `vm.max_map_count` (65,530 by default) bounds their sum.
//! It is met in an unpleasant place: a thread that exists already aborts the process when
//! it cannot have its alternate stack. So the number of threads is bounded beforehand.
//!
//! Sources: getrlimit(2), select(2), proc_sys_vm(5) on max_map_count.

use std::{fmt, fs, io};

/// Descriptors that a process needs beside its connections: standard streams, epoll, libraries.
pub const RESERVED_FILES: u64 = 64;
/// Mappings that one thread of a Rust program adds.
const MAPPINGS_PER_THREAD: usize = 4;
/// Mappings left to everything else (malloc's arenas are the larger part).
const MAPPINGS_RESERVED: usize = 2_000;

/// The limit of open files as it was and is.
#[derive(Clone, Copy, Debug)]
pub struct OpenFiles {
    before: u64,
    /// The limit in force.
    pub now: u64,
}

impl fmt::Display for OpenFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.before == self.now {
            write!(f, "open files: the limit is {}, which is the hard limit", self.now)
        } else {
            write!(
                f,
                "open files: limit raised from {} to {}, the hard limit",
                self.before, self.now
            )
        }
    }
}

/// Raises the soft limit of open files to the hard limit.
pub fn raise_open_files() -> io::Result<OpenFiles> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one rlimit to the place given, which is ours.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit(2) reads one rlimit.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(OpenFiles { before, now: limit.rlim_cur })
}

/// How many threads more this process may start before it runs out of mappings.
pub fn thread_allowance() -> usize {
    let allowed = fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok());
    let used = fs::read_to_string("/proc/self/maps").map(|maps| maps.lines().count());
    match (allowed, used) {
        (Some(allowed), Ok(used)) => {
            allowed.saturating_sub(used + MAPPINGS_RESERVED) / MAPPINGS_PER_THREAD
        }
        // Without /proc nothing is known; then the failing of a spawn must do.
        _ => usize::MAX,
    }
}
