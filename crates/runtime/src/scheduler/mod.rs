//! Who runs when, and on which thread.
//!
//! * A **fiber** is what runs (`fiber`).
//! * A **worker** is an OS thread that runs fibers (`worker`).
//! * A **processor** is what a worker needs to do so: a queue of runnable fibers, a timer wheel,
//!   a handful of warm slots (`processor`). Everything in it that others may want can be taken
//!   without the owner's help, so a worker that is stuck in a call holds nothing up.
//! * A `Core` is one runtime: its processors, an `injector` for what comes from outside, a
//!   driver for descriptors and time (`reactor`).
//!
//! A fiber that waits or yields switches straight to the next in its processor's queue; only
//! when there is none, or every 64th time or when 5 ms have passed, to the worker's own stack, whose loop looks further:
//! injector, descriptors, timers, other processors' queues, and at last sleep.
//!
//! # Why no wake-up is lost
//!
//! An idle worker sleeps in the driver (`epoll_wait`). Descriptors and the timerfd wake it by
//! themselves; a fiber that becomes runnable by another fiber or thread must not be left lying
//! while a worker sleeps. Two counters decide, `searching` and `sleeping`:
//!
//! * Whoever makes work (`Core::notify`): (1) puts it into a queue, (2) fence, (3) does nothing
//!   if a worker is *searching*, else, if one is *sleeping*, makes `searching` 1 on its behalf
//!   and rings the driver's eventfd, which wakes exactly one.
//! * A worker that found nothing: (a) counts itself *sleeping* and no longer *searching*,
//!   (b) fence, (c) looks at all queues once more, (d) sleeps.
//!
//! The two fences are in one order. If (2) comes before (b), the look in (c) finds the work. If
//! (b) comes before (2), step (3) sees `sleeping`, and rings, or sees another worker searching;
//! that one will go through (a)–(c) itself or find the work. A worker that searched and found
//! something, or leaves for good, tells the next one (`Core::notify` again) if it was the last
//! searching, since there may be more. The ring is not lost either: the eventfd is edge-triggered in the epoll set,
//! so its event stays there until *some* worker collects it, and whoever does is then the one
//! who searches.
//!
//! Timers: a worker arms the timerfd for the earliest deadline of all wheels between (b) and (d); a
//! fiber that starts an earlier timer while somebody sleeps arms it itself (`timer_started`). An
//! alarm wakes one worker only, which fires what is due and, before it runs any of that, arms the
//! next alarm for those who sleep on.
//!
//! One saving: a fiber that makes *one* other runnable, with an empty queue, usually parks right
//! after, so nobody is woken for it. Should it compute on instead, the `monitor` notices.

mod alarm;
mod bell;
mod core;
mod injector;
mod mail;
mod monitor;
mod processor;
mod queue;
mod seat;
pub(crate) mod setxid;
pub(crate) mod witness;
mod worker;

#[cfg(all(test, not(loom)))]
mod tests;

pub use self::core::{Call, Options, Statistics};

pub(crate) use self::alarm::Alarm;
pub(crate) use self::bell::Caller;
pub(crate) use self::core::{Core, Outcome, Term, stopped};
pub(crate) use self::monitor::{kick_all, watched};
pub(crate) use self::processor::Processor;
pub(crate) use self::processor::current as current_processor;
pub(crate) use self::worker::{begin, enter_as_worker, leave};

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use crate::fiber::{AtWork, Control, Header, Kind, Runnable, TaskRef, current_by_register};
use crate::trace::{self, Why};
use crate::wait::Batch;

/// The core that a runnable belongs to.
///
/// # Safety
/// The runnable is the caller's to schedule.
unsafe fn core_of(runnable: NonNull<Runnable>) -> &'static Core {
    // SAFETY: by contract; the kind says what the runnable is the first field of.
    unsafe {
        let task = match runnable.as_ref().kind {
            Kind::Fresh => runnable.cast::<Header>(),
            Kind::Started => runnable.cast::<Control>().as_ref().task(),
        };
        task.as_ref().core
    }
}

/// Puts woken fibers where their runtimes will run them.
pub(crate) fn schedule(mut batch: Batch) {
    let _at_work = AtWork::begin();
    let here = processor::current();
    trace::scheduled(&batch, here);
    while let Some(first) = batch.take() {
        // SAFETY: a batch owns what is in it.
        let core = unsafe { core_of(first) };
        // SAFETY: as above.
        if let Some(seat) = unsafe { first.as_ref() }.seat.get() {
            core.give_pinned(seat, first);
            continue;
        }
        let mut same = Batch::new();
        same.add(first);
        // Nearly always all belong to one runtime: give it one run of them at a time.
        while let Some(next) = batch.first {
            // SAFETY: as above.
            let (same_core, seat) =
                unsafe { (std::ptr::eq(core_of(next), core), next.as_ref().seat.get()) };
            if !same_core || seat.is_some() {
                break;
            }
            batch.take();
            same.add(next);
        }
        match here {
            Some(processor) if std::ptr::eq(processor.core(), core) => processor.ready(same),
            _ => core.inject(same),
        }
    }
}

/// As [`schedule`], for callers who may have interrupted anything, the scheduler itself included:
/// signal handlers. Takes no lock.
pub(crate) fn post(mut batch: Batch) {
    while let Some(runnable) = batch.take() {
        // SAFETY: a batch owns what is in it.
        unsafe { core_of(runnable) }.post(runnable);
    }
}

/// Puts a task that has just been made, and is counted, where its runtime will run it.
pub(crate) fn spawn(task: TaskRef) {
    let mut batch = Batch::new();
    batch.add(task.into_raw().cast());
    schedule(batch);
}

/// Kicks the OS thread that runs the fiber of `control`, which is one of `core`'s, if one does, so that it looks at its signals.
/// Async-signal-safe.
pub(crate) fn kick(core: &Core, control: NonNull<Control>) {
    for processor in core.processors() {
        // Relaxed, both: whoever runs another fiber by now, or none, is kicked in vain.
        if processor.running.load(Ordering::Relaxed) == control.as_ptr() {
            crate::signal::kick(processor.thread.load(Ordering::Relaxed));
        }
    }
}

/// Schedules a fiber that has its slot before it first runs.
///
/// # Safety
/// The slot has been prepared by [`begin`], and is given away.
pub(crate) unsafe fn start(slot: NonNull<Control>) {
    let mut batch = Batch::new();
    batch.add(slot.cast());
    schedule(batch);
}

/// The hook of a switch that yields or moves: behind everyone else, at the worker that it is pinned to.
unsafe extern "C" fn yielded(control: usize) -> usize {
    let control = NonNull::new(control as *mut Control).expect("the hook's own argument");
    // SAFETY: the fiber has been saved and is in no queue. The hook runs on the thread of the
    // processor that the fiber was on, its owner.
    unsafe { control.as_ref().processor().push(control.cast()) };
    0
}

/// Lets every other fiber that can run on this worker go first; on an OS thread that is no
/// fiber, sched_yield(2).
///
/// # Panics
/// If the calling fiber is to stop: as [`checkpoint`](crate::checkpoint).
pub fn yield_now() {
    // A fiber that only yields touches nothing of its identity.
    let Some(control) = current_by_register() else {
        crate::kernel::sched_yield();
        return;
    };
    // SAFETY: the caller's own control block.
    let control = unsafe { control.as_ref() };
    // Relaxed: see `cancel`.
    if control.stop.load(Ordering::Relaxed) {
        crate::cancel::checkpoint();
    }
    give_way(control);
}

/// As [`yield_now`], for callers that cannot be unwound: whether the fiber is to stop is not asked.
pub fn sched_yield() {
    match current_by_register() {
        // SAFETY: the caller's own control block.
        Some(control) => give_way(unsafe { control.as_ref() }),
        None => crate::kernel::sched_yield(),
    }
}

fn give_way(control: &Control) {
    if control.processor().alone() {
        return;
    }
    let _why = trace::because(Why::Yields);
    go_behind(control);
}

/// Puts the calling fiber behind everyone else, at the worker that it is pinned to if it is.
fn go_behind(control: &Control) {
    // SAFETY: `control` is the calling fiber's; `yielded` takes it as its argument.
    unsafe { leave(control, yielded, std::ptr::from_ref(control) as usize) };
}

/// Pins the calling fiber to the worker numbered `worker`, or to none; a pinned fiber runs there when this
/// returns.
///
/// # Errors
/// As [`Core::bind`].
pub(crate) fn pin(control: &Control, worker: Option<usize>) -> std::io::Result<()> {
    let seat = worker.map(|worker| control.processor().core().bind(worker)).transpose()?;
    control.link.seat.set(seat);
    if worker.is_some_and(|worker| worker != control.processor().number()) {
        let _why = trace::because(Why::Moves);
        go_behind(control);
    }
    Ok(())
}
