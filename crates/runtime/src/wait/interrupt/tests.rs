//! Fibers in every kind of wait, interrupted all the time: each wait still ends when it should, and for its own reason.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::Runtime;
use crate::kernel;
use crate::wait::futex::{self, Waited};
use crate::wait::{Deadline, sleep, sleep_until};

/// Control blocks of fibers that may have ended; they stay readable for ever.
#[derive(Clone, Default)]
struct Targets(Arc<Mutex<Vec<usize>>>);

impl Targets {
    fn add_caller(&self) {
        self.0.lock().unwrap().push(current().expect("a fiber").as_ptr() as usize);
    }

    fn interrupt_all(&self) -> usize {
        let all = self.0.lock().unwrap().clone();
        for &control in &all {
            interrupt(NonNull::new(control as *mut Control).expect("a control block"));
        }
        all.len()
    }
}

/// Runs `fibers` fibers of `body` while a thread interrupts them; says how often it did.
fn under_fire(
    workers: usize,
    fibers: usize,
    body: impl Fn(usize) + Send + Sync + 'static,
) -> usize {
    let runtime = Runtime::builder().workers(workers).build().unwrap();
    let targets = Targets::default();
    let over = Arc::new(AtomicBool::new(false));
    let shooter = {
        let (targets, over) = (targets.clone(), over.clone());
        std::thread::spawn(move || {
            let mut shots = 0;
            while !over.load(Ordering::Relaxed) {
                shots += targets.interrupt_all();
                std::thread::yield_now();
            }
            shots
        })
    };
    let body = Arc::new(body);
    let all: Vec<_> = (0..fibers)
        .map(|number| {
            let (body, targets) = (body.clone(), targets.clone());
            runtime.spawn(move || {
                targets.add_caller();
                body(number);
            })
        })
        .collect();
    all.into_iter().for_each(|fiber| fiber.join().unwrap());
    over.store(true, Ordering::Relaxed);
    let shots = shooter.join().unwrap();
    runtime.stop();
    shots
}

#[test]
fn interrupted_sleepers_sleep_on() {
    for workers in [1, 2] {
        let interrupted = Arc::new(AtomicUsize::new(0));
        let count = interrupted.clone();
        under_fire(workers, 20, move |_| {
            for _ in 0..20 {
                let until = kernel::now() + 1_000_000;
                if !sleep(Deadline::at(until)) {
                    count.fetch_add(1, Ordering::Relaxed);
                    sleep_until(Deadline::at(until));
                }
                assert!(kernel::now() >= until, "woken early");
            }
        });
        assert_ne!(interrupted.load(Ordering::Relaxed), 0, "nobody was interrupted");
    }
}

/// A baton goes round a ring of fibers, each of which waits for it on a word of its own: a wake that an interrupted
/// fiber swallowed would stop it for ever.
#[test]
fn interrupted_waiters_swallow_no_wake() {
    const RING: usize = 8;
    const ROUNDS: u32 = 300;
    for workers in [1, 2, 4] {
        let words: Arc<[AtomicU32; RING]> = Arc::default();
        under_fire(workers, RING, move |number| {
            let own = &words[number];
            let next = &words[(number + 1) % RING];
            for round in 0..ROUNDS {
                if number != 0 || round != 0 {
                    let expected = if number == 0 { round - 1 } else { round };
                    while own.load(Ordering::Acquire) == expected {
                        // SAFETY: the word outlives the call; the caller is a fiber.
                        let waited =
                            unsafe { futex::wait(own, expected, u32::MAX, Deadline::NEVER) };
                        assert_ne!(waited, Waited::TimedOut);
                    }
                }
                next.fetch_add(1, Ordering::Release);
                futex::wake(next.as_ptr() as usize, 1, u32::MAX);
            }
        });
    }
}

/// What is wanted while the fiber runs ends its next wait.
#[test]
fn a_running_fiber_is_interrupted_in_its_next_wait() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let fiber = runtime.spawn(|| {
        interrupt(current().expect("a fiber"));
        let first = sleep(Deadline::after(3_600_000_000_000));
        let second = sleep(Deadline::after(1));
        (first, second)
    });
    assert_eq!(fiber.join().unwrap(), (false, true));
    runtime.stop();
}
