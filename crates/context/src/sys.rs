//! The system calls of this crate, bare: memory and futexes.
//!
//! Each is one instruction, not a call into the C library: no `errno`, no cancellation point, and
//! nothing that a program could have replaced.

use core::sync::atomic::AtomicU32;
use syscalls::{Errno, Sysno, syscall};

/// `MADV_GUARD_INSTALL`, Linux 6.13; newer than the `libc` crate's list.
pub(crate) const MADV_GUARD_INSTALL: i32 = 102;

/// Reserves `len` bytes of private anonymous address space with protection `prot`, charged to
/// nobody until it is touched. mmap(2).
pub(crate) fn map(len: usize, prot: i32) -> Result<usize, Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nobody.
    unsafe { syscall!(Sysno::mmap, 0, len, prot, flags, -1_isize, 0) }
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
