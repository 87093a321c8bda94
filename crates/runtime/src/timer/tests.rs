//! Timers against a model, under a clock that the test turns.
//!
//! The model knows what a program is told: that the k-th time of a recurring timer is its origin plus
//! k periods, that a change counts from when it was made, and that whoever cancels in time prevents the call.
//! Wheels, expiry, and what happens between expiry and the begin of a fiber are the production code.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use proptest::prelude::*;
use proptest::sample::Index;

use super::block::{Block, Host};
use super::{Once, Recurring, Since, Timer};
use crate::wait::timer::{Expired, Wheel};
use crate::wait::{Batch, Deadline};

/// The width of a tick of the wheel.
const TICK: u64 = 1 << 16;
/// Far enough for everything that is not "never".
const END: u64 = 1 << 62;

#[derive(Clone, Copy, Debug)]
enum Change {
    Cancel,
    Refresh,
    Reset(u64, Since),
}

#[derive(Clone, Debug)]
enum Step {
    /// Starts a timer: delay or period, whether it recurs, which wheel.
    Start(u64, bool, bool),
    Change(Index, Change),
    /// Lets time pass, and expires what is due.
    Pass(u64),
    /// As `Pass`, until something may be due.
    PassToNext,
    /// Lets the fiber of an expired timer run: how long its callback takes, and what it does at
    /// the end of that to its own timer.
    Run(Index, u64, Option<Change>),
}

fn span() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u32..40, any::<u64>()).prop_map(|(bits, x)| x & ((1 << bits) - 1)),
        0..6 * TICK,
        Just(u64::MAX),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let since = prop_oneof![Just(Since::Now), Just(Since::Start)];
    prop_oneof![
        Just(Change::Cancel),
        Just(Change::Refresh),
        (span(), since).prop_map(|(period, since)| Change::Reset(period.max(1), since)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let passing = || span().prop_map(|span| span % (1 << 40));
    prop_oneof![
        4 => (span(), any::<bool>(), any::<bool>())
            .prop_map(|(period, recurring, home)| Step::Start(period.max(1), recurring, home)),
        3 => (any::<Index>(), change()).prop_map(|(index, change)| Step::Change(index, change)),
        2 => passing().prop_map(Step::Pass),
        4 => Just(Step::PassToNext),
        6 => (any::<Index>(), passing(), prop::option::of(change()))
            .prop_map(|(index, busy, change)| Step::Run(index, busy, change)),
    ]
}

/// A runtime of which only the clock and the list of expired timers are left.
struct Stage {
    now: AtomicU64,
    launched: Mutex<Vec<Timer>>,
    released: AtomicUsize,
    wheels: [Wheel; 2],
}

impl Host for Stage {
    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn started(&self, due: Deadline) {
        let next = self.wheels.iter().map(Wheel::next).min().unwrap();
        assert!(next <= due.nanoseconds(), "a sleeper would be told {next}, it is due at {due:?}");
    }

    fn launch(&'static self, timer: Timer, _: &mut Batch) {
        self.launched.lock().unwrap().push(timer);
    }

    fn is_released(&self) -> bool {
        self.released.load(Ordering::Relaxed) > 0
    }
}

/// What a callback is to do, and how often it was called.
#[derive(Default)]
struct Script {
    calls: AtomicU64,
    act: Mutex<(u64, Option<Change>)>,
}

/// One timer as a program sees it.
struct Model {
    timer: Timer,
    script: Arc<Script>,
    /// Goes with the callback.
    held: Weak<()>,
    recurring: bool,
    period: u64,
    /// From when the times count,
    origin: u64,
    /// how many have come since,
    times: u64,
    /// and how many had before.
    times_before: u64,
    calls: u64,
    over: bool,
    launched: bool,
    /// When it was last put into the wheel: it cannot fire before.
    linked: u64,
}

impl Model {
    fn start(&self) -> u64 {
        self.origin + self.times * self.period
    }

    fn deadline(&self) -> u64 {
        self.start().saturating_add(self.period)
    }

    fn count(&mut self, now: u64) {
        self.times = self.times.max(now.saturating_sub(self.origin) / self.period);
    }

    /// What `change` must return at `now`.
    fn change(&mut self, change: Change, now: u64) -> bool {
        let in_time = !self.over;
        if !in_time {
            return false;
        }
        let (period, start) = match change {
            Change::Cancel => {
                self.over = true;
                return true;
            }
            Change::Refresh => (self.period, now),
            Change::Reset(period, Since::Now) => (period, now),
            Change::Reset(period, Since::Start) => (period, self.start()),
        };
        self.linked = now;
        self.times_before += self.times;
        (self.times, self.origin, self.period) = (0, start, period);
        true
    }

    fn check(&self) {
        assert_eq!(self.script.calls.load(Ordering::Relaxed), self.calls);
        let missed = if self.recurring { self.times_before + self.times - self.calls } else { 0 };
        assert_eq!(self.timer.missed(), missed, "missed");
        assert_eq!(self.timer.is_over(), self.over, "over");
        assert_eq!(self.held.upgrade().is_none(), self.over, "the callback goes when it is over");
    }
}

fn make(timer: &Timer, change: Change) -> bool {
    match change {
        Change::Cancel => timer.cancel(),
        Change::Refresh => timer.refresh(),
        Change::Reset(period, since) => timer.change(Some(period), since),
    }
}

struct World {
    stage: &'static Stage,
    models: Vec<Model>,
}

impl World {
    fn new() -> World {
        let stage = Stage {
            now: AtomicU64::new(1000 * TICK),
            launched: Mutex::default(),
            released: AtomicUsize::new(0),
            wheels: [Wheel::new(0), Wheel::new(1000 * TICK)],
        };
        World { stage: Box::leak(Box::new(stage)), models: Vec::new() }
    }

    fn start(&mut self, period: u64, recurring: bool, home: bool) {
        let script = Arc::new(Script::default());
        let held = Arc::new(());
        let weak = Arc::downgrade(&held);
        let call = {
            let (stage, script) = (self.stage, script.clone());
            move |timer: Option<&Timer>| {
                let _ = &held;
                script.calls.fetch_add(1, Ordering::Relaxed);
                let (busy, change) = *script.act.lock().unwrap();
                stage.now.fetch_add(busy, Ordering::Relaxed);
                if let (Some(timer), Some(change)) = (timer, change) {
                    assert!(make(timer, change), "its own callback is always in time");
                }
            }
        };
        let (stage, now) = (self.stage, self.stage.now());
        let home = &stage.wheels[usize::from(home)];
        let timer = if recurring {
            let call = Recurring(Some(move |timer: &Timer| call(Some(timer))));
            Timer(Block::new(stage, home, now, period, true, call))
        } else {
            Timer(Block::new(stage, home, now, period, false, Once(Some(move || call(None)))))
        };
        timer.start();
        self.models.push(Model {
            timer,
            script,
            held: weak,
            recurring,
            period,
            origin: now,
            times: 0,
            times_before: 0,
            calls: 0,
            over: false,
            launched: false,
            linked: now,
        });
    }

    /// Lets the clock be `now`, and has a worker look around.
    fn pass_to(&mut self, now: u64) {
        self.stage.now.store(now, Ordering::Relaxed);
        for wheel in &self.stage.wheels {
            while wheel.next() <= now {
                wheel.fire(now, &mut Batch::new());
            }
        }
        let launched = self.stage.launched.lock().unwrap();
        for model in &mut self.models {
            let here = launched.iter().any(|timer| Arc::ptr_eq(&timer.0, &model.timer.0));
            // What was started after its tick had been dealt with waits for the next one.
            let due = model.deadline().max(model.linked).saturating_add(2 * TICK) <= now;
            assert!(here || model.over || !due, "lost: due at {}, now {now}", model.deadline());
            let early = here && !model.launched && !model.over && model.deadline() > now;
            assert!(!early, "early: due at {}, now {now}", model.deadline());
            model.launched = here;
        }
    }

    fn run(&mut self, which: impl Fn(usize) -> usize, busy: u64, change: Option<Change>) {
        let timer = {
            let mut launched = self.stage.launched.lock().unwrap();
            if launched.is_empty() {
                return;
            }
            let index = which(launched.len());
            launched.remove(index)
        };
        let same = |model: &&mut Model| Arc::ptr_eq(&model.timer.0, &timer.0);
        let model = self.models.iter_mut().find(same).expect("one of ours");
        model.launched = false;
        *model.script.act.lock().unwrap() = (busy, change);
        let now = self.stage.now();
        let calls = !model.over && model.deadline() <= now;
        if calls {
            model.calls += 1;
            if model.recurring {
                model.count(now);
                assert!(change.is_none_or(|change| model.change(change, now + busy)));
                if !model.over {
                    model.count(now + busy);
                }
            } else {
                model.over = true;
            }
        }
        timer.run();
        model.linked = self.stage.now();
        assert_eq!(self.stage.now(), if calls { now + busy } else { now });
        model.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn timers_do_what_a_program_is_told(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            let now = world.stage.now();
            match step {
                Step::Start(period, recurring, home) => world.start(period, recurring, home),
                Step::Change(index, change) if !world.models.is_empty() => {
                    let index = index.index(world.models.len());
                    let model = &mut world.models[index];
                    assert_eq!(make(&model.timer, change), model.change(change, now));
                    model.check();
                }
                Step::Change(..) => {}
                Step::Pass(span) => world.pass_to((now + span).min(END).max(now)),
                Step::PassToNext => {
                    let next = world.stage.wheels.iter().map(Wheel::next).min().unwrap();
                    world.pass_to(next.min(END).max(now));
                }
                Step::Run(index, busy, change) => world.run(|count| index.index(count), busy, change),
            }
        }
        // The end of the runtime: what is pending is dropped, as is what had expired.
        let mut pending = Expired::new();
        world.stage.wheels.iter().for_each(|wheel| wheel.drain(&mut pending));
        pending.for_each(|timer| timer.abandon());
        std::mem::take(&mut *world.stage.launched.lock().unwrap()).iter().for_each(|timer| {
            timer.cancel();
        });
        for model in &mut world.models {
            model.over = true;
            model.check();
            prop_assert_eq!(Arc::strong_count(&model.timer.0), 1, "a reference was lost");
        }
    }
}

#[test]
fn a_released_runtime_begins_no_new_period() {
    let mut world = World::new();
    world.start(TICK, true, false);
    let start = world.stage.now();
    world.pass_to(start + 2 * TICK);
    world.run(|_| 0, 0, None);
    assert!(!world.models[0].timer.is_over());
    world.stage.released.store(1, Ordering::Relaxed);
    world.pass_to(start + 4 * TICK);
    world.stage.launched.lock().unwrap().remove(0).run();
    assert_eq!(world.models[0].script.calls.load(Ordering::Relaxed), 2);
    assert!(world.models[0].timer.is_over());
    assert!(world.models[0].held.upgrade().is_none());
}

#[test]
fn a_postponed_timer_fires_later() {
    let mut world = World::new();
    world.start(TICK, false, true);
    let start = world.stage.now();
    world.pass_to(start + 2 * TICK);
    // No fiber was to be had.
    let timer = world.stage.launched.lock().unwrap().remove(0);
    timer.postpone(Deadline::at(start + 5 * TICK));
    drop(timer);
    world.models[0].launched = false;
    let launched = |now| {
        world.stage.now.store(now, Ordering::Relaxed);
        world.stage.wheels[1].fire(now, &mut Batch::new());
        world.stage.launched.lock().unwrap().len()
    };
    assert_eq!(launched(start + 4 * TICK), 0);
    assert_eq!(launched(start + 6 * TICK), 1);
    world.run(|_| 0, 0, None);
    assert_eq!(world.models[0].calls, 1);
}
