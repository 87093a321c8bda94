//! Asymmetric coroutines: functions that can be left in the middle and gone on with.
//!
//! ```
//! use sleave_context::{Coroutine, CoroutineState::*};
//!
//! let mut average = Coroutine::new(|yielder, first: f64| {
//!     let (mut sum, mut count) = (first, 1.0);
//!     while count < 3.0 {
//!         sum += yielder.suspend(sum / count);
//!         count += 1.0;
//!     }
//!     sum / count
//! });
//! assert_eq!(average.resume(4.0), Yielded(4.0));
//! assert_eq!(average.resume(8.0), Yielded(6.0));
//! assert_eq!(average.resume(0.0), Complete(4.0));
//! ```
//!
//! A [`Coroutine`] owns a [`Stack`]. [`resume`](Coroutine::resume) runs its body on that stack until it
//! [`suspend`](Yielder::suspend)s or returns; values go both ways. A coroutine that takes nothing and returns
//! nothing is an iterator.
//!
//! ```text
//!        the coroutine's stack
//!   ┌───────────────────────────┐ ◀ top of the memory
//!   │  colour                   │   Stack::shift
//!   ├───────────────────────────┤
//!   │  body (a closure)         │   Top
//!   │  flow: resumer, own       │
//!   ├───────────────────────────┤ ◀ the backend's stack begins
//!   │  entry, body's frames …   │
//! ```
//!
//! # What is and is not the coroutine's own
//!
//! A coroutine is a call that can be left, no thread: `thread_local!`s, `errno`, the thread's identity and
//! the floating-point control state (see [`FpControl`](crate::FpControl)) are those of whoever resumes it. So is the thread's
//! count of panics: a destructor that runs because of a panic, and suspends, leaves its resumer "panicking" as well.
//! Therefore a coroutine cannot be sent to another thread:
//!
//! ```compile_fail,E0277
//! let coroutine = sleave_context::Coroutine::<(), (), ()>::new(|_, ()| ());
//! std::thread::spawn(move || drop(coroutine));
//! ```
//!
//! (In `sleave`'s fibers it may be used freely: a fiber *is* a thread, and what waits inside a coroutine
//! parks the fiber with all its coroutines.)
//!
//! # Why `'static`
//!
//! A suspended coroutine may be leaked, safely; then its frames stay for ever, and destructors
//! in them never run. Something elsewhere may rely on them: a scope of threads started in the body borrows what
//! the body borrows, and waits in a destructor. So the body of a coroutine that can be leaked must own all that it uses, and
//! so must what is passed to it:
//!
//! ```compile_fail,E0597
//! let local = 1;
//! let borrowed = &local;
//! sleave_context::Coroutine::<(), (), i32>::new(move |_, ()| *borrowed);
//! ```
//!
//! ```compile_fail,E0597
//! let mut coroutine = sleave_context::Coroutine::<&i32, (), ()>::new(|yielder, _| drop(yielder.suspend(())));
//! let local = 1;
//! coroutine.resume(&local);
//! ```
//!
//! and its stack must not be memory that is lent:
//!
//! ```compile_fail,E0597
//! let mut stack = sleave_context::stack::Slab::default();
//! sleave_context::Coroutine::<(), (), (), _>::with_stack(&mut stack, |_, ()| ());
//! ```
//!
//! [`scope`] is for those that cannot be leaked.
//!
//! # What no type forbids
//!
//! Rust takes for granted that calls on one thread return in the reverse order, and that no thread ends inside of
//! one. Who suspends breaks both. Safe interfaces that rely on it are not sound beside stackful coroutines of
//! any make:
//!
//! * [`LocalKey::with`](https://doc.rust-lang.org/std/thread/struct.LocalKey.html#method.with) lends the value until the
//!   thread ends. A coroutine that is suspended in it must have ended before that: not be forgotten while others use what
//!   it borrowed, nor be dropped by the destructor of another thread-local.
//! * Libraries that lend a reference to all that is called meanwhile on the thread (`scoped_thread_local!`): suspend in
//!   no such call, and lend no [`Yielder`] in this way.
//!
//! See rust-lang/unsafe-code-guidelines#602.

mod flow;
mod scope;
#[cfg(feature = "alloc")]
pub mod symmetric;
mod unwind;
mod word;
mod yielder;

pub use scope::{ScopedCoroutine, scope, scope_on};
pub use yielder::Yielder;

use crate::backend::{Backend, Bounds, Message, Native};
use crate::stack::{MIN_STACK, Slab, Stack};
use core::fmt;
use core::iter::FusedIterator;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, MaybeUninit};
use flow::Flow;

// Tags of messages to the coroutine, …
const RESUME: usize = 0;
const UNWIND: usize = 1;
// … and from it.
const YIELDED: usize = 0;
const COMPLETE: usize = 1;
const PANICKED: usize = 2;

/// What [`Coroutine::resume`] returns: why the coroutine has stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CoroutineState<Yield, Return> {
    /// It has suspended itself with this value.
    Yielded(Yield),
    /// Its body has returned this.
    Complete(Return),
}

impl<Yield, Return> CoroutineState<Yield, Return> {
    /// The value, if it was yielded.
    pub fn yielded(self) -> Option<Yield> {
        match self {
            CoroutineState::Yielded(value) => Some(value),
            CoroutineState::Complete(_) => None,
        }
    }

    /// The value, if it was returned.
    pub fn complete(self) -> Option<Return> {
        match self {
            CoroutineState::Yielded(_) => None,
            CoroutineState::Complete(value) => Some(value),
        }
    }
}

/// Where in its life a coroutine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has not begun: its body lies unmoved in [`Top`].
    Fresh,
    Suspended,
    /// It runs, or is being unwound. While that is so it is borrowed, but that does not keep it from being dropped:
    /// exit(3) destroys the thread's `thread_local!`s under whoever calls it.
    Running,
    Done,
}

/// What lies at the top of a coroutine's stack.
#[repr(C)]
struct Top<F, B: Backend> {
    flow: Flow<B>,
    body: MaybeUninit<F>,
}

/// A coroutine's stack. It goes after the coroutine has ended, also if that panics.
struct Held<S, B: Backend> {
    stack: ManuallyDrop<S>,
    /// At the top of the stack, in a [`Top`].
    flow: *mut Flow<B>,
    /// It stays for ever, with a coroutine on it that can be neither finished nor unwound: something may
    /// rely on its frames.
    leaked: bool,
}

impl<S, B: Backend> Held<S, B> {
    /// Takes the stack, on which nobody will run any more.
    ///
    /// # Safety
    ///
    /// Once; then neither the value nor the flow is used, nor dropped.
    unsafe fn take(&mut self) -> S {
        // SAFETY: the caller's promise.
        unsafe {
            self.flow.drop_in_place();
            ManuallyDrop::take(&mut self.stack)
        }
    }
}

impl<S, B: Backend> Drop for Held<S, B> {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: once, here; `into_stack` forgets the coroutine.
            drop(unsafe { self.take() });
        }
    }
}

/// A function with a stack of its own, that can be suspended and resumed. See the [module](self).
pub struct Coroutine<Input, Yield, Return, S: Stack = Slab<'static>, B: Backend = Native> {
    /// Drops the body of a coroutine that never began.
    discard: unsafe fn(*mut Flow<B>),
    stage: Stage,
    held: Held<S, B>,
    values: PhantomData<fn(Input) -> (Yield, Return)>,
}

impl<Input: 'static, Yield: 'static, Return: 'static> Coroutine<Input, Yield, Return> {
    /// A coroutine on a pooled stack of the [usual size](Slab::DEFAULT_SIZE). Its body begins with the first
    /// [`resume`](Coroutine::resume), whose value is its second argument.
    ///
    /// # Panics
    ///
    /// If there is no memory for a stack. [`Slab::new`] with [`Coroutine::with_stack`] returns that as an error.
    ///
    /// # Examples
    ///
    /// ```
    /// use sleave_context::Coroutine;
    ///
    /// let fibonacci = Coroutine::new(|yielder, ()| {
    ///     let (mut a, mut b) = (0, 1);
    ///     loop {
    ///         yielder.suspend(a);
    ///         (a, b) = (b, a + b);
    ///     }
    /// });
    /// assert_eq!(fibonacci.take(8).collect::<Vec<u32>>(), [0, 1, 1, 2, 3, 5, 8, 13]);
    /// ```
    pub fn new<F>(body: F) -> Self
    where
        F: FnOnce(&Yielder<Input, Yield>, Input) -> Return + 'static,
    {
        Coroutine::with_stack(Slab::default(), body)
    }
}

impl<Input, Yield, Return, S: Stack, B: Backend> Coroutine<Input, Yield, Return, S, B> {
    /// A coroutine on a stack of your choice, and with a [`Backend`] of your choice.
    ///
    /// # Panics
    ///
    /// If the stack has no room for `body` (a closure is as large as what it captures) twice, as it moves when it
    /// begins, and half of [`MIN_STACK`].
    ///
    /// # Examples
    ///
    /// ```
    /// use sleave_context::{Coroutine, CoroutineState::*, stack::Slab};
    ///
    /// let stack = Slab::new(16 * 1024)?;
    /// let mut echo: Coroutine<u8, u8, ()> = Coroutine::with_stack(stack, |yielder, mut value| {
    ///     loop {
    ///         value = yielder.suspend(value);
    ///     }
    /// });
    /// assert_eq!(echo.resume(1), Yielded(1));
    /// # Ok::<(), sleave_context::stack::Error>(())
    /// ```
    pub fn with_stack<F>(stack: S, body: F) -> Self
    where
        F: FnOnce(&Yielder<Input, Yield, B>, Input) -> Return + 'static,
        (Input, Yield, Return): 'static,
        S: 'static,
    {
        // SAFETY: everything lives for ever, should the coroutine be leaked.
        unsafe { Coroutine::with_stack_unchecked(stack, body) }
    }

    /// As [`with_stack`](Coroutine::with_stack), for bodies and stacks that borrow.
    ///
    /// # Safety
    ///
    /// The coroutine is dropped, or has completed, before anything that `body` or `stack` borrows ends; it is
    /// not leaked. ([`scope`] sees to that.)
    ///
    /// # Panics
    ///
    /// As there.
    #[inline]
    pub unsafe fn with_stack_unchecked<F>(stack: S, body: F) -> Self
    where
        F: FnOnce(&Yielder<Input, Yield, B>, Input) -> Return,
    {
        let (place, bounds) = place::<Top<F, B>>(&stack);
        // SAFETY: `place` found room for a `Top` in the stack, which nobody else uses.
        let flow = unsafe {
            let flow = &raw mut (*place).flow;
            (*place).body.write(body);
            Flow::prepare(flow, bounds, start::<Input, Yield, Return, F, B>, place as usize);
            flow
        };
        Coroutine {
            discard: discard::<F, B>,
            stage: Stage::Fresh,
            held: Held { stack: ManuallyDrop::new(stack), flow, leaked: false },
            values: PhantomData,
        }
    }

    /// Runs the coroutine until it suspends itself or its body returns.
    ///
    /// # Panics
    ///
    /// * With the body's own payload, if the body panics; the coroutine is done then. (Without the feature `std` a panic in
    ///   the body aborts.)
    /// * If the coroutine is [done](Coroutine::is_done).
    #[inline]
    pub fn resume(&mut self, input: Input) -> CoroutineState<Yield, Return> {
        if self.stage == Stage::Done {
            resumed_when_done();
        }
        let input = ManuallyDrop::new(input);
        self.mark(Stage::Running);
        let message = Message { word: word::encode(&input), tag: RESUME };
        // SAFETY: it is suspended or fresh; nobody else resumes it, for we have it exclusively.
        let message = unsafe { Flow::resume(self.held.flow, message) };
        if message.tag == YIELDED {
            self.stage = Stage::Suspended;
            // SAFETY: `suspend` encoded a `Yield`, and waits.
            return CoroutineState::Yielded(unsafe { word::decode(message.word) });
        }
        self.stage = Stage::Done;
        match Self::result(message) {
            Ok(value) => CoroutineState::Complete(value),
            Err(payload) => unwind::resume(payload),
        }
    }

    /// Sets the stage, also for a destructor that comes while what follows has not returned.
    #[inline(always)]
    fn mark(&mut self, stage: Stage) {
        // SAFETY: our own field. Volatile, as to the compiler nobody can see it before it is written again.
        unsafe { (&raw mut self.stage).write_volatile(stage) };
    }

    /// What the body has ended with.
    #[inline]
    fn result(message: Message) -> Result<Return, unwind::Payload> {
        if message.tag == COMPLETE {
            // SAFETY: `start` encoded a `Return`, on a stack that is still there.
            Ok(unsafe { word::decode(message.word) })
        } else {
            debug_assert_eq!(message.tag, PANICKED);
            // SAFETY: likewise, a payload.
            Err(unsafe { word::decode(message.word) })
        }
    }

    /// Has the body returned, or panicked? Then there is nothing to resume any more.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Has the body begun?
    pub fn is_started(&self) -> bool {
        self.stage != Stage::Fresh
    }

    /// Ends the coroutine wherever it is: a body that has not begun is dropped, a suspended one is unwound (see
    /// [`Yielder::suspend`]), so that every destructor on its stack runs. What it returns is dropped.
    ///
    /// Dropping the coroutine does this, too.
    ///
    /// # Panics
    ///
    /// If the body panics by itself while it unwinds; the coroutine is done then.
    ///
    /// Where nothing can unwind (`panic = "abort"`, or without the feature `std`) a suspended coroutine
    /// cannot be ended. There its stack is leaked with all that is on it when it is dropped, and this method
    /// aborts with a message.
    pub fn end(&mut self) {
        if !self.try_end() {
            cannot_end();
        }
    }

    /// As [`end`](Coroutine::end); `false` if it can be neither finished nor unwound.
    fn try_end(&mut self) -> bool {
        let stage = self.stage;
        if stage == Stage::Done {
            return true;
        }
        self.mark(Stage::Running);
        // SAFETY: in that stage, and nobody will resume it.
        let ended = unsafe { Self::finish(stage, self.discard, self.held.flow) };
        if !matches!(ended, Ok(false)) {
            self.stage = Stage::Done;
        }
        ended.unwrap_or_else(|payload| unwind::resume(payload))
    }

    /// Ends a coroutine in that stage; `false` if it can be neither finished nor unwound. Returns what its body panics
    /// with.
    ///
    /// # Safety
    ///
    /// The coroutine of `flow` and `discard` is in that stage, and is neither resumed nor ended after this.
    #[cold]
    unsafe fn finish(
        stage: Stage,
        discard: unsafe fn(*mut Flow<B>),
        flow: *mut Flow<B>,
    ) -> Result<bool, unwind::Payload> {
        match stage {
            Stage::Done => return Ok(true),
            // SAFETY: a fresh coroutine's body is where `new` has put it, and is dropped once.
            Stage::Fresh => return unwind::catch(|| unsafe { discard(flow) }).map(|()| true),
            Stage::Suspended if unwind::POSSIBLE => {}
            Stage::Suspended | Stage::Running => return Ok(false),
        }
        // SAFETY: it is suspended.
        let message = unsafe { Flow::resume(flow, Message { word: 0, tag: UNWIND }) };
        // Suspending once more raises it again, see `Yielder::suspend`: so this is its end.
        debug_assert_ne!(message.tag, YIELDED);
        match Self::result(message) {
            // What nobody wants may panic as it is dropped.
            Ok(value) => unwind::catch(|| drop(value)).map(|()| true),
            Err(payload) if unwind::is_unwinding(&payload, flow as usize) => Ok(true),
            Err(payload) => Err(payload),
        }
    }

    /// Ends the coroutine, as [`end`](Coroutine::end) does, and hands out its stack.
    ///
    /// # Panics
    ///
    /// As there.
    #[inline]
    pub fn into_stack(self) -> S {
        // In parts from here on, which stay in registers.
        let this = ManuallyDrop::new(self);
        // SAFETY: taken out once, as the coroutine is not dropped.
        let mut held = unsafe { core::ptr::read(&this.held) };
        if this.stage != Stage::Done {
            // SAFETY: in that stage, and it is nobody's any more.
            match unsafe { Self::finish(this.stage, this.discard, held.flow) } {
                Ok(true) => {}
                Ok(false) => cannot_end(),
                Err(payload) => {
                    drop(held);
                    unwind::resume(payload)
                }
            }
        }
        // SAFETY: once, as the value is forgotten.
        let stack = unsafe { held.take() };
        core::mem::forget(held);
        stack
    }

    /// Ends the coroutine, as [`end`](Coroutine::end) does, and makes another one on its stack.
    ///
    /// # Panics
    ///
    /// As there, and as [`with_stack`](Coroutine::with_stack).
    ///
    /// # Examples
    ///
    /// ```
    /// use sleave_context::{Coroutine, CoroutineState::*};
    ///
    /// let mut first = Coroutine::<(), (), u8>::new(|_, ()| 1);
    /// assert_eq!(first.resume(()), Complete(1));
    /// let mut second = first.reset(|yielder, word: &str| yielder.suspend(word.len()));
    /// assert_eq!(second.resume("four"), Yielded(4));
    /// assert_eq!(second.resume("end"), Complete("end"));
    /// ```
    pub fn reset<I, Y, R, F>(self, body: F) -> Coroutine<I, Y, R, S, B>
    where
        F: FnOnce(&Yielder<I, Y, B>, I) -> R + 'static,
        (I, Y, R): 'static,
        S: 'static,
    {
        Coroutine::with_stack(self.into_stack(), body)
    }
}

/// Where a `Top` lies on a stack, and what is left of that below it.
///
/// # Panics
///
/// If that is less than half of [`MIN_STACK`] and another `Top`.
#[inline]
fn place<Top>(stack: &impl Stack) -> (*mut Top, Bounds) {
    let limit = stack.limit().as_ptr();
    let top = stack.top().as_ptr();
    let end = (top as usize).wrapping_sub(stack.shift());
    let place = end.wrapping_sub(size_of::<Top>()) & !(align_of::<Top>() - 1);
    // A place below the limit makes for a room of nearly the whole address space.
    let room = place.wrapping_sub(limit as usize);
    // What lies there moves into a frame when it begins.
    let least = size_of::<Top>() + MIN_STACK / 2;
    assert!(
        (least..=isize::MAX as usize).contains(&room),
        "a coroutine that takes {} bytes with it does not fit its stack",
        size_of::<Top>()
    );
    (top.with_addr(place).cast(), Bounds { limit, top: top.with_addr(place) })
}

#[cold]
fn cannot_end() -> ! {
    crate::fatal("a suspended coroutine cannot be ended: nothing unwinds in this program")
}

#[cold]
fn resumed_when_done() -> ! {
    panic!("a coroutine was resumed after it had ended");
}

/// Where every coroutine begins: `data` is its [`Top`], `first` the first input.
unsafe extern "C" fn start<Input, Yield, Return, F, B>(data: usize, first: usize) -> !
where
    F: FnOnce(&Yielder<Input, Yield, B>, Input) -> Return,
    B: Backend,
{
    let top = data as *mut Top<F, B>;
    // SAFETY: `with_stack_unchecked` made it, and it has been resumed just now.
    let flow = unsafe {
        let flow = &raw mut (*top).flow;
        Flow::arrive(flow);
        flow
    };
    let yielder = Yielder::new(flow);
    let (value, payload);
    // Taken out inside, so that a large body is not moved through the frames of `catch`, one copy each.
    let message = match unwind::catch(|| {
        // SAFETY: `resume` passed an `Input`, and waits. The body is moved out once: from now on the coroutine is
        // not fresh.
        let (body, input) = unsafe { ((*top).body.assume_init_read(), word::decode(first)) };
        body(&yielder, input)
    }) {
        Ok(result) => {
            value = ManuallyDrop::new(result);
            Message { word: word::encode(&value), tag: COMPLETE }
        }
        Err(panic) => {
            payload = ManuallyDrop::new(panic);
            Message { word: word::encode(&payload), tag: PANICKED }
        }
    };
    // SAFETY: we run on it; from now on it is done, and is not resumed.
    unsafe { Flow::exit(flow, message) }
}

/// Drops the body of a coroutine that has not begun.
unsafe fn discard<F, B: Backend>(flow: *mut Flow<B>) {
    // SAFETY: the flow is the first field of its `Top`; the caller's promise.
    unsafe { (*flow.cast::<Top<F, B>>()).body.assume_init_drop() };
}

impl<Input, Yield, Return, S: Stack, B: Backend> Drop for Coroutine<Input, Yield, Return, S, B> {
    fn drop(&mut self) {
        self.held.leaked = !self.try_end();
    }
}

/// A coroutine that takes and returns nothing is an iterator over what it yields.
impl<Yield, S: Stack, B: Backend> Iterator for Coroutine<(), Yield, (), S, B> {
    type Item = Yield;

    /// Resumes the coroutine, unless it is done.
    ///
    /// # Panics
    ///
    /// With the body's own payload, if the body panics.
    #[inline]
    fn next(&mut self) -> Option<Yield> {
        if self.is_done() { None } else { self.resume(()).yielded() }
    }
}

impl<Yield, S: Stack, B: Backend> FusedIterator for Coroutine<(), Yield, (), S, B> {}

impl<Input, Yield, Return, S: Stack, B: Backend> fmt::Debug
    for Coroutine<Input, Yield, Return, S, B>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coroutine")
            .field("backend", &B::NAME)
            .field("stage", &self.stage)
            .field("limit", &self.held.stack.limit())
            .field("top", &self.held.stack.top())
            .finish()
    }
}
