//! When a timer fires, and on which runtime.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave::{Runtime, Timer, TimerBuilder};

use crate::support::timing::{assert_waits, eventually};
use crate::support::watchdog::Watchdog;
use crate::support::{Company, Count, Host, PATIENCE, WORKERS};
use crate::{LONG, MS, count, each, runtime};

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
        place.assert_in_order(|| {
            let order = Arc::new(Mutex::new(Vec::new()));
            let start = Instant::now() + 20 * MS;
            // 37 is prime to 100: started in an order that is none.
            for number in (0..100).map(|i| i * 37 % 100) {
                let order = order.clone();
                let at = start + number as u32 * MS / 2;
                let record = move || {
                    assert!(Instant::now() >= at, "early");
                    order.lock().unwrap().push(number);
                };
                place.timer().at(at, record).unwrap();
            }
            all_from(order, 100)
        });
    });
}

#[test]
fn timers_of_one_time_fire_in_the_order_in_which_they_were_started() {
    each(|place| {
        // Near enough for the lowest level of the wheel, and far enough to move down to it.
        for delay in [2 * MS, 30 * MS] {
            place.assert_in_order(|| {
                let order = Arc::new(Mutex::new(Vec::new()));
                let at = Instant::now() + delay;
                for number in 0..1000 {
                    let order = order.clone();
                    let record = move || order.lock().unwrap().push(number);
                    place.timer().at(at, record).unwrap();
                }
                all_from(order, 1000)
            });
        }
    });
}

/// What callbacks have left in `order`, when all have been called: each number below `count` once.
fn all_from(order: Arc<Mutex<Vec<usize>>>, count: usize) -> Vec<usize> {
    eventually("all have fired", || Arc::strong_count(&order) == 1);
    let order = std::mem::take(&mut *order.lock().unwrap());
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..count).collect::<Vec<_>>());
    order
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
