//! Safe code that tries to break a coroutine: by re-entrance, leaks, exchanges, and ends at a bad moment.

use crate::support::backends::Tested;
use crate::support::{assert_success, in_child, is_child};
use crate::{Co, Log, OnDrop, caught, co, on_every_backend, throw};
use sleave_context::CoroutineState::{Complete, Yielded};
use sleave_context::stack::Slab;
use sleave_context::symmetric::Group;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicUsize, Ordering};

on_every_backend! {
    a_body_cannot_resume_or_drop_its_own_coroutine,
    a_coroutine_that_owns_itself_leaks_quietly,
    a_coroutine_is_dropped_by_another_that_it_owns,
    suspended_coroutines_change_places,
    a_stolen_unwinding_ends_nobody_else,
    a_destructor_resumes_another_coroutine_while_unwinding,
    threads_that_borrow_from_a_body_are_joined_before_it_ends,
    a_thread_that_ends_drops_the_suspended_coroutines_of_its_thread_locals,
    the_process_ends_inside_a_coroutine_that_a_thread_local_owns,
    the_process_ends_inside_a_coroutine_that_is_being_unwound,
    the_process_ends_inside_a_group_that_a_thread_local_owns,
}

type Plain<B> = Co<B, (), (), ()>;

fn a_body_cannot_resume_or_drop_its_own_coroutine<B: Tested>() {
    // It is borrowed while it runs,
    let own: Rc<RefCell<Option<Plain<B>>>> = Rc::default();
    let seen = own.clone();
    *own.borrow_mut() = Some(co(move |yielder, ()| {
        assert!(seen.try_borrow_mut().is_err());
        yielder.suspend(());
        assert!(seen.try_borrow_mut().is_err());
    }));
    assert_eq!(own.borrow_mut().as_mut().unwrap().resume(()), Yielded(()));
    assert_eq!(own.borrow_mut().as_mut().unwrap().resume(()), Complete(()));
    *own.borrow_mut() = None;

    // or taken out.
    let own: Rc<Cell<Option<Plain<B>>>> = Rc::default();
    let seen = own.clone();
    own.set(Some(co(move |yielder, ()| {
        assert!(seen.take().is_none());
        yielder.suspend(());
        assert!(seen.take().is_none());
    })));
    let mut taken = own.take().unwrap();
    assert_eq!(taken.resume(()), Yielded(()));
    assert_eq!(taken.resume(()), Complete(()));
}

fn a_coroutine_that_owns_itself_leaks_quietly<B: Tested>() {
    let log = Log::new();
    let weak: Weak<RefCell<Option<Plain<B>>>> = {
        let cycle: Rc<RefCell<Option<Plain<B>>>> = Rc::default();
        let (own, token) = (cycle.clone(), log.token(1));
        *cycle.borrow_mut() = Some(co(move |yielder, ()| {
            let _held = (own, token);
            yielder.suspend(());
        }));
        cycle.borrow_mut().as_mut().unwrap().resume(());
        Rc::downgrade(&cycle)
    };
    let cycle = weak.upgrade().expect("it keeps itself alive");
    assert_eq!(log.take(), []);
    // Taken apart from outside. Its unwinding finds the cell empty, and frees it.
    let taken = cycle.borrow_mut().take();
    drop(cycle);
    drop(taken);
    assert_eq!(log.take(), [1]);
    assert!(weak.upgrade().is_none());
}

fn a_coroutine_is_dropped_by_another_that_it_owns<B: Tested>() {
    // The inner one has the cell that the outer one was in; it takes the outer one's sibling from there.
    let log = Log::new();
    let cell: Rc<Cell<Option<Plain<B>>>> = Rc::default();
    let (names, shared) = (log.clone(), cell.clone());
    let sibling = move || {
        let names = names.clone();
        co::<B, (), (), (), _>(move |yielder, ()| {
            let _one = names.token(1);
            yielder.suspend(());
        })
    };
    let mut outer = co::<B, (), (), (), _>(move |yielder, ()| {
        let mut inner = co::<B, (), (), (), _>(move |_, ()| drop(shared.take()));
        yielder.suspend(());
        inner.resume(());
    });
    outer.resume(());
    let mut suspended = sibling();
    suspended.resume(());
    cell.set(Some(suspended));
    assert_eq!(outer.resume(()), Complete(()));
    assert_eq!(log.take(), [1]);
}

fn suspended_coroutines_change_places<B: Tested>() {
    let count = |from: u32| {
        co::<B, (), u32, (), _>(move |yielder, ()| {
            (from..u32::MAX).for_each(|n| yielder.suspend(n))
        })
    };
    let (mut one, mut other) = (count(0), count(100));
    assert_eq!((one.next(), other.next()), (Some(0), Some(100)));
    std::mem::swap(&mut one, &mut other);
    assert_eq!((one.next(), other.next()), (Some(101), Some(1)));
    let old = std::mem::replace(&mut one, count(200));
    assert_eq!((one.next(), other.next()), (Some(200), Some(2)));
    let mut boxed = Box::new(old);
    assert_eq!(boxed.next(), Some(102));
    let mut many: Vec<_> = (0..100).map(count).collect();
    many.iter_mut().for_each(|coroutine| _ = coroutine.next());
    many.reverse(); // and moved by growing
    many.extend((0..100).map(count));
    assert_eq!(many[0].next(), Some(100));
}

fn a_stolen_unwinding_ends_nobody_else<B: Tested>() {
    // The payload of one coroutine's unwinding, kept.
    let stolen: Rc<Cell<Option<Box<dyn Any + Send>>>> = Rc::default();
    let keep = stolen.clone();
    let mut victim = co::<B, (), (), (), _>(move |yielder, ()| {
        keep.set(Some(caught(|| yielder.suspend(()))));
    });
    victim.resume(());
    victim.end();
    // Raised in another one, on the same stack: to its resumer it is a panic like any other.
    let payload = stolen.take().unwrap();
    let mut next = victim.reset::<(), (), (), _>(move |_, ()| resume_unwind(payload));
    let payload = caught(|| next.resume(()));
    assert!(next.is_done());
    // And a coroutine elsewhere that ends with it while it is being dropped has panicked.
    let mut last = co::<B, (), (), (), _>(move |yielder, ()| {
        caught(|| yielder.suspend(()));
        resume_unwind(payload);
    });
    last.resume(());
    caught(|| last.end());
    assert!(last.is_done());
}

fn a_destructor_resumes_another_coroutine_while_unwinding<B: Tested>() {
    let log = Log::new();
    let names = log.clone();
    let mut first = co::<B, (), (), (), _>(move |yielder, ()| {
        let mut second =
            co::<B, (), u32, (), _>(|yielder, ()| (1..u32::MAX).for_each(|n| yielder.suspend(n)));
        second.next();
        let _resumes = OnDrop(move || {
            // Twice, then unwound inside of the unwinding.
            names.note(second.next().unwrap());
            names.note(second.next().unwrap());
            second.end();
            names.note(100);
        });
        yielder.suspend(());
    });
    first.resume(());
    drop(first);
    assert_eq!(log.take(), [2, 3, 100]);
}

fn threads_that_borrow_from_a_body_are_joined_before_it_ends<B: Tested>() {
    let sum = Rc::new(AtomicUsize::new(0));
    let inside = sum.clone();
    let mut coroutine = co::<B, usize, usize, (), _>(move |yielder, mut input| {
        let shared = AtomicUsize::new(0);
        let _at_the_end = OnDrop(|| inside.store(shared.load(Ordering::SeqCst), Ordering::SeqCst));
        std::thread::scope(|scope| {
            loop {
                let shared = &shared;
                let thread = scope.spawn(move || shared.fetch_add(input, Ordering::SeqCst));
                if input.is_multiple_of(2) {
                    thread.join().unwrap();
                }
                input = yielder.suspend(shared.load(Ordering::SeqCst));
            }
        })
    });
    for n in 0..20 {
        coroutine.resume(n);
    }
    drop(coroutine);
    assert_eq!(sum.load(Ordering::SeqCst), 190, "the odd ones were waited for while it unwound");
}

/// A thread-local that takes a value of any kind.
fn keep_in_a_thread_local(value: impl Any) {
    thread_local! {
        static KEPT: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
    }
    KEPT.with(|kept| kept.borrow_mut().push(Box::new(value)));
}

fn a_thread_that_ends_drops_the_suspended_coroutines_of_its_thread_locals<B: Tested>() {
    let dropped = AtomicUsize::new(0);
    let dropped: &'static AtomicUsize = Box::leak(Box::new(dropped));
    let thread = std::thread::spawn(move || {
        for _ in 0..10 {
            let mut coroutine = co::<B, (), (), (), _>(move |yielder, ()| {
                let _counts = OnDrop(|| _ = dropped.fetch_add(1, Ordering::SeqCst));
                yielder.suspend(());
            });
            coroutine.resume(());
            keep_in_a_thread_local(coroutine);
        }
    });
    thread.join().unwrap();
    assert_eq!(dropped.load(Ordering::SeqCst), 10);
}

/// In a child process: `exit(3)` is called somewhere in `body`, and destroys the calling thread's
/// `thread_local!`s while that body, which one of these owns, is still running.
fn exits_well<B: Tested>(name: &str, body: impl FnOnce()) {
    let name = format!("hostile::{}::{name}", B::MODULE);
    if is_child(&name) {
        body();
        unreachable!("it has exited");
    }
    let output = in_child(&name);
    assert_success(&output);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.matches("the body goes on").count(), 1, "{said}");
    assert_eq!(said.matches("dropped").count(), 0, "{said}");
}

/// Uses something without taking it out of the thread-local that owns it.
fn in_a_thread_local<T: 'static>(value: T, act: impl FnOnce(&mut T)) {
    thread_local! {
        static OWNER: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
    }
    OWNER.with(|owner| {
        let mut owner = owner.borrow_mut();
        act(owner.insert(Box::new(value)).downcast_mut().unwrap());
    });
}

fn the_process_ends_inside_a_coroutine_that_a_thread_local_owns<B: Tested>() {
    exits_well::<B>("the_process_ends_inside_a_coroutine_that_a_thread_local_owns", || {
        let owned = OnDrop(|| println!("dropped"));
        let coroutine: Plain<B> = co(move |_, ()| {
            let _owned = &owned;
            println!("the body goes on");
            std::process::exit(0);
        });
        in_a_thread_local(coroutine, |coroutine| _ = coroutine.resume(()));
    });
}

fn the_process_ends_inside_a_coroutine_that_is_being_unwound<B: Tested>() {
    exits_well::<B>("the_process_ends_inside_a_coroutine_that_is_being_unwound", || {
        let coroutine: Plain<B> = co(|yielder, ()| {
            let _late = OnDrop(|| println!("dropped"));
            let _exits = OnDrop(|| {
                println!("the body goes on");
                std::process::exit(0);
            });
            yielder.suspend(());
            throw("resumed by nobody");
        });
        in_a_thread_local(coroutine, |coroutine| {
            coroutine.resume(());
            coroutine.end();
        });
    });
}

fn the_process_ends_inside_a_group_that_a_thread_local_owns<B: Tested>() {
    exits_well::<B>("the_process_ends_inside_a_group_that_a_thread_local_owns", || {
        let mut group: Group<(), Slab<'static>, B> = Group::with_stacks();
        let member = group.add_on(Slab::default(), |member, ()| {
            let _owned = OnDrop(|| println!("dropped"));
            member.leave(());
            println!("the body goes on");
            std::process::exit(0);
        });
        in_a_thread_local(group, |group| {
            group.enter(member, ()).unwrap();
            group.enter(member, ()).unwrap();
        });
    });
}
