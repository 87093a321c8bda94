//! Coroutines: a value there and a value back, a thousand in turn, and a whole life; on every backend and
//! beside other crates.
//!
//! All are 16 KiB stacks, each crate's own kind unless the row says otherwise.

use crate::{Comparison, Figure, pool, print_table};
use corosensei::CoroutineResult;
use corosensei::stack::DefaultStack;
use generator::{Generator, Gn};
use sleave_context::backend::{Backend, Native, Sigjmp, Ucontext};
use sleave_context::stack::{Mapped, Slab, Stack};
use sleave_context::symmetric::Group;
use sleave_context::{Coroutine, CoroutineState};
use std::hint::black_box;
use std::time::Duration;

const STACK: usize = 16 * 1024;
const MANY: usize = 1000;
/// How often the thousand are set up anew, in other memory: now and then a whole set is slow for as long as it lives.
const PLACES: usize = 9;
const SLICE: Duration = Duration::from_millis(1);

type Ours<B> = Coroutine<usize, usize, (), Slab<'static>, B>;
type Corosensei = corosensei::Coroutine<usize, usize, ()>;
type Peer = Generator<'static, usize, usize>;

/// Measures `rounds` rounds by turns, and prints a table for each question.
pub fn compare(rounds: usize) {
    there_and_back(rounds);
    a_thousand_in_turn(rounds);
    whole_lives(rounds);
}

fn slab() -> Slab<'static> {
    Slab::new(STACK).expect("a stack")
}

fn mapping() -> DefaultStack {
    DefaultStack::new(STACK).expect("a stack")
}

/// Gives back one more than it gets.
fn ours<B: Backend>() -> Ours<B> {
    Coroutine::with_stack(slab(), |yielder, mut number| {
        loop {
            number = yielder.suspend(number + 1);
        }
    })
}

/// The same by corosensei.
fn corosensei() -> Corosensei {
    Corosensei::with_stack(mapping(), |yielder, mut number| {
        loop {
            number = yielder.suspend(number + 1);
        }
    })
}

/// The same by generator.
fn generator() -> Peer {
    Gn::new_scoped_opt(STACK / size_of::<usize>(), |mut scope| {
        let mut number = 0;
        loop {
            number = scope.yield_(number + 1).unwrap_or_default();
        }
    })
}

fn resume_ours<B: Backend>(all: &mut [Ours<B>], n: u64) {
    let mut number = 0;
    for _ in 0..n {
        for one in &mut *all {
            let CoroutineState::Yielded(next) = one.resume(number) else {
                unreachable!("it loops")
            };
            number = next;
        }
    }
    black_box(number);
}

fn resume_corosensei(all: &mut [Corosensei], n: u64) {
    let mut number = 0;
    for _ in 0..n {
        for one in &mut *all {
            let CoroutineResult::Yield(next) = one.resume(number) else { unreachable!("it loops") };
            number = next;
        }
    }
    black_box(number);
}

fn resume_generator(all: &mut [Peer], n: u64) {
    let mut number = 0;
    for _ in 0..n {
        for one in &mut *all {
            number = one.send(number);
        }
    }
    black_box(number);
}

/// One coroutine: a resume and a yield, with a number each way.
fn there_and_back(rounds: usize) {
    let (mut native, mut sigjmp) = ([ours::<Native>()], [ours::<Sigjmp>()]);
    let (mut ucontext, mut corosensei) = ([ours::<Ucontext>()], [corosensei()]);
    let mut generator = [generator()];
    let mut group = Group::new();
    let echo = group.add(|member, mut number: usize| {
        loop {
            number = member.leave(number + 1);
        }
    });
    let mut comparison = Comparison::new();
    comparison.add("corosensei", 1, |n| resume_corosensei(&mut corosensei, n));
    comparison.add("generator", 1, |n| resume_generator(&mut generator, n));
    comparison.add(Native::NAME, 1, |n| resume_ours(&mut native, n));
    comparison.add(Sigjmp::NAME, 1, |n| resume_ours(&mut sigjmp, n));
    comparison.add(Ucontext::NAME, 1, |n| resume_ours(&mut ucontext, n));
    comparison.add("symmetric: enter, leave", 1, |n| {
        for number in 0..n as usize {
            black_box(group.enter(echo, number).expect("it loops"));
        }
    });
    let figures = comparison.measure(rounds, SLICE);
    print_table("One coroutine: resume and yield", "ns", &figures, "corosensei");
}

/// A thousand coroutines, round-robin.
fn a_thousand_in_turn(rounds: usize) {
    let figures: Vec<Vec<Figure>> = (0..PLACES)
        .map(|_| {
            let mut corosensei: Vec<_> = (0..MANY).map(|_| corosensei()).collect();
            let mut native: Vec<_> = (0..MANY).map(|_| ours::<Native>()).collect();
            let mut comparison = Comparison::new();
            let many = MANY as u64;
            comparison.add("corosensei", many, |n| resume_corosensei(&mut corosensei, n));
            comparison.add(Native::NAME, many, |n| resume_ours(&mut native, n));
            comparison.measure(rounds.div_ceil(PLACES), SLICE)
        })
        .collect();
    let figures = pool(figures);
    print_table("A thousand in turn: resume and yield", "ns", &figures, "corosensei");
}

/// Makes a coroutine, runs it to its end and drops it.
fn whole_lives(rounds: usize) {
    fn live<S: Stack + 'static>(stack: S, number: u64) -> S {
        let mut one = Coroutine::<u64, (), u64, S>::with_stack(stack, move |_, with| number + with);
        black_box(one.resume(1));
        one.into_stack()
    }
    fn live_corosensei(stack: DefaultStack, number: u64) -> DefaultStack {
        let mut one =
            corosensei::Coroutine::<u64, (), u64>::with_stack(stack, move |_, with| number + with);
        black_box(one.resume(1));
        one.into_stack()
    }
    let (mut kept, mut kept_mapping) = (Some(slab()), Some(mapping()));
    let mut comparison = Comparison::new();
    comparison.add("corosensei, one stack again and again", 1, |n| {
        for number in 0..n {
            kept_mapping = kept_mapping.take().map(|stack| live_corosensei(stack, number));
        }
    });
    comparison.add("sleave, one stack again and again", 1, |n| {
        for number in 0..n {
            kept = kept.take().map(|stack| live(stack, number));
        }
    });
    let figures = comparison.measure(rounds, SLICE);
    print_table(
        "A life on a stack that is there: create, run, drop",
        "ns",
        &figures,
        "corosensei, one stack again and again",
    );

    let mut comparison = Comparison::new();
    comparison.add("corosensei, a mapping each", 1, |n| {
        (0..n).for_each(|number| drop(live_corosensei(mapping(), number)));
    });
    comparison.add("sleave, a pooled stack each", 1, |n| {
        (0..n).for_each(|number| drop(live(slab(), number)));
    });
    comparison.add("sleave, a mapping each", 1, |n| {
        (0..n).for_each(|number| drop(live(Mapped::new(STACK).expect("a stack"), number)));
    });
    comparison.add("an OS thread each", 1, |n| {
        for number in 0..n {
            let thread = std::thread::spawn(move || black_box(number + 1));
            thread.join().expect("it cannot panic");
        }
    });
    let figures = comparison.measure(rounds, SLICE);
    print_table(
        "A life with a stack of its own: create, run, drop",
        "ns",
        &figures,
        "corosensei, a mapping each",
    );
}
