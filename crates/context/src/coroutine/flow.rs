//! A coroutine's flow of control: both sides of its switches, and what the tools are told of them.
//!
//! It lies at the top of the coroutine's stack and is used through a pointer, by turns from the one side and the
//! other. Around each switch stand the two calls that [`annotate`](crate::annotate) asks for; they are nothing unless a feature
//! makes them something.

use crate::annotate::Annotation;
use crate::backend::{Backend, Bounds, Entry, Link, Message};

/// A coroutine's flow of control, and what the tools are told of it; see [`annotate`](crate::annotate).
#[repr(C)]
pub(super) struct Flow<B: Backend> {
    link: Link<B>,
    own: Annotation,
    resumer: Annotation,
}

impl<B: Backend> Flow<B> {
    /// Makes `*this` one that begins with `entry(data, word)` on the stack `bounds`.
    ///
    /// # Safety
    ///
    /// As for [`Backend::prepare_linked`]; `this` is valid for writes and stays where it is.
    #[inline]
    pub(super) unsafe fn prepare(this: *mut Flow<B>, bounds: Bounds, entry: Entry, data: usize) {
        let (own, resumer) = (Annotation::of(bounds), Annotation::elsewhere());
        // SAFETY: the caller's promises.
        unsafe {
            this.write(Flow { link: Link::empty(), own, resumer });
            B::prepare_linked(&raw mut (*this).link, bounds, entry, data);
        }
    }

    /// [`Backend::resume`].
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn resume(this: *mut Flow<B>, message: Message) -> Message {
        // SAFETY: the caller's promises. We run on the resumer's stack, before and after.
        unsafe {
            (*this).resumer.leave(&(*this).own);
            let message = B::resume(&raw mut (*this).link, message);
            (*this).resumer.arrive(Some(&mut (*this).own));
            message
        }
    }

    /// What the coroutine does first.
    ///
    /// # Safety
    ///
    /// The caller is the coroutine, and has been resumed just now.
    #[inline(always)]
    pub(super) unsafe fn arrive(this: *mut Flow<B>) {
        // SAFETY: the caller's promise; the resumer waits.
        unsafe { (*this).own.arrive(Some(&mut (*this).resumer)) };
    }

    /// [`Backend::suspend`].
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn suspend(this: *mut Flow<B>, message: Message) -> Message {
        // SAFETY: the caller's promises. We run on the coroutine's stack, before and after.
        unsafe {
            (*this).own.leave(&(*this).resumer);
            let message = B::suspend(&raw mut (*this).link, message);
            Flow::arrive(this);
            message
        }
    }

    /// [`Backend::exit`].
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn exit(this: *mut Flow<B>, message: Message) -> ! {
        // SAFETY: the caller's promises.
        unsafe {
            (*this).own.leave(&(*this).resumer);
            B::exit(&raw mut (*this).link, message)
        }
    }
}
