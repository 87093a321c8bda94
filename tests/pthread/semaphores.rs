//! Semaphores: counts that add up, between threads and fibers too.

use std::sync::Arc;
use std::thread;

use crate::objects::Semaphore;
use crate::support::timing::eventually;
use crate::support::{Count, everywhere};

#[test]
fn a_semaphore_lets_as_many_in_as_it_counts() {
    everywhere(|host| {
        let shared = Arc::new((Semaphore::of(3), Count::new(), Count::new()));
        host.spawn_many(30, {
            let shared = Arc::clone(&shared);
            move |_| {
                let (semaphore, inside, most) = &*shared;
                for _ in 0..10 {
                    assert_eq!(semaphore.wait(), 0);
                    most.at_least(inside.up());
                    host.yield_now();
                    inside.down();
                    assert_eq!(semaphore.post(), 0);
                }
            }
        });
        assert!(shared.2.get() <= 3, "{} inside", shared.2.get());
        shared.0.value()
    });
}

#[test]
fn posts_and_waits_pair_up_across_threads_and_fibers() {
    everywhere(|host| {
        const EACH: usize = 8;
        let shared = Arc::new((Semaphore::of(0), Count::new()));
        let waiter = {
            let shared = Arc::clone(&shared);
            move |_| {
                for _ in 0..50 {
                    assert_eq!(shared.0.wait(), 0);
                    shared.1.up();
                }
            }
        };
        let threads: Vec<_> = (0..EACH)
            .map(|i| {
                let waiter = waiter.clone();
                thread::spawn(move || waiter(i))
            })
            .collect();
        let fibers: Vec<_> = (0..EACH)
            .map(|i| {
                let waiter = waiter.clone();
                host.spawn(move || waiter(i))
            })
            .collect();
        for i in 0..2 * EACH * 50 {
            shared.0.post();
            if i % 7 == 0 {
                host.yield_now();
            }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        fibers.into_iter().for_each(|fiber| fiber.value());
        (shared.1.get(), shared.0.value())
    });
}

#[test]
fn each_post_wakes_one_that_waits() {
    everywhere(|host| {
        let shared = Arc::new((Semaphore::of(0), Count::new()));
        let waiters: Vec<_> = (0..10)
            .map(|_| {
                let shared = Arc::clone(&shared);
                host.spawn(move || {
                    shared.0.wait();
                    shared.1.up();
                })
            })
            .collect();
        for round in 1..=10 {
            shared.0.post();
            eventually("one goes on", || shared.1.get() == round);
        }
        waiters.into_iter().for_each(|waiter| waiter.value());
        (shared.0.value(), shared.0.try_wait())
    });
}

#[test]
fn a_full_semaphore_overflows() {
    everywhere(|_| {
        let semaphore = Semaphore::of(i32::MAX as u32);
        (semaphore.post(), semaphore.wait(), semaphore.post(), semaphore.value())
    });
}

#[test]
fn a_shared_semaphore_works_and_holds_its_worker() {
    everywhere(|host| {
        let semaphore = Arc::new(Semaphore::with(1, 1));
        host.spawn_many(4, {
            let semaphore = Arc::clone(&semaphore);
            move |_| {
                for _ in 0..20 {
                    assert_eq!(semaphore.wait(), 0);
                    semaphore.post();
                }
            }
        });
        semaphore.value()
    });
}

#[test]
fn whoever_takes_the_last_count_may_destroy_it() {
    everywhere(|host| {
        for _ in 0..200 {
            let semaphore = Arc::new(Semaphore::of(0));
            let taker = host.spawn({
                let semaphore = Arc::clone(&semaphore);
                move || {
                    semaphore.wait();
                    // SAFETY: the last use of it: the poster's last access has been.
                    unsafe { semaphore.get().write_bytes(0xaa, 1) };
                }
            });
            host.yield_now();
            semaphore.post();
            taker.value();
            let bytes = semaphore.get().cast::<u8>();
            // SAFETY: the object's bytes, all written above.
            let untouched =
                (0..size_of::<libc::sem_t>()).all(|i| unsafe { bytes.add(i).read() } == 0xaa);
            assert!(untouched, "somebody has written to it");
        }
    });
}
