//! `pthread_mutex_*` and C11's `mtx_*`: normal, recursive, error-checking and adaptive mutexes.
//!
//! The words and rules are glibc's:
//!
//! ```text
//!   0  lock    0 free ──lock──▶ 1 held ──another waits──▶ 2 held, somebody may wait
//!                ▲                │                         │
//!                └────unlock──────┘◀──unlock: wake one──────┘
//!   4  count   of a recursive mutex: how often its owner has it
//!   8  owner   the owner's number, 0 if free
//!  12  users   1 while it is held, or its owner waits for a condition (pthread_mutex_destroy looks)
//!  16  kind    type, and bits for what stays with glibc
//! ```
//!
//! Who has waited takes the lock as 2, since others may wait still: one wake too many at worst, none too few
//! (Drepper, "Futexes Are Tricky", mutex 2). The lock is not handed over: who comes at the right
//! moment takes it, as in glibc.
//!
//! An unlocker touches the mutex for the last time when it makes the word 0. The next owner may
//! destroy it at once; the wake that follows only names the address.
//!
//! A thread spins a little for an adaptive mutex. A fiber does not: the owner may be waiting for its worker.
//!
//! Sources: pthread_mutex_lock(3), pthread_mutex_timedlock(3), `nptl/pthread_mutex_lock.c` for the error numbers.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{clockid_t, pthread_mutex_t, timespec};
use sleave_runtime::interpose;
use sleave_runtime::wait::futex::Waited;

use super::tables::{self, Until};
use super::{layout, thrd};
use crate::next;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// The types.
const RECURSIVE: u32 = libc::PTHREAD_MUTEX_RECURSIVE as u32;
const ERRORCHECK: u32 = libc::PTHREAD_MUTEX_ERRORCHECK as u32;
const ADAPTIVE: u32 = 3;
const TYPE: u32 = 3;
/// Hints about transactional memory, which is not used here.
const ELISION: u32 = 256 | 512;
/// Priority inheritance and protection.
const PRIORITY: u32 = 32 | 64;

/// How often a thread looks at an adaptive mutex before it sleeps: glibc's own default.
const SPINS: u32 = 100;

/// glibc's `struct __pthread_mutex_s` on 64-bit machines, as far as it is used here. All but `lock` and `kind` is the owner's;
/// others look at `owner`, and learn from it only whether they are it.
#[repr(C)]
pub(super) struct Mutex {
    lock: AtomicU32,
    count: AtomicU32,
    owner: AtomicU32,
    users: AtomicU32,
    kind: AtomicU32,
}

const _: () = assert!(size_of::<Mutex>() <= size_of::<pthread_mutex_t>());

/// Whose a mutex is.
pub(super) enum Whose<'a> {
    /// Ours, and the caller's number.
    Ours(&'a Mutex, u32),
    /// glibc's.
    Glibcs,
    /// One that a fiber cannot have.
    Refused,
}

/// # Safety
/// pthread_mutex_lock(3): the mutex is live and initialised.
#[inline(always)]
pub(super) unsafe fn whose<'a>(mutex: *mut pthread_mutex_t) -> Whose<'a> {
    // SAFETY: by contract; the fields are atomics, which may be shared.
    let this = unsafe { &*mutex.cast::<Mutex>() };
    // Relaxed: written when it was initialised.
    let kind = this.kind.load(Ordering::Relaxed);
    if kind & !(TYPE | ELISION) == 0
        && let Some(me) = layout::caller()
    {
        return Whose::Ours(this, me);
    }
    // A mutex that has been destroyed has all bits set: glibc says EINVAL.
    let priority = kind as i32 > 0 && kind & PRIORITY != 0;
    if priority && interpose::active() { Whose::Refused } else { Whose::Glibcs }
}

impl Mutex {
    fn kind(&self) -> u32 {
        // Relaxed: written when it was initialised.
        self.kind.load(Ordering::Relaxed) & TYPE
    }

    fn is_owned_by(&self, me: u32) -> bool {
        // Relaxed: only the caller itself writes its number here, and takes it away.
        self.owner.load(Ordering::Relaxed) == me
    }

    /// Has it once more, or says that it cannot be had more often.
    fn again(&self) -> c_int {
        // Relaxed, here and wherever the owner changes its own fields: under the lock.
        match self.count.load(Ordering::Relaxed).checked_add(1) {
            Some(count) => {
                self.count.store(count, Ordering::Relaxed);
                0
            }
            None => libc::EAGAIN,
        }
    }

    #[inline(always)]
    fn take(&self) -> bool {
        if layout::is_alone() {
            // Relaxed, both: nobody else is there.
            let free = self.lock.load(Ordering::Relaxed) == FREE;
            if free {
                self.lock.store(HELD, Ordering::Relaxed);
            }
            return free;
        }
        // Acquire: with the last owner's unlock. Relaxed on failure: nothing is read.
        self.lock.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline(always)]
    fn taken(&self, me: u32, user: bool) {
        self.owner.store(me, Ordering::Relaxed);
        if user {
            let users = self.users.load(Ordering::Relaxed);
            self.users.store(users.wrapping_add(1), Ordering::Relaxed);
        }
        if self.kind() == RECURSIVE {
            self.count.store(1, Ordering::Relaxed);
        }
    }

    /// Locks it. `user`: whether the caller does not count as a user yet.
    #[inline(always)]
    pub(super) fn lock(&self, me: u32, user: bool, until: Option<&Until>) -> c_int {
        let kind = self.kind();
        if (kind == RECURSIVE || kind == ERRORCHECK) && self.is_owned_by(me) {
            return if kind == RECURSIVE { self.again() } else { libc::EDEADLK };
        }
        if !self.take() {
            let code = self.wait(kind, until);
            if code != 0 {
                return code;
            }
        }
        self.taken(me, user);
        0
    }

    #[cold]
    #[inline(never)]
    fn wait(&self, kind: u32, until: Option<&Until>) -> c_int {
        if kind == ADAPTIVE && !interpose::active() {
            for _ in 0..SPINS {
                std::hint::spin_loop();
                // Relaxed: a hint whether taking is worth a try.
                if self.lock.load(Ordering::Relaxed) == FREE && self.take() {
                    return 0;
                }
            }
        }
        // Acquire: as in `take`.
        while self.lock.swap(CONTENDED, Ordering::Acquire) != FREE {
            if let Some(until) = until
                && !until.is_negative()
                && let Err(code) = until.check()
            {
                return code;
            }
            // SAFETY: the mutex outlives the call, by the contract of pthread_mutex_lock(3).
            if unsafe { tables::wait(&self.lock, CONTENDED, until) } == Waited::TimedOut {
                return libc::ETIMEDOUT;
            }
        }
        0
    }

    fn try_lock(&self, me: u32) -> c_int {
        if self.kind() == RECURSIVE && self.is_owned_by(me) {
            return self.again();
        }
        if !self.take() {
            return libc::EBUSY;
        }
        self.taken(me, true);
        0
    }

    /// Unlocks it. `user`: whether the caller ceases to be a user.
    #[inline(always)]
    pub(super) fn unlock(&self, me: u32, user: bool) -> c_int {
        let kind = self.kind();
        if kind == RECURSIVE || kind == ERRORCHECK {
            if !self.is_owned_by(me) {
                return libc::EPERM;
            }
            if kind == RECURSIVE {
                let count = self.count.load(Ordering::Relaxed) - 1;
                self.count.store(count, Ordering::Relaxed);
                if count != 0 {
                    return 0;
                }
            }
        }
        self.owner.store(0, Ordering::Relaxed);
        if user {
            let users = self.users.load(Ordering::Relaxed);
            self.users.store(users.wrapping_sub(1), Ordering::Relaxed);
        }
        if layout::is_alone() {
            // Relaxed: nobody else is there, to wait least of all.
            self.lock.store(FREE, Ordering::Relaxed);
            return 0;
        }
        let address = &raw const self.lock as usize;
        // Release: with the next owner's Acquire. The last access: see the essay.
        if self.lock.swap(FREE, Ordering::Release) == CONTENDED {
            tables::wake_one(address);
        }
        0
    }
}

/// pthread_mutex_lock(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_mutex_lock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's mutex.
    match unsafe { whose(mutex) } {
        Whose::Ours(mutex, me) => mutex.lock(me, true, None),
        // SAFETY: the caller's argument for the same function.
        Whose::Glibcs => unsafe { next::pthread_mutex_lock(mutex) },
        Whose::Refused => libc::ENOTSUP,
    }
}

/// pthread_mutex_trylock(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_mutex_trylock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's mutex.
    match unsafe { whose(mutex) } {
        Whose::Ours(mutex, me) => mutex.try_lock(me),
        // SAFETY: the caller's argument for the same function.
        Whose::Glibcs => unsafe { next::pthread_mutex_trylock(mutex) },
        Whose::Refused => libc::ENOTSUP,
    }
}

/// pthread_mutex_timedlock(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_mutex_timedlock(
    mutex: *mut pthread_mutex_t,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's mutex and time.
    unsafe {
        match whose(mutex) {
            Whose::Ours(mutex, me) => {
                mutex.lock(me, true, Some(&Until::new(libc::CLOCK_REALTIME, at)))
            }
            Whose::Glibcs => next::pthread_mutex_timedlock(mutex, at),
            Whose::Refused => libc::ENOTSUP,
        }
    }
}

/// pthread_mutex_clocklock(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_mutex_clocklock(
    mutex: *mut pthread_mutex_t,
    clock: clockid_t,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's mutex and time.
    unsafe {
        match whose(mutex) {
            Whose::Ours(..) if !tables::knows_clock(clock) => libc::EINVAL,
            Whose::Ours(mutex, me) => mutex.lock(me, true, Some(&Until::new(clock, at))),
            Whose::Glibcs => next::pthread_mutex_clocklock(mutex, clock, at),
            Whose::Refused => libc::ENOTSUP,
        }
    }
}

/// pthread_mutex_unlock(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_mutex_unlock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's mutex.
    match unsafe { whose(mutex) } {
        Whose::Ours(mutex, me) => mutex.unlock(me, true),
        // SAFETY: the caller's argument for the same function.
        Whose::Glibcs => unsafe { next::pthread_mutex_unlock(mutex) },
        Whose::Refused => libc::EPERM,
    }
}

/// `mtx_lock` of C11: a `mtx_t` is a `pthread_mutex_t`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mtx_lock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's mutex.
    thrd(unsafe { pthread_mutex_lock(mutex) })
}

/// `mtx_trylock` of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mtx_trylock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's mutex.
    thrd(unsafe { pthread_mutex_trylock(mutex) })
}

/// `mtx_timedlock` of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mtx_timedlock(
    mutex: *mut pthread_mutex_t,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's mutex and time.
    thrd(unsafe { pthread_mutex_timedlock(mutex, at) })
}

/// `mtx_unlock` of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mtx_unlock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's mutex.
    thrd(unsafe { pthread_mutex_unlock(mutex) })
}
