//! Scopes in which all end when one fails.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use sleave::{Cancelled, cancelling_scope, park};

use crate::on_runtimes;

#[test]
fn a_panic_cancels_the_others() {
    on_runtimes(|runtime| {
        runtime.run(|| {
            let ended = AtomicUsize::new(0);
            struct Counts<'a>(&'a AtomicUsize);
            impl Drop for Counts<'_> {
                fn drop(&mut self) {
                    self.0.fetch_add(1, Ordering::SeqCst);
                }
            }
            let failed = catch_unwind(AssertUnwindSafe(|| {
                cancelling_scope(|s| {
                    for _ in 0..100 {
                        let counts = Counts(&ended);
                        s.spawn(move || {
                            let _counts = counts;
                            park();
                        });
                    }
                    s.spawn(|| resume_unwind(Box::new("no use")));
                });
            }));
            assert!(failed.is_err());
            assert_eq!(ended.load(Ordering::SeqCst), 100);
        });
    });
}

#[test]
fn the_owners_panic_cancels_all_and_is_passed_on() {
    on_runtimes(|runtime| {
        runtime.run(|| {
            let failed = catch_unwind(AssertUnwindSafe(|| {
                cancelling_scope(|s| {
                    (0..10).for_each(|_| drop(s.spawn(park)));
                    resume_unwind(Box::new(7));
                });
            }));
            assert_eq!(failed.unwrap_err().downcast_ref(), Some(&7));
        });
    });
}

#[test]
fn asked_to_it_ends_without_a_panic() {
    on_runtimes(|runtime| {
        runtime.run(|| {
            let cancelled = cancelling_scope(|s| {
                let one = s.spawn(park);
                (0..10).for_each(|_| drop(s.spawn(park)));
                s.cancel();
                // Who comes later is late.
                drop(s.spawn(park));
                one.join().unwrap_err().is::<Cancelled>()
            });
            assert!(cancelled);
        });
    });
}

#[test]
fn where_nobody_fails_nobody_is_cancelled() {
    on_runtimes(|runtime| {
        let sum = runtime.run(|| {
            cancelling_scope(|s| {
                let all: Vec<_> = (0..500u64).map(|i| s.spawn(move || i)).collect();
                all.into_iter().map(|fiber| fiber.join().unwrap()).sum::<u64>()
            })
        });
        assert_eq!(sum, 499 * 500 / 2);
    });
}
