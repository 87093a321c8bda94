//! Timers under loom: every order in which a start, a cancel, a refresh and an expiry can meet.
//!
//! Wheel and timer are the production code; the runtime is a list of what has expired. The callback and
//! what it holds touch a cell of loom's with exclusive access, so a call beside another, beside the drop
//! of the callback, or after it, fails; as do a callback that is dropped twice or never, a reference that is
//! lost, and a deadline that a sleeper does not hear of.

use std::sync::atomic::{AtomicU64 as Clock, Ordering};

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU64, AtomicUsize, fence};
use loom::thread;

use super::block::{Block, Host};
use super::{Once, Recurring, Timer};
use crate::wait::timer::Wheel;
use crate::wait::{Batch, Deadline};

/// All timers start at 0 and have this delay or period: two ticks of the wheel.
const PERIOD: u64 = 2 << 16;

struct Stage {
    /// Not loom's: it is set while nothing else runs.
    clock: Clock,
    wheel: Wheel,
    launched: Mutex<Vec<Timer>>,
    /// As the scheduler's: workers that sleep, and when they wake.
    sleeping: AtomicUsize,
    armed: AtomicU64,
    calls: AtomicUsize,
    drops: AtomicUsize,
}

impl Host for Stage {
    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// As `Core::timer_started`.
    fn started(&self, due: Deadline) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) > 0 {
            self.armed.fetch_min(due.nanoseconds(), Ordering::Relaxed);
        }
    }

    fn launch(&'static self, timer: Timer, _: &mut Batch) {
        self.launched.lock().unwrap().push(timer);
    }

    fn is_released(&self) -> bool {
        false
    }
}

/// What a callback holds.
struct Held {
    stage: &'static Stage,
    cell: UnsafeCell<()>,
}

// SAFETY: loom sees to it that the cell is used by one at a time, or fails.
unsafe impl Send for Held {}

impl Held {
    fn call(&self) {
        self.cell.with_mut(|_| ());
        self.stage.calls.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cell.with_mut(|_| ());
        self.stage.drops.fetch_add(1, Ordering::Relaxed);
    }
}

impl Stage {
    fn timer(&'static self, recurring: bool) -> Timer {
        let held = Held { stage: self, cell: UnsafeCell::new(()) };
        if recurring {
            let call = Recurring(Some(move |_: &Timer| held.call()));
            Timer(Block::new(self, &self.wheel, 0, PERIOD, true, call))
        } else {
            Timer(Block::new(self, &self.wheel, 0, PERIOD, false, Once(Some(move || held.call()))))
        }
    }

    /// A worker that looks around once, and the fibers that it begins.
    fn look_around(&self) {
        self.wheel.fire(self.now(), &mut Batch::new());
        while let Some(timer) = self.take() {
            timer.run();
        }
    }

    fn take(&self) -> Option<Timer> {
        self.launched.lock().unwrap().pop()
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn pass_to(&self, now: u64) {
        self.clock.store(now, Ordering::Relaxed);
    }
}

/// Checks `model` in all orders; it leaves no timer behind.
fn check(model: fn(&'static Stage)) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let stage = Box::into_raw(Box::new(Stage {
            clock: Clock::new(PERIOD),
            wheel: Wheel::new(0),
            launched: Mutex::new(Vec::new()),
            sleeping: AtomicUsize::new(0),
            armed: AtomicU64::new(u64::MAX),
            calls: AtomicUsize::new(0),
            drops: AtomicUsize::new(0),
        }));
        // SAFETY: freed below, when the model's threads have been joined and its timers are gone.
        model(unsafe { &*stage });
        // SAFETY: as above.
        drop(unsafe { Box::from_raw(stage) });
    });
}

/// The timer is over, its callback has been dropped once, and nobody else has a reference.
fn assert_gone(stage: &Stage, timer: &Timer) {
    assert!(timer.is_over());
    assert_eq!(stage.drops.load(Ordering::Relaxed), 1, "callbacks dropped");
    assert_eq!(std::sync::Arc::strong_count(&timer.0), 1, "references");
}

#[test]
fn loom_a_sleeper_hears_of_a_timer_that_is_started_meanwhile() {
    check(|stage| {
        let timer = stage.timer(false);
        let sleeper = thread::spawn(move || {
            // As `Core::sleep`: (a), (b), then the alarm.
            stage.sleeping.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            stage.armed.fetch_min(stage.wheel.next(), Ordering::Relaxed);
        });
        timer.start();
        sleeper.join().unwrap();
        assert_eq!(stage.armed.load(Ordering::Relaxed), PERIOD, "the alarm");
        assert!(timer.cancel());
        assert_gone(stage, &timer);
    });
}

#[test]
fn loom_a_timer_that_is_started_while_others_expire_fires_once() {
    check(|stage| {
        let (timer, other) = (stage.timer(false), stage.timer(false));
        other.start();
        let worker = thread::spawn(move || stage.look_around());
        timer.start();
        worker.join().unwrap();
        // The worker may have been too early for one of them.
        stage.pass_to(2 * PERIOD);
        stage.look_around();
        assert_eq!(stage.calls(), 2);
        assert_eq!(stage.drops.load(Ordering::Relaxed), 2);
        assert!(timer.is_over() && other.is_over());
    });
}

#[test]
fn loom_two_workers_expire_a_timer_once() {
    check(|stage| {
        let timer = stage.timer(false);
        timer.start();
        let worker = thread::spawn(move || stage.look_around());
        stage.look_around();
        worker.join().unwrap();
        assert_eq!(stage.calls(), 1);
        assert_gone(stage, &timer);
    });
}

#[test]
fn loom_a_timer_is_either_cancelled_or_called() {
    check(|stage| {
        let timer = stage.timer(false);
        timer.start();
        let worker = thread::spawn(move || stage.look_around());
        let others = timer.clone();
        let other = thread::spawn(move || others.cancel());
        let cancelled = usize::from(timer.cancel()) + usize::from(other.join().unwrap());
        worker.join().unwrap();
        assert_eq!(stage.calls() + cancelled, 1, "calls and those who cancelled");
        assert_gone(stage, &timer);
    });
}

#[test]
fn loom_a_recurring_timer_that_is_cancelled_comes_to_an_end() {
    check(|stage| {
        let timer = stage.timer(true);
        timer.start();
        let worker = thread::spawn(move || stage.look_around());
        assert!(timer.cancel(), "there is always a next time");
        worker.join().unwrap();
        // One call may have been running; none begins.
        stage.pass_to(5 * PERIOD);
        stage.look_around();
        assert!(stage.calls() <= 1, "{} calls", stage.calls());
        assert_gone(stage, &timer);
    });
}

#[test]
fn loom_a_refreshed_timer_is_called_once_and_not_before_its_new_deadline() {
    check(|stage| {
        let timer = stage.timer(false);
        timer.start();
        let worker = thread::spawn(move || stage.look_around());
        let in_time = timer.refresh();
        worker.join().unwrap();
        assert_eq!(stage.calls(), usize::from(!in_time), "refreshed and called all the same");
        stage.pass_to(2 * PERIOD);
        stage.look_around();
        assert_eq!(stage.calls(), 1);
        assert_gone(stage, &timer);
    });
}

#[test]
fn loom_a_refreshed_recurring_timer_keeps_its_one_token() {
    check(|stage| {
        let timer = stage.timer(true);
        timer.start();
        let worker = thread::spawn(move || stage.look_around());
        assert!(timer.refresh());
        worker.join().unwrap();
        let calls = stage.calls();
        // Wherever the refresh came, the next time is a period after it.
        stage.look_around();
        assert_eq!(stage.calls(), calls);
        stage.pass_to(2 * PERIOD);
        stage.look_around();
        assert_eq!(stage.calls(), calls + 1);
        assert!(timer.cancel());
        assert_gone(stage, &timer);
    });
}
