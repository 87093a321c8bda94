//! Control and values pass between members, from any depth, and through coroutines, groups and threads.

use crate::on_every_backend;
use crate::support::backends::Tested;
use crate::support::{in_child, is_child};
use crate::{Body, Log, MIB, Noted, Slabs, Transfers, deeper, group, panic_of, panic_with, stack};
use sleave_context::CoroutineState::{Complete, Yielded};
use sleave_context::coroutine::scope;
use sleave_context::stack::{Slab, Stack};
use sleave_context::symmetric::{Ended, Exit, Member};
use sleave_context::{Coroutine, Yielder};
use std::cell::RefCell;
use std::fmt::Debug;
use std::os::unix::process::ExitStatusExt;
use std::rc::Rc;

on_every_backend! {
    a_token_goes_round_a_ring_of_a_thousand,
    values_of_any_size_and_alignment_arrive,
    a_transfer_to_oneself_returns_at_once,
    members_add_members,
    a_group_is_re_entered_from_other_depths,
    a_group_is_entered_from_inside_of_coroutines,
    groups_nest,
    a_group_in_a_coroutine_in_a_group,
    a_member_transfers_from_inside_of_a_coroutine,
    a_destructor_may_transfer,
    a_member_may_recurse_deeply,
    a_member_that_overflows_its_stack_ends_the_process,
    groups_on_two_threads_do_not_meet,
}

fn a_token_goes_round_a_ring_of_a_thousand<B: Tested>() {
    const MEMBERS: usize = 1000;
    const ROUNDS: usize = 20;
    let names = Rc::new(RefCell::new(Vec::new()));
    let turns = Rc::new(RefCell::new(vec![0; MEMBERS]));
    let mut group = group::<usize, B>();
    for place in 0..MEMBERS {
        let (ring, turns) = (names.clone(), turns.clone());
        let name = group.add_on(Slab::new(16 * 1024).unwrap(), move |member, mut token| {
            let next = ring.borrow()[(place + 1) % MEMBERS];
            assert_eq!(ring.borrow()[place], member.id());
            loop {
                assert_eq!(token % MEMBERS, place, "it is this member's turn");
                turns.borrow_mut()[place] += 1;
                if token + 1 == MEMBERS * ROUNDS {
                    return Exit::Leave(token + 1);
                }
                token = member.transfer(next, token + 1).unwrap();
            }
        });
        names.borrow_mut().push(name);
    }
    let first = names.borrow()[0];
    assert_eq!(group.enter(first, 0), Ok(MEMBERS * ROUNDS));
    assert_eq!(*turns.borrow(), vec![ROUNDS; MEMBERS]);
    assert_eq!(group.len(), MEMBERS - 1);
}

fn values_of_any_size_and_alignment_arrive<B: Tested>() {
    #[derive(Clone, Debug, PartialEq)]
    #[repr(align(64))]
    struct Aligned(u8);

    fn passes<T: Clone + Debug + PartialEq + 'static, B: Tested>(value: T) {
        let sent = value.clone();
        let mut group = group::<T, B>();
        let last = group.add_on(stack(), |member, mut value| {
            loop {
                value = member.leave(value);
            }
        });
        let ends = group.add_on(stack(), move |_, value| Exit::To(last, value));
        let first = group.add_on(stack(), move |member, value| {
            let value = member.transfer(member.id(), value).unwrap();
            let value = member.transfer(ends, value).unwrap();
            Exit::Leave(value)
        });
        assert_eq!(
            group.enter(first, sent),
            Ok(value.clone()),
            "by enter, transfer, the end of one, leave"
        );
        assert_eq!(group.enter(first, value.clone()), Ok(value.clone()), "by the end of a member");
        assert_eq!(group.enter(first, value.clone()), Err(Ended(value)));
    }
    passes::<_, B>(());
    passes::<_, B>(7_u8);
    passes::<_, B>((1_u8, 2_u32, 3_u8)); // with padding
    passes::<_, B>(u128::MAX);
    passes::<_, B>(Some(&5));
    passes::<_, B>([0xa5_u8; 1024]);
    passes::<_, B>(Aligned(3));
    passes::<_, B>(String::from("text"));
}

fn a_transfer_to_oneself_returns_at_once<B: Tested>() {
    let mut group = group::<u32, B>();
    let only = group.add_on(stack(), |member, value| {
        let sum = (0..1000).fold(value, |sum, n| sum + member.transfer(member.id(), n).unwrap());
        Exit::Leave(sum)
    });
    assert_eq!(group.enter(only, 1), Ok(1 + 999 * 1000 / 2));
}

fn members_add_members<B: Tested>() {
    fn grows<B: Tested>(member: &Member<usize, Slabs, B>, depth: usize) -> Exit<usize> {
        if depth == 0 {
            return Exit::Leave(0);
        }
        let child = member.add_on(Slab::new(16 * 1024).unwrap(), move |child, parent_depth| {
            assert_eq!(parent_depth, depth);
            grows(child, depth - 1)
        });
        match depth % 2 {
            0 => Exit::To(child, depth),
            _ => Exit::Leave(member.transfer(child, depth).unwrap()),
        }
    }
    let mut group = group::<usize, B>();
    let root = group.add_on(stack(), grows);
    assert_eq!(group.enter(root, 500), Ok(0));
    assert_eq!(group.len(), 250, "the odd ones wait");
}

fn a_group_is_re_entered_from_other_depths<B: Tested>() {
    let mut group = group::<usize, B>();
    let other = group.add_on(stack(), |member, mut value| {
        loop {
            value = deeper(value % 7, &mut || member.leave(value + 1));
        }
    });
    let first = group.add_on(stack(), move |member, mut value| {
        loop {
            value = deeper(value % 5, &mut || member.transfer(other, value + 1).unwrap());
        }
    });
    for n in 0..100 {
        let here = deeper(n * 37 % 50, &mut || {
            let name = if n % 2 == 0 { first } else { other };
            group.enter(name, n).unwrap()
        });
        assert_eq!(here, if n % 2 == 0 { n + 2 } else { n + 1 });
    }
}

fn a_group_is_entered_from_inside_of_coroutines<B: Tested>() {
    let mut group = group::<u32, B>();
    let adds = group.add_on(stack(), |member, mut sum| {
        loop {
            sum += member.leave(sum);
        }
    });
    assert_eq!(group.enter(adds, 1), Ok(1));
    // The group is the coroutine's meanwhile, and comes back.
    for round in 1..=3 {
        let body = move |yielder: &Yielder<u32, u32, B>, value| {
            let sum = group.enter(adds, value).unwrap();
            let value = yielder.suspend(sum);
            let sum = group.enter(adds, value).unwrap();
            (group, sum)
        };
        let mut coroutine = Coroutine::with_stack(stack(), body);
        assert_eq!(coroutine.resume(10).yielded(), Some(22 * round - 11));
        let (back, sum) = coroutine.resume(12).complete().unwrap();
        assert_eq!(sum, 1 + 22 * round);
        group = back;
    }
}

fn groups_nest<B: Tested>() {
    /// A member at each level has a group of its own; each value goes down to the last level and up again.
    fn level<B: Tested>(
        depth: u32,
        log: Log,
    ) -> impl FnOnce(&Member<u32, Slabs, B>, u32) -> Exit<u32> {
        move |member, mut value| {
            let _note = Noted(log.clone(), "unwound");
            let mut below = group::<u32, B>();
            let child = (depth > 0).then(|| {
                let body: Body<u32, B> = Box::new(level::<B>(depth - 1, log));
                below.add_on(stack(), body)
            });
            loop {
                if let Some(child) = child {
                    value = below.enter(child, value + 1).unwrap();
                }
                value = member.leave(value + 100);
            }
        }
    }
    let log = Log::default();
    let mut group = group::<u32, B>();
    let top = group.add_on(stack(), level::<B>(9, log.clone()));
    for n in 0..10 {
        assert_eq!(group.enter(top, n), Ok(n + 9 + 1000));
    }
    drop(group);
    assert_eq!(log.take().len(), 10);
}

fn a_group_in_a_coroutine_in_a_group<B: Tested>() {
    let log = Log::default();
    let mut outer = group::<u32, B>();
    let note = Noted(log.clone(), "the coroutine");
    let inner_note = Noted(log.clone(), "the member inside");
    let doubles = outer.add_on(stack(), |member, mut value| {
        loop {
            value = member.leave(2 * value);
        }
    });
    let name = outer.add_on(stack(), move |member, mut value| {
        let body = move |yielder: &Yielder<u32, u32, B>, mut value| -> () {
            let _note = note;
            let mut inner = group::<u32, B>();
            let adds = inner.add_on(stack(), move |member, mut value| {
                let _note = inner_note;
                loop {
                    value = member.leave(value + 1);
                }
            });
            loop {
                value = yielder.suspend(inner.enter(adds, value).unwrap());
            }
        };
        let mut coroutine = Coroutine::with_stack(stack(), body);
        loop {
            let Yielded(more) = coroutine.resume(value) else { unreachable!("it has no end") };
            value = member.transfer(doubles, more).unwrap();
        }
    });
    for n in 0..10 {
        assert_eq!(outer.enter(name, n), Ok(2 * (n + 1)));
    }
    drop(outer);
    assert_eq!(log.take(), ["the member inside", "the coroutine"]);
}

fn a_member_transfers_from_inside_of_a_coroutine<B: Tested>() {
    let log = Log::default();
    let mut group = group::<u32, B>();
    let other = group.add_on(stack(), |member, mut value| {
        loop {
            value = member.leave(value * 10);
        }
    });
    let note = log.clone();
    let nested = group.add_on(stack(), move |member, first| {
        let _outside = Noted(note.clone(), "the member");
        // Borrows the member: all of it is one flow of control, whoever of them is suspended.
        let sum = scope(
            |yielder, value: u32| {
                let _inside = Noted(note.clone(), "the coroutine");
                let value = member.transfer(other, value + 1).unwrap();
                let value = yielder.suspend(value);
                let value = member.transfer(other, value).unwrap();
                value + member.transfer(other, value).unwrap()
            },
            |mut coroutine| {
                let Yielded(value) = coroutine.resume(first) else { unreachable!("it yields") };
                // Between the two, the member transfers on its own stack.
                let value = member.transfer(other, value).unwrap();
                let Complete(sum) = coroutine.resume(value) else { unreachable!("it ends") };
                sum
            },
        );
        Exit::Leave(sum)
    });
    // Control comes back to the coroutine from whoever transfers to the member, here from outside.
    assert_eq!(group.enter(nested, 1), Ok(20));
    assert_eq!(group.enter(nested, 2), Ok(20), "other's answer to the member's own transfer");
    assert_eq!(group.enter(nested, 3), Ok(30));
    assert_eq!(log.borrow().len(), 0);
    drop(group);
    assert_eq!(log.take(), ["the coroutine", "the member"]);
}

fn a_destructor_may_transfer<B: Tested>() {
    let mut group = group::<u32, B>();
    let log = Log::default();
    let other = group.add_on(stack(), |member, mut value| {
        loop {
            value = member.leave(value + 1);
        }
    });
    for panics in [false, true] {
        let note = log.clone();
        let name = group.add_on(stack(), move |member, value| {
            let _first = Noted(note, "after the transfer");
            let _then = Transfers(member, other);
            if panics { panic_with("while it unwinds") } else { Exit::Leave(value) }
        });
        assert_eq!(group.enter(name, 1), Ok(8), "the other one's answer to the destructor");
        // It goes on within its destructor.
        match panics {
            false => assert_eq!(group.enter(name, 0), Ok(1)),
            true => assert_eq!(panic_of(|| group.enter(name, 0)), "while it unwinds"),
        }
        assert_eq!(log.take(), ["after the transfer"]);
        assert!(!std::thread::panicking());
    }
}

/// Recurses down to the address `last`, and counts the frames. On the way back every hundredth leaves, with its depth.
#[inline(never)]
fn descends<B: Tested>(member: &Member<usize, Slabs, B>, last: usize, depth: usize) -> usize {
    let frame = std::hint::black_box([depth; 32]);
    let mut count = 1;
    if &raw const frame as usize > last {
        count += descends(member, last, depth + 1);
    }
    if depth.is_multiple_of(100) {
        member.leave(depth);
    }
    assert_eq!(std::hint::black_box(frame), [depth; 32]);
    count
}

fn a_member_may_recurse_deeply<B: Tested>() {
    let mut group = group::<usize, B>();
    let stack = Slab::new(8 * MIB).unwrap();
    // All of it but what a panic's message would need.
    let last = stack.limit().as_ptr() as usize + 32 * 1024;
    let name = group.add_on(stack, move |member, _| Exit::Leave(descends(member, last, 0)));
    let deepest = group.enter(name, 0).unwrap();
    assert!(deepest > 1000, "as deep as the stack is");
    for depth in (0..deepest).step_by(100).rev() {
        assert_eq!(group.enter(name, 0), Ok(depth));
    }
    let frames = group.enter(name, 0).unwrap();
    assert!((deepest + 1..=deepest + 100).contains(&frames), "{frames} frames, {deepest} deep");
}

fn a_member_that_overflows_its_stack_ends_the_process<B: Tested>() {
    let name =
        format!("transfer::{}::a_member_that_overflows_its_stack_ends_the_process", B::MODULE);
    if !is_child(&name) {
        let output = in_child(&name);
        return assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}");
    }
    let mut group = group::<usize, B>();
    let name = group.add_on(stack(), |member, _| Exit::Leave(descends(member, 0, 0)));
    let _ = group.enter(name, 0);
}

fn groups_on_two_threads_do_not_meet<B: Tested>() {
    const ROUNDS: usize = if cfg!(debug_assertions) { 300 } else { 3000 };
    std::thread::scope(|scope| {
        for thread in 0..2_usize {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mut group = group::<usize, B>();
                    let last =
                        group.add_on(stack(), move |_, value| Exit::Leave(value * 2 + thread));
                    let middle = group.add_on(stack(), move |member, value| {
                        let home = std::thread::current().id();
                        let value = member.leave(value);
                        assert_eq!(std::thread::current().id(), home);
                        Exit::To(last, value + 1)
                    });
                    assert_eq!(group.enter(middle, round), Ok(round));
                    let left = (round % 3 != 0).then(|| group.enter(middle, round).unwrap());
                    assert_eq!(left.unwrap_or(2 * round + 2 + thread), 2 * round + 2 + thread);
                }
            });
        }
    });
}
