//! Coroutines in coroutines, and coroutines as iterators.

use crate::support::backends::Tested;
use crate::{Co, Log, caught, co, on_every_backend, throw};
use sleave_context::CoroutineState::{Complete, Yielded};
use sleave_context::coroutine::scope_on;
use sleave_context::stack::Slab;
use sleave_context::{ScopedCoroutine, Yielder};
use std::collections::BTreeSet;

on_every_backend! {
    an_inner_coroutine_suspends_the_outer_and_both_go_on,
    dropping_the_outer_unwinds_through_an_inner_that_suspended_it,
    an_inner_that_catches_the_outers_unwinding_cannot_keep_it,
    a_panic_passes_through_every_level,
    a_thousand_levels_deep,
    a_coroutine_is_resumed_by_one_after_the_other,
    a_suspended_coroutine_is_handed_from_coroutine_to_coroutine,
    as_an_iterator_it_is_fused_and_composes,
    a_panicking_iterator_has_ended,
    recursive_generators_walk_a_tree,
    two_generators_compare_the_fringes_of_two_trees,
    a_scope_lends_what_is_outside_and_ends_its_coroutine,
    a_scope_that_panics_ends_its_coroutine,
    a_scope_ends_a_coroutine_that_panics_while_it_unwinds,
}

type Scoped<'a, B, Input, Yield, Return> =
    ScopedCoroutine<'a, Input, Yield, Return, Slab<'static>, B>;

fn slab() -> Slab<'static> {
    Slab::new(64 << 10).unwrap()
}

/// Its inner coroutine yields to it twice, and between these suspends both of them with 10.
fn outer_and_inner<B: Tested>(log: &Log) -> Co<B, u32, u32, u32> {
    let names = log.clone();
    co(move |outer, first: u32| {
        let _outer = names.token(1);
        let body = |inner: &Yielder<u32, u32, B>, first: u32| {
            let _inner = names.token(2);
            let second = inner.suspend(first + 1);
            let from_outside = outer.suspend(10); // over the head of our resumer
            let third = inner.suspend(second + from_outside);
            third + 1
        };
        scope_on(slab(), body, |mut inner: Scoped<B, _, _, _>| {
            assert_eq!(inner.resume(first), Yielded(first + 1));
            let Yielded(sum) = inner.resume(100) else { unreachable!() };
            let next = outer.suspend(sum);
            let Complete(last) = inner.resume(next) else { unreachable!() };
            last
        })
    })
}

fn an_inner_coroutine_suspends_the_outer_and_both_go_on<B: Tested>() {
    let log = Log::new();
    let mut outer = outer_and_inner::<B>(&log);
    assert_eq!(outer.resume(1), Yielded(10));
    assert_eq!(outer.resume(5), Yielded(105));
    assert_eq!(log.take(), []);
    assert_eq!(outer.resume(7), Complete(8));
    assert_eq!(log.take(), [2, 1]);
}

fn dropping_the_outer_unwinds_through_an_inner_that_suspended_it<B: Tested>() {
    let log = Log::new();
    let mut outer = outer_and_inner::<B>(&log);
    assert_eq!(outer.resume(1), Yielded(10));
    drop(outer); // its innermost frame is one of the inner coroutine
    assert_eq!(log.take(), [2, 1]);

    let mut outer = outer_and_inner::<B>(&log);
    outer.resume(1);
    assert_eq!(outer.resume(5), Yielded(105));
    drop(outer); // here the inner one is suspended by itself
    assert_eq!(log.take(), [2, 1]);
}

fn an_inner_that_catches_the_outers_unwinding_cannot_keep_it<B: Tested>() {
    let log = Log::new();
    let names = log.clone();
    let mut outer = co::<B, (), (), (), _>(move |outer, ()| {
        let _outer = names.token(1);
        let body = |inner: &Yielder<(), (), B>, ()| {
            caught(|| outer.suspend(()));
            names.note(2);
            inner.suspend(()); // the inner one is not being dropped: it goes on
            names.note(3);
        };
        scope_on(slab(), body, |mut inner: Scoped<B, _, _, _>| {
            assert_eq!(inner.resume(()), Yielded(()));
            assert_eq!(inner.resume(()), Complete(()));
        });
        names.note(4);
        outer.suspend(());
        unreachable!("the outer one is being dropped");
    });
    outer.resume(());
    drop(outer);
    assert_eq!(log.take(), [2, 3, 4, 1]);
}

fn a_panic_passes_through_every_level<B: Tested>() {
    fn level<B: Tested>(depth: u32, log: Log) -> Co<B, (), (), u32> {
        co(move |_, ()| {
            let _here = log.token(depth);
            if depth == 0 {
                throw("from the bottom");
            }
            match level::<B>(depth - 1, log.clone()).resume(()) {
                Complete(n) => n + 1,
                Yielded(()) => unreachable!(),
            }
        })
    }
    let log = Log::new();
    let payload = caught(|| level::<B>(20, log.clone()).resume(()));
    assert_eq!(payload.downcast_ref(), Some(&"from the bottom"));
    assert_eq!(log.take(), (0..=20).collect::<Vec<_>>());
}

/// Owns and resumes a coroutine that does so as well, `depth` levels down; what the deepest one yields goes up
/// through all of them, each adding one.
fn tower<B: Tested>(depth: u32, log: Log) -> Co<B, u32, u32, u32> {
    co(move |yielder, mut input: u32| {
        let _here = log.token(depth);
        if depth == 0 {
            input = yielder.suspend(input);
            return yielder.suspend(input);
        }
        let mut below = tower::<B>(depth - 1, log.clone());
        loop {
            match below.resume(input) {
                Yielded(value) => input = yielder.suspend(value + 1),
                Complete(value) => return value + 1,
            }
        }
    })
}

fn a_thousand_levels_deep<B: Tested>() {
    const DEPTH: u32 = 1000;
    let log = Log::new();
    let mut finished = tower::<B>(DEPTH, log.clone());
    assert_eq!(finished.resume(1), Yielded(DEPTH + 1));
    assert_eq!(finished.resume(2), Yielded(DEPTH + 2));
    assert_eq!(log.take(), []);
    assert_eq!(finished.resume(3), Complete(DEPTH + 3));
    assert_eq!(log.take(), (0..=DEPTH).collect::<Vec<_>>());

    let mut dropped = tower::<B>(DEPTH, log.clone());
    assert_eq!(dropped.resume(1), Yielded(DEPTH + 1));
    drop(dropped); // each, unwinding, drops the next
    assert_eq!(log.take(), (0..=DEPTH).collect::<Vec<_>>());
}

fn a_coroutine_is_resumed_by_one_after_the_other<B: Tested>() {
    let mut shared =
        co::<B, (), u32, (), _>(|yielder, ()| (0..u32::MAX).for_each(|n| yielder.suspend(n)));
    let mut seen = Vec::new();
    for _ in 0..3 {
        // By us, by a coroutine, by a coroutine in a coroutine.
        seen.extend(shared.next());
        let body = |_: &Yielder<(), (), B>, ()| {
            seen.extend(shared.next());
            let body = |_: &Yielder<(), (), B>, ()| seen.extend(shared.next());
            scope_on(slab(), body, |mut inner: Scoped<B, _, _, _>| inner.resume(()));
        };
        scope_on(slab(), body, |mut outer: Scoped<B, _, _, _>| outer.resume(()));
    }
    assert_eq!(seen, (0..9).collect::<Vec<_>>());
}

fn a_suspended_coroutine_is_handed_from_coroutine_to_coroutine<B: Tested>() {
    type Counter<B> = Co<B, (), u32, ()>;
    let steps = || {
        co::<B, Counter<B>, Counter<B>, (), _>(|yielder, mut counter| {
            loop {
                counter.next().unwrap();
                counter = yielder.suspend(counter);
            }
        })
    };
    let mut counter =
        co(|yielder: &Yielder<(), u32, B>, ()| (0..u32::MAX).for_each(|n| yielder.suspend(n)));
    let mut hands = [steps(), steps(), steps()];
    for turn in 0..30 {
        counter = hands[turn % 3].resume(counter).yielded().unwrap();
    }
    assert_eq!(counter.next(), Some(30));
}

fn as_an_iterator_it_is_fused_and_composes<B: Tested>() {
    fn up_to<B: Tested>(n: u32) -> Co<B, (), u32, ()> {
        co(move |yielder, ()| (0..n).for_each(|n| yielder.suspend(n)))
    }
    let mut short = up_to::<B>(2);
    assert_eq!(
        [short.next(), short.next(), short.next(), short.next()],
        [Some(0), Some(1), None, None]
    );
    assert!(short.is_done());

    let pairs: Vec<_> = up_to::<B>(9).zip(up_to::<B>(3).chain(up_to::<B>(2))).collect();
    assert_eq!(pairs, [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)]);

    let mut long = up_to::<B>(u32::MAX);
    assert_eq!(long.by_ref().take(3).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(long.next(), Some(3), "take has left the rest");
    assert_eq!(up_to::<B>(0).next(), None);
}

fn a_panicking_iterator_has_ended<B: Tested>() {
    let mut coroutine = co::<B, (), u32, (), _>(|yielder, ()| {
        yielder.suspend(1);
        throw(());
    });
    assert_eq!(coroutine.next(), Some(1));
    caught(|| coroutine.next());
    assert_eq!(coroutine.next(), None);
}

/// A binary tree.
#[derive(Clone)]
struct Tree(Option<Box<(Tree, u32, Tree)>>);

impl Tree {
    /// With 0, 1, …, n - 1 from left to right, of a shape that depends on `seed`.
    fn new(from: u32, to: u32, seed: u32) -> Tree {
        if from == to {
            return Tree(None);
        }
        let root = from + seed.wrapping_mul(0x9e37_79b9) % (to - from);
        let (left, right) =
            (Tree::new(from, root, seed ^ root), Tree::new(root + 1, to, seed + root));
        Tree(Some(Box::new((left, root, right))))
    }

    /// The values in order: a coroutine for each node, which goes on with those of its children.
    fn walk<B: Tested>(self) -> Co<B, (), u32, ()> {
        co(move |yielder, ()| {
            if let Some(node) = self.0 {
                node.0.walk::<B>().for_each(|value| yielder.suspend(value));
                yielder.suspend(node.1);
                node.2.walk::<B>().for_each(|value| yielder.suspend(value));
            }
        })
    }

    /// The same by one coroutine that calls itself.
    fn descend<B: Tested>(&self, yielder: &Yielder<(), u32, B>) {
        if let Some(node) = &self.0 {
            node.0.descend(yielder);
            yielder.suspend(node.1);
            node.2.descend(yielder);
        }
    }
}

fn recursive_generators_walk_a_tree<B: Tested>() {
    for seed in 0..5 {
        let tree = Tree::new(0, 60, seed);
        assert_eq!(tree.clone().walk::<B>().collect::<Vec<_>>(), (0..60).collect::<Vec<_>>());
        assert_eq!(tree.walk::<B>().take(30).collect::<BTreeSet<_>>().len(), 30); // the rest is dropped
    }
}

fn two_generators_compare_the_fringes_of_two_trees<B: Tested>() {
    let [one, other, shorter] = [(60, 1), (60, 2), (59, 3)].map(|(n, seed)| {
        let tree = Tree::new(0, n, seed);
        co::<B, (), u32, (), _>(move |yielder, ()| tree.descend(yielder))
    });
    assert!(one.zip(other).all(|(one, other)| one == other));
    assert_eq!(shorter.count(), 59);
}

fn a_scope_lends_what_is_outside_and_ends_its_coroutine<B: Tested>() {
    let log = Log::new();
    let words = [String::from("one"), String::from("two")];
    let mut seen = Vec::new();
    let last = scope_on(
        slab(),
        |yielder, ()| {
            let _one = log.token(1);
            for word in &words {
                seen.push(word.len());
                yielder.suspend(word.as_str());
            }
            unreachable!("ended before");
        },
        |mut coroutine: Scoped<B, _, _, ()>| {
            coroutine.next();
            let last = coroutine.next();
            assert_eq!(log.take(), []);
            last
        },
    );
    assert_eq!((last, log.take()), (Some("two"), vec![1]));
    assert_eq!(seen, [3, 3]);
}

fn a_scope_that_panics_ends_its_coroutine<B: Tested>() {
    let log = Log::new();
    let body = |yielder: &Yielder<(), (), B>, ()| {
        let _one = log.token(1);
        yielder.suspend(());
    };
    let payload = caught(|| {
        scope_on(slab(), body, |mut coroutine: Scoped<B, _, _, _>| {
            coroutine.next();
            throw("scope");
        })
    });
    assert_eq!(payload.downcast_ref(), Some(&"scope"));
    assert_eq!(log.take(), [1]);
}

fn a_scope_ends_a_coroutine_that_panics_while_it_unwinds<B: Tested>() {
    let log = Log::new();
    let body = |yielder: &Yielder<(), (), B>, ()| {
        let _one = log.token(1);
        caught(|| yielder.suspend(()));
        throw("body");
    };
    let payload = caught(|| {
        scope_on(slab(), body, |mut coroutine: Scoped<B, _, _, _>| coroutine.next());
    });
    assert_eq!(payload.downcast_ref(), Some(&"body"));
    assert_eq!(log.take(), [1]);
}
