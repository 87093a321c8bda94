//! The locks of pthreads: mutexes, conditions, read-write locks, barriers, semaphores, once.
//!
//! The C library's own functions are what programs in C call, and what `libc` gives to Rust. Each body calls them on OS threads and on
//! fibers, and the results must be equal; `reference` compares both with glibc itself, which the symbols of sleave-libc
//! hide. On one worker a body that waits for another fiber comes to an end only if the wait
//! parks.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod objects;

mod barriers;
mod conditions;
mod foreign;
mod forks;
mod handlers;
mod mutexes;
mod once;
mod reference;
mod rwlocks;
mod semaphores;
mod stress;
mod timing;
