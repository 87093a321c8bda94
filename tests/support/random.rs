//! Numbers that look random and can be had again.
//!
//! SplitMix64: one addition and three xor-shifts a number, every seed is good, and the state is
//! one word. Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;

/// A generator; equal seeds give equal sequences.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `range`. The bias of the remainder is far below what a test could notice.
    pub fn within(&mut self, range: Range<usize>) -> usize {
        range.start + (self.next() % range.len() as u64) as usize
    }

    /// A generator of its own for a part of the work.
    pub fn split(&mut self) -> Random {
        Random(self.next())
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A seed that differs from run to run, for those who print it.
pub fn fresh_seed() -> u64 {
    RandomState::new().hash_one("seed")
}
