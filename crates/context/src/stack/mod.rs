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
//! Parts, in reading order: `class` (sizes), `arena` (take, give, locate), `guard`, `pool` (the slots
//! of one class), `colour`, `stats`, `error`.

mod arena;
mod class;
mod colour;
mod error;
mod guard;
mod pool;
mod stats;

pub use arena::{Arena, Location, Options, Slot};
pub use class::{MAX_SLOT, MIN_SLOT, guard_len, slot_size};
pub use colour::{COLOURS, colour};
pub use error::Error;
pub use guard::GuardMethod;
pub use stats::{ClassStats, Stats};
