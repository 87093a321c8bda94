//! Ending a fiber, or a piece of its work, from outside: [`Fiber::cancel`](crate::Fiber::cancel), [`timeout`], [`shield`].
//!
//! Nothing is taken from a fiber that it does not give: it hears of the wish where it waits. What happens there depends on
//! whose wait it is, for a panic may only cross frames that can be unwound:
//!
//! | the fiber waits in | and then |
//! |---|---|
//! | `join`, `park`, `yield_now`, `wait_any`, [`checkpoint`]: sleave's own | it unwinds from there, destructors and all |
//! | a call for a descriptor, `poll`, `sem_wait`, for a child: the C library's | the call fails, `ECANCELED` (`ETIMEDOUT` for a time limit), as will every other |
//! | a sleep | the sleep is over |
//! | a lock, a condition, a channel: whatever waits by futex(2) | nothing: their callers expect no failure. It hears of it when it has got the lock |
//!
//! The C library's functions are called by code that was compiled on the promise that they do not unwind, std's own among it. So
//! they return an error, which programs pass on; whoever swallows it meets the next.
//!
//! ```text
//!   cancel:  mark the task ─┐
//!   timeout: mark the frame ┴─▶ Control::stop, "there may be something" ─▶ interrupt (`wait::interrupt`)
//!
//!   at a wait:  stop? ── no ─▶ wait
//!                └ yes: shielded, or unwinding already? ── yes ─▶ wait
//!                        └ no: the task's mark, the runtime's, or the outermost frame's: that one
//! ```
//!
//! A frame is a value on the stack of whoever called [`timeout`]; they are linked from the inside out. What unwinds for the sake of
//! a frame is caught by that frame alone. What `catch_unwind` swallows is raised again by the next wait.
//!
//! Sources: pthread_cancel(3) and signal-safety of unwinding, on which this differs; Nathaniel J. Smith, "Timeouts and
//! cancellation for humans", 2018, for what nests how.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{NonNull, null};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Timer;
use crate::fiber::{self, Control};
use crate::wait::interrupt::interrupt;

/// The payload with which a cancelled fiber has unwound: what `join` returns as its error.
///
/// # Examples
///
/// ```
/// # if sleave_runtime::identity().is_err() { return; }
/// let fiber = sleave_runtime::spawn(sleave_runtime::park);
/// fiber.cancel();
/// assert!(fiber.join().unwrap_err().is::<sleave_runtime::Cancelled>());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cancelled(());

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fiber was cancelled")
    }
}

impl std::error::Error for Cancelled {}

impl Cancelled {
    pub(crate) fn payload() -> Box<Cancelled> {
        Box::new(Cancelled(()))
    }
}

/// What [`timeout`] returns when the time was over first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elapsed(());

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time was over")
    }
}

impl std::error::Error for Elapsed {}

/// The payload of what unwinds to the [`timeout`] with this frame.
struct TimeIsOver(*const Frame);

// SAFETY: the address is compared, and nothing is done with it.
unsafe impl Send for TimeIsOver {}

/// A [`timeout`] that is on.
struct Frame {
    over: Arc<AtomicBool>,
    outer: *const Frame,
}

thread_local! {
    /// The innermost frame of the calling fiber, or thread.
    static FRAMES: Cell<*const Frame> = const { Cell::new(null()) };
    /// How many shields it is inside of.
    static SHIELDS: Cell<u32> = const { Cell::new(0) };
}

/// What is to end, and why.
enum Why {
    Cancelled,
    /// The time of this frame is over.
    Elapsed(*const Frame),
}

/// Whether somebody wants the caller to stop, and it may.
#[inline]
fn due() -> Option<Why> {
    match fiber::current() {
        // SAFETY: the caller's own control block. Relaxed: whoever sets it interrupts the wait that is to come.
        Some(control) if !unsafe { control.as_ref() }.stop.load(Ordering::Relaxed) => None,
        control => look(control),
    }
}

#[cold]
fn look(control: Option<NonNull<Control>>) -> Option<Why> {
    if SHIELDS.get() != 0 || thread::panicking() {
        return None;
    }
    // SAFETY: the caller's own control block, here and below.
    let stop = control.map(|control| unsafe { &(*control.as_ptr()).stop });
    if let Some(stop) = stop {
        // Acquire, by an exchange: what was marked before it was set is seen below. It is set again if that is so.
        stop.swap(false, Ordering::Acquire);
    }
    let why = marked();
    if why.is_some()
        && let Some(stop) = stop
    {
        // Relaxed: the fiber's own.
        stop.store(true, Ordering::Relaxed);
    }
    why
}

fn marked() -> Option<Why> {
    if crate::current().is_some_and(|fiber| fiber.0.is_cancelled() || fiber.0.core().is_cancelled())
    {
        return Some(Why::Cancelled);
    }
    let (mut frame, mut outermost) = (FRAMES.get(), None);
    // SAFETY: frames are on the caller's stack, below this call; the list is taken back by each before it goes.
    while let Some(at) = unsafe { frame.as_ref() } {
        // Acquire: with the timer.
        if at.over.load(Ordering::Acquire) {
            outermost = Some(Why::Elapsed(frame));
        }
        frame = at.outer;
    }
    outermost
}

/// Whether the calling fiber is to stop, be it cancelled or out of time: its next wait ends. For work that does not wait, or that stops in
/// a way of its own.
///
/// Not inside a [`shield`].
#[must_use]
pub fn is_due() -> bool {
    due().is_some()
}

/// What a call of the C library's that waits fails with, as an error number, if the caller is to stop.
#[inline]
pub fn error() -> Option<i32> {
    due().map(|why| match why {
        Why::Cancelled => libc::ECANCELED,
        Why::Elapsed(_) => libc::ETIMEDOUT,
    })
}

/// A wait that does not wait: unwinds if the calling fiber is to stop. For work that computes.
///
/// # Panics
/// With [`Cancelled`], or to the [`timeout`] whose time is over; without a message.
#[inline]
pub fn checkpoint() {
    if let Some(why) = due() {
        raise(&why);
    }
}

#[cold]
fn raise(why: &Why) -> ! {
    match *why {
        Why::Cancelled => resume_unwind(Cancelled::payload()),
        Why::Elapsed(frame) => resume_unwind(Box::new(TimeIsOver(frame))),
    }
}

/// Calls `f`, in which nothing ends for the caller's cancellation or time limits; they are heeded again when it has returned. For
/// what has to be put in order, and must wait for that.
///
/// A [`timeout`] inside of `f` is heeded neither. Destructors that run while a fiber unwinds are shielded by themselves.
///
/// # Examples
///
/// ```
/// # if sleave_runtime::identity().is_err() { return; }
/// use std::sync::mpsc;
/// let (say, hear) = mpsc::channel();
/// let fiber = sleave_runtime::spawn(move || {
///     sleave_runtime::shield(|| {
///         say.send("begun").unwrap();
///         sleave_runtime::park(); // Not ended by the cancellation.
///         say.send("in order").unwrap();
///     });
///     sleave_runtime::park(); // This is.
/// });
/// assert_eq!(hear.recv().unwrap(), "begun"); // Or it would never begin.
/// fiber.cancel();
/// fiber.fiber().unpark();
/// assert_eq!(hear.recv().unwrap(), "in order");
/// assert!(fiber.join().is_err());
/// ```
pub fn shield<F, T>(f: F) -> T
where
    F: FnOnce() -> T,
{
    struct Lower;
    impl Drop for Lower {
        fn drop(&mut self) {
            SHIELDS.set(SHIELDS.get() - 1);
        }
    }
    SHIELDS.set(SHIELDS.get() + 1);
    let _lower = Lower;
    f()
}

/// Calls `f`, whose waits end when `limit` is over, as those of a cancelled fiber do; then it unwinds to here.
///
/// What `f` returns counts, however late: if its calls have failed with `ETIMEDOUT`, that is in its result. Limits nest: an inner
/// one never lasts longer than an outer one, and what unwinds for the outer one's sake is not caught by the inner. `f` that never waits is not
/// ended ([`checkpoint`]), nor one that waits for a lock. On a thread that is no fiber the waits of sleave's that begin
/// after `limit` end.
///
/// # Errors
/// [`Elapsed`] if the time was over first.
///
/// # Panics
/// If `f` does. Or if no timer can be made, as [`Timer::after`].
///
/// # Examples
///
/// ```
/// # if sleave_runtime::identity().is_err() { return; }
/// use std::time::Duration;
/// use sleave_runtime::{park, timeout};
///
/// sleave_runtime::run(|| {
///     assert!(timeout(Duration::from_millis(10), park).is_err());
///     assert_eq!(timeout(Duration::from_secs(60), || 7), Ok(7));
/// });
/// ```
pub fn timeout<F, T>(limit: Duration, f: F) -> Result<T, Elapsed>
where
    F: FnOnce() -> T,
{
    let over = Arc::new(AtomicBool::new(false));
    let timer = Timer::after(limit, {
        let (over, target) = (Arc::clone(&over), crate::current());
        move || {
            // Release: with `marked`.
            over.store(true, Ordering::Release);
            if let Some(fiber) = &target {
                fiber.0.nudge();
            }
        }
    });
    let frame = Frame { over, outer: FRAMES.get() };
    FRAMES.set(&raw const frame);
    let result = catch_unwind(AssertUnwindSafe(f));
    FRAMES.set(frame.outer);
    timer.cancel();
    result.or_else(|payload| match payload.downcast::<TimeIsOver>() {
        Ok(over) if std::ptr::eq(over.0, &raw const frame) => Err(Elapsed(())),
        Ok(outer) => resume_unwind(outer),
        Err(payload) => resume_unwind(payload),
    })
}

/// As [`timeout`], until `deadline`.
///
/// # Errors
/// As [`timeout`].
///
/// # Panics
/// As [`timeout`].
pub fn timeout_at<F, T>(deadline: Instant, f: F) -> Result<T, Elapsed>
where
    F: FnOnce() -> T,
{
    timeout(deadline.saturating_duration_since(Instant::now()), f)
}

/// Says to the fiber in `control` that there may be something to stop for.
pub(crate) fn nudge(control: NonNull<Control>) {
    // SAFETY: slots are never unmapped; an atomic. Release: what was marked before is seen with it.
    unsafe { &(*control.as_ptr()).stop }.store(true, Ordering::Release);
    interrupt(control);
}
