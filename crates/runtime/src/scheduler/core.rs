//! The core of one runtime: its processors and what its workers share.
//!
//! Cores are never freed, only used again by the next runtime: whoever wakes a fiber may still be
//! about to ring for a worker when that fiber has long ended and its runtime has stopped. A late
//! ring at a core is harmless; at freed memory it would not be.

mod statistics;
mod time;

pub use statistics::Statistics;

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

use sleave_context::lock::Lock;

use super::bell::Bell;
use super::injector::Injector;
use super::monitor;
use super::processor::Processor;
use crate::kernel::{self, OsThread};
use crate::reactor::Driver;
use crate::wait::Batch;
use crate::wait::timer::Wheel;

/// The most processors of a runtime, those of workers stuck in calls included.
const MOST_PROCESSORS: usize = 512;

/// Bytes of a worker's own stack: it runs the scheduler, never a program's code.
const WORKER_STACK: usize = 256 << 10;

/// What is chosen for a runtime when it is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many workers run fibers at the same time.
    pub workers: usize,
    /// Bytes of a fiber's slot unless its spawner says otherwise.
    pub slot: usize,
    /// The workers' names begin with this.
    pub name: String,
}

pub(crate) struct Core {
    workers: AtomicUsize,
    slot: AtomicUsize,
    name: Lock<String>,

    processors: Box<[UnsafeCell<MaybeUninit<&'static Processor>>]>,
    /// How many of `processors` exist.
    count: AtomicUsize,
    staff: Lock<Staff>,
    /// `staff.live - staff.blocked`, for reading without the lock.
    active: AtomicUsize,

    pub(super) injector: Injector,
    pub(crate) driver: Driver,
    /// Timers that were started from outside, see `time`.
    timers: Wheel,
    /// Workers that look for work, or are about to. See the essay in `mod.rs`.
    searching: AtomicUsize,
    /// Workers that sleep in the driver, or are about to.
    sleeping: AtomicUsize,

    /// Fibers spawned and not ended, and one for the handle.
    fibers: AtomicUsize,
    /// The handle has gone.
    released: AtomicBool,
    /// It has been dropped.
    orphaned: AtomicBool,
    /// Workers shall go.
    stopped: AtomicU32,
    /// 1 when the last fiber has ended and all has been said; a futex.
    ended: AtomicU32,
    /// Counts calls for spare threads; a futex.
    calls: AtomicU32,
}

/// Who works here.
struct Staff {
    /// Threads that have a processor.
    live: usize,
    /// Of these, threads that the monitor found stuck.
    blocked: usize,
    /// Of these, callers of `run`.
    callers: usize,
    /// Threads without a processor that wait to be called.
    spare: usize,
    /// Calls that no spare thread has answered yet.
    called: usize,
    threads: Vec<OsThread>,
    /// Processors without a worker.
    free: Vec<&'static Processor>,
}

impl Staff {
    /// The worker of `processor` counts, whatever the monitor has found.
    fn unblock(&mut self, processor: &Processor) {
        // Relaxed: under the lock, as this method's caller has it.
        if processor.blocked.swap(false, Ordering::Relaxed) {
            self.blocked -= 1;
        }
    }
}

// SAFETY: `processors` is written below `count` only before `count` says so, under the lock of
// `staff`; everything else is made to be shared.
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
                workers: AtomicUsize::new(0),
                slot: AtomicUsize::new(0),
                name: Lock::new(String::new()),
                processors: (0..MOST_PROCESSORS)
                    .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
                    .collect(),
                count: AtomicUsize::new(0),
                staff: Lock::new(Staff {
                    live: 0,
                    blocked: 0,
                    callers: 0,
                    spare: 0,
                    called: 0,
                    threads: Vec::new(),
                    free: Vec::new(),
                }),
                active: AtomicUsize::new(0),
                injector: Injector::new(),
                driver: Driver::new()?,
                timers: Wheel::new(kernel::now()),
                searching: AtomicUsize::new(0),
                sleeping: AtomicUsize::new(0),
                fibers: AtomicUsize::new(0),
                released: AtomicBool::new(false),
                orphaned: AtomicBool::new(false),
                ended: AtomicU32::new(0),
                stopped: AtomicU32::new(0),
                calls: AtomicU32::new(0),
            })),
        };
        // Relaxed: nobody else has the core yet; the first spawn publishes it.
        core.workers.store(options.workers, Ordering::Relaxed);
        core.slot.store(options.slot, Ordering::Relaxed);
        core.fibers.store(1, Ordering::Relaxed);
        core.released.store(false, Ordering::Relaxed);
        core.orphaned.store(false, Ordering::Relaxed);
        core.ended.store(0, Ordering::Relaxed);
        core.stopped.store(0, Ordering::Relaxed);
        *core.name.lock() = options.name;
        monitor::watch(core);
        Ok(core)
    }

    /// Bytes of the usual slot.
    pub(crate) fn slot_size(&self) -> usize {
        // Relaxed, here and in the next: set before the core is shared.
        self.slot.load(Ordering::Relaxed)
    }

    fn workers(&self) -> usize {
        self.workers.load(Ordering::Relaxed)
    }

    /// The processors there are, in use or not.
    pub(super) fn processors(&self) -> &[&'static Processor] {
        // Acquire pairs with the Release in `take_processor`.
        let count = self.count.load(Ordering::Acquire);
        let all: *const UnsafeCell<MaybeUninit<&'static Processor>> = self.processors.as_ptr();
        // SAFETY: the first `count` are written and never change; both wrappers are transparent.
        unsafe { std::slice::from_raw_parts(all.cast(), count) }
    }

    // ---- work comes in ----

    /// Queues what comes from outside of this runtime's workers.
    pub(crate) fn inject(&self, batch: Batch) {
        self.injector.push(batch);
        self.notify();
    }

    /// Tells a worker that there is work, if one is free to do it.
    pub(super) fn notify(&self) {
        loop {
            // SeqCst: (2) of the essay in `mod.rs`.
            fence(Ordering::SeqCst);
            // Relaxed: ordered by the fence.
            if self.searching.load(Ordering::Relaxed) != 0
                || (self.sleeping.load(Ordering::Relaxed) == 0 && self.active() >= self.workers())
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
            if self.start_worker() {
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

    /// Whether every worker sleeps.
    pub(super) fn is_idle(&self) -> bool {
        // SeqCst, both: the monitor looks here after it has said that it sleeps, see
        // `monitor::awake`.
        self.sleeping.load(Ordering::SeqCst) >= self.active.load(Ordering::SeqCst)
            && !self.has_injected()
    }

    pub(super) fn has_injected(&self) -> bool {
        self.injector.len() > 0
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
    pub(super) fn poll(&self, processor: &Processor, block: bool) {
        let mut woken = Batch::new();
        let collected = self.driver.poll(block, &mut woken);
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
        // (a) of the essay in `mod.rs`.
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        self.stop_searching(processor);
        // (b)
        fence(Ordering::SeqCst);
        // (c)
        if !self.has_work() && !done() && bell.is_none_or(Bell::lies_down) {
            self.arm();
            // (d)
            self.poll(processor, true);
            bell.inspect(|bell| bell.gets_up());
        }
        // SeqCst: before the look in `awake`.
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        monitor::awake();
    }

    // ---- workers come and go ----

    /// Starts a worker, or calls a spare one, if there are fewer than there should be. The
    /// caller has counted it as searching.
    fn start_worker(&self) -> bool {
        let core = self.forever();
        let mut staff = self.staff.lock();
        // Relaxed: `stop` sets it and then takes the lock.
        if staff.live - staff.blocked >= self.workers()
            || staff.live >= MOST_PROCESSORS
            || self.stopped.load(Ordering::Relaxed) != 0
        {
            return false;
        }
        if staff.spare > staff.called {
            staff.called += 1;
            // Release, and the futex: the spare thread looks under the lock.
            self.calls.fetch_add(1, Ordering::Release);
            kernel::futex_wake(self.calls.as_ptr() as usize, 1);
        } else {
            let name = format!("{}-{}", *self.name.lock(), staff.threads.len());
            let body = move || super::worker::worker_main(core);
            match OsThread::start(name, WORKER_STACK, body) {
                Ok(thread) => staff.threads.push(thread),
                Err(_) => return false,
            }
        }
        staff.live += 1;
        self.count_active(&staff);
        true
    }

    /// Makes sure that somebody will run what is spawned from outside.
    ///
    /// # Errors
    /// If there is no worker and none can be started: what pthread_create(3) says.
    pub(crate) fn ensure_worker(&self) -> io::Result<()> {
        if self.active() > 0 || self.start_worker_searching() || self.active() > 0 {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "no worker thread could be started"))
    }

    fn start_worker_searching(&self) -> bool {
        self.searching.fetch_add(1, Ordering::SeqCst);
        let started = self.start_worker();
        if !started {
            self.searching.fetch_sub(1, Ordering::SeqCst);
        }
        started
    }

    fn count_active(&self, staff: &Staff) {
        // SeqCst: before the look in `monitor::awake`, see there.
        self.active.store(staff.live - staff.blocked, Ordering::SeqCst);
    }

    /// A processor for a thread that is counted in `live`.
    pub(super) fn take_processor(&self) -> &'static Processor {
        monitor::awake();
        let mut staff = self.staff.lock();
        if let Some(processor) = staff.free.pop() {
            return processor;
        }
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

    pub(super) fn give_processor(&self, processor: &'static Processor) {
        self.staff.lock().free.push(processor);
    }

    /// Whether there may be a worker too many, the one of `processor` for one.
    pub(super) fn is_crowded(&self, processor: &Processor) -> bool {
        self.unblock(processor);
        // Acquire pairs with the Release in `end`.
        self.stopped.load(Ordering::Acquire) != 0 || self.active() > self.workers()
    }

    /// Counts the calling worker out if there is one too many; whether it did.
    pub(super) fn leaves_crowd(&self, processor: &Processor) -> bool {
        let mut staff = self.staff.lock();
        staff.unblock(processor);
        // Acquire: as in `is_crowded`.
        let stopped = self.stopped.load(Ordering::Acquire) != 0;
        if !stopped && staff.live - staff.blocked <= self.workers() {
            self.count_active(&staff);
            return false;
        }
        staff.live -= 1;
        self.count_active(&staff);
        true
    }

    /// Waits, without a processor, to be called again; `false` when the runtime has stopped.
    pub(super) fn spare(&self) -> bool {
        self.staff.lock().spare += 1;
        loop {
            // Acquire pairs with the Release in `start_worker` and `stop`.
            let calls = self.calls.load(Ordering::Acquire);
            {
                let mut staff = self.staff.lock();
                // A call is answered even if the runtime has stopped since: who called has
                // counted this thread, and as a worker it counts itself out again.
                if staff.called > 0 {
                    staff.called -= 1;
                    staff.spare -= 1;
                    return true;
                }
                if self.stopped.load(Ordering::Acquire) != 0 {
                    staff.spare -= 1;
                    return false;
                }
            }
            kernel::futex_wait(&self.calls, calls, None);
        }
    }

    /// Whether the calling thread may become a worker for the time of a `run`; counts it.
    pub(crate) fn caller_enters(&self) -> bool {
        let mut staff = self.staff.lock();
        if staff.callers >= self.workers() || staff.live >= MOST_PROCESSORS {
            return false;
        }
        staff.callers += 1;
        staff.live += 1;
        self.count_active(&staff);
        true
    }

    /// A caller of `run` is a worker no longer. The last worker to go leaves another in its place:
    /// fibers that it does not know of may wait for a descriptor or a deadline, for which somebody
    /// has to sleep in the driver. That must not be left to [`Core::notify`], which trusts in a
    /// ring that went to a sleeper, and that sleeper may be this one, woken by its bell just then.
    pub(super) fn caller_leaves(&self, processor: &Processor) {
        let nobody_left = {
            let mut staff = self.staff.lock();
            staff.unblock(processor);
            staff.callers -= 1;
            staff.live -= 1;
            self.count_active(&staff);
            staff.live == staff.blocked
        };
        if nobody_left {
            self.start_worker_searching();
        }
    }

    /// The monitor has found the worker of `processor` stuck: it does not count until it moves.
    pub(super) fn block(&self, processor: &Processor) {
        {
            let mut staff = self.staff.lock();
            // Relaxed, both: a worker that has left says so under the lock, and long before it
            // does it runs no fiber any more. Then there is nobody to be counted out.
            if processor.running.load(Ordering::Relaxed).is_null()
                || processor.blocked.swap(true, Ordering::Relaxed)
            {
                return;
            }
            staff.blocked += 1;
            self.count_active(&staff);
        }
        if !self.start_worker_searching() {
            self.notify();
        }
    }

    /// The worker of `processor` moves.
    pub(super) fn unblock(&self, processor: &Processor) {
        // Relaxed: set by the monitor; if it is seen late, then a loop later.
        if processor.blocked.load(Ordering::Relaxed) {
            {
                let mut staff = self.staff.lock();
                staff.unblock(processor);
                self.count_active(&staff);
            }
            monitor::awake();
        }
    }

    // ---- the end ----

    pub(crate) fn fiber_begins(&self) {
        // Relaxed: the spawner is a fiber of this runtime, counted itself, or holds its handle.
        self.fibers.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fiber_ends(&self) {
        // AcqRel: the last sees what all the others did.
        if self.fibers.fetch_sub(1, Ordering::AcqRel) == 1 && !self.says_farewell() {
            self.end();
        }
    }

    /// Lets the workers go when the last fiber has ended. Once for each core in use: the handle
    /// counts as a fiber until then.
    pub(crate) fn release(&self) {
        // Relaxed: see `is_released`.
        self.released.store(true, Ordering::Relaxed);
        self.fiber_ends();
    }

    /// As [`Core::release`], with nobody who will call [`Core::join`]: the monitor does.
    pub(crate) fn abandon(&self) {
        // Release: with `is_orphaned`.
        self.orphaned.store(true, Ordering::Release);
        self.release();
    }

    /// Whether the core has been abandoned, and is to be joined now.
    pub(super) fn is_orphaned(&self) -> bool {
        // SeqCst: the monitor looks here after it has said that it sleeps, see `monitor::awake`.
        self.ended.load(Ordering::SeqCst) != 0 && self.orphaned.load(Ordering::Acquire)
    }

    fn end(&self) {
        // Release: who sees it sees everything that the fibers did.
        self.stopped.store(1, Ordering::Release);
        self.calls.fetch_add(1, Ordering::Release);
        kernel::futex_wake(self.calls.as_ptr() as usize, i32::MAX);
        self.driver.dismiss(true);
        // SeqCst: before the look in `awake`. The last access to this core by who ends it: it may
        // belong to another runtime after this. (A wake only names the address.)
        self.ended.store(1, Ordering::SeqCst);
        kernel::futex_wake(self.ended.as_ptr() as usize, i32::MAX);
        monitor::awake();
    }

    /// Waits until every fiber has ended and every worker is gone. After [`Core::release`], and
    /// once; the core belongs to somebody else then.
    pub(crate) fn join(&'static self) {
        // Acquire pairs with the store in `end`.
        while self.ended.load(Ordering::Acquire) == 0 {
            kernel::futex_wait(&self.ended, 0, None);
        }
        loop {
            let thread = self.staff.lock().threads.pop();
            match thread {
                Some(thread) => thread.join(),
                None => break,
            }
        }
        self.driver.dismiss(false);
        monitor::forget(self);
        debug_assert!(self.is_at_rest(), "a core is as new when the next runtime gets it");
        RETIRED.lock().push(self);
    }

    /// Whether nobody is left, nobody is counted and no timer is pending. (A ring that no worker has collected counts
    /// as one who searches, and whoever collects it will search.)
    fn is_at_rest(&self) -> bool {
        let staff = self.staff.lock();
        // Relaxed, both: every thread that changed them has been joined.
        let sleeping = self.sleeping.load(Ordering::Relaxed);
        let searching = self.searching.load(Ordering::Relaxed);
        let counted = [staff.live, staff.blocked, staff.callers, staff.spare, staff.called];
        counted == [0; 5] && sleeping == 0 && searching <= 1 && self.next_due() == u64::MAX
    }

    /// A worker could get no memory for a stack: gives others the time to return some.
    pub(super) fn wait_for_memory(&self) {
        const PAUSE: u64 = 1_000_000;
        let never = AtomicU32::new(0);
        kernel::futex_wait(&never, 0, Some(kernel::now() + PAUSE));
    }

    fn forever(&self) -> &'static Core {
        // SAFETY: cores are leaked by `new`.
        unsafe { &*std::ptr::from_ref(self) }
    }
}
