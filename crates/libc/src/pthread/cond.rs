//! `pthread_cond_*` and C11's `cnd_*`: conditions.
//!
//! ```text
//!   0  sequence  how many signals so far: waiters wait for it to change
//!   4  inside    who is in a wait, see [`Inside`]
//!      flags     glibc's word, see [`layout`]: shared between processes, on the monotonic clock
//! ```
//!
//! # Why no signal is lost and none is stolen
//!
//! A waiter counts itself and reads `sequence` while it has the mutex, then unlocks, then waits while
//! `sequence` is what it was. Whoever changes what is waited for does so under the mutex and
//! signals afterwards: it finds the count, raises `sequence`, and wakes. Either the waiter sleeps
//! already and is woken, or it finds another `sequence` and does not sleep. (It would miss exactly 2³² signals
//! between two of its instructions, as `std::sync::Condvar` would.)
//!
//! Somebody who begins to wait after a signal has returned cannot take it from those who waited before: the wake is over, and has
//! gone to one who was queued then. One signal wakes one; more wake only if they
//! are just on their way to sleep, which POSIX allows at any time. A broadcast wakes all.
//!
//! A wait whose time is over at the moment of a signal either counts as signalled, or the signal goes to another.
//!
//! # Mutexes that stay with glibc, conditions that do
//!
//! The mutex of a wait may be of any kind: it is unlocked and locked again by this crate's own symbols.
//! A condition shared between processes is glibc's. But glibc would unlock the mutex by itself, and if that is one of ours, a
//! fiber that waits for the mutex would not be woken. Nobody outside this process can
//! use such a mutex, hence nobody outside can wait with it; so those who do wait *here*, at a queue
//! chosen by the condition's address, and this process's signals go there too. Only a signal from
//! *another* process, which has no way to hold the mutex, does not reach them.
//!
//! # Cancellation
//!
//! On a thread the wait is a cancellation point. As in glibc the kernel's wait is made with asynchronous
//! cancellation, and a cleanup handler passes the signal on that the thread may have consumed, and locks the mutex again
//! before the program's handlers run. Nothing with a destructor may lie between.
//!
//! Sources: pthread_cond_wait(3p), pthread_setcanceltype(3), pthread_cleanup_push_defer_np(3).

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{clockid_t, pthread_cond_t, pthread_mutex_t, timespec};
use sleave_runtime::interpose;
use sleave_runtime::wait::futex::Waited;

use super::layout::{self, COND_MONOTONIC, COND_SHARED};
use super::mutex::{self, Whose, pthread_mutex_lock, pthread_mutex_unlock};
use super::tables::{self, Inside, Until};
use super::thrd;
use crate::{cancel, next};

/// Bytes whose rules are known here.
pub(super) const OURS: usize = size_of::<Queue>();

#[repr(C)]
struct Queue {
    sequence: AtomicU32,
    inside: Inside,
}

/// For waits with a mutex of this process on a condition that is shared.
static ASIDE: [Queue; 64] =
    [const { Queue { sequence: AtomicU32::new(0), inside: Inside::new() } }; 64];

/// Where to wait.
enum Whither<'a> {
    Ours(&'a Queue),
    Aside(&'static Queue),
    Glibcs,
}

/// The condition's own queue, or the one aside of it.
///
/// # Safety
/// pthread_cond_wait(3p): the condition is live and initialised.
unsafe fn queue<'a>(cond: *mut pthread_cond_t) -> Whither<'a> {
    if layout::caller().is_none() {
        return Whither::Glibcs;
    }
    // SAFETY: by contract; the fields are atomics, which may be shared.
    unsafe {
        if layout::COND_FLAGS.of(cond.cast()) & COND_SHARED == 0 {
            Whither::Ours(&*cond.cast::<Queue>())
        } else {
            Whither::Aside(&ASIDE[cond as usize / size_of::<pthread_cond_t>() % ASIDE.len()])
        }
    }
}

/// The queue for a wait with `mutex`, unless glibc makes it.
unsafe fn queue_with<'a>(
    cond: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
) -> Option<&'a Queue> {
    // SAFETY: the caller's condition and mutex.
    unsafe {
        match queue(cond) {
            Whither::Ours(queue) => Some(queue),
            Whither::Aside(queue) if matches!(mutex::whose(mutex), Whose::Ours(..)) => Some(queue),
            _ => None,
        }
    }
}

/// Unlocks the mutex of a wait; its owner stays a user of it.
unsafe fn unlock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's mutex.
    unsafe {
        match mutex::whose(mutex) {
            Whose::Ours(mutex, me) => mutex.unlock(me, false),
            _ => pthread_mutex_unlock(mutex),
        }
    }
}

/// Takes the mutex again.
unsafe fn relock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's mutex.
    unsafe {
        match mutex::whose(mutex) {
            Whose::Ours(mutex, me) => mutex.lock(me, false, None),
            _ => pthread_mutex_lock(mutex),
        }
    }
}

impl Queue {
    fn signal(&self) {
        if self.inside.is_empty() {
            return;
        }
        let address = &raw const self.sequence as usize;
        // Relaxed: what is waited for is the mutex's to publish. The word is read under the lock of
        // the table, which whoever wakes takes afterwards.
        self.sequence.fetch_add(1, Ordering::Relaxed);
        tables::wake_one(address);
    }

    fn broadcast(&self) {
        if self.inside.is_empty() {
            return;
        }
        let address = &raw const self.sequence as usize;
        // Relaxed: as above.
        self.sequence.fetch_add(1, Ordering::Relaxed);
        tables::wake_all(address);
    }

    unsafe fn wait(&self, mutex: *mut pthread_mutex_t, until: Option<&Until>) -> c_int {
        cancel::point();
        self.inside.enter();
        // Relaxed: under the mutex, see the essay.
        let sequence = self.sequence.load(Ordering::Relaxed);
        // SAFETY: the caller's mutex, which it has locked.
        let code = unsafe { unlock(mutex) };
        if code != 0 {
            self.inside.leave();
            return code;
        }
        // SAFETY: `inside` keeps the queue.
        let waited = unsafe {
            if interpose::active() {
                tables::wait(&self.sequence, sequence, until)
            } else {
                self.wait_as_thread(sequence, mutex, until)
            }
        };
        self.inside.leave();
        // SAFETY: as above.
        let code = unsafe { relock(mutex) };
        match waited {
            _ if code != 0 => code,
            // With the mutex, as cleanup handlers expect.
            Waited::Interrupted if cancel::is_due() => cancel::act(),
            Waited::TimedOut => libc::ETIMEDOUT,
            _ => 0,
        }
    }

    /// The wait of a thread, a cancellation point.
    unsafe fn wait_as_thread(
        &self,
        sequence: u32,
        mutex: *mut pthread_mutex_t,
        until: Option<&Until>,
    ) -> Waited {
        if until.is_some_and(Until::is_negative) {
            return Waited::TimedOut;
        }
        let mut cancelled = Cancelled { queue: self, mutex };
        let mut handler = CleanupBuffer {
            routine: None,
            argument: null_mut(),
            cancel_type: 0,
            previous: null_mut(),
        };
        let mut before = 0;
        tables::thread_waits();
        // SAFETY: handler and argument live until the handler is popped, below, or has run. The
        // cancellation type is set back. In between nothing is owned and nothing half-done.
        unsafe {
            _pthread_cleanup_push(&mut handler, cancel, (&raw mut cancelled).cast());
            pthread_setcanceltype(ASYNCHRONOUS, &mut before);
            let waited = tables::wait_in_kernel(&self.sequence, sequence, until);
            pthread_setcanceltype(before, &mut before);
            _pthread_cleanup_pop(&mut handler, 0);
            tables::thread_waits_no_more();
            waited
        }
    }
}

/// `PTHREAD_CANCEL_ASYNCHRONOUS`
const ASYNCHRONOUS: c_int = 1;

/// What the cleanup handler of a cancelled wait must know.
struct Cancelled<'a> {
    queue: &'a Queue,
    mutex: *mut pthread_mutex_t,
}

/// glibc's `struct _pthread_cleanup_buffer`, pthread.h.
#[repr(C)]
struct CleanupBuffer {
    routine: Option<unsafe extern "C" fn(*mut c_void)>,
    argument: *mut c_void,
    cancel_type: c_int,
    previous: *mut CleanupBuffer,
}

unsafe extern "C-unwind" {
    fn _pthread_cleanup_push(
        buffer: *mut CleanupBuffer,
        routine: unsafe extern "C" fn(*mut c_void),
        argument: *mut c_void,
    );
    fn _pthread_cleanup_pop(buffer: *mut CleanupBuffer, execute: c_int);
    fn pthread_setcanceltype(kind: c_int, before: *mut c_int) -> c_int;
}

/// The thread was cancelled in its wait.
unsafe extern "C" fn cancel(argument: *mut c_void) {
    // SAFETY: pushed together with this handler, and still on the stack.
    let Cancelled { queue, mutex } = unsafe { &*argument.cast::<Cancelled<'_>>() };
    tables::thread_waits_no_more();
    // A signal may have woken this thread: it is somebody else's now.
    queue.signal();
    queue.inside.leave();
    // SAFETY: the waiter's mutex.
    unsafe { relock(*mutex) };
}

/// pthread_cond_wait(3p)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_cond_wait(
    cond: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
) -> c_int {
    // SAFETY: the caller's condition and mutex.
    unsafe {
        match queue_with(cond, mutex) {
            Some(queue) => queue.wait(mutex, None),
            None => next::pthread_cond_wait(cond, mutex),
        }
    }
}

/// pthread_cond_timedwait(3p)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_cond_timedwait(
    cond: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's condition, mutex and time.
    unsafe {
        match queue_with(cond, mutex) {
            Some(queue) => {
                let monotonic = layout::COND_FLAGS.of(cond.cast()) & COND_MONOTONIC != 0;
                let clock = if monotonic { libc::CLOCK_MONOTONIC } else { libc::CLOCK_REALTIME };
                wait_until(queue, mutex, clock, at)
            }
            None => next::pthread_cond_timedwait(cond, mutex, at),
        }
    }
}

/// pthread_cond_clockwait(3p)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_cond_clockwait(
    cond: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    clock: clockid_t,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's condition, mutex and time.
    unsafe {
        match queue_with(cond, mutex) {
            Some(queue) => wait_until(queue, mutex, clock, at),
            None => next::pthread_cond_clockwait(cond, mutex, clock, at),
        }
    }
}

unsafe fn wait_until(
    queue: &Queue,
    mutex: *mut pthread_mutex_t,
    clock: clockid_t,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's mutex and time.
    unsafe {
        let until = Until::new(clock, at);
        if !tables::knows_clock(clock) || until.check().is_err() {
            return libc::EINVAL;
        }
        queue.wait(mutex, Some(&until))
    }
}

/// pthread_cond_signal(3p)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_cond_signal(cond: *mut pthread_cond_t) -> c_int {
    // SAFETY: the caller's condition.
    match unsafe { queue(cond) } {
        Whither::Ours(queue) => {
            queue.signal();
            return 0;
        }
        // All, since other conditions' waiters may be there.
        Whither::Aside(queue) => queue.broadcast(),
        Whither::Glibcs => {}
    }
    // SAFETY: the caller's argument for the same function.
    unsafe { next::pthread_cond_signal(cond) }
}

/// pthread_cond_broadcast(3p)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_cond_broadcast(cond: *mut pthread_cond_t) -> c_int {
    // SAFETY: the caller's condition.
    match unsafe { queue(cond) } {
        Whither::Ours(queue) => {
            queue.broadcast();
            return 0;
        }
        Whither::Aside(queue) => queue.broadcast(),
        Whither::Glibcs => {}
    }
    // SAFETY: the caller's argument for the same function.
    unsafe { next::pthread_cond_broadcast(cond) }
}

/// pthread_cond_destroy(3p): waits until all who were woken have left.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_cond_destroy(cond: *mut pthread_cond_t) -> c_int {
    // SAFETY: the caller's condition.
    match unsafe { queue(cond) } {
        Whither::Ours(queue) => {
            queue.inside.outlast();
            0
        }
        // SAFETY: the caller's argument for the same function.
        _ => unsafe { next::pthread_cond_destroy(cond) },
    }
}

/// `cnd_wait` of C11: a `cnd_t` is a `pthread_cond_t`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn cnd_wait(
    cond: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
) -> c_int {
    // SAFETY: the caller's arguments.
    thrd(unsafe { pthread_cond_wait(cond, mutex) })
}

/// `cnd_timedwait` of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn cnd_timedwait(
    cond: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's arguments.
    thrd(unsafe { pthread_cond_timedwait(cond, mutex, at) })
}

/// `cnd_signal` of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn cnd_signal(cond: *mut pthread_cond_t) -> c_int {
    // SAFETY: the caller's argument.
    thrd(unsafe { pthread_cond_signal(cond) })
}

/// `cnd_broadcast` of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn cnd_broadcast(cond: *mut pthread_cond_t) -> c_int {
    // SAFETY: the caller's argument.
    thrd(unsafe { pthread_cond_broadcast(cond) })
}

/// `cnd_destroy` of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn cnd_destroy(cond: *mut pthread_cond_t) {
    // SAFETY: the caller's argument.
    unsafe { pthread_cond_destroy(cond) };
}
