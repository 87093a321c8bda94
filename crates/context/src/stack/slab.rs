//! A pooled stack: a slot of an arena that returns by itself.
//!
//! ```text
//!   Slab ──drop──▶ free slots of its class ──new──▶ Slab      the warmest first; no system call
//! ```
//!
//! To take one and to give it back is a lock and an array each way: about 25 ns together, where a mapping of its own
//! takes microseconds before the first page is touched. There is no cache beside the pool: in a crate without
//! thread-locals it would need a lock too, and who runs a stack again and again keeps the value.

use super::{Arena, COLOURS, Error, MIN_SLOT, Slot, Stack, colour};
use core::fmt;
use core::ptr::NonNull;

/// A stack from an [`Arena`], given back when dropped.
///
/// ```
/// use sleave_context::stack::{Slab, Stack};
///
/// let stack = Slab::new(64 * 1024)?;
/// assert_eq!(stack.size(), 64 * 1024);
/// assert!(stack.top().as_ptr() as usize - stack.limit().as_ptr() as usize >= 60 * 1024);
/// drop(stack); // the next one of this size gets the same, warm memory
/// # Ok::<(), sleave_context::stack::Error>(())
/// ```
///
/// A `Slab<'static>` may be leaked: it stays valid for ever. One of a borrowed arena is valid for as long as the
/// borrow, even if it is leaked, and no longer: when the arena is dropped, its memory is gone.
pub struct Slab<'a> {
    /// The slot's base; below it, where a base has zeros, [`FRESH`] and the code of the class. With
    /// the arena that is the whole [`Slot`], in two words: so a slab goes from hand to hand in registers.
    place: NonNull<u8>,
    arena: &'a Arena,
}

/// The bit for a slot that reads as zero; class codes lie below.
const FRESH: usize = 1 << 7;

// SAFETY: as for the slot, of which it is another form.
unsafe impl Send for Slab<'_> {}
// SAFETY: likewise.
unsafe impl Sync for Slab<'_> {}

impl Slab<'static> {
    /// What [`Slab::default`] takes: 256 KiB, the guard included. Only what is touched costs memory, and
    /// ordinary Rust code and TLS libraries fit. Code that is known to need little does with 64 KiB, 16 KiB at least.
    pub const DEFAULT_SIZE: usize = 256 << 10;

    /// A stack of at least `size` bytes, the guard included, from the arena of the whole process.
    ///
    /// # Errors
    ///
    /// Those of [`Arena::global`] and [`Arena::take`].
    #[inline]
    pub fn new(size: usize) -> Result<Slab<'static>, Error> {
        Slab::from_arena(Arena::global()?, size)
    }
}

impl<'a> Slab<'a> {
    /// A stack of at least `size` bytes, the guard included, from `arena`.
    ///
    /// # Errors
    ///
    /// Those of [`Arena::take`].
    #[inline]
    pub fn from_arena(arena: &'a Arena, size: usize) -> Result<Slab<'a>, Error> {
        let slot = arena.take(size)?;
        let fresh = if slot.fresh() { FRESH } else { 0 };
        let place = slot.base().wrapping_add(fresh | usize::from(slot.code()));
        // SAFETY: inside of the slot, hence not null.
        Ok(Slab { place: unsafe { NonNull::new_unchecked(place) }, arena })
    }

    /// Bytes, the guard included: a power of two.
    #[inline]
    pub fn size(&self) -> usize {
        self.copy().size()
    }

    /// Bytes below the lowest usable one that are guard.
    #[inline]
    pub fn guard_len(&self) -> usize {
        self.copy().guard_len()
    }

    /// Did every byte read as zero when it was taken? See [`Slot::fresh`].
    #[inline]
    pub fn fresh(&self) -> bool {
        self.copy().fresh()
    }

    /// The slot's number in its arena. See [`Slot::index`].
    #[inline]
    pub fn index(&self) -> u32 {
        self.copy().index()
    }

    /// The slot once more; only one of the two may be given back.
    #[inline]
    fn copy(&self) -> Slot {
        let below = self.place.addr().get() & (MIN_SLOT - 1);
        let base = self.place.as_ptr().wrapping_sub(below);
        self.arena.slot_at(base, (below & (FRESH - 1)) as u8, below & FRESH != 0)
    }
}

// SAFETY: a slot's memory is readable and writable above its guard, belongs to whoever has the slot, and lies
// where it lies; the smallest has three pages of it. Leaked, it stays taken for as long as its arena
// lives, which is borrowed for at least the life of the type.
unsafe impl Stack for Slab<'_> {
    #[inline]
    fn top(&self) -> NonNull<u8> {
        // SAFETY: the end of a mapping is not null.
        unsafe { NonNull::new_unchecked(self.copy().top()) }
    }

    #[inline]
    fn limit(&self) -> NonNull<u8> {
        // SAFETY: within the slot, hence not null.
        unsafe {
            NonNull::new_unchecked({
                let slot = self.copy();
                slot.base().add(slot.guard_len())
            })
        }
    }

    #[inline]
    fn shift(&self) -> usize {
        colour(self.copy().index(), COLOURS)
    }
}

impl Default for Slab<'static> {
    /// A stack of [`Slab::DEFAULT_SIZE`] from the arena of the whole process.
    ///
    /// # Panics
    ///
    /// If there is none to be had; [`Slab::new`] returns the error instead.
    fn default() -> Slab<'static> {
        Slab::new(Slab::DEFAULT_SIZE).unwrap_or_else(|error| panic!("no stack: {error}"))
    }
}

impl Drop for Slab<'_> {
    #[inline]
    fn drop(&mut self) {
        self.arena.give(self.copy());
    }
}

impl fmt::Debug for Slab<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slab").field(&self.copy()).finish()
    }
}
