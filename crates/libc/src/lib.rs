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
//! # The families
//! *Parks*: the fiber waits, the worker goes on. *Hands off*: the call blocks the thread, and another has taken
//! the worker's place before. *Tracks*: the C library's own call, after which the table and the reactor know more.
//!
//! | file | symbols | |
//! |---|---|---|
//! | `time` | `clock_nanosleep nanosleep sleep usleep thrd_sleep` | parks |
//! | `stream` | `read readv write writev preadv2 pwritev2 eventfd_read eventfd_write` | parks; on regular files hands off what is not in memory |
//! | `message`, `batch` | `recv recvfrom recvmsg recvmmsg send sendto sendmsg sendmmsg` | parks |
//! | `splice` | `sendfile splice tee vmsplice` | parks |
//! | `socket` | `accept accept4 connect`; `setsockopt getsockopt shutdown` | parks; tracks |
//! | `poll`, `select`, `epoll` | `poll ppoll select pselect epoll_wait epoll_pwait epoll_pwait2` | parks on all at once |
//! | `futex`, `number` | `syscall` | parks for `SYS_futex` on private words, and as the function that a number names |
//! | `green` | `pthread_create pthread_exit`, `thrd_create thrd_exit` | a fiber, if the process asks for it ([`green_threads`]) |
//! | `thread` | `sched_yield thrd_yield`; `pthread_join pthread_detach …` | yields; parks for green threads, hands off for others |
//! | `particulars` | `pthread_getattr_np pthread_setname_np sigaltstack …` | a fiber's own |
//! | `pthread` | `pthread_mutex_… pthread_cond_… pthread_rwlock_… pthread_barrier_… pthread_once sem_… mtx_… cnd_…` | parks, and wakes threads and fibers alike |
//! | `descriptor`, `stdio` | `close close_range closefrom dup dup2 dup3 fcntl ioctl`, `fclose freopen pclose closedir mq_close` | tracks, and wakes who waits on a closed number with `EBADF` |
//! | `create`, `open` | `socket pipe eventfd …`, `open openat creat …` | tracks; to open hands off, with a delay of 5 ms |
//! | `file`, `lock` | `pread preadv fsync msync …`, `flock lockf fcntl` | hands off |
//! | `queue` | `mq_receive mq_send mq_timedreceive mq_timedsend`; `msgrcv msgsnd semop semtimedop` | parks; hands off |
//! | `process` | `waitpid waitid wait4 …`; `wait system` | parks on the end of one child; hands off |
//! | `resolve` | `getaddrinfo getnameinfo gethostby… res_…` | hands off |
//! | `signal` | `pthread_kill raise`, `pthread_sigmask sigprocmask …`; `sigwait sigsuspend pause …` | a fiber's own; hands off |
//! | `cancel` | `pthread_cancel pthread_testcancel …` | of fibers, where they wait |
//!
//! Fortified names (`__read_chk`), names for 64-bit offsets (`fcntl64`) and old names (`__read`) are
//! beside those that they stand for. `docs/blocking-calls.md` says when each parks and why not;
//! `docs/symbols.md` has a verdict on every function of the C library, which a test holds against
//! the library and this crate (`tests/symbols.rs`).
//!
//! # Limits
//! - Dynamically linked programs only: the C library's own functions are found by
//!   `dlsym(RTLD_NEXT)`.
//! - The C library calls itself without these symbols: stdio (`fread`, `puts`) and its own locks block the worker.
//! - A number that is closed by the bare instruction changes its meaning unseen (`stdio`).
//!
//! # Reading order
//! `next` (the C library behind us), `errno`, `kernel` (tries), `kind` and `table` (what is known of
//! each descriptor), `control` (descriptors that travel), `vector`, `wait` (from one try to the next), `handoff` (where there
//! is nothing to wait for), then the families.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("sleave-libc is for 64-bit Linux");

mod batch;
mod cancel;
mod control;
mod create;
mod descriptor;
mod epoll;
mod errno;
mod file;
mod futex;
mod green;
mod handoff;
mod kernel;
mod kind;
mod lock;
mod message;
mod next;
mod number;
mod open;
mod particulars;
mod poll;
mod process;
mod pthread;
mod queue;
mod resolve;
mod select;
mod signal;
mod socket;
mod splice;
mod stdio;
mod stream;
mod table;
mod thread;
mod time;
mod vector;
mod wait;

pub use self::green::green_threads;
