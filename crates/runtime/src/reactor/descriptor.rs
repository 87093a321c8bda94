//! What is known of each descriptor: readiness, and who waits for it.
//!
//! ```text
//!   number ─▶ leaf ─▶ Descriptor { flags, Lock { generation, driver, readers ⇄ …, writers ⇄ …,
//!                                                registrations } }
//! ```
//!
//! The table has one entry for each descriptor number, in leaves that are made when first needed
//! and never freed. A **generation** distinguishes the descriptions that a number names one after the
//! other: an event carries the generation under which it was registered, and one of a former
//! generation is ignored, so a reused number never wakes the wrong fiber. Registration is lazy:
//! a descriptor that never makes anybody wait is never registered.
//!
//! Waiters of one direction queue in the order of their coming. An event wakes the first of those
//! who will try an operation, and all who only look (`poll`); whoever leaves something behind
//! wakes the next ([`leave`]). An error or hang-up wakes all.

use std::cell::UnsafeCell;
use std::marker::PhantomPinned;
use std::os::fd::RawFd;
use std::pin::pin;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use sleave_context::lock::Lock;
use syscalls::Errno;

use super::event::{Event, Registrations};
use super::{Driver, own};
use crate::fiber::{Control, current};
use crate::kernel;
use crate::trace::{self, Why};
use crate::wait::{Batch, Deadline, Reason, Wait};

/// Entries of a leaf and leaves of the table: numbers up to 2^24.
const LEAF: usize = 1 << 12;
const LEAVES: usize = 1 << 12;

/// The directions of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Something can be read, or a connection accepted.
    Read,
    /// Something can be written, or a connection is made.
    Write,
}

/// How a [`wait`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// A try may succeed now.
    Ready,
    /// The deadline came first.
    TimedOut,
    /// The descriptor was closed.
    Closed,
    /// epoll does not watch such descriptors: a try blocks, or fails at once.
    Unpollable,
}

// Bits of `flags`.
const READ_READY: u32 = 1;
const WRITE_READY: u32 = 2;
/// Seen: hang-up, error, or urgent data. Sticky.
const HUNG_UP: u32 = 4;
/// Events of this description are reported.
const REGISTERED: u32 = 8;
const HAS_READERS: u32 = 16;
const HAS_WRITERS: u32 = 32;
/// The description has other descriptors.
const SHARED: u32 = 64;
/// It is being closed at this moment.
const CLOSING: u32 = 128;

impl Direction {
    fn ready(self) -> u32 {
        match self {
            Direction::Read => READ_READY,
            Direction::Write => WRITE_READY,
        }
    }

    fn waiters(self) -> u32 {
        match self {
            Direction::Read => HAS_READERS,
            Direction::Write => HAS_WRITERS,
        }
    }

    pub(super) const BOTH: [Direction; 2] = [Direction::Read, Direction::Write];
}

#[repr(align(64))]
pub(super) struct Descriptor {
    /// Read without the lock; changed under it, but for the readiness bits.
    flags: AtomicU32,
    pub(super) state: Lock<State>,
}

/// A descriptor has a cache line for itself.
const _: () = assert!(size_of::<Descriptor>() == 64);

pub(super) struct State {
    generation: u32,
    /// The driver that reports it; 0 if none does.
    driver: u32,
    queues: [Queue; 2],
    /// Callbacks; mostly there are none.
    pub(super) registrations: Option<Box<Registrations>>,
}

/// Waiters of one direction, the longest waiting first.
struct Queue {
    first: *const Waiter,
    last: *const Waiter,
}

// SAFETY: waiters are touched only under the lock of the descriptor that they wait for.
unsafe impl Send for Queue {}

/// One fiber waiting for one direction of one descriptor, on that fiber's stack.
pub(super) struct Waiter {
    control: NonNull<Control>,
    /// It will look only, and leaves readiness to others.
    looks: bool,
    /// Written under the lock; `false` last, when the waiter is released.
    linked: AtomicBool,
    links: UnsafeCell<(*const Waiter, *const Waiter)>,
    _pinned: PhantomPinned,
}

impl Waiter {
    pub(super) fn new(control: NonNull<Control>, looks: bool) -> Waiter {
        Waiter {
            control,
            looks,
            linked: AtomicBool::new(false),
            links: UnsafeCell::new((std::ptr::null(), std::ptr::null())),
            _pinned: PhantomPinned,
        }
    }
}

impl Queue {
    const fn new() -> Queue {
        Queue { first: std::ptr::null(), last: std::ptr::null() }
    }

    /// # Safety
    /// The lock is held; the waiter is in no queue and stays until it is released.
    unsafe fn push(&mut self, waiter: &Waiter) {
        // SAFETY: links are guarded by the lock.
        unsafe {
            *waiter.links.get() = (self.last, std::ptr::null());
            match self.last.as_ref() {
                Some(last) => (*last.links.get()).1 = waiter,
                None => self.first = waiter,
            }
        }
        self.last = waiter;
        // Relaxed: under the lock.
        waiter.linked.store(true, Ordering::Relaxed);
    }

    /// # Safety
    /// The lock is held; the waiter is in this queue.
    unsafe fn remove(&mut self, waiter: &Waiter) {
        // SAFETY: links are guarded by the lock.
        unsafe {
            let (previous, next) = *waiter.links.get();
            match previous.as_ref() {
                Some(previous) => (*previous.links.get()).1 = next,
                None => self.first = next,
            }
            match next.as_ref() {
                Some(next) => (*next.links.get()).0 = previous,
                None => self.last = previous,
            }
        }
    }

    /// Wakes waiters: those who look, and the first of the others, or `all`.
    fn wake(&mut self, reason: Reason, all: bool, woken: &mut Batch) {
        let mut waiter = self.first;
        let mut one = false;
        // SAFETY: waiters in the queue are alive and guarded by the lock, which the caller holds.
        while let Some(candidate) = unsafe { waiter.as_ref() } {
            // SAFETY: as above.
            waiter = unsafe { (*candidate.links.get()).1 };
            if one && !all && !candidate.looks {
                continue;
            }
            // SAFETY: as above. One that its deadline has claimed already will not try.
            unsafe {
                self.remove(candidate);
                one |= woken.wake(candidate.control, reason) && !candidate.looks;
            }
            // Release: our accesses come before its owner's next.
            candidate.linked.store(false, Ordering::Release);
        }
    }
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
        let leaf: Box<[Descriptor]> = (0..LEAF)
            .map(|_| Descriptor {
                flags: AtomicU32::new(0),
                state: Lock::new(State {
                    generation: 0,
                    driver: 0,
                    queues: [Queue::new(), Queue::new()],
                    registrations: None,
                }),
            })
            .collect();
        // Release publishes the entries.
        place.store(Box::leak(leaf).as_mut_ptr(), Ordering::Release);
    }
    lookup(fd)
}

/// The name under which events are reported.
fn data(fd: RawFd, generation: u32) -> u64 {
    // The driver's own names have all upper bits set; generations never do.
    u64::from(generation & 0x7FFF_FFFF) << 32 | fd as u64
}

/// An event that a driver has collected.
pub(super) fn event(name: u64, events: u32, woken: &mut Batch) {
    let fd = name as u32 as RawFd;
    let Some(descriptor) = lookup(fd) else { return };
    let has = |bits: i32| events & bits as u32 != 0;
    let over = has(libc::EPOLLERR | libc::EPOLLHUP);
    let mut state = descriptor.state.lock();
    if data(fd, state.generation) != name {
        return;
    }
    let mut set = 0;
    if over || has(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLPRI) {
        set |= READ_READY;
    }
    if over || has(libc::EPOLLOUT) {
        set |= WRITE_READY;
    }
    if over || has(libc::EPOLLRDHUP | libc::EPOLLPRI) {
        set |= HUNG_UP;
    }
    // Release, with the Acquire of who sees the flag; mostly the lock does that already.
    descriptor.flags.fetch_or(set, Ordering::Release);
    for direction in Direction::BOTH {
        if set & direction.ready() != 0 {
            state.wake(descriptor, direction, Reason::Woken, over, woken);
            if let Some(registrations) = &mut state.registrations {
                registrations.announce(fd, direction, woken);
            }
        }
    }
}

impl State {
    fn wake(
        &mut self,
        descriptor: &Descriptor,
        direction: Direction,
        reason: Reason,
        all: bool,
        woken: &mut Batch,
    ) {
        self.queues[direction as usize].wake(reason, all, woken);
        self.retract(descriptor, direction);
    }

    /// Says that nobody waits, if that is so.
    fn retract(&self, descriptor: &Descriptor, direction: Direction) {
        if self.queues[direction as usize].first.is_null() {
            // Relaxed: a hint for `leave`, always set again under the lock.
            descriptor.flags.fetch_and(!direction.waiters(), Ordering::Relaxed);
        }
    }

    /// Sees to it that events of `fd` are reported to `driver`. Says whether they were not before:
    /// then what is ready already will be reported as well.
    pub(super) fn register(
        &mut self,
        descriptor: &Descriptor,
        fd: RawFd,
        driver: &Driver,
    ) -> Result<bool, Errno> {
        if self.driver == driver.id() {
            return Ok(false);
        }
        driver.register(fd, data(fd, self.generation))?;
        self.driver = driver.id();
        // Relaxed: read by `drained` as a hint that leads to this lock.
        descriptor.flags.fetch_or(REGISTERED, Ordering::Relaxed);
        Ok(true)
    }
}

/// How a waiter fared on its way into a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Joined {
    /// It is in the queue, and must be released with [`part`].
    Waiting,
    /// It is not: a try may succeed.
    Ready,
    /// It is not: the descriptor is being closed.
    Closed,
    /// It is not: epoll does not watch such descriptors.
    Unpollable,
}

/// Queues `waiter` for `direction` of `fd`; with `unless_ready` not if there is reason to try first.
/// That reason is taken from the flags, as the caller will try, unless the waiter only looks.
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
    let mut state = descriptor.state.lock();
    if descriptor.is_closing() {
        return Joined::Closed;
    }
    if state.register(descriptor, fd, driver).is_err() {
        return Joined::Unpollable;
    }
    // The waiter is announced before it looks: `leave` sets readiness without the lock, and either
    // it is seen here, or it sees the announcement and comes for the lock. (One atomic word, so
    // one order: relaxed is enough. `State::wake` and `part` take it back.)
    descriptor.flags.fetch_or(direction.waiters(), Ordering::Relaxed);
    if unless_ready {
        // Who only looks leaves readiness to those who try. Acquire pairs with the Release in
        // `event` and `leave`: what was ready then is tried now.
        let taken = if waiter.looks { 0 } else { direction.ready() };
        let flags = descriptor.flags.fetch_and(!taken, Ordering::Acquire);
        if flags & direction.ready() != 0 {
            state.retract(descriptor, direction);
            return Joined::Ready;
        }
    }
    // SAFETY: by contract.
    unsafe { state.queues[direction as usize].push(waiter) };
    Joined::Waiting
}

/// Takes `waiter` out if no waker has.
pub(super) fn part(fd: RawFd, direction: Direction, waiter: &Waiter) {
    // Acquire: `false` is the waker's last access.
    if !waiter.linked.load(Ordering::Acquire) {
        return;
    }
    let Some(descriptor) = lookup(fd) else { return };
    let mut state = descriptor.state.lock();
    // Relaxed: under the lock.
    if waiter.linked.load(Ordering::Relaxed) {
        // SAFETY: linked under the lock means in this queue.
        unsafe { state.queues[direction as usize].remove(waiter) };
        state.retract(descriptor, direction);
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
    let reason = wait.commit(deadline);
    part(fd, direction, &waiter);
    match reason {
        Reason::Woken => Readiness::Ready,
        Reason::TimedOut => Readiness::TimedOut,
        Reason::Closed => Readiness::Closed,
    }
}

/// Whether `fd` is known to have nothing in `direction`: a try would only say `EAGAIN`, and
/// [`wait`] will hear of it when that changes.
#[inline]
pub fn drained(fd: RawFd, direction: Direction) -> bool {
    lookup(fd).is_some_and(|descriptor| {
        // Relaxed: the answer leads to `wait`, which looks again under the lock.
        let flags = descriptor.flags.load(Ordering::Relaxed);
        flags & (REGISTERED | direction.ready()) == REGISTERED
    })
}

/// To be called right before a try: forgets cached readiness, so that the flag speaks of what
/// comes from now on.
#[inline]
pub fn attempt(fd: RawFd, direction: Direction) {
    if let Some(descriptor) = lookup(fd) {
        // Relaxed: a bit that is set after this load is newer than this call, and stays.
        if descriptor.flags.load(Ordering::Relaxed) & direction.ready() != 0 {
            // Acquire: the try comes after the event that set it.
            descriptor.flags.fetch_and(!direction.ready(), Ordering::Acquire);
        }
    }
}

/// To be called after a try, unless it said `EAGAIN`: with `more` if it has not proved that
/// nothing is left. Passes readiness on to the next who waits.
#[inline]
pub fn leave(fd: RawFd, direction: Direction, more: bool) {
    let Some(descriptor) = lookup(fd) else { return };
    if more {
        // Release: the try came before.
        let flags = descriptor.flags.fetch_or(direction.ready(), Ordering::Release);
        if flags & direction.waiters() == 0 {
            return;
        }
    } else {
        // Relaxed: an event that came during the try has woken its waiters itself.
        let flags = descriptor.flags.load(Ordering::Relaxed);
        if flags & (direction.ready() | direction.waiters())
            != direction.ready() | direction.waiters()
        {
            return;
        }
    }
    let mut woken = Batch::new();
    descriptor.state.lock().wake(descriptor, direction, Reason::Woken, false, &mut woken);
    woken.schedule();
}

/// Whether the peer has hung up, or an error or urgent data was reported: then a short read
/// does not prove that nothing is left.
#[inline]
pub fn hung_up(fd: RawFd) -> bool {
    // Relaxed: the caller asks after a try; an event that comes later sets readiness as well.
    lookup(fd).is_some_and(|descriptor| descriptor.flags.load(Ordering::Relaxed) & HUNG_UP != 0)
}

/// Says that the number `fd` names a new description.
pub fn opened(fd: RawFd) {
    if let Some(descriptor) = lookup(fd) {
        let mut woken = Batch::new();
        descriptor.renew(fd, &mut descriptor.state.lock(), &mut woken);
        woken.schedule();
    }
}

/// Says that the description of `fd` has, or may have, another descriptor.
pub fn shared(fd: RawFd) {
    if let Some(descriptor) = entry(fd) {
        let _state = descriptor.state.lock();
        // Relaxed: under the lock.
        descriptor.flags.fetch_or(SHARED, Ordering::Relaxed);
    }
}

/// Tells apart the descriptions that `fd` names one after the other.
pub(super) fn generation(fd: RawFd) -> u32 {
    lookup(fd).map_or(0, |descriptor| descriptor.state.lock().generation)
}

impl Descriptor {
    /// Whether it is being closed. The lock is held.
    pub(super) fn is_closing(&self) -> bool {
        // Relaxed: under the lock.
        self.flags.load(Ordering::Relaxed) & CLOSING != 0
    }

    /// Begins a new generation; whoever waited for the old one is told that it is closed.
    fn renew(&self, fd: RawFd, state: &mut State, woken: &mut Batch) {
        // A child of vfork(2) has this memory, but descriptors of its own.
        let waited_for = state.queues.iter().any(|queue| !queue.first.is_null());
        if (waited_for || state.registrations.is_some()) && !kernel::is_this_process() {
            return;
        }
        state.generation = state.generation.wrapping_add(1);
        state.driver = 0;
        if let Some(registrations) = &mut state.registrations {
            registrations.end_all(fd, Event::Closed, woken);
        }
        for direction in Direction::BOTH {
            state.wake(self, direction, Reason::Closed, true, woken);
        }
        // Relaxed: under the lock; who reads without it holds a descriptor that is being closed.
        self.flags.store(0, Ordering::Relaxed);
    }
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
    let generation = {
        let mut state = descriptor.state.lock();
        // Relaxed, here and below: under the lock.
        let shared = descriptor.flags.load(Ordering::Relaxed) & SHARED != 0;
        if shared && current().is_some() && state.driver == driver().id() {
            driver().unregister(fd);
        }
        descriptor.renew(fd, &mut state, &mut woken);
        descriptor.flags.fetch_or(CLOSING, Ordering::Relaxed);
        state.generation
    };
    let result = call();
    {
        let state = descriptor.state.lock();
        if state.generation == generation {
            descriptor.flags.fetch_and(!CLOSING, Ordering::Relaxed);
        }
    }
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
            let mut state = descriptor.state.lock();
            descriptor.renew(fd, &mut state, &mut woken);
            // Relaxed, here and below: under the lock.
            descriptor.flags.fetch_or(CLOSING, Ordering::Relaxed);
            closing.push((descriptor, state.generation));
        }
    }
    let result = call();
    for (descriptor, generation) in closing {
        let state = descriptor.state.lock();
        if state.generation == generation {
            descriptor.flags.fetch_and(!CLOSING, Ordering::Relaxed);
        }
    }
    woken.schedule();
    result
}
