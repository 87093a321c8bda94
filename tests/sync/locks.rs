//! `Mutex`, `RwLock`, `Condvar`, `Barrier`: exclusion, wake-ups and timeouts.

use std::io::Write;
use std::sync::{Arc, Barrier, Condvar, Mutex, RwLock, TryLockError, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::timing::{GENEROUS, assert_prompt, assert_waits, eventually};
use crate::support::{Count, Flag, Host, everywhere};

#[test]
fn a_mutex_is_held_across_yields_and_sleeps() {
    everywhere(|host| {
        let number = Arc::new(Mutex::new(0));
        host.spawn_many(50, {
            let number = Arc::clone(&number);
            move |_| {
                for round in 0..20 {
                    let mut number = number.lock().unwrap();
                    let before = *number;
                    if round % 10 == 0 {
                        thread::sleep(Duration::from_millis(1));
                    } else {
                        host.yield_now();
                    }
                    *number = before + 1;
                }
            }
        });
        *number.lock().unwrap()
    });
}

#[test]
fn a_mutex_taken_a_hundred_thousand_times_loses_no_increment() {
    everywhere(|host| {
        let number = Arc::new(Mutex::new(0_u64));
        host.spawn_many(20, {
            let number = Arc::clone(&number);
            move |i| {
                for round in 0..5000 {
                    *number.lock().unwrap() += 1;
                    if (round + i) % 64 == 0 {
                        host.yield_now();
                    }
                }
            }
        });
        *number.lock().unwrap()
    });
}

#[test]
fn try_lock_says_would_block_and_does_not() {
    everywhere(|host| {
        let lock = Arc::new(Mutex::new(7));
        let (held, is_held) = mpsc::channel();
        let (release, may_release) = mpsc::channel::<()>();
        let holder = host.spawn({
            let lock = Arc::clone(&lock);
            move || {
                let _guard = lock.lock().unwrap();
                held.send(()).unwrap();
                may_release.recv().unwrap();
            }
        });
        is_held.recv().unwrap();
        let refused = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
        release.send(()).unwrap();
        holder.value();
        (refused, lock.try_lock().map(|guard| *guard).ok())
    });
}

#[test]
fn a_panic_poisons_the_mutex_it_holds() {
    everywhere(|host| {
        let lock = Arc::new(Mutex::new(1));
        let panicker = host.spawn({
            let lock = Arc::clone(&lock);
            move || {
                let mut guard = lock.lock().unwrap();
                *guard = 2;
                host.yield_now();
                std::panic::resume_unwind(Box::new("with the lock held"));
            }
        });
        // This one may wait for the lock while it is being poisoned.
        let waiter = host.spawn({
            let lock = Arc::clone(&lock);
            move || {
                while !lock.is_poisoned() {
                    drop(lock.lock());
                    host.yield_now();
                }
                lock.lock().is_err()
            }
        });
        let panicked = panicker.join().is_err();
        let value = lock.lock().map_or_else(|poisoned| *poisoned.into_inner(), |_| 0);
        let seen = waiter.value();
        lock.clear_poison();
        (panicked, value, seen, lock.lock().map(|guard| *guard).ok())
    });
}

#[test]
fn readers_of_a_rwlock_share_and_a_writer_excludes() {
    everywhere(|host| {
        // Two readers meet inside: they would wait for ever if a reader excluded another.
        let lock = Arc::new(RwLock::new((0, 0)));
        let inside = Arc::new(Barrier::new(2));
        host.spawn_many(2, {
            let (lock, inside) = (Arc::clone(&lock), Arc::clone(&inside));
            move |_| {
                let _guard = lock.read().unwrap();
                inside.wait();
            }
        });
        let consistent = host.spawn_many(30, {
            let lock = Arc::clone(&lock);
            move |i| {
                (0..30).all(|round| {
                    if (i + round) % 5 == 0 {
                        let mut pair = lock.write().unwrap();
                        pair.0 += 1;
                        host.yield_now();
                        pair.1 += 1;
                        true
                    } else {
                        let pair = lock.read().unwrap();
                        let before = *pair;
                        host.yield_now();
                        before == *pair && before.0 == before.1
                    }
                })
            }
        });
        (consistent, *lock.read().unwrap())
    });
}

#[test]
fn a_rwlock_that_is_written_refuses_and_one_that_is_read_admits_readers() {
    everywhere(|host| {
        let lock = RwLock::new(0);
        let attempt = |lock: &RwLock<i32>| {
            host.scope(|scope| {
                let task = scope.spawn(|| (lock.try_read().is_ok(), lock.try_write().is_ok()));
                task.value()
            })
        };
        let while_written = {
            let _guard = lock.write().unwrap();
            attempt(&lock)
        };
        let while_read = {
            let _guard = lock.read().unwrap();
            attempt(&lock)
        };
        (while_written, while_read, attempt(&lock))
    });
}

#[test]
fn two_fibers_take_turns_through_a_condvar() {
    everywhere(|host| {
        const TURNS: usize = 1000;
        let turn = Arc::new((Mutex::new(0), Condvar::new()));
        let log = host.spawn_many(2, {
            let turn = Arc::clone(&turn);
            move |me| {
                let (number, changed) = &*turn;
                let mut mine = 0;
                let mut guard = number.lock().unwrap();
                while mine < TURNS {
                    guard = changed.wait_while(guard, |number| *number % 2 != me).unwrap();
                    *guard += 1;
                    mine += 1;
                    changed.notify_one();
                }
                mine
            }
        });
        (log, *turn.0.lock().unwrap())
    });
}

#[test]
fn a_condvars_timeout_is_precise_and_says_so() {
    everywhere(|host| {
        for millis in [1, 20, 70] {
            let asked = Duration::from_millis(millis);
            let (lock, nobody_notifies) = (Mutex::new(()), Condvar::new());
            assert_waits(host, asked, || {
                // std allows a spurious wake-up; `wait_timeout_while` goes on after one.
                let guard = lock.lock().unwrap();
                let (_guard, result) =
                    nobody_notifies.wait_timeout_while(guard, asked, |()| true).unwrap();
                assert!(result.timed_out());
            });
        }
    });
}

#[test]
fn a_notified_condvar_has_not_timed_out() {
    everywhere(|host| {
        let shared = Arc::new((Mutex::new(false), Condvar::new()));
        let waiter = host.spawn({
            let shared = Arc::clone(&shared);
            move || {
                let guard = shared.0.lock().unwrap();
                assert_prompt(GENEROUS, || {
                    let (guard, result) =
                        shared.1.wait_timeout_while(guard, GENEROUS * 2, |up| !*up).unwrap();
                    (*guard, result.timed_out())
                })
            }
        });
        thread::sleep(Duration::from_millis(20));
        *shared.0.lock().unwrap() = true;
        shared.1.notify_one();
        waiter.value()
    });
}

#[test]
fn many_condvar_timeouts_run_out_at_the_same_time() {
    everywhere(|host| {
        let shared = Arc::new((Mutex::new(()), Condvar::new()));
        // One after the other these would take 40 s.
        assert_prompt(GENEROUS, || {
            host.spawn_many(400, {
                let shared = Arc::clone(&shared);
                move |_| {
                    let guard = shared.0.lock().unwrap();
                    let asked = Duration::from_millis(100);
                    shared.1.wait_timeout_while(guard, asked, |()| true).unwrap().1.timed_out()
                }
            })
        })
    });
}

/// A counting semaphore of nothing but std.
struct Permits {
    free: Mutex<usize>,
    returned: Condvar,
}

impl Permits {
    fn take(&self) {
        let free = self.free.lock().unwrap();
        *self.returned.wait_while(free, |free| *free == 0).unwrap() -= 1;
    }

    fn give(&self) {
        *self.free.lock().unwrap() += 1;
        self.returned.notify_one();
    }
}

#[test]
fn notify_one_loses_no_permit() {
    everywhere(|host| {
        let permits = Arc::new(Permits { free: Mutex::new(5), returned: Condvar::new() });
        let (inside, most) = (Arc::new(Count::new()), Arc::new(Count::new()));
        host.spawn_many(100, {
            let (permits, most) = (Arc::clone(&permits), Arc::clone(&most));
            move |i| {
                for round in 0..10 {
                    permits.take();
                    most.at_least(inside.up());
                    if (i + round) % 10 == 0 {
                        thread::sleep(Duration::from_millis(1));
                    } else {
                        host.yield_now();
                    }
                    inside.down();
                    permits.give();
                }
            }
        });
        assert!(most.get() <= 5, "{} were inside at once", most.get());
        *permits.free.lock().unwrap()
    });
}

#[test]
fn notify_all_wakes_all() {
    everywhere(|host| {
        let shared = Arc::new((Mutex::new((0, false)), Condvar::new()));
        let waiters: Vec<_> = (0..500)
            .map(|_| {
                let shared = Arc::clone(&shared);
                host.spawn(move || {
                    let mut state = shared.0.lock().unwrap();
                    state.0 += 1;
                    drop(shared.1.wait_while(state, |state| !state.1).unwrap());
                })
            })
            .collect();
        eventually("all wait", || shared.0.lock().unwrap().0 == 500);
        shared.0.lock().unwrap().1 = true;
        shared.1.notify_all();
        waiters.into_iter().map(|waiter| waiter.join().is_ok()).filter(|&ok| ok).count()
    });
}

#[test]
fn a_barrier_holds_each_generation_and_names_one_leader() {
    everywhere(|host| {
        const FIBERS: usize = 20;
        const ROUNDS: usize = 40;
        let barrier = Arc::new(Barrier::new(FIBERS));
        let arrived: Arc<Vec<Count>> = Arc::new((0..ROUNDS).map(|_| Count::new()).collect());
        let led = host.spawn_many(FIBERS, move |i| {
            let mut led = 0;
            for (round, arrived) in arrived.iter().enumerate() {
                if (i + round) % 7 == 0 {
                    host.yield_now();
                }
                arrived.up();
                led += usize::from(barrier.wait().is_leader());
                assert_eq!(arrived.get(), FIBERS, "somebody went through early");
            }
            led
        });
        led.into_iter().sum::<usize>()
    });
}

#[test]
fn a_reentrant_lock_belongs_to_the_fiber() {
    // `Stderr` is a lock that its owner may take again; std tells the owner by its thread id. Two
    // fibers on one worker that looked like one thread would both get in.
    everywhere(|host| {
        let inside = Arc::new(Flag::new());
        host.spawn_many(20, move |_| {
            (0..10).all(|_| {
                let mut outer = std::io::stderr().lock();
                let alone = !inside.raise();
                host.yield_now();
                let again = std::io::stderr().lock();
                thread::sleep(Duration::from_micros(100));
                drop(again);
                outer.flush().unwrap();
                inside.lower();
                drop(outer);
                alone
            })
        })
    });
}

#[test]
fn a_lock_is_handed_on_among_nested_fibers() {
    fn grow(host: Host, depth: usize, leaves: &Arc<Mutex<usize>>) {
        if depth == 0 {
            let mut leaves = leaves.lock().unwrap();
            host.yield_now();
            *leaves += 1;
            return;
        }
        host.spawn_many(3, {
            let leaves = Arc::clone(leaves);
            move |_| grow(host, depth - 1, &leaves)
        });
    }
    everywhere(|host| {
        let leaves = Arc::new(Mutex::new(0));
        grow(host, 5, &leaves);
        *leaves.lock().unwrap()
    });
}
