//! Locks of std, held over waits.
//!
//! One worker runs everything. A fiber takes a `Mutex` and sleeps with it; the others find it
//! locked and are parked, not the worker. Then they wait on a `Condvar` for their turn, which
//! goes round in a ring, and one waits for what never comes and runs into its timeout.

use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const FIBERS: usize = 20;

fn main() -> std::io::Result<()> {
    let (ledger, turn, changed) = (Mutex::new(Vec::new()), Mutex::new(0), Condvar::new());
    sleave::Runtime::builder().workers(1).build()?.run(|| {
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
            let (start, limit) = (Instant::now(), Duration::from_millis(30));
            let unfinished = |turn: &mut usize| *turn <= FIBERS; // for ever
            let waited =
                changed.wait_timeout_while(turn.lock().unwrap(), limit, unfinished).unwrap();
            println!("timed out: {}, after {:?}", waited.1.timed_out(), start.elapsed());
        });
    });
    let (ledger, turn) = (ledger.into_inner().unwrap(), turn.into_inner().unwrap());
    println!("{} held the lock one after the other; the turn has come to {turn}", ledger.len());
    assert_eq!((ledger.len(), turn), (FIBERS, FIBERS));
    Ok(())
}
