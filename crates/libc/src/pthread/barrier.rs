//! `pthread_barrier_*`: so many meet, then all go on.
//!
//! ```text
//!   0  arrived     how many of this round have come       \ changed as one 64-bit word;
//!   4  generation  the rounds so far: waiters wait on it   / the last to come makes it (0, + 1)
//!  16  inside      who is in pthread_barrier_wait
//! ```
//!
//! glibc has put the number that must meet, and whether the barrier is shared between processes, in words of its
//! own, see [`layout`].
//!
//! POSIX lets whoever returns first destroy the barrier, while the others are still on their way
//! out: `pthread_barrier_destroy` waits until nobody is inside. If an unfinished round has members, it
//! answers `EBUSY` (glibc would wait for ever).
//!
//! Sources: pthread_barrier_wait(3p), pthread_barrier_destroy(3p).

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libc::pthread_barrier_t;

use super::layout;
use super::tables::{self, Inside};
use crate::next;

/// One more generation.
const GENERATION: u64 = 1 << 32;
/// How many have arrived.
const ARRIVED: u64 = GENERATION - 1;

#[repr(C)]
struct Barrier {
    state: AtomicU64,
    _glibcs: [u32; 2],
    inside: Inside,
}

const _: () = assert!(size_of::<Barrier>() <= size_of::<pthread_barrier_t>());
const INSIDE: usize = std::mem::offset_of!(Barrier, inside);

/// Whether the word at `offset` is ours.
pub(super) const fn uses(offset: usize) -> bool {
    offset < 8 || offset == INSIDE
}

/// The barrier and how many meet there, unless it is glibc's.
///
/// # Safety
/// pthread_barrier_wait(3p): the barrier is live and initialised.
unsafe fn ours<'a>(barrier: *mut pthread_barrier_t) -> Option<(&'a Barrier, u64)> {
    layout::caller()?;
    // SAFETY: by contract.
    unsafe {
        let count = layout::BARRIER_COUNT.of(barrier.cast());
        (layout::BARRIER_SHARED.of(barrier.cast()) == 0)
            .then(|| (&*barrier.cast::<Barrier>(), u64::from(count)))
    }
}

impl Barrier {
    /// The generation: on a little-endian machine the second half.
    fn generation(&self) -> *const AtomicU32 {
        (&raw const self.state).cast::<AtomicU32>().wrapping_add(1)
    }

    fn wait(&self, count: u64) -> c_int {
        self.inside.enter();
        // AcqRel, the exchange: all that anybody of the round did before comes before all that anybody
        // does after it. Relaxed, the load and the failure: only the exchange counts.
        let mut seen = self.state.load(Ordering::Relaxed);
        let last = loop {
            let last = (seen & ARRIVED) + 1 == count;
            let new = if last { (seen & !ARRIVED).wrapping_add(GENERATION) } else { seen + 1 };
            let exchange =
                self.state.compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Relaxed);
            match exchange {
                Ok(_) => break last,
                Err(now) => seen = now,
            }
        };
        if last {
            tables::wake_all(self.generation() as usize);
        } else {
            let generation = (seen >> 32) as u32;
            // Acquire: with the exchange of the last to come.
            while (self.state.load(Ordering::Acquire) >> 32) as u32 == generation {
                // SAFETY: `inside` keeps the barrier.
                unsafe { tables::wait(self.generation(), generation, None) };
            }
        }
        self.inside.leave();
        if last { libc::PTHREAD_BARRIER_SERIAL_THREAD } else { 0 }
    }
}

/// pthread_barrier_wait(3p)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_barrier_wait(barrier: *mut pthread_barrier_t) -> c_int {
    // SAFETY: the caller's barrier.
    match unsafe { ours(barrier) } {
        Some((barrier, count)) => barrier.wait(count),
        // SAFETY: the caller's argument for the same function.
        None => unsafe { next::pthread_barrier_wait(barrier) },
    }
}

/// pthread_barrier_destroy(3p)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_barrier_destroy(barrier: *mut pthread_barrier_t) -> c_int {
    // SAFETY: the caller's barrier.
    match unsafe { ours(barrier) } {
        Some((barrier, _)) => {
            // Relaxed: those who have arrived before are ordered before by the program.
            if barrier.state.load(Ordering::Relaxed) & ARRIVED != 0 {
                return libc::EBUSY;
            }
            barrier.inside.outlast();
            0
        }
        // SAFETY: the caller's argument for the same function.
        None => unsafe { next::pthread_barrier_destroy(barrier) },
    }
}
