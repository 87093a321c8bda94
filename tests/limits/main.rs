//! What happens at the limits of a process: no descriptor, no memory, no thread is to be had; or the
//! program closes what the runtime has opened.
//!
//! Limits are the whole process's, so each body has a process of its own: the test runs itself again as
//! a child (the same binary, this one test, told by an environment variable on which host). What a call says on
//! a thread is asked of a thread; what only a runtime can run out of is asked of its own calls, which must say so and work
//! again when there is something to be had.
//!
//! Sources: getrlimit(2), close(2), fork(2) and pthread_create(3) on `RLIMIT_NPROC`.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod child;
mod descriptors;
mod fibers;
mod memory;
mod own;
mod threads;
