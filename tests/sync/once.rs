//! `Once`, `OnceLock`, `LazyLock`: initialisers that wait while others wait for them.

use std::sync::{Arc, LazyLock, Once, OnceLock};
use std::thread;
use std::time::Duration;

use crate::support::{Count, everywhere};

/// Long enough for all the others to arrive and wait.
const INITIALISING: Duration = Duration::from_millis(20);

#[test]
fn a_once_lock_is_initialised_once_by_an_initialiser_that_sleeps() {
    everywhere(|host| {
        let (cell, calls) = (Arc::new(OnceLock::new()), Arc::new(Count::new()));
        let seen = host.spawn_many(64, {
            let calls = Arc::clone(&calls);
            move |_| {
                *cell.get_or_init(|| {
                    thread::sleep(INITIALISING);
                    calls.up()
                })
            }
        });
        (seen, calls.get())
    });
}

#[test]
fn a_lazy_lock_is_forced_once() {
    everywhere(|host| {
        let calls = Arc::new(Count::new());
        let lazy = Arc::new(LazyLock::new({
            let calls = Arc::clone(&calls);
            move || {
                host.yield_now();
                thread::sleep(INITIALISING);
                calls.up()
            }
        }));
        (host.spawn_many(64, move |_| **lazy), calls.get())
    });
}

#[test]
fn once_lock_wait_waits_for_the_setter() {
    everywhere(|host| {
        let cell = Arc::new(OnceLock::new());
        let waiters: Vec<_> = (0..32)
            .map(|_| {
                let cell = Arc::clone(&cell);
                host.spawn(move || *cell.wait())
            })
            .collect();
        thread::sleep(INITIALISING);
        let set = cell.set(11);
        (set, cell.set(12), waiters.into_iter().map(|w| w.value()).sum::<i32>())
    });
}

#[test]
fn a_panicking_initialiser_poisons_and_call_once_force_heals() {
    everywhere(|host| {
        let once = Arc::new(Once::new());
        let panicker = host.spawn({
            let once = Arc::clone(&once);
            move || {
                once.call_once(|| {
                    thread::sleep(INITIALISING);
                    std::panic::resume_unwind(Box::new(()));
                });
            }
        });
        let panicked = panicker.join().is_err();
        let refused = host.spawn({
            let once = Arc::clone(&once);
            move || std::panic::catch_unwind(|| once.call_once(|| ())).is_err()
        });
        let refused = refused.value();
        let mut was_poisoned = false;
        once.call_once_force(|state| was_poisoned = state.is_poisoned());
        (panicked, refused, was_poisoned, once.is_completed())
    });
}

#[test]
fn the_waiters_of_a_failed_initialiser_take_over() {
    everywhere(|host| {
        // The first try panics; one of those who wait for it must try again, the rest see its value.
        let (cell, tries) = (Arc::new(OnceLock::new()), Arc::new(Count::new()));
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let (cell, tries) = (Arc::clone(&cell), Arc::clone(&tries));
                host.spawn(move || {
                    *cell.get_or_init(|| {
                        let attempt = tries.up();
                        thread::sleep(INITIALISING);
                        if attempt == 1 {
                            std::panic::resume_unwind(Box::new(()));
                        }
                        attempt
                    })
                })
            })
            .collect();
        let (seen, failed): (Vec<_>, Vec<_>) =
            tasks.into_iter().map(|task| task.join()).partition(Result::is_ok);
        let seen: Vec<_> = seen.into_iter().map(Result::unwrap).collect();
        (seen, failed.len(), tries.get())
    });
}

#[test]
fn a_static_lazy_lock_serves_fibers_and_threads_alike() {
    static CALLS: Count = Count::new();
    static LAZY: LazyLock<usize> = LazyLock::new(|| {
        thread::sleep(INITIALISING);
        CALLS.up()
    });
    everywhere(|host| {
        let outside: Vec<_> = (0..4).map(|_| thread::spawn(|| *LAZY)).collect();
        let inside = host.spawn_many(16, |_| *LAZY);
        let outside: Vec<_> = outside.into_iter().map(|t| t.join().unwrap()).collect();
        (inside, outside, CALLS.get())
    });
}
