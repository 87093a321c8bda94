//! What an arena holds, in numbers.

use super::class::CLASSES;

/// The slots of one size class. `live + free + fresh = slots`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Bytes of a slot.
    pub size: usize,
    /// Slots in the hands of users, per-worker caches included.
    pub live: usize,
    /// Slots that were used and given back, trimmed or not.
    pub free: usize,
    /// Those of the free that were trimmed: they hold no memory and read as zero.
    pub trimmed: usize,
    /// Slots of the last chunk that were never used.
    pub fresh: usize,
    /// All slots of the class so far.
    pub slots: usize,
}

/// A snapshot of an arena. Each class's numbers fit together; the classes are looked at one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of address space reserved.
    pub reserved: usize,
    /// Bytes of it made accessible, in use or not.
    pub accessible: usize,
    /// By size, smallest first.
    pub classes: [ClassStats; CLASSES],
}

impl Stats {
    /// Slots in the hands of users, over all classes.
    pub fn live(&self) -> usize {
        self.classes.iter().map(|class| class.live).sum()
    }

    /// Slots given back and waiting for the next user, over all classes.
    pub fn free(&self) -> usize {
        self.classes.iter().map(|class| class.free).sum()
    }
}
