//! The switch: the one primitive under every coroutine, fiber and scheduler of this project.
//!
//! # What a backend provides
//!
//! Each backend is a sibling file with these names; exactly one is compiled and re-exported here.
//!
//! | name | what it is |
//! |---|---|
//! | [`Context`] | `repr(C)`: the registers of a suspended flow of control, half a cache line. `empty()`, `new(top, entry, data)` |
//! | [`swap`] | saves here into `from`, restores `to`, and runs the hook on `to`'s stack |
//! | [`FpControl`] | the floating-point control state, which `swap` leaves alone (see there) |
//!
//! # The contract of `swap(from, to, hook, arg)`
//!
//! 1. Everything of the caller that a call must preserve is saved in `*from` and on its own stack.
//! 2. `*to` is read; from here on nothing of the caller is needed any more, nor is `*to`.
//! 3. **On the target's stack** `hook(arg)` runs, if there is a hook.
//! 4. The target's own last `swap` returns the hook's result, or `arg` itself without a hook. A
//!    context that never ran enters its [`Entry`] with that value as `first`.
//!
//! Because 3 comes after 1, the hook may do with `from` whatever it likes: put it into a queue from
//! which another thread resumes it at once, mark it parked, free the stack that it ran on. The two
//! races of every scheduler without it (a context resumed before it is saved; a stack freed
//! while it is stood on) cannot be written down.
//!
//! ```text
//!      stack of A                     stack of B
//!   ┌──────────────┐               ┌──────────────┐
//!   │ frames of A  │               │ frames of B  │
//!   │ swap(A, B,…) │── registers ─▶│  … in swap   │  B's last swap, suspended
//!   └──────────────┘   into A;     │  hook(arg)   │  runs here: A is complete, nobody is on it
//!                      from B      └──────┬───────┘
//!                                         ▼ its result is what B's swap returns
//! ```
//!
//! # What unwinds
//!
//! A panic may unwind within one context, up to its entry, and no further: an [`Entry`] and a
//! [`Hook`] are `extern "C"`, which turns a panic that would leave them into an abort. Debuggers,
//! profilers and backtraces walk from any point of a context to its entry and stop there.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{Context, FpControl, swap};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("sleave-context has no backend for this processor: see src/arch/mod.rs");

/// What runs on the target's stack right after a switch; its result is what the target receives.
///
/// It must not unwind (a panic aborts), and must not switch away from the context it runs on
/// to anything that could resume that same context: the context is not suspended.
pub type Hook = unsafe extern "C" fn(usize) -> usize;

/// Where a new context starts: `data` from [`Context::new`], and the value of the swap (or the
/// result of its hook) that entered the context. It leaves by switching away for the last time.
pub type Entry = unsafe extern "C" fn(data: usize, first: usize) -> !;
