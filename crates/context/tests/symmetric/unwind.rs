//! Groups are dropped, or forgotten, with members in any stage.

use crate::on_every_backend;
use crate::support::backends::Tested;
use crate::support::{in_child, is_child};
use crate::{
    Log, Noted, STACK, Slabs, Transfers, deeper, group, leaked_arena, panic_of, panic_with, stack,
};
use sleave_context::stack::Slab;
use sleave_context::symmetric::{Exit, Id, Member};
use std::cell::Cell;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

on_every_backend! {
    a_dropped_group_ends_members_in_the_order_of_seats,
    destructors_of_a_member_run_in_order,
    a_swallowed_unwinding_goes_on_at_the_next_transfer,
    a_swallowed_unwinding_may_end_the_member,
    a_panic_while_a_group_is_dropped_comes_after_all_have_ended,
    a_member_added_while_the_group_is_dropped_is_dropped_too,
    a_group_may_be_dropped_while_panicking,
    a_destructor_that_transfers_while_unwinding_aborts,
    a_forgotten_group_leaks_and_harms_nobody,
}

fn a_dropped_group_ends_members_in_the_order_of_seats<B: Tested>() {
    let log = Log::default();
    let mut group = group::<(), B>();
    let fresh = |word| {
        let note = Noted(log.clone(), word);
        move |_: &Member<(), Slabs, B>, ()| {
            drop(note);
            Exit::Leave(())
        }
    };
    let suspended = |word| {
        let note = Noted(log.clone(), word);
        move |member: &Member<(), Slabs, B>, ()| {
            let _note = note;
            member.leave(());
            unreachable!("it is not resumed")
        }
    };
    group.add_on(stack(), fresh("1, fresh"));
    let second = group.add_on(stack(), suspended("2, suspended"));
    let ended = group.add_on(stack(), fresh("3, ended"));
    let fourth = group.add_on(stack(), suspended("4, suspended"));
    group.add_on(stack(), fresh("5, fresh"));
    for name in [fourth, second, ended] {
        group.enter(name, ()).unwrap();
    }
    group.add_on(stack(), fresh("3 again, fresh"));
    assert_eq!(log.take(), ["3, ended"]);
    drop(group);
    let order = ["1, fresh", "2, suspended", "3 again, fresh", "4, suspended", "5, fresh"];
    assert_eq!(log.take(), order);
}

fn destructors_of_a_member_run_in_order<B: Tested>() {
    let log = Log::default();
    let mut group = group::<(), B>();
    let notes = ["captured", "third", "second", "first"].map(|word| Noted(log.clone(), word));
    let name = group.add_on(stack(), move |member, ()| {
        let [_captured, third, second, first] = notes;
        let _third = third;
        let nested = || {
            let _second = second;
            deeper(3, &mut || {
                let _first = &first;
                member.leave(())
            });
        };
        nested();
        unreachable!("it is not resumed")
    });
    group.enter(name, ()).unwrap();
    assert_eq!(log.borrow().len(), 0);
    drop(group);
    let log = log.take();
    assert_eq!(log.len(), 4, "each once");
    let place = |word| log.iter().position(|noted| noted == word).unwrap();
    assert!(place("second") < place("third") && place("third") < place("captured"), "{log:?}");
}

fn a_swallowed_unwinding_goes_on_at_the_next_transfer<B: Tested>() {
    let log = Log::default();
    let mut group = group::<Option<[Id; 2]>, B>();
    let note = log.clone();
    let stubborn = group.add_on(stack(), move |member, names| {
        let [next, ended] = names.unwrap();
        let unwound = |word: &str, f: &dyn Fn() -> bool| {
            catch_unwind(AssertUnwindSafe(f)).unwrap_err();
            note.borrow_mut().push(word.into());
        };
        unwound("suspended", &|| member.leave(None).is_some());
        unwound("leave", &|| member.leave(None).is_some());
        unwound("transfer", &|| member.transfer(next, None).is_ok());
        unwound("to oneself", &|| member.transfer(member.id(), None).is_ok());
        assert!(member.transfer(ended, None).is_err(), "no transfer, hence no unwinding");
        let _note = Noted(note.clone(), "given in");
        member.leave(None);
        unreachable!("nobody enters a group that is being dropped")
    });
    // There until `stubborn` has ended, since members are ended one after the other.
    let next = group.add_on(stack(), |_, _| unreachable!("the group is being dropped"));
    let ended = group.add_on(stack(), |_, value| Exit::Leave(value));
    group.enter(ended, None).unwrap();
    group.enter(stubborn, Some([next, ended])).unwrap();
    drop(group);
    assert_eq!(log.take(), ["suspended", "leave", "transfer", "to oneself", "given in"]);
}

fn a_swallowed_unwinding_may_end_the_member<B: Tested>() {
    let log = Log::default();
    let mut group = group::<Noted, B>();
    let other = group.add_on(stack(), |_, value| Exit::Leave(value));
    let later = Rc::new(Cell::new(None));
    for ends_by_transfer in [true, false] {
        let note = Noted(log.clone(), if ends_by_transfer { "to another" } else { "out" });
        let (log, later) = (log.clone(), later.clone());
        let name = group.add_on(stack(), move |member, value| {
            catch_unwind(AssertUnwindSafe(|| drop(member.leave(value)))).unwrap_err();
            log.borrow_mut().push("swallowed".into());
            match later.get() {
                Some(later) if ends_by_transfer => Exit::To(later, note),
                _ => Exit::Leave(note),
            }
        });
        group.enter(name, Noted(Log::default(), "")).unwrap();
    }
    // There still is one to transfer to when they end: it must not run.
    let last = group.add_on(stack(), |_, _| unreachable!("the group is being dropped"));
    later.set(Some(last));
    let _ = other;
    drop(group);
    assert_eq!(log.take(), ["swallowed", "to another", "swallowed", "out"]);
}

fn a_panic_while_a_group_is_dropped_comes_after_all_have_ended<B: Tested>() {
    /// Panics when dropped.
    struct Bomb(&'static str);
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_with(self.0);
        }
    }
    /// How the second member of three ends.
    #[derive(Clone, Copy)]
    enum How {
        Itself,
        BodyNeverBegun,
        ValueNobodyWants,
    }
    for how in [How::Itself, How::BodyNeverBegun, How::ValueNobodyWants] {
        let arena = leaked_arena();
        let stack = || Slab::from_arena(arena, STACK).unwrap();
        let log = Log::default();
        let mut group = group::<Option<Bomb>, B>();
        let waits = |word| {
            let note = Noted(log.clone(), word);
            move |member: &Member<_, Slabs, B>, _| {
                let _note = note;
                Exit::Leave(member.leave(None))
            }
        };
        let first = group.add_on(stack(), waits("first"));
        let bomb = Bomb("its own");
        let second = match how {
            How::BodyNeverBegun => {
                let (before, after) = (Noted(log.clone(), "captured"), Noted(log.clone(), "too"));
                group.add_on(stack(), move |_, _| {
                    drop((before, bomb, after));
                    unreachable!("it does not begin")
                });
                first
            }
            How::Itself => group.add_on(stack(), move |member, _| {
                std::mem::forget(bomb);
                catch_unwind(AssertUnwindSafe(|| member.leave(None))).err().unwrap();
                panic_with("its own")
            }),
            How::ValueNobodyWants => group.add_on(stack(), move |member, _| {
                catch_unwind(AssertUnwindSafe(|| member.leave(None))).err().unwrap();
                Exit::Leave(Some(bomb))
            }),
        };
        let third = group.add_on(stack(), waits("third"));
        for name in [first, third] {
            assert!(group.enter(name, None).unwrap().is_none());
        }
        if second != first {
            assert!(group.enter(second, None).unwrap().is_none());
        }
        assert_eq!(panic_of(|| drop(group)), "its own");
        let log: Vec<_> =
            log.take().into_iter().filter(|word| word.ends_with('t') || word == "third").collect();
        assert_eq!(log, ["first", "third"]);
        assert_eq!(arena.stats().live(), 0, "every stack has been given back");
    }
}

fn a_member_added_while_the_group_is_dropped_is_dropped_too<B: Tested>() {
    /// Adds a member when dropped.
    struct Adds<'a, B: Tested> {
        member: &'a Member<(), Slabs, B>,
        stack: Option<Slabs>,
        note: Option<Noted>,
    }
    impl<B: Tested> Drop for Adds<'_, B> {
        fn drop(&mut self) {
            let note = self.note.take();
            self.member.add_on(self.stack.take().unwrap(), move |_, ()| {
                drop(note);
                unreachable!("it does not begin")
            });
        }
    }
    let arena = leaked_arena();
    let stack = || Slab::from_arena(arena, STACK).unwrap();
    let log = Log::default();
    let mut group = group::<(), B>();
    let ended = group.add_on(stack(), |_, ()| Exit::Leave(()));
    let names = ["added by the first", "added by the second"].map(|word| {
        let (stack, note) = (stack(), Noted(log.clone(), word));
        group.add_on(self::stack(), move |member, ()| {
            let _adds = Adds { member, stack: Some(stack), note: Some(note) };
            member.leave(());
            unreachable!("it is not resumed")
        })
    });
    // Seats before theirs are free by now: one already, the other when the second unwinds.
    for name in [ended, names[0], names[1]] {
        group.enter(name, ()).unwrap();
    }
    drop(group);
    assert_eq!(log.take(), ["added by the first", "added by the second"]);
    assert_eq!(arena.stats().live(), 0);
}

fn a_group_may_be_dropped_while_panicking<B: Tested>() {
    let log = Log::default();
    let words = panic_of(|| {
        let mut group = group::<(), B>();
        for word in ["first", "second"] {
            let note = Noted(log.clone(), word);
            let name = group.add_on(stack(), move |member, ()| {
                let _note = note;
                member.leave(());
                unreachable!("it is not resumed")
            });
            group.enter(name, ()).unwrap();
        }
        let note = Noted(log.clone(), "never begun");
        group.add_on(stack(), move |_, ()| {
            drop(note);
            Exit::Leave(())
        });
        panic_with("of the owner")
    });
    assert_eq!(words, "of the owner");
    assert_eq!(log.take(), ["first", "second", "never begun"]);
    assert!(!std::thread::panicking());
}

fn a_destructor_that_transfers_while_unwinding_aborts<B: Tested>() {
    let name = format!("unwind::{}::a_destructor_that_transfers_while_unwinding_aborts", B::MODULE);
    if !is_child(&name) {
        let output = in_child(&name);
        return assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    }
    let mut group = group::<u32, B>();
    let waits = group.add_on(stack(), |member, value| {
        let _transfers = Transfers(member, member.id());
        Exit::Leave(member.leave(value))
    });
    group.enter(waits, 1).unwrap();
    drop(group);
}

fn a_forgotten_group_leaks_and_harms_nobody<B: Tested>() {
    let arena = leaked_arena();
    let stack = || Slab::from_arena(arena, STACK).unwrap();
    let held = Rc::new(());
    let seen = Rc::new(Cell::new(std::ptr::null::<[u8; 64]>()));
    let mut forgotten = group::<(), B>();
    let (captured, tells) = (held.clone(), seen.clone());
    let waits = forgotten.add_on(stack(), move |member, ()| {
        let frame = std::hint::black_box([0xa5_u8; 64]);
        tells.set(&raw const frame);
        let _captured = captured;
        member.leave(());
        std::hint::black_box(frame);
        Exit::Leave(())
    });
    forgotten.enter(waits, ()).unwrap();
    std::mem::forget(forgotten);
    assert_eq!(arena.stats().live(), 1);
    let mut others = group::<(), B>();
    for _ in 0..20 {
        let name = others.add_on(stack(), |member, ()| {
            member.leave(());
            Exit::Leave(())
        });
        others.enter(name, ()).unwrap();
    }
    drop(others);
    assert_eq!(arena.stats().live(), 1, "its stack is taken for ever");
    assert_eq!(Rc::strong_count(&held), 2, "and so is what it owns");
    // SAFETY: a frame on a stack that is leaked, which nobody writes to.
    assert_eq!(unsafe { seen.get().read_volatile() }, [0xa5; 64]);
}
