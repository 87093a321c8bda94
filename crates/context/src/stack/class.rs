//! Size classes: every slot is a power of two, aligned to itself.
//!
//! Hence a slot's base is one mask away from any address in it, and a free slot fits every later
//! request of its class: the arena cannot fragment within a class. Rounding up wastes address space
//! only, as what is not touched is not committed.

use super::Error;
use crate::sys::page_size;

/// log2 of the smallest slot where pages have 4 KiB.
pub(super) const MIN_SHIFT: u32 = 14;
/// log2 of the largest slot.
pub(super) const MAX_SHIFT: u32 = 30;
/// log2 of a chunk, the unit in which a class grows.
pub(super) const CHUNK_SHIFT: u32 = 26;

/// Bytes of a chunk.
pub(super) const CHUNK: usize = 1 << CHUNK_SHIFT;
/// How many classes there are.
pub(super) const CLASSES: usize = (MAX_SHIFT - MIN_SHIFT + 1) as usize;

/// The smallest slot: 16 KiB. (Where the kernel's pages are larger than 4 KiB, four of them.)
pub const MIN_SLOT: usize = 1 << MIN_SHIFT;
/// The largest slot: 1 GiB.
pub const MAX_SLOT: usize = 1 << MAX_SHIFT;

/// A size class: log2 of its slots' size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    shift: u32,
}

impl Class {
    /// The smallest class whose slots have `size` bytes, the guard included.
    pub(super) fn of_size(size: usize) -> Result<Class, Error> {
        if size == 0 {
            return Err(Error::Zero);
        }
        if size > MAX_SLOT {
            return Err(Error::TooLarge { requested: size, limit: MAX_SLOT });
        }
        // Four pages at least, so that most of a slot is not guard.
        let size = size.max(MIN_SLOT).max(4 * page_size());
        Ok(Class { shift: size.next_power_of_two().trailing_zeros() })
    }

    /// The class that a byte of the chunk table names; zero, an unused chunk, names none.
    pub(super) const fn from_code(code: u8) -> Option<Class> {
        if code == 0 { None } else { Some(Class { shift: code as u32 }) }
    }

    /// The class's byte in the chunk table; never zero.
    pub(super) const fn code(self) -> u8 {
        self.shift as u8
    }

    /// The class's place in an array of [`CLASSES`].
    pub(super) const fn position(self) -> usize {
        (self.shift - MIN_SHIFT) as usize
    }

    /// The class at a place in an array of [`CLASSES`].
    pub(super) const fn at(position: usize) -> Class {
        Class { shift: MIN_SHIFT + position as u32 }
    }

    /// Bytes of a slot.
    pub(super) const fn size(self) -> usize {
        1 << self.shift
    }

    /// Bytes of the guard at a slot's low end.
    #[inline]
    pub(super) fn guard(self) -> usize {
        // A frame larger than the guard can step over it, unless the compiler probes (Rust does, C
        // on request). More guard costs address space only, so: a sixteenth, a page to 64 KiB.
        (self.size() / 16).clamp(page_size(), 64 << 10)
    }

    /// What the class takes from the reservation at a time: a chunk, or a slot that is larger.
    pub(super) const fn unit(self) -> usize {
        if self.size() > CHUNK { self.size() } else { CHUNK }
    }
}

/// The size of the slot that [`Arena::take`](super::Arena::take) gives for `size` bytes: the next power of two, at
/// least [`MIN_SLOT`]. The guard is part of it, see [`guard_len`].
pub fn slot_size(size: usize) -> Result<usize, Error> {
    Class::of_size(size).map(Class::size)
}

/// Bytes at the low end of a slot for `size` bytes that are guard: a sixteenth, from a page to 64 KiB.
pub fn guard_len(size: usize) -> Result<usize, Error> {
    Class::of_size(size).map(Class::guard)
}
