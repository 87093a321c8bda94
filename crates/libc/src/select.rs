//! Waiting for sets of descriptors: `select pselect`, and `__select`, an old name of the first.
//!
//! The kernel is asked first, without a timeout, with the program's own sets: that settles what is
//! ready, what is no descriptor (`EBADF`) and a count below zero (`EINVAL`). If nothing is ready it
//! has emptied the sets, so they are copied before. The fiber then parks on every member at once, and
//! after each event the sets are filled again and the kernel is asked again: what counts as readable,
//! writable or exceptional is never decided here.
//!
//! ```text
//!   asked ◀── copy ── the program's sets ──▶ kernel ── found ─▶ answer
//!     └── fill again ────────▲                 └── none ─▶ park on all members ──┐
//!                            └────────────── an event ◀──────────────────────────┘
//! ```
//!
//! **How many bits count.** The kernel looks at `count` bits, but not at more than the process's
//! descriptor table has room for; so does this, since programs pass `sysconf(_SC_OPEN_MAX)` with sets
//! that are shorter. Up to `FD_SETSIZE` a set has room for them all. Beyond, the kernel's limit is
//! asked for, and the sets may have any size.
//!
//! **The time left** is written back by `select`, as Linux does, and not by `pselect`. A closed
//! member ends the wait with `EBADF`. A signal mask: see `poll.rs`. An address that is not mapped
//! faults here instead of giving `EFAULT`, as `select`'s timeout does in glibc.
//!
//! Sources: select(2), select_tut(2); `fs/select.c` of Linux (`core_sys_select`, `poll_select_finish`).

use std::ffi::c_int;
use std::os::fd::RawFd;

use libc::{FD_SETSIZE, fd_set, sigset_t, timespec, timeval};
use sleave_runtime::interpose;
use sleave_runtime::reactor::{self, Direction, Watched};
use sleave_runtime::wait::Deadline;

use crate::handoff::{Call, hand_off};
use crate::poll::lets_signals_in;
use crate::signal::interruption;
use crate::{cancel, errno, kernel, next, time};

/// A set is made of these; on a little-endian machine as well as on a big-endian one.
type Word = libc::c_ulong;
const BITS: usize = Word::BITS as usize;

/// Words of an `fd_set`.
const FEW: usize = FD_SETSIZE / BITS;

/// The sets of one call: readable, writable, exceptional.
type Sets = [*mut fd_set; 3];

/// What the program asked for, as it was before the first look.
struct Asked {
    sets: Sets,
    /// Words of each set that the kernel reads and writes.
    words: usize,
    few: [[Word; FEW]; 3],
    /// Used instead of `few` for larger sets.
    many: [Vec<Word>; 3],
}

impl Asked {
    /// # Safety
    /// Each set that is not null must have room for `count` bits.
    unsafe fn copy(sets: Sets, count: usize) -> Asked {
        let words = count.div_ceil(BITS);
        let mut few = [[0; FEW]; 3];
        let mut many = [const { Vec::new() }; 3];
        for (i, set) in sets.iter().enumerate().filter(|(_, set)| !set.is_null()) {
            // SAFETY: the caller's sets. They may stand anywhere, as the kernel takes them.
            let word = |at| unsafe { set.cast::<Word>().add(at).read_unaligned() };
            if words <= FEW {
                (0..words).for_each(|at| few[i][at] = word(at));
            } else {
                many[i] = (0..words).map(word).collect();
            }
        }
        Asked { sets, words, few, many }
    }

    fn words(&self, set: usize) -> &[Word] {
        let many = &self.many[set];
        if many.is_empty() { &self.few[set][..self.words.min(FEW)] } else { many }
    }

    /// Puts the program's sets back to what they were.
    fn refill(&self) {
        for (i, set) in self.sets.iter().enumerate().filter(|(_, set)| !set.is_null()) {
            for (at, word) in self.words(i).iter().enumerate() {
                // SAFETY: they were read from there (`copy`).
                unsafe { set.cast::<Word>().add(at).write_unaligned(*word) };
            }
        }
    }

    /// What an event may come from: the members below `count`. One that is only asked for its
    /// exceptional conditions has them among its events for reading.
    fn interests(&self, count: usize) -> Vec<(RawFd, Direction)> {
        let mut interests = Vec::new();
        for at in 0..self.words {
            let word = |set| self.words(set).get(at).copied().unwrap_or(0);
            let (read, write) = (word(0) | word(2), word(1));
            let mut left = read | write;
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let fd = at * BITS + bit as usize;
                if fd < count && is_member(fd) {
                    let mut add = |set: Word, direction| {
                        if set >> bit & 1 != 0 {
                            interests.push((fd as RawFd, direction));
                        }
                    };
                    add(read, Direction::Read);
                    add(write, Direction::Write);
                }
            }
        }
        interests
    }
}

/// Whether the kernel looks at `fd`, which it has not called bad: one that is not open lies beyond
/// its table, which has room for 64 at least.
fn is_member(fd: usize) -> bool {
    fd < 64 || kernel::is_open(fd as c_int)
}

/// `select` in a fiber until `deadline`, or without waiting; answers as the kernel does.
///
/// # Safety
/// As select(2).
unsafe fn select_until(count: c_int, sets: Sets, deadline: Option<Deadline>) -> isize {
    let mut bits = usize::try_from(count).unwrap_or(0);
    if bits > FD_SETSIZE {
        match kernel::table_size() {
            Some(size) => bits = bits.min(size),
            // No proc(5): the kernel's own wait, which blocks the worker.
            None => {
                let left = deadline.map_or(Some(0), time::left);
                // SAFETY: the program's sets.
                return unsafe { kernel::select(count, sets, left) };
            }
        }
    }
    // SAFETY: select(2): the program's sets have room for the bits that the kernel reads.
    let asked = unsafe { Asked::copy(sets, bits) };
    // SAFETY: the program's sets.
    let look = || unsafe { kernel::select(count.min(bits as c_int), sets, Some(0)) };
    let found = look();
    let Some(deadline) = deadline.filter(|_| found == 0) else { return found };
    let again = || {
        asked.refill();
        Some(look()).filter(|&found| found != 0)
    };
    if let Some(error) = cancel::stops_before() {
        return error;
    }
    match reactor::watch(&asked.interests(bits), deadline, || interruption(false), again) {
        Watched::Seen(found) => found,
        Watched::TimedOut => 0,
        Watched::Interrupted(error) => {
            asked.refill();
            error
        }
        Watched::Closed => {
            // An error leaves the sets alone.
            asked.refill();
            errno::error(libc::EBADF)
        }
    }
}

/// The deadline of a call that waits for `timeout` nanoseconds, `None` for ever; no deadline if it is
/// not to wait.
fn deadline(timeout: Option<u64>) -> Option<Deadline> {
    match timeout {
        None => Some(Deadline::NEVER),
        Some(0) => None,
        Some(nanoseconds) => Some(Deadline::after(nanoseconds)),
    }
}

/// select(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel; a
    // timeout that is not null can be read and written.
    unsafe {
        if !interpose::active() {
            return next::select(count, read, write, except, timeout);
        }
        let sets = [read, write, except];
        let Some(time) = timeout.as_mut() else {
            return errno::finish_int(select_until(count, sets, Some(Deadline::NEVER)));
        };
        let Some(nanoseconds) = length(time) else {
            return errno::finish_int(errno::error(libc::EINVAL));
        };
        let deadline = deadline(Some(nanoseconds));
        let result = select_until(count, sets, deadline);
        if let Some(left) = deadline.and_then(time::left) {
            time.tv_sec = (left / 1_000_000_000) as libc::time_t;
            time.tv_usec = (left % 1_000_000_000 / 1000) as libc::suseconds_t;
        }
        errno::finish_int(result)
    }
}

/// A timeout in nanoseconds; `None` if it is below zero. A second may have more than a million
/// microseconds.
fn length(time: &timeval) -> Option<u64> {
    let (seconds, micros) = (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_usec).ok()?);
    Some(seconds.saturating_mul(1_000_000).saturating_add(micros).saturating_mul(1000))
}

/// pselect(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pselect(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel; a
    // timeout that is not null is readable.
    unsafe {
        let call = || next::pselect(count, read, write, except, timeout, mask);
        if !interpose::active() {
            return call();
        }
        if lets_signals_in(mask) {
            return hand_off(Call::Waits, call);
        }
        let result = match time::timeout(timeout) {
            Ok(timeout) => select_until(count, [read, write, except], deadline(timeout)),
            Err(error) => error,
        };
        errno::finish_int(result)
    }
}

/// `select`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { select(count, read, write, except, timeout) }
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;

    use super::*;

    #[test]
    fn lengths_of_timeouts() {
        let of = |tv_sec, tv_usec| length(&timeval { tv_sec, tv_usec });
        assert_eq!(of(0, 0), Some(0));
        assert_eq!(of(1, 2), Some(1_000_002_000));
        assert_eq!(of(1, 2_000_000), Some(3_000_000_000), "select takes what pselect refuses");
        assert_eq!(of(-1, 0), None);
        assert_eq!(of(0, -1), None);
        assert_eq!(of(i64::MAX, 999_999), Some(u64::MAX));
    }

    #[test]
    fn members_are_what_is_set_below_the_count() {
        for bits in [64, 65, 1024, 5000] {
            let mut set = vec![0 as Word; bits / BITS + 1];
            let wanted = [0usize, 3, 63, 64, 1023, 4999, 5000];
            for fd in wanted.into_iter().filter(|fd| fd / BITS <= bits / BITS) {
                set[fd / BITS] |= 1 << (fd % BITS);
            }
            let sets = [set.as_mut_ptr().cast(), null_mut(), null_mut()];
            // SAFETY: a set with room for that many bits.
            let asked = unsafe { Asked::copy(sets, bits) };
            let before = set.clone();
            set.fill(0);
            asked.refill();
            let words = bits.div_ceil(BITS);
            assert_eq!(set[..words], before[..words]);
            let low: Vec<_> =
                asked.interests(bits).iter().map(|i| i.0).filter(|&fd| fd < 64).collect();
            assert_eq!(low, [0, 3, 63], "what is open, or may be");
        }
    }

    #[test]
    fn exceptional_conditions_are_waited_for_as_reading() {
        let mut sets = [[0 as Word; FEW]; 3];
        (sets[1][0], sets[2][0]) = (0b01, 0b11);
        let at = sets.each_mut().map(|set| set.as_mut_ptr().cast::<fd_set>());
        // SAFETY: three sets of the ordinary size.
        let interests = unsafe { Asked::copy(at, 2) }.interests(2);
        assert_eq!(interests, [(0, Direction::Read), (0, Direction::Write), (1, Direction::Read)]);
    }
}
