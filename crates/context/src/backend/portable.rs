//! What the two backends over the C library have in common: a context that carries its own mail.
//!
//! The functions of the C library save and restore registers, and hand nothing over: `swapcontext`
//! has no argument for it, `siglongjmp` has one `int`. So whoever switches puts the hook and its
//! argument into the *target's* context, and the target, back on its own stack, takes them out.
//!
//! ```text
//!   A: swap(A, B, hook, arg)                                B: suspended in its own swap(B, …)
//!   ────────────────────────                                ──────────────────────────────────
//!   B.mail ← hook, arg
//!   registers → A.registers ─┐
//!   registers ← B.registers ─┴─ the C library ────────────▶ returns on B's stack
//!                                                           hook, arg ← B.mail
//!                                                           hook(arg), and B's swap returns the result
//! ```
//!
//! The target looks for its mail where it was when it was suspended, and some C libraries keep
//! pointers into what they saved: such a context **stays where it is** from being saved until it
//! is resumed.

use super::{Entry, Hook};
use core::cell::Cell;
use core::fmt;
use core::mem::MaybeUninit;

/// A suspended context: what the C library saved in an `R`, and the mail for whoever resumes.
///
/// It may be moved only while it describes nobody.
pub struct Context<R> {
    registers: MaybeUninit<R>,
    /// Where a context starts that has never run.
    start: Option<(Entry, usize)>,
    // In cells, as they are written through the `*const` that names the target of a switch. The contract
    // gives a suspended context to the one who switches to it; no one else can be looking.
    hook: Cell<Option<Hook>>,
    arg: Cell<usize>,
}

// SAFETY: a context owns nothing and is bound to no thread; it is used by unsafe functions only, whose callers
// promise what the threads of the program may do with it.
unsafe impl<R> Send for Context<R> {}
// SAFETY: as above: no safe function reads or writes through a shared reference.
unsafe impl<R> Sync for Context<R> {}

impl<R> Context<R> {
    /// A context to be saved into. Must not be switched to before that.
    pub const fn empty() -> Context<R> {
        Context {
            registers: MaybeUninit::uninit(),
            start: None,
            hook: Cell::new(None),
            arg: Cell::new(0),
        }
    }

    /// Makes `*this` an empty context that will [`begin`](Context::begin) at `entry`.
    ///
    /// # Safety
    ///
    /// `this` is valid for writes.
    pub(super) unsafe fn start_at(this: *mut Self, entry: Entry, data: usize) {
        // SAFETY: the caller's promise.
        unsafe { this.write(Context { start: Some((entry, data)), ..Context::empty() }) }
    }

    /// Where the C library saves to and restores from.
    ///
    /// # Safety
    ///
    /// `this` points at a context.
    pub(super) unsafe fn registers(this: *const Self) -> *mut R {
        // SAFETY: the caller's promise; no reference is made, so writing is up to where `this` came from.
        unsafe { (&raw const (*this).registers).cast_mut().cast() }
    }

    /// Leaves a hook and its argument for `*this`, which is about to be resumed.
    ///
    /// # Safety
    ///
    /// `this` points at a suspended context that nobody else switches to.
    #[inline]
    pub(super) unsafe fn send(this: *const Self, hook: Option<Hook>, arg: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            (*this).hook.set(hook);
            (*this).arg.set(arg);
        }
    }

    /// Takes what the resumer has left, runs the hook, and returns its result, or the argument
    /// itself without a hook.
    ///
    /// # Safety
    ///
    /// The caller runs on the context that was just resumed through `*this`.
    #[inline]
    pub(super) unsafe fn receive(this: *const Self) -> usize {
        // SAFETY: the caller's promise. Nothing of `*this` is used once the hook runs.
        let (hook, arg) = unsafe { ((*this).hook.get(), (*this).arg.get()) };
        match hook {
            None => arg,
            // SAFETY: the resumer promised that its hook may be called with its argument, on this stack.
            Some(hook) => unsafe { hook(arg) },
        }
    }

    /// What a new context does first, on its own stack.
    ///
    /// # Safety
    ///
    /// As for [`receive`](Context::receive); `*this` was made by [`start_at`](Context::start_at).
    pub(super) unsafe extern "C" fn begin(this: *const Self) -> ! {
        // SAFETY: the caller's promise. Read before the hook runs, which may do with `*this` what it likes.
        let start = unsafe { (*this).start };
        let (entry, data) = start.expect("a context that was prepared");
        // SAFETY: the caller's promise.
        let first = unsafe { Self::receive(this) };
        // SAFETY: whoever prepared the context promised that the entry may be called with its data, on this stack.
        unsafe { entry(data, first) }
    }
}

impl<R> fmt::Debug for Context<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}
