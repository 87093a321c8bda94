//! The system calls of this crate, bare: memory, futexes, and what a signal handler needs.
//!
//! Each is one instruction, not a call into the C library: no `errno`, no cancellation point, and
//! nothing that a program could have replaced.

use core::ptr::{null, null_mut};
use core::sync::atomic::AtomicU32;
#[cfg(not(target_arch = "x86_64"))]
use core::sync::atomic::{AtomicUsize, Ordering};
use syscalls::{Errno, Sysno, syscall};

/// `MADV_GUARD_INSTALL`, Linux 6.13; newer than the `libc` crate's list.
pub(crate) const MADV_GUARD_INSTALL: i32 = 102;

/// Reserves `len` bytes of private anonymous address space with protection `prot`, charged to
/// nobody until it is touched; `flags` beside those that say this. mmap(2).
pub(crate) fn map(len: usize, prot: i32, flags: i32) -> Result<usize, Errno> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nobody.
    unsafe { syscall!(Sysno::mmap, 0, len, prot, flags, -1_isize, 0) }
}

/// How much address space the process may have, if that is limited. getrlimit(2), `RLIMIT_AS`
pub(crate) fn address_space_limit() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: prlimit(2) of the caller reads no new limit and writes the old one.
    unsafe { syscall!(Sysno::prlimit64, 0, libc::RLIMIT_AS, 0usize, &raw mut limit) }.ok()?;
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur as usize)
}

/// munmap(2).
///
/// # Safety
///
/// Nobody uses the range any more, and it belongs to the caller.
pub(crate) unsafe fn unmap(addr: usize, len: usize) {
    // SAFETY: the caller's promise. It can fail only for a range that is not page-aligned, or when
    // splitting a mapping exceeds the limit of mappings: then the memory stays mapped, unused.
    let _ = unsafe { syscall!(Sysno::munmap, addr, len) };
}

/// mprotect(2).
///
/// # Safety
///
/// The range belongs to the caller, who does not take a protection away that somebody relies on.
pub(crate) unsafe fn protect(addr: usize, len: usize, prot: i32) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { syscall!(Sysno::mprotect, addr, len, prot) }.map(drop)
}

/// madvise(2).
///
/// # Safety
///
/// The range belongs to the caller, and nobody needs what the advice throws away.
pub(crate) unsafe fn advise(addr: usize, len: usize, advice: i32) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { syscall!(Sysno::madvise, addr, len, advice) }.map(drop)
}

/// Sleeps while `word` holds `value`. Returns on a wake, a change, a signal, or for no reason: the
/// caller looks again. futex(2).
pub(crate) fn futex_wait(word: &AtomicU32, value: u32) {
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel only reads the word, which lives for the borrow; no timeout.
    let _ = unsafe { syscall!(Sysno::futex, word.as_ptr(), op, value, 0) };
}

/// Wakes up to `count` sleepers on `word`. futex(2).
pub(crate) fn futex_wake(word: &AtomicU32, count: u32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the address is only a key. The lock's memory may even be gone by now, as the next holder may
    // have freed it: then the kernel finds no sleeper, or wakes one that looks again (futex(2), spurious wake-ups).
    let _ = unsafe { syscall!(Sysno::futex, word.as_ptr(), op, count) };
}

/// Writes to standard error, as far as that is possible. write(2).
pub(crate) fn complain(mut text: &[u8]) {
    while !text.is_empty() {
        // SAFETY: reads what `text` covers.
        match unsafe { syscall!(Sysno::write, libc::STDERR_FILENO, text.as_ptr(), text.len()) } {
            Ok(written) if written > 0 => text = &text[written..],
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}

/// Ends the process as abort(3) does: by SIGABRT, also if that is blocked, ignored or handled by one who returns.
pub(crate) fn abort() -> ! {
    // The kernel's sigaction: handler (SIG_DFL is 0), flags, restorer, mask.
    let default = [0_usize; 4];
    let mask = 1_u64 << (libc::SIGABRT - 1);
    // SAFETY: signals of our own process; both structures are read only, and of the size that is said.
    unsafe {
        let _ = syscall!(Sysno::rt_sigprocmask, libc::SIG_UNBLOCK, &raw const mask, 0, 8);
        raise(libc::SIGABRT);
        let _ = syscall!(Sysno::rt_sigaction, libc::SIGABRT, &raw const default, 0, 8);
        raise(libc::SIGABRT);
        // Not reached.
        let _ = syscall!(Sysno::exit_group, 128 + libc::SIGABRT);
    }
    unreachable!("exit_group(2) does not return")
}

/// Bytes of a page.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) const fn page_size() -> usize {
    4096
}

/// Bytes of a page: 4, 16 or 64 KiB on 64-bit Arm, as the kernel was built.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn page_size() -> usize {
    /// What to take where the kernel does not say: what every page size divides.
    const LARGEST: usize = 64 << 10;
    static SIZE: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: the number stands for itself, and whoever sees it late asks the kernel once more.
    match SIZE.load(Ordering::Relaxed) {
        0 => {
            let size = auxiliary(libc::AT_PAGESZ).unwrap_or(LARGEST);
            SIZE.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}

/// An entry of the auxiliary vector, what the kernel tells a program about itself: getauxval(3), proc(5). `None` if
/// there is no such entry, or no /proc.
pub(crate) fn auxiliary(kind: u64) -> Option<usize> {
    // Some 20 entries on any kernel so far.
    let mut entries = [[0_usize; 2]; 64];
    let (path, flags) = (c"/proc/self/auxv".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
    // SAFETY: open(2), read(2), close(2) with a path, a buffer and a descriptor of our own.
    let len = unsafe {
        let file = syscall!(Sysno::openat, libc::AT_FDCWD, path, flags).ok()?;
        let len = syscall!(Sysno::read, file, entries.as_mut_ptr(), size_of_val(&entries));
        let _ = syscall!(Sysno::close, file);
        len.ok()?
    };
    let entries = &entries[..len / size_of_val(&entries[0])];
    entries.iter().find(|[key, _]| *key as u64 == kind).map(|[_, value]| *value)
}

/// The calling thread's alternate signal stack, which becomes `new` if there is one. sigaltstack(2).
///
/// # Safety
///
/// The memory of `new` is a signal stack's own until another one is set.
pub(crate) unsafe fn signal_stack(new: Option<&libc::stack_t>) -> Result<libc::stack_t, Errno> {
    let new = new.map_or(null(), |new| &raw const *new);
    let mut old = libc::stack_t { ss_sp: null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: structures of our own; the caller's promise.
    unsafe { syscall!(Sysno::sigaltstack, new, &raw mut old) }.map(|_| old)
}

/// Sends `signal` to the calling thread, as the kernel knows it. tgkill(2).
pub(crate) fn raise(signal: i32) {
    // SAFETY: system calls with numbers only.
    unsafe {
        if let (Ok(process), Ok(thread)) = (syscall!(Sysno::getpid), syscall!(Sysno::gettid)) {
            let _ = syscall!(Sysno::tgkill, process, thread, signal);
        }
    }
}
