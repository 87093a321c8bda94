//! The core of one runtime: its processors and what its workers share.
//!
//! Cores are never freed, only used again by the next runtime: whoever wakes a fiber may still be
//! about to ring for a worker when that fiber has long ended and its runtime has stopped. A late
//! ring at a core is harmless; at freed memory it would not be.
//!
//! Here is how work comes in and how workers find it. Beside it: `staff` (who works), `call` (who is in a call), `time` (wheels and
//! the alarm), `hunger` (who has no stack yet), `end` (how it stops), `statistics`.

mod call;
mod end;
mod hunger;
mod staff;
mod statistics;
mod time;

pub use call::Call;
pub(crate) use call::Outcome;
pub(crate) use end::stopped;
pub use statistics::Statistics;

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicBool, AtomicIsize, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

use sleave_context::lock::Lock;

use super::bell::Bell;
use super::injector::Injector;
use super::mail::Mail;
use super::monitor;
use super::processor::Processor;
use super::seat::Seat;
use crate::fiber::Runnable;
use crate::green;
use crate::inspect::Deadlock;
use crate::kernel;
use crate::reactor::Driver;
use crate::signal;
use crate::wait::timer::Wheel;
use crate::wait::{Batch, Timeouts};
use staff::Staff;

/// The most processors of a runtime, those of workers stuck in calls included.
const MOST_PROCESSORS: usize = 512;

/// Bytes of a worker's own stack: it runs the scheduler, never a program's code.
const WORKER_STACK: usize = 256 << 10;

/// What is chosen for a runtime when it is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many workers run fibers at the same time.
    pub workers: usize,
    /// One of them is whoever is inside `run` or `stop`.
    pub use_caller: bool,
    /// Bytes of a fiber's slot unless its spawner says otherwise.
    pub slot: usize,
    /// What a fiber begins with unless its spawner says otherwise.
    pub timeouts: Timeouts,
    /// What is done when no fiber can run any more.
    pub deadlock: Deadlock,
    /// How many fibers there may be.
    pub most: usize,
    /// The workers' names begin with this.
    pub name: String,
}

/// Tells the runtimes apart that have one and the same core, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Term(u64);

pub(crate) struct Core {
    term: AtomicU64,
    /// All there ever were, in the order of their numbers. Written by `new`, which has the core for itself.
    seats: UnsafeCell<Vec<&'static Seat>>,
    /// How many of `seats` the runtime has: one for each worker.
    workers: AtomicUsize,
    slot: AtomicUsize,
    /// How many fibers there may be.
    most: AtomicUsize,
    /// All its fibers are to stop.
    cancelled: AtomicBool,
    /// The signals that were blocked where the runtime was made: so they are in each of its workers, whoever starts it.
    signals: AtomicU64,
    wait_timeout: AtomicU64,
    connect_timeout: AtomicU64,
    deadlock: AtomicU8,
    name: Lock<String>,

    processors: Box<[UnsafeCell<MaybeUninit<&'static Processor>>]>,
    /// How many of `processors` exist.
    count: AtomicUsize,
    staff: Lock<Staff>,
    /// `staff.live - staff.blocked`, for reading without the lock.
    active: AtomicUsize,
    /// `staff.room()`, likewise.
    room: AtomicIsize,

    pub(super) injector: Injector,
    pub(super) mail: Mail,
    pub(crate) driver: Driver,
    /// Timers that were started from outside, see `time`.
    timers: Wheel,
    /// Fibers that found no memory for their stacks, see `hunger`.
    starving: Injector,
    /// The size of the least slot that was not to be had for one of them.
    hunger: AtomicUsize,
    /// When one of them is to be tried again, in nanoseconds.
    next_meal: AtomicU64,
    /// Workers that look for work, or are about to. See the essay in `mod.rs`.
    searching: AtomicUsize,
    /// Workers that sleep in the driver, or are about to.
    sleeping: AtomicUsize,

    /// Fibers spawned and not ended, and who keeps the runtime beside them, see `end`.
    fibers: AtomicUsize,
    /// The handle does not count any more.
    released: AtomicBool,
    /// It has been dropped before the end.
    orphaned: AtomicBool,
    /// Workers shall go.
    stopped: AtomicU32,
    /// 1 when the last fiber has ended and all has been said; a futex.
    ended: AtomicU32,
    /// Somebody joins the threads.
    joining: AtomicBool,
    /// 1 when all are gone; a futex.
    joined: AtomicU32,
    /// Counts calls for spare threads; a futex.
    calls: AtomicU32,
    /// Counts what callers that wait for their turn want to know of; a futex.
    turns: AtomicU32,
    /// Counts calls that have returned while others waited to be made; a futex, for fibers.
    returns: AtomicU32,
}

// SAFETY: `processors` is written below `count` only before `count` says so, under the lock of
// `staff`; `seats` by `new` alone; everything else is made to be shared.
unsafe impl Sync for Core {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Core {}

/// Cores of runtimes that have stopped.
static RETIRED: Lock<Vec<&'static Core>> = Lock::new(Vec::new());

impl Core {
    /// How long a worker runs fibers of its queue before it looks at descriptors, timers and
    /// injector, in nanoseconds.
    pub(super) const LOOK_EVERY: u64 = 50_000;

    /// A core for a new runtime.
    ///
    /// # Errors
    /// What epoll_create1(2), eventfd(2) and timerfd_create(2) say.
    pub(crate) fn new(options: Options) -> io::Result<&'static Core> {
        let retired = RETIRED.lock().pop();
        let core = match retired {
            Some(core) => core,
            None => Box::leak(Box::new(Core {
                term: AtomicU64::new(0),
                seats: UnsafeCell::new(Vec::new()),
                workers: AtomicUsize::new(0),
                slot: AtomicUsize::new(0),
                most: AtomicUsize::new(usize::MAX),
                cancelled: AtomicBool::new(false),
                signals: AtomicU64::new(0),
                wait_timeout: AtomicU64::new(0),
                connect_timeout: AtomicU64::new(0),
                deadlock: AtomicU8::new(0),
                name: Lock::new(String::new()),
                processors: (0..MOST_PROCESSORS)
                    .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
                    .collect(),
                count: AtomicUsize::new(0),
                staff: Lock::new(Staff::default()),
                active: AtomicUsize::new(0),
                room: AtomicIsize::new(0),
                injector: Injector::new(),
                mail: Mail::new(),
                driver: Driver::new()?,
                timers: Wheel::new(kernel::now()),
                starving: Injector::new(),
                hunger: AtomicUsize::new(usize::MAX),
                next_meal: AtomicU64::new(0),
                searching: AtomicUsize::new(0),
                sleeping: AtomicUsize::new(0),
                fibers: AtomicUsize::new(0),
                released: AtomicBool::new(false),
                orphaned: AtomicBool::new(false),
                ended: AtomicU32::new(0),
                stopped: AtomicU32::new(0),
                joining: AtomicBool::new(false),
                joined: AtomicU32::new(0),
                calls: AtomicU32::new(0),
                turns: AtomicU32::new(0),
                returns: AtomicU32::new(0),
            })),
        };
        // SAFETY: nobody else has the core yet. Who was late to wake a fiber of the one before has no business
        // with its seats any more: what is pinned keeps a runtime going.
        let seats = unsafe { &mut *core.seats.get() };
        for number in seats.len()..options.workers {
            let number = u8::try_from(number).expect("a runtime has 256 workers at most");
            seats.push(Box::leak(Box::new(Seat::new(number))));
        }
        for seat in seats.iter() {
            seat.bind(false);
        }
        // Relaxed, all: nobody else has the core yet; the first spawn publishes it.
        core.term.fetch_add(1, Ordering::Relaxed);
        core.workers.store(options.workers, Ordering::Relaxed);
        core.open_staff(options.workers, options.use_caller);
        core.slot.store(options.slot, Ordering::Relaxed);
        core.signals.store(kernel::signal_mask(), Ordering::Relaxed);
        core.cancelled.store(false, Ordering::Relaxed);
        core.most.store(options.most, Ordering::Relaxed);
        core.wait_timeout.store(options.timeouts.wait, Ordering::Relaxed);
        core.connect_timeout.store(options.timeouts.connect, Ordering::Relaxed);
        core.deadlock.store(options.deadlock as u8, Ordering::Relaxed);
        core.fibers.store(end::KEEPER, Ordering::Relaxed);
        core.released.store(false, Ordering::Relaxed);
        core.orphaned.store(false, Ordering::Relaxed);
        core.ended.store(0, Ordering::Relaxed);
        core.stopped.store(0, Ordering::Relaxed);
        core.joining.store(false, Ordering::Relaxed);
        core.joined.store(0, Ordering::Relaxed);
        *core.name.lock() = options.name;
        monitor::watch(core);
        Ok(core)
    }

    /// Which of the runtimes that have had this core has it now.
    pub(crate) fn term(&self) -> Term {
        // Relaxed: the caller has a runtime that has the core, or has kept it from its end.
        Term(self.term.load(Ordering::Relaxed))
    }

    /// What is done when no fiber can run any more.
    pub(crate) fn deadlock(&self) -> Deadlock {
        // Relaxed: set before the core is shared.
        Deadlock::from_number(self.deadlock.load(Ordering::Relaxed))
    }

    /// Bytes of the usual slot.
    pub(crate) fn slot_size(&self) -> usize {
        // Relaxed, here and in the next two: set before the core is shared.
        self.slot.load(Ordering::Relaxed)
    }

    /// What a fiber begins with unless its spawner says otherwise.
    pub(crate) fn timeouts(&self) -> Timeouts {
        Timeouts {
            wait: self.wait_timeout.load(Ordering::Relaxed),
            connect: self.connect_timeout.load(Ordering::Relaxed),
        }
    }

    /// One seat for each worker.
    pub(crate) fn seats(&self) -> &[&'static Seat] {
        // SAFETY: written by `new` only, before the core is shared.
        let all = unsafe { &*self.seats.get() };
        &all[..self.workers.load(Ordering::Relaxed)]
    }

    /// The processors there are, in use or not.
    pub(crate) fn processors(&self) -> &[&'static Processor] {
        // Acquire pairs with the Release in `make_processor`.
        let count = self.count.load(Ordering::Acquire);
        let all: *const UnsafeCell<MaybeUninit<&'static Processor>> = self.processors.as_ptr();
        // SAFETY: the first `count` are written and never change; both wrappers are transparent.
        unsafe { std::slice::from_raw_parts(all.cast(), count) }
    }

    /// The signals that a fiber of this runtime blocks if its creator did not say.
    pub(crate) fn usual_mask(&self) -> u64 {
        // Relaxed: set before the core is shared.
        self.signals.load(Ordering::Relaxed)
    }

    // ---- work comes in ----

    /// Queues what comes from outside of this runtime's workers.
    pub(crate) fn inject(&self, batch: Batch) {
        self.injector.push(batch);
        self.notify();
    }

    /// As [`Core::inject`], for one fiber and for callers who may have interrupted anything: takes
    /// no lock, and starts no worker.
    pub(super) fn post(&self, runnable: NonNull<Runnable>) {
        self.mail.leave(runnable);
        // SeqCst, all: as in `notify`. If nobody sleeps, every worker looks here before it does; if
        // all are stuck in calls, the monitor starts another.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0
            && self.searching.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            // Should the sleeper have got up meanwhile, the ring waits for the next, who is then
            // the one who searches.
            self.driver.ring();
        }
    }

    /// Queues what is pinned to the worker of `seat`.
    #[cold]
    pub(super) fn give_pinned(&self, seat: u8, runnable: NonNull<Runnable>) {
        self.seats()[usize::from(seat)].give(runnable, &self.driver);
    }

    /// Tells a worker that there is work, if one is free to do it.
    pub(super) fn notify(&self) {
        loop {
            // SeqCst: (2) of the essay in `mod.rs`.
            fence(Ordering::SeqCst);
            // Relaxed: ordered by the fence.
            if self.searching.load(Ordering::Relaxed) != 0
                || (self.sleeping.load(Ordering::Relaxed) == 0 && self.room() <= 0)
            {
                return;
            }
            // SeqCst: the count is part of the essay's argument.
            if self.searching.compare_exchange(0, 1, Ordering::SeqCst, Ordering::Relaxed).is_err() {
                return;
            }
            if self.sleeping.load(Ordering::SeqCst) > 0 {
                return self.driver.ring();
            }
            if self.start_worker().is_ok() {
                return;
            }
            self.searching.fetch_sub(1, Ordering::SeqCst);
            // Others may have relied on the searcher that there was not to be. Who goes to
            // sleep after this look sees their work itself.
            if self.sleeping.load(Ordering::SeqCst) == 0 {
                return;
            }
        }
    }

    pub(super) fn someone_sleeps(&self) -> bool {
        // Relaxed: the caller has made a fence.
        self.sleeping.load(Ordering::Relaxed) > 0
    }

    pub(super) fn active(&self) -> usize {
        // Relaxed: a hint; decisions are made under the lock.
        self.active.load(Ordering::Relaxed)
    }

    /// How many workers more there may be; negative if there are too many.
    pub(super) fn room(&self) -> isize {
        // Relaxed: as above.
        self.room.load(Ordering::Relaxed)
    }

    /// Whether every worker sleeps.
    pub(crate) fn is_idle(&self) -> bool {
        // SeqCst, both: the monitor looks here after it has said that it sleeps, see
        // `monitor::awake`.
        let active = self.active.load(Ordering::SeqCst);
        // What only a caller can run waits for one, and nobody has to look after it.
        let waits_for_caller = active == 0 && self.room() <= 0;
        self.sleeping.load(Ordering::SeqCst) >= active
            && (!self.has_injected() || waits_for_caller)
            && !self.is_deserted()
    }

    pub(super) fn has_injected(&self) -> bool {
        self.injector.len() > 0 || !self.mail.is_empty()
    }

    // ---- a worker looks for work ----

    pub(super) fn start_searching(&self, processor: &Processor) {
        if !processor.searching.replace(true) {
            // SeqCst: as in `notify`.
            self.searching.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The worker searches no longer; returns whether it was the last that did.
    pub(super) fn stop_searching(&self, processor: &Processor) -> bool {
        // SeqCst: as in `notify`.
        processor.searching.replace(false) && self.searching.fetch_sub(1, Ordering::SeqCst) == 1
    }

    /// The worker has found something to run.
    pub(super) fn found(&self, processor: &Processor) {
        if self.stop_searching(processor) {
            // There may be more where that came from, and whoever made more elsewhere has seen
            // this worker search and left it to it. SeqCst: as (b) of the essay.
            fence(Ordering::SeqCst);
            if self.has_work() {
                self.notify();
            }
        }
    }

    /// Whether something lies in a queue.
    fn has_work(&self) -> bool {
        self.has_injected() || self.processors().iter().any(|p| p.queue.len() > 0)
    }

    /// Collects events of the driver into the processor's queue, after sleeping until there is one if
    /// `block`.
    pub(super) fn poll(&self, processor: &Processor, block: bool, mask: Option<&u64>) {
        let mut woken = Batch::new();
        let collected = self.driver.poll(block, mask, &mut woken);
        if collected.rung && processor.searching.replace(true) {
            // Whoever rang has counted one more searcher than there is.
            self.searching.fetch_sub(1, Ordering::SeqCst);
        }
        if collected.alarmed {
            // Fired before any of it runs: those who sleep on rely on the next alarm, and what
            // runs here may compute for long.
            woken.append(self.due(kernel::now()));
            // SeqCst: whoever counts itself later than this load arms the alarm itself. The
            // caller is still counted if it has slept, and does so as well when it sleeps again.
            if self.sleeping.load(Ordering::SeqCst) > usize::from(block) {
                self.arm();
            }
        }
        if woken.first.is_some() {
            super::schedule(woken);
        }
    }

    /// Sleeps until there is something to do.
    pub(super) fn sleep(
        &self,
        processor: &'static Processor,
        done: &dyn Fn() -> bool,
        bell: Option<&Bell>,
    ) {
        let bells = [bell, processor.seat().map(|seat| &seat.bell)];
        // A caller is one of the program's threads. A worker of our own that idles is not: signals for the process are
        // for those, or for fibers that run; for anybody, if the first thread is gone.
        let mask = match bell {
            Some(_) => {
                processor.follow_usual_mask();
                None
            }
            None if green::is_main_gone() => Some(self.usual_mask()),
            None => {
                // Not only while it sleeps: what wakes it may be a signalfd, whose signal is somebody's to read.
                if signal::masks_differ() {
                    processor.follow_mask(signal::ALL);
                }
                Some(signal::ALL)
            }
        };
        // (a) of the essay in `mod.rs`.
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        self.stop_searching(processor);
        // (b)
        fence(Ordering::SeqCst);
        // (c)
        if !self.has_work() && !done() && self.lies_down(&bells) {
            self.arm();
            // (d)
            self.poll(processor, true, mask.as_ref());
            self.gets_up(&bells);
        }
        // SeqCst: before the look in `awake`.
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        monitor::awake();
    }

    /// Whether the caller, who is called by `bells`, has not been called.
    fn lies_down(&self, bells: &[Option<&Bell>]) -> bool {
        let called = bells.iter().position(|bell| !bell.is_none_or(Bell::lies_down));
        if let Some(called) = called {
            self.gets_up(&bells[..called]);
        }
        called.is_none()
    }

    fn gets_up(&self, bells: &[Option<&Bell>]) {
        for bell in bells.iter().flatten() {
            if bell.gets_up() {
                self.driver.await_bell();
            }
        }
    }

    /// One more processor. The caller has the lock of `staff`.
    fn make_processor(&self) -> &'static Processor {
        // Relaxed: written under the lock.
        let index = self.count.load(Ordering::Relaxed);
        assert!(index < MOST_PROCESSORS, "more workers than processors");
        let processor: &'static Processor =
            Box::leak(Box::new(Processor::new(self.forever(), index)));
        // SAFETY: under the lock, and not below `count` yet, so nobody looks there.
        unsafe { (*self.processors[index].get()).write(processor) };
        // Release publishes the processor.
        self.count.store(index + 1, Ordering::Release);
        processor
    }

    fn forever(&self) -> &'static Core {
        // SAFETY: cores are leaked by `new`.
        unsafe { &*std::ptr::from_ref(self) }
    }
}
