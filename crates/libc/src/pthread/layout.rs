//! What is where in glibc's objects, found by looking at them, and who the caller is.
//!
//! Three kinds of words are glibc's to place: the flags by which an object says "shared between
//! processes" and the like, the caller's number in its `struct pthread`, and the words of mutex and semaphore,
//! whose rules are glibc's own ([`super`]). The flags have moved before (a condition's in 2.41), so none is taken
//! for granted: on the first call glibc initialises pairs of objects that differ in one attribute,
//! and the word that differs is the flag. The number's offset is a symbol made for
//! debuggers, checked against gettid(2).
//!
//! ```text
//!   init(plain)  0 0 0 0 0 0 0 0 0 0 0 0
//!   init(clock)  0 0 0 0 0 0 0 0 0 2 0 0      the flags of a condition: word 9, clock: 2
//!   init(shared) 0 0 0 0 0 0 0 0 0 1 0 0                                 shared: 1
//! ```
//!
//! If anything is not as expected, or a flag lies in a word that this crate's rules use, every call is the C
//! library's own: right for threads, and blocking for fibers.
//!
//! Two threads that come here first at once find the same. Nothing here allocates: the first call may come from
//! an allocator's constructor.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use sleave_runtime::green;

use crate::next;

/// Offset of the caller's number from `pthread_self()`; or one of the two below.
static NUMBER: AtomicUsize = AtomicUsize::new(UNSEEN);
const UNSEEN: usize = 0;
const FOREIGN: usize = 1;

/// glibc's `__libc_single_threaded`, or [`NO`] where there is none.
static ALONE: AtomicPtr<u8> = AtomicPtr::new(&raw const NO as *mut u8);
static NO: u8 = 0;

/// Whether the caller is the only thread that the process has, and there has never been a fiber: then nobody else
/// touches a lock.
#[inline(always)]
pub(super) fn is_alone() -> bool {
    // SAFETY: a byte of ours, or of glibc's, which is never unloaded (sys/single_threaded.h). Relaxed: until it is
    // found the answer is "no". Only the one thread that there is changes the flag, before it starts another.
    unsafe { ALONE.load(Ordering::Relaxed).read() != 0 && !green::may_exist() }
}

/// A word of an object: its offset in bytes.
pub(super) struct Place(AtomicUsize);

impl Place {
    const fn new() -> Place {
        Place(AtomicUsize::new(0))
    }

    fn set(&self, offset: usize) {
        // Relaxed: `NUMBER` publishes it.
        self.0.store(offset, Ordering::Relaxed);
    }

    /// The word of `object`.
    ///
    /// # Safety
    /// The object is live, of the kind that the place was found in, and the caller has got a
    /// number from [`caller`].
    #[inline(always)]
    pub(super) unsafe fn of(&self, object: *const c_void) -> u32 {
        // SAFETY: by contract. Relaxed, both: the place was found before the caller's number could be
        // known; the word changes only when the object is initialised.
        unsafe {
            let offset = self.0.load(Ordering::Relaxed);
            (*object.byte_add(offset).cast::<AtomicU32>()).load(Ordering::Relaxed)
        }
    }
}

/// A condition's flags: 1 shared, 2 on the monotonic clock.
pub(super) static COND_FLAGS: Place = Place::new();
/// Not zero: shared.
pub(super) static RWLOCK_SHARED: Place = Place::new();
/// The preference, `PTHREAD_RWLOCK_PREFER_*_NP`.
pub(super) static RWLOCK_KIND: Place = Place::new();
/// Not zero: shared.
pub(super) static BARRIER_SHARED: Place = Place::new();
/// How many meet.
pub(super) static BARRIER_COUNT: Place = Place::new();
/// Not zero: shared.
pub(super) static SEMAPHORE_SHARED: Place = Place::new();

pub(super) const COND_SHARED: u32 = 1;
pub(super) const COND_MONOTONIC: u32 = 2;

/// The caller's `pthread_self()`.
#[inline(always)]
fn myself() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let at: usize;
        // SAFETY: System V psABI: the first word of the thread control block, at fs:0, is its own
        // address, which is glibc's `pthread_t`.
        unsafe {
            std::arch::asm!("mov {}, fs:0", out(reg) at, options(nostack, readonly, preserves_flags));
        }
        at
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: pthread_self(3) cannot fail.
    unsafe {
        libc::pthread_self() as usize
    }
}

/// The number by which glibc knows the caller as an owner, its own among all threads and fibers;
/// `None` if the objects here are not what this crate knows.
#[inline(always)]
pub(super) fn caller() -> Option<u32> {
    // Acquire: with the places, see `learn`.
    let mut offset = NUMBER.load(Ordering::Acquire);
    if offset <= FOREIGN {
        if offset == FOREIGN {
            return None;
        }
        offset = learn()?;
    }
    // SAFETY: glibc's own description says that the caller's number is there, and it was, on
    // another thread; a fiber's `struct pthread` has glibc's form.
    Some(unsafe { *((myself() + offset) as *const u32) })
}

#[cold]
fn learn() -> Option<usize> {
    // SAFETY: the objects are initialised from attributes that are, as the manual pages ask for.
    let offset = unsafe { look() };
    let alone = next::resolve(c"__libc_single_threaded").cast::<u8>();
    if !alone.is_null() {
        // Relaxed: see `is_alone`.
        ALONE.store(alone, Ordering::Relaxed);
    }
    // Release publishes the places.
    NUMBER.store(offset.unwrap_or(FOREIGN), Ordering::Release);
    offset
}

/// The first 64 bytes of an object, as words.
#[repr(C, align(16))]
struct Picture([u32; 16]);

impl Picture {
    /// What `init` makes of zeroes.
    fn of(init: impl FnOnce(*mut c_void)) -> Picture {
        let mut picture = Picture([0; 16]);
        init(picture.0.as_mut_ptr().cast());
        picture
    }

    /// The offset of the one word in which this differs from `other`, which has `value` there.
    fn word(&self, other: &Picture, value: u32) -> Option<usize> {
        let mut differing = (0..16).filter(|i| self.0[*i] != other.0[*i]);
        let word = differing.next()?;
        (differing.next().is_none() && other.0[word] == value).then_some(4 * word)
    }
}

const _: () = assert!(size_of::<libc::pthread_cond_t>() <= size_of::<Picture>());
const _: () = assert!(size_of::<libc::pthread_rwlock_t>() <= size_of::<Picture>());
const _: () = assert!(size_of::<libc::pthread_barrier_t>() <= size_of::<Picture>());
const _: () = assert!(size_of::<libc::sem_t>() <= size_of::<Picture>());

/// Finds all places and answers the number's, or `None`.
unsafe fn look() -> Option<usize> {
    if !cfg!(target_env = "gnu") || !cfg!(target_endian = "little") {
        return None;
    }
    const SHARED: c_int = libc::PTHREAD_PROCESS_SHARED;

    let cond = |clock: c_int, shared| {
        Picture::of(|object| {
            let mut how = MaybeUninit::uninit();
            // SAFETY: pthread_condattr_init(3), pthread_cond_init(3): room for both.
            unsafe {
                libc::pthread_condattr_init(how.as_mut_ptr());
                libc::pthread_condattr_setclock(how.as_mut_ptr(), clock);
                libc::pthread_condattr_setpshared(how.as_mut_ptr(), shared);
                libc::pthread_cond_init(object.cast(), how.as_ptr());
            }
        })
    };
    let plain = cond(libc::CLOCK_REALTIME, 0);
    let flags = plain.word(&cond(libc::CLOCK_MONOTONIC, 0), COND_MONOTONIC)?;
    let same = plain.word(&cond(libc::CLOCK_REALTIME, SHARED), COND_SHARED)? == flags;
    if !same || flags < super::cond::OURS || plain.0 != [0; 16] {
        return None;
    }
    COND_FLAGS.set(flags);

    let rwlock = |kind, shared| {
        Picture::of(|object| {
            let mut how = MaybeUninit::uninit();
            // SAFETY: pthread_rwlockattr_init(3), pthread_rwlock_init(3): room for both.
            unsafe {
                libc::pthread_rwlockattr_init(how.as_mut_ptr());
                libc::pthread_rwlockattr_setkind_np(how.as_mut_ptr(), kind);
                libc::pthread_rwlockattr_setpshared(how.as_mut_ptr(), shared);
                libc::pthread_rwlock_init(object.cast(), how.as_ptr());
            }
        })
    };
    let plain = rwlock(0, 0);
    let shared = plain.word(&rwlock(0, SHARED), 1)?;
    let kind = plain.word(&rwlock(super::rwlock::WRITERS_FIRST as c_int, 0), 2)?;
    if shared.min(kind) < super::rwlock::OURS || plain.0 != [0; 16] {
        return None;
    }
    RWLOCK_SHARED.set(shared);
    RWLOCK_KIND.set(kind);

    let barrier = |count, shared| {
        Picture::of(|object| {
            let mut how = MaybeUninit::uninit();
            // SAFETY: pthread_barrierattr_init(3), pthread_barrier_init(3): room for both.
            unsafe {
                libc::pthread_barrierattr_init(how.as_mut_ptr());
                libc::pthread_barrierattr_setpshared(how.as_mut_ptr(), shared);
                libc::pthread_barrier_init(object.cast(), how.as_ptr(), count);
            }
        })
    };
    let plain = barrier(3, 0);
    let count = plain.word(&barrier(5, 0), 5)?;
    let shared = plain.word(&barrier(3, SHARED), libc::FUTEX_PRIVATE_FLAG as u32)?;
    if super::barrier::uses(count) || super::barrier::uses(shared) || plain.0[shared / 4] != 0 {
        return None;
    }
    BARRIER_COUNT.set(count);
    BARRIER_SHARED.set(shared);

    let semaphore = |value, shared| {
        // SAFETY: sem_init(3): room for one.
        Picture::of(|object| unsafe {
            libc::sem_init(object.cast(), shared, value);
        })
    };
    let plain = semaphore(3, 0);
    let shared = plain.word(&semaphore(3, 1), libc::FUTEX_PRIVATE_FLAG as u32)?;
    if plain.word(&semaphore(5, 0), 5)? != 0 || shared < super::semaphore::OURS {
        return None;
    }
    SEMAPHORE_SHARED.set(shared);

    let number = next::resolve(c"_thread_db_pthread_tid").cast::<[u32; 3]>();
    // SAFETY: nptl_db/db_info.c of glibc: size in bits, number and offset of a member.
    let [bits, _, offset] = unsafe { number.as_ref() }?;
    let offset = *offset as usize;
    if bits.cast_signed().unsigned_abs() != u32::BITS || offset <= FOREIGN {
        return None;
    }
    // SAFETY: the caller's own `struct pthread`, within its size by the same description.
    let number = unsafe { *((myself() + offset) as *const u32) };
    // SAFETY: gettid(2) has no arguments. (The first call comes before any fiber exists: `fill` of `next` makes it.)
    (number == unsafe { libc::gettid() } as u32).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_c_librarys_objects_are_known() {
        // SAFETY: as in `learn`.
        assert!(unsafe { look() }.is_some());
        // SAFETY: gettid(2).
        assert_eq!(caller(), Some(unsafe { libc::gettid() } as u32));
    }

    #[test]
    fn only_one_word_may_differ() {
        let zero = Picture([0; 16]);
        let mut one = Picture([0; 16]);
        one.0[7] = 2;
        assert_eq!(zero.word(&one, 2), Some(28));
        assert_eq!(zero.word(&one, 1), None);
        one.0[8] = 2;
        assert_eq!(zero.word(&one, 2), None);
        assert_eq!(zero.word(&zero, 0), None);
    }
}
