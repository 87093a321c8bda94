//! Stacks by the hundred thousand: guarded, lazily committed, recycled.
//!
//! One [`Arena`] is one large reservation of address space. It is cut into **chunks** of 64 MiB, each
//! of which serves one size **class** for ever; a class is a power of two from 16 KiB to 1 GiB, and its
//! chunks are cut into equal **slots**, each aligned to its own size.
//!
//! ```text
//! reservation, up to 4 TiB, one subtraction and one compare to ask "is it in there?"
//! ├─ chunk ─┼─ chunk ─┼─ chunk ─┼ ─ ─ ─ ─ ─ ─ ─ ─ unused: no access ─ ─ ─ ─ ─ ─ ─┼── 1 GiB ──┤
//! │ 256 KiB │ 256 KiB │ 16 KiB  │ ─▶ small classes grow up     large ones down ◀─ │ own chunks│
//! └────┬────┴─────────┴─────────┴                                                 ┴───────────┘
//!      ▼ slot = address & !(size − 1)
//! ┌───────┬──────────────────────────────────────────────────────────────┐
//! │ guard │                             … the stack grows down ◀         │ top
//! └───────┴──────────────────────────────────────────────────────────────┘
//! ```
//!
//! * Memory is committed by touching it and costs what is touched. A **fresh** slot reads as zero; a
//!   recycled one holds what its last user left, and is *warm*: touching a page for the first time costs
//!   more than a thousand switches (1.7 µs, measured), so the most recently returned slot goes out first.
//! * Guards cost no kernel mapping where the kernel knows `MADV_GUARD_INSTALL` (see `guard.rs`): a million
//!   stacks stand in a handful of mappings.
//! * Equal offsets in equal slots compete for the same few cache sets. [`colour`] tells by how much
//!   to shift what one puts into a slot.
//!
//! A coroutine runs on anything that is a [`Stack`]: a slot of an arena ([`Slab`]), a mapping of its own
//! ([`Mapped`]), memory that the program supplies ([`Supplied`]).
//!
//! Parts, in reading order: `class` (sizes), `arena` (take, give, locate), `guard`, `pool` (the slots
//! of one class), `colour`, `stats`, `error`; then what a coroutine runs on: `slab` (with `global`, the
//! process's arena), `mapped`, `supplied`, `named`, `pointers`; and how a signal handler finds out about them:
//! `locate`, on a `registry`.

mod arena;
mod class;
mod colour;
mod error;
mod global;
mod guard;
mod locate;
mod mapped;
mod named;
mod pointers;
mod pool;
mod registry;
mod slab;
mod stats;
mod supplied;

pub use arena::{Arena, Options, Slot};
pub use class::{MAX_SLOT, MIN_SLOT, guard_len, slot_size};
pub use colour::{COLOURS, colour};
pub use error::Error;
pub use guard::GuardMethod;
pub use locate::{Location, locate};
pub use mapped::Mapped;
pub use named::Named;
pub(crate) use named::name_of;
pub use slab::Slab;
pub use stats::{ClassStats, Stats};
pub use supplied::Supplied;

use core::ptr::NonNull;

/// Memory that a coroutine runs on, owned by whoever has the value.
///
/// # Safety
///
/// As long as the value lives, and also when it is moved:
///
/// * the bytes from `limit` up to `top` are readable and writable, nobody else uses them, and both
///   ends stay where they are;
/// * there are at least [`MIN_STACK`] of them;
/// * whatever runs off the low end hits memory that faults, over at least a page; or whoever made the
///   stack has promised (in unsafe code) that nothing will.
///
/// If the value is leaked, the memory stays valid for as long as the type lives: for ever, for a
/// `'static` type. (A suspended coroutine may be leaked, and what runs elsewhere may refer to its frames.)
pub unsafe trait Stack {
    /// One past the highest byte; of any alignment.
    fn top(&self) -> NonNull<u8>;

    /// The lowest usable byte, above any guard.
    fn limit(&self) -> NonNull<u8>;

    /// How many bytes to leave unused at the top so that equal frames of many stacks do not fall into
    /// the same cache sets; see [`colour`]. A multiple of 64.
    #[inline]
    fn shift(&self) -> usize {
        0
    }
}

/// The least number of bytes that a [`Stack`] has.
pub const MIN_STACK: usize = 4096;
