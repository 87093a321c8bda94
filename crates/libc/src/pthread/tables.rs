//! Waiting on a word and waking on it, for fibers and threads alike.
//!
//! Fibers wait in the runtime's table, threads in the kernel's (futex(2)). Whoever wakes goes to
//! both, unless it knows that no thread waits:
//!
//! ```text
//!   a thread that waits              whoever wakes
//!   (1) word: "somebody waits"       (a) word: free, found "somebody waits"
//!   (2) THREADS + 1                  (b) THREADS = 0?  the fibers' table alone
//!   (3) the kernel compares the word     else          both, each first in turn
//! ```
//!
//! If (b) reads 0, step (2) comes later in the one order of the sequentially consistent steps, so (3) finds the word of (a) and the
//! thread does not sleep. So fibers among themselves make no system call.
//!
//! To wake *one*, a table must be asked first. Were it always the fibers', a thread could wait for ever while fibers pass
//! a lock round; so the two take turns. Within each, the order is that of coming.
//!
//! Spurious ends are allowed: every caller looks at its word again.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use libc::{clockid_t, timespec};
use sleave_runtime::interpose;
use sleave_runtime::wait::Deadline;
use sleave_runtime::wait::futex::{self, Waited};

use crate::{errno, kernel, time};

/// Wakes whoever waits, whatever it waits for.
const ANY: u32 = u32::MAX;

/// Threads that wait in the kernel, or are about to.
static THREADS: AtomicUsize = AtomicUsize::new(0);
/// Whose turn it is.
static TURNS: AtomicU32 = AtomicU32::new(0);

/// An absolute time on a clock at which a wait gives up.
#[derive(Clone, Copy)]
pub(super) struct Until {
    clock: clockid_t,
    at: timespec,
}

impl Until {
    /// # Safety
    /// `at` may be read.
    pub(super) unsafe fn new(clock: clockid_t, at: *const timespec) -> Until {
        // SAFETY: by contract.
        Until { clock, at: unsafe { *at } }
    }

    /// `EINVAL` for nanoseconds that are none.
    pub(super) fn check(&self) -> Result<(), c_int> {
        if (0..1_000_000_000).contains(&self.at.tv_nsec) { Ok(()) } else { Err(libc::EINVAL) }
    }

    /// Before 1970, or before the machine was started.
    pub(super) fn is_negative(&self) -> bool {
        self.at.tv_sec < 0
    }
}

/// Whether the calls that name a clock may name this one; else they answer `EINVAL`.
pub(super) fn knows_clock(clock: clockid_t) -> bool {
    clock == libc::CLOCK_REALTIME || clock == libc::CLOCK_MONOTONIC
}

/// Waits while `*word` is `expected`, until it is woken or the time is over. May end for no reason.
///
/// # Safety
/// `word` is readable during the call. `until` has passed [`Until::check`].
pub(super) unsafe fn wait(word: *const AtomicU32, expected: u32, until: Option<&Until>) -> Waited {
    if until.is_some_and(Until::is_negative) {
        return Waited::TimedOut;
    }
    // SAFETY: by contract.
    unsafe {
        if interpose::active() {
            wait_as_fiber(word, expected, until)
        } else {
            wait_as_thread(word, expected, until)
        }
    }
}

unsafe fn wait_as_fiber(word: *const AtomicU32, expected: u32, until: Option<&Until>) -> Waited {
    let until = until.map(|until| (until.clock, time::nanoseconds(&until.at).unwrap_or(0)));
    loop {
        let deadline = until.map_or(Deadline::NEVER, |(clock, at)| time::deadline_on(clock, at));
        // SAFETY: by contract; we are in a fiber.
        let waited = unsafe { futex::wait(word, expected, ANY, deadline) };
        match until {
            // The time of day was set back while the fiber slept.
            Some((clock, at)) if waited == Waited::TimedOut && !time::passed(clock, at) => {}
            _ => return waited,
        }
    }
}

/// The wait of a thread that is no fiber, or of a fiber that holds its thread.
unsafe fn wait_as_thread(word: *const AtomicU32, expected: u32, until: Option<&Until>) -> Waited {
    thread_waits();
    // SAFETY: by contract.
    let waited = unsafe { wait_in_kernel(word, expected, until) };
    thread_waits_no_more();
    waited
}

/// Before [`wait_in_kernel`].
pub(super) fn thread_waits() {
    // SeqCst, both: (2) of the essay; the kernel's look at the word comes after.
    THREADS.fetch_add(1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
}

/// After [`wait_in_kernel`].
pub(super) fn thread_waits_no_more() {
    // Relaxed: whoever still counts this thread makes a system call in vain.
    THREADS.fetch_sub(1, Ordering::Relaxed);
}

/// As [`wait`], in the kernel, between [`thread_waits`] and [`thread_waits_no_more`].
///
/// # Safety
/// As for [`wait`].
pub(super) unsafe fn wait_in_kernel(
    word: *const AtomicU32,
    expected: u32,
    until: Option<&Until>,
) -> Waited {
    let (clock, at) = until.map_or((0, 0), |until| {
        let realtime = until.clock == libc::CLOCK_REALTIME;
        let clock = if realtime { libc::FUTEX_CLOCK_REALTIME } else { 0 };
        (clock, &raw const until.at as usize)
    });
    let operation = libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG | clock;
    // SAFETY: futex(2): the word is readable, the time is null or a timespec.
    let result = unsafe { kernel::futex(word as usize, operation, expected, at, 0, ANY) };
    const TIMED_OUT: isize = errno::error(libc::ETIMEDOUT);
    match result {
        TIMED_OUT => Waited::TimedOut,
        errno::AGAIN => Waited::Mismatch,
        // Also EINTR: a signal's handler has run, and locks wait on.
        _ => Waited::Woken,
    }
}

/// Wakes threads of this process alone; how many.
fn wake_threads(address: usize, count: c_int) -> isize {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: futex(2): a private wake takes the address for a name, and reads nothing there.
    unsafe { kernel::futex(address, operation, count as u32, 0, 0, 0) }
}

fn no_thread_waits() -> bool {
    // SeqCst, both: (a) and (b) of the essay.
    fence(Ordering::SeqCst);
    THREADS.load(Ordering::SeqCst) == 0
}

/// Wakes one that waits at `address`, thread or fiber. Nothing is read there: the memory may be
/// gone.
pub(super) fn wake_one(address: usize) {
    if no_thread_waits() {
        futex::wake(address, 1, ANY);
        return;
    }
    // Relaxed: any order of turns will do.
    if TURNS.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
        if wake_threads(address, 1) <= 0 {
            futex::wake(address, 1, ANY);
        }
    } else if futex::wake(address, 1, ANY) == 0 {
        wake_threads(address, 1);
    }
}

/// Wakes all that wait at `address`. Nothing is read there.
pub(super) fn wake_all(address: usize) {
    futex::wake(address, usize::MAX, ANY);
    if !no_thread_waits() {
        wake_threads(address, c_int::MAX);
    }
}

/// As [`wake_one`], where threads wait in glibc's code, uncounted, and the caller may be a signal
/// handler that has interrupted anything.
pub(super) fn wake_one_uncounted(address: usize) {
    let fiber = |address| {
        if interpose::active() {
            futex::wake(address, 1, ANY) == 1
        } else {
            futex::wake_in_handler(address)
        }
    };
    // Relaxed: as above.
    if TURNS.fetch_add(1, Ordering::Relaxed).is_multiple_of(8) {
        if wake_threads(address, 1) <= 0 {
            fiber(address);
        }
    } else if !fiber(address) {
        wake_threads(address, 1);
    }
}

/// In the child of a fork: nobody waits.
pub(super) fn forget() {
    // Relaxed: the child has one thread.
    THREADS.store(0, Ordering::Relaxed);
}

/// The number of those who are inside a call on an object that another may want to destroy: what a
/// condition and a barrier have in common.
///
/// `leave` is a leaver's last access to the object; `outlast` returns when there is none to come.
#[repr(transparent)]
pub(super) struct Inside(AtomicU32);

/// Somebody waits for the object to be left.
const AWAITED: u32 = 1 << 31;

impl Inside {
    pub(super) const fn new() -> Inside {
        Inside(AtomicU32::new(0))
    }

    pub(super) fn enter(&self) {
        // Relaxed: ordered by whatever else the caller does to the object.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        // Relaxed: the caller's own entries, and those ordered before it, are seen.
        self.0.load(Ordering::Relaxed) == 0
    }

    pub(super) fn leave(&self) {
        let address = &raw const self.0 as usize;
        // Release: the destroyer comes after all that was done inside.
        if self.0.fetch_sub(1, Ordering::Release) == AWAITED | 1 {
            wake_all(address);
        }
    }

    pub(super) fn outlast(&self) {
        loop {
            // Acquire pairs with `leave`.
            let inside = self.0.fetch_or(AWAITED, Ordering::Acquire) | AWAITED;
            if inside == AWAITED {
                // Relaxed: nobody else is here.
                self.0.store(0, Ordering::Relaxed);
                return;
            }
            // SAFETY: the word is borrowed.
            unsafe { wait(&self.0, inside, None) };
        }
    }
}
