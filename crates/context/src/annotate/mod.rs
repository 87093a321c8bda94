//! Annotations: what Valgrind and AddressSanitizer have to be told about stacks and switches.
//!
//! Both follow a program's stack pointer and keep a second memory in which each byte of the first has a
//! state. Neither expects the stack pointer to leave for another stack. Left alone,
//!
//! * **Valgrind** takes a switch to a near stack for a frame of that size, pushed or popped, and from then on
//!   believes that what lies between is garbage: false reports in correct programs, and warnings about stacks;
//! * **AddressSanitizer** does not know which stack a panic unwinds. The red zones of the frames that the panic
//!   skips stay, and whoever uses the stack next trips over them. Locals that it has moved to a *fake stack*, to
//!   notice their use after return, go with the thread while a suspended frame still owns them.
//!
//! An [`Annotation`] stands for one **flow of control** and the stack it runs on. Cargo feature
//! `valgrind` makes it talk to the one (x86-64, aarch64), `asan` to the other; both may be on, and are silent
//! in a program that runs without the tool. Without the features it has no size and its functions are empty.
//!
//! # The protocol
//!
//! Every flow that takes part in switches has an annotation that stays where it is: [`Annotation::of`] its
//! stack, or [`Annotation::elsewhere`] for a stack that somebody else made, such as a thread's. Around each
//! switch from flow A to flow B there are two calls, one on either stack:
//!
//! ```text
//!         on the stack of A                        on the stack of B
//!    a.leave(&b)             last thing
//!    swap(A, B, hook, arg)  ───────────────▶    hook(arg), if there is one
//!                                               b.arrive(Some(&mut a))   first thing, also in the entry
//! ```
//!
//! `arrive` tells A's annotation on which stack A is suspended. That is how one made by `elsewhere` becomes
//! known; and it need not be A's own: a coroutine can be suspended by one that it has resumed itself, and is then
//! on the stack of that one.
//!
//! **Resume and suspend.** A coroutine has two annotations, as its [`Link`](crate::backend::Link) has two
//! contexts: `own`, and `resumer`, which stands for whoever resumed it last.
//!
//! ```text
//!         on the resumer's stack                   on the coroutine's
//!    resumer.leave(&own)
//!    B::resume(link, …)     ───────────────▶    entry
//!                                               own.arrive(Some(&mut resumer))
//!                                                 …
//!                                               own.leave(&resumer)
//!    resumer.arrive(Some(&mut own))  ◀──────    B::suspend(link, …)     or B::exit
//!    resumer.leave(&own)
//!    B::resume(link, …)     ───────────────▶    own.arrive(Some(&mut resumer))
//! ```
//!
//! **Transfer.** Among coroutines that switch to each other by `swap` each has one annotation, and so has the
//! thread that they begin and end at; the upper picture is all there is. Whoever arrives from a flow that has
//! ended, and whose annotation is gone, passes `None`.
//!
//! **In a hook** the switch is half done: B's `arrive` has yet to come. A hook that itself switches to
//! somewhere and back, or drops an annotation (it frees the stack that it came from), calls B's `arrive` first.
//! The second `arrive`, after the hook, does nothing.
//!
//! **The end.** There is no call for the last switch. The annotation is dropped when nobody will run on its
//! stack any more, before the stack is given back; its memory is then as plain as any. An annotation that is
//! leaked together with its stack costs what the tool remembers of it.
//!
//! ```
//! use sleave_context::annotate::Annotation;
//! use sleave_context::backend::{Backend, Bounds, Link, Message, Native};
//! use sleave_context::stack::Arena;
//!
//! struct Coroutine { link: Link<Native>, own: Annotation, resumer: Annotation }
//!
//! unsafe extern "C" fn body(data: usize, first: usize) -> ! {
//!     let this = data as *mut Coroutine;
//!     // SAFETY: `this` is the coroutine that runs here, and its resumer waits.
//!     unsafe {
//!         (*this).own.arrive(Some(&mut (*this).resumer));
//!         (*this).own.leave(&(*this).resumer);
//!         Native::exit(&raw mut (*this).link, Message { word: first + 1, tag: 0 })
//!     }
//! }
//!
//! let arena = Arena::reserve().unwrap();
//! let slot = arena.take(64 * 1024).unwrap();
//! let bounds = Bounds { limit: slot.base().wrapping_add(slot.guard_len()), top: slot.top() };
//! let mut coroutine = Coroutine {
//!     link: Link::empty(),
//!     own: Annotation::of(bounds),
//!     resumer: Annotation::elsewhere(),
//! };
//! let this = &raw mut coroutine;
//! // SAFETY: the stack is ours and unused, and outlives the coroutine.
//! unsafe {
//!     Native::prepare_linked(&raw mut (*this).link, bounds, body, this as usize);
//!     (*this).resumer.leave(&(*this).own);
//!     let answer = Native::resume(&raw mut (*this).link, Message { word: 41, tag: 0 });
//!     (*this).resumer.arrive(Some(&mut (*this).own));
//!     assert_eq!(answer.word, 42);
//! }
//! drop(coroutine); // the annotations first, then the stack
//! arena.give(slot);
//! ```

#[cfg(feature = "asan")]
mod asan;
#[cfg(not(all(feature = "asan", feature = "valgrind")))]
mod silent;
#[cfg(feature = "valgrind")]
mod valgrind;

#[cfg(not(feature = "asan"))]
use silent as asan;
#[cfg(not(feature = "valgrind"))]
use silent as valgrind;

#[cfg(all(
    any(feature = "asan", feature = "valgrind"),
    not(any(target_arch = "x86_64", target_arch = "aarch64"))
))]
compile_error!("features `asan` and `valgrind` know x86-64 and aarch64: see src/annotate");

use crate::backend::Bounds;

/// A flow of control and its stack, as the tools know it. The module documentation has the protocol.
///
/// Dropping it says that nobody runs on the stack any more: its memory may be used for anything.
#[derive(Debug)]
pub struct Annotation {
    asan: asan::Flow,
    valgrind: valgrind::Flow,
}

#[cfg(not(any(feature = "asan", feature = "valgrind")))]
const _: () = assert!(size_of::<Annotation>() == 0);

// SAFETY: words that describe a flow, which may itself go from thread to thread.
unsafe impl Send for Annotation {}
// SAFETY: what is shared can only be read.
unsafe impl Sync for Annotation {}

impl Annotation {
    /// Of a flow that will run on the stack `bounds`, from its first switch until the annotation is dropped.
    #[inline]
    pub fn of(bounds: Bounds) -> Annotation {
        Annotation { asan: asan::Flow::of(bounds), valgrind: valgrind::Flow::of(bounds) }
    }

    /// Of a flow that runs already, on a stack that the tools know or that has an annotation of its own: a
    /// thread, or whoever resumes a coroutine.
    #[inline]
    pub const fn elsewhere() -> Annotation {
        Annotation { asan: asan::Flow::elsewhere(), valgrind: valgrind::Flow::elsewhere() }
    }

    /// This flow switches to `to` next.
    ///
    /// # Safety
    ///
    /// The caller is this flow, on its own stack or on that of a coroutine that it has resumed, and the next
    /// switch goes to `to`. The bounds of `to` are known: it was made by [`of`](Annotation::of), or has left
    /// before and somebody has arrived from it.
    #[inline]
    pub unsafe fn leave(&mut self, to: &Annotation) {
        // SAFETY: the caller's promises.
        unsafe {
            self.asan.leave(&to.asan);
            self.valgrind.leave(&to.valgrind);
        }
    }

    /// A switch to this flow has come here, from the flow `from`. Does nothing if that has been said since the
    /// switch.
    ///
    /// # Safety
    ///
    /// The caller is this flow, where it left or at its entry (or a hook there); `from`, if given, is who [left](Annotation::leave) for it last.
    #[inline]
    pub unsafe fn arrive(&mut self, from: Option<&mut Annotation>) {
        let (asan, valgrind) = match from {
            Some(from) => (Some(&mut from.asan), Some(&mut from.valgrind)),
            None => (None, None),
        };
        // SAFETY: the caller's promises.
        unsafe {
            self.asan.arrive(asan);
            self.valgrind.arrive(valgrind);
        }
    }
}

/// The memory from `addr` on has been given back to the kernel and reads as zero. (madvise(2): a tool that has
/// not seen the range being written to since still takes it for what it was.)
#[inline]
pub(crate) fn zeroed(addr: usize, len: usize) {
    asan::zeroed(addr, len);
    valgrind::zeroed(addr, len);
}
