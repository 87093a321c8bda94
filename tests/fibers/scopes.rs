//! `scope`: fibers that borrow, and are waited for whatever happens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::support::{Count, everywhere};

#[test]
fn scoped_fibers_borrow_and_change_what_is_outside() {
    everywhere(|host| {
        let mut numbers = vec![1; 100];
        let total = Count::new();
        let first = host.scope(|scope| {
            for (i, number) in numbers.iter_mut().enumerate() {
                let total = &total;
                scope.spawn(move || {
                    host.yield_now();
                    *number += i;
                    total.add(*number);
                });
            }
            "the scope's own result"
        });
        (first, numbers, total.get())
    });
}

#[test]
fn a_scope_waits_for_what_nobody_joins() {
    everywhere(|host| {
        let done = Count::new();
        host.scope(|scope| {
            for i in 0..20 {
                let done = &done;
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(5 + i % 7));
                    done.up();
                });
            }
        });
        done.get()
    });
}

#[test]
fn scoped_fibers_spawn_into_their_scope() {
    everywhere(|host| {
        let log = Mutex::new(Vec::new());
        host.scope(|scope| {
            for i in 0..10 {
                let log = &log;
                scope.spawn(move || {
                    let inner = scope.spawn(move || {
                        host.yield_now();
                        log.lock().unwrap().push(i);
                        i * 10
                    });
                    let value = inner.value();
                    log.lock().unwrap().push(value);
                });
            }
        });
        let mut log = log.into_inner().unwrap();
        log.sort_unstable();
        log
    });
}

#[test]
fn scopes_nest() {
    everywhere(|host| {
        let outer = [1, 2, 3];
        host.scope(|scope| {
            let task = scope.spawn(|| {
                let inner = [4, 5];
                host.scope(|scope| {
                    let sums = [&outer[..], &inner[..]]
                        .map(|part| scope.spawn(move || part.iter().sum::<i32>()));
                    sums.map(|sum| sum.value()).iter().sum::<i32>()
                })
            });
            task.value()
        })
    });
}

#[test]
fn a_panic_that_nobody_joins_is_the_scopes_panic() {
    everywhere(|host| {
        let done = Count::new();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            host.scope(|scope| {
                scope.spawn(|| std::panic::resume_unwind(Box::new("inside")));
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(20));
                    done.up();
                });
            });
        }));
        // The scope has its own message, and has still waited for the other one.
        let message = caught.unwrap_err().downcast_ref::<&str>().map(|text| (*text).to_owned());
        (message, done.get())
    });
}

#[test]
fn a_joined_panic_is_the_joiners_business() {
    everywhere(|host| {
        host.scope(|scope| {
            let task = scope.spawn(|| std::panic::resume_unwind(Box::new("for join")));
            let payload: Box<dyn std::any::Any + Send> = task.join().map(|(): ()| ()).unwrap_err();
            *payload.downcast::<&str>().unwrap()
        })
    });
}

#[test]
fn a_scope_whose_own_closure_panics_waits_first() {
    everywhere(|host| {
        let done = Count::new();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            host.scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(20));
                    done.up();
                });
                std::panic::resume_unwind(Box::new("the closure's own"));
            })
        }));
        let payload = caught.map(|(): ()| ()).unwrap_err();
        (payload.downcast_ref::<&str>().map(|text| (*text).to_owned()), done.get())
    });
}
