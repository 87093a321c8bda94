//! What rounds of building, loading and ending runtimes leave behind, and what waits allocate: nothing.
//!
//! An allocator counts the blocks and bytes that are alive, and the blocks that were ever made. A round makes runtimes, keeps them busy with a
//! bit of everything, and ends them: by a stop from a thread or a fiber, by a drop, with fibers that had to be let
//! go first. When the round's threads are gone, the process is asked how much it has of everything:
//!
//! ```text
//!   warm-up │ batch │ batch │ batch │ …        a batch: the same rounds again
//!                   ▲       ▲       ▲
//!              usage of memory, descriptors, mappings, threads
//! ```
//!
//! What the runtime keeps for the next one (cores, processors, slots) is what the busiest moment so far has
//! needed. That moment differs from batch to batch, so a batch may use more than the one before; but a round that
//! loses something makes *every* batch end with more. So the test ends when batches of rounds have left
//! everything where it was, several times; not with the first batch that has used more.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use sleave::Runtime;
use support::kernel::{mappings, os_threads, threads_named};
use support::load::{Census, spawn_all};
use support::random::Random;
use support::timing::eventually;
use support::watchdog::Watchdog;
use support::{Company, Host, LONG_PATIENCE};

/// The system's allocator, and how much of it is in use.
struct Counting {
    /// Ever.
    made: AtomicUsize,
    blocks: AtomicUsize,
    bytes: AtomicUsize,
}

#[global_allocator]
static ALLOCATOR: Counting =
    Counting { made: AtomicUsize::new(0), blocks: AtomicUsize::new(0), bytes: AtomicUsize::new(0) };

// SAFETY: everything is the system's allocator's; `realloc` is the trait's own, by the two below.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's contract.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            // Relaxed, here and below: read when nothing goes on.
            self.made.fetch_add(1, Ordering::Relaxed);
            self.blocks.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(layout.size(), Ordering::Relaxed);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.blocks.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: by the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

/// What the process has of everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Usage {
    blocks: usize,
    bytes: usize,
    descriptors: usize,
    mappings: usize,
    threads: usize,
}

impl Usage {
    fn now() -> Usage {
        Usage {
            blocks: ALLOCATOR.blocks.load(Ordering::Relaxed),
            bytes: ALLOCATOR.bytes.load(Ordering::Relaxed),
            descriptors: fs::read_dir("/proc/self/fd").expect("/proc is mounted").count(),
            mappings: mappings(),
            threads: os_threads(),
        }
    }

    /// The larger of each.
    fn max(self, other: Usage) -> Usage {
        Usage {
            blocks: self.blocks.max(other.blocks),
            bytes: self.bytes.max(other.bytes),
            descriptors: self.descriptors.max(other.descriptors),
            mappings: self.mappings.max(other.mappings),
            threads: self.threads.max(other.threads),
        }
    }
}

const NAME: &str = "leaking";
const ROUNDS: usize = if cfg!(debug_assertions) { 8 } else { 25 };
/// Batches that must leave nothing behind, and after how many there must have been so many.
const QUIET: usize = 3;
const BATCHES: usize = 40;

fn runtime(workers: usize, use_caller: bool) -> Runtime {
    let builder = Runtime::builder().workers(workers).name(NAME);
    let builder = if use_caller { builder.use_caller() } else { builder };
    builder.build().expect("a runtime")
}

/// Makes, loads and ends runtimes of all shapes.
fn round(random: &mut Random) {
    let census = Census::new();
    for workers in support::WORKERS {
        for use_caller in [false, true] {
            let load =
                |runtime: &Runtime, random: &mut Random| spawn_all(runtime, &census, 1, random);
            let stopped = runtime(workers, use_caller);
            load(&stopped, random);
            stopped.stop();
            drop(stopped);

            let asked = runtime(workers, use_caller);
            load(&asked, random);
            asked.run(|| asked.stop());
            asked.stop();
            drop(asked);

            let stubborn = runtime(workers, use_caller);
            load(&stubborn, random);
            let fiber = stubborn.spawn(sleave::park);
            assert!(!stubborn.stop_timeout(Duration::from_millis(1)));
            fiber.fiber().unpark();
            assert!(stubborn.stop_timeout(Duration::MAX));
            // A handle that outlives its runtime, and one that is joined when that is gone.
            let late = fiber.fiber().clone();
            drop(stubborn);
            late.unpark();
            fiber.join().unwrap();

            let dropped = runtime(workers, use_caller);
            load(&dropped, random);
            // With timers pending that never fire, in a runtime that nobody stops.
            for _ in 0..3 {
                let never = sleave::Timer::builder().on(&dropped);
                drop(never.every(Duration::from_secs(1000), |_| ()).unwrap());
            }
            drop(dropped);

            // Nothing was ever asked of this one.
            drop(runtime(workers, use_caller));
        }
    }
    // A thread's panic, a scope, and the runtime that everybody uses.
    sleave::run(|| {
        sleave::scope(|fibers| drop(fibers.spawn(|| thread::sleep(Duration::from_micros(50)))));
        let panics = sleave::spawn(|| std::panic::resume_unwind(Box::new(1)));
        assert!(panics.join().is_err());
    });
    let alone = |census| Arc::strong_count(census) == 1;
    eventually("all have ended", || alone(&census) && threads_named(NAME) == 0);
    census.assert_complete();
}

#[test]
fn rounds_of_building_loading_and_ending_runtimes_leave_nothing_behind() {
    Company::Alone.keep(rounds);
}

fn rounds() {
    let _watchdog = Watchdog::over(Host::Fibers { workers: 4 }, LONG_PATIENCE);
    let mut random = Random::new(11);
    let batch = |random: &mut Random| {
        (0..ROUNDS).for_each(|_| round(random));
        Usage::now()
    };
    let mut most = batch(&mut random);
    let (mut quiet, mut history) = (0, vec![most]);
    while quiet < QUIET {
        let usage = batch(&mut random);
        history.push(usage);
        if usage.max(most) == most {
            quiet += 1;
        }
        most = most.max(usage);
        assert!(history.len() < BATCHES, "each batch leaves something behind: {history:#?}");
    }
}

/// A wait of each kind, ended by another fiber or by its deadline.
fn waits(near: &UnixStream, far: &UnixStream, lock: &(Mutex<()>, Condvar)) {
    const SOON: Duration = Duration::from_micros(100);
    thread::sleep(SOON);
    assert!(!sleave::park_timeout(SOON));
    thread::park_timeout(SOON);
    let held = lock.0.lock().unwrap();
    thread::sleep(SOON);
    lock.1.notify_one();
    drop(lock.1.wait_timeout(held, SOON).unwrap());
    // In turn with the other, who does the same.
    (&mut &*near).write_all(b"x").unwrap();
    (&mut &*far).read_exact(&mut [0]).unwrap();
    let mut nothing = libc::pollfd { fd: near.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
    // SAFETY: poll(2) on one pollfd of ours.
    assert_eq!(unsafe { libc::poll(&mut nothing, 1, 1) }, 0);
}

#[test]
fn waits_allocate_nothing_with_a_deadline_or_without() {
    if sleave::identity().is_err() {
        return;
    }
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let runtime = runtime(1, true);
        runtime.run(|| {
            let (near, far) = UnixStream::pair().unwrap();
            let (back, forth) = UnixStream::pair().unwrap();
            let lock = (Mutex::new(()), Condvar::new());
            let go = |near, far| (0..50).for_each(|_| waits(near, far, &lock));
            sleave::scope(|fibers| {
                let both = || {
                    let other = fibers.spawn(|| go(&near, &forth));
                    go(&back, &far);
                    other.join().unwrap();
                };
                both();
                // Of the round as a whole: the block of the one fiber, and its handle's.
                let made = || ALLOCATOR.made.load(Ordering::Relaxed);
                let before = made();
                both();
                let of_round = made() - before;
                assert!(of_round < 10, "{of_round} blocks for a fiber and hundreds of waits");
            });
        });
        runtime.stop();
    });
}
