//! What the monitor is for, from a state in which it sleeps: nothing of the process runs.
//!
//! One test at a time: whatever else ran would keep the monitor awake.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sleave_runtime::{Runtime, spawn, yield_now};

static ALONE: Mutex<()> = Mutex::new(());

/// Long enough for the monitor to fall asleep, if nothing keeps it awake.
const QUIET: Duration = Duration::from_millis(150);
/// What must happen at once on any machine that is alive.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Computes until `flag` is set; whether it was in time.
fn compute_until(flag: &AtomicBool) -> bool {
    let begin = Instant::now();
    while !flag.load(Ordering::Acquire) {
        if begin.elapsed() > AT_ONCE {
            return false;
        }
        std::hint::spin_loop();
    }
    true
}

/// A worker that is stuck is replaced, even if it is the only one and nothing ran before.
#[test]
fn a_runtime_that_is_entered_after_a_pause_is_looked_after() {
    let _alone = ALONE.lock();
    let runtime = Runtime::builder().workers(1).build().unwrap();
    std::thread::sleep(QUIET);
    let ran = AtomicBool::new(false);
    let in_time = runtime.run(|| {
        sleave_runtime::scope(|s| {
            s.spawn(|| ran.store(true, Ordering::Release));
            compute_until(&ran)
        })
    });
    assert!(in_time, "nobody noticed that the only worker was stuck");
    runtime.stop();
}

/// As above, by a fiber that has blocked its worker for a while.
#[test]
fn what_a_worker_makes_runnable_that_was_stuck_is_not_left_lying() {
    let _alone = ALONE.lock();
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let in_time = runtime.spawn(|| {
        // In this crate a plain call: it blocks the worker, which another replaces.
        std::thread::sleep(QUIET);
        let ran = AtomicBool::new(false);
        sleave_runtime::scope(|s| {
            s.spawn(|| ran.store(true, Ordering::Release));
            compute_until(&ran)
        })
    });
    assert!(in_time.join().unwrap(), "the spawned fiber was left lying beside an idle worker");
    runtime.stop();
}

/// A thread in `run` that was stuck counts as a worker again when it moves.
#[test]
fn a_caller_of_run_that_was_stuck_counts_again() {
    let _alone = ALONE.lock();
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let counts = runtime.run(|| {
        std::thread::sleep(QUIET);
        let stuck = runtime.statistics().blocked;
        let begin = Instant::now();
        let other = spawn(|| {
            let begin = Instant::now();
            while begin.elapsed() < QUIET {
                yield_now();
            }
        });
        while runtime.statistics().blocked > 0 && begin.elapsed() < QUIET {
            yield_now();
        }
        let after = runtime.statistics().blocked;
        other.join().unwrap();
        (stuck, after)
    });
    assert_eq!(counts, (1, 0), "workers that count as stuck, before and after it moved");
    runtime.stop();
}

/// Who takes the place of a stuck worker is a worker like any other: signals reach the fibers on it, and the processes that
/// they start do not begin with all signals blocked.
#[test]
fn a_worker_that_the_monitor_starts_blocks_no_signals() {
    let _alone = ALONE.lock();
    let blocked = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    };
    let here = blocked();
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let ran = AtomicBool::new(false);
    let there = runtime.run(|| {
        sleave_runtime::scope(|s| {
            let other = s.spawn(|| {
                let mask = blocked();
                ran.store(true, Ordering::Release);
                mask
            });
            assert!(compute_until(&ran), "nobody noticed that the only worker was stuck");
            other.join().unwrap()
        })
    });
    assert_eq!(there, here, "signals blocked: {there:#x}, on the caller's thread {here:#x}");
    runtime.stop();
}
