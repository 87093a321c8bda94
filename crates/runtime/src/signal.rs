//! Signals of a fiber: which it blocks, which have been sent to it, and how it comes to hear of them.
//!
//! A signal is sent to a process or to a thread (signal(7)). One for the process goes to whichever thread lets it in: that is the
//! kernel's business. For that, the OS thread that runs a fiber blocks what the fiber blocks ([`set_mask`]; a
//! compare at each switch, a system call only between fibers that differ). A worker that idles blocks all: the
//! program's own threads get what no running fiber wants.
//!
//! A signal for a fiber the kernel cannot deliver: it is kept here, one bit each, and the fiber is told:
//!
//! ```text
//!   send:  pending |= signal ─▶ interrupt: the wait that it is in ends, or its next one
//!                          └──▶ kick: if it runs, its OS thread gets the signal KICK
//!
//!   on the fiber:  the wait has ended, or KICK's handler runs on its stack
//!                    └▶ deliver (the C library's side): the program's handler for each that is not blocked
//! ```
//!
//! KICK says nothing but "look": whoever gets it too late, because the thread runs another fiber by now, finds nothing
//! pending. If it finds the runtime at work, the fiber hears of it at the end of its next wait, and
//! the monitor kicks again at each of its looks: a fiber that only computes is reached, too.
//!
//! What a handler did to the call that it interrupted (`EINTR`, or the call goes on) is decided by who made the call; see
//! [`ended_by_handler`].
//!
//! Sources: signal(7), pthread_kill(3), pthread_sigmask(3).

mod values;

use std::cell::Cell;
use std::ffi::c_int;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use crate::fiber::{Control, current};
use crate::interpose;
use crate::kernel;
use crate::scheduler::{self, Core, Processor};
use crate::wait::interrupt;

/// The signal by which an OS thread is asked to look at its fiber's: the last real-time one.
pub const KICK: c_int = 64;

/// All signals but the two that glibc keeps for itself, 32 and 33 (setuid(2) waits for every thread to answer), and the
/// kick.
pub(crate) const ALL: u64 = !(0b11 << 31 | 1 << (KICK - 1));

/// A handler has run.
const RAN: u8 = 1;
/// One of them does not let calls go on (no `SA_RESTART`).
const BREAKS: u8 = 2;
/// The OS thread has been kicked.
const KICKED: u8 = 4;

/// Some fiber has blocked other signals than its runtime's usual ones.
static DIFFER: AtomicBool = AtomicBool::new(false);

/// Whether it matters which worker lets which signals in, while it runs no fiber.
pub(crate) fn masks_differ() -> bool {
    // Relaxed: whoever has changed a mask needs what comes after, which reaches a worker by a queue or the kernel.
    DIFFER.load(Ordering::Relaxed)
}

/// A fiber of a runtime with this `usual` mask blocks `mask`.
pub(crate) fn note_mask(mask: u64, usual: u64) {
    // Relaxed: see `masks_differ`. Written once, for its cache line.
    if mask != usual && !DIFFER.load(Ordering::Relaxed) {
        DIFFER.store(true, Ordering::Relaxed);
    }
}

/// What is kept of a fiber.
pub(crate) struct Signals {
    /// What it has been sent and has not heard of.
    pending: AtomicU64,
    /// What handlers have run since somebody asked. The fiber's own.
    handled: Cell<u8>,
}

impl Signals {
    pub(crate) fn new() -> Signals {
        Signals { pending: AtomicU64::new(0), handled: Cell::new(0) }
    }

    /// Of a fiber that begins.
    pub(crate) fn begin(&self) {
        self.handled.set(0);
        // Relaxed: nobody knows the new fiber yet.
        if self.pending.load(Ordering::Relaxed) != 0 {
            values::forget(self);
            self.pending.store(0, Ordering::Relaxed);
        }
    }
}

/// The set of one signal.
#[must_use]
pub fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

/// What the C library's side does about signals that are pending; null until it has said so.
static DELIVER: AtomicPtr<()> = AtomicPtr::new(null_mut());

/// Whether [`KICK`] has a handler that calls [`kicked`].
static KICKS: AtomicBool = AtomicBool::new(false);

/// Says who runs the program's handlers. `deliver` is called on the fiber, which may park in it. `kicks`: [`KICK`] has a handler that calls
/// [`kicked`], and may be sent.
pub fn on_delivery(deliver: fn(), kicks: bool) {
    // Relaxed: as in `is_used`.
    KICKS.store(kicks, Ordering::Relaxed);
    // Release: pairs with `look`.
    DELIVER.store(deliver as *mut (), Ordering::Release);
}

/// The calling fiber's control block.
fn own<'a>() -> Option<&'a Control> {
    // SAFETY: the caller's own, which is there as long as it runs.
    current().map(|control| unsafe { &*control.as_ptr() })
}

/// The signals that the calling fiber blocks; `None` on a thread that is none.
#[must_use]
pub fn mask() -> Option<u64> {
    own().map(|own| own.mask.get())
}

/// Makes the calling fiber block exactly `mask`, and its OS thread as long as that runs it. Does nothing on a thread that is no
/// fiber. What is pending and let in now is looked at by [`look`].
pub fn set_mask(mask: u64) {
    if let Some(own) = own() {
        own.mask.set(mask);
        note_mask(mask, own.processor().core().usual_mask());
        own.processor().follow_mask(mask);
    }
}

/// As [`set_mask`], in the handler of [`KICK`]: the thread blocks that as well, until the handler returns, if `hold`, and lets it in
/// if not.
pub fn set_mask_in_kick(mask: u64, hold: bool) {
    if let Some(own) = own() {
        own.mask.set(mask);
        own.processor().change_mask(mask, if hold { bit(KICK) } else { 0 });
    }
}

/// The signals that have been sent to the calling fiber and wait for it.
#[must_use]
pub fn pending() -> u64 {
    // Acquire: with `send`.
    own().map_or(0, |own| own.signals.pending.load(Ordering::Acquire))
}

/// Takes the first of `among` that is pending for the calling fiber, blocked or not; with its value, if it was sent with one.
pub fn take(among: u64) -> Option<(c_int, Option<usize>)> {
    let control = own()?;
    let own = &control.signals;
    // Acquire: with `send`; here and below.
    let mut seen = own.pending.load(Ordering::Acquire);
    while seen & among != 0 {
        let signal = (seen & among).trailing_zeros() as c_int + 1;
        let rest = seen & !bit(signal);
        // A signal may be added meanwhile by anybody.
        match own.pending.compare_exchange(seen, rest, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => return Some((signal, values::take(control, signal))),
            Err(now) => seen = now,
        }
    }
    None
}

/// Whether `fiber` lets in a signal that is pending.
fn is_wanted(fiber: &Control) -> bool {
    // Acquire: with `send`.
    fiber.signals.pending.load(Ordering::Acquire) & !fiber.mask.get() != 0
}

/// Has the calling fiber's signals delivered, if there are any that it lets in.
#[inline]
pub fn look() {
    if own().is_some_and(is_wanted) && may_deliver() {
        deliver();
    }
}

#[cold]
fn deliver() {
    // Acquire: see `on_delivery`.
    let deliver = DELIVER.load(Ordering::Acquire);
    if !deliver.is_null() {
        // SAFETY: null or a function of this type.
        unsafe { std::mem::transmute::<*mut (), fn()>(deliver)() };
    }
}

/// The handler of [`KICK`] begins. Whether it may do what is wanted of the calling fiber: the runtime is not at work on its
/// stack. Then the fiber has heard.
pub fn kicked() -> bool {
    let Some(own) = own() else { return false };
    own.signals.handled.set(own.signals.handled.get() | KICKED);
    let may = may_deliver();
    if may {
        own.attention.take();
    }
    may
}

/// Has the calling fiber's next wait interrupted.
pub fn remind() {
    if let Some(own) = own() {
        own.attention.call();
    }
}

/// Whether the calling fiber's OS thread has been kicked since this was last asked: a call that has just ended with `EINTR` may
/// have ended for that alone.
pub fn was_kicked() -> bool {
    own().is_some_and(|own| {
        let handled = own.signals.handled.get();
        own.signals.handled.set(handled & !KICKED);
        handled & KICKED != 0
    })
}

/// Whether the caller is a fiber on whose stack the runtime is not at work: a handler may run here.
#[must_use]
pub fn may_deliver() -> bool {
    !interpose::is_at_work()
}

/// A handler of the program's has run on the calling fiber; `restarts` says that it lets calls go on (`SA_RESTART`).
pub fn handled(restarts: bool) {
    if let Some(own) = own() {
        own.signals
            .handled
            .set(own.signals.handled.get() | if restarts { RAN } else { RAN | BREAKS });
    }
}

/// What handlers have run is forgotten while `f` runs, and remembered again: a handler's own calls are no business of
/// the call that it interrupts.
pub fn aside<T>(f: impl FnOnce() -> T) -> T {
    let before = own().map_or(0, |own| own.signals.handled.replace(0));
    let value = f();
    if let Some(own) = own() {
        own.signals.handled.set(before);
    }
    value
}

/// Whether the call that has just been interrupted ends, with `EINTR`: a handler has run, and the call is none that goes on
/// (`restartable`) or the handler one that lets none. Asked once.
pub fn ended_by_handler(restartable: bool) -> bool {
    let handled =
        own().map_or(0, |own| own.signals.handled.replace(own.signals.handled.get() & KICKED));
    if restartable { handled & BREAKS != 0 } else { handled & RAN != 0 }
}

/// Sends `signal` to the fiber of `control`, one of `core`'s. Async-signal-safe.
///
/// The slot stays the fiber's during the call, or the next fiber may get the signal.
pub(crate) fn send(core: &Core, control: NonNull<Control>, signal: c_int) {
    // SAFETY: slots are never unmapped; an atomic.
    let pending = unsafe { &(*control.as_ptr()).signals.pending };
    // AcqRel: the fiber sees what was done before the signal.
    pending.fetch_or(bit(signal), Ordering::AcqRel);
    tell(core, control);
}

/// As [`send`], with a value; `false` if there is no room for it. Not async-signal-safe, but it gives up rather than hang.
pub(crate) fn send_value(
    core: &Core,
    control: NonNull<Control>,
    signal: c_int,
    value: usize,
) -> bool {
    let sent = values::append(control, signal, value);
    if sent {
        tell(core, control);
    }
    sent
}

/// Interrupts the fiber of `control`, and kicks its OS thread if it runs. Async-signal-safe.
pub(crate) fn tell(core: &Core, control: NonNull<Control>) {
    interrupt::interrupt_in_handler(control);
    scheduler::kick(core, control);
}

/// Whether kicks may be sent.
fn is_used() -> bool {
    // Relaxed: whoever sends has seen it set.
    KICKS.load(Ordering::Relaxed)
}

/// Kicks the OS thread of `processor` if its fiber has been told of something and has not looked yet: the monitor's part.
pub(crate) fn kick_again(processor: &Processor) {
    // Relaxed, both: looked at anew in the next round.
    let control = processor.running.load(Ordering::Relaxed);
    // SAFETY: null, or a control block: slots are never unmapped.
    if is_used() && unsafe { control.as_ref() }.is_some_and(|fiber| fiber.attention.is_set()) {
        kick(processor.thread.load(Ordering::Relaxed));
    }
}

/// Kicks the OS thread `thread` of this process.
pub(crate) fn kick(thread: u32) {
    if thread != 0 && is_used() {
        kernel::send_signal(thread, KICK);
    }
}

/// Sends `signal` to the calling fiber itself, which blocks it. `false` on a thread that is no fiber.
pub fn keep(signal: c_int) -> bool {
    // AcqRel: as in `send`.
    own().map(|own| own.signals.pending.fetch_or(bit(signal), Ordering::AcqRel)).is_some()
}
