//! Fibers that are threads.
//!
//! A **fiber** is a thread that the kernel does not know: it has its own stack, its own
//! thread-locals, `errno` and thread identity, and whatever would block a thread blocks only the
//! fiber. So ordinary blocking code (`std::net`, `std::sync`, `std::thread::sleep`,
//! `thread_local!`, parking_lot, crossbeam, C libraries) runs on fibers as it stands, hundreds of
//! thousands of them on a few OS threads.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//!
//! sleave::run(|| {
//!     let listener = TcpListener::bind("127.0.0.1:0")?;
//!     let address = listener.local_addr()?;
//!     sleave::spawn(move || {
//!         for stream in listener.incoming().flatten() {
//!             sleave::spawn(move || std::io::copy(&mut &stream, &mut &stream));
//!         }
//!     });
//!
//!     let mut client = TcpStream::connect(address)?;
//!     client.write_all(b"hello")?;
//!     let mut answer = [0; 5];
//!     client.read_exact(&mut answer)?;
//!     assert_eq!(&answer, b"hello");
//!     Ok::<(), std::io::Error>(())
//! })
//! # .unwrap();
//! ```
//!
//! [`spawn`], [`scope`], [`Builder`] and [`JoinHandle`] are `std::thread`'s, with the same bounds and
//! the same safety. [`run`] turns the calling thread into a worker and its closure into a fiber;
//! without it, the first `spawn` starts the default runtime beside the caller.
//!
//! # What a program gets by depending on this crate
//!
//! The runtime, and with the default feature `interpose` the C library's blocking calls as a fiber
//! sees them (`sleave-libc`): they replace libc's for the whole program. On threads that are not
//! fibers they are libc's own. Without the feature, fibers block their worker in such calls (the runtime
//! notices and puts another thread in its place).
//!
//! # Where fibers cannot be had
//!
//! Fibers need Linux on x86-64 with FSGSBASE (Linux 5.9) and a shared glibc whose thread layout the
//! runtime recognises at start-up. Elsewhere each fiber is an OS thread: as safe, and as large.
//! [`identity()`] says which it is, and why.
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `SLEAVE_WORKERS` | workers of the default runtime; else the CPUs the process may use |
//! | `SLEAVE_STACK` | bytes of a fiber's stack, with an optional `K` or `M`; else a 256 KiB slot |
//! | `SLEAVE_MAX_FIBERS` | fibers that a runtime may have at once, see [`RuntimeBuilder::max_fibers`] |
//! | `SLEAVE_POOL` | free slots (stack and identity) that the process keeps for reuse, see [`pool`]; else no limit |
//! | `SLEAVE_GREEN_THREADS` | 1: `pthread_create` and `std::thread::spawn` make fibers, see [`green_threads`] |
//! | `SLEAVE_DUMP` | a signal that the process answers by a [`dump()`] on standard error |
//! | `SLEAVE_BACKTRACE` | 1: such dumps tell where each fiber waits |
//! | `SLEAVE_DEADLOCK` | `report`, `abort` or `ignore`, see [`RuntimeBuilder::deadlock`] |
//! | `SLEAVE_REPORT` | a file that the process appends to when it ends, see [`blocked_calls`] |
//! | `SLEAVE_IDENTITY` | `threads`: every fiber is an OS thread |
//! | `SLEAVE_TRACE` | with the feature `trace`, 1: a line on standard error for each event of a fiber |

// Of the interposed C library: naming the crate is what links it.
#[cfg(feature = "interpose")]
pub use sleave_libc::green_threads;

#[cfg(feature = "backtrace")]
mod names;
#[cfg(feature = "backtrace")]
pub use names::name_frames;

pub use sleave_runtime::blocking::blocking;
pub use sleave_runtime::cancel;
pub use sleave_runtime::interpose::{set as interpose, uninterposed};
pub use sleave_runtime::{
    Awaited, BlockedCall, Builder, Cancelled, Deadlock, Dump, Elapsed, Fiber, FiberId, FiberState,
    JoinHandle, Metrics, NoFibers, Runtime, RuntimeBuilder, Scope, ScopedJoinHandle, Since, State,
    Statistics, Timer, TimerBuilder, blocked_calls, cancelling_scope, checkpoint, current, dump,
    dump_with_backtraces, event, identity, metrics, park, park_deadline, park_timeout, pin, pool,
    run, scope, set_connect_timeout, set_wait_timeout, shield, spawn, timeout, timeout_at, unpin,
    worker, yield_now,
};
