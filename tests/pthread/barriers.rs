//! Barriers: rounds, the one serial member of each, and destruction by whoever returns first.

use std::sync::Arc;
use std::thread;

use crate::objects::Barrier;
use crate::support::{Count, everywhere};

#[test]
fn rounds_follow_each_other_with_one_serial_member_each() {
    everywhere(|host| {
        const MEMBERS: usize = 10;
        const ROUNDS: usize = 50;
        let shared = Arc::new((Barrier::of(MEMBERS as u32), Count::new(), Count::new()));
        let early = host.spawn_many(MEMBERS, {
            let shared = Arc::clone(&shared);
            move |_| {
                let (barrier, arrived, serial) = &*shared;
                let mut early = 0;
                for round in 1..=ROUNDS {
                    arrived.up();
                    match barrier.wait() {
                        libc::PTHREAD_BARRIER_SERIAL_THREAD => serial.up(),
                        code => code as usize,
                    };
                    early += usize::from(arrived.get() < round * MEMBERS);
                }
                early
            }
        });
        (early.into_iter().sum::<usize>(), shared.2.get(), shared.0.destroy())
    });
}

#[test]
fn threads_and_fibers_meet() {
    everywhere(|host| {
        let shared = Arc::new((Barrier::of(8), Count::new()));
        let member = {
            let shared = Arc::clone(&shared);
            move |_| {
                for _ in 0..20 {
                    if shared.0.wait() != 0 {
                        shared.1.up();
                    }
                }
            }
        };
        let threads: Vec<_> = (0..4)
            .map(|i| {
                let member = member.clone();
                thread::spawn(move || member(i))
            })
            .collect();
        host.spawn_many(4, member);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        shared.1.get()
    });
}

#[test]
fn whoever_returns_first_may_destroy_it() {
    everywhere(|host| {
        for _ in 0..100 {
            let shared = Arc::new((Barrier::of(4), Count::new()));
            host.spawn_many(4, {
                let shared = Arc::clone(&shared);
                move |_| {
                    shared.0.wait();
                    if shared.1.up() == 1 {
                        assert_eq!(shared.0.destroy(), 0);
                        // SAFETY: destroyed: nobody may touch it any more.
                        unsafe { shared.0.get().write_bytes(0xaa, 1) };
                    }
                }
            });
            let bytes = shared.0.get().cast::<u8>();
            // SAFETY: the object's bytes, all written above.
            let untouched = (0..size_of::<libc::pthread_barrier_t>())
                .all(|i| unsafe { bytes.add(i).read() } == 0xaa);
            assert!(untouched, "somebody has written to it");
        }
    });
}

#[test]
fn an_unfinished_round_is_not_destroyed() {
    everywhere(|host| {
        let shared = Arc::new((Barrier::of(2), Count::new()));
        let other = host.spawn({
            let shared = Arc::clone(&shared);
            move || shared.0.wait()
        });
        // To destroy it while the other may be on its way would be undefined.
        while shared.0.arrived() == 0 {
            host.yield_now();
        }
        let busy = shared.0.destroy();
        let mut both = [shared.0.wait(), other.value()];
        both.sort_unstable();
        (busy, both)
    });
}

#[test]
fn one_alone_is_enough_for_a_barrier_of_one() {
    everywhere(|_| {
        let barrier = Barrier::of(1);
        (barrier.wait(), barrier.wait(), barrier.destroy())
    });
}
