//! `pthread_rwlock_*`: many readers or one writer.
//!
//! All that decides is one 64-bit word, changed by compare-and-swap:
//!
//! ```text
//!   63    62     61 … 42          41 … 22          21      20 … 0
//!   WANT  EPOCH  readers waiting  writers waiting  WRITER  readers that hold it
//!   └──── readers wait on this half ───┘└──── writers wait on this half ─────┘
//!
//!    8  owner   the writer's number, so that it learns of its own dead-lock
//! ```
//!
//! `WANT` is set while writers wait. What ends a wait changes the half that is waited on, so who
//! looks and then sleeps cannot miss it: a lock that comes free loses `WRITER` or its last reader; readers are let in by another
//! `EPOCH`, or because `WANT` goes.
//!
//! # Who is next
//!
//! * A reader gets in unless a writer holds the lock; of a lock that prefers writers
//!   (`PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP`) unless one waits either. So there no stream of readers
//!   starves a writer; by default it may, as in glibc, since a reader may read again.
//! * A writer that leaves **hands over** to all readers that wait: they hold the lock before they run, and
//!   no writer can overtake them. `EPOCH` changes, and each finds by that that the lock is its own. It cannot
//!   change twice unseen: for that a writer would have to have had the lock, which the reader that has not looked
//!   yet still holds. With preference, a waiting writer goes before the readers.
//! * Otherwise one writer is woken, and takes the lock if nobody was faster.
//! * The last waiting writer of a lock with preference may give up, its time being over: the readers that stood back for
//!   it are woken, and try again.
//!
//! The compare-and-swap that unlocks is the last access: the next owner may destroy the lock at once.
//!
//! Sources: pthread_rwlock_rdlock(3p), pthread_rwlockattr_setkind_np(3), `nptl/pthread_rwlock_common.c` for order and error numbers.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libc::{clockid_t, pthread_rwlock_t, timespec};
use sleave_runtime::wait::futex::Waited;

use super::layout;
use super::tables::{self, Until};
use crate::next;

/// `PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP`. The other preference for writers does not stand in
/// the way of readers, in glibc neither.
pub(super) const WRITERS_FIRST: u32 = 2;
/// Bytes whose rules are known here.
pub(super) const OURS: usize = size_of::<RwLock>();

#[repr(C)]
struct RwLock {
    state: AtomicU64,
    owner: AtomicU32,
}

/// The word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State(u64);

const HOLDER: u64 = 1;
const MOST_HOLDERS: u64 = (1 << 21) - 1;
const WRITER: u64 = 1 << 21;
const WAITING_WRITER: u64 = 1 << 22;
const WAITING_READER: u64 = 1 << 42;
const MOST_WAITING: u64 = (1 << 20) - 1;
const EPOCH: u64 = 1 << 62;
const WANT: u64 = 1 << 63;

/// Who is to be woken after an unlock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Heirs {
    Nobody,
    OneWriter,
    AllReaders,
}

impl State {
    fn holders(self) -> u64 {
        self.0 & MOST_HOLDERS
    }

    fn has_writer(self) -> bool {
        self.0 & WRITER != 0
    }

    fn is_free(self) -> bool {
        self.holders() == 0 && !self.has_writer()
    }

    fn waiting_writers(self) -> u64 {
        (self.0 / WAITING_WRITER) & MOST_WAITING
    }

    fn waiting_readers(self) -> u64 {
        (self.0 / WAITING_READER) & MOST_WAITING
    }

    fn epoch(self) -> u64 {
        self.0 & EPOCH
    }

    /// Whether a reader may get in.
    fn admits_reader(self, writers_first: bool) -> bool {
        !self.has_writer() && (!writers_first || self.0 & WANT == 0)
    }

    /// One writer waits no longer.
    fn without_waiting_writer(self) -> State {
        let rest = self.0 - WAITING_WRITER;
        State(if State(rest).waiting_writers() == 0 { rest & !WANT } else { rest })
    }

    /// After the unlock of who holds it; `None` if nobody does.
    fn unlocked(self, writers_first: bool) -> Option<(State, Heirs)> {
        let writers = self.waiting_writers() != 0;
        let readers = self.waiting_readers();
        if self.has_writer() {
            let free = self.0 & !WRITER;
            return Some(if readers != 0 && !(writers_first && writers) {
                let inside = free - readers * WAITING_READER + readers * HOLDER;
                (State(inside ^ EPOCH), Heirs::AllReaders)
            } else {
                (State(free), if writers { Heirs::OneWriter } else { Heirs::Nobody })
            });
        }
        if self.holders() == 0 {
            return None;
        }
        let rest = State(self.0 - HOLDER);
        Some((rest, if rest.is_free() && writers { Heirs::OneWriter } else { Heirs::Nobody }))
    }

    fn low(self) -> u32 {
        self.0 as u32
    }

    fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The lock, whether it prefers writers, and the caller's number; unless it is glibc's.
///
/// # Safety
/// pthread_rwlock_rdlock(3p): the lock is live and initialised.
#[inline(always)]
unsafe fn ours<'a>(lock: *mut pthread_rwlock_t) -> Option<(&'a RwLock, bool, u32)> {
    let me = layout::caller()?;
    // SAFETY: by contract; the fields are atomics, which may be shared.
    unsafe {
        let writers_first = layout::RWLOCK_KIND.of(lock.cast()) == WRITERS_FIRST;
        (layout::RWLOCK_SHARED.of(lock.cast()) == 0)
            .then(|| (&*lock.cast::<RwLock>(), writers_first, me))
    }
}

impl RwLock {
    /// Where writers wait: on a little-endian machine the first half.
    fn writers(&self) -> *const AtomicU32 {
        (&raw const self.state).cast()
    }

    /// Where readers wait.
    fn readers(&self) -> *const AtomicU32 {
        self.writers().wrapping_add(1)
    }

    fn load(&self) -> State {
        // Acquire: who finds itself handed the lock comes after the writer's Release.
        State(self.state.load(Ordering::Acquire))
    }

    /// Changes the word; on failure, what it is now.
    fn change(&self, from: State, to: State) -> Result<(), State> {
        // AcqRel: who gets the lock comes after those who had it, who leaves before those who
        // come. Acquire on failure: as in `load`.
        self.state
            .compare_exchange_weak(from.0, to.0, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(State)
    }

    /// Whether the caller is the writer.
    fn is_owned_by(&self, me: u32) -> bool {
        // Relaxed: only the caller writes its own number here, and takes it away.
        self.owner.load(Ordering::Relaxed) == me
    }

    fn read(&self, writers_first: bool, me: u32, until: Option<&Until>) -> c_int {
        if self.is_owned_by(me) {
            return libc::EDEADLK;
        }
        let mut state = self.load();
        let epoch = loop {
            let enters = state.admits_reader(writers_first);
            let (full, one) = if enters {
                (state.holders() == MOST_HOLDERS, HOLDER)
            } else {
                (state.waiting_readers() == MOST_WAITING, WAITING_READER)
            };
            if full {
                return libc::EAGAIN;
            }
            match self.change(state, State(state.0 + one)) {
                Ok(()) if enters => return 0,
                Ok(()) => break state.epoch(),
                Err(now) => state = now,
            }
        };
        let mut code = libc::ETIMEDOUT;
        loop {
            state = self.load();
            if state.epoch() != epoch {
                return 0;
            }
            if state.admits_reader(writers_first) {
                if state.holders() == MOST_HOLDERS {
                    code = libc::EAGAIN;
                    break;
                }
                let inside = State(state.0 - WAITING_READER + HOLDER);
                if self.change(state, inside).is_ok() {
                    return 0;
                }
                continue;
            }
            // SAFETY: pthread_rwlock_rdlock(3p): the lock outlives the call.
            let waited = unsafe { tables::wait(self.readers(), state.high(), until) };
            if waited == Waited::TimedOut {
                break;
            }
        }
        loop {
            // Handed the lock at the last moment?
            if state.epoch() != epoch {
                return 0;
            }
            match self.change(state, State(state.0 - WAITING_READER)) {
                Ok(()) => return code,
                Err(now) => state = now,
            }
        }
    }

    fn write(&self, writers_first: bool, me: u32, until: Option<&Until>) -> c_int {
        if self.is_owned_by(me) {
            return libc::EDEADLK;
        }
        let mut state = self.load();
        loop {
            let free = state.is_free();
            if !free && state.waiting_writers() == MOST_WAITING {
                return libc::EAGAIN;
            }
            let new = if free { state.0 | WRITER } else { (state.0 + WAITING_WRITER) | WANT };
            match self.change(state, State(new)) {
                Ok(()) if free => break,
                Ok(()) => {
                    if !self.wait_to_write(writers_first, until) {
                        return libc::ETIMEDOUT;
                    }
                    break;
                }
                Err(now) => state = now,
            }
        }
        // Relaxed: see `is_owned_by`.
        self.owner.store(me, Ordering::Relaxed);
        0
    }

    /// The wait of a writer that is counted; whether it has the lock.
    #[cold]
    fn wait_to_write(&self, writers_first: bool, until: Option<&Until>) -> bool {
        loop {
            let state = self.load();
            if state.is_free() {
                if self.change(state, State(state.without_waiting_writer().0 | WRITER)).is_ok() {
                    return true;
                }
                continue;
            }
            // SAFETY: pthread_rwlock_wrlock(3p): the lock outlives the call.
            let waited = unsafe { tables::wait(self.writers(), state.low(), until) };
            if waited == Waited::TimedOut {
                break;
            }
        }
        let readers = self.readers() as usize;
        let mut state = self.load();
        loop {
            let rest = state.without_waiting_writer();
            match self.change(state, rest) {
                Ok(()) => {
                    if rest.waiting_readers() != 0 && rest.admits_reader(writers_first) {
                        tables::wake_all(readers);
                    }
                    return false;
                }
                Err(now) => state = now,
            }
        }
    }

    fn try_read(&self, writers_first: bool) -> c_int {
        let mut state = self.load();
        loop {
            if !state.admits_reader(writers_first) {
                return libc::EBUSY;
            }
            if state.holders() == MOST_HOLDERS {
                return libc::EAGAIN;
            }
            match self.change(state, State(state.0 + HOLDER)) {
                Ok(()) => return 0,
                Err(now) => state = now,
            }
        }
    }

    fn try_write(&self, me: u32) -> c_int {
        let mut state = self.load();
        while state.is_free() {
            match self.change(state, State(state.0 | WRITER)) {
                Ok(()) => {
                    // Relaxed: see `is_owned_by`.
                    self.owner.store(me, Ordering::Relaxed);
                    return 0;
                }
                Err(now) => state = now,
            }
        }
        libc::EBUSY
    }

    fn unlock(&self, writers_first: bool) -> c_int {
        let (readers, writers) = (self.readers() as usize, self.writers() as usize);
        let mut state = self.load();
        if state.has_writer() {
            // Relaxed: see `is_owned_by`.
            self.owner.store(0, Ordering::Relaxed);
        }
        loop {
            let Some((new, heirs)) = state.unlocked(writers_first) else { return libc::EPERM };
            match self.change(state, new) {
                Ok(()) => {
                    match heirs {
                        Heirs::Nobody => {}
                        Heirs::OneWriter => tables::wake_one(writers),
                        Heirs::AllReaders => tables::wake_all(readers),
                    }
                    return 0;
                }
                Err(now) => state = now,
            }
        }
    }
}

/// A function that takes a lock alone, and its `timed` and `clock` forms. As in glibc, these look at
/// clock and time first, even if they need not wait.
macro_rules! locks {
    ($method:ident: $plain:ident, $timed:ident, $clocked:ident) => {
        #[doc = concat!(stringify!($plain), "(3p)")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $plain(lock: *mut pthread_rwlock_t) -> c_int {
            // SAFETY: the caller's lock, for the same function.
            unsafe {
                match ours(lock) {
                    Some((lock, writers_first, me)) => lock.$method(writers_first, me, None),
                    None => next::$plain(lock),
                }
            }
        }

        #[doc = concat!(stringify!($timed), "(3p)")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $timed(
            lock: *mut pthread_rwlock_t,
            at: *const timespec,
        ) -> c_int {
            // SAFETY: the caller's lock and time.
            unsafe { $clocked(lock, libc::CLOCK_REALTIME, at) }
        }

        #[doc = concat!(stringify!($clocked), "(3p)")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $clocked(
            lock: *mut pthread_rwlock_t,
            clock: clockid_t,
            at: *const timespec,
        ) -> c_int {
            // SAFETY: the caller's lock and time, for the same function.
            unsafe {
                let Some((this, writers_first, me)) = ours(lock) else {
                    return next::$clocked(lock, clock, at);
                };
                let until = Until::new(clock, at);
                if !tables::knows_clock(clock) || until.check().is_err() {
                    return libc::EINVAL;
                }
                this.$method(writers_first, me, Some(&until))
            }
        }
    };
}

locks!(read: pthread_rwlock_rdlock, pthread_rwlock_timedrdlock, pthread_rwlock_clockrdlock);
locks!(write: pthread_rwlock_wrlock, pthread_rwlock_timedwrlock, pthread_rwlock_clockwrlock);

/// pthread_rwlock_tryrdlock(3p)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_rwlock_tryrdlock(lock: *mut pthread_rwlock_t) -> c_int {
    // SAFETY: the caller's lock.
    match unsafe { ours(lock) } {
        Some((lock, writers_first, _)) => lock.try_read(writers_first),
        // SAFETY: the caller's argument for the same function.
        None => unsafe { next::pthread_rwlock_tryrdlock(lock) },
    }
}

/// pthread_rwlock_trywrlock(3p)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_rwlock_trywrlock(lock: *mut pthread_rwlock_t) -> c_int {
    // SAFETY: the caller's lock.
    match unsafe { ours(lock) } {
        Some((lock, _, me)) => lock.try_write(me),
        // SAFETY: the caller's argument for the same function.
        None => unsafe { next::pthread_rwlock_trywrlock(lock) },
    }
}

/// pthread_rwlock_unlock(3p)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_rwlock_unlock(lock: *mut pthread_rwlock_t) -> c_int {
    // SAFETY: the caller's lock.
    match unsafe { ours(lock) } {
        Some((lock, writers_first, _)) => lock.unlock(writers_first),
        // SAFETY: the caller's argument for the same function.
        None => unsafe { next::pthread_rwlock_unlock(lock) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READERS: u64 = 3;

    #[test]
    fn a_writer_hands_over_to_all_readers_that_wait() {
        let state = State((WRITER + READERS * WAITING_READER + WAITING_WRITER) | WANT);
        let (new, heirs) = state.unlocked(false).expect("held");
        assert_eq!(heirs, Heirs::AllReaders);
        assert_eq!(new, State((READERS * HOLDER + WAITING_WRITER) | WANT | EPOCH));
    }

    #[test]
    fn with_preference_a_waiting_writer_goes_before_readers() {
        let state = State((WRITER + READERS * WAITING_READER + WAITING_WRITER) | WANT);
        let (new, heirs) = state.unlocked(true).expect("held");
        assert_eq!(heirs, Heirs::OneWriter);
        assert!(new.is_free() && !new.admits_reader(true) && new.admits_reader(false));
        let alone = State(new.without_waiting_writer().0 | WRITER);
        assert_eq!(alone.unlocked(true).expect("held").1, Heirs::AllReaders);
    }

    #[test]
    fn the_last_reader_wakes_a_writer() {
        let state = State((2 * HOLDER + WAITING_WRITER) | WANT);
        let (one, heirs) = state.unlocked(false).expect("held");
        assert_eq!(heirs, Heirs::Nobody);
        let (none, heirs) = one.unlocked(false).expect("held");
        assert_eq!(heirs, Heirs::OneWriter);
        assert!(none.is_free());
    }

    #[test]
    fn nobody_unlocks_a_free_lock() {
        assert_eq!(State(0).unlocked(false), None);
        assert_eq!(State(WAITING_WRITER | WANT).unlocked(true), None);
    }

    #[test]
    fn what_ends_a_wait_changes_the_half_that_is_waited_on() {
        let full = (MOST_WAITING * WAITING_READER + MOST_WAITING * WAITING_WRITER) | WANT;
        for held in [WRITER, HOLDER] {
            let state = State(full | held);
            for writers_first in [false, true] {
                let (new, heirs) = state.unlocked(writers_first).expect("held");
                match heirs {
                    Heirs::OneWriter => assert_ne!(new.low(), state.low()),
                    Heirs::AllReaders => assert_ne!(new.high(), state.high()),
                    Heirs::Nobody => unreachable!(),
                }
            }
        }
        let last = State((HOLDER + WAITING_READER + WAITING_WRITER) | WANT);
        assert_ne!(last.without_waiting_writer().high(), last.high());
        assert!(last.without_waiting_writer().admits_reader(true));
    }
}
