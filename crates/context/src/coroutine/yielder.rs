//! The inside of a coroutine: how it suspends itself.

use super::flow::Flow;
use super::unwind::Unwinding;
use super::{RESUME, UNWIND, YIELDED, word};
use crate::backend::{Backend, Message, Native};
use core::marker::PhantomData;
use core::mem::ManuallyDrop;

/// What a coroutine's body suspends it with.
///
/// The body gets a reference; only the coroutine itself, or what it calls, ever has it. What it calls may be
/// another coroutine: then both are suspended, and go on together.
///
/// It leaves neither its coroutine nor its thread:
///
/// ```compile_fail,E0521
/// use sleave_context::{ScopedCoroutine, Yielder, coroutine::scope};
///
/// let mut escaped: Option<&Yielder<(), ()>> = None;
/// scope(|yielder, ()| escaped = Some(yielder), |mut coroutine: ScopedCoroutine<_, _, _>| coroutine.resume(()));
/// escaped.unwrap().suspend(());
/// ```
///
/// ```compile_fail,E0277
/// sleave_context::Coroutine::<(), (), ()>::new(|yielder, ()| {
///     std::thread::scope(|threads| threads.spawn(|| yielder.suspend(())).join().unwrap());
/// });
/// ```
pub struct Yielder<Input, Yield, B: Backend = Native> {
    flow: *mut Flow<B>,
    unwinding: Unwinding,
    values: PhantomData<fn(Yield) -> Input>,
}

impl<Input, Yield, B: Backend> Yielder<Input, Yield, B> {
    pub(super) fn new(flow: *mut Flow<B>) -> Yielder<Input, Yield, B> {
        Yielder { flow, unwinding: Unwinding::new(), values: PhantomData }
    }

    /// Suspends the coroutine: its resumer gets `value`. Returns what the next
    /// [`resume`](super::Coroutine::resume) brings.
    ///
    /// # Unwinding
    ///
    /// If the coroutine is dropped instead, this unwinds, as a panic would but without the panic hook, so that
    /// everything on the coroutine's stack is dropped. Code that catches it
    /// ([`catch_unwind`](https://doc.rust-lang.org/std/panic/fn.catch_unwind.html)) and suspends again
    /// finds that it unwinds again; if it does so a thousand times the process aborts, since whoever drops
    /// the coroutine would wait for ever.
    ///
    /// As with any panic, a destructor that runs because of the unwinding must not suspend: that aborts.
    #[inline]
    pub fn suspend(&self, value: Yield) -> Input {
        if self.unwinding.has_begun() {
            self.unwinding.go(self.flow as usize);
        }
        let value = ManuallyDrop::new(value);
        let message = Message { word: word::encode(&value), tag: YIELDED };
        // SAFETY: who has a reference to the yielder runs on the coroutine, as the last that was resumed
        // (or on one that it has resumed, and whose resumption then is suspended with it).
        let message = unsafe { Flow::suspend(self.flow, message) };
        if message.tag != RESUME {
            debug_assert_eq!(message.tag, UNWIND);
            self.unwinding.go(self.flow as usize);
        }
        // SAFETY: `resume` encoded an `Input`, and waits.
        unsafe { word::decode(message.word) }
    }
}
