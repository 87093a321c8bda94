//! `sem_*`: semaphores of one process.
//!
//! glibc's own words and rules, so that threads wait in glibc's code: a thread's `sem_wait` is a
//! cancellation point, and a signal ends it with `EINTR`.
//!
//! ```text
//!   0  value    the count, on which waiters wait while it is 0
//!   4  waiters  how many have said that they wait, or are about to
//!   8  shared   not zero: between processes
//! ```
//!
//! Value and waiters are changed as one 64-bit word. Who posts raises the value and sees in the same step whether somebody waits.
//! That step is its last access: who takes the count may destroy the semaphore at once.
//!
//! `sem_post` is async-signal-safe, also in a handler that has interrupted the runtime; see
//! [`super::tables::wake_one_uncounted`]. `sem_trywait` and `sem_getvalue` never wait: they are glibc's.
//!
//! Sources: sem_overview(7), sem_wait(3), sem_post(3), signal-safety(7), `nptl/sem_waitcommon.c`.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libc::{clockid_t, sem_t, timespec};
use sleave_runtime::interpose;
use sleave_runtime::wait::futex::Waited;

use super::layout;
use super::tables::{self, Until};
use crate::signal::interruption;
use crate::{cancel, errno, next};

/// Bytes whose rules are known here.
pub(super) const OURS: usize = size_of::<Semaphore>();
/// One waiter.
const WAITER: u64 = 1 << 32;
const VALUE: u64 = WAITER - 1;
/// `SEM_VALUE_MAX`
const MOST: u64 = i32::MAX as u64;

/// The value in the low half, the waiters in the high one.
#[repr(transparent)]
struct Semaphore(AtomicU64);

/// The semaphore, if it belongs to this process alone and its words are known.
///
/// # Safety
/// sem_post(3): the semaphore is live and initialised.
unsafe fn ours<'a>(semaphore: *mut sem_t) -> Option<&'a Semaphore> {
    layout::caller()?;
    // SAFETY: by contract.
    unsafe {
        let shared = layout::SEMAPHORE_SHARED.of(semaphore.cast::<c_void>());
        (shared == 0).then(|| &*semaphore.cast::<Semaphore>())
    }
}

impl Semaphore {
    /// The word on which waiters wait: the value, on a little-endian machine the first.
    fn value(&self) -> *const AtomicU32 {
        (&raw const self.0).cast()
    }

    fn post(&self) -> isize {
        let address = self.value() as usize;
        // Relaxed: only the exchange counts.
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            if seen & VALUE == MOST {
                return errno::error(libc::EOVERFLOW);
            }
            // Release: who takes the count comes after this.
            match self.0.compare_exchange_weak(seen, seen + 1, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        if seen >= WAITER {
            tables::wake_one_uncounted(address);
        }
        0
    }

    /// Takes one of the count and `also` from the word; `false` if there is none.
    fn take(&self, also: u64) -> bool {
        // Relaxed: only the exchange counts.
        let mut seen = self.0.load(Ordering::Relaxed);
        while seen & VALUE != 0 {
            // Acquire: with the Release of `post`.
            match self.0.compare_exchange_weak(
                seen,
                seen - 1 - also,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// A fiber's wait. Answers as the kernel does.
    fn wait(&self, until: Option<&Until>) -> isize {
        if self.take(0) {
            return 0;
        }
        if let Some(error) = cancel::stops_before() {
            return error;
        }
        // Relaxed: the exchanges on this word are in one order: a later `post` sees the waiter, an
        // earlier one has left a count.
        self.0.fetch_add(WAITER, Ordering::Relaxed);
        while !self.take(WAITER) {
            // SAFETY: sem_wait(3): the semaphore outlives the call.
            let error = match unsafe { tables::wait(self.value(), 0, until) } {
                Waited::TimedOut => Some(errno::error(libc::ETIMEDOUT)),
                Waited::Interrupted => interruption(true),
                Waited::Woken | Waited::Mismatch => None,
            };
            if let Some(error) = error {
                self.0.fetch_sub(WAITER, Ordering::Relaxed);
                return error;
            }
        }
        0
    }
}

/// sem_post(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sem_post(semaphore: *mut sem_t) -> c_int {
    // SAFETY: the caller's semaphore.
    match unsafe { ours(semaphore) } {
        Some(semaphore) => errno::finish_int(semaphore.post()),
        // SAFETY: the caller's argument for the same function.
        None => unsafe { next::sem_post(semaphore) },
    }
}

/// The semaphore, if a fiber calls and it is [`ours`].
///
/// # Safety
/// As for [`ours`].
unsafe fn a_fibers<'a>(semaphore: *mut sem_t) -> Option<&'a Semaphore> {
    if !interpose::active() {
        return None;
    }
    // SAFETY: by contract.
    unsafe { ours(semaphore) }
}

/// sem_wait(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sem_wait(semaphore: *mut sem_t) -> c_int {
    // SAFETY: the caller's semaphore.
    match unsafe { a_fibers(semaphore) } {
        Some(semaphore) => errno::finish_int(semaphore.wait(None)),
        // SAFETY: the caller's argument for the same function.
        None => unsafe { next::sem_wait(semaphore) },
    }
}

/// sem_timedwait(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sem_timedwait(semaphore: *mut sem_t, at: *const timespec) -> c_int {
    // SAFETY: the caller's semaphore and time.
    unsafe {
        match a_fibers(semaphore) {
            Some(semaphore) => wait_until(semaphore, libc::CLOCK_REALTIME, at),
            None => next::sem_timedwait(semaphore, at),
        }
    }
}

/// sem_clockwait(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sem_clockwait(
    semaphore: *mut sem_t,
    clock: clockid_t,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's semaphore and time.
    unsafe {
        match a_fibers(semaphore) {
            Some(semaphore) => wait_until(semaphore, clock, at),
            None => next::sem_clockwait(semaphore, clock, at),
        }
    }
}

/// glibc looks at clock and time first, even if it need not wait.
unsafe fn wait_until(semaphore: &Semaphore, clock: clockid_t, at: *const timespec) -> c_int {
    // SAFETY: the caller's time.
    let until = unsafe { Until::new(clock, at) };
    errno::finish_int(if !tables::knows_clock(clock) || until.check().is_err() {
        errno::error(libc::EINVAL)
    } else {
        semaphore.wait(Some(&until))
    })
}
