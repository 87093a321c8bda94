//! Which stack an address lies in.
//!
//! Every [`Arena`](super::Arena) and every [`Mapped`](super::Mapped) enters its extent into one list for the whole
//! process and takes it out before its memory goes. A signal handler that has nothing but an address looks there.

use super::Error;
use super::class::{CHUNK_SHIFT, Class, MIN_SHIFT};
use super::registry::{Entry, Registry};
use crate::sys::page_size;
use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicU8, Ordering};

/// Where an address lies: in which stack, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Lowest address of the stack, the guard's.
    pub base: usize,
    /// Its size in bytes, the guard included.
    pub size: usize,
    /// Bytes at the low end that are guard.
    pub guard_len: usize,
    /// Is the address in the guard? A fault there is a stack overflow.
    pub in_guard: bool,
    /// The number that gives the stack its [`colour`](super::colour): [`Slot::index`](super::Slot::index).
    pub index: u32,
}

impl Location {
    /// The lowest usable byte, as [`Stack::limit`](super::Stack::limit).
    pub fn limit(&self) -> usize {
        self.base + self.guard_len
    }

    /// One past the highest byte, as [`Stack::top`](super::Stack::top).
    pub fn top(&self) -> usize {
        self.base + self.size
    }
}

/// The stack that an address lies in, guard included: of any arena's slots that ever were in use, and of the mapped
/// ones. `None` for all other memory.
///
/// Async-signal-safe: it takes no lock and touches no stack.
pub fn locate(addr: usize) -> Option<Location> {
    EXTENTS.find(|words| Extent::from_words(words).locate(addr))
}

static EXTENTS: Registry = Registry::new();

/// Address space that holds stacks.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    pub base: usize,
    pub len: usize,
    /// Where an arena's chunk table is: for each chunk a byte, its class's code or zero. Zero instead of an address: it
    /// is all one stack, with a page of guard.
    pub table: usize,
}

impl Extent {
    /// Enters the extent into the list of the process.
    pub(super) fn enter(self) -> Result<&'static Entry, Error> {
        EXTENTS.enter([self.base, self.len, self.table])
    }

    /// Takes out what [`enter`](Extent::enter) has entered; before the memory goes.
    pub(super) fn leave(entry: &'static Entry) {
        EXTENTS.leave(entry);
    }

    fn from_words([base, len, table]: [usize; 3]) -> Extent {
        Extent { base, len, table }
    }

    pub(super) fn contains(self, addr: usize) -> bool {
        addr.wrapping_sub(self.base) < self.len
    }

    pub(super) fn locate(self, addr: usize) -> Option<Location> {
        if !self.contains(addr) {
            return None;
        }
        if self.table == 0 {
            return Some(location(self.base, self.len, page_size(), index(self.base), addr));
        }
        // SAFETY: the table has a byte for every chunk, is used through atomics only, and is there as long as the
        // extent is in use: the address is of a stack in it, or wild.
        let code = unsafe {
            let chunk = (addr - self.base) >> CHUNK_SHIFT;
            &*with_exposed_provenance::<AtomicU8>(self.table + chunk)
        };
        // Relaxed: an address in a slot came from that slot's owner, who got it through the class's lock,
        // after the chunk was entered. A wild address may find the chunk not entered yet: the truth as well.
        let class = Class::from_code(code.load(Ordering::Relaxed))?;
        let base = addr & !(class.size() - 1);
        let number = ((base - self.base) >> MIN_SHIFT) as u32;
        Some(location(base, class.size(), class.guard(), number, addr))
    }
}

/// The number of a stack that is no slot: as different for neighbours as slots' numbers are.
pub(super) fn index(base: usize) -> u32 {
    (base / page_size()) as u32
}

fn location(base: usize, size: usize, guard_len: usize, index: u32, addr: usize) -> Location {
    Location { base, size, guard_len, in_guard: addr - base < guard_len, index }
}
