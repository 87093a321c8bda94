//! A day's worth of events in as many minutes as there are: fibers are spawned, joined, let go, moved, woken, timed,
//! closed under, panicked, by the million, and at the end nothing is missing and nothing is left over.
//!
//! Some hundreds of actors each draw one small operation after the other from a generator of their own, until all together
//! have made as many **events** as asked for. Every operation knows what must come out of it, and checks it there and then.
//!
//! ```text
//!   live values   0 at the end           children   as many ended as spawned
//!   descriptors   as before              slots      a fiber that nobody joined is gone as well
//!   memory        the second half of the run needs no more than the first, within reason
//! ```
//!
//! The seed is printed and `SLEAVE_SOAK_SEED` runs it again: each actor draws the same operations (what happens
//! between them is up to the machine). `SLEAVE_SOAK_EVENTS` says how many events; a watchdog reports a run that does
//! not go on any more.
//!
//! ```text
//!   SLEAVE_SOAK_EVENTS=100000000 cargo test --release -p sleave --test soak -- --nocapture
//! ```

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
mod support;

use std::cell::Cell;
use std::env;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave::{JoinHandle, Runtime};
use support::LONG_PATIENCE;
use support::kernel::say;
use support::random::{Random, fresh_seed};

/// Events of a run that nobody has asked to be longer, over all sizes of runtime.
const EVENTS: u64 = if cfg!(debug_assertions) { 600_000 } else { 30_000_000 };
const ACTORS: usize = 300;
/// Locks that all actors contend for.
const LOCKS: usize = 16;

thread_local! {
    static OPERATIONS: Cell<u64> = const { Cell::new(0) };
    static LAST_WORDS: Cell<Option<Value>> = const { Cell::new(None) };
}

/// Counts the values that are alive.
struct Value(Arc<AtomicUsize>);

impl Value {
    fn new(world: &World) -> Value {
        // Relaxed, here and below: counters that are read when nobody changes them any more.
        world.live.fetch_add(1, Ordering::Relaxed);
        Value(Arc::clone(&world.live))
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all actors share.
struct World {
    workers: usize,
    /// Events to come; below zero when there have been enough.
    wanted: u64,
    events: AtomicU64,
    live: Arc<AtomicUsize>,
    begun: AtomicU64,
    ended: AtomicU64,
    /// Each holds how often it was taken, under its lock and beside it.
    locks: [(parking_lot::Mutex<u64>, AtomicU64); LOCKS],
    turn: (Mutex<u64>, Condvar),
}

impl World {
    fn new(workers: usize, wanted: u64) -> Arc<World> {
        Arc::new(World {
            workers,
            wanted,
            events: AtomicU64::new(0),
            live: Arc::default(),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            locks: Default::default(),
            turn: Default::default(),
        })
    }

    fn is_over(&self) -> bool {
        self.events.load(Ordering::Relaxed) >= self.wanted
    }

    /// A child of the calling fiber, in its runtime. It holds a value, and leaves one in a thread-local.
    fn child<T: Send + 'static>(
        self: &Arc<World>,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        struct Ends(Arc<World>);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.ended.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.begun.fetch_add(1, Ordering::Relaxed);
        let (value, ends) = (Value::new(self), Ends(Arc::clone(self)));
        sleave::spawn(move || {
            let _ends = ends;
            LAST_WORDS.set(Some(value));
            f()
        })
    }
}

/// One small thing that fibers do; how many events that were.
type Operation = fn(&Arc<World>, &mut Random) -> u64;

/// Operations, and how often each is drawn.
const OPERATIONS_BY_WEIGHT: &[(usize, Operation)] = &[
    (20, yields),
    (14, joins),
    (6, lets_go),
    (8, moves),
    (8, talks),
    (12, locks),
    (5, takes_turns),
    (4, sleeps),
    (4, shuts_down),
    (4, panics),
    (3, scopes),
    (1, computes),
    (4, cancels),
    (4, limits),
];

fn yields(_: &Arc<World>, random: &mut Random) -> u64 {
    let count = random.within(1..64);
    (0..count).for_each(|_| sleave::yield_now());
    count as u64
}

/// Children that are joined in any order, some of whom panic.
fn joins(world: &Arc<World>, random: &mut Random) -> u64 {
    let mut children: Vec<_> = (0..random.within(1..24))
        .map(|_| {
            let (number, fate) = (random.next(), random.within(0..12));
            let value = Value::new(world);
            let child = world.child(move || match fate {
                0 => resume_unwind(Box::new((number, value))),
                1 | 2 => {
                    sleave::yield_now();
                    (number, value)
                }
                _ => (number, value),
            });
            (number, fate, child)
        })
        .collect();
    let count = 2 * children.len() as u64;
    while !children.is_empty() {
        let (number, fate, child) = children.swap_remove(random.within(0..children.len()));
        let (said, _value) = match child.join() {
            Ok(said) => said,
            Err(payload) => {
                assert_eq!(fate, 0, "a child that panicked without being told to");
                *payload.downcast::<(u64, Value)>().expect("the child's own payload")
            }
        };
        assert_eq!(said, number, "another's result");
    }
    count
}

/// Children whom nobody joins.
fn lets_go(world: &Arc<World>, random: &mut Random) -> u64 {
    let count = random.within(1..8);
    for _ in 0..count {
        let long = random.within(0..4) == 0;
        drop(world.child(move || {
            if long {
                thread::sleep(Duration::from_micros(200));
            }
        }));
    }
    count as u64
}

/// From worker to worker, on purpose and by being taken along.
fn moves(world: &Arc<World>, random: &mut Random) -> u64 {
    let count = random.within(1..6);
    for _ in 0..count {
        let worker = random.within(0..world.workers);
        sleave::pin(worker).expect("a worker that there is");
        assert_eq!(sleave::worker(), Some(worker));
        sleave::yield_now();
        assert_eq!(sleave::worker(), Some(worker), "a pinned fiber has moved");
    }
    sleave::unpin();
    count as u64
}

/// With a child through channels, one of which may hold nothing.
fn talks(world: &Arc<World>, random: &mut Random) -> u64 {
    let rounds = random.within(1..40) as u64;
    let (ask, asked) = mpsc::sync_channel::<u64>(random.within(0..2));
    let (answer, answered) = crossbeam_channel::bounded::<u64>(random.within(0..2));
    let child = world.child(move || {
        for question in asked {
            if answer.send(question.wrapping_mul(3)).is_err() {
                return;
            }
        }
    });
    for round in 0..rounds {
        ask.send(round).expect("the child listens");
        assert_eq!(answered.recv(), Ok(round.wrapping_mul(3)));
    }
    drop(ask);
    child.join().unwrap();
    2 * rounds
}

/// Two of few locks, in order; a guard may be held over a wait.
fn locks(world: &Arc<World>, random: &mut Random) -> u64 {
    let count = random.within(1..16);
    for _ in 0..count {
        let (one, other) = (random.within(0..LOCKS), random.within(0..LOCKS));
        let (low, high) = (one.min(other), one.max(other));
        let mut first = world.locks[low].0.lock();
        *first += 1;
        world.locks[low].1.fetch_add(1, Ordering::Relaxed);
        if random.within(0..8) == 0 {
            sleave::yield_now();
        }
        if low != high {
            *world.locks[high].0.lock() += 1;
            world.locks[high].1.fetch_add(1, Ordering::Relaxed);
        }
    }
    count as u64
}

/// A condition that everybody waits for with a limit, and that everybody meets.
fn takes_turns(world: &Arc<World>, random: &mut Random) -> u64 {
    let (turn, changed) = &world.turn;
    let mut now = turn.lock().unwrap();
    if random.within(0..2) == 0 {
        *now += 1;
        drop(now);
        changed.notify_all();
    } else {
        let seen = *now;
        let limit = Duration::from_micros(random.within(1..2000) as u64);
        let begin = Instant::now();
        let (now, late) = changed.wait_timeout_while(now, limit, |now| *now == seen).unwrap();
        assert!(*now != seen || late.timed_out());
        assert!(!late.timed_out() || begin.elapsed() >= limit, "too early");
    }
    1
}

fn sleeps(_: &Arc<World>, random: &mut Random) -> u64 {
    let asked = Duration::from_micros(random.within(0..3000) as u64);
    let begin = Instant::now();
    match random.within(0..3) {
        0 => thread::sleep(asked),
        1 => assert!(!sleave::park_timeout(asked), "a token from nowhere"),
        _ => {
            let called = Arc::new(AtomicBool::new(false));
            let timer = sleave::Timer::after(asked, {
                let called = Arc::clone(&called);
                move || called.store(true, Ordering::Relaxed)
            });
            if random.within(0..2) == 0 {
                timer.cancel();
            } else {
                while !called.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_micros(100));
                }
            }
            return 2;
        }
    }
    assert!(begin.elapsed() >= asked, "too early");
    1
}

/// A connection that ends while a child reads from it.
fn shuts_down(world: &Arc<World>, random: &mut Random) -> u64 {
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let count = random.within(0..4096);
    let child = world.child(move || {
        let mut all = Vec::new();
        far.read_to_end(&mut all).unwrap();
        all.len()
    });
    if random.within(0..2) == 0 {
        sleave::yield_now();
    }
    near.write_all(&vec![7; count]).unwrap();
    match random.within(0..2) {
        0 => drop(near),
        _ => near.shutdown(Shutdown::Both).unwrap(),
    }
    assert_eq!(child.join().unwrap(), count);
    3
}

/// Through frames that hold something, over a wait.
fn panics(world: &Arc<World>, random: &mut Random) -> u64 {
    fn down(world: &World, depth: usize) {
        let _value = Value::new(world);
        if depth == 0 {
            resume_unwind(Box::new("the bottom"));
        }
        if depth.is_multiple_of(3) {
            sleave::yield_now();
        }
        down(world, depth - 1);
    }
    let depth = random.within(0..12);
    let payload = catch_unwind(AssertUnwindSafe(|| down(world, depth))).unwrap_err();
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"the bottom"));
    1
}

/// Children that borrow.
fn scopes(_: &Arc<World>, random: &mut Random) -> u64 {
    let mut numbers: Vec<u64> = (0..random.within(1..16) as u64).collect();
    sleave::scope(|scope| {
        for number in &mut numbers {
            scope.spawn(move || *number += 1);
        }
    });
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64));
    numbers.len() as u64
}

/// Longer than a monitor likes.
fn computes(_: &Arc<World>, random: &mut Random) -> u64 {
    if random.within(0..50) != 0 {
        return 1;
    }
    let begin = Instant::now();
    let (mut sum, mut product) = (0u64, 1.0f64);
    while begin.elapsed() < Duration::from_millis(15) {
        for i in 1..=1000u64 {
            sum = sum.wrapping_add(i);
            product *= 1.0 + 1.0 / i as f64;
        }
        // The product telescopes to 1001.
        assert!((product - 1001.0).abs() < 1e-6, "{product}");
        assert_eq!(sum % 500_500, 0);
        product = 1.0;
    }
    1
}

/// A child that waits for ever in one way or another, and is told not to.
fn cancels(world: &Arc<World>, random: &mut Random) -> u64 {
    let (value, how) = (Value::new(world), random.within(0..4));
    let child = world.child(move || {
        let _value = value;
        match how {
            0 => sleave::park(),
            1 => thread::sleep(Duration::from_secs(3600)),
            2 => {
                let (mut near, _far) = UnixStream::pair().unwrap();
                near.read_exact(&mut [0]).expect_err("nobody writes");
            }
            _ => loop {
                sleave::yield_now();
            },
        }
    });
    (0..random.within(0..3)).for_each(|_| sleave::yield_now());
    child.cancel();
    match child.join() {
        // A sleep is over, a call has failed.
        Ok(()) => assert!(how == 1 || how == 2),
        Err(payload) => assert!(payload.is::<sleave::Cancelled>()),
    }
    2
}

/// Work that has less time than it wants, or more.
fn limits(_: &Arc<World>, random: &mut Random) -> u64 {
    let limit = Duration::from_micros(random.within(0..2000) as u64);
    let begin = Instant::now();
    if random.within(0..2) == 0 {
        assert!(sleave::timeout(limit, sleave::park).is_err());
        assert!(begin.elapsed() >= limit, "too early");
    } else {
        let number = random.next();
        assert_eq!(sleave::timeout(Duration::from_secs(3600), || number), Ok(number));
    }
    1
}

/// One actor's life.
fn act(world: &Arc<World>, mut random: Random) {
    let all: usize = OPERATIONS_BY_WEIGHT.iter().map(|(weight, _)| weight).sum();
    let mut done = 0;
    while !world.is_over() {
        let mut drawn = random.within(0..all);
        let (_, operation) = OPERATIONS_BY_WEIGHT
            .iter()
            .find(|(weight, _)| {
                let found = drawn < *weight;
                drawn = drawn.wrapping_sub(*weight);
                found
            })
            .expect("less than all weights");
        let events = operation(world, &mut random);
        world.events.fetch_add(events, Ordering::Relaxed);
        done += 1;
        OPERATIONS.set(OPERATIONS.get() + 1);
        assert_eq!(OPERATIONS.get(), done, "a thread-local lost count");
    }
}

/// Bytes of memory that the process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages: u64 =
        statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

/// Watches the count of events; says how it goes, and remembers the memory at half time.
fn watch(world: &World, over: &AtomicBool, loud: bool) -> u64 {
    let (mut half_time, mut last, mut since) = (0, 0, Instant::now());
    let mut told = Instant::now();
    while !over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(50));
        let events = world.events.load(Ordering::Relaxed);
        if events >= world.wanted / 2 && half_time == 0 {
            half_time = resident();
        }
        if events != last {
            (last, since) = (events, Instant::now());
        }
        if since.elapsed() > LONG_PATIENCE {
            say(&format!("soak: nothing has happened for {:?}\n", since.elapsed()));
            std::process::abort();
        }
        if loud && told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let percent = 100.0 * events as f64 / world.wanted as f64;
            say(&format!("soak: {events} events, {percent:.0} %, {} MiB\n", resident() >> 20));
        }
    }
    half_time
}

fn soak(workers: usize, wanted: u64, seed: u64, loud: bool) {
    let before = descriptors();
    let runtime = Runtime::builder().workers(workers).build().unwrap();
    let world = World::new(workers, wanted);
    let over = Arc::new(AtomicBool::new(false));
    let watcher = thread::spawn({
        let (world, over) = (Arc::clone(&world), Arc::clone(&over));
        move || watch(&world, &over, loud)
    });
    let mut random = Random::new(seed);
    let actors: Vec<_> = (0..ACTORS)
        .map(|_| {
            let (world, random) = (Arc::clone(&world), random.split());
            runtime.spawn(move || act(&world, random))
        })
        .collect();
    let outcomes: Vec<_> = actors.into_iter().map(JoinHandle::join).collect();
    runtime.stop();
    over.store(true, Ordering::Relaxed);
    let half_time = watcher.join().unwrap();
    outcomes
        .into_iter()
        .for_each(|outcome| outcome.unwrap_or_else(|payload| resume_unwind(payload)));

    assert_eq!(
        world.ended.load(Ordering::Relaxed),
        world.begun.load(Ordering::Relaxed),
        "children"
    );
    assert_eq!(world.live.load(Ordering::Relaxed), 0, "values that were never dropped");
    for (under, beside) in &world.locks {
        assert_eq!(*under.lock(), beside.load(Ordering::Relaxed), "a lock that did not exclude");
    }
    let end = resident();
    assert!(end < half_time * 2 + (64 << 20), "{half_time} B at half time, {end} B at the end");
    let now = descriptors();
    // A runtime that is used again keeps its own.
    assert!(now <= before + 16, "{before} descriptors before, {now} after");
}

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}

#[test]
fn events_by_the_million_lose_nothing() {
    let wanted = number("SLEAVE_SOAK_EVENTS");
    let seed = number("SLEAVE_SOAK_SEED").unwrap_or_else(fresh_seed);
    // Past libtest's capture, so that it is known also when the process is ended.
    say(&format!("soak: SLEAVE_SOAK_SEED={seed}\n"));
    for workers in support::WORKERS {
        let share = wanted.unwrap_or(EVENTS) / support::WORKERS.len() as u64;
        let begin = Instant::now();
        soak(workers, share, seed, wanted.is_some());
        say(&format!("soak: {share} events on {workers} worker(s) in {:.1?}\n", begin.elapsed()));
    }
}
