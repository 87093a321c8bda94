//! The monitor: one thread that notices what workers cannot notice themselves.
//!
//! * A worker that has been in one fiber for longer than [`PATIENCE`], while others wait for it or
//!   nobody watches the descriptors, is stuck in a call that could not be interposed (a lock
//!   inside libc whose holder is parked, a file, a system call made directly) or computes. It
//!   ceases to count as a worker, and another thread takes its place: its queue and its timers are open to
//!   all anyway. When it moves again it is one too many, and the next to find that out becomes a
//!   spare thread. (A fiber that knows that its call blocks says so itself, see `core::call`.)
//! * A worker that runs many fibers, each for long, is told to look at timers and descriptors in between.
//! * Work lies in a queue while a worker sleeps, because whoever made it runnable computes on.
//! * A runtime whose handle was dropped has run its last fiber: its threads are to be joined.
//! * Slots that no fiber has needed for a while return their memory.
//!
//! It ticks only while some worker is awake: an idle process has no wake-ups, but for one every two seconds
//! until the memory of a burst has been returned, and one after a second, a few more later, if its fibers may be dead-locked (`inspect::deadlock`).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sleave_context::lock::Lock;

use super::core::Core;
use super::processor::Processor;
use super::witness;
use crate::fiber::{AtWork, Space, known_space};
use crate::inspect::{self, Suspicion};
use crate::kernel::{self, OsThread};
use crate::signal;
use crate::wait::Deadline;

/// Bytes of its stack: a report of a dead-lock may name the places of backtraces.
const STACK: usize = 512 << 10;
/// Nanoseconds between two looks.
const TICK: u64 = 5_000_000;
/// Looks in a row at which a worker is in the same fiber, until it counts as stuck.
const PATIENCE: u32 = 2;
/// Nanoseconds between two rounds of returning memory.
const ROUND: u64 = 2_000_000_000;
/// Looks without any worker awake, until the monitor sleeps.
const QUIET: u32 = 4;

/// Runtimes to look after, and what was seen of their processors last time.
static WATCHED: Lock<Vec<Watched>> = Lock::new(Vec::new());

/// 1 while the monitor sleeps; a futex.
static ASLEEP: AtomicU32 = AtomicU32::new(0);

struct Watched {
    core: &'static Core,
    seen: Vec<Seen>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    switches: u64,
    looks: u32,
    /// CPU time of the worker's thread when it was first seen in this fiber.
    cpu: u64,
    /// The call that blocks it.
    call: inspect::Watch,
}

/// Looks after `core` from now on.
pub(super) fn watch(core: &'static Core) {
    static STARTED: AtomicBool = AtomicBool::new(false);
    inspect::tick();
    WATCHED.lock().push(Watched { core, seen: Vec::new() });
    // Relaxed: only one of several may start it.
    if !STARTED.swap(true, Ordering::Relaxed)
        && OsThread::start("sleave-monitor".into(), STACK, monitor).is_err()
    {
        // Without it everything works that does not block; the next runtime tries again.
        STARTED.store(false, Ordering::Relaxed);
    }
}

/// Kicks every worker of every runtime: one that sleeps looks anew at which signals it blocks meanwhile.
pub(crate) fn kick_all() {
    for watched in WATCHED.lock().iter() {
        for processor in watched.core.processors() {
            // Relaxed: a number that leads nowhere does no harm.
            signal::kick(processor.thread.load(Ordering::Relaxed));
        }
    }
}

/// The runtimes that are looked after: all that have not come to their end.
pub(crate) fn watched() -> Vec<&'static Core> {
    let _at_work = AtWork::begin();
    WATCHED.lock().iter().map(|watched| watched.core).collect()
}

/// Looks after `core` no more.
pub(super) fn forget(core: &'static Core) {
    let mut watched = WATCHED.lock();
    if let Some(place) = watched.iter().position(|watched| std::ptr::eq(watched.core, core)) {
        // Its last calls are over.
        look_at_calls(&mut watched.swap_remove(place));
    }
}

/// A worker has been woken, has begun or counts again: the monitor shall look again.
#[inline]
pub(super) fn awake() {
    // SeqCst: the caller has counted itself awake before; the monitor says that it sleeps and then
    // looks at that count. One of the two sees the other.
    if ASLEEP.load(Ordering::SeqCst) != 0 && ASLEEP.swap(0, Ordering::Relaxed) != 0 {
        inspect::tick();
        kernel::futex_wake(ASLEEP.as_ptr() as usize, 1);
    }
}

fn monitor() {
    // Relaxed, both: read by this thread only.
    // Signals are for the program's threads and fibers.
    kernel::set_signal_mask(signal::ALL);
    let never = AtomicU32::new(0);
    let (mut quiet, mut next_round) = (0, kernel::now() + ROUND);
    let mut suspicion = Suspicion::default();
    loop {
        let now = kernel::now();
        if now >= next_round {
            next_round = now + ROUND;
            if let Some(space) = known_space() {
                space.round();
            }
        }
        kernel::futex_wait(&never, 0, Some(now + TICK));
        inspect::tick();
        let mut busy = false;
        let (mut fibers, mut threads) = (0, 0);
        for watched in WATCHED.lock().iter_mut() {
            busy |= look(watched);
            fibers += watched.core.fibers();
            threads += watched.core.live();
        }
        inspect::report::seen(fibers, threads);
        while let Some(core) = orphan() {
            core.join(Deadline::NEVER);
            core.retire();
        }
        quiet = if busy { 0 } else { quiet + 1 };
        if quiet > QUIET {
            quiet = 0;
            // SeqCst: see `awake`.
            ASLEEP.store(1, Ordering::SeqCst);
            if WATCHED.lock().iter().all(|watched| watched.core.is_idle()) && orphan().is_none() {
                let surplus = known_space().is_some_and(Space::has_surplus);
                let suspicious = suspicion.when();
                let until = [surplus.then_some(next_round), suspicious].into_iter().flatten().min();
                kernel::futex_wait(&ASLEEP, 1, until);
                // Relaxed: who gets up clears it, and what is looked at then is looked at twice.
                if suspicious.is_some_and(|at| kernel::now() >= at)
                    && ASLEEP.load(Ordering::Relaxed) == 1
                {
                    suspicion.examine();
                    // Nobody has got up, so there is nothing else to be looked at.
                    quiet = QUIET;
                }
            }
            ASLEEP.store(0, Ordering::Relaxed);
        }
    }
}

/// A runtime whose handle was dropped and whose last fiber has ended.
fn orphan() -> Option<&'static Core> {
    WATCHED.lock().iter().map(|watched| watched.core).find(|core| core.is_orphaned())
}

/// Looks at one runtime; whether any of its workers is awake.
fn look(watched: &mut Watched) -> bool {
    let core = watched.core;
    let processors = core.processors();
    watched.seen.resize(processors.len(), Seen::default());
    let mut waiting = core.has_injected();
    for (processor, seen) in processors.iter().zip(&mut watched.seen) {
        waiting |= processor.queue.len() > 0;
        // Relaxed: a hint.
        processor.overdue.store(true, Ordering::Relaxed);
        signal::kick_again(processor);
        // Relaxed, all: compared with what was read a tick ago.
        let switches = processor.switches.load(Ordering::Relaxed);
        let idle = processor.running.load(Ordering::Relaxed).is_null();
        // One that is in a call already is looked at anew when it counts again.
        if idle || switches != seen.switches || processor.blocked.load(Ordering::Relaxed) {
            *seen = Seen { switches, looks: 0, cpu: 0, call: seen.call };
        } else {
            seen.looks = seen.looks.saturating_add(1);
        }
    }
    let unwatched = !core.someone_sleeps();
    for (processor, seen) in processors.iter().zip(&mut watched.seen) {
        if seen.looks >= PATIENCE && unwatched && is_stuck(processor, seen) {
            core.block(processor);
        }
    }
    look_at_calls(watched);
    if waiting || core.is_deserted() {
        core.notify();
    }
    !core.is_idle()
}

/// Records what blocks its workers.
fn look_at_calls(watched: &mut Watched) {
    for (processor, seen) in watched.core.processors().iter().zip(&mut watched.seen) {
        seen.call.look(processor);
    }
}

/// Whether the worker of `processor`, in one fiber for a while, will stay there: it sleeps in a
/// call, or it computes. One that merely waits for a CPU among other threads does neither; another
/// thread would only wait beside it.
fn is_stuck(processor: &Processor, seen: &mut Seen) -> bool {
    // Relaxed: a number that leads nowhere is found out below.
    let thread = processor.thread.load(Ordering::Relaxed);
    let Some(cpu) = kernel::cpu_time(thread) else { return false };
    if seen.cpu == 0 {
        seen.cpu = cpu;
    }
    cpu - seen.cpu >= u64::from(PATIENCE) * TICK || !witness::is_runnable(thread)
}
