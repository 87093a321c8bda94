//! The wheel against a model: a list of what is pending.

use std::collections::HashMap;
use std::pin::Pin;
use std::ptr::NonNull;

use proptest::prelude::*;

use super::{Entry, TICK, Wheel};
use crate::fiber::{Control, space};
use crate::wait::{Batch, Deadline};

/// The most timers that are pending at a time.
const MOST: usize = 300;

#[derive(Clone, Debug)]
enum Step {
    /// Starts a timer so many nanoseconds from now.
    StartIn(u64),
    /// Starts a timer at this time, be it past or at the end of days.
    StartAt(u64),
    /// Cancels one of those pending (or fired: then nothing must happen).
    Cancel(prop::sample::Index),
    /// Lets so many nanoseconds pass.
    Pass(u64),
    /// Lets time pass until the wheel says that something may be due.
    PassToNext,
}

/// Spans of all magnitudes: the wheel's levels are six bits apart.
fn span() -> impl Strategy<Value = u64> {
    (0u32..46, any::<u64>()).prop_map(|(bits, x)| x & ((1 << bits) - 1))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => span().prop_map(Step::StartIn),
        // Few ticks, so that many timers share one.
        4 => (0u64..4 << TICK).prop_map(Step::StartIn),
        // On the borders of slots.
        2 => (1u32..5, 1u64..64).prop_map(|(level, slot)| Step::StartIn(slot << (6 * level + TICK))),
        1 => any::<u64>().prop_map(Step::StartAt),
        1 => (0u64..3).prop_map(|back| Step::StartAt(u64::MAX - 1 - back)),
        1 => Just(Step::StartAt(0)),
        4 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        2 => span().prop_map(Step::Pass),
        2 => (0u64..3 << TICK).prop_map(Step::Pass),
        3 => Just(Step::PassToNext),
    ]
}

struct Pending {
    deadline: u64,
    /// The tick at which it is due.
    tick: u64,
    /// Counts those that were started.
    number: u64,
    timer: Pin<Box<Entry>>,
}

/// A wheel, and what must be in it.
struct World {
    wheel: &'static Wheel,
    now: u64,
    started: u64,
    idle: Vec<NonNull<Control>>,
    pending: HashMap<NonNull<Control>, Pending>,
    /// Timers that have fired or been cancelled: to cancel them again does nothing.
    over: Vec<Pin<Box<Entry>>>,
}

impl World {
    fn new(controls: &[NonNull<Control>]) -> World {
        let wheel: &'static Wheel = Box::leak(Box::new(Wheel::new(crate::kernel::now())));
        let now = wheel.inner.lock().now << TICK;
        World {
            wheel,
            now,
            started: 0,
            idle: controls.to_vec(),
            pending: HashMap::new(),
            over: Vec::new(),
        }
    }

    fn start(&mut self, deadline: u64) {
        let Some(control) = self.idle.pop() else { return };
        // SAFETY: a slot that this test has taken and keeps; no fiber runs on it.
        let word = unsafe { &control.as_ref().wait };
        word.prepare();
        assert!(word.park());
        let timer = Box::pin(Entry::of_wait(control));
        // A timer is due at the first tick that is not before it, and at the next one if the
        // present tick has been dealt with; the end of days is a tick as well.
        let tick = deadline.div_ceil(1 << TICK).min((1 << 48) - 1);
        let tick = tick.max(self.wheel.inner.lock().now + 1);
        let due = timer.as_ref().start(self.wheel, Deadline::at(deadline));
        assert_eq!(due.nanoseconds(), tick << TICK);
        self.started += 1;
        self.pending.insert(control, Pending { deadline, tick, number: self.started, timer });
    }

    fn cancel(&mut self, index: prop::sample::Index) {
        let count = self.pending.len() + self.over.len();
        if count == 0 {
            return;
        }
        let index = index.index(count);
        if let Some(timer) = self.over.get(index) {
            timer.as_ref().cancel();
            return;
        }
        let mut controls: Vec<_> = self.pending.keys().copied().collect();
        controls.sort_unstable();
        let control = controls[index - self.over.len()];
        let pending = self.pending.remove(&control).expect("one of its keys");
        pending.timer.as_ref().cancel();
        // SAFETY: as in `start`.
        unsafe { control.as_ref() }.wait.end();
        self.over.push(pending.timer);
        self.idle.push(control);
    }

    fn pass_to(&mut self, now: u64) {
        self.now = now;
        let mut fired = Batch::new();
        while self.wheel.next() <= now {
            self.wheel.fire(now, &mut fired);
        }
        let mut last = (0, 0);
        while let Some(runnable) = fired.take() {
            let control = runnable.cast::<Control>();
            let pending = self.pending.remove(&control).expect("fired once, and not cancelled");
            let end_of_days = pending.tick == (1 << 48) - 1;
            assert!(pending.deadline <= now || end_of_days, "early: {} at {now}", pending.deadline);
            let this = (pending.tick, pending.number);
            assert!(this > last, "tick and number {this:?} after {last:?}");
            last = this;
            // SAFETY: as in `start`.
            assert_eq!(unsafe { control.as_ref() }.wait.end(), super::Reason::TimedOut);
            self.over.push(pending.timer);
            self.idle.push(control);
        }
        for Pending { deadline, tick, .. } in self.pending.values() {
            assert!(*tick > now >> TICK, "lost: {deadline} at {now}");
        }
    }

    /// `next` is a time before which nothing is due.
    fn check_next(&self) {
        let next = self.wheel.next();
        if let Some(first) = self.pending.values().map(|pending| pending.tick).min() {
            assert!(next <= first << TICK, "next is {next}, but {first} << {TICK} comes first");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn timers_fire_once_in_order_and_never_early(
        steps in prop::collection::vec(step(), 1..400),
        first in 1u64..60,
    ) {
        let space = space().expect("fibers can be had");
        let size = space.slot_size(Some(16 << 10)).unwrap();
        let controls: Vec<_> = (0..MOST).map(|_| space.take(size).unwrap()).collect();
        let mut world = World::new(&controls);
        world.pass_to(world.now + (first << TICK));
        for step in steps {
            match step {
                Step::StartIn(span) => world.start(world.now.saturating_add(span)),
                Step::StartAt(deadline) => world.start(deadline),
                Step::Cancel(index) => world.cancel(index),
                // Not to the end of days: no time is left then to start anything.
                Step::Pass(span) => world.pass_to((world.now + span).min(1 << 62)),
                Step::PassToNext => world.pass_to(world.wheel.next().clamp(world.now, 1 << 62)),
            }
            world.check_next();
        }
        // Behind the last tick, and before "never".
        world.pass_to(u64::MAX - 1);
        prop_assert!(world.pending.is_empty());
        prop_assert_eq!(world.wheel.next(), u64::MAX);
        for control in controls {
            // SAFETY: taken above; nothing ran on it and no timer names it any more.
            unsafe { space.give(control) };
        }
    }
}

#[test]
fn more_timers_on_one_tick_than_one_hold_of_the_lock_takes() {
    let space = space().expect("fibers can be had");
    let size = space.slot_size(Some(16 << 10)).unwrap();
    let controls: Vec<_> = (0..3 * super::BATCH + 1).map(|_| space.take(size).unwrap()).collect();
    let mut world = World::new(&controls);
    let deadline = world.now + (5 << TICK);
    controls.iter().for_each(|_| world.start(deadline));
    world.pass_to(deadline - 1);
    assert_eq!(world.pending.len(), controls.len());
    world.pass_to(deadline);
    assert!(world.pending.is_empty());
    for control in controls {
        // SAFETY: taken above; nothing ran on it and no timer names it any more.
        unsafe { space.give(control) };
    }
}
