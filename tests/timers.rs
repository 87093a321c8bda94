//! Timers, as a program sees them: when they fire, who may end or move them, what becomes of them.
//!
//! Each behaviour is shown on runtimes of 1, 2 and 4 workers, with the timers started by a plain
//! thread and by a fiber of the runtime ([`each`]); and once more in a child process where fibers
//! are OS threads ([`where_fibers_are_threads_all_of_this_holds_as_well`]). That a timer is never
//! early is asserted of every single one; that it is not late, of the best of several.
//!
//! Sources: clock_gettime(2) (`CLOCK_MONOTONIC`, which `Instant` reads), getrusage(2).

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave::{Runtime, Since, Timer, TimerBuilder};
use support::kernel::{cpu_time, os_threads};
use support::random::Random;
use support::timing::{GENEROUS, assert_waits, eventually};
use support::watchdog::Watchdog;
use support::{Company, Count, Flag, Gate, Host, LONG_PATIENCE, PATIENCE, WORKERS, scaled};

const MS: Duration = Duration::from_millis(1);
/// Long enough that what should have been cancelled is not, on any machine.
const LONG: Duration = Duration::from_secs(1000);

/// A runtime under test, seen from a thread or from one of its fibers.
#[derive(Clone, Copy)]
struct Place<'a> {
    host: Host,
    runtime: &'a Runtime,
    fiber: bool,
}

impl Place<'_> {
    /// Starts timers on the runtime.
    fn timer(self) -> TimerBuilder {
        // A fiber finds its own runtime.
        if self.fiber { Timer::builder() } else { Timer::builder().on(self.runtime) }
    }

    fn after(self, delay: Duration, callback: impl FnOnce() + Send + 'static) -> Timer {
        self.timer().after(delay, callback).expect("a timer")
    }

    fn every(self, period: Duration, callback: impl FnMut(&Timer) + Send + 'static) -> Timer {
        self.timer().every(period, callback).expect("a timer")
    }

    /// Whether one thing happens after the other: only one worker, and fibers to run on it.
    fn is_in_order(self) -> bool {
        self.host == Host::Fibers { workers: 1 } && sleave::identity().is_ok()
    }
}

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).build().expect("a runtime")
}

/// Runs `body` on runtimes of all sizes, on a plain thread and on a fiber.
fn each(body: impl Fn(Place) + Sync) {
    Company::Shared.keep(|| each_here(PATIENCE, &body));
}

/// As [`each`], with nothing else running in this process.
fn each_alone(body: impl Fn(Place) + Sync) {
    Company::Alone.keep(|| each_here(LONG_PATIENCE, &body));
}

fn each_here(patience: Duration, body: &(impl Fn(Place) + Sync)) {
    for workers in WORKERS {
        let host = Host::Fibers { workers };
        let _watchdog = Watchdog::over(host, patience);
        let runtime = runtime(workers);
        body(Place { host, runtime: &runtime, fiber: false });
        runtime.run(|| {
            // Where fibers are threads, nobody is found to be on a runtime.
            let fiber = sleave::identity().is_ok();
            body(Place { host, runtime: &runtime, fiber });
        });
        runtime.stop();
    }
}

fn count(calls: &Count) {
    calls.up();
}

// ---- when ----

#[test]
fn a_timer_fires_after_its_delay_and_never_early() {
    each(|place| {
        for delay in [Duration::ZERO, Duration::from_nanos(1), MS, 5 * MS, 20 * MS] {
            let (send, receive) = mpsc::channel();
            assert_waits(place.host, delay, || {
                let send = send.clone();
                place.after(delay, move || send.send(()).unwrap());
                receive.recv().unwrap();
            });
        }
    });
}

#[test]
fn a_timer_fires_at_its_time_or_at_once_if_that_is_over() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        for offset in 0..20 {
            let at = Instant::now() + offset * MS / 3;
            let send = send.clone();
            place.timer().at(at, move || send.send(Instant::now()).unwrap()).unwrap();
            let fired = receive.recv().unwrap();
            assert!(fired >= at, "early by {:?}", at - fired);
        }
        let over = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        assert_waits(place.host, Duration::ZERO, || {
            let send = send.clone();
            place.timer().at(over, move || send.send(Instant::now()).unwrap()).unwrap();
            receive.recv().unwrap();
        });
    });
}

#[test]
fn timers_fire_in_the_order_of_their_deadlines() {
    each(|place| {
        let (order, start) = (Arc::new(Mutex::new(Vec::new())), Instant::now() + 20 * MS);
        let (send, receive) = mpsc::channel::<()>();
        // 37 is prime to 100: started in an order that is none.
        for number in (0..100).map(|i| i * 37 % 100) {
            let (order, send) = (order.clone(), send.clone());
            let at = start + number * MS / 2;
            let record = move || {
                assert!(Instant::now() >= at, "early");
                order.lock().unwrap().push(number);
                drop(send);
            };
            place.timer().at(at, record).unwrap();
        }
        drop(send);
        assert!(receive.recv().is_err(), "all have fired");
        let mut order = order.lock().unwrap();
        assert!(!place.is_in_order() || order.is_sorted(), "{order:?}");
        order.sort_unstable();
        assert_eq!(*order, (0..100).collect::<Vec<_>>());
    });
}

#[test]
fn timers_of_one_time_fire_in_the_order_in_which_they_were_started() {
    each(|place| {
        // Near enough for the lowest level of the wheel, and far enough to move down to it.
        for delay in [2 * MS, 30 * MS] {
            // No channel: a sender may yield, and then the order is that of the yields.
            let (calls, places) = (Arc::new(Count::new()), Arc::new(Mutex::new(vec![0; 1000])));
            let at = Instant::now() + delay;
            for number in 0..1000 {
                let (calls, places) = (calls.clone(), places.clone());
                let call = move || {
                    let place = calls.up();
                    places.lock().unwrap()[number] = place;
                };
                place.timer().at(at, call).unwrap();
            }
            eventually("all have fired", || Arc::strong_count(&places) == 1);
            assert!(Instant::now() >= at);
            let places = places.lock().unwrap();
            assert!(!place.is_in_order() || places.is_sorted(), "{places:?}");
            assert!(places.iter().all(|&place| place > 0));
        }
    });
}

#[test]
fn there_is_no_longest_timer() {
    each(|place| {
        let fired = Arc::new(Count::new());
        let timers = [Duration::MAX, Duration::from_nanos(u64::MAX), Duration::from_secs(1 << 40)]
            .map(|delay| {
                let fired = fired.clone();
                place.after(delay, move || count(&fired))
            });
        let recurring = place.every(Duration::MAX, {
            let fired = fired.clone();
            move |_| count(&fired)
        });
        thread::sleep(5 * MS);
        assert_eq!(fired.get(), 0);
        assert!(timers.iter().all(Timer::cancel) && recurring.cancel());
        assert_eq!(Arc::strong_count(&fired), 1);
    });
}

#[test]
fn an_earlier_timer_wakes_a_runtime_that_sleeps_until_a_later_one() {
    each(|place| {
        let later = place.after(LONG, || unreachable!("cancelled"));
        let (send, receive) = mpsc::channel();
        // Longer than the monitor goes on looking: whoever wakes the workers, it is not the monitor.
        thread::sleep(50 * MS);
        assert_waits(place.host, 3 * MS, || {
            let send = send.clone();
            place.after(3 * MS, move || send.send(()).unwrap());
            receive.recv().unwrap();
        });
        assert!(later.cancel());
    });
}

#[test]
fn a_timer_can_be_the_first_that_a_runtime_hears_of() {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            for delay in [Duration::ZERO, 2 * MS] {
                let (runtime, (send, receive)) = (runtime(workers), mpsc::channel());
                let send = move || send.send(()).unwrap();
                Timer::builder().on(&runtime).after(delay, send).unwrap();
                receive.recv().unwrap();
                runtime.stop();
            }
        }
    });
}

#[test]
fn timers_run_on_the_runtime_that_they_were_started_for() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, PATIENCE);
        if sleave::identity().is_err() {
            return;
        }
        let build = |name: &str| Runtime::builder().workers(1).name(name).build().unwrap();
        let (near, far) = (build("near"), build("far"));
        let (send, receive) = mpsc::channel();
        // The worker's name, which the kernel has. The caller of `run` is none of these.
        let tell = move |timer: TimerBuilder| {
            let send = send.clone();
            let name =
                move || send.send(std::fs::read_to_string("/proc/thread-self/comm")).unwrap();
            timer.after(MS, name).unwrap();
        };
        let heard = || receive.recv().unwrap().unwrap().trim_end().to_owned();
        near.spawn({
            let (tell, far) = (tell.clone(), Timer::builder().on(&far));
            move || {
                tell(Timer::builder());
                thread::sleep(50 * MS);
                tell(far);
            }
        });
        assert_eq!(heard(), "near-0");
        assert_eq!(heard(), "far-0");
        tell(Timer::builder());
        assert_eq!(heard(), "sleave-0", "a thread's timers are the default runtime's");
        near.stop();
        far.stop();
    });
}

// ---- again and again ----

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

// ---- cancel ----

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

// ---- refresh and reset ----

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

// ---- on a condition ----

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

// ---- callbacks are fibers ----

#[test]
fn a_callback_that_waits_delays_no_other_timer() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        let gate = Arc::new(Gate::default());
        for _ in 0..20 {
            let (send, gate) = (send.clone(), gate.clone());
            place.after(MS, move || {
                gate.pass();
                send.send("waited").unwrap();
            });
        }
        place.after(2 * MS, {
            let (send, gate) = (send.clone(), gate.clone());
            move || {
                send.send("opened").unwrap();
                gate.open();
            }
        });
        drop(send);
        let heard: Vec<_> = receive.iter().collect();
        assert_eq!(heard[0], "opened", "on one worker too");
        assert_eq!(heard.len(), 21);
    });
}

#[test]
fn a_callback_runs_on_a_fiber_of_its_own() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        let mut calls = 0;
        place.every(MS, move |timer| {
            calls += 1;
            // A stack to use, thread-locals, spawning, joining.
            let child = sleave::spawn(|| thread::sleep(MS / 4));
            child.join().unwrap();
            send.send(sleave::current().map(|fiber| fiber.id())).unwrap();
            if calls == 3 {
                timer.cancel();
            }
        });
        let ids: Vec<_> = receive.iter().map(|id| id.expect("a fiber")).collect();
        assert_eq!(ids.len(), 3);
        assert!(ids[0] < ids[1] && ids[1] < ids[2], "{ids:?}");
    });
}

#[test]
fn a_panic_ends_its_own_timer_and_nothing_else() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        let other = place.every(MS, {
            let send = send.clone();
            move |_| send.send("other").unwrap()
        });
        let mut calls = 0;
        let recurring = place.every(MS, {
            let send = send.clone();
            move |_| {
                calls += 1;
                send.send("panics").unwrap();
                if calls == 2 {
                    // Not `panic!`: it would be reported, amid the test's output.
                    resume_unwind(Box::new("a callback's panic"));
                }
            }
        });
        let once = place.after(MS, move || {
            send.send("panics").unwrap();
            resume_unwind(Box::new("a callback's panic"));
        });
        eventually("both have ended", || once.is_over() && recurring.is_over());
        receive.try_iter().for_each(drop);
        assert!(receive.iter().take(5).all(|call| call == "other"), "the timer has ended");
        assert!(other.cancel());
        assert!(receive.iter().all(|call| call == "other"), "the callbacks are dropped");
    });
}

// ---- the end of the runtime ----

/// Says when it is dropped, after a while.
struct Slow(Arc<Count>);

impl Drop for Slow {
    fn drop(&mut self) {
        thread::sleep(MS);
        self.0.up();
    }
}

#[test]
fn stop_drops_pending_timers_and_waits_for_calls_that_run() {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            let runtime = runtime(workers);
            let (dropped, ended, begun) =
                (Arc::new(Count::new()), Arc::new(Count::new()), Arc::new(Gate::default()));
            let timers: Vec<_> = (0..10)
                .map(|i| {
                    let slow = Slow(dropped.clone());
                    let body = move |_: &Timer| {
                        let _ = &slow;
                        unreachable!("stopped");
                    };
                    let timer = || Timer::builder().on(&runtime);
                    match i % 3 {
                        0 => timer().every(LONG, body).unwrap(),
                        1 => runtime.run(|| timer().every(LONG, body).unwrap()),
                        _ => runtime.run(|| timer().every(Duration::MAX, body).unwrap()),
                    }
                })
                .collect();
            let (done, open) = (ended.clone(), begun.clone());
            let call = move || {
                open.open();
                thread::sleep(20 * MS);
                done.up();
            };
            Timer::builder().on(&runtime).after(MS, call).unwrap();
            begun.pass();
            runtime.stop();
            assert_eq!(ended.get(), 1, "stop waits for a callback that runs");
            assert_eq!(dropped.get(), 10, "stop waits for the destructors");
            assert!(timers.iter().all(Timer::is_over));
            assert!(!timers.iter().any(|timer| timer.cancel() || timer.refresh()));
        }
    });
}

#[test]
fn until_its_last_fiber_has_ended_a_stopped_runtime_fires_timers() {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            for stopped in [true, false] {
                let runtime = runtime(workers);
                let ticks = Arc::new(Count::new());
                let tick = ticks.clone();
                Timer::builder().on(&runtime).every(2 * MS, move |_| count(&tick)).unwrap();
                let fiber = runtime.spawn(|| {
                    // By then the runtime is being stopped.
                    thread::sleep(10 * MS);
                    let (send, receive) = mpsc::channel();
                    Timer::after(10 * MS, move || send.send(5).unwrap());
                    receive.recv()
                });
                if stopped {
                    runtime.stop()
                } else {
                    drop(runtime)
                }
                assert_eq!(fiber.join().unwrap(), Ok(5));
                // A period that had begun may end; the timer does not go on.
                assert!(ticks.get() <= 3, "{} ticks of a stopped runtime", ticks.get());
            }
        }
    });
}

#[test]
fn a_dropped_runtime_drops_its_timers() {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            let runtime = runtime(workers);
            let dropped = Arc::new(Count::new());
            let [first, second] = [(); 2].map(|()| Slow(dropped.clone()));
            let thrower = Panics(dropped.clone());
            let timer = || Timer::builder().on(&runtime);
            timer().after(LONG, move || drop(first)).unwrap();
            timer().after(LONG, move || drop(thrower)).unwrap();
            runtime.run(|| timer().after(Duration::MAX, move || drop(second)).unwrap());
            drop(runtime);
            eventually("the callbacks are dropped", || dropped.get() == 3);
        }
    });
}

/// Panics when it is dropped.
struct Panics(Arc<Count>);

impl Drop for Panics {
    fn drop(&mut self) {
        self.0.up();
        resume_unwind(Box::new("a destructor's panic"));
    }
}

#[test]
fn timers_that_expire_while_their_runtime_ends_fire_or_are_dropped() {
    Company::Shared.keep(|| {
        let mut random = Random::new(11);
        for round in 0..scaled(1000) {
            let workers = WORKERS[round % WORKERS.len()];
            let _watchdog = Watchdog::over(Host::Fibers { workers }, PATIENCE);
            let runtime = runtime(workers);
            let alive = Arc::new(());
            let timers: Vec<_> = (0..8)
                .map(|_| {
                    let alive = alive.clone();
                    let delay = Duration::from_micros(random.within(0..300) as u64);
                    Timer::builder().on(&runtime).after(delay, move || drop(alive)).unwrap()
                })
                .collect();
            thread::sleep(Duration::from_micros(random.within(0..150) as u64));
            runtime.stop();
            assert!(timers.iter().all(Timer::is_over));
            assert_eq!(Arc::strong_count(&alive), 1);
        }
    });
}

// ---- many ----

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
        // The handles are the test's: two words.
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

// ---- the fallback ----

#[test]
fn where_fibers_are_threads_all_of_this_holds_as_well() {
    if sleave::identity().is_err() {
        return;
    }
    // But for what is about numbers that no machine has threads for.
    let skipped =
        ["million", "hundred_thousand", "either_fires_or", "order_in_which", "where_fibers"];
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Threads, LONG_PATIENCE + GENEROUS);
        let output = Command::new(std::env::current_exe().expect("the path of this test binary"))
            .args(skipped.iter().flat_map(|name| ["--skip", name]))
            .arg("--test-threads=2")
            .env("SLEAVE_IDENTITY", "threads")
            .output()
            .expect("the child starts");
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
        assert!(said.contains("a_timer_fires_after_its_delay_and_never_early ... ok"), "{said}");
    });
}
