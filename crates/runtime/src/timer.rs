//! Timers: a callback at a time, or again and again.
//!
//! A pending timer is one heap block in a wheel (`wait::timer`): no fiber, no stack, and to start,
//! cancel or change it is O(1). When it is due, the worker that notices begins a fiber, which calls the
//! callback; so a callback may do and wait for whatever a fiber may, and holds up nobody's clock.
//!
//! `block` says who may do what with a timer when. Here is what a program sees, and how it meets
//! the runtime:
//!
//! ```text
//!   Timer::after ─▶ Block ─▶ wheel of the caller's processor, or (from outside) of the core
//!                              │ a worker looks around, or the alarm wakes one
//!                              ▼
//!                  Core::due ─▶ Host::launch ─▶ a task in the queue ─▶ a fiber: Timer::run
//!                              ▲                                          │
//!                              └── recurring: the next period ◀───────────┘
//! ```
//!
//! Two things a timer must see to by itself. An earlier deadline than all others wakes a sleeping
//! worker (`Host::started`, with the argument in `scheduler`). And a timer that is started from outside
//! needs a worker to exist, as a spawn does.

mod block;

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use self::block::{Block, Callback, Host};
use crate::fiber::{self, Task, space};
use crate::kernel;
use crate::runtime::{CoreRef, Runtime, here};
use crate::scheduler::{Core, Term, stopped};
use crate::spawn::Builder;
use crate::wait::timer::Wheel;
use crate::wait::{Batch, Deadline};

/// A callback that will be called at a certain time, or periodically, on a fiber.
///
/// A handle: clones are the same timer, and **dropping them changes nothing**, as dropping a
/// [`JoinHandle`](crate::JoinHandle) leaves its fiber running. To end a timer, [`cancel`](Timer::cancel)
/// it. All methods may be called from any thread and any fiber, from the callback as well.
///
/// # When
///
/// Time is that of `CLOCK_MONOTONIC`, clock_gettime(2). A timer never fires early; deadlines are
/// rounded up to 2¹⁶ ns (65.5 µs), and what is due together fires in the order in which it was
/// started. There is no longest timer: `Duration::MAX` means never.
///
/// # The callback
///
/// Each call has a fiber of its own, of the runtime that the timer was started on, with the stack
/// that the runtime's fibers usually have. A callback that waits delays no other timer. A panic in it is that
/// of a detached fiber: it is reported, ends a recurring timer, and nothing else.
///
/// # The end of the runtime
///
/// Pending timers do not keep a runtime going. Until its last fiber has ended they fire; once the
/// [`Runtime`] has been stopped or dropped, recurring timers begin no new period. Then those still
/// pending are over, and what their callbacks hold is dropped, on a last fiber, for which
/// [`Runtime::stop`] waits. A callback that has begun is a fiber, and waited for as one.
///
/// # Examples
///
/// ```
/// use std::sync::mpsc;
/// use std::time::Duration;
///
/// use sleave_runtime::Timer;
///
/// let (send, receive) = mpsc::channel();
/// let late = Timer::after(Duration::from_secs(60), {
///     let send = send.clone();
///     move || send.send("late").unwrap()
/// });
/// Timer::after(Duration::from_millis(1), move || send.send("soon").unwrap());
/// assert_eq!(receive.recv(), Ok("soon"));
///
/// assert!(late.cancel());
/// // What the callback held is gone with it.
/// assert!(receive.recv().is_err());
/// ```
#[derive(Clone)]
pub struct Timer(Arc<Block<dyn Callback>>);

/// From when the time of a timer that is [`reset`](Timer::reset) counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since {
    /// From this moment.
    Now,
    /// From when it was started, or last refreshed or reset [`Since::Now`]; of a recurring timer, from
    /// the beginning of its present period.
    Start,
}

impl Timer {
    /// Calls `callback` once, `delay` from now.
    ///
    /// # Panics
    /// If no worker can be started; [`TimerBuilder::after`] returns that as an error.
    pub fn after<F>(delay: Duration, callback: F) -> Timer
    where
        F: FnOnce() + Send + 'static,
    {
        Timer::builder().after(delay, callback).expect("failed to start timer")
    }

    /// Calls `callback` once, at `time`, or at once if that is over.
    ///
    /// # Panics
    /// As [`Timer::after`].
    pub fn at<F>(time: Instant, callback: F) -> Timer
    where
        F: FnOnce() + Send + 'static,
    {
        Timer::builder().at(time, callback).expect("failed to start timer")
    }

    /// Calls `callback` every `period`, for the first time `period` from now, until it is cancelled.
    ///
    /// The k-th time is the start plus k periods, however long the calls take: it does not drift. Calls
    /// of one timer never overlap. If the callback still runs when its next time comes, or nobody could run
    /// it, that time is left out, and [`missed`](Timer::missed) counts it. The callback is given the timer,
    /// so that it can cancel or change it.
    ///
    /// # Panics
    /// As [`Timer::after`]; and if `period` is zero.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use std::time::{Duration, Instant};
    ///
    /// use sleave_runtime::Timer;
    ///
    /// let (start, period) = (Instant::now(), Duration::from_millis(2));
    /// let (send, receive) = mpsc::channel();
    /// let mut calls = 0;
    /// Timer::every(period, move |timer| {
    ///     calls += 1;
    ///     send.send(()).unwrap();
    ///     if calls == 5 {
    ///         timer.cancel();
    ///     }
    /// });
    /// assert_eq!(receive.iter().count(), 5);
    /// assert!(start.elapsed() >= 5 * period);
    /// ```
    pub fn every<F>(period: Duration, callback: F) -> Timer
    where
        F: FnMut(&Timer) + Send + 'static,
    {
        Timer::builder().every(period, callback).expect("failed to start timer")
    }

    /// Chooses where a timer runs, and on what condition.
    pub fn builder() -> TimerBuilder {
        TimerBuilder::default()
    }

    /// Ends the timer; whether there was something to end.
    ///
    /// `true`: no call will begin after this, and what the callback holds has been dropped, or will
    /// be when a call that is running has ended (only that of a recurring timer can be). `false`: the
    /// only call has begun, or the timer was over. A call that is running goes on, and is not waited
    /// for.
    pub fn cancel(&self) -> bool {
        self.end()
    }

    /// Begins the present period anew, now: the timer fires a whole period (or delay) from now, and a
    /// recurring one every period from then. `false` if it is too late, as for [`Timer::cancel`]; then
    /// nothing changes.
    ///
    /// This is what an idle timeout does with each sign of life. Of a timer that was started with
    /// [`Timer::at`] the delay is the time that was left when it was.
    pub fn refresh(&self) -> bool {
        self.change(None, Since::Now)
    }

    /// Gives the timer another period (or delay), which counts from now or from when the present one
    /// began. If its end is over already, the timer fires at once. `false` if it is too late, as for
    /// [`Timer::cancel`]; then nothing changes.
    ///
    /// # Panics
    /// If `period` is zero and the timer recurring.
    pub fn reset(&self, period: Duration, since: Since) -> bool {
        assert!(!self.is_recurring() || !period.is_zero(), "{ZERO}");
        self.change(Some(nanoseconds(period)), since)
    }

    /// Whether no call will begin any more.
    pub fn is_over(&self) -> bool {
        self.look().0
    }

    /// How many times of a recurring timer were left out so far, see [`Timer::every`].
    pub fn missed(&self) -> u64 {
        self.look().1
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer")
            .field("recurring", &self.is_recurring())
            .field("over", &self.is_over())
            .finish_non_exhaustive()
    }
}

const ZERO: &str = "the period of a recurring timer is not zero";

/// What does not fit is never: 584 years.
fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// Chooses where a [`Timer`] runs, and on what condition; then starts it.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// use std::sync::{Arc, Mutex};
/// use std::time::Duration;
///
/// use sleave_runtime::{Runtime, Timer};
///
/// let runtime = Runtime::builder().workers(1).build()?;
/// let cache = Arc::new(Mutex::new(vec![1, 2, 3]));
/// let weak = Arc::downgrade(&cache);
/// // The timer does not keep the cache, and ends with it.
/// Timer::builder().on(&runtime).while_alive(&weak).every(
///     Duration::from_secs(60),
///     move |_| weak.upgrade().expect("alive during the call").lock().unwrap().clear(),
/// )?;
/// runtime.stop();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
#[must_use = "a builder does nothing until it starts a timer"]
pub struct TimerBuilder {
    home: Option<(CoreRef, Term)>,
    alive: Option<Weak<dyn Any + Send + Sync>>,
}

impl TimerBuilder {
    /// The callback runs on `runtime`; else on that of the calling fiber, or on the default one.
    pub fn on(mut self, runtime: &Runtime) -> TimerBuilder {
        let CoreRef(core) = runtime.core();
        self.home = Some((CoreRef(core), core.term()));
        self
    }

    /// The timer fires only while `condition` can be upgraded, and keeps it alive during a call. If it is due
    /// and that is gone, the timer ends silently.
    pub fn while_alive<T>(mut self, condition: &Weak<T>) -> TimerBuilder
    where
        T: Any + Send + Sync,
    {
        self.alive = Some(condition.clone());
        self
    }

    /// As [`Timer::after`].
    ///
    /// # Errors
    /// If the runtime has been [stopped](Runtime::stop); if no worker exists and none can be started: what
    /// pthread_create(3) says; and as [`RuntimeBuilder::build`](crate::RuntimeBuilder::build) if this starts the default runtime.
    pub fn after<F>(self, delay: Duration, callback: F) -> io::Result<Timer>
    where
        F: FnOnce() + Send + 'static,
    {
        self.once(kernel::now(), nanoseconds(delay), callback)
    }

    /// As [`Timer::at`].
    ///
    /// # Errors
    /// As [`TimerBuilder::after`].
    pub fn at<F>(self, time: Instant, callback: F) -> io::Result<Timer>
    where
        F: FnOnce() + Send + 'static,
    {
        // std does not tell the number behind an `Instant`, so: how far off is it? Its clock is read
        // before ours, so that what passes in between makes the timer late, not early.
        let left = time.saturating_duration_since(Instant::now());
        self.once(kernel::now(), nanoseconds(left), callback)
    }

    /// As [`Timer::every`].
    ///
    /// # Errors
    /// As [`TimerBuilder::after`]; `InvalidInput` if `period` is zero.
    pub fn every<F>(self, period: Duration, mut callback: F) -> io::Result<Timer>
    where
        F: FnMut(&Timer) + Send + 'static,
    {
        if period.is_zero() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, ZERO));
        }
        let (start, period) = (kernel::now(), nanoseconds(period));
        match self.alive {
            None => start_timer(self.home, start, period, true, Recurring(Some(callback))),
            Some(alive) => {
                let callback = move |timer: &Timer| match alive.upgrade() {
                    Some(_alive) => callback(timer),
                    None => {
                        timer.cancel();
                    }
                };
                start_timer(self.home, start, period, true, Recurring(Some(callback)))
            }
        }
    }

    fn once<F>(self, start: u64, delay: u64, callback: F) -> io::Result<Timer>
    where
        F: FnOnce() + Send + 'static,
    {
        match self.alive {
            None => start_timer(self.home, start, delay, false, Once(Some(callback))),
            Some(alive) => {
                let callback = move || {
                    if let Some(_alive) = alive.upgrade() {
                        callback();
                    }
                };
                start_timer(self.home, start, delay, false, Once(Some(callback)))
            }
        }
    }
}

impl fmt::Debug for TimerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimerBuilder")
            .field("on", &self.home.map(|(core, _)| core))
            .field("conditional", &self.alive.is_some())
            .finish()
    }
}

struct Once<F>(Option<F>);

impl<F: FnOnce() + Send> Callback for Once<F> {
    fn call(&mut self, _: &Timer) {
        if let Some(callback) = self.0.take() {
            callback();
        }
    }

    fn discard(&mut self) {
        self.0 = None;
    }
}

struct Recurring<F>(Option<F>);

impl<F: FnMut(&Timer) + Send> Callback for Recurring<F> {
    fn call(&mut self, timer: &Timer) {
        if let Some(callback) = &mut self.0 {
            callback(timer);
        }
    }

    fn discard(&mut self) {
        self.0 = None;
    }
}

fn start_timer<C: Callback + 'static>(
    chosen: Option<(CoreRef, Term)>,
    start: u64,
    period: u64,
    recurring: bool,
    callback: C,
) -> io::Result<Timer> {
    let CoreRef(core) = chosen.map_or_else(here, |(core, _)| Ok(core))?;
    // Whatever it is that keeps the runtime going meanwhile, the timer does not.
    let inside = core.is_callers();
    if !inside && !core.keeps() {
        return Err(stopped());
    }
    let late = !inside && core.is_released();
    let started = match chosen {
        _ if late => Err(stopped()),
        // The runtime that was chosen has gone, and another one has its core.
        Some((_, term)) if term != core.term() => Err(stopped()),
        _ => home(core),
    };
    let started = started.map(|home| {
        let timer = Timer(Block::new(core, home, start, period, recurring, callback));
        timer.start();
        timer
    });
    if !inside {
        core.lets_go();
    }
    started
}

/// The wheel for a timer that the caller starts, which somebody looks after.
fn home(core: &'static Core) -> io::Result<&'static Wheel> {
    if space().is_err() {
        core.ensure_timekeeper()?;
        return Ok(core.timers());
    }
    // SAFETY: the caller's own control block.
    let own = fiber::current().map(|control| unsafe { control.as_ref() }.processor());
    match own.filter(|own| std::ptr::eq(own.core(), core)) {
        Some(own) => Ok(&own.timers),
        None => {
            core.ensure_worker()?;
            Ok(core.timers())
        }
    }
}

impl Host for Core {
    fn now(&self) -> u64 {
        kernel::now()
    }

    fn started(&self, due: Deadline) {
        match space() {
            Ok(_) => self.timer_started(due),
            Err(_) => self.call_timekeeper(),
        }
    }

    fn launch(&'static self, timer: Timer, woken: &mut Batch) {
        if space().is_err() {
            return launch_thread(self, timer);
        }
        let body = move || timer.run();
        // SAFETY: the closure is Send and 'static, and returns nothing.
        let (_, task) =
            unsafe { Task::new(self, None, self.slot_size(), self.timeouts(), None, body) };
        self.fiber_begins();
        woken.add(task.into_raw().cast());
    }

    fn is_released(&self) -> bool {
        Core::is_released(self)
    }
}

/// The fallback: an OS thread that stands for the fiber.
fn launch_thread(core: &'static Core, timer: Timer) {
    /// Nanoseconds until it is tried again to start one.
    const PAUSE: u64 = 1_000_000;
    let body = {
        let timer = timer.clone();
        move || timer.run()
    };
    // Whoever fires timers keeps the runtime meanwhile, also one that is being stopped.
    core.fiber_begins();
    // SAFETY: the closure is Send and 'static, and returns nothing.
    if unsafe { Builder::new().spawn_thread(core, None, body) }.is_err() {
        timer.postpone(Deadline::after(PAUSE));
    }
}

#[cfg(all(test, loom))]
mod loom_models;
#[cfg(all(test, not(loom)))]
mod tests;
