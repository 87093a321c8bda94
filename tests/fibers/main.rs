//! The life of a fiber: spawned, named, joined, scoped, panicking, overflowing, blocking its
//! worker; and of the runtimes that fibers live in.
//!
//! Where std has the same thing, the body runs on threads too and the answers must agree. Where a
//! thread has no answer (whose worker is it, which runtime waits for it), the body says itself
//! what is right.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod blocking;
mod callers;
mod interposition;
mod lifecycle;
mod overflow;
mod parking;
mod pinning;
mod runtimes;
mod scopes;
