//! Asymmetric coroutines, on every backend.
//!
//! By theme: `values` (what passes each way), `ending` (every way in which a body ends, and what is dropped then),
//! `nesting` (coroutines in coroutines, and as iterators), `stacks` (reuse, room, leaks), `hostile` (safe code that
//! tries to break them).
#![cfg(feature = "std")]

#[path = "../support/mod.rs"]
mod support;

mod ending;
mod hostile;
mod nesting;
mod stacks;
mod values;

use sleave_context::backend::Backend;
use sleave_context::stack::Slab;
use sleave_context::{Coroutine, Yielder};
use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

/// A coroutine as most tests use it.
type Co<B, Input, Yield, Return> = Coroutine<Input, Yield, Return, Slab<'static>, B>;

/// The same, made.
fn co<B, Input, Yield, Return, F>(body: F) -> Co<B, Input, Yield, Return>
where
    B: Backend,
    F: FnOnce(&Yielder<Input, Yield, B>, Input) -> Return + 'static,
    (Input, Yield, Return): 'static,
{
    Coroutine::with_stack(Slab::new(64 << 10).unwrap(), body)
}

/// What `f` panics with.
fn caught<R>(f: impl FnOnce() -> R) -> Box<dyn Any + Send> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(_) => panic!("no panic came"),
        Err(payload) => payload,
    }
}

/// The words that `f` panics with.
fn words<R>(f: impl FnOnce() -> R) -> String {
    let payload = caught(f);
    match payload.downcast::<String>() {
        Ok(words) => *words,
        Err(payload) => (*payload.downcast::<&str>().expect("a panic with words")).to_owned(),
    }
}

/// A panic that the panic hook does not print.
fn throw(payload: impl Any + Send) -> ! {
    resume_unwind(Box::new(payload))
}

/// The names of what was dropped, in that order. Whatever is dropped twice is named twice.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<u32>>>);

impl Log {
    fn new() -> Log {
        Log::default()
    }

    /// A value that writes its name when it is dropped.
    fn token(&self, name: u32) -> Token {
        Token { name, log: self.clone() }
    }

    fn note(&self, name: u32) {
        self.0.borrow_mut().push(name);
    }

    /// What there is since the last look.
    fn take(&self) -> Vec<u32> {
        self.0.take()
    }
}

struct Token {
    name: u32,
    log: Log,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.log.note(self.name);
    }
}

/// Runs a closure when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
