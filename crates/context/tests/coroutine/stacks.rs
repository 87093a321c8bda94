//! Coroutines and the stacks that they run on.

use crate::support::arena;
use crate::support::backends::Tested;
use crate::{Log, caught, co, on_every_backend, throw, words};
use sleave_context::CoroutineState::{Complete, Yielded};
use sleave_context::coroutine::scope_on;
use sleave_context::stack::{Arena, Mapped, Slab, Stack, Supplied};
use sleave_context::{Coroutine, ScopedCoroutine};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::sync::mpsc;

on_every_backend! {
    a_stack_is_reset_many_times_with_other_types,
    a_reset_ends_what_was_there,
    a_stack_comes_back_and_is_used_again,
    a_stack_returns_to_its_pool_however_the_body_ends,
    a_coroutine_runs_on_every_kind_of_stack,
    a_coroutine_that_borrows_is_made_unchecked,
    a_body_that_does_not_fit_is_refused_and_dropped,
    a_body_that_just_fits_runs,
    deep_recursion_uses_all_of_a_large_stack,
    a_forgotten_coroutine_leaves_its_memory_valid,
}

/// An arena that is never taken down, so that coroutines may own its stacks.
fn arena_for_ever() -> &'static Arena {
    Box::leak(Box::new(arena(256 << 20)))
}

fn a_stack_is_reset_many_times_with_other_types<B: Tested>() {
    let arena = arena_for_ever();
    let stack = Slab::from_arena(arena, 16 << 10).unwrap();
    let place = |stack: &Slab| (stack.limit(), stack.top());
    let first = place(&stack);
    let mut numbers: Coroutine<u64, u64, (), _, B> = Coroutine::with_stack(stack, |_, _| ());
    for round in 0..10_000 {
        let mut texts = numbers.reset(move |yielder, text: String| {
            yielder.suspend(());
            text + &round.to_string()
        });
        assert_eq!(texts.resume(String::from("round ")), Yielded(()));
        assert_eq!(texts.resume(String::new()), Complete(format!("round {round}")));
        numbers = texts.reset(|yielder, n: u64| _ = yielder.suspend(n + 1));
        assert_eq!(numbers.resume(round), Yielded(round + 1));
    }
    assert_eq!(place(&numbers.into_stack()), first);
    // One slot, used by all of them.
    let stats = arena.stats();
    assert_eq!((stats.live(), stats.free()), (0, 1));
}

fn a_reset_ends_what_was_there<B: Tested>() {
    let log = Log::new();
    let names = log.clone();
    let mut suspended = co::<B, (), (), (), _>(move |yielder, ()| {
        let _one = names.token(1);
        yielder.suspend(());
    });
    suspended.resume(());
    let captured = log.token(2);
    let fresh = suspended.reset::<(), (), _, _>(move |_, ()| drop(captured));
    assert_eq!(log.take(), [1]);
    let mut last = fresh.reset(|_, n: u8| n);
    assert_eq!(log.take(), [2]);
    assert!(!last.is_started());
    let _: sleave_context::CoroutineState<(), u8> = last.resume(3);
}

fn a_stack_comes_back_and_is_used_again<B: Tested>() {
    let mut stack = Slab::new(32 << 10).unwrap();
    let top = stack.top();
    for round in 0..1000_u32 {
        let mut coroutine: Coroutine<u32, u32, u32, _, B> =
            Coroutine::with_stack(stack, |yielder, n| yielder.suspend(n) + 1);
        match round % 4 {
            0 => {}
            1 => assert_eq!(coroutine.resume(round), Yielded(round)),
            2 => {
                coroutine.resume(round);
                assert_eq!(coroutine.resume(round), Complete(round + 1));
            }
            _ => coroutine.end(),
        }
        stack = coroutine.into_stack();
    }
    assert_eq!(stack.top(), top);
}

fn a_stack_returns_to_its_pool_however_the_body_ends<B: Tested>() {
    let arena = arena_for_ever();
    let make = || -> Coroutine<bool, (), (), _, B> {
        Coroutine::with_stack(Slab::from_arena(arena, 16 << 10).unwrap(), |yielder, panics| {
            if panics {
                throw(());
            }
            let panics = yielder.suspend(());
            if panics {
                throw(());
            }
        })
    };
    let live = |n| assert_eq!(arena.stats().live(), n);
    drop(make()); // never begun
    live(0);
    let mut suspended = make();
    suspended.resume(false);
    live(1);
    drop(suspended);
    live(0);
    let mut panicked = make();
    caught(|| panicked.resume(true));
    live(1);
    drop(panicked);
    live(0);
    // A body that panics while it is dropped: the panic passes, the stack returns all the same.
    let mut bomb: Coroutine<(), (), (), _, B> =
        Coroutine::with_stack(Slab::from_arena(arena, 16 << 10).unwrap(), |yielder, ()| {
            caught(|| yielder.suspend(()));
            throw(());
        });
    bomb.resume(());
    live(1);
    caught(|| drop(bomb));
    live(0);
}

/// A coroutine that uses some of its stack, on that stack.
fn runs_on<B: Tested, S: Stack + 'static>(stack: S) -> S {
    let (limit, top) = (stack.limit().as_ptr() as usize, stack.top().as_ptr() as usize);
    let mut coroutine: Coroutine<usize, usize, usize, S, B> =
        Coroutine::with_stack(stack, |yielder, n| {
            let local = black_box([n; 50]);
            let next = yielder.suspend(&raw const local as usize);
            local[next]
        });
    let at = coroutine.resume(5).yielded().unwrap();
    assert!((limit..top).contains(&at));
    assert_eq!(coroutine.resume(49), Complete(5));
    coroutine.into_stack()
}

fn a_coroutine_runs_on_every_kind_of_stack<B: Tested>() {
    runs_on::<B, _>(Slab::new(16 << 10).unwrap());
    let mapped = runs_on::<B, _>(Mapped::new(20_000).unwrap());
    runs_on::<B, _>(Box::new(mapped));
    runs_on::<B, _>(Box::new(Slab::default()) as Box<dyn Stack>);
    runs_on::<B, _>(Box::leak(Box::new(Slab::default())));
    // SAFETY: `runs_on` needs less than 60 KiB; of any alignment.
    let supplied =
        |at| unsafe { Supplied::new(&mut Vec::leak(vec![MaybeUninit::uninit(); 60_000])[at..]) };
    for at in 0..3 {
        runs_on::<B, _>(supplied(at).unwrap());
    }
    // Lent memory, for a scope.
    let mut memory = vec![MaybeUninit::uninit(); 60_000];
    // SAFETY: as above.
    let stack = unsafe { Supplied::new(&mut memory) }.unwrap();
    let sum: u32 = scope_on(
        stack,
        |yielder, ()| (1..=4).for_each(|n| yielder.suspend(n)),
        |coroutine: ScopedCoroutine<(), u32, (), Supplied, B>| coroutine.sum(),
    );
    assert_eq!(sum, 10);
}

fn a_coroutine_that_borrows_is_made_unchecked<B: Tested>() {
    let (mut sum, numbers) = (0, [1, 2, 3]);
    let mut stack = Slab::default();
    // SAFETY: dropped below, before what it borrows.
    let mut coroutine: Coroutine<(), (), (), &mut Slab, B> = unsafe {
        Coroutine::with_stack_unchecked(&mut stack, |yielder, ()| {
            for n in &numbers {
                sum += n;
                yielder.suspend(());
            }
        })
    };
    coroutine.by_ref().take(2).count();
    drop(coroutine);
    assert_eq!(sum, 3);
    drop(stack);
}

fn a_body_that_does_not_fit_is_refused_and_dropped<B: Tested>() {
    fn refused<B: Tested, const SIZE: usize>() {
        let log = Log::new();
        let captured = ([1_u8; SIZE], log.token(1));
        let said = words(|| {
            let stack = Slab::new(16 << 10).unwrap();
            let _: Coroutine<(), (), (), _, B> =
                Coroutine::with_stack(stack, |_, ()| drop(captured));
        });
        assert!(said.contains("does not fit its stack"), "{said}");
        assert_eq!(log.take(), [1]);
    }
    refused::<B, { 12 << 10 }>(); // as large as all of it
    refused::<B, { 11 << 10 }>(); // room for the body and nothing else
    refused::<B, { 6 << 10 }>(); // room for the body, and not for it to begin
    refused::<B, { 60 << 10 }>(); // reaches far below the stack
}

fn a_body_that_just_fits_runs<B: Tested>() {
    let large = [3_u8; 20 << 10];
    let stack = Mapped::new(200 << 10).unwrap();
    let mut coroutine: Coroutine<(), u64, u64, _, B> =
        Coroutine::with_stack(stack, move |yielder, ()| {
            yielder.suspend(large.iter().map(|&n| u64::from(n)).sum());
            u64::from(black_box(&large)[5])
        });
    assert_eq!(coroutine.resume(()), Yielded(3 * (20 << 10)));
    assert_eq!(coroutine.resume(()), Complete(3));
}

fn deep_recursion_uses_all_of_a_large_stack<B: Tested>() {
    /// Goes down to `limit`; returns how many frames that were, checked on the way back.
    fn descend(limit: usize, depth: usize) -> usize {
        let frame = black_box([depth; 64]);
        let below = match &raw const frame as usize {
            here if here > limit => descend(limit, depth + 1),
            _ => depth,
        };
        assert!(black_box(&frame).iter().all(|&word| word == depth));
        below
    }
    const SIZE: usize = 64 << 20;
    let stack = Slab::new(SIZE).unwrap();
    let limit = stack.limit().as_ptr() as usize + (64 << 10);
    let mut coroutine: Coroutine<(), (), usize, _, B> =
        Coroutine::with_stack(stack, move |_, ()| descend(limit, 1));
    let depth = coroutine.resume(()).complete().unwrap();
    assert!((SIZE / 8192..SIZE / 512).contains(&depth), "{depth} frames of at least 512 bytes");
}

fn a_forgotten_coroutine_leaves_its_memory_valid<B: Tested>() {
    let arena = arena_for_ever();
    let (ask, asked) = mpsc::channel::<usize>();
    let (answer, answers) = mpsc::channel();
    let stack = Slab::from_arena(arena, 256 << 10).unwrap();
    let mut coroutine: Coroutine<(), (), (), _, B> =
        Coroutine::with_stack(stack, move |yielder, ()| {
            let local = black_box([1_u64, 2, 3]);
            // The thread borrows a frame of ours, and ends only when `ask` is dropped.
            std::thread::scope(|scope| {
                let local = &local;
                scope.spawn(move || asked.iter().for_each(|i| answer.send(local[i]).unwrap()));
                yielder.suspend(());
            });
        });
    coroutine.resume(());
    std::mem::forget(coroutine);
    // Others come and go on stacks of the same kind; none of them gets that one.
    for _ in 0..100 {
        let stack = Slab::from_arena(arena, 256 << 10).unwrap();
        let mut other: Coroutine<(), (), u64, _, B> = Coroutine::with_stack(stack, |_, ()| {
            black_box([u64::MAX; 1000]).iter().fold(0, |a, b| a ^ b)
        });
        assert_eq!(other.resume(()), Complete(0));
    }
    for i in [2, 0, 1] {
        ask.send(i).unwrap();
        assert_eq!(answers.recv(), Ok(i as u64 + 1));
    }
    assert_eq!(arena.stats().live(), 1);
}
