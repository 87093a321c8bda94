//! Backends: the ways to suspend one flow of control and resume another.
//!
//! # What a backend provides
//!
//! Each is a sibling file with a type of its own that implements [`Backend`]. All that the target has
//! can be used side by side in one program; [`Native`] is the one to use.
//!
//! | backend | how | where |
//! |---|---|---|
//! | `X86_64` | inline assembly | x86-64, System V ABI |
//! | `Aarch64` | inline assembly | 64-bit Arm, AAPCS64 |
//! | `Ucontext` | `swapcontext(3)`, which saves the signal mask as well: a system call | glibc, feature `ucontext` |
//! | `Sigjmp` | `sigsetjmp(3)`, which does not; a little assembly | either processor, feature `sigjmp` |
//!
//! # Swap with a hook
//!
//! [`Backend::swap`]`(from, to, hook, arg)`:
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
//! # Resume and suspend
//!
//! The other shape is the asymmetric one: whoever *resumes* a context is where it goes when it
//! *suspends*, as with a call and its return. [`Backend::resume`] and [`Backend::suspend`] go over a
//! [`Link`], which holds both sides and lies where the resumed context begins. There is no hook, and
//! two words are passed. Processors predict calls and returns in pairs, so a backend can make
//! this faster than two swaps; and backtraces go on from the context into whoever resumed it.
//!
//! # What unwinds
//!
//! A panic may unwind within one context, up to its entry, and no further: an [`Entry`] and a
//! [`Hook`] are `extern "C"`, which turns a panic that would leave them into an abort. Debuggers,
//! profilers and backtraces walk from any point of a context to its entry and stop there; those of
//! a linked context walk on into its resumer.
//!
//! # What is not switched
//!
//! The floating-point control state (see [`FpControl`]) and the signal mask (except by `Ucontext`, which
//! switches both), `errno` and everything else that belongs to the thread.

/// Directives about unwind tables. They assemble only within a function that has some, and no source can ask whether it
/// will: whoever turns them off (`-C panic=abort -C force-unwind-tables=no`, without debug information) says so
/// as well, with `--cfg sleave_no_unwind_tables`.
#[cfg(not(sleave_no_unwind_tables))]
macro_rules! tables {
    ($($directive:literal),* $(,)?) => { concat!($($directive),*) };
}
#[cfg(sleave_no_unwind_tables)]
macro_rules! tables {
    ($($directive:literal),* $(,)?) => {
        ""
    };
}

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{Aarch64 as Native, Context, FpControl, swap};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{Context, FpControl, X86_64 as Native, swap};

#[cfg(any(feature = "sigjmp", all(feature = "ucontext", target_env = "gnu")))]
mod portable;
#[cfg(feature = "sigjmp")]
pub mod sigjmp;
#[cfg(all(feature = "ucontext", target_env = "gnu"))]
pub mod ucontext;
#[cfg(feature = "sigjmp")]
pub use sigjmp::Sigjmp;
#[cfg(all(feature = "ucontext", target_env = "gnu"))]
pub use ucontext::Ucontext;

#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
compile_error!("sleave-context has no backend for this processor: see src/backend/mod.rs");

/// What runs on the target's stack right after a switch; its result is what the target receives.
///
/// It must not unwind (a panic aborts), and must not switch away from the context it runs on
/// to anything that could resume that same context: the context is not suspended.
pub type Hook = unsafe extern "C" fn(usize) -> usize;

/// Where a new context starts: `data` from [`Backend::prepare`], and the value of the swap or
/// resume (or the result of its hook) that entered the context. It leaves by switching away for the
/// last time.
pub type Entry = unsafe extern "C" fn(data: usize, first: usize) -> !;

/// The memory of a stack: from `limit` up to `top`.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Lowest usable byte, above any guard.
    pub limit: *mut u8,
    /// One past the highest usable byte, of any alignment.
    pub top: *mut u8,
}

/// Two words that go from one side of a [`Link`] to the other; what they mean is up to both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The word that is handed over: a value, or the address of one.
    pub word: usize,
    /// What kind of message it is.
    pub tag: usize,
}

/// Both sides of an asymmetric context.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Link<B: Backend> {
    /// Whoever resumed the context last; valid while it runs.
    pub resumer: B::Context,
    /// The context; valid while it is suspended.
    pub own: B::Context,
    /// The tag of the message under way, where it does not fit into a register.
    tag: usize,
}

impl<B: Backend> Link<B> {
    /// A link whose two sides are yet to be prepared.
    pub fn empty() -> Link<B> {
        Link { resumer: B::empty(), own: B::empty(), tag: 0 }
    }
}

/// A way to switch. The module documentation has the contract.
///
/// # Safety
///
/// An implementation keeps that contract: whoever is switched to goes on exactly where it was
/// suspended, with everything that a function call preserves.
pub unsafe trait Backend: Sized + 'static {
    /// The backend's name, for people.
    const NAME: &'static str;

    /// The registers of a suspended flow of control. It owns nothing.
    type Context;

    /// A context to be saved into. Must not be switched to before that.
    fn empty() -> Self::Context;

    /// Makes `*context` one that, switched to for the first time, calls `entry(data, value)` on the
    /// stack `bounds`.
    ///
    /// # Safety
    ///
    /// `context` is valid for writes, and stays where it is from now on. The memory of `bounds` must be
    /// writable, and a stack of this context's own from the first switch until nobody will switch to it any more.
    unsafe fn prepare(context: *mut Self::Context, bounds: Bounds, entry: Entry, data: usize);

    /// Suspends the caller into `*from` and resumes `*to`; on `to`'s stack `hook(arg)` runs first.
    /// Returns when somebody switches to `*from`, with what their hook returned, or their `arg`
    /// if they gave none.
    ///
    /// `from` and `to` may be the same: then the hook runs right here, and its result is returned.
    ///
    /// # Safety
    ///
    /// * `from` is valid for writes and nobody else uses it until the hook runs; from then on it
    ///   describes the caller, stays where it is, and may be switched to **once**, from any thread.
    /// * `to` is valid for reads and describes a suspended context (prepared or saved by a swap)
    ///   that nobody else switches to. What the other side wrote to `*to` must be visible here: whoever
    ///   publishes a context to another thread does so with release, and the taker acquires.
    /// * `hook` must be sound to call with `arg`, on `to`'s stack.
    /// * If `from` is resumed on another thread, what the caller and every frame above it hold must bear that.
    unsafe fn swap(
        from: *mut Self::Context,
        to: *const Self::Context,
        hook: Option<Hook>,
        arg: usize,
    ) -> usize;

    /// Makes `link.own` a context that, resumed for the first time, calls `entry(data, word)` on
    /// the stack `bounds`, linked to its resumer.
    ///
    /// # Safety
    ///
    /// As for [`prepare`](Backend::prepare); `link` lies outside of `bounds`.
    #[inline]
    unsafe fn prepare_linked(link: *mut Link<Self>, bounds: Bounds, entry: Entry, data: usize) {
        // SAFETY: the caller's promises.
        unsafe { Self::prepare(&raw mut (*link).own, bounds, entry, data) }
    }

    /// Resumes `link.own`; returns when that suspends or exits, with its message.
    ///
    /// A context that never ran receives the word only.
    ///
    /// # Safety
    ///
    /// `link.own` is suspended, and has not exited; the rest as for [`swap`](Backend::swap).
    #[inline]
    unsafe fn resume(link: *mut Link<Self>, message: Message) -> Message {
        // SAFETY: the caller's promises; the tag is written and read by turns.
        unsafe {
            (*link).tag = message.tag;
            let resumer = &raw mut (*link).resumer;
            let word = Self::swap(resumer, &raw const (*link).own, None, message.word);
            Message { word, tag: (*link).tag }
        }
    }

    /// Suspends the caller, which is `link.own`, and goes back to whoever resumed it; returns when
    /// it is resumed again, with that message.
    ///
    /// # Safety
    ///
    /// The caller runs on `link.own`, as the last one that was resumed on this thread; the rest as for
    /// [`swap`](Backend::swap).
    #[inline]
    unsafe fn suspend(link: *mut Link<Self>, message: Message) -> Message {
        // SAFETY: the caller's promises; the tag is written and read by turns.
        unsafe {
            (*link).tag = message.tag;
            let own = &raw mut (*link).own;
            let word = Self::swap(own, &raw const (*link).resumer, None, message.word);
            Message { word, tag: (*link).tag }
        }
    }

    /// Leaves `link.own` for good.
    ///
    /// # Safety
    ///
    /// As for [`suspend`](Backend::suspend); `link.own` is not resumed any more.
    #[inline]
    unsafe fn exit(link: *mut Link<Self>, message: Message) -> ! {
        // SAFETY: the caller's promises.
        unsafe { Self::suspend(link, message) };
        unreachable!("a context that has exited was resumed")
    }
}
