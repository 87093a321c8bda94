//! Locks of std, held over waits.
//!
//! One worker runs everything. A fiber takes a `Mutex` and sleeps with it; the others find it
//! locked and are parked, not the worker. Then they wait on a `Condvar` for their turn, which
//! goes round in a ring, and one waits for what never comes and runs into its timeout.

use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sleave::Runtime;

const FIBERS: usize = 20;
const LIMIT: Duration = Duration::from_millis(30);

/// What happens.
pub fn story() -> Vec<String> {
    let (ledger, turn, changed) = (Mutex::new(Vec::new()), Mutex::new(0), Condvar::new());
    let runtime = Runtime::builder().workers(1).use_caller().build().expect("a runtime");
    let (timed_out, waited) = runtime.run(|| {
        sleave::scope(|scope| {
            for own in 0..FIBERS {
                let (ledger, turn, changed) = (&ledger, &turn, &changed);
                scope.spawn(move || {
                    let mut guard = ledger.lock().unwrap();
                    thread::sleep(Duration::from_millis(2)); // with the lock held
                    guard.push(own);
                    drop(guard);

                    let mut now = changed.wait_while(turn.lock().unwrap(), |t| *t != own).unwrap();
                    *now += 1;
                    changed.notify_all();
                });
            }
            let start = Instant::now();
            let unfinished = |turn: &mut usize| *turn <= FIBERS; // for ever
            let turn = turn.lock().unwrap();
            let (turn, end) = changed.wait_timeout_while(turn, LIMIT, unfinished).unwrap();
            drop(turn);
            assert!(start.elapsed() >= LIMIT);
            (end.timed_out(), start.elapsed())
        })
    });
    runtime.stop();
    let (ledger, turn) = (ledger.into_inner().unwrap(), turn.into_inner().unwrap());
    vec![
        format!("timed out: {timed_out}"),
        format!("{} fibers held the lock one after the other", ledger.len()),
        format!("the turn has come to number {turn}"),
        format!("this time: the timeout of {LIMIT:?} took {waited:?}"),
    ]
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
