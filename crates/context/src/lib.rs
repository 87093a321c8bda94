//! Registers and stacks: what a stackful coroutine is made of, and nothing else.
//!
//! * [`backend`] suspends one flow of control and resumes another: [`swap`], with a *hook* that runs
//!   on the target's stack once everything of the suspended side is saved.
//! * [`stack`] hands out guarded stacks by the hundred thousand from one reservation.
//! * [`overflow`] reports a stack that is too small, instead of a bare SIGSEGV.
//! * [`lock`] is the lock that the layers above share: it can never park a coroutine.
//!
//! The crate is `no_std`, needs no allocator, and talks to the kernel by bare system calls: a
//! program that replaces symbols of the C library (`sleave-libc` does) is never re-entered from here.
//!
//! Everything is `unsafe` where it has to be and nowhere else: [`stack::Arena`] is safe to use,
//! [`swap`] is not.
//!
//! ```
//! use core::ptr::addr_of_mut;
//! use sleave_context::{Context, stack::Arena, swap};
//!
//! struct Pair { here: Context, there: Context }
//!
//! unsafe extern "C" fn adder(data: usize, mut value: usize) -> ! {
//!     let pair = data as *mut Pair;
//!     let mut sum = 0;
//!     loop {
//!         sum += value;
//!         // SAFETY: `here` was saved by the swap that resumed us.
//!         value = unsafe { swap(addr_of_mut!((*pair).there), addr_of_mut!((*pair).here), None, sum) };
//!     }
//! }
//!
//! let arena = Arena::reserve().unwrap();
//! let stack = arena.take(64 * 1024).unwrap();
//! let mut pair = Pair { here: Context::empty(), there: Context::empty() };
//! let p = addr_of_mut!(pair);
//! // SAFETY: the stack is ours and unused; `adder` never returns and lives as long as `pair`.
//! unsafe {
//!     (*p).there = Context::new(stack.top(), adder, p as usize);
//!     assert_eq!(swap(addr_of_mut!((*p).here), addr_of_mut!((*p).there), None, 30), 30);
//!     assert_eq!(swap(addr_of_mut!((*p).here), addr_of_mut!((*p).there), None, 12), 42);
//! }
//! arena.give(stack); // `adder` is never resumed again
//! ```

#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod annotate;
pub mod backend;
pub mod coroutine;
mod fatal;
pub mod lock;
pub mod overflow;
pub mod stack;
mod sys;

pub use backend::{Backend, Context, Entry, FpControl, Hook, Native, swap};
#[cfg(feature = "alloc")]
pub use coroutine::symmetric;
pub use coroutine::{Coroutine, CoroutineState, ScopedCoroutine, Yielder};
use fatal::fatal;
