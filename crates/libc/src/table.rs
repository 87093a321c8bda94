//! The descriptor table: what the program asked of each descriptor.
//!
//! A call that found nothing to do must know whether the *program* wants to wait (its own
//! `O_NONBLOCK`), and for how long (`SO_RCVTIMEO`, `SO_SNDTIMEO`). Asking the kernel each time
//! would cost a system call or two per wait, so the interposed calls that set these things note
//! them here, one entry per descriptor number:
//!
//! ```text
//!   CHUNKS ──► [ entry 0 | entry 1 | … 4095 ]      mapped when first needed, never unmapped
//!              [ entry 4096 | …              ]
//!
//!   entry      state            63        40 39       16 15          4 3    0
//!                              │ generation │ fork epoch │  facts     │ kind │
//!              receive, send    63        48 47                            0
//!                              │ generation │ microseconds, NEVER, UNKNOWN  │
//!              accepting        0 or 1: a fiber is between poll and accept4
//! ```
//!
//! **Facts are only remembered while nobody else can change them.** A status flag and a timeout
//! belong to the open file *description*; once another descriptor (dup) or another process
//! (fork, `SCM_RIGHTS`, or a descriptor that this table never saw created) may share it, the
//! entry is `SHARED` and the kernel is asked before each park. A fork is noticed by the epoch:
//! an entry from before the last one counts as shared.
//!
//! **A late writer cannot spoil a reused number.** The generation grows whenever the number gets
//! a new meaning, and every change is a compare-and-swap on the whole word, so a fact learnt
//! about the old description dies with it. A timeout carries the low bits of the generation for
//! the same reason.
//!
//! All accesses are relaxed unless said otherwise: each word is complete in itself, and a thread
//! that learnt a descriptor's number from another has synchronised with it to do so.
//!
//! Sources: open(2) on descriptions, socket(7), dup(2), unix(7).

use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::atomic::{Ordering, fence};

use crate::kernel;
pub(crate) use crate::kind::Kind;
use crate::kind::examine;

/// The state word of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State(u64);

impl State {
    const KIND: u64 = 0xf;
    /// The description may be changed by somebody whom this table does not see.
    pub(crate) const SHARED: u64 = 1 << 4;
    /// `NONBLOCKING` is right.
    const FLAGS_KNOWN: u64 = 1 << 5;
    /// The program set `O_NONBLOCK`.
    pub(crate) const NONBLOCKING: u64 = 1 << 6;
    /// Made by the interposed `socket`: the flags are ours to borrow during `connect`.
    pub(crate) const OWN: u64 = 1 << 7;
    /// `connect` has borrowed `O_NONBLOCK`; the program's own is in `NONBLOCKING`.
    pub(crate) const BORROWED: u64 = 1 << 8;
    /// `SO_RCVLOWAT` was set: a receive may have to wait for more than one byte.
    pub(crate) const LOW_WATER: u64 = 1 << 9;
    /// `SO_ACCEPTCONN` was seen: the socket listens.
    pub(crate) const LISTENS: u64 = 1 << 10;
    /// A timeout was set some time: an accepted socket may have inherited it.
    pub(crate) const TIMED: u64 = 1 << 11;
    /// `RWF_NOWAIT` does not work for reading.
    pub(crate) const PLAIN_READ: u64 = 1 << 12;
    /// `RWF_NOWAIT` does not work for writing.
    pub(crate) const PLAIN_WRITE: u64 = 1 << 13;
    /// A read has found it empty: it can be read at all, and is what the reactor's flag speaks of.
    pub(crate) const EMPTIED: u64 = 1 << 14;

    const EPOCH_SHIFT: u32 = 16;
    const GENERATION_SHIFT: u32 = 40;
    const FIELD: u64 = (1 << 24) - 1;

    #[inline(always)]
    pub(crate) fn kind(self) -> Kind {
        Kind::of(self.0 & State::KIND)
    }

    #[inline(always)]
    pub(crate) fn has(self, fact: u64) -> bool {
        self.0 & fact != 0
    }

    /// Whether somebody unseen may change the description.
    #[inline(always)]
    pub(crate) fn is_shared(self) -> bool {
        self.has(State::SHARED) || (self.0 >> State::EPOCH_SHIFT) & State::FIELD != epoch()
    }

    /// The program's `O_NONBLOCK`, if the table can know.
    #[inline(always)]
    pub(crate) fn nonblocking(self) -> Option<bool> {
        (self.has(State::FLAGS_KNOWN) && !self.is_shared()).then(|| self.has(State::NONBLOCKING))
    }

    fn generation(self) -> u64 {
        self.0 >> State::GENERATION_SHIFT
    }

    /// The word for a new meaning of the number: nothing known but `kind` and `facts`.
    fn renewed(self, kind: Kind, facts: u64) -> State {
        let generation = (self.generation() + 1) & State::FIELD;
        State(
            generation << State::GENERATION_SHIFT
                | epoch() << State::EPOCH_SHIFT
                | facts
                | kind as u64,
        )
    }

    fn with_kind(self, kind: Kind) -> State {
        State(self.0 & !State::KIND | kind as u64)
    }

    fn with(self, set: u64, clear: u64) -> State {
        State(self.0 & !clear | set)
    }
}

/// Which of the two socket timeouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// `SO_RCVTIMEO`
    Receive,
    /// `SO_SNDTIMEO`
    Send,
}

/// A socket timeout in microseconds. Zero means none, as in socket(7).
pub(crate) const NEVER: u64 = 0;
/// Longer than can be told here (nine years): never, but the socket's own timeout all the same.
pub(crate) const ENDLESS: u64 = MICROSECONDS - 1;
/// Nobody has asked the kernel yet.
const UNKNOWN: u64 = MICROSECONDS;
const MICROSECONDS: u64 = (1 << 48) - 1;

/// One descriptor number.
pub(crate) struct Entry {
    state: AtomicU64,
    receive: AtomicU64,
    send: AtomicU64,
    accepting: AtomicU32,
}

impl Entry {
    #[inline(always)]
    pub(crate) fn state(&self) -> State {
        State(self.state.load(Relaxed))
    }

    /// Changes the state by `change` as long as the number means what it meant in `seen`.
    /// Returns the state now in force.
    fn update(&self, seen: State, change: impl Fn(State) -> State) -> State {
        let mut current = self.state();
        loop {
            if current.generation() != seen.generation() {
                return current;
            }
            let next = change(current);
            match self.state.compare_exchange_weak(current.0, next.0, Relaxed, Relaxed) {
                Ok(_) => return next,
                Err(other) => current = State(other),
            }
        }
    }

    /// Sets and clears facts.
    pub(crate) fn note(&self, seen: State, set: u64, clear: u64) -> State {
        self.update(seen, |state| state.with(set, clear))
    }

    /// The kind turned out to be another one.
    pub(crate) fn set_kind(&self, seen: State, kind: Kind) -> State {
        self.update(seen, |state| state.with_kind(kind))
    }

    /// The program's own `O_NONBLOCK` is now `on`.
    pub(crate) fn set_nonblocking(&self, on: bool) {
        let value = if on { State::NONBLOCKING } else { 0 };
        let set = State::FLAGS_KNOWN | value;
        self.note(self.state(), set, State::NONBLOCKING & !value);
    }

    /// The number has a new meaning.
    pub(crate) fn renew(&self, kind: Kind, facts: u64) {
        let mut current = self.state();
        loop {
            let next = current.renewed(kind, facts);
            match self.state.compare_exchange_weak(current.0, next.0, Relaxed, Relaxed) {
                Ok(_) => break,
                Err(other) => current = State(other),
            }
        }
        let state = self.state();
        self.set_timeout(state, Side::Receive, UNKNOWN);
        self.set_timeout(state, Side::Send, UNKNOWN);
        // Whoever held the lock asks about another description; it finds out by the generation.
        self.accepting.store(0, Relaxed);
    }

    fn timeout_word(&self, side: Side) -> &AtomicU64 {
        match side {
            Side::Receive => &self.receive,
            Side::Send => &self.send,
        }
    }

    /// Remembers a timeout in microseconds for the meaning that the number had in `seen`.
    pub(crate) fn set_timeout(&self, seen: State, side: Side, microseconds: u64) {
        let value = microseconds.min(MICROSECONDS) | seen.generation() << 48;
        self.timeout_word(side).store(value, Relaxed);
    }

    /// The remembered timeout, if there is one for this meaning of the number.
    fn timeout(&self, seen: State, side: Side) -> Option<u64> {
        let word = self.timeout_word(side).load(Relaxed);
        let ours = word >> 48 == seen.generation() & 0xffff;
        (ours && word & MICROSECONDS != UNKNOWN).then_some(word & MICROSECONDS)
    }

    /// Takes the lock that keeps two fibers from racing for one connection; `false` if it is
    /// held.
    pub(crate) fn lock_accept(&self) -> bool {
        // Acquire, with the Release of the unlock: the poll of this fiber comes after the accept
        // of the last one.
        self.accepting.compare_exchange(0, 1, Ordering::Acquire, Relaxed).is_ok()
    }

    /// Gives it back, unless the number has got another meaning (and the lock was reset).
    pub(crate) fn unlock_accept(&self, seen: State) {
        if self.state().generation() == seen.generation() {
            self.accepting.store(0, Ordering::Release);
        }
    }
}

const CHUNK: usize = 4096;
/// 16 million descriptors; a higher number is handled as one that nothing is known about.
static CHUNKS: [AtomicPtr<Entry>; 4096] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 4096];

/// The entry of `fd`, if its chunk is there.
#[inline(always)]
pub(crate) fn existing(fd: c_int) -> Option<&'static Entry> {
    let slot = CHUNKS.get(fd as usize / CHUNK)?;
    // Acquire, with the Release that published it: the chunk's zeroes are seen.
    let chunk = slot.load(Ordering::Acquire);
    if chunk.is_null() {
        return None;
    }
    // SAFETY: a published chunk has CHUNK entries, is never unmapped, and zeroes are an entry.
    Some(unsafe { &*chunk.add(fd as usize % CHUNK) })
}

/// The entry of `fd`; `None` for a number below zero or beyond the table, or without memory.
#[inline(always)]
pub(crate) fn entry(fd: c_int) -> Option<&'static Entry> {
    existing(fd).or_else(|| grow(fd))
}

#[cold]
fn grow(fd: c_int) -> Option<&'static Entry> {
    let slot = CHUNKS.get(fd as usize / CHUNK)?;
    let bytes = CHUNK * size_of::<Entry>();
    let chunk = kernel::zeroed(bytes)?.cast::<Entry>();
    // Release publishes the zeroes; Acquire on failure, to use the winner's chunk.
    let null = std::ptr::null_mut();
    if slot.compare_exchange(null, chunk, Ordering::Release, Ordering::Acquire).is_err() {
        // SAFETY: this chunk lost and was never published.
        unsafe { kernel::unmap(chunk.cast(), bytes) };
    }
    existing(fd)
}

/// Forks so far, in 24 bits: after 16 million of them an entry could look young again.
static EPOCH: AtomicU64 = AtomicU64::new(0);

#[inline(always)]
fn epoch() -> u64 {
    EPOCH.load(Relaxed) & State::FIELD
}

extern "C" fn forking() {
    EPOCH.fetch_add(1, Relaxed);
    // The child copies memory after this: both sides see the new epoch.
    fence(Ordering::SeqCst);
}

/// Has every fork(2) turn the descriptors of both sides into shared ones. (posix_spawn and vfork
/// do not tell: what a child inherits that way keeps being remembered.)
pub(crate) fn watch_fork() {
    // SAFETY: pthread_atfork(3) with a function that may run at any time and lives for ever (or,
    // in a shared object, is deregistered with it).
    unsafe { libc::pthread_atfork(Some(forking), None, None) };
}

/// A descriptor as one call sees it.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) fd: c_int,
    pub(crate) state: State,
    entry: Option<&'static Entry>,
}

impl Descriptor {
    /// Looks `fd` up; asks the kernel what it is when nobody has yet.
    #[inline(always)]
    pub(crate) fn of(fd: c_int) -> Descriptor {
        if let Some(entry) = existing(fd) {
            let state = entry.state();
            if state.kind() != Kind::Unknown {
                return Descriptor { fd, state, entry: Some(entry) };
            }
        }
        Descriptor::learn(fd)
    }

    #[cold]
    fn learn(fd: c_int) -> Descriptor {
        let entry = entry(fd);
        let seen = entry.map_or(State(0), Entry::state);
        let (kind, low_water) = examine(fd);
        let facts = if low_water { State::SHARED | State::LOW_WATER } else { State::SHARED };
        let state = match entry {
            Some(entry) if kind != Kind::Unknown => {
                entry.update(seen, |state| state.with_kind(kind).with(facts, 0))
            }
            _ => seen.with_kind(kind).with(facts, 0),
        };
        Descriptor { fd, state, entry }
    }

    #[inline(always)]
    pub(crate) fn kind(&self) -> Kind {
        self.state.kind()
    }

    pub(crate) fn entry(&self) -> Option<&'static Entry> {
        self.entry
    }

    /// Whether the number still names what it named when it was looked up, as far as is known.
    pub(crate) fn is_current(&self) -> bool {
        self.entry.is_none_or(|entry| entry.state().generation() == self.state.generation())
    }

    /// Remembers facts about it.
    pub(crate) fn note(&mut self, set: u64, clear: u64) {
        self.state = match self.entry {
            Some(entry) => entry.note(self.state, set, clear),
            None => self.state.with(set, clear),
        };
    }

    /// The program is known to have asked for `O_NONBLOCK`: no call needs to park.
    #[inline(always)]
    pub(crate) fn known_nonblocking(&self) -> bool {
        self.state.nonblocking() == Some(true)
    }

    /// Whether the program asked for `O_NONBLOCK`, from the kernel where the table cannot know.
    pub(crate) fn nonblocking(&self) -> bool {
        let flags = || kernel::status_flags(self.fd);
        self.state.nonblocking().unwrap_or_else(|| {
            let flags = flags();
            flags >= 0 && flags & libc::O_NONBLOCK as isize != 0
        })
    }

    /// The socket timeout in microseconds, [`NEVER`] for none or for what is no socket.
    pub(crate) fn timeout(&self, side: Side) -> u64 {
        if !self.kind().is_socket() {
            return NEVER;
        }
        let shared = self.state.is_shared();
        if !shared && let Some(known) = self.entry.and_then(|e| e.timeout(self.state, side)) {
            return known;
        }
        let name = match side {
            Side::Receive => libc::SO_RCVTIMEO,
            Side::Send => libc::SO_SNDTIMEO,
        };
        let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let value = kernel::option(self.fd, libc::SOL_SOCKET, name, zero);
        let value = value.map_or(NEVER, |(time, _)| microseconds(time));
        if !shared && let Some(entry) = self.entry {
            entry.set_timeout(self.state, side, value);
        }
        value
    }
}

/// A `timeval` of socket(7) in microseconds: zero is [`NEVER`], what 48 bits cannot hold is
/// [`ENDLESS`]; a negative time has passed at once, which is one microsecond here.
pub(crate) fn microseconds(time: libc::timeval) -> u64 {
    if time.tv_sec < 0 {
        return 1;
    }
    let value = (time.tv_sec as u64).saturating_mul(1_000_000).saturating_add(time.tv_usec as u64);
    value.min(ENDLESS)
}

/// A new description has got the number `fd`, from a call of ours that knows all about it:
/// `facts` beside its kind, `O_NONBLOCK` or not, and no timeouts if `untimed`.
pub(crate) fn created(fd: c_int, kind: Kind, nonblocking: bool, facts: u64, untimed: bool) {
    let Some(entry) = entry(fd) else { return };
    let flag = if nonblocking { State::NONBLOCKING } else { 0 };
    entry.renew(kind, facts | State::FLAGS_KNOWN | flag);
    if untimed {
        let state = entry.state();
        entry.set_timeout(state, Side::Receive, NEVER);
        entry.set_timeout(state, Side::Send, NEVER);
    }
}

/// Nothing is known about `fd` any more.
pub(crate) fn forget(fd: c_int) {
    if let Some(entry) = existing(fd) {
        entry.renew(Kind::Unknown, 0);
    }
}

/// [`forget`] for all numbers from `first` to `last`.
pub(crate) fn forget_range(first: c_uint, last: c_uint) {
    let (first, last) = (first as usize, (last as usize).min(CHUNKS.len() * CHUNK - 1));
    for chunk in (first / CHUNK..=last / CHUNK).take_while(|&chunk| chunk < CHUNKS.len()) {
        let start = chunk * CHUNK;
        if existing(start as c_int).is_some() {
            (start.max(first)..=(start + CHUNK - 1).min(last)).for_each(|fd| forget(fd as c_int));
        }
    }
}

/// Somebody unseen may change the description of `fd` from now on.
pub(crate) fn share(fd: c_int) {
    if let Some(entry) = entry(fd) {
        entry.note(entry.state(), State::SHARED, State::OWN);
    }
}

/// `new` names the description of `old`.
pub(crate) fn duplicated(old: c_int, new: c_int) {
    share(old);
    let Some(entry) = entry(new) else { return };
    let facts = existing(old).map_or(State(0), Entry::state);
    let kept = State::LOW_WATER | State::LISTENS | State::PLAIN_READ | State::PLAIN_WRITE;
    entry.renew(facts.kind(), facts.0 & kept | State::SHARED);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that no test harness opens, one per test: the entries are private to it.
    const BASE: c_int = 5_000_000;

    #[test]
    fn entry_remembers_what_was_created() {
        let fd = BASE;
        created(fd, Kind::Tcp, true, State::OWN, true);
        let d = Descriptor::of(fd);
        assert_eq!(d.kind(), Kind::Tcp);
        assert!(d.known_nonblocking());
        assert!(d.state.has(State::OWN));
        assert_eq!(d.timeout(Side::Receive), NEVER);
        entry(fd).unwrap().set_nonblocking(false);
        assert_eq!(Descriptor::of(fd).state.nonblocking(), Some(false));
    }

    #[test]
    fn new_meaning_of_a_number_knows_nothing_of_the_old() {
        let fd = BASE + 1;
        created(fd, Kind::Tcp, true, 0, true);
        let entry = entry(fd).unwrap();
        let old = entry.state();
        entry.set_timeout(old, Side::Send, 1500);
        forget(fd);
        assert_eq!(entry.state().kind(), Kind::Unknown);
        assert_eq!(entry.state().nonblocking(), None);
        assert_eq!(entry.timeout(entry.state(), Side::Send), None);
    }

    #[test]
    fn late_fact_about_a_closed_descriptor_is_dropped() {
        let fd = BASE + 2;
        created(fd, Kind::Pipe, false, 0, true);
        let entry = entry(fd).unwrap();
        let old = entry.state();
        created(fd, Kind::Tcp, false, 0, true);
        entry.set_kind(old, Kind::File);
        entry.note(old, State::SHARED, 0);
        entry.set_timeout(old, Side::Receive, 99);
        let now = entry.state();
        assert_eq!(now.kind(), Kind::Tcp);
        assert!(!now.is_shared());
        assert_eq!(entry.timeout(now, Side::Receive), None, "a stale timeout is no timeout");
    }

    #[test]
    fn duplicate_shares_and_keeps_the_kind() {
        let (old, new) = (BASE + 3, BASE + 4);
        created(old, Kind::Stream, true, State::OWN, true);
        duplicated(old, new);
        for fd in [old, new] {
            let d = Descriptor::of(fd);
            assert_eq!(d.kind(), Kind::Stream);
            assert!(d.state.is_shared());
            assert_eq!(d.state.nonblocking(), None, "the kernel must be asked");
            assert!(!d.state.has(State::OWN));
        }
    }

    #[test]
    fn accept_lock_excludes_and_is_reset_with_the_number() {
        let fd = BASE + 5;
        created(fd, Kind::Tcp, false, 0, true);
        let entry = entry(fd).unwrap();
        let seen = entry.state();
        assert!(entry.lock_accept());
        assert!(!entry.lock_accept());
        forget(fd);
        assert!(entry.lock_accept(), "a new listener starts unlocked");
        entry.unlock_accept(seen);
        assert!(!entry.lock_accept(), "the old holder has nothing to unlock");
        entry.unlock_accept(entry.state());
        assert!(entry.lock_accept());
    }

    #[test]
    fn numbers_outside_the_table_are_unknown() {
        for fd in [-1, c_int::MIN, c_int::MAX] {
            assert!(entry(fd).is_none());
            assert_eq!(Descriptor::of(fd).kind(), Kind::Unknown);
        }
    }

    #[test]
    fn timeval_in_microseconds() {
        let t = |tv_sec, tv_usec| microseconds(libc::timeval { tv_sec, tv_usec });
        assert_eq!(t(0, 0), NEVER);
        assert_eq!(t(0, 1), 1);
        assert_eq!(t(2, 500_001), 2_500_001);
        assert_eq!(t(-5, 0), 1, "negative has passed at once");
        assert_eq!(t(i64::MAX, 999_999), ENDLESS);
        assert_eq!(t((ENDLESS / 1_000_000) as i64, 0), ENDLESS / 1_000_000 * 1_000_000);
    }
}
