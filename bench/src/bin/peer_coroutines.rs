//! Coroutines without a scheduler: the first word says whose, `sleave`, `corosensei` or `generator`.
//!
//! The one shape is `switch`: each of COUNT coroutines is resumed in turn and suspends itself again. The figure is for one
//! switch, half of that. All have 16 KiB stacks of their crate's own kind. See `sleave_bench::peer`.

use corosensei::CoroutineResult;
use corosensei::stack::DefaultStack;
use generator::Gn;
use sleave_bench::peer::{Order, figure, second};
use sleave_context::stack::Slab;
use sleave_context::{Coroutine, CoroutineState};

const STACK: usize = 16 * 1024;

fn main() {
    let mut words = std::env::args().skip(1);
    let library = words.next().unwrap_or_default();
    let order = Order::parse(words);
    if order.shape != "switch" {
        order.unknown();
    }
    match library.as_str() {
        "sleave" => sleave(&order),
        "corosensei" => corosensei(&order),
        "generator" => generator(&order),
        _ => order.unknown(),
    }
}

/// Resumes each in turn, as often as asked.
fn measure<C>(order: &Order, mut all: Vec<C>, mut resume: impl FnMut(&mut C)) {
    figure(second(2 * order.total(), || {
        for _ in 0..order.each() {
            all.iter_mut().for_each(&mut resume);
        }
    }));
    // Suspended coroutines are unwound when they are dropped, one by one; the process has no use for that.
    std::process::exit(0);
}

fn sleave(order: &Order) {
    let make = |_| {
        let stack = Slab::new(STACK).expect("a stack");
        Coroutine::<(), (), (), _>::with_stack(stack, |yielder, ()| {
            loop {
                yielder.suspend(());
            }
        })
    };
    measure(order, (0..order.count).map(make).collect(), |one| {
        assert!(matches!(one.resume(()), CoroutineState::Yielded(())));
    });
}

fn corosensei(order: &Order) {
    let make = |_| {
        let stack = DefaultStack::new(STACK).expect("a stack");
        corosensei::Coroutine::<(), (), ()>::with_stack(stack, |yielder, ()| {
            loop {
                yielder.suspend(());
            }
        })
    };
    measure(order, (0..order.count).map(make).collect(), |one| {
        assert!(matches!(one.resume(()), CoroutineResult::Yield(())));
    });
}

fn generator(order: &Order) {
    let make = |_| {
        Gn::<()>::new_scoped_opt(STACK / size_of::<usize>(), |mut scope| {
            loop {
                scope.yield_(());
            }
        })
    };
    measure(order, (0..order.count).map(make).collect(), |one| {
        assert_eq!(one.resume(), Some(()));
    });
}
