//! Timers that fire again and again, and those that fire on a condition.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave::{Since, Timer};

use crate::support::timing::eventually;
use crate::support::{Count, Flag, Gate};
use crate::{LONG, MS, each};

#[test]
fn a_recurring_timer_does_not_drift() {
    each(|place| {
        const CALLS: u64 = 100;
        let period = 2 * MS;
        let (send, receive) = mpsc::channel();
        let start = Instant::now();
        let mut calls = 0;
        let timer = place.every(period, move |timer| {
            calls += 1;
            // Which of the times this is, counted from the start.
            send.send((calls + timer.missed(), Instant::now())).unwrap();
            // What a timer that counts from the end of its call would be late by, each time.
            thread::sleep(MS / 2);
            if calls == CALLS {
                timer.cancel();
            }
        });
        let fired: Vec<_> = receive.iter().collect();
        assert_eq!(fired.len() as u64, CALLS);
        assert!(timer.is_over());
        assert!(fired.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let late = |&(number, at): &(u64, Instant)| {
            let due = start + period * number as u32;
            at.checked_duration_since(due).unwrap_or_else(|| panic!("{number} was early"))
        };
        let least = fired.iter().rev().take(20).map(late).min().unwrap();
        assert!(least < period, "{}: after {CALLS} periods late by {least:?}", place.host);
    });
}

#[test]
fn calls_do_not_overlap_and_what_they_miss_is_counted() {
    each(|place| {
        let period = 4 * MS;
        let (running, calls) = (Flag::new(), Arc::new(Count::new()));
        let (send, receive) = mpsc::channel();
        let start = Instant::now();
        let timer = place.every(period, {
            let calls = calls.clone();
            move |timer| {
                assert!(!running.raise(), "two calls at once");
                send.send((calls.up() as u64, timer.missed(), start.elapsed())).unwrap();
                if calls.get() == 1 {
                    // Three and a half periods: the times 2, 3 and 4 are missed.
                    thread::sleep(period * 7 / 2);
                }
                running.lower();
            }
        });
        let first = receive.recv().unwrap();
        let second = receive.recv().unwrap();
        assert!(second.1 >= first.1 + 3, "missed {} before and {} after", first.1, second.1);
        for (call, missed, at) in [first, second].into_iter().chain(receive.iter().take(10)) {
            let due = period * (call + missed) as u32;
            assert!(
                at >= due,
                "call {call} after {missed} missed is due at {due:?}, not at {at:?}"
            );
        }
        assert!(timer.cancel());
    });
}

#[test]
fn a_period_of_zero_is_refused() {
    let refused = Timer::builder().every(Duration::ZERO, |_| ());
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    assert!(catch_unwind(|| Timer::every(Duration::ZERO, |_| ())).is_err());
    let timer = Timer::every(LONG, |_| ());
    let reset = AssertUnwindSafe(|| timer.reset(Duration::ZERO, Since::Now));
    assert!(catch_unwind(reset).is_err());
    assert!(timer.cancel());
    let once = Timer::after(LONG, || ());
    assert!(once.reset(Duration::ZERO, Since::Now), "a delay may be zero");
}

#[test]
fn a_conditional_timer_fires_only_while_its_condition_is_alive() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        let condition = Arc::new(5);
        let weak: Weak<i32> = Arc::downgrade(&condition);
        let start = |condition: &Weak<i32>| {
            let timer = || place.timer().while_alive(condition);
            let (once, again) = (send.clone(), send.clone());
            let once = timer().after(2 * MS, move || once.send("once").unwrap()).unwrap();
            let again = timer().every(2 * MS, move |_| again.send("again").unwrap()).unwrap();
            [once, again]
        };
        let alive = start(&weak);
        let mut heard: Vec<_> = receive.iter().take(4).collect();
        heard.sort_unstable();
        assert_eq!(heard[..3], ["again"; 3]);
        eventually("it fires once", || alive[0].is_over());
        drop(condition);
        eventually("the timer ends with its condition", || alive[1].is_over());
        let dead = start(&weak);
        eventually("both end silently", || dead.iter().all(Timer::is_over));
        drop(send);
        // When the last callback has been dropped, what was sent before is all there is.
        assert!(receive.iter().filter(|&call| call == "once").count() <= 1);
    });
}

#[test]
fn a_condition_is_kept_alive_during_a_call() {
    each(|place| {
        let (begun, gate) = (mpsc::channel(), Arc::new(Gate::default()));
        let condition = Arc::new(());
        let weak = Arc::downgrade(&condition);
        let pass = gate.clone();
        let call = move || {
            begun.0.send(()).unwrap();
            pass.pass();
        };
        place.timer().while_alive(&weak).after(MS, call).unwrap();
        begun.1.recv().unwrap();
        drop(condition);
        assert!(weak.upgrade().is_some(), "the call holds it");
        gate.open();
        eventually("the call lets it go", || weak.upgrade().is_none());
    });
}
