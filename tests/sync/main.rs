//! What waits for another fiber: the locks, conditions and channels of std and of crates.
//!
//! All of them end in `syscall(SYS_futex)`. On fibers the C library's place is taken by one that
//! parks the fiber, so a guard may be held over any wait, on one worker too. Each body forces the
//! waits to overlap: were one to hold the OS thread, one worker would never come to the end.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod channels;
mod crossbeam;
mod locks;
mod mixing;
mod once;
mod parking;
mod parking_lot;
