//! The lock: exclusion, no lost wake-up, no parking of anything but the thread.

use sleave_context::lock::Lock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static COUNTER: Lock<u64> = Lock::new(0);

#[test]
fn increments_from_many_threads_are_all_there() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 50_000;
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let mut counter = COUNTER.lock();
                    let before = *counter;
                    // Now and then long enough for the others to go to sleep.
                    if round % 1000 == 0 {
                        std::thread::yield_now();
                    }
                    *counter = before + 1;
                }
            });
        }
    });
    assert_eq!(*COUNTER.lock(), THREADS * ROUNDS);
}

#[test]
fn a_held_lock_is_refused_and_a_free_one_taken() {
    let mut lock = Lock::new(String::from("a"));
    let held = lock.lock();
    assert!(lock.try_lock().is_none());
    assert_eq!(format!("{lock:?}"), "Lock(<held>)");
    drop(held);
    lock.try_lock().unwrap().push('b');
    assert_eq!(format!("{lock:?}"), "Lock(\"ab\")");
    lock.get_mut().push('c');
    assert_eq!(lock.into_inner(), "abc");
}

#[test]
fn a_waiter_sleeps_and_is_woken() {
    let lock = Lock::new(());
    let waiting = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let held = lock.lock();
        let waiter = scope.spawn(|| {
            waiting.store(true, Ordering::Relaxed);
            let before = cpu_time();
            let _held = lock.lock();
            cpu_time() - before
        });
        while !waiting.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            std::thread::yield_now();
        }
        drop(held);
        let used = waiter.join().unwrap();
        assert!(used < Duration::from_millis(50), "it spun for {used:?}");
    });
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) fills the structure.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
