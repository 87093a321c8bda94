//! The control block: everything the runtime keeps about a started fiber.
//!
//! It sits in the fiber's slot between stack and identity and is found from the thread pointer.
//! What a switch touches stands in its first line.

use std::cell::{Cell, UnsafeCell};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, compiler_fence};

use sleave_context::Context;
use sleave_context::stack::Slot;

use super::{Header, Kind, Peek, Runnable};
use crate::green::Green;
use crate::identity::{thread_pointer, thread_pointer_in_register};
use crate::inspect::OfWait;
use crate::scheduler::Processor;
use crate::signal::Signals;
use crate::trace::OfFiber;
use crate::wait::interrupt::Attention;
use crate::wait::{Timeouts, WaitWord};

/// A started fiber, or one that has ended and waits to be used again.
#[repr(C, align(64))]
pub(crate) struct Control {
    /// First, so that a queue's pointer is the control block's.
    pub(crate) link: Runnable,
    /// The address of its `struct pthread`.
    pub(crate) thread_pointer: usize,
    /// Who runs the fiber, or ran it last. Written by whoever resumes it.
    pub(crate) processor: Peek<Processor>,
    /// The registers, while the fiber does not run.
    pub(crate) context: UnsafeCell<Context>,
    // ---- the first cache line ends here ----
    /// Who wakes it.
    pub(crate) wait: WaitWord,
    /// Not zero: the C library's calls pass through. The runtime is at work on this fiber's
    /// stack, or its program has asked for it; `interpose` says which bits are whose.
    pub(crate) bypass: Cell<u32>,
    /// Which OS thread has run it last, see `Processor::carrier`; 0 for none.
    pub(crate) carrier: Cell<u32>,
    /// Something is wanted of it.
    pub(crate) attention: Attention,
    /// It may have been cancelled, or be out of time: see `cancel`.
    pub(crate) stop: AtomicBool,
    /// The signals that it blocks.
    pub(crate) mask: Cell<u64>,
    /// When its waits give up that state no time of their own.
    pub(crate) timeouts: Cell<Timeouts>,
    /// What it waits for, or did.
    pub(crate) wants: OfWait,
    /// The signals that it has been sent.
    pub(crate) signals: Signals,
    /// What it runs; `None` when it has ended.
    pub(crate) task: Peek<Header>,
    /// Its identity has been somebody's: the next fiber needs it fresh.
    pub(crate) used: Cell<bool>,
    /// What is kept of it as a thread of `pthread_create`'s; null if it is none. See [`crate::green`].
    pub(crate) green: AtomicPtr<Green>,
    /// What the trace keeps of it.
    pub(crate) trace: OfFiber,
    /// The memory that all this lies in.
    pub(crate) slot: Slot,
}

const _: () = assert!(std::mem::offset_of!(Control, wait) == 64);
/// What a wait looks at. (Loom's atomics are larger.)
#[cfg(not(loom))]
const _: () = assert!(std::mem::offset_of!(Control, timeouts) + size_of::<Timeouts>() <= 128);
#[cfg(not(loom))]
const _: () = assert!(std::mem::offset_of!(Control, wants) + size_of::<OfWait>() <= 128);

impl Control {
    /// Of a fiber that has not begun, in `slot`.
    pub(crate) fn new(thread_pointer: usize, slot: Slot) -> Control {
        Control {
            link: Runnable::new(Kind::Started),
            thread_pointer,
            processor: Peek::none(),
            context: UnsafeCell::new(Context::empty()),
            wait: WaitWord::new(),
            carrier: Cell::new(0),
            stop: AtomicBool::new(false),
            mask: Cell::new(0),
            signals: Signals::new(),
            attention: Attention::new(),
            bypass: Cell::new(1),
            timeouts: Cell::new(Timeouts::NONE),
            wants: OfWait::new(),
            task: Peek::none(),
            used: Cell::new(false),
            green: AtomicPtr::new(null_mut()),
            trace: OfFiber::new(),
            slot,
        }
    }

    /// The processor that runs this fiber.
    pub(crate) fn processor(&self) -> &'static Processor {
        self.runner().expect("a started fiber has a processor")
    }

    /// As [`Control::processor`]; `None` if it has never run.
    #[inline(always)]
    pub(crate) fn runner(&self) -> Option<&'static Processor> {
        // SAFETY: processors live for ever.
        self.processor.get().map(|processor| unsafe { processor.as_ref() })
    }

    /// What this fiber runs.
    pub(crate) fn task(&self) -> NonNull<Header> {
        self.task.get().expect("a fiber runs a task until it has ended")
    }
}

/// The runtime at work on the calling fiber's stack, where it holds locks or changes a queue: a
/// signal handler that interrupts it finds interposition inactive (`interpose`). On a thread
/// that is no fiber there is nothing to say: interposition is inactive there anyway.
pub(crate) struct AtWork(Option<NonNull<Control>>);

impl AtWork {
    pub(crate) fn begin() -> AtWork {
        let fiber = current();
        if let Some(control) = fiber {
            // SAFETY: the caller's own control block.
            let bypass = unsafe { &control.as_ref().bypass };
            bypass.set(bypass.get() + 1);
            // The handler runs on this very thread: the compiler alone must keep the order.
            compiler_fence(Ordering::SeqCst);
        }
        AtWork(fiber)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if let Some(control) = self.0 {
            compiler_fence(Ordering::SeqCst);
            // SAFETY: as in `begin`; a fiber that moved meanwhile has the same control block.
            let bypass = unsafe { &control.as_ref().bypass };
            bypass.set(bypass.get() - 1);
        }
    }
}

/// Where fibers' thread pointers lie. All zero until the first runtime exists, and for ever
/// where fibers cannot have identities: then nobody is a fiber.
struct Gate {
    base: AtomicUsize,
    len: AtomicUsize,
    /// Thread pointer minus control block.
    offset: AtomicUsize,
}

static GATE: Gate =
    Gate { base: AtomicUsize::new(0), len: AtomicUsize::new(0), offset: AtomicUsize::new(0) };

/// Opens the gate: once, before the first fiber exists.
pub(super) fn open_gate(base: usize, len: usize, offset: usize) {
    // Relaxed: the first fiber is created and published after this by its creator, and for
    // whoever is not a fiber old and new values give the same answer.
    GATE.base.store(base, Ordering::Relaxed);
    GATE.offset.store(offset, Ordering::Relaxed);
    GATE.len.store(len, Ordering::Relaxed);
}

/// Whether there may have been a fiber in this process.
#[inline(always)]
pub(crate) fn may_exist() -> bool {
    // Relaxed: see `open_gate`.
    GATE.len.load(Ordering::Relaxed) != 0
}

/// Whether `address` lies where fibers' slots are.
#[inline(always)]
pub(crate) fn in_slots(address: usize) -> bool {
    // Relaxed: see `open_gate`.
    let from_base = address.wrapping_sub(GATE.base.load(Ordering::Relaxed));
    from_base < GATE.len.load(Ordering::Relaxed)
}

/// Whether the caller is a fiber.
#[inline(always)]
pub(crate) fn in_fiber() -> bool {
    in_slots(thread_pointer())
}

/// As [`current`], without a look at the caller's identity: for who may otherwise need nothing of it.
#[inline(always)]
pub(crate) fn current_by_register() -> Option<NonNull<Control>> {
    if !may_exist() {
        return None;
    }
    // SAFETY: the gate is open, so there is a kit.
    let thread_pointer = unsafe { thread_pointer_in_register() };
    // Relaxed: see `open_gate`.
    let offset = GATE.offset.load(Ordering::Relaxed);
    if in_slots(thread_pointer) {
        NonNull::new((thread_pointer - offset) as *mut Control)
    } else {
        None
    }
}

/// The calling fiber's control block, if the caller is a fiber.
#[inline(always)]
pub(crate) fn current() -> Option<NonNull<Control>> {
    if !in_fiber() {
        return None;
    }
    // Relaxed: see `open_gate`.
    NonNull::new((thread_pointer() - GATE.offset.load(Ordering::Relaxed)) as *mut Control)
}
