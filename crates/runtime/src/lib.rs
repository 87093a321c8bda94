//! Fibers that are threads: the runtime.
//!
//! A program depends on the crate `sleave`, which is this one together with the interposed C
//! library; here is how it works. From the ground up, each module using only those before it:
//!
//! | module | what it is |
//! |---|---|
//! | `kernel` | system calls, made directly |
//! | [`mod@identity`] | what makes a stack of ours a thread for the C library |
//! | `fiber` | task, control block, slot: what a fiber consists of |
//! | [`wait`] | parking and waking; timers; futexes |
//! | [`reactor`] | waiting for descriptors |
//! | [`scheduler`] | processors, workers, who runs when |
//! | `runtime`, `spawn`, `scope`, `timer`, [`pool`] | what a program calls |
//! | [`signal`] | what a fiber blocks, and what it has been sent |
//! | [`mod@cancel`] | ending a fiber, or a piece of its work, from outside |
//! | [`green`] | fibers that a C program knows by a `pthread_t` |
//! | [`interpose`], [`mod@blocking`] | what the interposed C library asks, and how it hands off what blocks |
//! | [`inspect`] | what the runtime tells about itself: dump, metrics, report |
//! | `trace` | a line on standard error for everything that happens to a fiber; a feature |
//!
//! (`fiber`, `wait` and `scheduler` know each other's types: a control block names its processor,
//! a wait ends in a queue. The order is that of understanding.)

#[cfg(not(target_os = "linux"))]
compile_error!("sleave needs Linux: epoll, futexes and the thread pointer are its ground");

pub mod blocking;
pub mod cancel;
pub mod green;
pub mod identity;
pub mod inspect;
pub mod interpose;
pub mod pool;
pub mod reactor;
pub mod scheduler;
pub mod signal;
pub mod wait;

mod fiber;
mod kernel;
mod runtime;
mod scope;
mod spawn;
mod sync;
mod timer;
mod trace;

pub use blocking::blocking;
pub use cancel::{Cancelled, Elapsed, checkpoint, shield, timeout, timeout_at};
pub use fiber::{Fiber, FiberId, NoFibers};
pub use inspect::{
    Awaited, BlockedCall, Deadlock, Dump, FiberState, Metrics, State, blocked_calls, dump,
    dump_with_backtraces, metrics,
};
pub use reactor::event;
pub use runtime::{Runtime, RuntimeBuilder, identity, run};
pub use scheduler::{Statistics, yield_now};
pub use scope::{Scope, ScopedJoinHandle, cancelling_scope, scope};
pub use spawn::{Builder, JoinHandle, current, park, park_deadline, park_timeout, spawn};
pub use spawn::{pin, unpin, worker};
pub use timer::{Since, Timer, TimerBuilder};
pub use wait::{set_connect_timeout, set_wait_timeout};
