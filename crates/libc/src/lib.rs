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
//! What has no readiness (a file on a disk, a name, a child among several) is handed off instead: the fiber stays on its
//! thread, which blocks, and another thread takes the worker's place first (`handoff`).
//!
//! A plain thread pays one load and one compare. A call gives the result, the `errno` and the
//! timing that it gives on a thread; where that cannot be, the table says so.
//!
//! # Every symbol
//! *Parks*: the fiber waits, the worker goes on. *Hands off*: the call blocks the thread, and another has taken
//! the worker's place before. *Wakes*: threads and fibers that wait. *Tracks*: the C library's own call, after which
//! the table and the reactor know more. *Passes*: nothing to add.
//!
//! | symbol | what it does | why, and what to know |
//! |---|---|---|
//! | `clock_nanosleep` `nanosleep` `sleep` `usleep` | parks | passes for CPU-time and alarm clocks |
//! | `read` `readv` `__read_chk` | parks | hands off on regular files whose bytes are not in memory |
//! | `pread` `pread64` `preadv` `preadv64` | hands off | the same |
//! | `write` `writev` | parks | on streams and pipes until everything is written; passes on regular files, which have no readiness: the monitor gives the worker's other fibers to another thread |
//! | `recv` `recvfrom` `recvmsg` `__recv_chk` `__recvfrom_chk` | parks | `MSG_DONTWAIT`, `MSG_OOB`, `MSG_ERRQUEUE` pass; received descriptors are tracked |
//! | `send` `sendto` `sendmsg` | parks | `MSG_DONTWAIT`, `MSG_FASTOPEN` pass, and a send to a named Unix datagram socket whose queue is full; sent descriptors are tracked |
//! | `accept` `accept4` | parks | blocks the worker if somebody outside the fibers takes the connection first |
//! | `connect` | parks | TCP sockets that this process made and did not share; else passes |
//! | `poll` `ppoll` `__poll_chk` | parks | `ppoll` with a signal mask passes |
//! | `syscall` | parks | `SYS_futex` on private words only: a shared word is the kernel's; every other call passes |
//! | `pthread_mutex_lock` `…_timedlock` `…_clocklock` | parks | all types. Robust mutexes and those shared between processes pass; of those that lend priorities a fiber is told `ENOTSUP` |
//! | `pthread_mutex_trylock` `pthread_mutex_unlock` | wakes | threads and fibers alike |
//! | `pthread_cond_wait` `…_timedwait` `…_clockwait` `pthread_cond_destroy` | parks | shared ones pass |
//! | `pthread_cond_signal` `pthread_cond_broadcast` | wakes | |
//! | `pthread_rwlock_rdlock` `…_wrlock`, their `timed` and `clock` forms | parks | shared ones pass |
//! | `pthread_rwlock_tryrdlock` `…_trywrlock` `pthread_rwlock_unlock` | wakes | |
//! | `pthread_barrier_wait` `pthread_barrier_destroy` | parks | shared ones pass |
//! | `pthread_once` | parks | while another runs the routine |
//! | `sem_wait` `sem_timedwait` `sem_clockwait` | parks | shared ones pass; `sem_trywait` is libc's |
//! | `sem_post` | wakes | also from a signal handler, whatever that has interrupted |
//! | `mtx_lock` `mtx_trylock` `mtx_timedlock` `mtx_unlock` `cnd_wait` `cnd_timedwait` `cnd_signal` `cnd_broadcast` `cnd_destroy` `call_once` | parks, wakes | C11's names for the same |
//! | `sched_yield` | yields | to the fibers of this processor |
//! | `close` `dup2` `dup3` | tracks | wakes fibers that wait on the number, with `EBADF` |
//! | `dup` `fcntl` `fcntl64` | tracks | duplicates; the program's own `O_NONBLOCK`. Hands off `F_SETLKW`, `F_OFD_SETLKW` if the lock is held |
//! | `open` `open64` `openat` `openat64` `creat` `creat64` and their `__…_2` | hands off | with a delay of 5 ms, since mostly they are over at once |
//! | `fsync` `fdatasync` `sync` `syncfs` `sync_file_range` `msync` | hands off | |
//! | `flock` `lockf` `lockf64` | hands off | if the lock is held |
//! | `getaddrinfo` `getnameinfo` `gethostby…` `getnetby…` `res_…` | hands off | |
//! | `wait` `waitpid` `waitid` `wait3` `wait4` | parks | on a pidfd, for the end of one child; else hands off |
//! | `system` `pclose` | hands off | |
//! | `pthread_join` `pthread_timedjoin_np` `pthread_clockjoin_np` `thrd_join` | hands off | if the thread has not ended |
//! | `sigwait` `sigwaitinfo` `sigtimedwait` `sigsuspend` `pause` | hands off | the signal mask is the worker's |
//! | `ioctl` | tracks | `FIONBIO` |
//! | `socket` `socketpair` `pipe` `pipe2` `eventfd` `timerfd_create` | tracks | what the new number names |
//! | `setsockopt` | tracks | `SO_RCVTIMEO` and `SO_SNDTIMEO` to the microsecond, `SO_RCVLOWAT`, `TCP_ULP` |
//! | `shutdown` `getsockopt` | passes | the kernel sends the event, and knows the answer |
//!
//! # Limits
//! - Dynamically linked programs only: the C library's own functions are found by
//!   `dlsym(RTLD_NEXT)`.
//! - The C library calls itself without these symbols: stdio (`fread`, `puts`) and its own locks block the worker.
//! - A descriptor from `open`, and one that `fclose` closes, changes its meaning unseen. What
//!   was closed with `close` is forgotten, and a number taken for a socket that is none is looked
//!   at again.
//!
//! # Reading order
//! `next` (the C library behind us), `errno`, `kernel` (tries), `kind` and `table` (what is known of
//! each descriptor), `wait` (from one try to the next), `handoff` (where there is nothing to wait for), then the families:
//! `stream`, `message`, `socket`, `create`, `descriptor`, `poll`, `time`, `futex`, `pthread`, `thread`; `open`, `file`, `lock`, `resolve`,
//! `process`, `signal`.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("sleave-libc is for 64-bit Linux");

mod control;
mod create;
mod descriptor;
mod errno;
mod file;
mod futex;
mod handoff;
mod kernel;
mod kind;
mod lock;
mod message;
mod next;
mod open;
mod poll;
mod process;
mod pthread;
mod resolve;
mod signal;
mod socket;
mod stream;
mod table;
mod thread;
mod time;
mod vector;
mod wait;
