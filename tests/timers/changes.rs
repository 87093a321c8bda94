//! Cancel, refresh and reset: before, at and after the firing, by others and by the callback itself.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave::{Since, Timer};

use crate::support::random::Random;
use crate::support::timing::eventually;
use crate::support::{Count, Gate, scaled};
use crate::{LONG, MS, count, each};

#[test]
fn a_cancelled_timer_does_not_fire_and_drops_its_callback_at_once() {
    each(|place| {
        for delay in [LONG, 300 * MS, 10 * MS] {
            let fired = Arc::new(Count::new());
            let timers = [
                place.after(delay, {
                    let fired = fired.clone();
                    move || count(&fired)
                }),
                place.every(delay, {
                    let fired = fired.clone();
                    move |_| count(&fired)
                }),
            ];
            assert!(delay < LONG || timers.iter().all(|timer| !timer.is_over()));
            // A machine that stops us for 10 ms makes it too late.
            let in_time = timers.each_ref().map(Timer::cancel);
            if delay == LONG {
                assert_eq!((in_time, Arc::strong_count(&fired)), ([true; 2], 1));
            }
            if in_time == [true; 2] && fired.get() == 0 {
                thread::sleep(delay.min(12 * MS));
                assert_eq!(fired.get(), 0, "fired after it was cancelled");
            }
            assert!(timers.iter().all(Timer::is_over));
            assert_eq!(timers.each_ref().map(Timer::cancel), [false; 2], "once");
            assert_eq!(timers.each_ref().map(Timer::refresh), [false; 2]);
            let reset = |timer: &Timer| timer.reset(MS, Since::Now);
            assert_eq!(timers.each_ref().map(reset), [false; 2]);
        }
    });
}

#[test]
fn it_is_too_late_to_cancel_a_timer_that_has_fired() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        let timer = place.after(Duration::ZERO, move || send.send(()).unwrap());
        receive.recv().unwrap();
        assert!(timer.is_over());
        assert!(!timer.cancel() && !timer.refresh() && !timer.reset(LONG, Since::Start));
    });
}

#[test]
fn a_cancel_does_not_wait_for_a_call_that_runs() {
    each(|place| {
        for recurring in [false, true] {
            let (begun, gate, dropped) =
                (mpsc::channel(), Arc::new(Gate::default()), mpsc::channel::<()>());
            let (held, calls) = (dropped.0, Arc::new(Count::new()));
            let call = {
                let (gate, calls) = (gate.clone(), calls.clone());
                move || {
                    let _ = &held;
                    calls.up();
                    begun.0.send(()).unwrap();
                    gate.pass();
                }
            };
            let timer = match recurring {
                false => place.after(MS, call),
                true => place.every(MS, move |_| call()),
            };
            begun.1.recv().unwrap();
            // Of a recurring timer there was more to come.
            assert_eq!(timer.cancel(), recurring);
            assert!(timer.is_over());
            let waiting = dropped.1.try_recv();
            assert_eq!(waiting, Err(mpsc::TryRecvError::Empty), "a running callback was dropped");
            gate.open();
            assert!(dropped.1.recv().is_err(), "it is dropped when the call has ended");
            assert_eq!(calls.get(), 1);
        }
    });
}

#[test]
fn a_callback_cancels_its_own_timer() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        place.every(MS, move |timer| {
            let first = timer.cancel();
            send.send((first, timer.cancel(), timer.is_over())).unwrap();
        });
        assert_eq!(receive.recv(), Ok((true, false, true)));
        assert!(receive.recv().is_err(), "called once, then dropped");
    });
}

#[test]
fn a_timer_whose_handle_is_dropped_fires_all_the_same() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        let again = send.clone();
        drop(place.after(MS, move || send.send(()).unwrap()));
        drop(place.every(MS, move |timer| {
            again.send(()).unwrap();
            timer.cancel();
        }));
        assert_eq!(receive.iter().count(), 2);
    });
}

/// What the model of all races comes to: whoever cancels knows whether the callback runs.
#[test]
fn a_timer_either_fires_or_is_cancelled() {
    each(|place| {
        let timers = scaled(10_000);
        let mut random = Random::new(7);
        let fired: Arc<Vec<Count>> = Arc::new((0..timers).map(|_| Count::new()).collect());
        let alive = Arc::new(());
        let started: Vec<_> = (0..timers)
            .map(|i| {
                let (fired, alive) = (fired.clone(), alive.clone());
                let delay = Duration::from_micros(random.within(0..3000) as u64);
                place.after(delay, move || {
                    fired[i].up();
                    drop(alive);
                })
            })
            .collect();
        let cancelled: Vec<bool> = started
            .iter()
            .map(|timer| {
                let _ = match random.within(0..8) {
                    0 => timer.refresh(),
                    1 => timer.reset(MS / 2, Since::Start),
                    _ => true,
                };
                timer.cancel()
            })
            .collect();
        eventually("all have been called or dropped", || Arc::strong_count(&alive) == 1);
        for (fired, cancelled) in fired.iter().zip(cancelled) {
            assert_eq!(fired.get(), usize::from(!cancelled));
        }
    });
}

#[test]
fn a_refreshed_timer_fires_a_whole_delay_after_the_last_refresh() {
    each(|place| {
        let delay = 20 * MS;
        let (send, receive) = mpsc::channel();
        let timer = place.after(delay, move || send.send(Instant::now()).unwrap());
        let mut last = Instant::now();
        for _ in 0..8 {
            thread::sleep(delay / 4);
            let now = Instant::now();
            if !timer.refresh() {
                // This machine stopped us for so long that it was due.
                assert!(now >= last + delay, "fired {:?} after a refresh", now - last);
                break;
            }
            last = now;
        }
        let fired = receive.recv().unwrap();
        assert!(fired >= last + delay, "fired {:?} after the last refresh", fired - last);
    });
}

#[test]
fn a_refresh_puts_off_a_recurring_timer_and_all_its_times() {
    each(|place| {
        let period = 15 * MS;
        let (send, receive) = mpsc::channel();
        let mut calls = 0;
        let timer = place.every(period, move |timer| {
            calls += 1;
            let _ = send.send((calls + timer.missed() as u32, Instant::now()));
        });
        thread::sleep(period / 2);
        let refreshed = Instant::now();
        assert!(timer.refresh());
        // Calls from before, if this thread was late; they end with the count that they came to.
        let before = receive.try_iter().last().map_or(0, |last| last.0);
        for (number, at) in receive.iter().take(5) {
            let due = refreshed + period * (number - before);
            assert!(before > 0 || at >= due, "the time {number} was early by {:?}", due - at);
        }
        assert!(timer.cancel());
    });
}

#[test]
fn a_reset_counts_from_now_or_from_the_start() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        for since in [Since::Now, Since::Start] {
            for _ in 0..20 {
                let send = send.clone();
                let started = Instant::now();
                let timer = place.after(LONG, move || send.send(Instant::now()).unwrap());
                thread::sleep(5 * MS);
                let reset = Instant::now();
                assert!(timer.reset(10 * MS, since));
                let fired = receive.recv().unwrap();
                let (from, other) = match since {
                    Since::Now => (reset, started),
                    Since::Start => (started, reset),
                };
                assert!(fired >= from + 10 * MS, "{since:?}: early");
                // Counted from the start it fires before it would if counted from the reset.
                if since == Since::Now || fired < other + 10 * MS {
                    break;
                }
            }
        }
        // Counted from its start, it was due long ago.
        let send = send.clone();
        let timer = place.after(LONG, move || send.send(Instant::now()).unwrap());
        thread::sleep(5 * MS);
        assert!(timer.reset(MS, Since::Start));
        receive.recv().unwrap();
    });
}

#[test]
fn a_callback_changes_the_period_of_its_own_timer() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        let mut calls = 0;
        place.every(2 * MS, move |timer| {
            calls += 1;
            let now = Instant::now();
            send.send(now).unwrap();
            match calls {
                1 => assert!(timer.reset(10 * MS, Since::Now)),
                2 => assert!(timer.cancel()),
                _ => unreachable!("cancelled"),
            }
        });
        let (first, second) = (receive.recv().unwrap(), receive.recv().unwrap());
        assert!(second >= first + 10 * MS, "the second call came {:?} later", second - first);
        assert!(receive.recv().is_err());
    });
}
