//! Sockets and pipes through `std`, on threads and on fibers.
//!
//! Whatever would block a thread in a descriptor parks a fiber, and nothing else changes: the
//! bytes, the partial counts, the errors and the timeouts are the kernel's. Both ends of each
//! connection live in one process, so on one worker a single call that held the OS thread would
//! leave nobody to answer it.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod datagrams;
mod errors;
mod listeners;
mod pairs;
mod pipes;
mod poll;
mod streams;
mod timeouts;
