//! Every way in which a body ends, and what is dropped then.

use crate::support::backends::Tested;
use crate::support::{in_child, is_child};
use crate::{Log, OnDrop, caught, co, on_every_backend, throw, words};
use sleave_context::CoroutineState::{Complete, Yielded};
use std::cell::Cell;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Output;
use std::rc::Rc;

on_every_backend! {
    what_a_body_owns_is_dropped_once_however_it_ends,
    a_dropped_coroutine_runs_its_destructors_in_reverse_order,
    a_panic_reaches_the_resumer_with_its_payload,
    a_panic_with_words_reaches_the_resumer,
    one_that_panicked_is_done_and_its_stack_is_used_again,
    resuming_one_that_has_ended_panics_and_says_so,
    ending_twice_does_nothing,
    an_unwinding_that_is_caught_is_raised_again,
    an_unwinding_that_is_caught_for_ever_aborts,
    what_a_body_returns_while_it_is_unwound_is_dropped,
    what_a_body_panics_with_while_it_is_unwound_reaches_the_dropper,
    a_destructor_that_panics_while_a_body_returns_reaches_the_resumer,
    a_destructor_that_panics_in_a_body_that_never_began_reaches_the_dropper,
    a_returned_value_whose_destructor_panics_reaches_the_dropper,
    a_coroutine_may_be_dropped_while_its_owner_panics,
    a_coroutine_may_be_resumed_while_its_owner_panics,
    unwinding_a_coroutine_is_silent,
    a_destructor_that_suspends_while_its_coroutine_is_dropped_aborts,
    a_destructor_that_suspends_because_of_a_panic_leaves_its_resumer_panicking,
    a_panic_that_is_suspended_for_ever_aborts_when_it_is_dropped,
}

fn what_a_body_owns_is_dropped_once_however_it_ends<B: Tested>() {
    #[derive(Clone, Copy)]
    enum Way {
        NeverBegun,
        Finished,
        Unwound,
        Panicked,
    }
    for way in [Way::NeverBegun, Way::Finished, Way::Unwound, Way::Panicked] {
        let log = Log::new();
        // What is captured, with neighbours that would show a body that is taken from the wrong place.
        let captured = ([1_u64; 5], log.token(1), [2_u64; 5]);
        let mut coroutine = co::<B, Way, (), (), _>(move |yielder, way| {
            let captured = &captured;
            assert_eq!((captured.0, captured.2), ([1; 5], [2; 5]));
            match way {
                Way::Panicked => throw(()),
                Way::Unwound => yielder.suspend(()),
                way => way,
            };
        });
        match way {
            Way::NeverBegun => {}
            Way::Finished => assert_eq!(coroutine.resume(way), Complete(())),
            Way::Unwound => assert_eq!(coroutine.resume(way), Yielded(())),
            Way::Panicked => drop(caught(|| coroutine.resume(way))),
        }
        let ended = matches!(way, Way::Finished | Way::Panicked);
        assert_eq!(log.take().len(), usize::from(ended), "with the body, not with the coroutine");
        drop(coroutine);
        assert_eq!(log.take().len(), usize::from(!ended));
    }
}

fn a_dropped_coroutine_runs_its_destructors_in_reverse_order<B: Tested>() {
    let log = Log::new();
    let (captured, names) = (log.token(1), log.clone());
    let mut coroutine = co::<B, (), u8, (), _>(move |yielder, ()| {
        let _captured = &captured;
        let _two = names.token(2);
        let _three = Box::new(names.token(3));
        let callee = || {
            let _four = names.token(4);
            yielder.suspend(0);
            names.note(100);
        };
        callee();
    });
    assert_eq!(coroutine.resume(()), Yielded(0));
    assert_eq!(log.take(), []);
    drop(coroutine);
    assert_eq!(log.take(), [4, 3, 2, 1]);
}

fn a_panic_reaches_the_resumer_with_its_payload<B: Tested>() {
    let log = Log::new();
    let names = log.clone();
    let mut coroutine = co::<B, (), (), (), _>(move |yielder, ()| {
        let _one = names.token(1);
        yielder.suspend(());
        throw([42_u64; 10]);
    });
    coroutine.resume(());
    let payload = caught(|| coroutine.resume(()));
    assert_eq!(payload.downcast_ref(), Some(&[42_u64; 10]));
    assert_eq!(log.take(), [1]);
    assert!(coroutine.is_done());
}

fn a_panic_with_words_reaches_the_resumer<B: Tested>() {
    let mut coroutine = co::<B, u8, (), (), _>(|_, n| panic!("expected: {n}"));
    assert_eq!(words(|| coroutine.resume(7)), "expected: 7");
    assert!(!std::thread::panicking());
}

fn one_that_panicked_is_done_and_its_stack_is_used_again<B: Tested>() {
    let mut coroutine = co::<B, (), (), (), _>(|_, ()| throw(1));
    for round in 0..1000 {
        let payload = caught(|| coroutine.resume(()));
        assert_eq!(payload.downcast_ref(), Some(&(round + 1)));
        assert!(coroutine.is_done());
        coroutine = coroutine.reset(move |_, ()| throw(round + 2));
    }
}

fn resuming_one_that_has_ended_panics_and_says_so<B: Tested>() {
    let log = Log::new();
    let mut returned = co::<B, _, (), (), _>(|_, input| drop(input));
    returned.resume(log.token(1));
    let mut panicked = co::<B, _, (), (), _>(|_, _input| throw(()));
    caught(|| panicked.resume(log.token(2)));
    let mut ended = co::<B, _, (), (), _>(|yielder, _input| drop(yielder.suspend(())));
    ended.resume(log.token(3));
    ended.end();
    let mut never_begun = co::<B, _, (), (), _>(|_, _input| unreachable!());
    never_begun.end();
    assert_eq!(log.take(), [1, 2, 3]);
    for coroutine in [&mut returned, &mut panicked, &mut ended, &mut never_begun] {
        assert!(coroutine.is_done());
        let said = words(|| coroutine.resume(log.token(4)));
        assert_eq!(said, "a coroutine was resumed after it had ended");
        assert_eq!(log.take(), [4], "the input is dropped");
    }
}

fn ending_twice_does_nothing<B: Tested>() {
    let log = Log::new();
    let names = log.clone();
    let mut coroutine = co::<B, (), (), (), _>(move |yielder, ()| {
        let _one = names.token(1);
        yielder.suspend(());
    });
    coroutine.resume(());
    coroutine.end();
    assert_eq!(log.take(), [1]);
    coroutine.end();
    drop(coroutine);
    assert_eq!(log.take(), []);
}

fn an_unwinding_that_is_caught_is_raised_again<B: Tested>() {
    let log = Log::new();
    let names = log.clone();
    let mut coroutine = co::<B, (), Option<crate::Token>, (), _>(move |yielder, ()| {
        for name in 1..=5 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let _inner = names.token(name);
                // Dropped where it is, as there is nobody to take it.
                yielder.suspend((name > 1).then(|| names.token(10 * name)));
            }));
            assert!(caught.is_err());
        }
        let _last = names.token(6);
        yielder.suspend(None);
        unreachable!("it is being dropped");
    });
    coroutine.resume(());
    drop(coroutine);
    assert_eq!(log.take(), [1, 20, 2, 30, 3, 40, 4, 50, 5, 6]);
}

/// Runs `body` in a child process, which must abort.
fn aborts<B: Tested>(name: &str, body: impl FnOnce()) -> Output {
    let name = format!("ending::{}::{name}", B::MODULE);
    if is_child(&name) {
        body();
        std::process::exit(0);
    }
    let output = in_child(&name);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    output
}

fn an_unwinding_that_is_caught_for_ever_aborts<B: Tested>() {
    let output = aborts::<B>("an_unwinding_that_is_caught_for_ever_aborts", || {
        let mut coroutine = co::<B, (), (), (), _>(|yielder, ()| {
            loop {
                let _ = catch_unwind(AssertUnwindSafe(|| yielder.suspend(())));
            }
        });
        coroutine.resume(());
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("caught its own unwinding, and suspended again, a thousand times"),
        "{said}"
    );
}

fn what_a_body_returns_while_it_is_unwound_is_dropped<B: Tested>() {
    let log = Log::new();
    let names = log.clone();
    let mut coroutine = co::<B, (), (), _, _>(move |yielder, ()| {
        let caught = catch_unwind(AssertUnwindSafe(|| yielder.suspend(())));
        names.note(1);
        (names.token(2), caught.is_err())
    });
    coroutine.resume(());
    coroutine.end();
    assert!(coroutine.is_done());
    assert_eq!(log.take(), [1, 2]);
}

fn what_a_body_panics_with_while_it_is_unwound_reaches_the_dropper<B: Tested>() {
    let log = Log::new();
    let body = |log: &Log| {
        let names = log.clone();
        let mut coroutine = co::<B, (), (), (), _>(move |yielder, ()| {
            let _one = names.token(1);
            let _ = catch_unwind(AssertUnwindSafe(|| yielder.suspend(())));
            throw("its own");
        });
        coroutine.resume(());
        coroutine
    };
    // Dropped,
    let coroutine = body(&log);
    assert_eq!(caught(|| drop(coroutine)).downcast_ref(), Some(&"its own"));
    assert_eq!(log.take(), [1]);
    // ended,
    let mut coroutine = body(&log);
    assert_eq!(caught(|| coroutine.end()).downcast_ref(), Some(&"its own"));
    assert!(coroutine.is_done());
    assert_eq!(log.take(), [1]);
    // and asked for its stack.
    let coroutine = body(&log);
    assert_eq!(caught(|| coroutine.into_stack()).downcast_ref(), Some(&"its own"));
    assert_eq!(log.take(), [1]);
}

fn a_destructor_that_panics_while_a_body_returns_reaches_the_resumer<B: Tested>() {
    let mut coroutine = co::<B, (), (), (), _>(|_, ()| {
        let _bomb = OnDrop(|| throw("bomb"));
    });
    assert_eq!(caught(|| coroutine.resume(())).downcast_ref(), Some(&"bomb"));
    assert!(coroutine.is_done());
}

fn a_destructor_that_panics_in_a_body_that_never_began_reaches_the_dropper<B: Tested>() {
    let log = Log::new();
    let captured = (log.token(1), OnDrop(|| throw("bomb")), log.token(2));
    let mut coroutine = co::<B, (), (), (), _>(move |_, ()| drop(captured));
    assert_eq!(caught(|| coroutine.end()).downcast_ref(), Some(&"bomb"));
    assert!(coroutine.is_done());
    drop(coroutine);
    assert_eq!(log.take(), [1, 2]);
}

fn a_returned_value_whose_destructor_panics_reaches_the_dropper<B: Tested>() {
    let mut coroutine = co::<B, (), (), _, _>(|yielder, ()| {
        let _ = catch_unwind(AssertUnwindSafe(|| yielder.suspend(())));
        OnDrop(|| throw("bomb"))
    });
    coroutine.resume(());
    assert_eq!(caught(|| coroutine.end()).downcast_ref(), Some(&"bomb"));
    assert!(coroutine.is_done());
}

fn a_coroutine_may_be_dropped_while_its_owner_panics<B: Tested>() {
    let log = Log::new();
    let names = log.clone();
    let payload = caught(|| {
        let mut coroutine = co::<B, (), (), (), _>(move |yielder, ()| {
            let _two = names.token(2);
            // A panic of its own, meanwhile, which is caught: two at once.
            let _one = OnDrop(|| {
                assert!(std::thread::panicking());
                caught(|| throw("inner"));
                names.note(1);
            });
            yielder.suspend(());
        });
        coroutine.resume(());
        throw("outer");
    });
    assert_eq!(payload.downcast_ref(), Some(&"outer"));
    assert_eq!(log.take(), [1, 2]);
    assert!(!std::thread::panicking());
}

fn a_coroutine_may_be_resumed_while_its_owner_panics<B: Tested>() {
    let mut coroutine = co::<B, bool, bool, (), _>(|yielder, was| {
        assert!(!was);
        let is = yielder.suspend(std::thread::panicking());
        assert!(is);
        yielder.suspend(std::thread::panicking());
    });
    assert_eq!(coroutine.resume(false), Yielded(false));
    let seen = Cell::new(false);
    caught(|| {
        let _resumes = OnDrop(|| seen.set(coroutine.resume(true).yielded().unwrap()));
        throw(());
    });
    assert!(seen.get(), "as a call would see it");
    assert!(!coroutine.is_done());
}

fn unwinding_a_coroutine_is_silent<B: Tested>() {
    let name = format!("ending::{}::unwinding_a_coroutine_is_silent", B::MODULE);
    if is_child(&name) {
        let mut coroutine = co::<B, (), (), (), _>(|yielder, ()| yielder.suspend(()));
        coroutine.resume(());
        return drop(coroutine);
    }
    let output = in_child(&name);
    crate::support::assert_success(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "no panic hook ran");
}

fn a_destructor_that_suspends_while_its_coroutine_is_dropped_aborts<B: Tested>() {
    let name = "a_destructor_that_suspends_while_its_coroutine_is_dropped_aborts";
    aborts::<B>(name, || {
        let mut coroutine = co::<B, (), (), (), _>(|yielder, ()| {
            let _suspends = OnDrop(|| yielder.suspend(()));
            yielder.suspend(());
        });
        coroutine.resume(());
    });
}

/// Of a coroutine that panics, a destructor suspends; the panic goes on when it is resumed.
fn panics_and_suspends<B: Tested>(log: &Log) -> crate::Co<B, (), u8, bool> {
    let names = log.clone();
    co(move |yielder, ()| {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _one = names.token(1);
            let _suspends = OnDrop(|| yielder.suspend(2));
            yielder.suspend(1);
            throw(());
        }));
        panicked.is_err()
    })
}

fn a_destructor_that_suspends_because_of_a_panic_leaves_its_resumer_panicking<B: Tested>() {
    let log = Log::new();
    let mut coroutine = panics_and_suspends::<B>(&log);
    assert_eq!(coroutine.resume(()), Yielded(1));
    assert!(!std::thread::panicking());
    assert_eq!(coroutine.resume(()), Yielded(2));
    assert!(std::thread::panicking(), "the count is the thread's");
    // Another panic comes and goes meanwhile.
    assert_eq!(caught(|| throw(5)).downcast_ref(), Some(&5));
    assert_eq!(log.take(), []);
    assert_eq!(coroutine.resume(()), Complete(true));
    assert!(!std::thread::panicking());
    assert_eq!(log.take(), [1]);
}

fn a_panic_that_is_suspended_for_ever_aborts_when_it_is_dropped<B: Tested>() {
    aborts::<B>("a_panic_that_is_suspended_for_ever_aborts_when_it_is_dropped", || {
        let mut coroutine = panics_and_suspends::<B>(&Log::new());
        coroutine.resume(());
        coroutine.resume(());
        drop(Rc::new(coroutine));
    });
}
