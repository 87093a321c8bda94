//! Coroutines that borrow: they cannot be leaked, because they never are the caller's.

use super::{Coroutine, CoroutineState, Yielder};
use crate::backend::{Backend, Native};
use crate::stack::{Slab, Stack};
use core::fmt;

/// A coroutine that lives in a [`scope`]. It can be resumed, and is ended when the scope is.
pub struct ScopedCoroutine<
    'scope,
    Input,
    Yield,
    Return,
    S: Stack = Slab<'static>,
    B: Backend = Native,
> {
    inner: &'scope mut Coroutine<Input, Yield, Return, S, B>,
}

/// Makes a coroutine whose `body` may borrow what is outside of it, runs `with` with it, and ends it
/// ([`Coroutine::end`]), also if `with` panics.
///
/// # Panics
///
/// As `with` does, and as [`Coroutine::new`] and [`Coroutine::end`].
///
/// # Examples
///
/// ```
/// use sleave_context::coroutine::scope;
///
/// let words = vec![String::from("one"), String::from("two")];
/// let mut seen = 0;
/// let lengths: Vec<usize> = scope(
///     |yielder, ()| {
///         for word in &words {
///             seen += 1;
///             yielder.suspend(word.len());
///         }
///     },
///     |coroutine| coroutine.collect(),
/// );
/// assert_eq!((lengths, seen), (vec![3, 3], 2));
/// ```
///
/// The coroutine cannot be taken out of its scope:
///
/// ```compile_fail,E0521
/// use sleave_context::{ScopedCoroutine, coroutine::scope};
///
/// let mut escaped: Option<ScopedCoroutine<(), (), ()>> = None;
/// let local = 1;
/// scope(|_, ()| assert_eq!(local, 1), |coroutine| escaped = Some(coroutine));
/// escaped.unwrap().resume(());
/// ```
///
/// nor exchanged for one of another scope:
///
/// ```compile_fail,E0521
/// use sleave_context::{ScopedCoroutine, coroutine::scope};
///
/// scope(|_, ()| (), |mut outer: ScopedCoroutine<(), (), ()>| {
///     let local = 1;
///     scope(|_, ()| assert_eq!(local, 1), |mut inner: ScopedCoroutine<(), (), ()>| {
///         std::mem::swap(&mut outer, &mut inner);
///     });
///     outer.resume(());
/// });
/// ```
///
/// nor sent to another thread:
///
/// ```compile_fail,E0277
/// use sleave_context::{ScopedCoroutine, coroutine::scope};
///
/// scope(|_, ()| (), |mut coroutine: ScopedCoroutine<(), (), ()>| {
///     std::thread::scope(|threads| threads.spawn(|| coroutine.resume(())).join().unwrap());
/// });
/// ```
pub fn scope<Input, Yield, Return, F, G, T>(body: F, with: G) -> T
where
    F: FnOnce(&Yielder<Input, Yield>, Input) -> Return,
    G: FnOnce(ScopedCoroutine<'_, Input, Yield, Return>) -> T,
{
    scope_on::<_, _, _, _, Native, _, _, _>(Slab::default(), body, with)
}

/// As [`scope`], on a stack of your choice, which may be borrowed memory, and with a [`Backend`] of your choice.
///
/// # Panics
///
/// As there.
pub fn scope_on<Input, Yield, Return, S, B, F, G, T>(stack: S, body: F, with: G) -> T
where
    S: Stack,
    B: Backend,
    F: FnOnce(&Yielder<Input, Yield, B>, Input) -> Return,
    G: FnOnce(ScopedCoroutine<'_, Input, Yield, Return, S, B>) -> T,
{
    /// Ends the coroutine, which must not outlive the scope, come what may.
    struct Ends<Input, Yield, Return, S: Stack, B: Backend>(Coroutine<Input, Yield, Return, S, B>);
    impl<Input, Yield, Return, S: Stack, B: Backend> Drop for Ends<Input, Yield, Return, S, B> {
        fn drop(&mut self) {
            self.0.end();
        }
    }
    // SAFETY: ended when this function returns or unwinds, and `with` has only a reference.
    let mut coroutine = Ends(unsafe { Coroutine::with_stack_unchecked(stack, body) });
    with(ScopedCoroutine { inner: &mut coroutine.0 })
}

impl<Input, Yield, Return, S: Stack, B: Backend> ScopedCoroutine<'_, Input, Yield, Return, S, B> {
    /// See [`Coroutine::resume`].
    ///
    /// # Panics
    ///
    /// As there.
    #[inline]
    pub fn resume(&mut self, input: Input) -> CoroutineState<Yield, Return> {
        self.inner.resume(input)
    }

    /// See [`Coroutine::is_done`].
    pub fn is_done(&self) -> bool {
        self.inner.is_done()
    }

    /// See [`Coroutine::is_started`].
    pub fn is_started(&self) -> bool {
        self.inner.is_started()
    }

    /// See [`Coroutine::end`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn end(&mut self) {
        self.inner.end();
    }
}

impl<Yield, S: Stack, B: Backend> Iterator for ScopedCoroutine<'_, (), Yield, (), S, B> {
    type Item = Yield;

    #[inline]
    fn next(&mut self) -> Option<Yield> {
        self.inner.next()
    }
}

impl<Input, Yield, Return, S: Stack, B: Backend> fmt::Debug
    for ScopedCoroutine<'_, Input, Yield, Return, S, B>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
