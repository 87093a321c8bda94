//! Random trees of coroutines, against a model.
//!
//! The model (`threads`) is what coroutines are by definition, made of what everybody trusts: each is a thread of
//! the kernel that runs only while its resumer waits for it. A case is a list of orders. One and the same program
//! carries them out on coroutines and on the model, and writes down every value, every panic, every drop. The two
//! records must be equal.
//!
//! ```text
//!   order: path 1.0, via 1, act …          root (the test)
//!                                         ┌───┴───┐
//!   goes down the path, as far as        [0]     [1]   ◀─ via 1: suspends this one over the
//!   there is one, each node resuming              │       head of its child
//!   the next:                                    [0]      does the act; replies through the
//!                                                         yielder of the node `via` levels above it
//! ```
//!
//! After a reply over the heads of others the next order for the node that was suspended arrives where the
//! reply came from. A node catches as many panics as it has patience, the unwinding that its end brings among them, and
//! goes on; what it does about the next one is in its nature, too.
#![cfg(feature = "std")]

#[path = "../support/mod.rs"]
mod support;

mod threads;

use proptest::prelude::*;
use sleave_context::backend::Backend;
use sleave_context::stack::Slab;
use sleave_context::{Coroutine, CoroutineState, Yielder};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use support::backends::Tested;
use threads::Threads;

on_every_backend! {
    a_tree_of_coroutines_does_what_a_tree_of_threads_does,
}

/// What a node is told to do, and says when it has done so.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    /// Nothing but to reply.
    Say(u32),
    New(Nature),
    Panic(u32),
    Return(u32),
    /// To its child of that number; likewise below.
    Drop(u8),
    End(u8),
    Reset(u8, Nature),
    Swap(u8, u8),
}

/// How a node is made.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Nature {
    /// How many panics it catches,
    patience: u8,
    /// how many levels above it says so,
    via: usize,
    /// and what it does about the next.
    then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Pass,
    /// Throws something of its own instead.
    Throw,
    Return,
}

#[derive(Clone, Debug)]
struct Plan {
    path: Vec<u8>,
    via: usize,
    act: Act,
}

/// A plan on its way. Its weight shows whether it is lost, or there twice.
struct Order(Plan, #[allow(dead_code, reason = "only counted")] Weight);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Done(u32),
    NoSuchChild,
    Caught(Panic),
}

/// What a node says, and by which way it has come.
struct Reply {
    answer: Answer,
    way: [u32; 4],
    ended: bool,
    _weight: Weight,
}

/// What was thrown.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Panic {
    Told(u32),
    Bomb(u32),
    /// The unwinding of a coroutine that is ended. Of which one, nobody can tell.
    Unwinding,
}

impl Panic {
    fn of(payload: &(dyn Any + Send)) -> Panic {
        *payload.downcast_ref().unwrap_or(&Panic::Unwinding)
    }
}

#[derive(Debug, PartialEq)]
enum Event {
    Began(u32),
    Caught(u32, Panic),
    Dropped(u32),
    /// Something that children threw when their parent went.
    AtTheEnd(Panic),
    Replied(Answer, [u32; 4], bool),
    Panicked(Panic),
}

/// What happens, in order.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    events: Vec<Event>,
    nodes: u32,
    weights: i64,
}

impl Record {
    fn note(&self, event: Event) {
        self.0.lock().unwrap().events.push(event);
    }

    fn weight(&self) -> Weight {
        self.0.lock().unwrap().weights += 1;
        Weight(self.clone())
    }
}

struct Weight(Record);

impl Drop for Weight {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().weights -= 1;
    }
}

/// Notes that it is dropped.
struct Name(u32, Record);

impl Drop for Name {
    fn drop(&mut self) {
        self.1.note(Event::Dropped(self.0));
    }
}

/// Coroutines, or the model of them.
trait World: Sized + 'static {
    type Yielder;
    type Coroutine;

    /// # Safety
    ///
    /// Dropped before what `body` borrows.
    unsafe fn make<F: FnOnce(&Self::Yielder, Order) -> Reply>(body: F) -> Self::Coroutine;
    /// As for `make`.
    unsafe fn reset<F>(old: Self::Coroutine, body: F) -> Self::Coroutine
    where
        F: FnOnce(&Self::Yielder, Order) -> Reply;
    fn resume(coroutine: &mut Self::Coroutine, order: Order) -> CoroutineState<Reply, Reply>;
    fn end(coroutine: &mut Self::Coroutine);
    fn is_done(coroutine: &Self::Coroutine) -> bool;
    fn suspend(yielder: &Self::Yielder, reply: Reply) -> Order;
}

struct Real<B>(B);

impl<B: Backend> World for Real<B> {
    type Yielder = Yielder<Order, Reply, B>;
    type Coroutine = Coroutine<Order, Reply, Reply, Slab<'static>, B>;

    unsafe fn make<F: FnOnce(&Self::Yielder, Order) -> Reply>(body: F) -> Self::Coroutine {
        // SAFETY: the caller's promise.
        unsafe { Coroutine::with_stack_unchecked(Slab::default(), body) }
    }

    unsafe fn reset<F>(old: Self::Coroutine, body: F) -> Self::Coroutine
    where
        F: FnOnce(&Self::Yielder, Order) -> Reply,
    {
        // SAFETY: the caller's promise.
        unsafe { Coroutine::with_stack_unchecked(old.into_stack(), body) }
    }

    fn resume(coroutine: &mut Self::Coroutine, order: Order) -> CoroutineState<Reply, Reply> {
        coroutine.resume(order)
    }

    fn end(coroutine: &mut Self::Coroutine) {
        coroutine.end();
    }

    fn is_done(coroutine: &Self::Coroutine) -> bool {
        coroutine.is_done()
    }

    fn suspend(yielder: &Self::Yielder, reply: Reply) -> Order {
        yielder.suspend(reply)
    }
}

/// A node's yielder, and those of the nodes above it, on their stacks.
struct Chain<W: World> {
    yielder: *const W::Yielder,
    up: *const Chain<W>,
}

impl<W: World> Chain<W> {
    /// The yielder that many levels above, or the highest.
    fn above(&self, levels: usize) -> &W::Yielder {
        // SAFETY: a node is owned by a frame of the node above it, and is dropped before that one's chain.
        unsafe {
            match self.up.as_ref() {
                Some(up) if levels > 0 => up.above(levels - 1),
                _ => &*self.yielder,
            }
        }
    }
}

/// The children of a node.
struct Children<W: World> {
    list: Vec<W::Coroutine>,
    of: u32,
    record: Record,
}

impl<W: World> Children<W> {
    fn find(&self, number: u8) -> Option<usize> {
        usize::from(number).checked_rem(self.list.len())
    }

    /// The child that a path leads to, among those that can be resumed.
    fn lead(&mut self, path: &mut Vec<u8>) -> Option<&mut W::Coroutine> {
        let mut able: Vec<_> = self.list.iter_mut().filter(|child| !W::is_done(child)).collect();
        let number = usize::from(path.pop()?).checked_rem(able.len())?;
        Some(able.swap_remove(number))
    }

    /// Does what is ordered, or passes it on. `Err` tells the node to return.
    fn perform(&mut self, here: *const Chain<W>, mut order: Order) -> Result<Reply, Reply> {
        if let Some(child) = self.lead(&mut order.0.path) {
            let (mut reply, ended) = match W::resume(child, order) {
                CoroutineState::Yielded(reply) => (reply, false),
                CoroutineState::Complete(reply) => (reply, true),
            };
            reply.way.rotate_right(1);
            reply.way[0] = self.of;
            reply.ended |= ended;
            return Ok(reply);
        }
        let (reply, child) = match order.0.act {
            Act::Say(word) => (self.reply(Answer::Done(word)), None),
            Act::Panic(word) => throw(Panic::Told(word)),
            Act::Return(word) => return Err(self.reply(Answer::Done(word))),
            Act::New(nature) => {
                // SAFETY: owned by the node whose chain `here` is, and dropped before that.
                self.list.push(unsafe { W::make(node(here, nature, &self.record)) });
                (self.reply(Answer::Done(0)), None)
            }
            Act::Drop(child) | Act::End(child) | Act::Reset(child, _) | Act::Swap(child, _) => {
                (self.reply(Answer::Done(0)), Some(child))
            }
        };
        let Some(child) = child else { return Ok(reply) };
        let Some(child) = self.find(child) else { return Ok(self.reply(Answer::NoSuchChild)) };
        match order.0.act {
            Act::Drop(_) => drop(self.list.remove(child)),
            Act::End(_) => W::end(&mut self.list[child]),
            Act::Reset(_, nature) => {
                let body = node(here, nature, &self.record);
                // SAFETY: as above.
                let reset = unsafe { W::reset(self.list.remove(child), body) };
                self.list.insert(child, reset);
            }
            Act::Swap(_, other) => {
                let other = self.find(other).expect("there is one");
                self.list.swap(child, other);
            }
            _ => unreachable!(),
        }
        Ok(reply)
    }

    fn reply(&self, answer: Answer) -> Reply {
        Reply { answer, way: [self.of, 0, 0, 0], ended: false, _weight: self.record.weight() }
    }
}

impl<W: World> Drop for Children<W> {
    /// One after the other. What they throw stays here, since this may run because of a panic.
    fn drop(&mut self) {
        while let Some(child) = self.list.pop() {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(child))) {
                self.record.note(Event::AtTheEnd(Panic::of(&*payload)));
            }
        }
    }
}

fn throw(panic: Panic) -> ! {
    resume_unwind(Box::new(panic))
}

/// The body of a node.
fn node<W: World>(
    up: *const Chain<W>,
    nature: Nature,
    record: &Record,
) -> impl FnOnce(&W::Yielder, Order) -> Reply + use<W> {
    let mut inner = record.0.lock().unwrap();
    inner.nodes += 1;
    let name = Name(inner.nodes, record.clone());
    move |yielder, first| {
        let Name(number, record) = &name;
        record.note(Event::Began(*number));
        let here = Chain { yielder, up };
        let mut children = Children { list: Vec::new(), of: *number, record: record.clone() };
        let mut patience = nature.patience;
        let mut next = Ok(first);
        loop {
            let step = catch_unwind(AssertUnwindSafe(|| {
                let (via, reply) = match next {
                    Ok(order) => (order.0.via, children.perform(&here, order)?),
                    Err(panic) => (nature.via, children.reply(Answer::Caught(panic))),
                };
                Ok(W::suspend(here.above(via), reply))
            }));
            next = match step {
                Ok(Ok(order)) => Ok(order),
                Ok(Err(last)) => return last,
                Err(payload) => {
                    let panic = Panic::of(&*payload);
                    record.note(Event::Caught(*number, panic));
                    match (patience.checked_sub(1), nature.then) {
                        (Some(less), _) => patience = less,
                        (None, Then::Pass) => resume_unwind(payload),
                        (None, Then::Throw) => throw(Panic::Bomb(*number)),
                        (None, Then::Return) => return children.reply(Answer::Caught(panic)),
                    }
                    Err(panic)
                }
            };
        }
    }
}

/// Carries the plans out, drops the whole tree, and hands over what has happened.
fn run<W: World>(plans: &[Plan]) -> Vec<Event> {
    let record = Record::default();
    let mut root = Children::<W> { list: Vec::new(), of: 0, record: record.clone() };
    for plan in plans {
        let order = Order(plan.clone(), record.weight());
        let event = match catch_unwind(AssertUnwindSafe(|| root.perform(std::ptr::null(), order))) {
            Ok(Ok(reply) | Err(reply)) => Event::Replied(reply.answer, reply.way, reply.ended),
            Err(payload) => Event::Panicked(Panic::of(&*payload)),
        };
        record.note(event);
    }
    drop(root);
    let mut inner = record.0.lock().unwrap();
    let mut dropped: Vec<_> = inner.events.iter().filter_map(Event::dropped).collect();
    dropped.sort_unstable();
    assert_eq!(dropped, (1..=inner.nodes).collect::<Vec<_>>(), "every body once");
    assert_eq!(inner.weights, 0, "every order and every reply once");
    std::mem::take(&mut inner.events)
}

impl Event {
    fn dropped(&self) -> Option<u32> {
        if let Event::Dropped(number) = self { Some(*number) } else { None }
    }
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let levels = || prop_oneof![3 => Just(0), 2 => 1..4_usize];
    let nature = || {
        let then =
            prop_oneof![2 => Just(Then::Pass), 1 => Just(Then::Throw), 1 => Just(Then::Return)];
        (0..4_u8, levels(), then).prop_map(|(patience, via, then)| Nature { patience, via, then })
    };
    let act = prop_oneof![
        4 => any::<u32>().prop_map(Act::Say),
        8 => nature().prop_map(Act::New),
        1 => any::<u32>().prop_map(Act::Panic),
        1 => any::<u32>().prop_map(Act::Return),
        1 => any::<u8>().prop_map(Act::Drop),
        1 => any::<u8>().prop_map(Act::End),
        1 => (any::<u8>(), nature()).prop_map(|(child, nature)| Act::Reset(child, nature)),
        1 => any::<(u8, u8)>().prop_map(|(one, other)| Act::Swap(one, other)),
    ];
    let path = prop::collection::vec(any::<u8>(), 0..6);
    let plan = (path, levels(), act).prop_map(|(path, via, act)| Plan { path, via, act });
    prop::collection::vec(plan, 1..60)
}

fn a_tree_of_coroutines_does_what_a_tree_of_threads_does<B: Tested>() {
    let config =
        ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(plans in plans())| {
        prop_assert_eq!(run::<Real<B>>(&plans), run::<Threads>(&plans));
    });
}
