//! A whole life, created, run and joined: of an OS thread, of a fiber without the pool, of one with it.
//!
//! ```text
//!   one at a time    create ─▶ join ─▶ create ─▶ join ─▶ …             one stack is enough
//!   at once          create ─▶ create ─▶ … ─▶ all have begun ─▶ join all   a stack for each
//! ```
//!
//! The body is the same function for threads and fibers. "Without the pool" is a setting of the product
//! (`sleave::pool::set_limit(Some(0))`), not of this program. Before the clock starts each candidate runs one
//! batch, so that the pool is full where there is one; glibc keeps stacks of threads, too.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use sleave::{Runtime, pool};

use super::Samples;
use super::args::Pool;
use crate::console::{bar, print, say};
use crate::limits;
use crate::report::{grouped, tenths, time};

/// What lives.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Threads,
    FibersWithoutPool,
    FibersWithPool,
}

const MODES: [Mode; 3] = [Mode::Threads, Mode::FibersWithoutPool, Mode::FibersWithPool];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Threads => "OS threads",
            Mode::FibersWithoutPool => "fibers, no pool",
            Mode::FibersWithPool => "fibers, pool",
        }
    }
}

/// How they follow each other.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum Pattern {
    OneAtATime,
    AtOnce,
}

const PATTERNS: [Pattern; 2] = [Pattern::OneAtATime, Pattern::AtOnce];

/// A candidate's figures. The names are an interface: fields may be added, none renamed.
#[derive(Serialize, Clone, Debug)]
struct Row {
    measurement: &'static str,
    mode: Mode,
    pattern: Pattern,
    /// Lives in each round.
    lives: usize,
    /// How many of them at once.
    batch: usize,
    rounds: usize,
    workers: usize,
    /// Nanoseconds for one life.
    median_ns: f64,
    least_ns: f64,
    most_ns: f64,
    /// How many times as long as with the pool.
    ratio_to_pool: f64,
    /// Slots made and used again, in all rounds; 0 for threads.
    made: u64,
    reused: u64,
    #[serde(skip)]
    samples: Samples,
}

/// `sleave bench pool`.
pub fn run(arguments: &Pool) -> io::Result<()> {
    if let Err(why) = sleave::identity() {
        return Err(io::Error::other(format!("fibers are OS threads here, without a pool: {why}")));
    }
    let (lives, rounds) = if arguments.quick { (2_000, 3) } else { (10_000, 9) };
    let (lives, rounds) = (arguments.lives.unwrap_or(lives), arguments.rounds.unwrap_or(rounds));
    let allowed = limits::thread_allowance();
    if arguments.batch > allowed {
        let batch = grouped(arguments.batch as u64);
        return Err(io::Error::other(format!(
            "{batch} threads at once are more than this machine has mappings for: --batch {allowed}"
        )));
    }
    let runtime = Runtime::builder().workers(arguments.workers).build()?;

    let mut rows = Vec::new();
    for pattern in PATTERNS {
        let batch = if pattern == Pattern::AtOnce { arguments.batch.min(lives) } else { 1 };
        for mode in MODES {
            rows.push(Row {
                measurement: "pool",
                mode,
                pattern,
                // Whole batches.
                lives: lives / batch * batch,
                batch,
                rounds,
                workers: arguments.workers,
                median_ns: 0.0,
                least_ns: 0.0,
                most_ns: 0.0,
                ratio_to_pool: 0.0,
                made: 0,
                reused: 0,
                samples: Samples::default(),
            });
        }
    }
    let label = format!("{} lives, {rounds} rounds", grouped(lives as u64));
    let bar = bar((rounds * rows.len()) as u64, &label);
    for _ in 0..rounds {
        for row in &mut rows {
            bar.set_message(format!("{label}: {}", row.mode.name()));
            row.measure(&runtime)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    pool::set_limit(None);
    runtime.stop();

    summarise(&mut rows);
    if arguments.json {
        for row in &rows {
            print(&serde_json::to_string(row).expect("a struct of plain numbers is always JSON"))?;
        }
        return Ok(());
    }
    print(&table(&rows))?;
    say(
        "Median (least to most) of the rounds, for one life; × is the median of the ratios within a round.",
    );
    Ok(())
}

impl Row {
    /// One round.
    fn measure(&mut self, runtime: &Runtime) -> io::Result<()> {
        pool::set_limit((self.mode == Mode::FibersWithoutPool).then_some(0));
        let (lives, batch) = (self.lives, self.batch);
        let measured = match self.mode {
            Mode::Threads => timed(lives, batch, &|body| std::thread::Builder::new().spawn(body)),
            // On a fiber, since that is where fibers are spawned from.
            Mode::FibersWithoutPool | Mode::FibersWithPool => {
                runtime.run(|| timed(lives, batch, &|body| sleave::Builder::new().spawn(body)))
            }
        };
        let Measured { nanoseconds, made, reused } = measured?;
        self.samples.0.push(nanoseconds);
        self.made += made;
        self.reused += reused;
        Ok(())
    }
}

/// A thread's handle or a fiber's.
trait Join {
    fn wait(self);
}

impl Join for std::thread::JoinHandle<()> {
    fn wait(self) {
        self.join().expect("the body does not panic");
    }
}

impl Join for sleave::JoinHandle<()> {
    fn wait(self) {
        self.join().expect("the body does not panic");
    }
}

/// What every life runs.
type Body = Box<dyn FnOnce() + Send>;

struct Measured {
    nanoseconds: f64,
    made: u64,
    reused: u64,
}

/// Runs so many lives after a batch that is not counted.
fn timed<H: Join>(
    lives: usize,
    batch: usize,
    spawn: &dyn Fn(Body) -> io::Result<H>,
) -> io::Result<Measured> {
    live(batch, spawn)?;
    let before = pool::statistics();
    let start = Instant::now();
    for _ in 0..lives / batch {
        live(batch, spawn)?;
    }
    let nanoseconds = start.elapsed().as_nanos() as f64 / lives as f64;
    let after = pool::statistics();
    Ok(Measured {
        nanoseconds,
        made: after.made - before.made,
        reused: after.reused - before.reused,
    })
}

/// One batch, from the first creation to the last join.
fn live<H: Join>(batch: usize, spawn: &dyn Fn(Body) -> io::Result<H>) -> io::Result<()> {
    if batch == 1 {
        spawn(Box::new(|| ()))?.wait();
        return Ok(());
    }
    let meeting = Arc::new(Meeting::of(batch));
    let mut alive = Vec::with_capacity(batch);
    let mut refusal = None;
    while refusal.is_none() && alive.len() < batch {
        let meeting = Arc::clone(&meeting);
        match spawn(Box::new(move || meeting.attend())) {
            Ok(handle) => alive.push(handle),
            Err(error) => refusal = Some(error),
        }
    }
    if refusal.is_some() {
        // Those who wait for the rest shall not do so for ever.
        meeting.expect(alive.len());
    }
    let born = alive.len();
    alive.into_iter().for_each(Join::wait);
    refusal.map_or(Ok(()), |error| {
        let message = format!("{} of {batch} at once, then: {error}", grouped(born as u64));
        Err(io::Error::new(error.kind(), message))
    })
}

/// Where all of a batch wait for each other: a barrier whose number can be lowered.
struct Meeting {
    state: Mutex<State>,
    complete: Condvar,
}

struct State {
    present: usize,
    expected: usize,
}

impl Meeting {
    fn of(expected: usize) -> Meeting {
        let state = Mutex::new(State { present: 0, expected });
        Meeting { state, complete: Condvar::new() }
    }

    fn attend(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.present += 1;
        if state.present >= state.expected {
            self.complete.notify_all();
        }
        let incomplete = |state: &mut State| state.present < state.expected;
        drop(self.complete.wait_while(state, incomplete));
    }

    fn expect(&self, expected: usize) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).expected = expected;
        self.complete.notify_all();
    }
}

/// Fills in what follows from the samples.
fn summarise(rows: &mut [Row]) {
    let pooled: Vec<_> =
        rows.iter().filter(|row| row.mode == Mode::FibersWithPool).cloned().collect();
    for row in rows {
        let samples = &row.samples;
        (row.median_ns, row.least_ns, row.most_ns) =
            (tenths(samples.median()), tenths(samples.least()), tenths(samples.most()));
        let pooled = pooled.iter().find(|pooled| pooled.pattern == row.pattern);
        row.ratio_to_pool =
            pooled.map_or(f64::NAN, |pooled| tenths(samples.ratio_to(&pooled.samples)));
    }
}

/// A line for each candidate, three columns for each pattern.
fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let at_once = rows.iter().map(|row| row.batch).max().unwrap_or(1);
    table.set_header([
        "a whole life".to_owned(),
        "one at a time".to_owned(),
        "least to most".to_owned(),
        "×".to_owned(),
        format!("{} at once", grouped(at_once as u64)),
        "least to most".to_owned(),
        "×".to_owned(),
    ]);
    for mode in MODES {
        let mut cells = vec![mode.name().to_owned()];
        for row in rows.iter().filter(|row| row.mode == mode) {
            let short = |nanoseconds: f64| time(nanoseconds / 1e3);
            cells.push(short(row.median_ns));
            cells.push(format!("{} to {}", short(row.least_ns), short(row.most_ns)));
            cells.push(format!("{:.1}", row.ratio_to_pool));
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
