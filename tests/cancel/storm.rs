//! Cancellations that race with everything: begins, wakes, ends, other cancellations, time limits.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use sleave::Cancelled;

use crate::on_runtimes;
use crate::support::random::{Random, fresh_seed};

const ROUNDS: usize = if cfg!(debug_assertions) { 60 } else { 300 };
const FIBERS: usize = 100;

struct Guest(Arc<AtomicUsize>);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a fiber of the storm does, until it ends or is ended.
fn act(mut random: Random) {
    for _ in 0..random.within(0..6) {
        match random.within(0..7) {
            0 => sleave::yield_now(),
            1 => thread::sleep(Duration::from_micros(random.within(0..300) as u64)),
            2 => drop(sleave::park_timeout(Duration::from_micros(random.within(0..300) as u64))),
            3 => {
                let (mut near, mut far) = UnixStream::pair().unwrap();
                let echo = sleave::spawn(move || far.write_all(b"x"));
                let _ = near.read(&mut [0]);
                let _ = echo.join();
            }
            4 => {
                let limit = Duration::from_micros(random.within(0..300) as u64);
                let _ = sleave::timeout(limit, || sleave::timeout(2 * limit, sleave::park));
            }
            5 => sleave::shield(|| thread::sleep(Duration::from_micros(50))),
            _ => sleave::checkpoint(),
        }
    }
}

#[test]
fn cancellations_at_any_moment_lose_nothing() {
    let seed = fresh_seed();
    crate::support::kernel::say(&format!("cancel: seed {seed}\n"));
    on_runtimes(|runtime| {
        let (guests, mut random) = (Arc::new(AtomicUsize::new(0)), Random::new(seed));
        let mut cancelled = 0;
        for _ in 0..ROUNDS {
            let fibers: Vec<_> = (0..FIBERS)
                .map(|_| {
                    guests.fetch_add(1, Ordering::SeqCst);
                    let (guest, random) = (Guest(Arc::clone(&guests)), random.split());
                    runtime.spawn(move || {
                        let _guest = guest;
                        act(random);
                    })
                })
                .collect();
            let (one, other) = (random.split(), random.split());
            thread::scope(|s| {
                // Two threads cancel some of them, in different orders, while they run.
                for mut random in [one, other] {
                    let fibers = &fibers;
                    s.spawn(move || {
                        for _ in 0..FIBERS {
                            fibers[random.within(0..FIBERS)].cancel();
                        }
                    });
                }
            });
            for fiber in fibers {
                if let Err(payload) = fiber.join() {
                    assert!(payload.is::<Cancelled>(), "another panic");
                    cancelled += 1;
                }
            }
            assert_eq!(guests.load(Ordering::SeqCst), 0, "a destructor has not run");
        }
        assert!(cancelled > 0, "nobody was cancelled");
    });
}
