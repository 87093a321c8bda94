//! Random programs of groups, on every backend, against a model that predicts each step.
//!
//! A program is one list of actions. Whoever runs takes the next one: the program's owner, who is in no group, or a
//! member of a group, of which any flow of control may found some. Everything that happens is logged: who acts, which
//! value arrives where, what is dropped when, which panic is caught by whom. The model interprets the same list without
//! any coroutine, as a machine with explicit frames, and must come to the same log.
#![cfg(feature = "std")]

mod machine;
#[path = "../support/mod.rs"]
mod support;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sleave_context::stack::{Arena, Slab};
use sleave_context::symmetric::{Exit, Group, Id, Member};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Once;
use support::arena;
use support::backends::Tested;

on_every_backend! {
    random_programs_of_groups_do_what_the_model_says,
}

/// What whoever runs does next. What it cannot do it passes over; who is meant is a number of all that ever were.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// Adds a member to the group that it has founded last, or else to the one that it is in.
    Add,
    /// Adds a member to the group that it is in.
    AddBeside,
    /// Enters the group that it has founded last.
    Enter(usize),
    Transfer(usize),
    Leave,
    /// Calls a function, which goes on with the actions.
    Call,
    /// As well, and catches what that panics with.
    Catch,
    /// As well, and founds a group before, which is dropped when the function has returned.
    Found,
    /// Returns from the last function; a body goes out of the group.
    Return,
    /// Returns from all functions and the body, to a member.
    EndTo(usize),
    Panic,
}

fn action() -> impl Strategy<Value = Action> {
    use Action::*;
    prop_oneof![
        10 => Just(Add),
        4 => Just(AddBeside),
        14 => (0..20_usize).prop_map(Enter),
        14 => (0..20_usize).prop_map(Transfer),
        6 => Just(Leave),
        2 => Just(Call),
        6 => Just(Catch),
        2 => Just(Found),
        2 => Just(Return),
        4 => (0..20_usize).prop_map(EndTo),
        2 => Just(Panic),
    ]
}

/// What a panic carries.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Payload {
    /// [`Action::Panic`]'s, with a number.
    Own(u32),
    /// A member has ended with a transfer to one that had ended.
    Nowhere,
    /// The member's group is being dropped.
    Unwinding,
}

#[derive(Clone, Debug, PartialEq)]
enum Event {
    /// This flow of control takes the next action.
    Acts(usize),
    /// A value has arrived here.
    Got(usize, u32),
    ValueDropped(u32),
    GuardDropped(u32),
    Caught(usize, Payload),
}

/// What all flows of control of a program share.
struct World {
    actions: RefCell<std::vec::IntoIter<Action>>,
    log: RefCell<Vec<Event>>,
    /// The names of flow 1 and further.
    names: RefCell<Vec<Id>>,
    guards: Cell<u32>,
    values: Cell<u32>,
    panics: Cell<u32>,
    /// So many groups are being dropped because of a panic: another one would abort.
    cleanups: Cell<u32>,
    arena: &'static Arena,
}

/// Something on the stack, or in a body.
struct Guard(Rc<World>, u32);

/// What goes from one to the other.
struct Value(Rc<World>, u32);

fn count(counter: &Cell<u32>) -> u32 {
    counter.set(counter.get() + 1);
    counter.get()
}

impl World {
    fn note(&self, event: Event) {
        self.log.borrow_mut().push(event);
    }

    fn guard(self: &Rc<World>) -> Guard {
        Guard(self.clone(), count(&self.guards))
    }

    fn value(self: &Rc<World>) -> Value {
        Value(self.clone(), count(&self.values))
    }

    /// The name that is meant by a number.
    fn name(&self, number: usize) -> Option<Id> {
        let names = self.names.borrow();
        (!names.is_empty()).then(|| names[number % names.len()])
    }

    fn stack(&self) -> Slab<'static> {
        Slab::from_arena(self.arena, 128 * 1024).unwrap()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.note(Event::GuardDropped(self.1));
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.0.note(Event::ValueDropped(self.1));
    }
}

fn payload_of(payload: &(dyn Any + Send)) -> Payload {
    match payload.downcast_ref::<Payload>() {
        Some(payload) => *payload,
        None if payload.is::<&str>() => Payload::Nowhere,
        None => Payload::Unwinding,
    }
}

type In<B> = Member<Value, Slab<'static>, B>;

/// A group that a function has founded.
struct Founded<B: Tested> {
    world: Rc<World>,
    group: Option<Group<Value, Slab<'static>, B>>,
    /// The function returns, it does not unwind.
    returns: bool,
}

impl<B: Tested> Drop for Founded<B> {
    fn drop(&mut self) {
        let cleanups = &self.world.cleanups;
        if self.returns {
            return self.group = None;
        }
        cleanups.set(cleanups.get() + 1);
        self.group = None;
        cleanups.set(cleanups.get() - 1);
    }
}

/// One flow of control: the owner of the program, or a member.
struct Actor<'a, B: Tested> {
    world: &'a Rc<World>,
    number: usize,
    member: Option<&'a In<B>>,
}

/// How a function ends.
enum Over {
    Returned,
    /// The body ends with a transfer.
    To(Id),
}

impl<B: Tested> Actor<'_, B> {
    /// A function that does what the actions say, with the group that was founded last.
    fn act(&self, mut own: Option<&mut Founded<B>>) -> Over {
        let world = self.world;
        let _guard = world.guard();
        loop {
            world.note(Event::Acts(self.number));
            let Some(action) = world.actions.borrow_mut().next() else { return Over::Returned };
            let over = match action {
                Action::Call => self.act(own.as_deref_mut()),
                Action::Found => self.found(),
                Action::Catch => {
                    let call = AssertUnwindSafe(|| self.act(own.as_deref_mut()));
                    catch_unwind(call).unwrap_or_else(|payload| {
                        world.note(Event::Caught(self.number, payload_of(&*payload)));
                        Over::Returned
                    })
                }
                Action::Return => return Over::Returned,
                Action::EndTo(_) if world.cleanups.get() > 0 => Over::Returned,
                Action::EndTo(to) => world.name(to).map_or(Over::Returned, Over::To),
                Action::Panic if world.cleanups.get() > 0 => Over::Returned,
                Action::Panic => resume_unwind(Box::new(Payload::Own(count(&world.panics)))),
                action => {
                    self.pass(action, own.as_deref_mut());
                    Over::Returned
                }
            };
            if let (Over::To(to), Some(_)) = (over, self.member) {
                return Over::To(to);
            }
        }
    }

    /// A function that founds a group.
    fn found(&self) -> Over {
        let group = Some(Group::with_stacks());
        let mut founded = Founded { world: self.world.clone(), group, returns: false };
        let over = self.act(Some(&mut founded));
        founded.returns = true;
        over
    }

    /// Adds a member, or passes control.
    fn pass(&self, action: Action, own: Option<&mut Founded<B>>) {
        let world = self.world;
        let group = own.and_then(|own| own.group.as_mut());
        let result = match (action, group, self.member) {
            (Action::Add, Some(group), _) => {
                return self.add(|stack, body| group.add_on(stack, body));
            }
            (Action::Add | Action::AddBeside, _, Some(member)) => {
                return self.add(|stack, body| member.add_on(stack, body));
            }
            (Action::Enter(to), Some(group), _) => {
                let Some(name) = world.name(to) else { return };
                group.enter(name, world.value())
            }
            (Action::Transfer(to), _, Some(member)) => {
                let Some(name) = world.name(to) else { return };
                member.transfer(name, world.value())
            }
            (Action::Leave, _, Some(member)) => Ok(member.leave(world.value())),
            _ => return,
        };
        if let Ok(value) = result {
            world.note(Event::Got(self.number, value.1));
        }
    }

    fn add(&self, add: impl FnOnce(Slab<'static>, Body<B>) -> Id) {
        let (world, captured) = (self.world.clone(), self.world.guard());
        let number = world.names.borrow().len() + 1;
        let body: Body<B> = Box::new(move |member, value| {
            let _captured = captured;
            world.note(Event::Got(number, value.1));
            drop(value);
            let actor = Actor { world: &world, number, member: Some(member) };
            match actor.act(None) {
                Over::Returned => Exit::Leave(world.value()),
                Over::To(to) => Exit::To(to, world.value()),
            }
        });
        let name = add(self.world.stack(), body);
        self.world.names.borrow_mut().push(name);
    }
}

type Body<B> = Box<dyn FnOnce(&In<B>, Value) -> Exit<Value>>;

/// What really happens.
fn run<B: Tested>(actions: Vec<Action>, arena: &'static Arena) -> Vec<Event> {
    let world = Rc::new(World {
        actions: RefCell::new(actions.into_iter()),
        log: RefCell::default(),
        names: RefCell::default(),
        guards: Cell::default(),
        values: Cell::default(),
        panics: Cell::default(),
        cleanups: Cell::default(),
        arena,
    });
    let owner = Actor::<B> { world: &world, number: 0, member: None };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| owner.found())) {
        world.note(Event::Caught(0, payload_of(&*payload)));
    }
    assert_eq!(Rc::strong_count(&world), 1, "no value and no guard is left");
    assert_eq!(arena.stats().live(), 0, "no stack is left");
    world.log.take()
}

/// Panics of `Group::enter` are part of the game, and need no message.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload_as_str().is_some_and(|text| text.starts_with("a member ended with")) {
                hook(info);
            }
        }));
    });
}

fn random_programs_of_groups_do_what_the_model_says<B: Tested>() {
    silence();
    let arena: &'static Arena = Box::leak(Box::new(arena(64 << 20)));
    let cases = if cfg!(debug_assertions) { 1_000 } else { 20_000 };
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let programs = prop::collection::vec(action(), 0..80);
    let result = runner.run(&programs, |actions| {
        let predicted = machine::predict(&actions);
        prop_assert_eq!(run::<B>(actions, arena), predicted);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
