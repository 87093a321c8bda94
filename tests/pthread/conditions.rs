//! Conditions: signals that reach one or all, both clocks, the mutex that is had again, and
//! destruction while others leave.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::objects::{Cond, Mutex, at};
use crate::support::timing::eventually;
use crate::support::{Count, Host, everywhere};

/// A number that grows, under a mutex and with a condition.
struct Shared {
    mutex: Mutex,
    cond: Cond,
    waiting: Count,
    tokens: Count,
    gone: Count,
}

fn shared(cond: Cond) -> Arc<Shared> {
    Arc::new(Shared {
        mutex: Mutex::initializer(),
        cond,
        waiting: Count::new(),
        tokens: Count::new(),
        gone: Count::new(),
    })
}

/// Waits for a token and takes it.
fn take(shared: &Shared) {
    shared.mutex.with_lock(|| {
        shared.waiting.up();
        while shared.tokens.get() == 0 {
            assert_eq!(shared.cond.wait(&shared.mutex), 0);
        }
        shared.tokens.down();
        shared.gone.up();
    });
}

/// `n` of the host's and `threads` of the kernel's wait; each signal comes with one token.
fn one_signal_each(host: Host, cond: Cond, n: usize, threads: usize) -> usize {
    let shared = shared(cond);
    let fibers: Vec<_> = (0..n)
        .map(|_| {
            let shared = Arc::clone(&shared);
            host.spawn(move || take(&shared))
        })
        .collect();
    let threads: Vec<_> = (0..threads)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || take(&shared))
        })
        .collect();
    let all = fibers.len() + threads.len();
    eventually("all wait", || shared.mutex.with_lock(|| shared.waiting.get() == all));
    for round in 0..all {
        shared.mutex.with_lock(|| shared.tokens.up());
        assert_eq!(shared.cond.signal(), 0);
        eventually("one has gone", || shared.mutex.with_lock(|| shared.gone.get() > round));
    }
    fibers.into_iter().for_each(|fiber| fiber.value());
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    shared.gone.get()
}

#[test]
fn every_signal_wakes_one() {
    everywhere(|host| one_signal_each(host, Cond::new(), 20, 0));
}

#[test]
fn every_signal_wakes_one_thread_or_fiber() {
    everywhere(|host| one_signal_each(host, Cond::new(), 10, 10));
}

#[test]
fn a_condition_shared_between_processes_works_with_a_mutex_that_is_not() {
    let cond = || Cond::with(libc::CLOCK_REALTIME, libc::PTHREAD_PROCESS_SHARED);
    everywhere(|host| one_signal_each(host, cond(), 10, 5));
}

#[test]
fn a_broadcast_wakes_all() {
    everywhere(|host| {
        let shared = shared(Cond::new());
        let waiters: Vec<_> = (0..50)
            .map(|_| {
                let shared = Arc::clone(&shared);
                host.spawn(move || take(&shared))
            })
            .collect();
        eventually("all wait", || shared.mutex.with_lock(|| shared.waiting.get() == 50));
        shared.mutex.with_lock(|| shared.tokens.set(50));
        assert_eq!(shared.cond.broadcast(), 0);
        waiters.into_iter().for_each(|waiter| waiter.value());
        (shared.gone.get(), shared.tokens.get())
    });
}

#[test]
fn a_signal_without_a_waiter_is_not_kept() {
    everywhere(|_| {
        let (mutex, cond) = (Mutex::initializer(), Cond::new());
        cond.signal();
        cond.broadcast();
        mutex.lock();
        let past = at(libc::CLOCK_REALTIME, Duration::from_millis(5));
        (cond.timed_wait(&mutex, &past), mutex.unlock())
    });
}

#[test]
fn the_mutex_is_had_again_after_every_end() {
    everywhere(|host| {
        let mutex = Arc::new(Mutex::of_type(libc::PTHREAD_MUTEX_ERRORCHECK));
        let cond = Cond::new();
        let soon = at(libc::CLOCK_REALTIME, Duration::from_millis(5));
        mutex.lock();
        let mut codes = vec![cond.timed_wait(&mutex, &soon)];
        // Held by another when the time is over.
        let (locked, is_locked) = std::sync::mpsc::channel();
        let other = host.spawn({
            let mutex = Arc::clone(&mutex);
            move || {
                mutex.lock();
                locked.send(()).unwrap();
                thread::sleep(Duration::from_millis(20));
                mutex.unlock()
            }
        });
        let soon = at(libc::CLOCK_REALTIME, Duration::from_millis(5));
        codes.push(cond.timed_wait(&mutex, &soon));
        // The other may not have come yet.
        codes.push(mutex.unlock());
        is_locked.recv().unwrap();
        codes.push(other.value());
        codes.push(cond.wait(&mutex));
        codes
    });
}

#[test]
fn a_condition_may_be_destroyed_while_those_woken_leave() {
    everywhere(|host| {
        for _ in 0..50 {
            let shared = shared(Cond::new());
            let waiters: Vec<_> = (0..4)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    host.spawn(move || take(&shared))
                })
                .collect();
            eventually("all wait", || shared.mutex.with_lock(|| shared.waiting.get() == 4));
            shared.mutex.lock();
            shared.tokens.set(4);
            shared.cond.broadcast();
            shared.mutex.unlock();
            assert_eq!(shared.cond.destroy(), 0);
            // What another object would do with the memory.
            // SAFETY: destroyed: nobody may touch it any more.
            unsafe { shared.cond.get().write_bytes(0xaa, 1) };
            waiters.into_iter().for_each(|waiter| waiter.value());
            let bytes = shared.cond.get().cast::<u8>();
            // SAFETY: the object's bytes, all written above.
            let untouched = (0..size_of::<libc::pthread_cond_t>())
                .all(|i| unsafe { bytes.add(i).read() } == 0xaa);
            assert!(untouched, "somebody has written to it");
        }
    });
}

#[test]
fn a_thread_is_cancelled_in_its_wait_and_has_the_mutex_then() {
    // On plain threads in every case: a fiber cannot be cancelled. The other side is the host's.
    everywhere(|host| {
        let shared = shared(Cond::new());
        let raw = Arc::into_raw(Arc::clone(&shared)).cast_mut().cast();
        extern "C" fn wait(shared: *mut libc::c_void) -> *mut libc::c_void {
            // SAFETY: the test's object, which it gives back after the join. Borrowed, since a
            // cancelled thread must own nothing.
            let shared = unsafe { &*shared.cast::<Shared>() };
            shared.mutex.lock();
            shared.waiting.up();
            loop {
                shared.cond.wait(&shared.mutex);
            }
        }
        let mut thread = 0;
        // SAFETY: pthread_create(3) with a routine of its type and an argument that outlives it.
        let code = unsafe { libc::pthread_create(&mut thread, std::ptr::null(), wait, raw) };
        assert_eq!(code, 0);
        eventually("it waits", || shared.mutex.with_lock(|| shared.waiting.get() == 1));
        // Another waits as well: the cancelled one must not keep a signal.
        let other = host.spawn({
            let shared = Arc::clone(&shared);
            move || take(&shared)
        });
        eventually("both wait", || shared.mutex.with_lock(|| shared.waiting.get() == 2));
        shared.mutex.with_lock(|| shared.tokens.up());
        // SAFETY: pthread_cancel(3), pthread_join(3) of a thread that is not joined yet.
        unsafe { libc::pthread_cancel(thread) };
        shared.cond.signal();
        let mut result = std::ptr::null_mut();
        // It has the mutex and ends with it: as POSIX has it, without a handler that unlocks it.
        // SAFETY: as above.
        let joined = unsafe { libc::pthread_join(thread, &mut result) };
        let held = shared.mutex.try_lock();
        // SAFETY: the mutex is a normal one, which anybody may unlock; its owner has ended.
        let unlocked = unsafe { libc::pthread_mutex_unlock(shared.mutex.get()) };
        other.value();
        // SAFETY: what `into_raw` gave.
        drop(unsafe { Arc::from_raw(raw.cast::<Shared>()) });
        (joined, result as isize, held, unlocked)
    });
}
