//! A processor: what a worker runs fibers with.

use std::cell::{Cell, UnsafeCell};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use sleave_context::Context;

use super::core::Core;
use super::queue::Queue;
use super::seat::Seat;
use crate::fiber::{self, Control, Header, Runnable, Shelf, Space};
use crate::wait::Batch;
use crate::wait::timer::Wheel;

/// What belongs to one worker; never freed, only passed on.
///
/// Fields marked *owner* are touched only by the thread that runs on this processor: by its
/// fibers and on its own stack, never both at once.
pub(crate) struct Processor {
    core: &'static Core,
    index: usize,
    pub(crate) queue: Queue,
    pub(crate) timers: Wheel,

    /// Owner: the worker's own stack, while a fiber runs.
    pub(super) context: UnsafeCell<Context>,
    /// Owner: the worker's own thread pointer.
    pub(super) thread_pointer: Cell<usize>,
    /// Owner: the signals that the worker blocks: what its fiber does, or else what it did at its beginning.
    mask: Cell<u64>,
    usual_mask: Cell<u64>,
    /// Owner: a number of the OS thread that has it, which no other has had.
    pub(super) carrier: Cell<u32>,
    /// Owner: what the worker's own stack shall run first.
    pub(super) handoff: Cell<Option<NonNull<Runnable>>>,
    /// Owner: what is pinned to its worker, if it can be pinned to.
    seat: Cell<Option<&'static Seat>>,
    /// Its worker's number, see [`Processor::number`]. Written by the owner.
    number: AtomicUsize,
    /// Owner: counts as one of `Core::searching`.
    pub(super) searching: Cell<bool>,
    /// Owner: state of the generator that chooses whom to steal from.
    random: Cell<u32>,
    /// Owner: free slots of the runtime's usual size.
    shelf: &'static Shelf,

    /// The fiber that runs; null on the worker's own stack. Written by the owner.
    pub(crate) running: AtomicPtr<Control>,
    /// Counts switches: who finds it unchanged knows that the worker is in one fiber since.
    /// Written by the owner.
    pub(crate) switches: AtomicU64,
    /// Counts what it has stolen from others' queues. Written by the owner.
    pub(crate) steals: AtomicU64,
    /// The monitor has come by, and the worker has not looked around since: it does at the next switch.
    pub(super) overdue: AtomicBool,
    /// The kernel's id of the worker's thread; 0 while there is none.
    pub(crate) thread: AtomicU32,
    /// The worker is in a call that blocks it, see `core::call`. Changed under the lock of the core's staff.
    pub(super) blocked: AtomicBool,
    /// How many such calls there have been. Changed likewise.
    pub(super) calls: AtomicU64,
}

// SAFETY: fields marked *owner* are touched by the owning thread only; the others are made to
// be shared.
unsafe impl Sync for Processor {}
// SAFETY: the ownership passes from thread to thread under the core's lock.
unsafe impl Send for Processor {}

thread_local! {
    /// Of a worker, on its own stack: its processor. (A fiber finds its processor in its control
    /// block, and has a thread-local of this name that stays empty.)
    static OWN: Cell<Option<&'static Processor>> = const { Cell::new(None) };
}

/// The processor that the caller runs on, as a fiber or as a worker.
pub(crate) fn current() -> Option<&'static Processor> {
    match fiber::current() {
        // SAFETY: the caller's own control block.
        Some(control) => unsafe { control.as_ref() }.runner(),
        None => OWN.get(),
    }
}

impl Processor {
    pub(super) fn new(core: &'static Core, index: usize) -> Processor {
        Processor {
            core,
            index,
            queue: Queue::new(),
            timers: Wheel::new(crate::kernel::now()),
            context: UnsafeCell::new(Context::empty()),
            thread_pointer: Cell::new(0),
            mask: Cell::new(0),
            usual_mask: Cell::new(0),
            carrier: Cell::new(0),
            handoff: Cell::new(None),
            seat: Cell::new(None),
            number: AtomicUsize::new(index),
            searching: Cell::new(false),
            random: Cell::new(index as u32 * 2 + 1),
            shelf: Shelf::new(),
            running: AtomicPtr::new(null_mut()),
            switches: AtomicU64::new(0),
            steals: AtomicU64::new(0),
            overdue: AtomicBool::new(false),
            thread: AtomicU32::new(0),
            blocked: AtomicBool::new(false),
            calls: AtomicU64::new(0),
        }
    }

    pub(crate) fn core(&self) -> &'static Core {
        self.core
    }

    /// Makes this the calling thread's processor, or takes it away.
    pub(super) fn own(&'static self, yes: bool) {
        OWN.set(yes.then_some(self));
        self.thread_pointer.set(crate::identity::thread_pointer());
        if yes {
            let mask = crate::kernel::signal_mask();
            self.mask.set(mask);
            self.usual_mask.set(mask);
        } else {
            self.follow_usual_mask();
        }
        static CARRIERS: AtomicU32 = AtomicU32::new(1);
        // Relaxed: only uniqueness matters.
        self.carrier.set(CARRIERS.fetch_add(1, Ordering::Relaxed));
        // Relaxed: read by the monitor, which checks what the number leads to.
        self.thread.store(if yes { crate::kernel::gettid() } else { 0 }, Ordering::Relaxed);
    }

    /// Has the worker block exactly `mask`. The owner calls.
    #[inline(always)]
    pub(crate) fn follow_mask(&self, mask: u64) {
        if self.mask.get() != mask {
            self.change_mask(mask, 0);
        }
    }

    /// Has the worker block `mask`, and `also` for some while. The owner calls.
    #[cold]
    #[inline(never)]
    pub(crate) fn change_mask(&self, mask: u64, also: u64) {
        self.mask.set(mask);
        crate::kernel::set_signal_mask(mask | also);
    }

    /// Has the worker block what it did before it ran fibers. The owner calls.
    pub(super) fn follow_usual_mask(&self) {
        self.follow_mask(self.usual_mask.get());
    }

    /// Gives the worker a seat, or none, in a runtime of so many `workers`. The owner calls.
    pub(super) fn takes_seat(&self, seat: Option<&'static Seat>, workers: usize) {
        self.seat.set(seat);
        let number = seat.map_or(workers + self.index, |seat| usize::from(seat.number()));
        // Relaxed, here and below: a number for its own sake.
        self.number.store(number, Ordering::Relaxed);
    }

    /// Takes the seat from the worker. The owner calls.
    pub(super) fn leaves_seat(&self) -> Option<&'static Seat> {
        self.seat.take()
    }

    /// The worker's seat. The owner calls, here and in the next one.
    pub(super) fn seat(&self) -> Option<&'static Seat> {
        self.seat.get()
    }

    /// How many calls have blocked the worker so far.
    pub(crate) fn calls(&self) -> u64 {
        // Relaxed: a momentary view.
        self.calls.load(Ordering::Relaxed)
    }

    /// The kernel's id of the worker's thread, 0 if there is none.
    pub(crate) fn thread(&self) -> u32 {
        // Relaxed: whoever uses it checks what it leads to.
        self.thread.load(Ordering::Relaxed)
    }

    /// Whether the worker is in a call that blocks it.
    pub(crate) fn is_blocked(&self) -> bool {
        // Relaxed: a momentary view.
        self.blocked.load(Ordering::Relaxed)
    }

    /// Whether the worker must keep its seat.
    pub(super) fn is_bound(&self) -> bool {
        self.seat.get().is_some_and(Seat::is_bound)
    }

    /// The worker's number: that of its seat, or a larger one than any seat's.
    pub(crate) fn number(&self) -> usize {
        self.number.load(Ordering::Relaxed)
    }

    /// Queues what can run, at the place that it belongs to.
    ///
    /// # Safety
    /// The owner calls. The runnable is in no other list, and of this processor's runtime.
    #[inline]
    pub(super) unsafe fn push(&self, runnable: NonNull<Runnable>) {
        // SAFETY: by contract.
        match unsafe { runnable.as_ref() }.seat.get() {
            // SAFETY: by contract.
            None => unsafe { self.queue.push(runnable) },
            Some(seat) => self.core.give_pinned(seat, runnable),
        }
    }

    /// Takes what the worker runs next: the oldest of its queue, or by turns of what is pinned to it.
    ///
    /// # Safety
    /// The owner calls.
    #[inline]
    pub(super) unsafe fn next(&self) -> Option<NonNull<Runnable>> {
        match self.seat.get() {
            // SAFETY: by contract.
            Some(seat) if seat.len() > 0 => unsafe { self.next_seated(seat) },
            // SAFETY: by contract.
            _ => unsafe { self.queue.pop() },
        }
    }

    /// # Safety
    /// As for [`Processor::next`].
    #[cold]
    unsafe fn next_seated(&self, seat: &Seat) -> Option<NonNull<Runnable>> {
        // SAFETY: by contract.
        let queued = || unsafe { self.queue.pop() };
        // Relaxed: the owner is the only writer.
        if self.switches.load(Ordering::Relaxed).is_multiple_of(2) {
            queued().or_else(|| seat.take())
        } else {
            seat.take().or_else(queued)
        }
    }

    /// Queues fibers that have become runnable, none of which is pinned. The owner calls.
    pub(crate) fn ready(&self, mut batch: Batch) {
        let several = batch.count > 1;
        while let Some(runnable) = batch.take() {
            // SAFETY: the owner calls; the batch owned the runnable.
            unsafe { self.queue.push(runnable) };
        }
        // One alone is left to this worker, see the essay in `mod.rs`; but not to one that was
        // stuck, for whose queue the monitor may have ceased to look. Relaxed: it looks a few
        // times more after it has set this.
        if several || self.queue.len() > 1 || self.blocked.load(Ordering::Relaxed) {
            self.core.notify();
        }
    }

    /// Whether nobody waits for this worker's time. The owner calls.
    pub(super) fn alone(&self) -> bool {
        // Counted only if it takes the place of a switch: two counts for one would step over every
        // 64th. That one is let through, so that the worker looks further even so. Relaxed: a hint.
        self.queue.len() == 0
            && self.seat.get().is_none_or(|seat| seat.len() == 0)
            && !self.core.has_injected()
            && !self.overdue.load(Ordering::Relaxed)
            && !self.count_switch().is_multiple_of(64)
    }

    /// Counts a switch, and says whether this one goes by the worker's own stack, which looks further than
    /// the queue: every 64th, and one in each tick of the monitor, for 64 fibers may take long. The owner calls.
    #[inline]
    pub(super) fn is_to_look(&self) -> bool {
        // Relaxed: a hint.
        self.count_switch().is_multiple_of(64) || self.overdue.load(Ordering::Relaxed)
    }

    /// Counts a switch; the owner calls.
    #[inline]
    pub(super) fn count_switch(&self) -> u64 {
        // Relaxed: the owner is the only writer, readers compare two readings of their own.
        let count = self.switches.load(Ordering::Relaxed) + 1;
        self.switches.store(count, Ordering::Relaxed);
        count
    }

    /// A number below `bound`. The owner calls.
    pub(super) fn random(&self, bound: usize) -> usize {
        // Marsaglia, "Xorshift RNGs", 2003.
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.random.set(x);
        ((u64::from(x) * bound as u64) >> 32) as usize
    }

    /// A free slot for `task`, if there is one of the right size. The owner calls.
    #[inline]
    pub(super) fn warm_slot(
        &self,
        space: &Space,
        task: NonNull<Header>,
    ) -> Option<NonNull<Control>> {
        // SAFETY: the task is in the caller's hands.
        self.free_slot(space, unsafe { task.as_ref() }.stack)
    }

    /// A free slot of `size` bytes, if there is one. The owner calls.
    #[inline]
    pub(crate) fn free_slot(&self, space: &Space, size: usize) -> Option<NonNull<Control>> {
        self.shelf.take(space, size, size == self.core.slot_size())
    }

    /// Takes back the slot of a fiber that has ended. The owner calls.
    ///
    /// # Safety
    /// Nothing runs on the slot any more.
    #[inline]
    pub(super) unsafe fn keep_slot(&self, space: &Space, slot: NonNull<Control>) {
        // SAFETY: by contract.
        unsafe {
            if slot.as_ref().slot.size() == self.core.slot_size() {
                self.shelf.give(space, slot);
            } else {
                space.give(slot);
            }
        }
    }

    /// Gives the slots of its own to everybody. The owner calls, or whoever has taken the processor over.
    pub(super) fn shed_slots(&self, space: &Space) {
        self.shelf.clear(space);
    }
}
