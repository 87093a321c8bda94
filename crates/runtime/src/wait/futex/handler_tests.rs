//! Signal handlers that come at the wrong moment.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::*;
use crate::{Runtime, interpose};

const ANY: u32 = u32::MAX;

fn runtime() -> Runtime {
    Runtime::builder().workers(1).build().expect("a runtime")
}

/// Waits until `address` has a waiter.
fn queued(address: usize) {
    // SAFETY: lock held.
    while bucket(address).locked(|tree| unsafe { (*tree.find(address)).is_null() }) {
        std::thread::yield_now();
    }
}

#[test]
fn a_wake_under_the_held_lock_is_made_up_for_at_the_unlock() {
    static WORD: AtomicU32 = AtomicU32::new(0);
    let address = WORD.as_ptr() as usize;
    let runtime = runtime();
    let waiter = runtime.spawn(|| {
        // SAFETY: a static word, a fiber.
        unsafe { wait(&WORD, 0, ANY, Deadline::NEVER) }
    });
    queued(address);
    // As a handler that interrupts whoever holds the lock.
    bucket(address).locked(|_| assert!(!wake_in_handler(address)));
    assert_eq!(waiter.join().expect("no panic"), Waited::Woken);
    runtime.stop();
}

#[test]
fn a_wake_beside_a_free_lock_wakes_one() {
    static WORD: AtomicU32 = AtomicU32::new(0);
    let address = WORD.as_ptr() as usize;
    let runtime = runtime();
    // SAFETY: a static word, fibers.
    let wait = || unsafe { wait(&WORD, 0, ANY, Deadline::NEVER) };
    let waiters = [runtime.spawn(wait), runtime.spawn(wait)];
    for _ in &waiters {
        queued(address);
        assert!(wake_in_handler(address));
    }
    for waiter in waiters {
        assert_eq!(waiter.join().expect("no panic"), Waited::Woken);
    }
    assert!(!wake_in_handler(address), "nobody is left");
    runtime.stop();
}

/// The word that the fiber below works on, and what the handler has seen.
static BUSY: AtomicU32 = AtomicU32::new(0);
static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

/// With one worker the lock is held only by what this handler has interrupted.
extern "C" fn look(_: libc::c_int) {
    if bucket(BUSY.as_ptr() as usize).tree.try_lock().is_none() {
        INTERRUPTED.fetch_add(1, SeqCst);
        ACTIVE.fetch_add(usize::from(interpose::active()), SeqCst);
    }
}

#[test]
fn interposition_is_inactive_while_a_fiber_holds_a_lock_of_the_table() {
    // SAFETY: sigaction(2) with a zeroed mask and a handler that takes no lock.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = look as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()), 0);
    }
    static WORKER: AtomicI32 = AtomicI32::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    let runtime = runtime();
    let busy = runtime.spawn(|| {
        WORKER.store(crate::kernel::gettid() as i32, SeqCst);
        let address = BUSY.as_ptr() as usize;
        while !STOP.load(SeqCst) {
            wake(address, 1, ANY);
            // SAFETY: a static word, a fiber. Not the expected value.
            unsafe { wait(&BUSY, 1, ANY, Deadline::NEVER) };
        }
    });
    let start = Instant::now();
    while INTERRUPTED.load(SeqCst) < 20 && start.elapsed() < Duration::from_secs(30) {
        let worker = WORKER.load(SeqCst);
        if worker != 0 {
            // SAFETY: tgkill(2) at a thread of our own.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), worker, libc::SIGUSR2);
            }
        }
        std::thread::yield_now();
    }
    STOP.store(true, SeqCst);
    busy.join().expect("no panic");
    runtime.stop();
    assert!(INTERRUPTED.load(SeqCst) > 0, "the lock was never interrupted");
    assert_eq!(ACTIVE.load(SeqCst), 0, "a handler would have waited for what it interrupted");
}
