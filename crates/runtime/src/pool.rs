//! The pool of fibers: stacks and identities that are made once and used again and again.
//!
//! A started fiber occupies a *slot*: its stack, and what makes it a thread for the C library. When it ends the
//! slot is kept for the next one, so that a fiber's life costs some hundred nanoseconds rather than the
//! microseconds that new memory and a new identity take. There is one pool in the process; it works by
//! itself, and nobody needs this module who does not want to look or to choose.
//!
//! A free slot is **warm** as long as it has its identity and memory, and **empty** when the memory has been returned to
//! the kernel. That happens
//!
//! * by itself: every two seconds half of what has not been needed in that time goes back, down to 64 slots of
//!   a size; and what stays free that long keeps no more than its top 32 KiB;
//! * at once, when a fiber ends and as many slots are warm as the [limit] allows;
//! * for all of them, on [`trim`].
//!
//! Where fibers are OS threads there is no pool: the counts are 0, and a limit is kept but means nothing.
//!
//! # Examples
//!
//! ```
//! use sleave_runtime::{pool, run, spawn};
//!
//! run(|| {
//!     let before = pool::statistics();
//!     for _ in 0..100 {
//!         spawn(|| ()).join().unwrap();
//!     }
//!     let after = pool::statistics();
//!     // One after the other they need one slot, or a few where several workers pass them around.
//! #   if sleave_runtime::identity().is_ok() {
//!     assert_eq!((after.made - before.made) + (after.reused - before.reused), 100);
//! #   }
//! });
//! ```

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fiber::{known_space, stock};
use crate::runtime::setting;

/// What the pool holds, and what has happened so far.
///
/// The numbers are read while the runtimes go on: each was right a moment ago, and where nothing moves all
/// are right together. A fiber gives its slot back a moment after it can be joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Slots of fibers that have begun and not ended.
    pub in_use: usize,
    /// Free slots that are kept with their identity and memory.
    pub warm: usize,
    /// Free slots whose memory has been returned: they are address space, and are made anew when needed.
    pub empty: usize,
    /// How many times a slot was made: memory touched for the first time, and an identity that is nobody's.
    pub made: u64,
    /// How many fibers began on a warm slot. All that have begun are `made + reused`.
    pub reused: u64,
    /// How many times a slot's memory was returned.
    pub trimmed: u64,
}

/// What the pool holds, and what has happened so far. Costs a look at each processor; counting costs fibers
/// nothing to speak of.
pub fn statistics() -> Statistics {
    let Some(space) = known_space() else { return Statistics::default() };
    let counted = space.count();
    let alive = counted.made.saturating_sub(counted.trimmed);
    Statistics {
        in_use: usize::try_from(alive).unwrap_or(usize::MAX).saturating_sub(counted.warm),
        warm: counted.warm,
        empty: counted.empty,
        made: counted.made,
        reused: counted.reused,
        trimmed: counted.trimmed,
    }
}

/// Whether the limit has been set, by the program or the environment.
static CHOSEN: AtomicBool = AtomicBool::new(false);

/// At most so many slots are kept warm; `None`: no limit.
///
/// Until [`set_limit`] says otherwise it is what `SLEAVE_POOL` in the environment says. (If that is not a number,
/// `None` here, and an error from whoever makes the first runtime.)
pub fn limit() -> Option<usize> {
    // What is wrong with it is reported by `RuntimeBuilder::build`.
    let _ = limit_from_environment();
    Some(stock::limit()).filter(|&limit| limit < stock::NO_LIMIT)
}

/// Keeps at most `limit` free slots warm from now on, in the whole process; `None`: any number, which is the default
/// if `SLEAVE_POOL` is not in the environment. What is warm beyond that is returned before this function does.
///
/// With 0 nothing is used again: each fiber gets new memory and an identity that is nobody's, and leaves
/// neither behind. What a limit holds down is memory; fibers that run at the same time are not counted.
///
/// A worker may keep up to 32 of these places free for itself for some seconds, so with several workers fewer
/// slots than allowed may be warm.
///
/// # Examples
///
/// ```
/// use sleave_runtime::pool;
///
/// pool::set_limit(Some(1_000));
/// assert_eq!(pool::limit(), Some(1_000));
/// assert!(pool::statistics().warm <= 1_000);
/// ```
pub fn set_limit(limit: Option<usize>) {
    // Relaxed: who asks the environment at the same moment may win or lose, as if it had come before or after.
    CHOSEN.store(true, Ordering::Relaxed);
    stock::set_limit(limit.unwrap_or(stock::NO_LIMIT), known_space());
}

/// Returns the memory of all slots that are warm now to the kernel, and says how many there were.
///
/// It takes about a microsecond for each, in which a calling fiber occupies its worker. Fibers that end meanwhile may
/// leave warm ones behind. Not for signal handlers.
///
/// # Examples
///
/// ```
/// use sleave_runtime::{pool, run, scope};
///
/// run(|| scope(|s| (0..1_000).for_each(|_| drop(s.spawn(sleave_runtime::yield_now)))));
/// let returned = pool::trim();
/// println!("the memory of {returned} stacks has gone back");
/// ```
pub fn trim() -> usize {
    known_space().map_or(0, |space| space.trim())
}

/// Takes the limit from the environment, once, unless the program has set one.
///
/// # Errors
/// `InvalidInput` if it is not a number; then the next call tries again.
pub(crate) fn limit_from_environment() -> io::Result<()> {
    // Relaxed: see `set_limit`.
    if CHOSEN.load(Ordering::Relaxed) {
        return Ok(());
    }
    let limit = setting("SLEAVE_POOL", 0)?;
    // Relaxed: as above.
    if !CHOSEN.swap(true, Ordering::Relaxed)
        && let Some(limit) = limit
    {
        stock::set_limit(limit, known_space());
    }
    Ok(())
}
