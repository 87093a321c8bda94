//! The worker: a thread that runs fibers, and the switches between them.
//!
//! ```text
//!   worker's own stack          fiber A               fiber B
//!   work() ── resume ─────────▶ runs
//!                               waits: leave() ─────▶ runs            straight, A's hook on B's stack
//!                                                     waits: leave(),
//!   hook of B, next, sleep … ◀─────────────────────── queue empty
//! ```
//!
//! A fiber begins in [`fiber_main`] on a fresh stack and ends there: destructors of its
//! thread-locals, then joiners may go on, then a last switch whose hook takes the slot back; by then
//! nothing runs on it.

use std::ptr::{NonNull, null_mut};
use std::sync::atomic::Ordering;

use sleave_context::{Context, FpControl, Hook, swap};

use super::bell::{Bell, Caller};
use super::core::Core;
use super::processor::Processor;
use crate::fiber::{Control, Header, Kind, Runnable, Space, TaskRef, prepare_thread, space};
use crate::green;
use crate::inspect;
use crate::trace;
use crate::wait::Batch;

/// How many rounds over the others' queues before a worker gives up.
const STEAL_ROUNDS: usize = 4;

fn the_space() -> &'static Space {
    space().expect("a runtime that has workers has a space")
}

/// Asks for the cache line of `address`, which need not be valid.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect but on the cache, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, readonly, preserves_flags));
    }
}

/// About where the caller's stack ends.
#[inline(always)]
fn stack_pointer() -> usize {
    let mark = 0u8;
    std::hint::black_box(&raw const mark) as usize
}

/// What is switched to.
#[derive(Clone, Copy)]
struct Target {
    context: *const Context,
    thread_pointer: usize,
    /// Its identity was last in force on this OS thread.
    again: bool,
}

impl Target {
    /// Puts its identity in force.
    ///
    /// # Safety
    /// As [`Kit::enter`](crate::identity::Kit::enter).
    #[inline(always)]
    unsafe fn enter(&self) {
        let kit = the_space().kit;
        // SAFETY: by contract, and `again` says which.
        unsafe {
            match self.again {
                true => kit.enter_again(self.thread_pointer),
                false => kit.enter(self.thread_pointer),
            }
        }
    }
}

/// Switches from the fiber `control`, the caller's, to whatever is next. `hook(argument)` runs
/// when its registers are saved. Returns when somebody resumes it.
///
/// # Safety
/// `control` is the calling fiber's. The hook sees to it that the fiber is resumed at most once.
pub(crate) unsafe fn leave(control: &Control, hook: Hook, argument: usize) {
    // While the runtime is at work here, and until this fiber runs again, a signal handler's
    // calls pass through.
    control.bypass.set(control.bypass.get() + 1);
    trace::leaves(control);
    let fp = FpControl::save();
    // SAFETY: by contract.
    unsafe { depart(control, hook, argument) };
    fp.restore();
    control.bypass.set(control.bypass.get() - 1);
}

/// The switch of [`leave`] and of a fiber's end.
///
/// # Safety
/// As for [`leave`].
#[inline(always)]
unsafe fn depart(control: &Control, hook: Hook, argument: usize) {
    let processor = control.processor();
    processor.foresee(control);
    let target = processor.next_target();
    // SAFETY: the target is suspended and ours to run. The new identity is in force for the few
    // instructions that are left on this stack, none of which uses a thread-local.
    unsafe {
        target.enter();
        swap(control.context.get(), target.context, Some(hook), argument);
    }
}

impl Processor {
    /// Asks the memory for what a fiber needs that will run soon, while others still run: among
    /// thousands, none is in the cache when its turn comes. Its control block; and the frames that it will return through,
    /// which lie where those of the fiber that leaves now, `like`, do: neighbours in a queue mostly wait in the same
    /// call. (Of its identity nothing is needed for a switch.)
    #[inline(always)]
    fn foresee(&self, like: &Control) {
        /// Places in the queue.
        const AHEAD: u64 = 2;
        /// Cache lines of frames.
        const FRAMES: usize = 8;
        // SAFETY: the owner calls.
        let soon = unsafe { self.queue.peek(AHEAD) }.cast::<u8>();
        if soon.is_null() {
            return;
        }
        let here = std::ptr::from_ref(like) as usize;
        // Any number if it stands on a coroutine's stack; then this is for nothing, and does no harm.
        let depth = here.wrapping_sub(stack_pointer());
        prefetch(soon);
        prefetch(soon.wrapping_add(64));
        for line in 0..FRAMES {
            prefetch(soon.wrapping_sub(depth).wrapping_add(64 * line));
        }
    }

    /// The next fiber of the own queue, or the worker's own stack.
    #[inline]
    fn next_target(&'static self) -> Target {
        if !self.is_to_look() {
            // SAFETY: the owner calls.
            if let Some(next) = unsafe { self.next() } {
                // SAFETY: it has left the queue and is ours to run.
                match unsafe { self.started(next) } {
                    Some(control) => return self.target(control),
                    None => self.handoff.set(Some(next)),
                }
            }
        }
        // Relaxed: for observers only.
        self.running.store(null_mut(), Ordering::Relaxed);
        Target {
            context: self.context.get(),
            thread_pointer: self.thread_pointer.get(),
            again: true,
        }
    }

    /// Makes `control` the fiber that runs.
    #[inline]
    fn target(&'static self, control: NonNull<Control>) -> Target {
        // SAFETY: the fiber is ours to run.
        let fiber = unsafe { control.as_ref() };
        fiber.processor.set(Some(NonNull::from(self)));
        self.follow_mask(fiber.mask.get());
        // Relaxed: for observers only.
        self.running.store(control.as_ptr(), Ordering::Relaxed);
        trace::enters(fiber, self);
        inspect::about_to_run();
        let carrier = self.carrier.get();
        let again = fiber.carrier.replace(carrier) == carrier;
        Target { context: fiber.context.get(), thread_pointer: fiber.thread_pointer, again }
    }

    /// The control block of `runnable`; a fresh task gets a warm slot if there is one.
    ///
    /// # Safety
    /// The runnable has left its queue and is the caller's.
    #[inline]
    unsafe fn started(&self, runnable: NonNull<Runnable>) -> Option<NonNull<Control>> {
        // SAFETY: by contract; the kind says what it is the first field of.
        unsafe {
            match runnable.as_ref().kind {
                Kind::Started => Some(runnable.cast()),
                Kind::Fresh => {
                    let control = self.warm_slot(the_space(), runnable.cast())?;
                    begin(control, runnable.cast());
                    Some(control)
                }
            }
        }
    }

    /// Runs `runnable` from the worker's own stack until some fiber comes back here.
    ///
    /// # Safety
    /// As for [`Processor::started`]; the caller is on the worker's own stack.
    unsafe fn resume(&'static self, runnable: NonNull<Runnable>) {
        // SAFETY: by contract.
        let control = match unsafe { self.started(runnable) } {
            Some(control) => control,
            None => {
                let task = runnable.cast::<Header>();
                // SAFETY: a fresh task that is ours.
                match the_space().take(unsafe { task.as_ref() }.stack) {
                    Ok(control) => {
                        // SAFETY: the slot is ours as well.
                        unsafe { begin(control, task) };
                        control
                    }
                    Err(_) => {
                        // The task is in no queue.
                        self.core().starve(runnable);
                        return;
                    }
                }
            }
        };
        self.count_switch();
        let target = self.target(control);
        // SAFETY: the fiber is suspended and ours to run; whoever leaves to this stack restores
        // its identity.
        unsafe {
            target.enter();
            swap(self.context.get(), target.context, None, 0);
        }
    }
}

/// Prepares the slot to run `task` from its beginning.
///
/// # Safety
/// Both are the caller's.
pub(crate) unsafe fn begin(control: NonNull<Control>, task: NonNull<Header>) {
    // SAFETY: by contract; the stack below the control block is the new fiber's.
    unsafe {
        let fiber = control.as_ref();
        the_space().refresh(fiber);
        fiber.task.set(Some(task));
        fiber.link.seat.set(task.as_ref().link.seat.get());
        fiber.attention.take();
        fiber.carrier.set(0);
        // Relaxed: nobody knows the new fiber yet.
        fiber.stop.store(task.as_ref().core.is_cancelled(), Ordering::Relaxed);
        task.as_ref().runs_on(control);
        fiber.mask.set(task.as_ref().core.usual_mask());
        fiber.signals.begin();
        fiber.bypass.set(1);
        fiber.timeouts.set(task.as_ref().timeouts);
        trace::begins(fiber);
        *fiber.context.get() =
            Context::new(control.as_ptr().cast(), fiber_main, control.as_ptr() as usize);
    }
}

/// Where every fiber begins and ends.
unsafe extern "C" fn fiber_main(control: usize, _: usize) -> ! {
    // SAFETY: `begin` passed the fiber's own control block.
    let control = unsafe { &*(control as *const Control) };
    let kit = the_space().kit;
    FpControl::DEFAULT.restore();
    // SAFETY: the fiber's identity is in force, and this is its first act.
    unsafe { kit.start() };
    control.bypass.set(0);
    // SAFETY: `begin` passed the runner's reference.
    let task = unsafe { TaskRef::from_raw(control.task()) };
    // SAFETY: once, by the fiber that the task was started on.
    unsafe { task.run() };
    // SAFETY: nothing of the program runs here after its destructors.
    unsafe { kit.finish_with(|mutex| wake_heir(mutex as usize)) };
    green::ends(control);
    control.bypass.set(1);
    let core = task.core();
    trace::ends(control);
    task.finish();
    control.task.set(None);
    core.fiber_ends();
    task.tell();
    trace::leaves_for_ever(control, &task);
    inspect::about_to_go();
    drop(task);
    // SAFETY: the hook gives the slot away; nobody resumes this fiber.
    unsafe { depart(control, ended, std::ptr::from_ref(control) as usize) };
    unreachable!("a fiber that has ended was resumed");
}

/// Wakes one who waits for a robust mutex whose owner has ended, be it a fiber or a thread.
fn wake_heir(mutex: usize) {
    if crate::wait::futex::wake(mutex, 1, u32::MAX) == 0 {
        crate::kernel::futex_wake_shared(mutex, 1);
    }
}

/// The hook of a fiber's last switch.
unsafe extern "C" fn ended(control: usize) -> usize {
    let control = NonNull::new(control as *mut Control).expect("the hook's own argument");
    // SAFETY: the fiber has left its stack for good; the hook runs on the owner's thread.
    unsafe {
        let processor = control.as_ref().processor();
        // A thread of `pthread_create`'s keeps its slot until it is joined.
        if green::leaves(control.as_ref()) {
            processor.keep_slot(the_space(), control);
            processor.core().stack_returns();
        }
    }
    0
}

/// The body of a worker's thread: runs fibers until the runtime stops.
pub(super) fn worker_main(core: &'static Core) {
    prepare_thread();
    the_space().kit.adopt_thread();
    loop {
        let processor = core.take_processor(false);
        processor.own(true);
        // A worker is started because there is work to be found.
        processor.searching.set(true);
        loop {
            work(processor, &|| core.is_crowded(processor), None);
            if core.leaves_crowd(processor) {
                break;
            }
        }
        retire(processor);
        if !core.spare() {
            return;
        }
    }
}

/// Runs fibers on the calling thread, which [`Core::caller_enters`] has counted, until `done`, or until others can
/// do without it. Who makes `done` true rings the caller's bell.
pub(crate) fn enter_as_worker(core: &'static Core, caller: &Caller, done: &dyn Fn() -> bool) {
    prepare_thread();
    the_space().kit.adopt_thread();
    let processor = core.take_processor(true);
    processor.own(true);
    let fp = FpControl::save();
    let done = || {
        core.unblock(processor);
        done() || core.caller_is_surplus()
    };
    work(processor, &done, Some(&caller.bell));
    fp.restore();
    core.caller_leaves(processor);
    retire(processor);
}

/// Leaves a processor in a state in which the next worker can take it over.
fn retire(processor: &'static Processor) {
    let core = processor.core();
    // A ring that was meant for this worker counts as one who searches: that is passed on below.
    core.poll(processor, false, None);
    let mut rest = Batch::new();
    // SAFETY: the owner calls.
    while let Some(runnable) = unsafe { processor.queue.pop() } {
        rest.add(runnable);
    }
    processor.shed_slots(the_space());
    core.stop_searching(processor);
    processor.own(false);
    core.give_processor(processor);
    // What is left is somebody else's now; as is what others left to this worker while it
    // searched, or rang it for.
    core.injector.push(rest);
    core.notify();
}

/// The loop of a worker, on its own stack.
fn work(processor: &'static Processor, done: &dyn Fn() -> bool, bell: Option<&Bell>) {
    let core = processor.core();
    let mut last_look = 0;
    loop {
        if let Some(next) = processor.handoff.take() {
            // SAFETY: `next_target` left it to us.
            unsafe { processor.resume(next) };
            continue;
        }
        if done() {
            return;
        }
        // Every so often look at what a long queue of runnable fibers would keep waiting.
        let now = crate::kernel::now();
        if now - last_look > Core::LOOK_EVERY {
            last_look = now;
            look_around(processor, now);
        }
        // SAFETY: the owner calls.
        if let Some(next) = unsafe { processor.next() } {
            core.found(processor);
            // SAFETY: it has left the queue.
            unsafe { processor.resume(next) };
            continue;
        }
        if let Some(next) = find(processor) {
            core.found(processor);
            // SAFETY: it has left the queue that it was in.
            unsafe { processor.resume(next) };
            continue;
        }
        if core.starves() {
            // Slots of its own are of no use to who sleeps.
            processor.shed_slots(the_space());
        }
        core.sleep(processor, done, bell);
    }
}

/// Brings to the own queue what waits elsewhere: in the injector, the mail, the driver, the wheels, for memory.
fn look_around(processor: &'static Processor, now: u64) {
    let core = processor.core();
    // Relaxed: a hint.
    processor.overdue.store(false, Ordering::Relaxed);
    let share = core.injector.len() / core.active().max(1) + 1;
    let (mail, due) = (core.mail.collect(), core.due(now));
    trace::scheduled(&mail, Some(processor));
    trace::scheduled(&due, Some(processor));
    for mut batch in [core.injector.pop(share.min(128)), mail, due, core.feed(now)] {
        while let Some(runnable) = batch.take() {
            // SAFETY: the owner calls; the batch owned it.
            unsafe { processor.push(runnable) };
        }
    }
    core.poll(processor, false, None);
    if processor.queue.len() > 1 {
        core.notify();
    }
}

/// Looks for something to run everywhere.
fn find(processor: &'static Processor) -> Option<NonNull<Runnable>> {
    let core = processor.core();
    look_around(processor, crate::kernel::now());
    // SAFETY: the owner calls, here and below.
    if let Some(next) = unsafe { processor.next() } {
        return Some(next);
    }
    core.start_searching(processor);
    for _ in 0..STEAL_ROUNDS {
        let processors = core.processors();
        let first = processor.random(processors.len());
        for victim in processors.iter().cycle().skip(first).take(processors.len()) {
            if std::ptr::eq(*victim, processor) {
                continue;
            }
            // SAFETY: the thief's queue is the caller's.
            if let Some(stolen) = unsafe { victim.queue.steal(&processor.queue) } {
                // Relaxed, both: the owner is the only writer.
                let steals = processor.steals.load(Ordering::Relaxed) + 1;
                processor.steals.store(steals, Ordering::Relaxed);
                return Some(stolen);
            }
        }
        if core.has_injected() {
            look_around(processor, crate::kernel::now());
            // SAFETY: as above.
            return unsafe { processor.next() };
        }
        std::hint::spin_loop();
    }
    None
}
