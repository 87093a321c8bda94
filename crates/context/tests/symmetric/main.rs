//! Symmetric coroutines by behaviour, on every backend.
#![cfg(feature = "std")]

#[path = "../support/mod.rs"]
mod support;

mod end;
mod transfer;
mod unwind;

use sleave_context::stack::{Arena, Slab};
use sleave_context::symmetric::{Exit, Group, Id, Member};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use support::arena;
use support::backends::Tested;

const MIB: usize = 1 << 20;
const STACK: usize = 64 * 1024;

type Slabs = Slab<'static>;
type OnSlabs<T, B> = Group<T, Slabs, B>;

/// A member's body, where the type of a closure would be without end.
type Body<T, B> = Box<dyn FnOnce(&Member<T, Slabs, B>, T) -> Exit<T>>;

fn group<T: 'static, B: Tested>() -> OnSlabs<T, B> {
    Group::with_stacks()
}

fn stack() -> Slabs {
    Slab::new(STACK).unwrap()
}

/// An arena for stacks that may be leaked.
fn leaked_arena() -> &'static Arena {
    Box::leak(Box::new(arena(64 * MIB)))
}

/// What happened, in order.
type Log = Rc<RefCell<Vec<String>>>;

/// Leaves a word in a log when dropped.
struct Noted(Log, &'static str);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.borrow_mut().push(self.1.into());
    }
}

/// As a panic, without its message.
fn panic_with(text: &'static str) -> ! {
    resume_unwind(Box::new(text))
}

/// The words that `f` panics with.
fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).err().expect("a panic");
    match payload.downcast::<&str>() {
        Ok(text) => (*text).into(),
        Err(payload) => *payload.downcast::<String>().expect("a payload of another kind"),
    }
}

/// Runs `f` under `depth` frames.
#[inline(never)]
fn deeper<R>(depth: usize, f: &mut dyn FnMut() -> R) -> R {
    let frame = std::hint::black_box([depth as u8; 256]);
    let result = if depth == 0 { f() } else { deeper(depth - 1, f) };
    assert_eq!(std::hint::black_box(frame), [depth as u8; 256], "the frame is as it was");
    result
}

/// Transfers when dropped.
struct Transfers<'a, B: Tested>(&'a Member<u32, Slabs, B>, Id);

impl<B: Tested> Drop for Transfers<'_, B> {
    fn drop(&mut self) {
        let _ = self.0.transfer(self.1, 7);
    }
}
