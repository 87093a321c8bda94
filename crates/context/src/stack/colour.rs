//! Colouring: equal offsets in equal slots, spread over the cache.
//!
//! Slots are aligned to a power of two, so the same variable of a thousand stacks has the same lowest twelve
//! address bits a thousand times over: a thousand hot lines for the eight to twelve ways of *one* set of
//! the first-level cache (64 sets of 64-byte lines), while 63 sets lie idle. Shifting what stands at the
//! top of each slot by its own multiple of 64 spreads them.
//!
//! ```text
//!   slot 0  ┌───────────────────────────────┬──┐ top
//!   slot 1  ├────────────────────────────┬──┴──┤    ← shifted by colour(index, colours)
//!   slot 2  ├─────────────────────────┬──┴─────┤
//! ```
//!
//! A shift costs memory where it pushes the used part of a stack over one more page, so: as little as does
//! the work. A thousand contexts in a ring, each switching to the next, on 16 KiB slots (`bench`, program `switch`;
//! Xeon with 48 KiB of first-level cache; medians over 9 placements): 26 ns a switch without colours, 11.3 with 8,
//! 11.2 with 16, 11.3 with 32, 11.4 with 64, and no better with the same colours further apart. Sixteen, at
//! most 960 bytes, leaves room for contexts that touch more than one line each.
//!
//! The number of a slot is scrambled by Fibonacci hashing (Knuth, The Art of Computer Programming, vol. 3, §6.4), as
//! slot numbers of large classes are multiples of a power of two themselves.

/// The number of colours to use unless there is a reason for another one.
pub const COLOURS: usize = 16;

/// The shift, in bytes, of whatever stands at the top of slot `index`: a multiple of 64 below
/// `64 * colours`, the same for every call, evenly spread over the slots of a class. Zero or one
/// colour means no shift.
#[inline]
pub const fn colour(index: u32, colours: usize) -> usize {
    let scrambled = index.wrapping_mul(0x9e37_79b9) as u64;
    // The upper half of a 32 × 32 bit product: maps the hash onto 0..colours by its best bits.
    let colour = (scrambled * colours as u32 as u64) >> 32;
    colour as usize * 64
}
