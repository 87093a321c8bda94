//! Members end: names, values and stacks that are left, panics.

use crate::on_every_backend;
use crate::support::backends::Tested;
use crate::{
    Body, Log, MIB, Noted, STACK, Slabs, group, leaked_arena, panic_of, panic_with, stack,
};
use sleave_context::stack::{Arena, Slab, Stack};
use sleave_context::symmetric::{Ended, Exit, Group, Id, Member};
use std::cell::RefCell;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::rc::Rc;

on_every_backend! {
    an_ended_member_gives_the_value_back,
    a_member_of_another_group_is_nobody_here,
    a_name_is_never_used_again,
    a_group_counts_its_members,
    a_value_is_dropped_once_wherever_it_ends,
    a_panic_reaches_whoever_entered,
    a_stack_is_dropped_on_the_targets_stack,
    an_exit_to_nobody_panics_in_enter,
    a_hundred_thousand_members_one_by_one_need_one_stack,
    a_chain_of_a_hundred_thousand_members_needs_two_stacks,
}

fn a_value_is_dropped_once_wherever_it_ends<B: Tested>() {
    let value = Rc::new(());
    let alive = |count: usize| assert_eq!(Rc::strong_count(&value), 1 + count);
    let mut group = group::<Rc<()>, B>();

    let drops = group.add_on(stack(), |member, value| {
        drop(value);
        loop {
            drop(member.leave(Rc::new(())));
        }
    });
    group.enter(drops, value.clone()).unwrap();
    alive(0);

    let keeps = group.add_on(stack(), |member, first| {
        let second = member.leave(Rc::new(()));
        drop(member.leave(Rc::new(())));
        drop((first, second));
        Exit::Leave(Rc::new(()))
    });
    group.enter(keeps, value.clone()).unwrap();
    alive(1);
    group.enter(keeps, value.clone()).unwrap();
    alive(2);

    let panics = group.add_on(stack(), |_, _value| panic_with("with a value"));
    assert_eq!(panic_of(|| group.enter(panics, value.clone())), "with a value");
    alive(2);

    let Err(Ended(back)) = group.enter(panics, value.clone()) else { panic!("it has ended") };
    alive(3);
    drop(back);

    let to_nobody = group.add_on(stack(), move |_, value| Exit::To(panics, value));
    panic_of(|| group.enter(to_nobody, value.clone()));
    alive(2);

    // On its way: suspended by a transfer, whose value has been received.
    let waits = group.add_on(stack(), move |member, value| {
        drop(member.transfer(drops, value));
        unreachable!("nobody transfers back")
    });
    group.enter(waits, value.clone()).unwrap();
    alive(2);

    // Returned to whoever drops the group, who does not want it.
    let returns = group.add_on(stack(), |member, value| {
        catch_unwind(AssertUnwindSafe(|| member.leave(Rc::new(())))).unwrap_err();
        Exit::Leave(value)
    });
    group.enter(returns, value.clone()).unwrap();
    // A body that never begins.
    let captured = value.clone();
    group.add_on(stack(), |_, _| Exit::Leave(captured));
    // One whose transfer cannot begin, since it unwinds.
    let tries = group.add_on(stack(), move |member, value| {
        catch_unwind(AssertUnwindSafe(|| member.leave(Rc::new(())))).unwrap_err();
        let _value = member.transfer(member.id(), value);
        unreachable!("the group is being dropped")
    });
    group.enter(tries, value.clone()).unwrap();
    alive(5);
    drop(group);
    alive(0);
}

fn an_ended_member_gives_the_value_back<B: Tested>() {
    let mut group = group::<String, B>();
    let ended = group.add_on(stack(), |_, value| Exit::Leave(value));
    let panicked = group.add_on(stack(), |_, _| panic_with("gone"));
    group.enter(ended, String::new()).unwrap();
    panic_of(|| group.enter(panicked, String::new()));
    for gone in [ended, panicked] {
        assert_eq!(group.enter(gone, "from outside".into()), Err(Ended("from outside".into())));
        let tries = group.add_on(stack(), move |member, value| {
            let Err(Ended(value)) = member.transfer(gone, value) else {
                unreachable!("it has ended")
            };
            Exit::Leave(value + " and back")
        });
        assert_eq!(group.enter(tries, "from inside".into()).unwrap(), "from inside and back");
    }
    assert!(!Ended(()).to_string().is_empty());
}

fn a_member_of_another_group_is_nobody_here<B: Tested>() {
    let mut here = group::<u8, B>();
    let mut there = group::<u8, B>();
    let stranger = there.add_on(stack(), |_, value| Exit::Leave(value + 1));
    // In the same seat.
    let local = here.add_on(stack(), move |member, value| {
        assert_eq!(member.transfer(stranger, 9), Err(Ended(9)));
        Exit::Leave(value + 2)
    });
    assert_ne!(stranger, local);
    assert_eq!(here.enter(stranger, 5), Err(Ended(5)));
    assert_eq!((here.enter(local, 5), there.enter(stranger, 5)), (Ok(7), Ok(6)));
}

fn a_name_is_never_used_again<B: Tested>() {
    let arena = leaked_arena();
    let mut group = group::<usize, B>();
    let mut names: Vec<Id> = Vec::new();
    for round in 0..1000 {
        let stack = Slab::from_arena(arena, STACK).unwrap();
        let name = group.add_on(stack, move |_, value| Exit::Leave(value + round));
        assert!(!names.contains(&name), "{name:?} named another one before");
        if let Some(&old) = names.last() {
            assert_eq!(group.enter(old, 1), Err(Ended(1)));
        }
        assert_eq!(group.enter(name, 1), Ok(1 + round));
        names.push(name);
    }
    // All have sat in one seat, and on one stack.
    assert_eq!(arena.stats().free(), 1);
    assert_eq!(group.len(), 0);
}

fn a_group_counts_its_members<B: Tested>() {
    let mut group = group::<(), B>();
    assert!(group.is_empty());
    let waits = group.add_on(stack(), |member, ()| {
        member.leave(());
        Exit::Leave(())
    });
    let panics = group.add_on(stack(), |_, ()| panic_with("one less"));
    assert_eq!(group.len(), 2);
    group.enter(waits, ()).unwrap();
    assert_eq!(group.len(), 2, "a suspended one has not ended");
    panic_of(|| group.enter(panics, ()));
    assert_eq!(group.len(), 1);
    group.enter(waits, ()).unwrap();
    assert!(group.is_empty());
}

fn a_panic_reaches_whoever_entered<B: Tested>() {
    let log = Log::default();
    let mut group = group::<u32, B>();
    let note = Noted(log.clone(), "unwound");
    let panics = group.add_on(stack(), move |_, value| {
        let _note = note;
        resume_unwind(Box::new(format!("with {value}")))
    });
    let hands_on = group.add_on(stack(), move |member, value| {
        let value = member.transfer(panics, value + 1).unwrap();
        Exit::Leave(value + 100)
    });
    assert_eq!(panic_of(|| group.enter(hands_on, 1)), "with 2");
    assert_eq!(*log.borrow(), ["unwound"]);
    assert_eq!(group.len(), 1);
    assert_eq!(group.enter(hands_on, 5), Ok(105), "the other one goes on where it was");
}

/// A stack that tells when it was dropped, and on which one.
struct Recorded {
    stack: Slabs,
    log: Rc<RefCell<Vec<Buried>>>,
}

/// A stack that was dropped, while the destructor stood at an address.
#[derive(Clone, Copy, Debug)]
struct Buried {
    top: usize,
    at: usize,
}

// SAFETY: it is the stack that it holds.
unsafe impl Stack for Recorded {
    fn top(&self) -> NonNull<u8> {
        self.stack.top()
    }

    fn limit(&self) -> NonNull<u8> {
        self.stack.limit()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let local = 0_u8;
        let at = std::hint::black_box(&raw const local) as usize;
        // Nobody stands on it any more, so that it may be written all over.
        let (limit, top) = (self.limit().as_ptr(), self.top().as_ptr());
        assert!(!(limit as usize..top as usize).contains(&at), "dropped by whoever stands on it");
        // SAFETY: the stack's own bytes; they are checked to be nobody's.
        unsafe { limit.write_bytes(0xcc, top as usize - limit as usize) };
        self.log.borrow_mut().push(Buried { top: top as usize, at });
    }
}

fn a_stack_is_dropped_on_the_targets_stack<B: Tested>() {
    let log = Rc::new(RefCell::new(Vec::new()));
    let recorded = || Recorded { stack: stack(), log: log.clone() };
    let here = 0_u8;
    let here = std::hint::black_box(&raw const here) as usize;
    let mut group = Group::<String, Recorded, B>::with_stacks();

    let (on_first, on_middle, on_last) = (recorded(), recorded(), recorded());
    let stacks = [&on_first, &on_middle, &on_last]
        .map(|on| on.limit().as_ptr() as usize..on.top().as_ptr() as usize);
    let buried = log.clone();
    let last = group.add_on(on_last, move |member, value| {
        let value = member.leave(value + " waits");
        assert_eq!(buried.borrow().len(), 2, "dropped before the target goes on");
        Exit::Leave(value + " out")
    });
    let buried = log.clone();
    let middle = group.add_on(on_middle, move |_, value| {
        assert_eq!(buried.borrow().len(), 1, "dropped before the target begins");
        Exit::To(last, value + " on")
    });
    let first = group.add_on(on_first, move |_, value| Exit::To(middle, value + " to"));
    assert_eq!(group.enter(last, "it".into()).unwrap(), "it waits");
    assert_eq!(log.borrow().len(), 0);
    assert_eq!(group.enter(first, "go".into()).unwrap(), "go to on out");

    let seen = log.take();
    let order: Vec<usize> = seen.iter().map(|buried| buried.top).collect();
    assert_eq!(order, stacks.each_ref().map(|stack| stack.end));
    assert!(stacks[1].contains(&seen[0].at), "on one that had not begun");
    assert!(stacks[2].contains(&seen[1].at), "on one that was suspended");
    assert!(seen[2].at.abs_diff(here) < MIB, "on the stack of whoever entered");

    // As well when the end is a panic, and when the group is dropped.
    let panics = group.add_on(recorded(), |_, _| panic_with("the end"));
    assert_eq!(panic_of(|| group.enter(panics, String::new())), "the end");
    assert_eq!(log.borrow().len(), 1);
    let waits = group.add_on(recorded(), |member, value| Exit::Leave(member.leave(value)));
    group.enter(waits, String::new()).unwrap();
    group.add_on(recorded(), |_, value| Exit::Leave(value));
    drop(group);
    let seen = log.take();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|buried| buried.at.abs_diff(here) < MIB), "{seen:?}");
}

fn an_exit_to_nobody_panics_in_enter<B: Tested>() {
    let mut group = group::<u32, B>();
    let ended = group.add_on(stack(), |_, value| Exit::Leave(value));
    let waits = group.add_on(stack(), |member, value| Exit::Leave(member.leave(value) + 1));
    group.enter(ended, 0).unwrap();
    group.enter(waits, 0).unwrap();
    let to_ended = group.add_on(stack(), move |_, value| Exit::To(ended, value));
    let log = Log::default();
    let note = Noted(log.clone(), "ended");
    let to_itself = group.add_on(stack(), move |member, value| {
        drop(note);
        Exit::To(member.id(), value)
    });
    for name in [to_ended, to_itself] {
        let words = panic_of(|| group.enter(name, 1));
        assert!(words.contains("has ended"), "{words}");
        assert_eq!(group.enter(name, 1), Err(Ended(1)), "it has ended itself");
    }
    assert_eq!(log.take(), ["ended"], "it has not begun again");
    assert_eq!(group.enter(waits, 5), Ok(6));
}

fn a_hundred_thousand_members_one_by_one_need_one_stack<B: Tested>() {
    let arena = leaked_arena();
    let mut group = group::<usize, B>();
    for n in 0..100_000 {
        let stack = Slab::from_arena(arena, 16 * 1024).unwrap();
        let name = group.add_on(stack, |_, value| Exit::Leave(value + 1));
        assert_eq!(group.enter(name, n), Ok(n + 1));
    }
    assert_eq!((arena.stats().live(), arena.stats().free()), (0, 1));
}

fn a_chain_of_a_hundred_thousand_members_needs_two_stacks<B: Tested>() {
    fn link<B: Tested>(
        arena: &'static Arena,
    ) -> impl FnOnce(&Member<u32, Slabs, B>, u32) -> Exit<u32> {
        move |member, left| {
            if left == 0 {
                return Exit::Leave(0);
            }
            let body: Body<u32, B> = Box::new(link(arena));
            let next = member.add_on(Slab::from_arena(arena, 16 * 1024).unwrap(), body);
            Exit::To(next, left - 1)
        }
    }
    let arena = leaked_arena();
    let mut group = group::<u32, B>();
    let first = group.add_on(Slab::from_arena(arena, 16 * 1024).unwrap(), link(arena));
    assert_eq!(group.enter(first, 100_000), Ok(0));
    assert_eq!((arena.stats().live(), arena.stats().free()), (0, 2));
    assert!(group.is_empty());
}
