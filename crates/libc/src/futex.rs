//! Futexes: `syscall(SYS_futex, …)`, on which std, parking_lot, crossbeam and most of the rest
//! build their locks. Every other system call passes.
//!
//! Fibers that wait are kept in the runtime's table, threads in the kernel's; a word can have
//! waiters in both.
//!
//! ```text
//!   wait in a fiber, private   ──►  runtime        wake, private, whoever calls
//!   wait in a thread           ──►  kernel           1. fibers   2. the kernel, for the rest
//!   wait, shared               ──►  kernel         wake, shared  ──►  kernel
//! ```
//!
//! Nothing is lost between the two: a waiter looks at the word under its table's lock, and a
//! waker changes the word before it goes through both tables.
//!
//! - `FUTEX_REQUEUE`, `FUTEX_CMP_REQUEUE` and `FUTEX_WAKE_OP` are the kernel's; when one
//!   succeeds, the fibers on the words it concerns are woken. More of them may wake than need be,
//!   which futex(2) allows at any time.
//! - Without `FUTEX_PRIVATE_FLAG` a word may be another process's too: the kernel's alone. A
//!   fiber that waits so holds its worker, and the monitor gives the others to another.
//! - Priority inheritance, `futex_waitv` and the futex2 calls pass.
//! - A fiber reads the word itself. An address that no mapping can have gives the kernel's
//!   `EFAULT`; one that is merely unmapped faults here, in user space.
//! - What wakes with the instruction itself instead of `syscall` (glibc's own locks; a library
//!   that inlines it) is not seen here. glibc's waits are just as invisible, so the two match.
//!
//! `syscall` is variadic in C. It is defined with six words instead, since on x86-64 and AArch64
//! Linux a variadic integer travels where a fixed one does; words that the caller did not pass
//! hold whatever was in their place, as in the C library's own, and go where the kernel ignores
//! them.
//!
//! Sources: futex(2), `do_futex`, `futex_wait`, `futex_wake` of Linux; System V AMD64 psABI,
//! AAPCS64.

use std::ffi::{c_int, c_long};
use std::sync::atomic::AtomicU32;

use libc::timespec;
use sleave_runtime::interpose;
use sleave_runtime::wait::Deadline;
use sleave_runtime::wait::futex::{self, Waited};

use crate::signal::interruption;
use crate::{errno, kernel, number, time};

/// Wakes whoever waits, whatever it waits for.
const ANY: u32 = u32::MAX;
const INTERRUPTED: isize = errno::error(libc::EINTR);
/// Bits beside the command.
const OPTIONS: c_int = libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME;

/// The arguments of futex(2).
#[derive(Clone, Copy)]
struct Call {
    word: usize,
    operation: c_int,
    value: u32,
    /// A pointer to a timeout, or a count.
    timeout: usize,
    second: usize,
    value3: u32,
}

impl Call {
    fn command(&self) -> c_int {
        self.operation & !OPTIONS
    }

    fn is_private(&self) -> bool {
        self.operation & libc::FUTEX_PRIVATE_FLAG != 0
    }

    /// The kernel's turn.
    unsafe fn kernel(&self) -> isize {
        let Call { word, operation, value, timeout, second, value3 } = *self;
        // SAFETY: the caller's arguments.
        unsafe { kernel::futex(word, operation, value, timeout, second, value3) }
    }
}

/// Whether user space can have `size` bytes mapped at `address`: not the first page, not beyond
/// the half of the address space that the kernel keeps.
fn can_be_mapped(address: usize, size: usize) -> bool {
    (4096..=(1 << 47) - size).contains(&address)
}

/// `FUTEX_WAIT` and `FUTEX_WAIT_BITSET` of a fiber; `None` if it is the kernel's after all.
unsafe fn wait(call: &Call) -> Option<isize> {
    let bitset = call.command() == libc::FUTEX_WAIT_BITSET;
    let realtime = call.operation & libc::FUTEX_CLOCK_REALTIME != 0;
    // A plain wait knows no clock: ENOSYS. A word that is out of line or nowhere: EINVAL, EFAULT.
    let odd = !call.word.is_multiple_of(align_of::<u32>());
    let nowhere = !can_be_mapped(call.word, size_of::<u32>())
        || call.timeout != 0 && !can_be_mapped(call.timeout, size_of::<timespec>());
    if realtime && !bitset || odd || nowhere {
        return None;
    }
    let clock = if realtime { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC };
    let mut until = None;
    if call.timeout != 0 {
        // SAFETY: futex(2): the caller's timeout; read unaligned, as the kernel does.
        let limit = unsafe { (call.timeout as *const timespec).read_unaligned() };
        match time::nanoseconds(&limit) {
            None => return Some(errno::error(libc::EINVAL)),
            some => until = some,
        }
    }
    let mask = if bitset { call.value3 } else { ANY };
    if mask == 0 {
        return Some(errno::error(libc::EINVAL));
    }
    let word = call.word as *const AtomicU32;
    loop {
        let deadline = match until {
            None => Deadline::NEVER,
            Some(at) if bitset => time::deadline_on(clock, at),
            Some(length) => Deadline::after(length),
        };
        // SAFETY: futex(2): the caller's aligned word, readable as long as the call lasts; we are
        // in a fiber (`active`).
        return Some(match unsafe { futex::wait(word, call.value, mask, deadline) } {
            Waited::Woken => 0,
            Waited::Mismatch => errno::AGAIN,
            // The time of day was set back while the fiber slept.
            Waited::TimedOut if realtime && until.is_some_and(|at| !time::passed(clock, at)) => {
                continue;
            }
            Waited::TimedOut => errno::error(libc::ETIMEDOUT),
            Waited::Interrupted => match interruption(true) {
                Some(INTERRUPTED) => INTERRUPTED,
                // Who waits by the bare call is at no cancellation point.
                _ => continue,
            },
        });
    }
}

/// `FUTEX_WAKE` and `FUTEX_WAKE_BITSET`, from fibers and threads alike.
unsafe fn wake(call: &Call) -> isize {
    let mask = if call.command() == libc::FUTEX_WAKE_BITSET { call.value3 } else { ANY };
    // The kernel takes the number as signed and wakes one even if asked for none.
    let count = (call.value as i32).max(1);
    let odd = !call.word.is_multiple_of(align_of::<u32>());
    let mut woken = 0;
    if mask != 0 && !odd {
        woken = futex::wake(call.word, count as usize, mask) as isize;
    }
    if woken >= count as isize {
        return woken;
    }
    let rest = Call { value: (count - woken as i32) as u32, ..*call };
    // SAFETY: the caller's arguments, with a smaller count.
    let others = unsafe { rest.kernel() };
    if others >= 0 {
        woken + others
    } else if woken > 0 {
        woken
    } else {
        others
    }
}

/// The operations that wake on one word and move or wake on another.
unsafe fn requeue(call: &Call) -> isize {
    // SAFETY: the caller's arguments.
    let result = unsafe { call.kernel() };
    if result < 0 {
        return result;
    }
    let mut woken = futex::wake(call.word, usize::MAX, ANY);
    if call.command() == libc::FUTEX_WAKE_OP {
        woken += futex::wake(call.second, usize::MAX, ANY);
    }
    result + woken as isize
}

/// futex(2) as fibers and threads see it; answers as the kernel does.
///
/// # Safety
/// As futex(2).
unsafe fn futex_call(call: &Call) -> isize {
    // SAFETY: the caller's arguments, for the same operation.
    unsafe {
        if call.is_private() {
            match call.command() {
                libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET if interpose::active() => {
                    if let Some(result) = wait(call) {
                        return result;
                    }
                }
                libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => return wake(call),
                libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE | libc::FUTEX_WAKE_OP => {
                    return requeue(call);
                }
                _ => {}
            }
        }
        call.kernel()
    }
}

/// syscall(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn syscall(
    which: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    if which != libc::SYS_futex {
        // SAFETY: the caller's arguments for the same call.
        return unsafe { number::call(which, [a, b, c, d, e, f]) };
    }
    let call = Call {
        word: a,
        operation: b as c_int,
        value: c as u32,
        timeout: d,
        second: e,
        value3: f as u32,
    };
    // SAFETY: the caller's arguments for the same call of the kernel.
    errno::finish(unsafe { futex_call(&call) }) as c_long
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_can_be_mapped() {
        assert!(!can_be_mapped(0, 4));
        assert!(!can_be_mapped(4092, 4));
        assert!(can_be_mapped(4096, 4));
        assert!(can_be_mapped((1 << 47) - 4, 4));
        assert!(!can_be_mapped(1 << 47, 4));
        assert!(!can_be_mapped(usize::MAX, 16));
    }

    #[test]
    fn options_are_not_part_of_the_command() {
        let operation =
            libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME;
        let call = Call { word: 0, operation, value: 0, timeout: 0, second: 0, value3: 0 };
        assert_eq!(call.command(), libc::FUTEX_WAIT_BITSET);
        assert!(call.is_private());
        assert!(!Call { operation: libc::FUTEX_WAKE, ..call }.is_private());
    }
}
