//! The C library as a fiber sees it.
//!
//! A fiber is a thread that the kernel does not know: whatever would block a thread blocks only
//! the fiber. Ordinary code blocks in the C library, so that is where this crate stands. It
//! defines the C library's functions under their own names; a program that depends on it
//! (`use sleave_libc as _;` is enough) gets these definitions for its Rust code, for std, and for
//! the shared C libraries that it loads, since an executable's symbols come before a library's.
//!
//! # The shape of every call
//! ```text
//!   not in a fiber ──────────────────────────────────► the C library's own function
//!   in a fiber:  try without blocking ── done ───────► the result
//!                   ▲            └─ would block ─┐
//!                   └── ready ◄── park the fiber ◄┘──► EAGAIN, if the program asked not to wait
//!                                                       or its timeout is over
//! ```
//! A plain thread pays one load and one compare. A call gives the result, the `errno` and the
//! timing that it gives on a thread; where that cannot be, the table says so.
//!
//! # Every symbol
//! *Parks*: the fiber waits, the worker goes on. *Tracks*: the C library's own call, after which
//! the table and the reactor know more. *Passes*: nothing to add.
//!
//! | symbol | what it does | why, and what to know |
//! |---|---|---|
//! | `clock_nanosleep` `nanosleep` `sleep` `usleep` | parks | passes for CPU-time and alarm clocks |
//! | `read` `readv` `__read_chk` | parks | passes on regular files: they have no readiness, and the monitor gives the worker's other fibers to another thread |
//! | `write` `writev` | parks | the same; on streams and pipes until everything is written |
//! | `recv` `recvfrom` `recvmsg` `__recv_chk` `__recvfrom_chk` | parks | `MSG_DONTWAIT`, `MSG_OOB`, `MSG_ERRQUEUE` pass; received descriptors are tracked |
//! | `send` `sendto` `sendmsg` | parks | `MSG_DONTWAIT`, `MSG_FASTOPEN` pass, and a send to a named Unix datagram socket whose queue is full; sent descriptors are tracked |
//! | `accept` `accept4` | parks | blocks the worker if somebody outside the fibers takes the connection first |
//! | `connect` | parks | TCP sockets that this process made and did not share; else passes |
//! | `poll` `ppoll` `__poll_chk` | parks | `ppoll` with a signal mask passes |
//! | `syscall` | parks | `SYS_futex` on private words only: a shared word is the kernel's; every other call passes |
//! | `sched_yield` | yields | to the fibers of this processor |
//! | `close` `dup2` `dup3` | tracks | wakes fibers that wait on the number, with `EBADF` |
//! | `dup` `fcntl` `fcntl64` | tracks | duplicates; the program's own `O_NONBLOCK`. `F_SETLKW` blocks the worker |
//! | `ioctl` | tracks | `FIONBIO` |
//! | `socket` `socketpair` `pipe` `pipe2` `eventfd` `timerfd_create` | tracks | what the new number names |
//! | `setsockopt` | tracks | `SO_RCVTIMEO` and `SO_SNDTIMEO` to the microsecond, `SO_RCVLOWAT`, `TCP_ULP` |
//! | `shutdown` `getsockopt` | passes | the kernel sends the event, and knows the answer |
//!
//! # Limits
//! - Dynamically linked programs only: the C library's own functions are found by
//!   `dlsym(RTLD_NEXT)`.
//! - The C library calls itself without these symbols: stdio (`fread`, `puts`), the resolver
//!   (`getaddrinfo`) and pthread locks block the worker.
//! - A descriptor from `open`, and one that `fclose` closes, changes its meaning unseen. What
//!   was closed with `close` is forgotten, and a number taken for a socket that is none is looked
//!   at again.
//!
//! # Reading order
//! `next` (the C library behind us), `errno`, `kernel` (tries), `kind` and `table` (what is known of
//! each descriptor), `wait` (from one try to the next), then the families: `stream`, `message`,
//! `socket`, `create`, `descriptor`, `poll`, `time`, `futex`, `thread`.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("sleave-libc is for 64-bit Linux");

mod batch;
mod control;
mod create;
mod descriptor;
mod epoll;
mod errno;
mod futex;
mod kernel;
mod kind;
mod message;
mod next;
mod open;
mod poll;
mod select;
mod socket;
mod splice;
mod stdio;
mod stream;
mod table;
mod thread;
mod time;
mod vector;
mod wait;
