//! What the counters of a core promise.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Runtime;
use crate::kernel;
use crate::wait::{Deadline, sleep_until};

const MILLISECOND: u64 = 1_000_000;

/// Makes sure that so many workers have started, by having them compute together.
fn start_all(runtime: &Runtime, workers: usize) {
    let running = std::sync::Arc::new(AtomicUsize::new(0));
    let fibers: Vec<_> = (0..workers)
        .map(|_| {
            let running = running.clone();
            runtime.spawn(move || {
                running.fetch_add(1, Ordering::SeqCst);
                while running.load(Ordering::SeqCst) < workers {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
}

/// An alarm wakes one worker, which is busy with that fiber then: the next timer is the others'.
#[test]
fn timers_are_on_time_while_the_worker_that_the_last_one_woke_computes() {
    let runtime = Runtime::builder().workers(2).build().unwrap();
    start_all(&runtime, 2);
    let begin = kernel::now();
    let computing = runtime.spawn(move || {
        sleep_until(Deadline::at(begin + 40 * MILLISECOND));
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(1500) {
            std::hint::spin_loop();
        }
    });
    let sleeping = runtime.spawn(move || {
        sleep_until(Deadline::at(begin + 80 * MILLISECOND));
        kernel::now() - begin
    });
    let woken = sleeping.join().unwrap();
    computing.join().unwrap();
    assert!(woken < 1000 * MILLISECOND, "a timer for 80 ms fired after {woken} ns");
    runtime.stop();
}

/// A core that is used again must be as new: [`Core::join`](super::Core::join) asserts it.
#[test]
fn runtimes_stopped_right_after_a_run_leave_nothing_behind() {
    for workers in [1, 2] {
        for _ in 0..300 {
            let runtime = Runtime::builder().workers(workers).build().unwrap();
            // A worker of its own, which becomes a spare one when the caller takes its place,
            // and is called back when the caller leaves: just before the end.
            runtime.spawn(|| ()).join().unwrap();
            for _ in 0..3 {
                assert_eq!(runtime.run(|| crate::spawn(|| 7).join().unwrap()), 7);
            }
            runtime.stop();
        }
    }
}
