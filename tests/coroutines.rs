//! Coroutines inside of fibers.
//!
//! A coroutine belongs to the thread that made it, and a fiber is a thread. So what works on threads works on
//! fibers: what waits inside a coroutine parks the fiber, which may go on under another worker, with all its
//! coroutines, suspended or in the middle of a wait.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
mod support;

use sleave_context::CoroutineState::{Complete, Yielded};
use sleave_context::coroutine::scope;
use sleave_context::{Coroutine, Yielder};
use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use support::kernel::tid;
use support::timing::GENEROUS;
use support::{Count, Flag, Host, everywhere, scaled};

const NAP: Duration = Duration::from_millis(2);

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(0) };
}

/// Runs a closure when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn hundreds_wait_in_every_way_and_lose_nothing() {
    everywhere(|host| {
        let n = scaled(500);
        let total = Arc::new(Mutex::new(0));
        let (send, receive) = mpsc::sync_channel(4);
        let reader = host.spawn(move || receive.iter().sum::<usize>());
        let shared = total.clone();
        let sums = host.spawn_many(n, move |own| {
            let (total, send) = (shared.clone(), send.clone());
            let mut coroutine = Coroutine::new(move |yielder, mut input: usize| {
                while input != 0 {
                    thread::sleep(NAP);
                    let mut guard = total.lock().unwrap();
                    host.yield_now(); // with the lock held
                    *guard += input;
                    drop(guard);
                    send.send(input).unwrap();
                    input = yielder.suspend(own * input);
                }
                own
            });
            let mut sum = 0;
            for step in 1..=5 {
                let Yielded(product) = coroutine.resume(step) else { unreachable!() };
                host.yield_now(); // with the coroutine suspended
                sum += product;
            }
            assert_eq!(coroutine.resume(0), Complete(own));
            sum
        });
        assert_eq!(sums, (0..n).map(|own| own * 15).collect::<Vec<_>>());
        assert_eq!((reader.value(), *total.lock().unwrap()), (n * 15, n * 15));
    });
}

/// Yields the worker, with a lock held that all others want: those who get it may find themselves elsewhere.
/// Returns whether the caller has moved.
fn stir(host: Host, lock: &Mutex<()>) -> bool {
    let before = tid();
    let _guard = lock.lock().unwrap();
    host.yield_now();
    before != tid()
}

#[test]
fn a_coroutine_goes_where_its_fiber_goes_and_has_its_thread_locals() {
    everywhere(|host| {
        let (moved_inside, moved_between) = (Arc::new(Flag::new()), Arc::new(Flag::new()));
        let (inside, between) = (moved_inside.clone(), moved_between.clone());
        let lock = Arc::new(Mutex::new(()));
        let limit = Instant::now() + GENEROUS;
        host.spawn_many(50, move |own| {
            let seen = || inside.is_up() && between.is_up();
            MINE.set(own);
            let me = thread::current().id();
            let check = move || assert_eq!((MINE.get(), thread::current().id()), (own, me));
            let (flag, mutex) = (inside.clone(), lock.clone());
            let mut coroutine = Coroutine::<(), (), ()>::new(move |yielder, ()| {
                loop {
                    if stir(host, &mutex) {
                        flag.raise();
                    }
                    check();
                    yielder.suspend(());
                }
            });
            let mut rounds = 0;
            while rounds < 10 || (host.moves() && !seen() && Instant::now() < limit) {
                rounds += 1;
                coroutine.next().unwrap();
                if stir(host, &lock) {
                    between.raise();
                }
                check();
            }
        });
        assert!(!host.moves() || moved_inside.is_up(), "{host}: none moved while it ran");
        assert!(!host.moves() || moved_between.is_up(), "{host}: none moved while suspended");
    });
}

/// A generator of the lines that come from a socket.
fn lines(stream: UnixStream) -> Coroutine<(), String, ()> {
    Coroutine::new(move |yielder, ()| {
        for line in BufReader::new(stream).lines() {
            yielder.suspend(line.unwrap());
        }
    })
}

#[test]
fn a_generator_reads_a_socket() {
    everywhere(|host| {
        let pairs = host.spawn_many(100, move |own| {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let writer = host.spawn(move || {
                for n in 0..10 {
                    let line = format!("line {n} for {own}\n");
                    let (half, rest) = line.split_at(line.len() / 2);
                    ours.write_all(half.as_bytes()).unwrap();
                    host.yield_now(); // so that the reader waits in the middle of a line
                    ours.write_all(rest.as_bytes()).unwrap();
                }
            });
            let first = lines(theirs);
            // A generator that is driven by another.
            let numbered = Coroutine::new(move |yielder, ()| {
                first.enumerate().for_each(|pair| yielder.suspend(pair));
            });
            let all: Vec<(usize, String)> = numbered.collect();
            writer.value();
            assert!(all.iter().all(|(n, line)| *line == format!("line {n} for {own}")));
            all.len()
        });
        assert_eq!(pairs, vec![10; 100]);
    });
}

#[test]
fn two_fibers_hand_a_turn_to_each_other_from_inside_coroutines() {
    everywhere(|host| {
        let turn = Arc::new((Mutex::new(0), Condvar::new()));
        let steps = host.spawn_many(2, move |own| {
            let turn = turn.clone();
            let mine = Coroutine::new(move |yielder, ()| {
                for step in (own..200).step_by(2) {
                    let guard = turn.0.lock().unwrap();
                    let mut now = turn.1.wait_while(guard, |now| *now != step).unwrap();
                    *now += 1;
                    turn.1.notify_all();
                    drop(now);
                    yielder.suspend(step);
                }
            });
            mine.sum::<usize>()
        });
        assert_eq!(steps, [9900, 10_000]);
    });
}

#[test]
fn a_coroutine_spawns_and_joins_in_a_scope_over_its_suspensions() {
    everywhere(|host| {
        let sums = host.spawn_many(50, move |own| {
            let numbers: Vec<usize> = (own..own + 10).collect();
            let mut coroutine = Coroutine::new(move |yielder: &Yielder<(), usize>, ()| {
                host.scope(|tasks| {
                    let (front, back) = numbers.split_at(5);
                    let front = tasks.spawn(move || front.iter().sum::<usize>());
                    yielder.suspend(back.iter().sum());
                    front.join().unwrap()
                })
            });
            let back = coroutine.resume(()).yielded().unwrap();
            host.yield_now();
            back + coroutine.resume(()).complete().unwrap()
        });
        assert_eq!(sums, (0..50).map(|own| 10 * own + 45).collect::<Vec<_>>());
    });
}

#[test]
fn a_panic_in_a_coroutine_is_its_fibers() {
    everywhere(|host| {
        let task = host.spawn(move || {
            let mut coroutine = Coroutine::<(), (), ()>::new(move |yielder, ()| {
                yielder.suspend(());
                thread::sleep(NAP);
                std::panic::resume_unwind(Box::new(42_u32));
            });
            coroutine.resume(());
            coroutine.resume(());
        });
        let payload = task.join().unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&42_u32));
        // Or is caught there.
        let caught = host.spawn(move || {
            let mut coroutine = Coroutine::<(), (), ()>::new(move |_, ()| {
                host.yield_now();
                std::panic::resume_unwind(Box::new(1_u8));
            });
            let caught = catch_unwind(AssertUnwindSafe(|| coroutine.resume(()))).is_err();
            (caught, coroutine.is_done(), thread::panicking())
        });
        assert_eq!(caught.value(), (true, true, false));
    });
}

#[test]
fn destructors_of_a_dropped_coroutine_may_wait() {
    everywhere(|host| {
        let dropped = Arc::new(Count::new());
        let count = dropped.clone();
        let (lock, all) = (Arc::new(Mutex::new(())), scaled(300));
        host.spawn_many(all, move |_| {
            let (count, lock) = (count.clone(), lock.clone());
            let mut coroutine = Coroutine::<(), (), ()>::new(move |yielder, ()| {
                let _last = OnDrop(|| _ = count.up());
                let _waits = OnDrop(|| {
                    thread::sleep(NAP);
                    let _guard = lock.lock();
                    host.yield_now();
                    // Wherever this is now, it is this fiber that unwinds, and no other one.
                    assert!(thread::panicking());
                });
                yielder.suspend(());
            });
            assert!(!thread::panicking());
            coroutine.resume(());
            host.yield_now();
            drop(coroutine);
            assert!(!thread::panicking());
        });
        assert_eq!(dropped.get(), all);
    });
}

#[test]
fn a_fiber_that_ends_drops_the_coroutines_of_its_thread_locals() {
    thread_local! {
        static KEPT: RefCell<Vec<Coroutine<(), (), ()>>> = const { RefCell::new(Vec::new()) };
    }
    everywhere(|host| {
        let dropped = Arc::new(Count::new());
        let count = dropped.clone();
        host.spawn_many(100, move |_| {
            for _ in 0..3 {
                let count = count.clone();
                let mut coroutine = Coroutine::new(move |yielder: &Yielder<(), ()>, ()| {
                    let _counts = OnDrop(|| _ = count.up());
                    yielder.suspend(());
                });
                coroutine.resume(());
                KEPT.with_borrow_mut(|kept| kept.push(coroutine));
                host.yield_now();
            }
        });
        // Joined after the thread-locals have gone, as with threads.
        assert_eq!(dropped.get(), 300);
    });
}

#[test]
fn a_scoped_coroutine_borrows_from_its_fiber_over_waits() {
    everywhere(|host| {
        let sums = host.spawn_many(100, move |own| {
            let (words, mut seen) = (vec![own; 10], Vec::new());
            let sum: usize = scope(
                |yielder, ()| {
                    for word in &words {
                        host.yield_now();
                        seen.push(*word);
                        yielder.suspend(*word);
                    }
                },
                |coroutine| coroutine.take(7).inspect(|_| host.yield_now()).sum(),
            );
            (sum, seen.len())
        });
        assert_eq!(sums, (0..100).map(|own| (7 * own, 7)).collect::<Vec<_>>());
    });
}

#[test]
fn coroutines_of_many_fibers_are_switched_in_any_order() {
    everywhere(|host| {
        host.spawn_many(50, move |own| {
            // Ten coroutines of one fiber, in turn, each of which gives the other fibers their turn inside.
            let mut ring: Vec<_> = (0..10)
                .map(|n| {
                    Coroutine::new(move |yielder: &Yielder<usize, usize>, mut input: usize| {
                        for step in 0.. {
                            if (step + n) % 3 == 0 {
                                host.yield_now();
                            }
                            input = yielder.suspend(input.wrapping_mul(31) + n);
                        }
                    })
                })
                .collect();
            let mut digest = own;
            for turn in 0..500 {
                digest = ring[(turn * 7 + own) % 10].resume(digest).yielded().unwrap();
            }
            digest
        })
    });
}
