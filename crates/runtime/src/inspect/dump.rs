//! The dump: every fiber that has begun, what it does, and what it waits for.
//!
//! It is a structure first, and a table for people by `Display`:
//!
//! ```text
//!   sleave dump of process 4711
//!   fibers: 3 (1 running, 0 runnable, 2 waiting); workers: 2 (1 idle); calls that block: 0
//!     fiber  name      worker  what it does
//!         1  main           0  waits for the end of fiber 3, for 1.250 s
//!         2  -              1  runs
//!         3  reader    1 (pin)  waits to read descriptor 9, for 1.250 s, at most for 0.750 s more
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::metrics::{Metrics, metrics};
use super::place::Place;
use super::seconds::Seconds;
use super::visit::{Doing, Onlooked, visit};
use super::wants::Awaited;
use crate::fiber::FiberId;
use crate::kernel;
use crate::scheduler::Core;

/// What all fibers of the process are doing: see [`dump`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dump {
    /// The process.
    pub process: u32,
    /// Every fiber that has begun and not ended, in the order of their numbers.
    pub fibers: Vec<FiberState>,
    /// Fibers of [`Metrics::fibers`] that are not in `fibers`: they have not begun, are callbacks that wait for their event, or
    /// began or ended meanwhile.
    pub unlisted: usize,
    /// Numbers about the process.
    pub metrics: Metrics,
    /// Fibers can be looked at. Where the kernel has no membarrier(2) they cannot, and `fibers` is empty; so it is
    /// where each fiber is an OS thread.
    pub complete: bool,
}

/// One fiber, as it was at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct FiberState {
    /// Its number.
    pub id: FiberId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What the names of its runtime's threads begin with.
    pub runtime: Arc<str>,
    /// The number of the worker that runs it, or ran it last; `None` before its first run.
    pub worker: Option<usize>,
    /// The worker that it is pinned to.
    pub pinned: Option<usize>,
    /// What it does.
    pub state: State,
    /// Where it waits: return addresses, innermost first, 64 at most. Empty unless [`dump_with_backtraces`] was asked, and it waits.
    pub frames: Vec<usize>,
}

/// What a fiber does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum State {
    /// A worker runs it.
    Running,
    /// It is in a call that blocks its worker's thread; another stands in for that.
    Blocked,
    /// It could run, and waits for a worker. Also said of a fiber that changes from one state to another faster than it can be read.
    Ready,
    /// It waits.
    Waiting {
        /// For what.
        what: Awaited,
        /// For how long, to some milliseconds; a busy machine makes it less exact.
        since: Duration,
        /// After what time it gives up, if ever.
        left: Option<Duration>,
    },
}

/// What all fibers of the process are doing, at this moment.
///
/// Fibers go on meanwhile. What is said of one fiber was true at one moment during the call, and not at the same for each;
/// where nothing moves all is true together. It takes about a microsecond for each fiber, and holds up only fibers that
/// end, each for less than that.
///
/// Must not be called in a signal handler.
///
/// # Examples
///
/// ```
/// # if sleave_runtime::identity().is_err() { return; }
/// use sleave_runtime::{Builder, State, inspect::Awaited};
///
/// let sleeper = Builder::new().name("sleeper").spawn(sleave_runtime::park).unwrap();
/// let state = loop {
///     let dump = sleave_runtime::dump();
///     match dump.fibers.iter().find(|fiber| fiber.name.as_deref() == Some("sleeper")) {
///         Some(fiber) if fiber.state != State::Ready && fiber.state != State::Running => break fiber.state,
///         _ => std::thread::yield_now(),
///     }
/// };
/// assert!(matches!(state, State::Waiting { what: Awaited::Token, left: None, .. }));
/// sleeper.fiber().unpark();
/// sleeper.join().unwrap();
/// ```
pub fn dump() -> Dump {
    make(false)
}

/// As [`dump`], with the place in the program where each fiber waits, by return addresses.
///
/// `Display` shows them as `symbol+offset (object)`, for exported symbols, else `object+offset`, which is what addr2line(1)
/// understands; where somebody names places ([`name_places_by`](crate::inspect::name_places_by)), as he names them. Each backtrace takes some microseconds, during which a worker that would run that fiber, or any other, waits.
///
/// # Examples
///
/// ```
/// let dump = sleave_runtime::dump_with_backtraces();
/// print!("{dump}");
/// ```
pub fn dump_with_backtraces() -> Dump {
    make(true)
}

/// What is written to standard error when nobody has asked by a call: with backtraces if `SLEAVE_BACKTRACE` in the environment
/// is neither empty nor 0.
pub(super) fn dump_as_configured() -> Dump {
    let wish = std::env::var_os("SLEAVE_BACKTRACE");
    make(wish.is_some_and(|wish| !wish.is_empty() && wish != "0"))
}

fn make(frames: bool) -> Dump {
    let mut fibers = Vec::new();
    let mut names: Vec<(&'static Core, Arc<str>)> = Vec::new();
    let complete = visit(frames, &mut |seen| {
        let runtime = match names.iter().find(|(core, _)| std::ptr::eq(*core, seen.core)) {
            Some((_, name)) => name.clone(),
            None => {
                let name: Arc<str> = seen.core.name().into();
                names.push((seen.core, name.clone()));
                name
            }
        };
        // Asked for each: a wait may have begun just now.
        fibers.push(FiberState::new(seen, runtime, kernel::now()));
        true
    });
    fibers.sort_unstable_by_key(|fiber| fiber.id);
    let metrics = metrics();
    let complete = complete && crate::identity().is_ok();
    let unlisted = metrics.fibers.saturating_sub(fibers.len());
    Dump { process: kernel::getpid(), fibers, unlisted, metrics, complete }
}

impl FiberState {
    fn new(seen: Onlooked, runtime: Arc<str>, now: u64) -> FiberState {
        let state = match seen.doing {
            Doing::Runs { blocked: false } => State::Running,
            Doing::Runs { blocked: true } => State::Blocked,
            Doing::Ready => State::Ready,
            Doing::Waits(wait) => match wait.what() {
                Some(what) => State::Waiting {
                    what,
                    since: Duration::from_nanos(now.saturating_sub(wait.since())),
                    left: wait.until().map(|at| Duration::from_nanos(at.saturating_sub(now))),
                },
                None => State::Ready,
            },
        };
        FiberState {
            id: seen.id,
            name: seen.name,
            runtime,
            worker: seen.worker,
            pinned: seen.pinned.map(usize::from),
            state,
            frames: seen.frames,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Running => f.write_str("runs"),
            State::Blocked => f.write_str("blocks its thread in a call"),
            State::Ready => f.write_str("is ready to run"),
            State::Waiting { what, since, left } => {
                write!(f, "waits {what}, for {}", Seconds(*since))?;
                match left {
                    Some(left) => write!(f, ", at most for {} more", Seconds(*left)),
                    None => Ok(()),
                }
            }
        }
    }
}

/// A line of the table.
impl fmt::Display for FiberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worker = match (self.pinned, self.worker) {
            (Some(pinned), _) => format!("{pinned} (pin)"),
            (None, Some(worker)) => worker.to_string(),
            (None, None) => "-".into(),
        };
        // Whatever is in the name, the line stays one.
        let name = self.name.as_deref().map(|name| name.escape_debug().to_string());
        let name = name.as_deref().unwrap_or("-");
        write!(f, "{:>7}  {name:<15}  {worker:>8}  {}", self.id.get(), self.state)
    }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Metrics { fibers, running, runnable, waiting, workers, idle, blocked, .. } =
            self.metrics;
        writeln!(f, "sleave dump of process {}", self.process)?;
        writeln!(
            f,
            "fibers: {fibers} ({running} running, {runnable} runnable, {waiting} waiting); \
             workers: {workers} ({idle} idle); calls that block: {blocked}"
        )?;
        if !self.complete {
            return writeln!(f, "what each of them does cannot be seen here");
        }
        writeln!(f, "{:>7}  {:<15}  {:>8}  what it does", "fiber", "name", "worker")?;
        for fiber in &self.fibers {
            writeln!(f, "{fiber}")?;
            for (number, address) in fiber.frames.iter().enumerate() {
                // A return address may be the first of the next function.
                writeln!(f, "{:>12}#{number} {}", "", Place::of(address - 1))?;
            }
        }
        if self.unlisted > 0 {
            writeln!(f, "and {} that have not begun, or wait for an event", self.unlisted)?;
        }
        Ok(())
    }
}
