//! As many timers as a program may ever have, and what they cost.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sleave::Timer;

use crate::support::kernel::{cpu_time, os_threads};
use crate::support::random::Random;
use crate::support::timing::eventually;
use crate::support::{Count, scaled};
use crate::{LONG, MS, each_alone};

/// Bytes of memory that this process has: the second number of proc(5) `statm`, in pages.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let pages = statm.split(' ').nth(1).expect("seven numbers");
    pages.parse::<usize>().expect("a number") * 4096
}

#[test]
fn a_million_timers_are_pending_half_are_cancelled_and_the_others_fire() {
    let timers = scaled(1_000_000);
    each_alone(|place| {
        let (memory, threads) = (resident(), os_threads());
        let fired = Arc::new(Count::new());
        let mut random = Random::new(3);
        // So far off that starting and cancelling them is over by then.
        let first = Instant::now() + Duration::from_secs(4);
        let begun = Instant::now();
        let pending: Vec<_> = (0..timers)
            .map(|_| {
                let fired = fired.clone();
                let at = first + Duration::from_nanos(random.next() % 1_000_000_000);
                let call = move || {
                    assert!(Instant::now() >= at, "early");
                    fired.up();
                };
                place.timer().at(at, call).unwrap()
            })
            .collect();
        let started = begun.elapsed();
        // The first run tells; the later ones use its memory again. The handles are the test's: two words.
        let each = (resident().saturating_sub(memory) / timers).saturating_sub(16);
        let begun = Instant::now();
        assert!(pending.iter().step_by(2).all(Timer::cancel));
        let cancelled = begun.elapsed();
        let last = first + Duration::from_secs(1);
        eventually("half of them have fired", || fired.get() == timers / 2);
        let late = Instant::now().saturating_duration_since(last);
        println!(
            "{}, from a {}: {timers} timers of {each} B started in {started:?}, half of them \
             cancelled in {cancelled:?}, the others fired, the last late by {late:?}",
            place.host,
            if place.fiber { "fiber" } else { "thread" },
        );
        assert!(pending.iter().all(Timer::is_over));
        assert!(each < 256, "{}: {each} bytes for a pending timer", place.host);
        assert!(os_threads() <= threads + 8, "{} threads, {threads} before", os_threads());
    });
}

#[test]
fn a_hundred_thousand_timers_are_due_at_once() {
    let timers = scaled(100_000);
    each_alone(|place| {
        let fired = Arc::new(Count::new());
        let at = Instant::now() + 500 * MS;
        for _ in 0..timers {
            let fired = fired.clone();
            let call = move || {
                assert!(Instant::now() >= at, "early");
                fired.up();
            };
            place.timer().at(at, call).unwrap();
        }
        eventually("all have fired", || fired.get() == timers);
    });
}

#[test]
fn pending_timers_use_no_cpu() {
    each_alone(|place| {
        let timers: Vec<_> =
            (0..10_000).map(|i| place.after(LONG + i * MS, || unreachable!("cancelled"))).collect();
        // The monitor first returns memory that earlier tests needed; then there is rest.
        let share = || {
            let (cpu, start) = (cpu_time(), Instant::now());
            thread::sleep(300 * MS);
            (cpu_time() - cpu).as_secs_f64() / start.elapsed().as_secs_f64()
        };
        let shares: Vec<f64> =
            (0..40).map(|_| share()).take_while(|&share| share >= 0.01).collect();
        assert!(shares.len() < 40, "{}: the CPU is used at {shares:.3?}", place.host);
        assert!(timers.iter().all(Timer::cancel));
    });
}
