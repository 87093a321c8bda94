//! A list that a signal handler reads while other threads write it.
//!
//! ```text
//!   first block (static)                       next block (mapped when needed, never unmapped)
//!  ┌──────┬───────────┬───────────┬─ ─ ─┐     ┌──────┬───────────┬─ ─ ─┐
//!  │ next ├ version,  │ version,  │     ├────▶│ next │ version,  │     │
//!  │      │ 3 words   │ 3 words   │     │     │      │ 3 words   │     │
//!  └──────┴───────────┴───────────┴─ ─ ─┘     └──────┴───────────┴─ ─ ─┘
//! ```
//!
//! Writers take a lock. Readers take none, and look at every entry: that is a handler for SIGSEGV,
//! once in a program's life.
//!
//! # Invariants
//!
//! * An entry is in use while its version is odd. Its words change only while it is even, and each use has
//!   another version: a reader who finds the same odd version before and after has read one use's words.
//! * A reader skips an entry that changes under its eyes. What it looks for is in use, by the one that asks,
//!   and does not change.
//! * Blocks are never freed: an address of an entry, once seen, stays good.
//!
//! The version is a sequence lock: Hans-J. Boehm, "Can Seqlocks Get Along with Programming Language Memory Models?"
//! (2012), whose fences these are.

use super::Error;
use crate::lock::Lock;
use crate::sys;
use core::ptr::{null, null_mut, with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, fence};

/// What an entry holds; their meaning is up to the list.
pub(super) type Words = [usize; 3];

/// A place in a list, as [`Registry::enter`] returns it.
pub(super) struct Entry {
    version: AtomicUsize,
    /// In an entry that is free, the first is the address of the next one.
    words: [AtomicUsize; 3],
}

const BLOCK: usize = 16 << 10;
const ENTRIES: usize = BLOCK / size_of::<Entry>() - 1;

/// All zero is a block without entries in use.
#[repr(C, align(32))]
struct Block {
    next: AtomicPtr<Block>,
    entries: [Entry; ENTRIES],
}

const _: () = assert!(size_of::<Block>() == BLOCK);

pub(super) struct Registry {
    first: Block,
    writers: Lock<Writers>,
}

struct Writers {
    /// The first of the entries that were used and are free.
    free: *const Entry,
    /// The last block; null stands for the first one.
    last: *const Block,
    /// Entries of the last block that were never used begin here.
    unused: usize,
}

// SAFETY: the pointers lead to entries and blocks that live for ever, and are used under the lock.
unsafe impl Send for Writers {}

impl Entry {
    const fn empty() -> Entry {
        Entry { version: AtomicUsize::new(0), words: [const { AtomicUsize::new(0) }; 3] }
    }

    /// The words, if the entry is in use and stays so while they are read.
    fn read(&self) -> Option<Words> {
        // Acquire: the words of this use, or of a later one, are seen.
        let version = self.version.load(Ordering::Acquire);
        if version & 1 == 0 {
            return None;
        }
        // Relaxed: whether they belong together is found out below.
        let words = [0, 1, 2].map(|i: usize| self.words[i].load(Ordering::Relaxed));
        // Acquire: if one of them was written for a later use, then the end of this one is seen now; pairs
        // with the fence in `enter`.
        fence(Ordering::Acquire);
        (self.version.load(Ordering::Relaxed) == version).then_some(words)
    }
}

impl Registry {
    pub(super) const fn new() -> Registry {
        Registry {
            first: Block {
                next: AtomicPtr::new(null_mut()),
                entries: [const { Entry::empty() }; ENTRIES],
            },
            writers: Lock::new(Writers { free: null(), last: null(), unused: 0 }),
        }
    }

    /// Adds an entry.
    pub(super) fn enter(&'static self, words: Words) -> Result<&'static Entry, Error> {
        let mut writers = self.writers.lock();
        let entry = self.free_entry(&mut writers)?;
        // Release: whoever sees one of these words also sees that the use before has ended.
        fence(Ordering::Release);
        for (place, word) in entry.words.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        // Relaxed: read under the lock. Release: whoever sees the new version sees the words.
        let version = entry.version.load(Ordering::Relaxed);
        entry.version.store(version.wrapping_add(1), Ordering::Release);
        Ok(entry)
    }

    /// Takes out what [`enter`](Registry::enter) has added, once.
    pub(super) fn leave(&'static self, entry: &'static Entry) {
        let mut writers = self.writers.lock();
        // Relaxed: written under the lock. The fence in `enter` puts it before the next use's words.
        let version = entry.version.load(Ordering::Relaxed);
        debug_assert!(version & 1 == 1, "an entry leaves once");
        entry.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        entry.words[0].store(writers.free.expose_provenance(), Ordering::Relaxed);
        writers.free = entry;
    }

    /// The first answer that `look` has to the words of an entry. Async-signal-safe if `look` is.
    pub(super) fn find<R>(&'static self, mut look: impl FnMut(Words) -> Option<R>) -> Option<R> {
        let mut block = &self.first;
        loop {
            if let Some(found) = block.entries.iter().filter_map(Entry::read).find_map(&mut look) {
                return Some(found);
            }
            // Acquire: pairs with the release in `free_entry`, so that the block is seen as it was mapped.
            // SAFETY: null, or a block, which lives for ever.
            block = unsafe { block.next.load(Ordering::Acquire).as_ref() }?;
        }
    }

    fn free_entry(&'static self, writers: &mut Writers) -> Result<&'static Entry, Error> {
        // SAFETY: null, or an entry, which lives for ever.
        if let Some(entry) = unsafe { writers.free.as_ref() } {
            // Relaxed: written under the lock.
            writers.free = with_exposed_provenance(entry.words[0].load(Ordering::Relaxed));
            return Ok(entry);
        }
        // SAFETY: null, or a block, which lives for ever.
        let mut last = unsafe { writers.last.as_ref() }.unwrap_or(&self.first);
        if writers.unused == ENTRIES {
            let addr = sys::map(BLOCK, libc::PROT_READ | libc::PROT_WRITE, 0);
            let block = with_exposed_provenance_mut::<Block>(addr.map_err(Error::from_kernel)?);
            // Release: the handler that follows the pointer sees the block as it was mapped, all zero.
            last.next.store(block, Ordering::Release);
            // SAFETY: mapped for ever, aligned to pages, and all zero is a block.
            last = unsafe { &*block };
            (writers.last, writers.unused) = (last, 0);
        }
        writers.unused += 1;
        Ok(&last.entries[writers.unused - 1])
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use core::sync::atomic::AtomicBool;
    use std::thread::scope;
    use std::vec::Vec;

    #[test]
    fn what_is_read_was_entered_together() {
        static LIST: Registry = Registry::new();
        let done = AtomicBool::new(false);
        scope(|scope| {
            scope.spawn(|| {
                for round in 1..=1_000_000 {
                    let entry = LIST.enter([round; 3]).unwrap();
                    LIST.leave(entry);
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                let torn = |words: Words| (words != [words[0]; 3]).then_some(words);
                assert_eq!(LIST.find(torn), None);
            }
        });
    }

    #[test]
    fn entries_are_found_in_every_block_and_reused_when_free() {
        static LIST: Registry = Registry::new();
        const COUNT: usize = 3 * ENTRIES + 1;
        let find = |number: usize| LIST.find(|words| (words[0] == number).then_some(words));
        let blocks = || {
            let mut next = LIST.first.next.load(Ordering::Relaxed);
            let mut count = 1;
            // SAFETY: null, or a block, which lives for ever.
            while let Some(block) = unsafe { next.as_ref() } {
                (next, count) = (block.next.load(Ordering::Relaxed), count + 1);
            }
            count
        };
        for round in 0..3 {
            let numbers = (1..=COUNT).map(|number| round * COUNT + number);
            let entered: Vec<_> =
                numbers.map(|n| (n, LIST.enter([n, n + 1, n + 2]).unwrap())).collect();
            for (number, _) in entered.iter().step_by(50) {
                assert_eq!(find(*number), Some([*number, number + 1, number + 2]));
            }
            for (number, entry) in entered {
                LIST.leave(entry);
                assert!(number % 50 > 0 || find(number).is_none());
            }
            assert_eq!(blocks(), 4);
        }
    }
}
