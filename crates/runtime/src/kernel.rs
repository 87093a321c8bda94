//! The kernel, called directly.
//!
//! The runtime sits below the interposed C library: a call through libc's `read`, `syscall` or
//! `nanosleep` would come back to us as a fiber that wants to park. So every system call that
//! the runtime needs is made here by the bare instruction; nothing here sets `errno`.
//!
//! Two things are still libc's: `clock_gettime`, which is the vDSO's and never blocks, and
//! `pthread_create`, fetched behind any symbol of ours by `dlsym(RTLD_NEXT)`.

pub(crate) mod task;

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use syscalls::{Errno, Sysno, syscall};

/// An error of the kernel as std shows it.
pub(crate) fn error(e: Errno) -> io::Error {
    io::Error::from_raw_os_error(e.into_raw())
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline]
pub(crate) fn now() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// `nanoseconds` as the kernel takes them.
fn timespec(nanoseconds: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    }
}

/// Blocks the calling OS thread while `*word == expected`, at most until `deadline`
/// (`CLOCK_MONOTONIC` nanoseconds). May return early for no reason. futex(2)
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, deadline: Option<u64>) {
    let at = deadline.map(timespec);
    let at = at.as_ref().map_or(std::ptr::null(), |t| t as *const libc::timespec);
    // SAFETY: futex(2): the word is live for the call, the timeout is null or a timespec.
    // Every outcome (woken, mismatch, signal, time-out) means "look again" to our callers.
    let _ = unsafe {
        syscall!(
            Sysno::futex,
            word.as_ptr(),
            libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG,
            expected,
            at,
            0usize,
            u32::MAX
        )
    };
}

/// Wakes up to `count` OS threads that wait on the word at `address`. futex(2)
pub(crate) fn futex_wake(address: usize, count: i32) {
    // SAFETY: futex(2): FUTEX_WAKE uses the address as a key only; a stale one wakes nobody.
    let _ = unsafe {
        syscall!(Sysno::futex, address, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count)
    };
}

/// As [`futex_wake`], for waiters of any process that shares the memory. futex(2)
pub(crate) fn futex_wake_shared(address: usize, count: i32) {
    // SAFETY: as for `futex_wake`; here the kernel looks the address up, and answers EFAULT.
    let _ = unsafe { syscall!(Sysno::futex, address, libc::FUTEX_WAKE, count) };
}

/// A descriptor that the runtime has opened for itself; dropped, it is closed.
pub(crate) struct OwnFd(RawFd);

impl OwnFd {
    /// Its number.
    #[inline]
    pub(crate) fn number(&self) -> RawFd {
        self.0
    }

    /// A new descriptor moved to the top of the table, where it is out of a program's way: programs
    /// expect small numbers for what *they* open (and test them against `FD_SETSIZE`), and take 0, 1 and 2
    /// for the standard streams even if they have closed them.
    ///
    /// # Errors
    /// `EMFILE` if only one of these three is left.
    fn lift(fd: usize) -> io::Result<OwnFd> {
        let low = OwnFd(fd as RawFd);
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit(2) writes the struct.
        let known = unsafe { syscall!(Sysno::getrlimit, libc::RLIMIT_NOFILE, &raw mut limit) };
        let top = known.map_or(0, |_| limit.rlim_cur.min(1 << 20));
        for room in [64, 1024, top] {
            let floor = top.saturating_sub(room).max(3);
            // SAFETY: fcntl(2) on a descriptor of our own.
            let high = unsafe { syscall!(Sysno::fcntl, low.0, libc::F_DUPFD_CLOEXEC, floor) };
            // Else so few are left that there is no room up there.
            if let Ok(high) = high {
                return Ok(OwnFd(high as RawFd));
            }
        }
        if low.0 > 2 { Ok(low) } else { Err(error(Errno::EMFILE)) }
    }
}

impl Drop for OwnFd {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// Closes a descriptor of the runtime's own. close(2)
pub(crate) fn close(fd: RawFd) {
    // SAFETY: close(2) on a descriptor that the runtime opened and owns.
    let _ = unsafe { syscall!(Sysno::close, fd) };
}

/// `fd`, the runtime's own, is not what it was: the program has closed it past the C library. Nobody could be
/// woken any more.
#[cold]
fn lost(fd: RawFd, what: &str) -> ! {
    complain(
        format!(
            "sleave: the program has closed descriptor {fd}, its runtime's own ({what}), and cannot go on\n"
        )
        .as_bytes(),
    );
    std::process::abort();
}

/// A new epoll instance. epoll_create1(2)
pub(crate) fn epoll_create() -> io::Result<OwnFd> {
    // SAFETY: epoll_create1(2) takes a flag.
    let fd = unsafe { syscall!(Sysno::epoll_create1, libc::EPOLL_CLOEXEC) }.map_err(error)?;
    OwnFd::lift(fd)
}

/// A new eventfd with value 0. eventfd(2)
pub(crate) fn eventfd(flags: c_int) -> io::Result<OwnFd> {
    let flags = flags | libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
    // SAFETY: eventfd2(2) takes two numbers.
    let fd = unsafe { syscall!(Sysno::eventfd2, 0, flags) }.map_err(error)?;
    OwnFd::lift(fd)
}

/// A new timerfd on `CLOCK_MONOTONIC`, disarmed. timerfd_create(2)
pub(crate) fn timerfd() -> io::Result<OwnFd> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: timerfd_create(2) takes two numbers.
    let fd = unsafe { syscall!(Sysno::timerfd_create, libc::CLOCK_MONOTONIC, flags) };
    OwnFd::lift(fd.map_err(error)?)
}

/// Arms `fd` for the absolute time `at` (`CLOCK_MONOTONIC` nanoseconds). timerfd_settime(2)
pub(crate) fn timerfd_arm(fd: RawFd, at: u64) {
    // An all-zero value would disarm: nothing is due at nanosecond 0.
    let at = at.max(1);
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let value = libc::itimerspec { it_interval: zero, it_value: timespec(at) };
    // SAFETY: timerfd_settime(2) reads one itimerspec.
    let armed = unsafe {
        syscall!(Sysno::timerfd_settime, fd, libc::TFD_TIMER_ABSTIME, &raw const value, 0usize)
    };
    if armed.is_err() {
        lost(fd, "timerfd");
    }
}

/// Adds 1 to an eventfd. eventfd(2)
pub(crate) fn eventfd_write(fd: RawFd) {
    let one = 1u64;
    // SAFETY: write(2) of eight bytes of our own to an eventfd.
    match unsafe { syscall!(Sysno::write, fd, &raw const one, 8) } {
        // At 2^64 - 2 somebody will be woken without us.
        Ok(_) | Err(Errno::EAGAIN) => {}
        Err(_) => lost(fd, "eventfd"),
    }
}

/// Takes from an eventfd (1 from a semaphore, else all); returns whether there was anything.
pub(crate) fn eventfd_read(fd: RawFd) -> bool {
    let mut value = 0u64;
    // SAFETY: read(2) of eight bytes into our own variable from a non-blocking eventfd.
    match unsafe { syscall!(Sysno::read, fd, &raw mut value, 8) } {
        Ok(_) => true,
        Err(Errno::EAGAIN) => false,
        Err(_) => lost(fd, "eventfd"),
    }
}

/// epoll_ctl(2)
pub(crate) fn epoll_ctl(
    epoll: RawFd,
    op: c_int,
    fd: RawFd,
    events: u32,
    data: u64,
) -> Result<(), Errno> {
    let event = libc::epoll_event { events, u64: data };
    // SAFETY: epoll_ctl(2) reads one epoll_event.
    unsafe { syscall!(Sysno::epoll_ctl, epoll, op, fd, &raw const event) }.map(drop)
}

/// Waits for events: not at all, or as long as it takes, with the signals of `mask` blocked meanwhile. A signal counts as no
/// event. epoll_pwait(2)
pub(crate) fn epoll_wait(
    epoll: RawFd,
    buffer: &mut [libc::epoll_event],
    block: bool,
    mask: Option<&u64>,
) -> usize {
    let timeout = if block { -1isize } else { 0 };
    let mask = mask.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: epoll_pwait(2) writes at most `len` events into the buffer, and reads eight bytes of a mask; a null one leaves
    // the signal mask alone. (epoll_wait itself does not exist on newer architectures.)
    let n = unsafe {
        syscall!(
            Sysno::epoll_pwait,
            epoll,
            buffer.as_mut_ptr(),
            buffer.len(),
            timeout,
            mask,
            8usize
        )
    };
    match n {
        Ok(n) => n,
        Err(Errno::EBADF | Errno::EINVAL) => lost(epoll, "epoll"),
        Err(_) => 0,
    }
}

/// Makes every other thread of the process pass a memory barrier; whether the kernel can. membarrier(2)
pub(crate) fn membarrier() -> bool {
    /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED`, Linux 4.14, and its registration.
    const EXPEDITED: usize = 1 << 3;
    const REGISTER: usize = 1 << 4;
    // SAFETY: membarrier(2) takes numbers. EPERM: the process has not registered yet.
    unsafe {
        match syscall!(Sysno::membarrier, EXPEDITED, 0, 0) {
            Err(Errno::EPERM) => {
                syscall!(Sysno::membarrier, REGISTER, 0, 0).is_ok()
                    && syscall!(Sysno::membarrier, EXPEDITED, 0, 0).is_ok()
            }
            answer => answer.is_ok(),
        }
    }
}

/// Lets another thread of the machine go first. sched_yield(2)
pub(crate) fn sched_yield() {
    // SAFETY: sched_yield(2) has no arguments.
    let _ = unsafe { syscall!(Sysno::sched_yield) };
}

/// poll(2) that looks and returns; the count of ready entries or the error.
pub(crate) fn poll_now(fds: &mut [libc::pollfd]) -> Result<usize, Errno> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        // SAFETY: ppoll(2) reads and writes the slice; it may update the timespec, which is ours.
        let answer = unsafe {
            syscall!(Sysno::ppoll, fds.as_mut_ptr(), fds.len(), &raw const zero, 0usize, 8usize)
        };
        // Even a look that does not wait is ended by a signal, if it finds nothing.
        if answer != Err(Errno::EINTR) {
            return answer;
        }
    }
}

/// poll(2): blocks the calling OS thread until something is ready or `deadline` (nanoseconds) passes; a signal
/// does not end it.
pub(crate) fn poll(fds: &mut [libc::pollfd], deadline: Option<u64>) -> Result<usize, Errno> {
    loop {
        let left = deadline.map(|deadline| timespec(deadline.saturating_sub(now())));
        let left = left.as_ref().map_or(std::ptr::null(), |t| t as *const libc::timespec);
        // SAFETY: ppoll(2) reads and writes the slice; it may update the timespec, which is ours.
        match unsafe { syscall!(Sysno::ppoll, fds.as_mut_ptr(), fds.len(), left, 0usize, 8usize) } {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}

/// The kernel's id of the calling OS thread. gettid(2)
pub(crate) fn gettid() -> u32 {
    // SAFETY: gettid(2) has no arguments and cannot fail.
    unsafe { syscall!(Sysno::gettid) }.unwrap_or(0) as u32
}

/// Sends `signal` to the OS thread `thread` of this process, if it is there. tgkill(2)
pub(crate) fn send_signal(thread: u32, signal: i32) {
    // SAFETY: tgkill(2) takes numbers. A thread that has ended, whose number nobody has got since, is an error.
    let _ = unsafe { syscall!(Sysno::tgkill, getpid(), thread, signal) };
}

/// Blocks exactly the signals of `mask` in the calling OS thread. rt_sigprocmask(2)
pub(crate) fn set_signal_mask(mask: u64) {
    change_signal_mask(Some(&mask));
}

/// The signals that the calling OS thread blocks. rt_sigprocmask(2)
pub(crate) fn signal_mask() -> u64 {
    change_signal_mask(None)
}

fn change_signal_mask(mask: Option<&u64>) -> u64 {
    let mut before = 0u64;
    let mask = mask.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: rt_sigprocmask(2) reads one mask of eight bytes, or none, and writes another.
    let _ = unsafe {
        syscall!(Sysno::rt_sigprocmask, libc::SIG_SETMASK, mask, &raw mut before, 8usize)
    };
    before
}

/// The process whose descriptors the reactor knows.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// The kernel's id of this process. getpid(2)
pub(crate) fn getpid() -> u32 {
    // SAFETY: getpid(2) has no arguments and cannot fail.
    unsafe { syscall!(Sysno::getpid) }.unwrap_or(0) as u32
}

/// Says that the calling process's descriptors are those that the reactor knows.
pub(crate) fn claim_process() {
    // Relaxed: the word is all there is to see.
    PROCESS.store(getpid(), Ordering::Relaxed);
}

/// Whether the calling process is the one that has claimed. A child of fork(2) is not, nor is one of
/// vfork(2), which runs in its parent's memory.
pub(crate) fn is_this_process() -> bool {
    // Relaxed: see `claim_process`.
    // (Models have no process of their own.)
    cfg!(loom) || PROCESS.load(Ordering::Relaxed) == getpid()
}

/// Nanoseconds of CPU time that the OS thread `tid` of this process has used; `None` if it is
/// gone. clock_gettime(2), CPU-time clocks
pub(crate) fn cpu_time(tid: u32) -> Option<u64> {
    /// `CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED`, see pthread_getcpuclockid(3) and the kernel's
    /// posix-timers.h.
    const SCHEDULED_THREAD: i32 = 4 | 2;
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let clock = (!(tid as i32) << 3) | SCHEDULED_THREAD;
    // SAFETY: clock_gettime(2) writes one timespec.
    unsafe { syscall!(Sysno::clock_gettime, clock, &raw mut t) }.ok()?;
    Some(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// Gives the calling OS thread a descriptor table of its own, an empty one, if the kernel can.
/// close_range(2)
pub(crate) fn leave_descriptors() {
    // SAFETY: close_range(2) with CLOSE_RANGE_UNSHARE leaves the shared table as it is, or fails and
    // changes nothing.
    let _ = unsafe { syscall!(Sysno::close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
}

/// Appends `text` to the file at `path`, by one write, after making it if there is none. open(2), write(2)
///
/// # Errors
/// What these say; `WriteZero` if not all went.
pub(crate) fn append(path: &CStr, text: &[u8]) -> io::Result<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
    // SAFETY: openat(2) of a NUL-terminated path, write(2) of our bytes.
    unsafe {
        let fd = syscall!(Sysno::openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o666);
        let fd = fd.map_err(error)?;
        let written = syscall!(Sysno::write, fd, text.as_ptr(), text.len());
        close(fd as RawFd);
        match written.map_err(error)? {
            all if all == text.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// Writes to standard error: all of it or as much as goes.
pub(crate) fn complain(mut text: &[u8]) {
    while !text.is_empty() {
        // SAFETY: write(2) of our bytes to descriptor 2.
        match unsafe { syscall!(Sysno::write, 2, text.as_ptr(), text.len()) } {
            Ok(count) => text = &text[count.min(text.len())..],
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// libc's own function `name`, behind any symbol of the program that shadows it.
pub(crate) fn next(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: dlsym(3) with a NUL-terminated name; RTLD_NEXT searches the objects after the one
    // that holds this code.
    let f = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (!f.is_null()).then_some(f)
}

type Start = extern "C" fn(*mut c_void) -> *mut c_void;
type Create = unsafe extern "C" fn(
    *mut libc::pthread_t,
    *const libc::pthread_attr_t,
    Start,
    *mut c_void,
) -> c_int;
type Join = unsafe extern "C" fn(libc::pthread_t, *mut *mut c_void) -> c_int;

/// An OS thread of the runtime's own, made by libc's `pthread_create` even where a program's
/// `pthread_create` makes fibers.
pub(crate) struct OsThread(libc::pthread_t);

// SAFETY: a pthread_t may be joined from any thread.
unsafe impl Send for OsThread {}

impl OsThread {
    /// Starts `body` on a new thread called `name` (15 bytes at most, prctl(2)).
    pub(crate) fn start<F>(name: String, stack: usize, body: F) -> io::Result<OsThread>
    where
        F: FnOnce() + Send + 'static,
    {
        extern "C" fn entry(argument: *mut c_void) -> *mut c_void {
            // SAFETY: `start` passes a leaked box of this very type, to this thread alone.
            let body = unsafe { Box::from_raw(argument.cast::<Box<dyn FnOnce() + Send>>()) };
            body();
            std::ptr::null_mut()
        }
        let missing = || io::Error::other("libc has no pthread_create");
        let create = next(c"pthread_create").ok_or_else(missing)?;
        // SAFETY: this is pthread_create(3), of this type.
        let create = unsafe { std::mem::transmute::<*mut c_void, Create>(create) };
        let named: Box<dyn FnOnce() + Send> = Box::new(move || {
            let mut bytes: Vec<u8> = name.into_bytes();
            bytes.truncate(15);
            bytes.push(0);
            // SAFETY: prctl(2) PR_SET_NAME reads a NUL-terminated string of at most 16 bytes.
            let _ = unsafe { syscall!(Sysno::prctl, libc::PR_SET_NAME, bytes.as_ptr()) };
            body();
        });
        let argument = Box::into_raw(Box::new(named)).cast::<c_void>();
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
        let mut thread = 0;
        // SAFETY: pthread_attr_init(3) initialises the attributes before their use; `entry`
        // takes over `argument` if and only if the thread was created.
        let failed = unsafe {
            libc::pthread_attr_init(attributes.as_mut_ptr());
            libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), stack);
            let failed = create(&mut thread, attributes.as_ptr(), entry, argument);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            failed
        };
        if failed != 0 {
            // SAFETY: no thread was made, so the box is still ours alone.
            drop(unsafe { Box::from_raw(argument.cast::<Box<dyn FnOnce() + Send>>()) });
            return Err(io::Error::from_raw_os_error(failed));
        }
        Ok(OsThread(thread))
    }

    /// Waits for the thread to end.
    pub(crate) fn join(self) {
        if let Some(join) = next(c"pthread_join") {
            // SAFETY: this is pthread_join(3), of this type; the thread was not joined before,
            // since `self` is consumed.
            unsafe {
                let join = std::mem::transmute::<*mut c_void, Join>(join);
                join(self.0, std::ptr::null_mut());
            }
        }
    }
}

/// Blocks the calling OS thread until `fd` can be read. poll(2)
pub(crate) fn await_readable(fd: RawFd) {
    let mut fds = [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }];
    // SAFETY: ppoll(2) on one pollfd of ours, without a timeout or a mask.
    let _ = unsafe { syscall!(Sysno::ppoll, fds.as_mut_ptr(), 1, 0usize, 0usize, 8usize) };
}
