//! What is known of one descriptor: readiness, and who waits for it.
//!
//! ```text
//!   Descriptor { flags, Lock { generation, driver, readers ⇄ …, writers ⇄ …, registrations } }
//! ```
//!
//! A **generation** distinguishes the descriptions that a number names one after the other: an event
//! carries the generation under which it was registered, and one of a former generation is ignored, so
//! a reused number never wakes the wrong fiber.
//!
//! Waiters of one direction queue in the order of their coming. An event wakes the first of those
//! who will try an operation, and all who only look (`poll`); whoever leaves something behind
//! wakes the next ([`Descriptor::leave`]). An error or hang-up wakes all.
//!
//! # Who looks, and who announces
//!
//! What may have been left behind is said in the flags without the lock, for nearly always nobody waits.
//! Two bits of one word decide: a waiter sets `HAS_READERS` and then looks for `READ_READY`; who
//! leaves sets `READ_READY` and then looks for `HAS_READERS`. One word has one order, so one of the two
//! sees the other. Events come with the lock, which orders them and everything else here.

use syscalls::Errno;

use super::queue::{Queue, Waiter};
use super::registrations::{Event, Registrations};
use crate::kernel;
use crate::sync::{AtomicU32, Lock, Ordering};
use crate::wait::{Batch, Reason};

/// The directions of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Something can be read, or a connection accepted.
    Read,
    /// Something can be written, or a connection is made.
    Write,
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

/// Generations have one bit less than a `u32`: see `table::name`.
const GENERATIONS: u32 = u32::MAX >> 1;

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
#[cfg(not(loom))]
const _: () = assert!(size_of::<Descriptor>() == 64);

pub(super) struct State {
    generation: u32,
    /// The driver that reports it; 0 if none does.
    driver: u32,
    queues: [Queue; 2],
    /// Callbacks; mostly there are none.
    pub(super) registrations: Option<Box<Registrations>>,
}

/// How a waiter fared on its way into a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Joined {
    /// It is in the queue, and must be released with [`Descriptor::part`].
    Waiting,
    /// It is not: a try may succeed.
    Ready,
    /// It is not: the descriptor is being closed.
    Closed,
    /// It is not: epoll does not watch such descriptors.
    Unpollable,
}

impl State {
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether `driver` reports its events.
    pub(super) fn is_watched_by(&self, driver: u32) -> bool {
        self.driver == driver
    }

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
        if self.queues[direction as usize].is_empty() {
            // Relaxed: a hint for `leave`, always set again under the lock.
            descriptor.flags.fetch_and(!direction.waiters(), Ordering::Relaxed);
        }
    }
}

impl Descriptor {
    pub(super) fn new() -> Descriptor {
        Descriptor {
            flags: AtomicU32::new(0),
            state: Lock::new(State {
                generation: 0,
                driver: 0,
                queues: [Queue::new(), Queue::new()],
                registrations: None,
            }),
        }
    }

    /// An event of the description that had this `generation`.
    pub(super) fn report(&self, generation: u32, events: u32, woken: &mut Batch) {
        let has = |bits: i32| events & bits as u32 != 0;
        let over = has(libc::EPOLLERR | libc::EPOLLHUP);
        let mut state = self.state.lock();
        if state.generation != generation {
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
        self.flags.fetch_or(set, Ordering::Release);
        for direction in Direction::BOTH {
            if set & direction.ready() != 0 {
                state.wake(self, direction, Reason::Woken, over, woken);
                if let Some(registrations) = &mut state.registrations {
                    registrations.announce(direction, woken);
                }
            }
        }
    }

    /// Sees to it that events are reported to the driver of this id, by `add` if they are not yet.
    /// Says whether they were not: then what is ready already will be reported as well.
    pub(super) fn register(
        &self,
        state: &mut State,
        driver: u32,
        add: impl FnOnce(u32) -> Result<(), Errno>,
    ) -> Result<bool, Errno> {
        if state.is_watched_by(driver) {
            return Ok(false);
        }
        add(state.generation)?;
        state.driver = driver;
        // Relaxed: read by `drained` as a hint that leads to this lock.
        self.flags.fetch_or(REGISTERED, Ordering::Relaxed);
        Ok(true)
    }

    /// Queues `waiter` for `direction`; with `unless_ready` not if there is reason to try first.
    /// That reason is taken from the flags, as the caller will try, unless the waiter only looks.
    /// `watch` sees to it that events are reported.
    ///
    /// # Safety
    /// `waiter` stays where it is until it has been released with [`Descriptor::part`].
    pub(super) unsafe fn join(
        &self,
        direction: Direction,
        waiter: &Waiter,
        unless_ready: bool,
        watch: impl FnOnce(&mut State) -> Result<bool, Errno>,
    ) -> Joined {
        let mut state = self.state.lock();
        if self.is_closing() {
            return Joined::Closed;
        }
        if watch(&mut state).is_err() {
            return Joined::Unpollable;
        }
        // The waiter is announced before it looks: `leave` sets readiness without the lock, and either
        // it is seen here, or it sees the announcement and comes for the lock. (One atomic word, so
        // one order: relaxed is enough. `State::wake` and `part` take it back.)
        self.flags.fetch_or(direction.waiters(), Ordering::Relaxed);
        if unless_ready {
            // Who only looks leaves readiness to those who try. Acquire pairs with the Release in
            // `report` and `leave`: what was ready then is tried now.
            let taken = if waiter.looks { 0 } else { direction.ready() };
            let flags = self.flags.fetch_and(!taken, Ordering::Acquire);
            if flags & direction.ready() != 0 {
                state.retract(self, direction);
                return Joined::Ready;
            }
        }
        // SAFETY: by contract.
        unsafe { state.queues[direction as usize].push(waiter) };
        Joined::Waiting
    }

    /// Takes `waiter` out if no waker has.
    pub(super) fn part(&self, direction: Direction, waiter: &Waiter) {
        // Acquire: `false` is the waker's last access.
        if !waiter.linked.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state.lock();
        // Relaxed: under the lock.
        if waiter.linked.load(Ordering::Relaxed) {
            // SAFETY: linked under the lock means in this queue.
            unsafe { state.queues[direction as usize].remove(waiter) };
            state.retract(self, direction);
        }
    }

    /// Whether there is known to be nothing: a try would only fail, and a wait hears of a change.
    #[inline]
    pub(super) fn drained(&self, direction: Direction) -> bool {
        // Relaxed: the answer leads to a wait, which looks again under the lock.
        let flags = self.flags.load(Ordering::Relaxed);
        flags & (REGISTERED | direction.ready()) == REGISTERED
    }

    /// Right before a try: forgets readiness, so that the flag speaks of what comes from now on.
    #[inline]
    pub(super) fn attempt(&self, direction: Direction) {
        // Relaxed: a bit that is set after this load is newer than this call, and stays.
        if self.flags.load(Ordering::Relaxed) & direction.ready() != 0 {
            // Acquire: the try comes after the event that set it.
            self.flags.fetch_and(!direction.ready(), Ordering::Acquire);
        }
    }

    /// After a try, with `more` if it has not proved that nothing is left: passes readiness on to the
    /// next who waits.
    #[inline]
    pub(super) fn leave(&self, direction: Direction, more: bool) -> Batch {
        let mut woken = Batch::new();
        if more {
            // Release: the try came before.
            let flags = self.flags.fetch_or(direction.ready(), Ordering::Release);
            if flags & direction.waiters() == 0 {
                return woken;
            }
        } else {
            // Relaxed: an event that came during the try has woken its waiters itself.
            let flags = self.flags.load(Ordering::Relaxed);
            let both = direction.ready() | direction.waiters();
            if flags & both != both {
                return woken;
            }
        }
        self.state.lock().wake(self, direction, Reason::Woken, false, &mut woken);
        woken
    }

    #[inline]
    pub(super) fn hung_up(&self) -> bool {
        // Relaxed: the caller asks after a try; an event that comes later sets readiness as well.
        self.flags.load(Ordering::Relaxed) & HUNG_UP != 0
    }

    /// The description has, or may have, another descriptor.
    pub(super) fn share(&self) {
        let _state = self.state.lock();
        // Relaxed: under the lock.
        self.flags.fetch_or(SHARED, Ordering::Relaxed);
    }

    /// Whether it is being closed. The lock is held.
    pub(super) fn is_closing(&self) -> bool {
        // Relaxed: under the lock.
        self.flags.load(Ordering::Relaxed) & CLOSING != 0
    }

    /// The number names a new description from now on.
    pub(super) fn renew(&self, woken: &mut Batch) {
        self.begin_generation(&mut self.state.lock(), woken);
    }

    /// Begins a new generation; whoever waited for the old one is told that it is closed.
    fn begin_generation(&self, state: &mut State, woken: &mut Batch) {
        // A child of vfork(2) has this memory, but descriptors of its own.
        let waited_for = state.queues.iter().any(|queue| !queue.is_empty());
        if (waited_for || state.registrations.is_some()) && !kernel::is_this_process() {
            return;
        }
        state.generation = state.generation.wrapping_add(1) & GENERATIONS;
        state.driver = 0;
        if let Some(registrations) = &mut state.registrations {
            registrations.end_all(Event::Closed, woken);
        }
        for direction in Direction::BOTH {
            state.wake(self, direction, Reason::Closed, true, woken);
        }
        // Relaxed: under the lock; who reads without it holds a descriptor that is being closed.
        self.flags.store(0, Ordering::Relaxed);
    }

    /// Before the number is closed: renews it, and lets nobody wait until [`Descriptor::closed`], to whom
    /// the result is given. `forget` is called if closing will not end the reports to the driver.
    pub(super) fn close(&self, forget: impl FnOnce(&State), woken: &mut Batch) -> u32 {
        let mut state = self.state.lock();
        // Relaxed, both: under the lock.
        if self.flags.load(Ordering::Relaxed) & SHARED != 0 {
            forget(&state);
        }
        self.begin_generation(&mut state, woken);
        self.flags.fetch_or(CLOSING, Ordering::Relaxed);
        state.generation
    }

    /// After the number has been closed, unless it names another description already.
    pub(super) fn closed(&self, generation: u32) {
        let state = self.state.lock();
        if state.generation == generation {
            // Relaxed: under the lock.
            self.flags.fetch_and(!CLOSING, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_models;
