//! `parking_lot`, whose own table of waiters sits on one futex for each thread; for each fiber, that is.

use std::sync::Arc;

use parking_lot::{
    Condvar, FairMutex, Mutex, MutexGuard, ReentrantMutex, RwLock, RwLockUpgradableReadGuard,
    RwLockWriteGuard,
};

use crate::crowd::{gather, members};
use crate::support::{Count, on_fibers_alone};

#[test]
fn a_parking_lot_mutex_excludes_ten_thousand_however_it_is_unlocked() {
    on_fibers_alone(|host| {
        let number = Arc::new(Mutex::new(0));
        let shared = Arc::clone(&number);
        let done: usize = gather(host, move |member| {
            for round in member.rounds(5, 100) {
                let mut number = shared.lock();
                let before = *number;
                member.dawdle(round);
                *number = before + 1;
                match (member.number + round) % 4 {
                    0 => MutexGuard::unlock_fair(number),
                    1 => MutexGuard::bump(&mut number),
                    _ => drop(number),
                }
            }
            member.rounds(5, 100).len()
        })
        .into_iter()
        .sum();
        assert_eq!(*number.lock(), done);
    });
}

#[test]
fn a_fair_mutex_is_handed_on_through_ten_thousand() {
    on_fibers_alone(|host| {
        let number = Arc::new(FairMutex::new(0));
        let shared = Arc::clone(&number);
        gather(host, move |member| {
            for round in member.rounds(3, 1) {
                let mut number = shared.lock();
                let before = *number;
                member.dawdle(round);
                *number = before + 1;
            }
        });
        assert_eq!(*number.lock(), 3 * members());
    });
}

#[test]
fn a_parking_lot_rwlock_upgrades_and_downgrades_amid_ten_thousand() {
    on_fibers_alone(|host| {
        let pair = Arc::new(RwLock::new((0, 0)));
        let shared = Arc::clone(&pair);
        let written: usize = gather(host, move |member| {
            let mut written = 0;
            for round in member.rounds(5, 100) {
                match (member.number + round) % 16 {
                    0 => {
                        let mut pair = shared.write();
                        pair.0 += 1;
                        member.dawdle(round);
                        pair.1 += 1;
                        let (now, pair) = (*pair, RwLockWriteGuard::downgrade(pair));
                        member.dawdle(round + 1);
                        assert_eq!(*pair, now, "written after a downgrade");
                        written += 1;
                    }
                    1 => {
                        let pair = shared.upgradable_read();
                        let before = *pair;
                        member.dawdle(round);
                        let mut pair = RwLockUpgradableReadGuard::upgrade(pair);
                        assert_eq!(*pair, before, "written before an upgrade");
                        *pair = (before.0 + 1, before.1 + 1);
                        written += 1;
                    }
                    _ => {
                        let pair = shared.read();
                        let before = *pair;
                        member.dawdle(round);
                        assert_eq!(*pair, before, "written while it was read");
                        assert_eq!(pair.0, pair.1, "half written");
                    }
                }
            }
            written
        })
        .into_iter()
        .sum();
        assert_eq!(*pair.read(), (written, written));
    });
}

#[test]
fn parking_lot_notifications_are_as_many_as_their_wakings() {
    on_fibers_alone(|host| {
        // Half of the crowd waits for a permit; the other half gives one each, and wakes one.
        let shared = Arc::new((Mutex::new(0_usize), Condvar::new(), Count::new()));
        let permits = Arc::clone(&shared);
        gather(host, move |member| {
            let (permits, given, taken) = &*permits;
            for round in 0..5 {
                if member.number.is_multiple_of(2) {
                    let mut permits = permits.lock();
                    given.wait_while(&mut permits, |permits| *permits == 0);
                    *permits -= 1;
                    taken.up();
                } else {
                    member.dawdle(round);
                    *permits.lock() += 1;
                    given.notify_one();
                }
            }
        });
        assert_eq!((*shared.0.lock(), shared.2.get()), (0, 5 * members().div_ceil(2)));
    });
}

#[test]
fn parking_lot_notify_all_moves_ten_thousand_to_the_mutex() {
    on_fibers_alone(|host| {
        let stage = Arc::new((Mutex::new((0, 0)), Condvar::new()));
        let shared = Arc::clone(&stage);
        gather(host, move |_| {
            for act in 0..5 {
                let mut state = shared.0.lock();
                assert_eq!(state.0, act, "an act ahead of the others");
                state.1 += 1;
                if state.1 == members() {
                    *state = (act + 1, 0);
                    // With the mutex held, waiters are requeued to it and wake one by one.
                    assert_eq!(shared.1.notify_all(), members() - 1);
                } else {
                    shared.1.wait_while(&mut state, |state| state.0 == act);
                }
            }
        });
        assert_eq!(*stage.0.lock(), (5, 0));
    });
}

#[test]
fn a_reentrant_mutex_belongs_to_one_of_ten_thousand() {
    on_fibers_alone(|host| {
        let number = Arc::new(ReentrantMutex::new(Count::new()));
        let shared = Arc::clone(&number);
        gather(host, move |member| {
            for round in member.rounds(3, 1) {
                let outer = shared.lock();
                let before = outer.get();
                member.dawdle(round);
                // Again, perhaps on another worker: still its own.
                let inner = shared.try_lock().expect("the owner's");
                member.dawdle(round + 1);
                inner.set(before + 1);
            }
        });
        assert_eq!(number.lock().get(), 3 * members());
    });
}
