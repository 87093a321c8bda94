//! Spawn, join, results, panics, names.

use std::backtrace::Backtrace;
use std::collections::HashSet;
use std::hint::black_box;
use std::panic::panic_any;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::timing::eventually;
use crate::support::{Count, Flag, Gate, Host, Task, everywhere, on_fibers};

/// Counts how often it is dropped.
struct Tracked(Arc<Count>, usize);

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.up();
    }
}

#[test]
fn a_panic_reaches_join_with_its_payload() {
    #[derive(Debug, PartialEq)]
    struct Custom(u32);
    everywhere(|host| {
        let by_str = host.spawn(|| panic!("a literal")).join().unwrap_err();
        let by_string = host
            .spawn(move || {
                host.yield_now();
                panic!("formatted {}", black_box(7))
            })
            .join()
            .unwrap_err();
        let by_value = host
            .spawn(move || {
                thread::sleep(Duration::from_millis(5));
                panic_any(Custom(9))
            })
            .join()
            .unwrap_err();
        (
            *by_str.downcast::<&str>().unwrap(),
            *by_string.downcast::<String>().unwrap(),
            by_value.downcast::<Custom>().unwrap().0,
        )
    });
}

#[test]
fn a_panic_leaves_the_other_fibers_alone() {
    everywhere(|host| {
        let tasks: Vec<_> = (0..200)
            .map(|i| {
                host.spawn(move || {
                    host.yield_now();
                    if i % 3 == 0 {
                        std::panic::resume_unwind(Box::new(i));
                    }
                    i
                })
            })
            .collect();
        let ends = tasks.into_iter().map(|task| match task.join() {
            Ok(value) => Ok(value),
            Err(payload) => Err(*payload.downcast::<i32>().unwrap()),
        });
        ends.collect::<Vec<_>>()
    });
}

#[test]
fn a_panic_unwinds_and_drops_what_the_fiber_held() {
    everywhere(|host| {
        let drops = Arc::new(Count::new());
        let task = host.spawn({
            let drops = Arc::clone(&drops);
            move || {
                let _first = Tracked(Arc::clone(&drops), 0);
                let _boxed: Box<dyn Send> = Box::new(Tracked(Arc::clone(&drops), 1));
                host.yield_now();
                std::panic::resume_unwind(Box::new(Tracked(drops, 2)));
            }
        });
        let payload = task.join().unwrap_err();
        let before = drops.get();
        drop(payload);
        (before, drops.get())
    });
}

#[test]
fn results_are_dropped_once_whether_joined_or_not() {
    everywhere(|host| {
        let drops = Arc::new(Count::new());
        let spawn = |i| {
            let drops = Arc::clone(&drops);
            host.spawn(move || Tracked(drops, i))
        };
        let kept = spawn(1).value();
        let after_join = (drops.get(), kept.1);
        drop(kept);
        let unjoined: Vec<_> = (0..50).map(spawn).collect();
        // Some of them have ended, some have not.
        drop(unjoined);
        eventually("all results are dropped", || drops.get() == 51);
        (after_join, Arc::strong_count(&drops))
    });
}

#[test]
fn a_detached_fiber_runs_on() {
    everywhere(|host| {
        let (sender, receiver) = mpsc::channel();
        let gate = Arc::new(Gate::default());
        for i in 0..20 {
            let (sender, gate) = (sender.clone(), Arc::clone(&gate));
            drop(host.spawn(move || {
                gate.pass();
                thread::sleep(Duration::from_millis(i % 3));
                sender.send(i).unwrap();
            }));
        }
        drop(sender);
        gate.open();
        let mut seen: Vec<_> = receiver.iter().collect();
        seen.sort_unstable();
        seen
    });
}

#[test]
fn fibers_spawn_fibers() {
    fn fibonacci(host: Host, n: u64) -> u64 {
        if n < 2 {
            return n;
        }
        let other = host.spawn(move || fibonacci(host, n - 2));
        fibonacci(host, n - 1) + other.value()
    }
    everywhere(|host| fibonacci(host, 14));
}

#[test]
fn a_deep_chain_of_fibers_joins() {
    fn chain(host: Host, depth: usize) -> usize {
        if depth == 0 { 0 } else { 1 + host.spawn(move || chain(host, depth - 1)).value() }
    }
    everywhere(|host| chain(host, 1000));
}

#[test]
fn is_finished_turns_true_and_does_not_join() {
    everywhere(|host| {
        let gate = Arc::new(Gate::default());
        let task = host.spawn({
            let gate = Arc::clone(&gate);
            move || gate.pass()
        });
        let before = task.is_finished();
        gate.open();
        eventually("it finishes", || task.is_finished());
        (before, task.join().is_ok())
    });
}

#[test]
fn a_result_of_any_size_and_alignment_comes_back() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(align(128))]
    struct Aligned([u8; 300]);
    everywhere(|host| {
        let big = host.spawn(|| [7_u64; 2000]).value();
        let aligned = host.spawn(|| Aligned([9; 300])).value();
        let captured = Aligned([3; 300]);
        let address =
            host.spawn(move || (&raw const captured).addr() % 128 + black_box(captured).0.len());
        host.spawn(|| ()).value();
        (big.to_vec(), aligned, address.value())
    });
}

#[test]
fn many_wait_for_the_end_of_one_each() {
    everywhere(|host| {
        let gate = Arc::new(Gate::default());
        let mut tasks: Vec<Task<usize>> = (0..50)
            .map(|i| {
                let gate = Arc::clone(&gate);
                host.spawn(move || {
                    gate.pass();
                    i
                })
            })
            .collect();
        let joiners: Vec<_> =
            tasks.drain(..).map(|task| host.spawn(move || task.value())).collect();
        thread::sleep(Duration::from_millis(10));
        gate.open();
        joiners.into_iter().map(|joiner| joiner.value()).collect::<Vec<_>>()
    });
}

/// A frame of about a kibibyte, named so that a backtrace can show it.
#[inline(never)]
fn descend_to(limit: usize, top: usize) -> usize {
    let frame = black_box([0_u8; 1024]);
    let depth = top - frame.as_ptr().addr();
    if depth >= limit { depth } else { descend_to(limit, top).max(usize::from(frame[0])) }
}

#[test]
fn a_stack_can_be_used_up_to_what_was_asked_for() {
    everywhere(|host| {
        let sizes = [128 << 10, 256 << 10, 1 << 20, 8 << 20, 64 << 20];
        sizes.map(|size| {
            let task = host.spawn_with("deep", size, move || {
                let top = 0_u8;
                // All but what the entry, the last frames and, in a thread's own stack, its
                // thread-locals and guard need.
                let limit = size - (24 << 10);
                descend_to(limit, (&raw const top).addr()) >= limit
            });
            task.unwrap().value()
        })
    });
}

#[test]
fn deep_stacks_hold_their_frames_over_a_switch() {
    fn sum(host: Host, depth: usize) -> usize {
        let frame = black_box([depth; 32]);
        if depth == 0 {
            return 0;
        }
        if depth.is_multiple_of(16) {
            host.yield_now();
        }
        let below = sum(host, depth - 1);
        assert!(frame.iter().all(|&word| word == depth), "a frame changed while it slept");
        below + frame[0]
    }
    everywhere(|host| {
        let tasks: Vec<_> = (0..20)
            .map(|i| host.spawn_with("deep", 1 << 20, move || sum(host, 200 + i)).unwrap())
            .collect();
        tasks.into_iter().map(|task| task.value()).collect::<Vec<_>>()
    });
}

#[inline(never)]
fn backtrace_landmark() -> String {
    black_box(Backtrace::force_capture().to_string())
}

#[test]
fn a_backtrace_ends_at_the_entry_and_shows_the_way() {
    everywhere(|host| {
        let trace = host.spawn(|| backtrace_landmark() + "").value();
        // It came back at all: the unwinder has found the end of the stack.
        trace.contains("backtrace_landmark")
    });
}

#[test]
fn current_is_the_fiber_and_none_on_a_plain_thread() {
    assert!(sleave::current().is_none());
    on_fibers(|_| {
        let root = sleave::current().expect("`run` runs its closure on a fiber");
        let handle = sleave::Builder::new()
            .name("a name of its own")
            .spawn(|| {
                let before = sleave::current().unwrap();
                sleave::yield_now();
                thread::sleep(Duration::from_millis(1));
                let after = sleave::current().unwrap();
                assert_eq!(before.id(), after.id());
                (after.id(), after.name().map(str::to_owned))
            })
            .unwrap();
        let fiber = handle.fiber().clone();
        assert_eq!(fiber.name(), Some("a name of its own"));
        assert_ne!(fiber.id(), root.id());
        let (id, name) = handle.join().unwrap();
        assert_eq!((id, name.as_deref()), (fiber.id(), fiber.name()));

        let outside = thread::spawn(|| sleave::current().is_none());
        assert!(outside.join().unwrap(), "a thread made in a fiber is a plain thread");
    });
}

#[test]
fn ids_are_unique_also_after_fibers_have_ended() {
    on_fibers(|host| {
        let mut seen = HashSet::new();
        for _ in 0..20 {
            let ids = host.spawn_many(50, |_| sleave::current().unwrap().id());
            for id in ids {
                assert!(seen.insert(id), "{id} was given twice");
            }
        }
    });
}

#[test]
fn a_fiber_without_a_name_has_none() {
    on_fibers(|_| {
        let handle = sleave::spawn(|| sleave::current().unwrap().name().is_none());
        assert!(handle.fiber().name().is_none());
        assert!(handle.join().unwrap());
    });
}

#[test]
fn a_stack_that_cannot_be_had_is_an_error() {
    everywhere(|host| {
        // A pebibyte: more than the address space.
        host.spawn_with("greedy", 1 << 50, || ()).is_err()
    });
}

#[test]
fn yielding_is_fair_to_every_fiber() {
    // On one worker: while one fiber goes through its queue once, every other has its turn. The
    // flag of the last comes up although nobody ever waits for it.
    everywhere(|host| {
        let flags: Arc<Vec<Flag>> = Arc::new((0..100).map(|_| Flag::new()).collect());
        let tasks: Vec<_> = (0..100)
            .map(|i| {
                let flags = Arc::clone(&flags);
                host.spawn(move || {
                    // Each goes on only when the one after it has gone on.
                    while i + 1 < flags.len() && !flags[i + 1].is_up() {
                        host.yield_now();
                    }
                    flags[i].raise();
                })
            })
            .collect();
        tasks.into_iter().for_each(|task| task.value());
        flags.iter().filter(|flag| flag.is_up()).count()
    });
}

#[test]
fn setuid_and_setgid_reach_every_thread_and_return() {
    everywhere(|host| {
        let busy = host.spawn_many(20, |_| (0..200).for_each(|_| std::thread::yield_now()));
        let set = || {
            // SAFETY: setuid(2) and setgid(2) take numbers; these are the ids that the process has.
            unsafe { (libc::setuid(libc::getuid()), libc::setgid(libc::getgid())) }
        };
        let on_fibers: Vec<_> = (0..8).map(|_| host.spawn(set)).collect();
        let from_outside = std::thread::spawn(set).join().unwrap();
        drop(busy);
        (on_fibers.into_iter().map(|set| set.value()).collect::<Vec<_>>(), from_outside)
    });
}
