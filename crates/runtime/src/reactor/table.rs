//! Descriptors by their numbers: the table, and what the rest of the runtime calls.
//!
//! The table has one entry for each descriptor number, in leaves that are made when first needed
//! and never freed. Registration with the driver is lazy: a descriptor that never makes anybody wait
//! is never registered.

use std::os::fd::RawFd;
use std::pin::pin;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use sleave_context::lock::Lock;
use syscalls::Errno;

use super::descriptor::{Descriptor, Direction, Joined, State};
use super::queue::Waiter;
use super::{Driver, own};
use crate::fiber::current;
use crate::inspect::Awaited;
use crate::kernel;
use crate::trace::{self, Why};
use crate::wait::{Batch, Deadline, Reason, Wait, interrupt};

/// Entries of a leaf and leaves of the table: numbers up to 2^24.
const LEAF: usize = 1 << 12;
const LEAVES: usize = 1 << 12;

/// How a [`wait`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// A try may succeed now.
    Ready,
    /// The deadline came first.
    TimedOut,
    /// The descriptor was closed.
    Closed,
    /// Something else was wanted of the fiber, which has attended to it.
    Interrupted,
    /// epoll does not watch such descriptors: a try blocks, or fails at once.
    Unpollable,
}

static TABLE: [AtomicPtr<Descriptor>; LEAVES] = [const { AtomicPtr::new(null_mut()) }; LEAVES];

/// The entry of `fd` if it has one.
#[inline]
pub(super) fn lookup(fd: RawFd) -> Option<&'static Descriptor> {
    let number = usize::try_from(fd).ok()?;
    // Acquire pairs with the Release in `entry`.
    let leaf = TABLE.get(number / LEAF)?.load(Ordering::Acquire);
    // SAFETY: a leaf has LEAF entries and is never freed.
    (!leaf.is_null()).then(|| unsafe { &*leaf.add(number % LEAF) })
}

/// The entry of `fd`; `None` if such a number cannot be.
pub(super) fn entry(fd: RawFd) -> Option<&'static Descriptor> {
    static GROWING: Lock<()> = Lock::new(());
    if let Some(found) = lookup(fd) {
        return Some(found);
    }
    let number = usize::try_from(fd).ok()?;
    let place = TABLE.get(number / LEAF)?;
    let _growing = GROWING.lock();
    if lookup(fd).is_none() {
        let leaf: Box<[Descriptor]> = (0..LEAF).map(|_| Descriptor::new()).collect();
        // Release publishes the entries.
        place.store(Box::leak(leaf).as_mut_ptr(), Ordering::Release);
    }
    lookup(fd)
}

/// The name under which the events of a description are reported.
fn name(fd: RawFd, generation: u32) -> u64 {
    // The driver's own names have all upper bits set; generations never do.
    u64::from(generation) << 32 | fd as u64
}

/// An event that a driver has collected.
pub(super) fn event(name: u64, events: u32, woken: &mut Batch) {
    if let Some(descriptor) = lookup(name as u32 as RawFd) {
        descriptor.report((name >> 32) as u32, events, woken);
    }
}

/// Sees to it that events of `fd` are reported to `driver`. Says whether they were not before:
/// then what is ready already will be reported as well.
pub(super) fn register(
    descriptor: &Descriptor,
    state: &mut State,
    fd: RawFd,
    driver: &Driver,
) -> Result<bool, Errno> {
    let add = |generation| driver.register(fd, name(fd, generation));
    descriptor.register(state, driver.id(), add)
}

/// Queues `waiter` for `direction` of `fd`: [`Descriptor::join`].
///
/// # Safety
/// `waiter` stays where it is until it has been released with [`part`].
pub(super) unsafe fn join(
    fd: RawFd,
    direction: Direction,
    driver: &Driver,
    waiter: &Waiter,
    unless_ready: bool,
) -> Joined {
    let Some(descriptor) = entry(fd) else { return Joined::Unpollable };
    let watch = |state: &mut State| register(descriptor, state, fd, driver);
    // SAFETY: by contract.
    unsafe { descriptor.join(direction, waiter, unless_ready, watch) }
}

/// Takes `waiter` out if no waker has.
pub(super) fn part(fd: RawFd, direction: Direction, waiter: &Waiter) {
    if let Some(descriptor) = lookup(fd) {
        descriptor.part(direction, waiter);
    }
}

/// The calling fiber's driver.
pub(super) fn driver() -> &'static Driver {
    let control = current().expect("only a fiber waits here");
    // SAFETY: the caller's own control block.
    &unsafe { control.as_ref() }.processor().core().driver
}

/// Parks the calling fiber until `fd` may be ready in `direction`, or `deadline` passes.
///
/// Spurious returns are possible: the caller tries, and waits again on `EAGAIN`.
///
/// # Panics
/// If the caller is not a fiber.
pub fn wait(fd: RawFd, direction: Direction, deadline: Deadline) -> Readiness {
    let driver = driver();
    let wait = Wait::prepare();
    let waiter = pin!(Waiter::new(wait.control(), false));
    // SAFETY: pinned, and released below.
    let joined = unsafe { join(fd, direction, driver, &waiter, true) };
    if joined != Joined::Waiting {
        wait.abandon();
        return match joined {
            Joined::Closed => Readiness::Closed,
            Joined::Unpollable => Readiness::Unpollable,
            Joined::Ready | Joined::Waiting => Readiness::Ready,
        };
    }
    let _why = trace::because(Why::Descriptor);
    let what = match direction {
        Direction::Read => Awaited::Readable(fd),
        Direction::Write => Awaited::Writable(fd),
    };
    let reason = wait.commit(what, deadline);
    part(fd, direction, &waiter);
    match interrupt::attended(reason) {
        Reason::Woken => Readiness::Ready,
        Reason::TimedOut => Readiness::TimedOut,
        Reason::Closed => Readiness::Closed,
        Reason::Interrupted => Readiness::Interrupted,
    }
}

/// Whether `fd` is known to have nothing in `direction`: a try would only say `EAGAIN`, and
/// [`wait`] will hear of it when that changes.
#[inline]
pub fn drained(fd: RawFd, direction: Direction) -> bool {
    lookup(fd).is_some_and(|descriptor| descriptor.drained(direction))
}

/// To be called right before a try: forgets cached readiness, so that the flag speaks of what
/// comes from now on.
#[inline]
pub fn attempt(fd: RawFd, direction: Direction) {
    if let Some(descriptor) = lookup(fd) {
        descriptor.attempt(direction);
    }
}

/// To be called after a try, unless it said `EAGAIN`: with `more` if it has not proved that
/// nothing is left. Passes readiness on to the next who waits.
#[inline]
pub fn leave(fd: RawFd, direction: Direction, more: bool) {
    if let Some(descriptor) = lookup(fd) {
        descriptor.leave(direction, more).schedule();
    }
}

/// Whether the peer has hung up, or an error or urgent data was reported: then a short read
/// does not prove that nothing is left.
#[inline]
pub fn hung_up(fd: RawFd) -> bool {
    lookup(fd).is_some_and(Descriptor::hung_up)
}

/// Says that the number `fd` names a new description.
pub fn opened(fd: RawFd) {
    if let Some(descriptor) = lookup(fd) {
        let mut woken = Batch::new();
        descriptor.renew(&mut woken);
        woken.schedule();
    }
}

/// Says that the description of `fd` has, or may have, another descriptor.
pub fn shared(fd: RawFd) {
    if let Some(descriptor) = entry(fd) {
        descriptor.share();
    }
}

/// Tells apart the descriptions that `fd` names one after the other.
pub(super) fn generation(fd: RawFd) -> u32 {
    lookup(fd).map_or(0, |descriptor| descriptor.state.lock().generation())
}

/// Closes `fd` by `call`, and tells whoever waits for it.
///
/// The number is renewed before, so that nothing of the old description can reach the next one
/// of that number, which may exist as soon as `call` has done its work.
///
/// A descriptor of the runtime's own is none that the program could close: `-EBADF`, without `call`.
pub fn close(fd: RawFd, call: impl FnOnce() -> isize) -> isize {
    if own::is_own(fd) {
        return -(libc::EBADF as isize);
    }
    let Some(descriptor) = lookup(fd) else { return call() };
    let mut woken = Batch::new();
    let forget = |state: &State| {
        if current().is_some() && state.is_watched_by(driver().id()) {
            driver().unregister(fd);
        }
    };
    let generation = descriptor.close(forget, &mut woken);
    let result = call();
    descriptor.closed(generation);
    woken.schedule();
    result
}

/// Whether the descriptors that are known here are the calling process's: not in a child of fork(2),
/// nor in one of vfork(2), which runs in its parent's memory.
pub fn is_this_process() -> bool {
    kernel::is_this_process()
}

/// Closes the numbers from `first` to `last` by `call`, and tells whoever waits for one of them. See
/// [`close`].
///
/// Every entry is locked: in a child of fork(2) somebody may hold one for ever, see
/// [`is_this_process`].
pub fn close_range(first: u32, last: u32, call: impl FnOnce() -> isize) -> isize {
    let mut woken = Batch::new();
    let mut closing = Vec::new();
    let last = last.min((LEAF * LEAVES - 1) as u32);
    let leaves = first as usize / LEAF..(last as usize / LEAF + 1).min(LEAVES);
    for leaf in leaves.filter(|&leaf| lookup((leaf * LEAF) as RawFd).is_some()) {
        let numbers =
            (leaf * LEAF).max(first as usize)..=(leaf * LEAF + LEAF - 1).min(last as usize);
        for fd in numbers.map(|number| number as RawFd) {
            let Some(descriptor) = lookup(fd) else { continue };
            // Descriptions that live on elsewhere are reported under a name that is nobody's then.
            closing.push((descriptor, descriptor.close(|_| (), &mut woken)));
        }
    }
    let result = call();
    for (descriptor, generation) in closing {
        descriptor.closed(generation);
    }
    woken.schedule();
    result
}
