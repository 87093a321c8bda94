//! What the programs that are measured have in common: one process, one shape, one sample.
//!
//! ```text
//! PROGRAM SHAPE COUNT EFFORT WORKERS
//!   standard output, one of
//!     figures F F …            nanoseconds, each for one operation
//!     base, parked F           each answered by a line of standard input, while the runner reads /proc/PID/status
//!     listening on ADDR        a server; it serves until SIGINT
//! ```
//!
//! COUNT is how many fibers, tasks, threads or connections; EFFORT how many operations all of them make together. What is
//! timed is done twice and the second time counts: by then the allocator, the stacks and the predictors are warm. The
//! programs in other languages (`peers/`) keep to the same protocol.

use std::fmt::Display;
use std::io::{self, BufRead, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// What the runner asks for.
#[derive(Clone, Debug)]
pub struct Order {
    /// The name of the shape.
    pub shape: String,
    /// Fibers, tasks, threads or coroutines.
    pub count: usize,
    /// Operations, of all of them together.
    pub effort: usize,
    /// Workers of the runtime.
    pub workers: usize,
}

impl Order {
    /// From the words of a command line, the program's name not among them. Ends the process if they make no sense.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Order {
        let shape = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse().ok()).filter(|&n| n > 0);
        match (number(), number(), number()) {
            (Some(count), Some(effort), Some(workers)) => Order { shape, count, effort, workers },
            _ => refuse(
                "usage: PROGRAM SHAPE COUNT EFFORT WORKERS, all but the first numbers above 0",
            ),
        }
    }

    /// How many operations fall to each of the [`Order::count`].
    pub fn each(&self) -> usize {
        (self.effort / self.count).max(1)
    }

    /// How many operations that makes.
    pub fn total(&self) -> usize {
        self.each() * self.count
    }

    /// Ends the process: it has no such shape.
    pub fn unknown(&self) -> ! {
        refuse(format_args!("no shape {:?} here", self.shape))
    }
}

fn refuse(why: impl Display) -> ! {
    eprintln!("{why}");
    std::process::exit(2)
}

/// Nanoseconds that one of `operations` takes, the second time that `body` makes them.
pub fn second(operations: usize, mut body: impl FnMut()) -> f64 {
    body();
    let start = Instant::now();
    body();
    per(start.elapsed(), operations)
}

/// Nanoseconds that one operation takes, of those beyond the first that each of [`Order::count`] makes: what it costs to
/// make so many fibers and to end them is left out, whatever order the scheduler runs them in.
pub fn beyond_one(order: &Order, mut body: impl FnMut(usize)) -> f64 {
    body(1);
    let start = Instant::now();
    body(1);
    let ends = start.elapsed();
    let start = Instant::now();
    body(1 + order.each());
    per(start.elapsed().saturating_sub(ends), order.total())
}

/// Holds back all of a crowd until the last has come: what they do behind it is timed without their creation.
///
/// Who waits at it yields, so that whatever order the scheduler runs them in, each is there before one goes on.
pub struct Gate {
    missing: AtomicUsize,
    opened: OnceLock<Instant>,
}

impl Gate {
    /// A gate for so many.
    pub fn of(count: usize) -> Arc<Gate> {
        Arc::new(Gate { missing: AtomicUsize::new(count), opened: OnceLock::new() })
    }

    /// One more has come.
    pub fn arrive(&self) {
        // Relaxed: counts only; nothing is handed over.
        if self.missing.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.opened.get_or_init(Instant::now);
        }
    }

    /// Whether all have come.
    pub fn is_open(&self) -> bool {
        // Relaxed: see `arrive`.
        self.missing.load(Ordering::Relaxed) == 0
    }

    /// Nanoseconds since the last has come, for one of `operations`; all who have passed have ended.
    pub fn since(&self, operations: usize) -> f64 {
        per(self.opened.get().expect("an open gate").elapsed(), operations)
    }
}

/// Nanoseconds of `time` for one of `operations`.
pub fn per(time: Duration, operations: usize) -> f64 {
    time.as_nanos() as f64 / operations as f64
}

/// Tells the runner a figure.
pub fn figure(figure: f64) {
    say(format_args!("figures {figure}"));
}

/// Tells the runner a line.
pub fn say(line: impl Display) {
    let mut output = io::stdout();
    // Nobody listens any more: the process is about to be ended.
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

/// Tells the runner that a stage is reached, and waits until it has looked.
pub fn stage(name: impl Display) {
    say(name);
    // The end of the input comes when the runner has ended.
    let _ = io::stdin().lock().read_line(&mut String::new());
}

/// The processor time that this process has used.
pub fn cpu() -> Duration {
    let mut usage = libc::rusage {
        // SAFETY: rusage is a C struct of integers, for which all bytes zero is a value.
        ..unsafe { std::mem::zeroed() }
    };
    // SAFETY: getrusage(2) writes one rusage to the place given, which is ours.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// How long sleep number `turn` of fiber `number` lasts: 1 to 1,000 ms, as if drawn by lot, the same for every peer.
pub fn nap(number: usize, turn: usize) -> Duration {
    let mixed =
        (number as u64 * 1_000_003 + turn as u64 * 7_919).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Duration::from_millis(1 + (mixed >> 33) % 1000)
}

/// The first sleep, in which the others are still being spawned; it is not counted.
pub fn first_nap(number: usize) -> Duration {
    Duration::from_millis(1500) + nap(number, 0)
}
