//! `parking_lot`, unmodified: a parking table of its own, keyed by address, with thread-locals for
//! its waiters. It works on fibers only if both the futex and the thread-local are the fiber's.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{
    Condvar, FairMutex, Mutex, MutexGuard, Once, ReentrantMutex, RwLock, RwLockUpgradableReadGuard,
};

use crate::support::timing::{GENEROUS, assert_prompt, assert_waits, eventually};
use crate::support::{Flag, everywhere};

#[test]
fn a_parking_lot_mutex_is_held_across_yields_and_sleeps() {
    everywhere(|host| {
        let number = Arc::new(Mutex::new(0));
        host.spawn_many(50, {
            let number = Arc::clone(&number);
            move |_| {
                for round in 0..40 {
                    let mut guard = number.lock();
                    let before = *guard;
                    if round % 20 == 0 {
                        thread::sleep(Duration::from_millis(1));
                    } else {
                        host.yield_now();
                    }
                    *guard = before + 1;
                    if round % 4 == 0 {
                        MutexGuard::unlock_fair(guard);
                    }
                }
            }
        });
        *number.lock()
    });
}

#[test]
fn a_parking_lot_lock_times_out_precisely() {
    everywhere(|host| {
        let (mutex, rwlock) = (Mutex::new(()), RwLock::new(()));
        let asked = Duration::from_millis(30);
        host.scope(|scope| {
            let _guards = (mutex.lock(), rwlock.read());
            scope
                .spawn(|| {
                    assert_waits(host, asked, || assert!(mutex.try_lock_for(asked).is_none()));
                    assert_waits(host, asked, || assert!(rwlock.try_write_for(asked).is_none()));
                    (mutex.is_locked(), rwlock.try_read().is_some(), rwlock.try_write().is_some())
                })
                .value()
        })
    });
}

#[test]
fn a_parking_lot_rwlock_upgrades_alone() {
    everywhere(|host| {
        let lock = Arc::new(RwLock::new((0, 0)));
        let consistent = host.spawn_many(30, {
            let lock = Arc::clone(&lock);
            move |i| {
                (0..20).all(|round| match (i + round) % 4 {
                    0 => {
                        let mut pair = lock.write();
                        pair.0 += 1;
                        host.yield_now();
                        pair.1 += 1;
                        true
                    }
                    1 => {
                        let pair = lock.upgradable_read();
                        let before = *pair;
                        host.yield_now();
                        let mut pair = RwLockUpgradableReadGuard::upgrade(pair);
                        let kept = *pair == before;
                        pair.0 += 1;
                        host.yield_now();
                        pair.1 += 1;
                        kept
                    }
                    _ => {
                        let pair = lock.read();
                        let before = *pair;
                        host.yield_now();
                        before == *pair && before.0 == before.1
                    }
                })
            }
        });
        (consistent, *lock.read())
    });
}

#[test]
fn a_parking_lot_condvar_notifies_and_times_out() {
    everywhere(|host| {
        let shared = Arc::new((Mutex::new(0), Condvar::new()));
        let asked = Duration::from_millis(30);
        assert_waits(host, asked, || {
            let mut guard = shared.0.lock();
            assert!(shared.1.wait_for(&mut guard, asked).timed_out());
        });
        let waiters: Vec<_> = (0..100)
            .map(|_| {
                let shared = Arc::clone(&shared);
                host.spawn(move || {
                    let mut waiting = shared.0.lock();
                    *waiting += 1;
                    shared.1.wait(&mut waiting);
                    *waiting -= 1;
                })
            })
            .collect();
        // parking_lot promises no spurious wake-ups, so these counts are exact.
        eventually("all wait", || *shared.0.lock() == 100);
        let one = {
            // The lock shows that the hundredth has begun to wait.
            let _guard = shared.0.lock();
            shared.1.notify_one()
        };
        let rest = {
            let _guard = shared.0.lock();
            shared.1.notify_all()
        };
        waiters.into_iter().for_each(|waiter| waiter.value());
        (one, rest, *shared.0.lock())
    });
}

#[test]
fn a_reentrant_mutex_knows_its_fiber() {
    // parking_lot tells the owner by the address of a thread-local.
    everywhere(|host| {
        let lock = Arc::new(ReentrantMutex::new(Flag::new()));
        host.spawn_many(20, move |_| {
            (0..20).all(|round| {
                let outer = lock.lock();
                let alone = !outer.raise();
                if round % 10 == 0 {
                    thread::sleep(Duration::from_millis(1));
                } else {
                    host.yield_now();
                }
                let inner = lock.try_lock().expect("the owner may always enter");
                inner.lower();
                drop((inner, outer));
                alone
            })
        })
    });
}

#[test]
fn a_parking_lot_once_and_fair_mutex() {
    everywhere(|host| {
        let shared = Arc::new((Once::new(), FairMutex::new(Vec::new())));
        host.spawn_many(32, {
            let shared = Arc::clone(&shared);
            move |i| {
                shared.0.call_once(|| {
                    thread::sleep(Duration::from_millis(10));
                    shared.1.lock().push(1000);
                });
                let mut order = shared.1.lock();
                host.yield_now();
                order.push(i);
            }
        });
        let mut order = shared.1.lock().clone();
        let first = order[0];
        order.sort_unstable();
        (first, order)
    });
}

#[test]
fn parking_lot_wakes_threads_and_fibers() {
    everywhere(|host| {
        let shared = Arc::new((Mutex::new(0_usize), Condvar::new()));
        let play = |parity: usize| {
            let shared = Arc::clone(&shared);
            move || {
                for _ in 0..300 {
                    let mut turn = shared.0.lock();
                    shared.1.wait_while(&mut turn, |turn| *turn % 2 != parity);
                    *turn += 1;
                    shared.1.notify_one();
                }
            }
        };
        let outside = thread::spawn(play(0));
        let inside = host.spawn(play(1));
        assert_prompt(GENEROUS * 2, || {
            outside.join().unwrap();
            inside.value();
        });
        *shared.0.lock()
    });
}
