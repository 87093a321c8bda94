//! Mutexes of all types: exclusion across waits, owners, and what stays with glibc.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::objects::{Cond, Mutex};
use crate::support::{Count, Host, everywhere, on_fibers};

const TYPES: [i32; 4] = [
    libc::PTHREAD_MUTEX_NORMAL,
    libc::PTHREAD_MUTEX_RECURSIVE,
    libc::PTHREAD_MUTEX_ERRORCHECK,
    3, // PTHREAD_MUTEX_ADAPTIVE_NP
];

/// Whether two ever met under `mutex`, of `n` that hold it over yields and sleeps.
fn exclusion(host: Host, mutex: Mutex, n: usize) -> (usize, usize) {
    let shared = Arc::new((mutex, Count::new(), Count::new()));
    host.spawn_many(n, {
        let shared = Arc::clone(&shared);
        move |_| {
            let (mutex, inside, met) = &*shared;
            for round in 0..10 {
                mutex.with_lock(|| {
                    if inside.up() > 1 {
                        met.up();
                    }
                    if round == 5 {
                        thread::sleep(Duration::from_micros(100));
                    } else {
                        host.yield_now();
                    }
                    inside.down();
                });
            }
        }
    });
    (shared.2.get(), shared.1.get())
}

#[test]
fn every_type_excludes_across_waits() {
    everywhere(|host| TYPES.map(|kind| exclusion(host, Mutex::of_type(kind), 30)));
}

#[test]
fn static_initializers_need_no_init() {
    everywhere(|host| exclusion(host, Mutex::initializer(), 30));
}

#[test]
fn owners_are_told_from_others() {
    everywhere(|host| {
        let recursive = Arc::new(Mutex::of_type(libc::PTHREAD_MUTEX_RECURSIVE));
        let checking = Arc::new(Mutex::of_type(libc::PTHREAD_MUTEX_ERRORCHECK));
        let mine = [
            recursive.lock(),
            recursive.lock(),
            recursive.try_lock(),
            checking.lock(),
            checking.lock(),
            checking.try_lock(),
        ];
        thread::sleep(Duration::from_millis(1));
        let others = host
            .spawn({
                let (recursive, checking) = (Arc::clone(&recursive), Arc::clone(&checking));
                move || {
                    [
                        recursive.try_lock(),
                        recursive.unlock(),
                        checking.try_lock(),
                        checking.unlock(),
                    ]
                }
            })
            .value();
        let rest = [0; 4].map(|_| recursive.unlock());
        (mine, others, rest, checking.unlock(), checking.unlock())
    });
}

#[test]
fn a_recursive_mutex_is_free_after_as_many_unlocks() {
    everywhere(|host| {
        let mutex = Arc::new(Mutex::of_type(libc::PTHREAD_MUTEX_RECURSIVE));
        for _ in 0..3 {
            assert_eq!(mutex.lock(), 0);
        }
        let other = host.spawn({
            let mutex = Arc::clone(&mutex);
            move || (mutex.lock(), mutex.unlock())
        });
        for _ in 0..3 {
            host.yield_now();
            assert!(!other.is_finished());
            assert_eq!(mutex.unlock(), 0);
        }
        other.value()
    });
}

#[test]
fn a_mutex_in_use_is_not_destroyed() {
    everywhere(|_| {
        let mutex = Mutex::initializer();
        (mutex.lock(), mutex.destroy(), mutex.unlock(), mutex.destroy(), mutex.lock())
    });
}

#[test]
fn who_gets_a_mutex_last_may_destroy_it() {
    // Each round: one unlocks, the other frees the memory as soon as it has got the lock.
    everywhere(|host| {
        for _ in 0..200 {
            let mutex = Arc::new(Mutex::initializer());
            mutex.lock();
            let heir = host.spawn({
                let mutex = Arc::clone(&mutex);
                move || {
                    mutex.lock();
                    mutex.unlock();
                    assert_eq!(mutex.destroy(), 0);
                }
            });
            host.yield_now();
            mutex.unlock();
            drop(mutex);
            heir.value();
        }
    });
}

#[test]
fn shared_and_robust_mutexes_work_and_hold_their_worker() {
    everywhere(|host| {
        let shared = || Mutex::with(0, libc::PTHREAD_PROCESS_SHARED, libc::PTHREAD_PRIO_NONE);
        (exclusion(host, shared(), 4), exclusion(host, Mutex::robust(), 4))
    });
}

#[test]
fn a_robust_mutex_of_one_who_has_ended_says_so() {
    everywhere(|host| {
        let mutex = Arc::new(Mutex::robust());
        let owner = Arc::clone(&mutex);
        let locked = host.spawn(move || owner.lock()).value();
        (locked, mutex.lock(), mutex.unlock(), mutex.lock())
    });
}

#[test]
fn a_condition_takes_mutexes_of_every_kind() {
    everywhere(|host| {
        let shared = Mutex::with(0, libc::PTHREAD_PROCESS_SHARED, libc::PTHREAD_PRIO_NONE);
        let mutexes: Vec<_> =
            TYPES.into_iter().map(Mutex::of_type).chain([shared, Mutex::robust()]).collect();
        mutexes
            .into_iter()
            .map(|mutex| {
                let shared = Arc::new((mutex, Cond::new(), Count::new()));
                let waiter = host.spawn({
                    let shared = Arc::clone(&shared);
                    move || {
                        let (mutex, cond, stage) = &*shared;
                        assert_eq!(mutex.lock(), 0);
                        stage.up();
                        while stage.get() < 2 {
                            assert_eq!(cond.wait(mutex), 0);
                        }
                        mutex.unlock()
                    }
                });
                let (mutex, cond, stage) = &*shared;
                crate::support::timing::eventually("it waits", || {
                    mutex.with_lock(|| stage.get() == 1)
                });
                mutex.with_lock(|| stage.up());
                cond.signal();
                waiter.value()
            })
            .collect::<Vec<_>>()
    });
}

#[test]
fn a_fiber_is_refused_what_would_lend_it_a_priority() {
    on_fibers(|_| {
        for kind in [libc::PTHREAD_MUTEX_NORMAL, libc::PTHREAD_MUTEX_RECURSIVE] {
            let protocol = libc::PTHREAD_PRIO_INHERIT;
            let mutex = Mutex::with(kind, libc::PTHREAD_PROCESS_PRIVATE, protocol);
            assert_eq!(mutex.lock(), libc::ENOTSUP);
            assert_eq!(mutex.try_lock(), libc::ENOTSUP);
            assert_eq!(mutex.unlock(), libc::EPERM);
            let plain = thread::spawn(move || (mutex.lock(), mutex.unlock()));
            assert_eq!(plain.join().unwrap(), (0, 0), "a thread has it from glibc");
        }
    });
}
