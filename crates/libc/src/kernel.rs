//! The kernel, called directly: the tries that must not block, and what a fiber does when a
//! call has to block after all.
//!
//! Every function answers as the kernel does, a result or an error number below zero, and sets
//! no `errno` (see `errno.rs`). They are thin on purpose: what they add to the instruction is a
//! name, a type, and the form of "without blocking" for their kind of descriptor:
//!
//! | kind | without blocking | why not `O_NONBLOCK` |
//! |---|---|---|
//! | socket | `MSG_DONTWAIT` | the flag belongs to the open file description, which another process may share |
//! | anything else | `RWF_NOWAIT` of preadv2(2), pwritev2(2) with offset -1 | the same |
//!
//! Sources: recv(2), send(2), readv(2), poll(2), and `fs/read_write.c`, `net/socket.c` of Linux.

use std::ffi::{c_char, c_int, c_short, c_uint, c_void};
use std::mem::size_of;

use libc::{iovec, mmsghdr, msghdr, off64_t, sockaddr, socklen_t};
use syscalls::{Sysno, raw_syscall};

use crate::errno;

/// "Do not block" of preadv2(2) and pwritev2(2).
const NOWAIT: c_int = libc::RWF_NOWAIT;

/// read(2)
pub(crate) unsafe fn read(fd: c_int, buffer: *mut c_void, len: usize) -> isize {
    // SAFETY: read(2): the kernel checks the buffer, which the caller vouches for.
    unsafe { raw_syscall!(Sysno::read, fd, buffer, len) as isize }
}

/// write(2)
pub(crate) unsafe fn write(fd: c_int, buffer: *const c_void, len: usize) -> isize {
    // SAFETY: write(2): the kernel checks the buffer, which the caller vouches for.
    unsafe { raw_syscall!(Sysno::write, fd, buffer, len) as isize }
}

/// readv(2)
pub(crate) unsafe fn readv(fd: c_int, parts: *const iovec, count: c_int) -> isize {
    // SAFETY: readv(2): the kernel checks the array and its buffers, the caller's.
    unsafe { raw_syscall!(Sysno::readv, fd, parts, count) as isize }
}

/// writev(2)
pub(crate) unsafe fn writev(fd: c_int, parts: *const iovec, count: c_int) -> isize {
    // SAFETY: writev(2): the kernel checks the array and its buffers, the caller's.
    unsafe { raw_syscall!(Sysno::writev, fd, parts, count) as isize }
}

/// readv(2) that answers `EAGAIN` where it would block, `EOPNOTSUPP` where the file cannot tell.
pub(crate) unsafe fn readv_nowait(fd: c_int, parts: *const iovec, count: c_int) -> isize {
    // SAFETY: preadv2(2): offset -1 reads at the file position as readv does; the kernel checks
    // the array and its buffers.
    unsafe { raw_syscall!(Sysno::preadv2, fd, parts, count, -1isize, -1isize, NOWAIT) as isize }
}

/// writev(2) that answers `EAGAIN` where it would block, `EOPNOTSUPP` where the file cannot tell.
pub(crate) unsafe fn writev_nowait(fd: c_int, parts: *const iovec, count: c_int) -> isize {
    // SAFETY: pwritev2(2): offset -1 writes at the file position as writev does; the kernel
    // checks the array and its buffers.
    unsafe { raw_syscall!(Sysno::pwritev2, fd, parts, count, -1isize, -1isize, NOWAIT) as isize }
}

/// preadv2(2), at the file position if `offset` is -1
pub(crate) unsafe fn preadv2(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: i64,
    flags: c_int,
) -> isize {
    // SAFETY: preadv2(2): the kernel checks the array and its buffers, the caller's. A 64-bit kernel takes the offset
    // from its first word; the second is -1 if that is, so that the two agree.
    unsafe { raw_syscall!(Sysno::preadv2, fd, parts, count, offset, offset >> 63, flags) as isize }
}

/// recvfrom(2)
#[inline(always)]
pub(crate) unsafe fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    len: usize,
    flags: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
) -> isize {
    // SAFETY: recvfrom(2): the kernel checks every pointer, all of them the caller's.
    unsafe { raw_syscall!(Sysno::recvfrom, fd, buffer, len, flags, name, name_len) as isize }
}

/// sendto(2)
#[inline(always)]
pub(crate) unsafe fn sendto(
    fd: c_int,
    buffer: *const c_void,
    len: usize,
    flags: c_int,
    name: *const sockaddr,
    name_len: socklen_t,
) -> isize {
    // SAFETY: sendto(2): the kernel checks every pointer, all of them the caller's.
    unsafe { raw_syscall!(Sysno::sendto, fd, buffer, len, flags, name, name_len) as isize }
}

/// recvmsg(2)
pub(crate) unsafe fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> isize {
    // SAFETY: recvmsg(2): the kernel checks the header and what it points to.
    unsafe { raw_syscall!(Sysno::recvmsg, fd, message, flags) as isize }
}

/// sendmsg(2)
pub(crate) unsafe fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> isize {
    // SAFETY: sendmsg(2): the kernel checks the header and what it points to.
    unsafe { raw_syscall!(Sysno::sendmsg, fd, message, flags) as isize }
}

/// accept4(2)
pub(crate) unsafe fn accept4(
    fd: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
    flags: c_int,
) -> isize {
    // SAFETY: accept4(2): the kernel checks both pointers, which are the caller's.
    unsafe { raw_syscall!(Sysno::accept4, fd, name, name_len, flags) as isize }
}

/// connect(2)
pub(crate) unsafe fn connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> isize {
    // SAFETY: connect(2): the kernel checks the address, which is the caller's.
    unsafe { raw_syscall!(Sysno::connect, fd, name, len) as isize }
}

/// `call`, a look that does not wait, again if a signal has ended it: even one that does not wait answers `EINTR` if it finds
/// nothing and a signal has come, if only the runtime's own.
fn look(call: impl Fn() -> isize) -> isize {
    loop {
        let result = call();
        if result != errno::error(libc::EINTR) {
            return result;
        }
    }
}

/// poll(2) that looks and returns at once.
pub(crate) unsafe fn poll_now(fds: *mut libc::pollfd, count: libc::nfds_t) -> isize {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // ppoll, since newer architectures have no poll.
    // SAFETY: ppoll(2): the kernel checks the array; it writes the time left into `zero`; a null
    // mask leaves the signal mask alone.
    look(|| unsafe {
        raw_syscall!(Sysno::ppoll, fds, count, &raw const zero, std::ptr::null::<u8>(), 8) as isize
    })
}

/// select(2) for `timeout` nanoseconds, `None` for ever.
pub(crate) unsafe fn select(
    count: c_int,
    sets: [*mut libc::fd_set; 3],
    timeout: Option<u64>,
) -> isize {
    let looks = timeout == Some(0);
    let mut time = timeout.map(crate::time::timespec);
    let time = time.as_mut().map_or(std::ptr::null_mut(), |time| time as *mut libc::timespec);
    let [read, write, except] = sets;
    // pselect6, since newer architectures have no select.
    // SAFETY: pselect6(2): the kernel checks the sets, the caller's; it writes the time left into
    // `time`; a null last argument leaves the signal mask alone.
    let call = || unsafe {
        let none = std::ptr::null::<u8>();
        raw_syscall!(Sysno::pselect6, count, read, write, except, time, none) as isize
    };
    if looks { look(call) } else { call() }
}

/// epoll_wait(2) for `timeout` milliseconds, negative for ever.
pub(crate) unsafe fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    max: c_int,
    timeout: c_int,
) -> isize {
    let none = std::ptr::null::<u8>();
    // epoll_pwait, since newer architectures have no epoll_wait.
    // SAFETY: epoll_pwait(2): the kernel checks the buffer, the caller's; a null mask leaves the
    // signal mask alone.
    unsafe { raw_syscall!(Sysno::epoll_pwait, epoll, events, max, timeout, none, 8) as isize }
}

/// The signals that the calling thread blocks, one bit each from signal 1 on: rt_sigprocmask(2).
pub(crate) fn blocked_signals() -> u64 {
    let mut blocked = 0u64;
    let none = std::ptr::null::<u8>();
    // SAFETY: rt_sigprocmask(2) without a new mask writes the eight bytes of the old one.
    unsafe { raw_syscall!(Sysno::rt_sigprocmask, 0, none, &raw mut blocked, 8) };
    blocked
}

/// Makes the calling thread block exactly `mask`. rt_sigprocmask(2)
pub(crate) fn block_signals(mask: u64) {
    let none = std::ptr::null::<u8>();
    // SAFETY: rt_sigprocmask(2) reads the eight bytes of the new mask.
    unsafe { raw_syscall!(Sysno::rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, none, 8) };
}

/// Sends `signal` to the calling thread. tgkill(2)
pub(crate) fn raise(signal: c_int) {
    // SAFETY: getpid(2), gettid(2), tgkill(2) take numbers.
    unsafe {
        let (process, thread) = (raw_syscall!(Sysno::getpid), raw_syscall!(Sysno::gettid));
        raw_syscall!(Sysno::tgkill, process, thread, signal);
    }
}

/// rt_sigtimedwait(2)
///
/// # Safety
/// As the call: `left` is null or readable.
pub(crate) unsafe fn sigtimedwait(
    set: u64,
    info: &mut libc::siginfo_t,
    left: *const libc::timespec,
) -> isize {
    let info: *mut libc::siginfo_t = info;
    // SAFETY: by contract.
    unsafe { raw_syscall!(Sysno::rt_sigtimedwait, &raw const set, info, left, 8) as isize }
}

/// rt_sigsuspend(2)
///
/// # Safety
/// As the call: handlers run.
pub(crate) unsafe fn sigsuspend(mask: u64) -> isize {
    // SAFETY: by contract.
    unsafe { raw_syscall!(Sysno::rt_sigsuspend, &raw const mask, 8) as isize }
}

/// What of `events` (and of `POLLERR`, `POLLHUP`, `POLLNVAL`) holds for `fd` now.
pub(crate) fn ready(fd: c_int, events: c_short) -> c_short {
    let mut one = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: an array of one, alive for the call.
    if unsafe { poll_now(&mut one, 1) } > 0 { one.revents } else { 0 }
}

/// The status flags of the open file description, `F_GETFL` of fcntl(2).
pub(crate) fn status_flags(fd: c_int) -> isize {
    // SAFETY: fcntl(2) F_GETFL takes no pointer.
    unsafe { raw_syscall!(Sysno::fcntl, fd, libc::F_GETFL, 0) as isize }
}

/// Whether `fd` names anything: `F_GETFD` of fcntl(2).
pub(crate) fn is_open(fd: c_int) -> bool {
    // SAFETY: fcntl(2) F_GETFD takes no pointer.
    unsafe { raw_syscall!(Sysno::fcntl, fd, libc::F_GETFD, 0) as isize >= 0 }
}

/// Sets or clears `O_NONBLOCK` alone: `FIONBIO` of ioctl(2).
pub(crate) fn set_nonblocking(fd: c_int, on: bool) -> isize {
    let value = c_int::from(on);
    // SAFETY: ioctl(2) FIONBIO reads one int.
    unsafe { raw_syscall!(Sysno::ioctl, fd, libc::FIONBIO, &raw const value) as isize }
}

/// The type bits of `st_mode`, fstat(2).
pub(crate) fn file_type(fd: c_int) -> Option<libc::mode_t> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat(2) fills one `struct stat`, which has the kernel's layout on 64-bit Linux.
    let result = unsafe { raw_syscall!(Sysno::fstat, fd, status.as_mut_ptr()) as isize };
    // SAFETY: fstat succeeded and so has written the whole structure.
    (result == 0).then(|| unsafe { status.assume_init() }.st_mode & libc::S_IFMT)
}

/// Whether `path` names a FIFO, statx(2); `false` also if that cannot be found out.
///
/// # Safety
/// `path` is a string of the program's, or what the kernel will refuse.
pub(crate) unsafe fn is_fifo(directory: c_int, path: *const c_char) -> bool {
    let mut status = std::mem::MaybeUninit::<libc::statx>::uninit();
    let (at, wanted) = (status.as_mut_ptr(), libc::STATX_TYPE);
    // SAFETY: statx(2) checks the path and fills one structure.
    let result = unsafe { raw_syscall!(Sysno::statx, directory, path, 0, wanted, at) as isize };
    // SAFETY: statx succeeded and so has written the whole structure.
    result == 0
        && u32::from(unsafe { status.assume_init() }.stx_mode) & libc::S_IFMT == libc::S_IFIFO
}

/// close(2) of a descriptor of our own
pub(crate) fn close(fd: c_int) -> isize {
    // SAFETY: close(2) takes a number.
    unsafe { raw_syscall!(Sysno::close, fd) as isize }
}

/// pidfd_open(2)
pub(crate) fn pidfd_open(pid: libc::pid_t) -> isize {
    // SAFETY: pidfd_open(2) takes two numbers.
    unsafe { raw_syscall!(Sysno::pidfd_open, pid, 0) as isize }
}

/// wait4(2)
pub(crate) unsafe fn wait4(
    pid: libc::pid_t,
    status: *mut c_int,
    options: c_int,
    usage: *mut libc::rusage,
) -> isize {
    // SAFETY: wait4(2): the kernel checks both pointers, which are the caller's.
    unsafe { raw_syscall!(Sysno::wait4, pid, status, options, usage) as isize }
}

/// waitid(2), without the kernel's fifth argument
pub(crate) unsafe fn waitid(
    kind: libc::idtype_t,
    id: libc::id_t,
    info: *mut libc::siginfo_t,
    options: c_int,
) -> isize {
    // SAFETY: waitid(2): the kernel checks the pointer, which is the caller's.
    unsafe { raw_syscall!(Sysno::waitid, kind, id, info, options, std::ptr::null::<u8>()) as isize }
}

/// A socket option of a plain type, getsockopt(2), and the size that the kernel gave it.
pub(crate) fn option<T: Copy>(
    fd: c_int,
    level: c_int,
    name: c_int,
    mut value: T,
) -> Option<(T, usize)> {
    let mut len = size_of::<T>() as socklen_t;
    // SAFETY: getsockopt(2) writes at most `len` bytes into `value`. Every caller's T is made of
    // integers, for which any bytes are a value.
    let result = unsafe {
        raw_syscall!(Sysno::getsockopt, fd, level, name, &raw mut value, &raw mut len) as isize
    };
    (result == 0).then_some((value, len as usize))
}

/// An `int` of `SOL_SOCKET`, socket(7).
pub(crate) fn socket_int(fd: c_int, name: c_int) -> Option<c_int> {
    option(fd, libc::SOL_SOCKET, name, 0 as c_int).map(|(value, _)| value)
}

/// Fresh zeroed memory that is never given back, mmap(2); `None` when there is none.
pub(crate) fn zeroed(bytes: usize) -> Option<*mut c_void> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: mmap(2) of a new anonymous region at no fixed address touches nothing of ours.
    let at = unsafe { raw_syscall!(Sysno::mmap, 0, bytes, protection, flags, -1isize, 0) as isize };
    (!(-4095..=0).contains(&at)).then_some(at as *mut c_void)
}

/// Gives back what [`zeroed`] gave, munmap(2).
///
/// # Safety
/// Nobody may hold a pointer into it.
pub(crate) unsafe fn unmap(at: *mut c_void, bytes: usize) {
    // SAFETY: munmap(2) of a whole region of ours that nobody uses (the caller's contract).
    unsafe { raw_syscall!(Sysno::munmap, at, bytes) };
}

/// futex(2), all six arguments as they came.
pub(crate) unsafe fn futex(
    word: usize,
    operation: c_int,
    value: c_uint,
    timeout: usize,
    second: usize,
    value3: c_uint,
) -> isize {
    // SAFETY: futex(2): the kernel checks the addresses, which are the caller's.
    unsafe { raw_syscall!(Sysno::futex, word, operation, value, timeout, second, value3) as isize }
}

/// recvmmsg(2) without a timeout.
pub(crate) unsafe fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> isize {
    let none = std::ptr::null::<u8>();
    // SAFETY: recvmmsg(2): the kernel checks the array and what it points to.
    unsafe { raw_syscall!(Sysno::recvmmsg, fd, messages, count, flags, none) as isize }
}

/// sendmmsg(2)
pub(crate) unsafe fn sendmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
) -> isize {
    // SAFETY: sendmmsg(2): the kernel checks the array and what it points to.
    unsafe { raw_syscall!(Sysno::sendmmsg, fd, messages, count, flags) as isize }
}

/// sendfile(2)
pub(crate) unsafe fn sendfile(to: c_int, from: c_int, offset: *mut off64_t, len: usize) -> isize {
    // SAFETY: sendfile(2): the kernel checks the offset, the caller's.
    unsafe { raw_syscall!(Sysno::sendfile, to, from, offset, len) as isize }
}

/// splice(2)
pub(crate) unsafe fn splice(
    from: c_int,
    from_offset: *mut off64_t,
    to: c_int,
    to_offset: *mut off64_t,
    len: usize,
    flags: c_uint,
) -> isize {
    // SAFETY: splice(2): the kernel checks both offsets, the caller's.
    unsafe { raw_syscall!(Sysno::splice, from, from_offset, to, to_offset, len, flags) as isize }
}

/// tee(2)
pub(crate) fn tee(from: c_int, to: c_int, len: usize, flags: c_uint) -> isize {
    // SAFETY: tee(2) takes numbers.
    unsafe { raw_syscall!(Sysno::tee, from, to, len, flags) as isize }
}

/// vmsplice(2)
pub(crate) unsafe fn vmsplice(
    fd: c_int,
    parts: *const iovec,
    count: usize,
    flags: c_uint,
) -> isize {
    // SAFETY: vmsplice(2): the kernel checks the array and its buffers, the caller's.
    unsafe { raw_syscall!(Sysno::vmsplice, fd, parts, count, flags) as isize }
}

/// The bytes that a socket takes without waiting, once it has been writable: `SO_MEMINFO`.
pub(crate) fn room(fd: c_int) -> Option<usize> {
    /// `SO_MEMINFO` of asm-generic/socket.h, and the places of `SK_MEMINFO_*` (sock_diag.h) in what it
    /// answers.
    const MEMORY: c_int = 55;
    const SENDING: usize = 2;
    const LIMIT: usize = 3;
    const QUEUED: usize = 5;
    let (memory, size) = option(fd, libc::SOL_SOCKET, MEMORY, [0u32; 9])?;
    let used = memory[SENDING].max(memory[QUEUED]);
    (size > QUEUED * size_of::<u32>()).then(|| memory[LIMIT].saturating_sub(used) as usize)
}

/// How many numbers the process's descriptor table has room for now: `FDSize` of proc(5).
pub(crate) fn table_size() -> Option<usize> {
    let mut text = [0u8; 1024];
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: openat(2) of a NUL-terminated path, read(2) into a buffer of ours, close(2) of what was
    // opened here.
    let len = unsafe {
        let path = c"/proc/thread-self/status".as_ptr();
        let fd = raw_syscall!(Sysno::openat, libc::AT_FDCWD, path, flags) as isize;
        if fd < 0 {
            return None;
        }
        let len = read(fd as c_int, text.as_mut_ptr().cast(), text.len());
        raw_syscall!(Sysno::close, fd);
        usize::try_from(len).ok()?
    };
    let text = std::str::from_utf8(&text[..len]).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("FDSize:"))?;
    line.trim().parse().ok()
}

/// Last words before an abort, on standard error.
pub(crate) fn complain(text: &[u8]) {
    // SAFETY: write(2) of bytes of our own; that it may fail changes nothing any more.
    unsafe { write(2, text.as_ptr().cast(), text.len()) };
}
