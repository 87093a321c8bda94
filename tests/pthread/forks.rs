//! The child of a fork: locks that somebody waited for in the parent work among the child's own threads.

use std::sync::Arc;
use std::time::Duration;
use std::{ptr, thread};

use crate::objects::{Cond, Mutex};
use crate::support::{Count, on_fibers_alone};

struct Shared {
    mutex: Mutex,
    cond: Cond,
    stage: Count,
}

/// The thread of the child: locks, tells, and waits for an answer.
extern "C" fn locks(shared: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: the test's object, which outlives the child.
    let shared = unsafe { &*shared.cast::<Shared>() };
    shared.stage.up();
    shared.mutex.lock();
    shared.stage.up();
    shared.cond.signal();
    while shared.stage.get() < 3 {
        shared.cond.wait(&shared.mutex);
    }
    shared.mutex.unlock();
    ptr::null_mut()
}

/// What the child does; its exit status. It allocates nothing, as other threads may have been at it.
fn child(shared: &Shared) -> i32 {
    // A hang is an end by SIGALRM.
    // SAFETY: alarm(2).
    unsafe { libc::alarm(20) };
    let mut thread = 0;
    let argument = ptr::from_ref(shared).cast_mut().cast();
    // SAFETY: pthread_create(3) with an object that lives.
    if unsafe { libc::pthread_create(&mut thread, ptr::null(), locks, argument) } != 0 {
        return 2;
    }
    while shared.stage.get() == 0 {
        thread::yield_now();
    }
    thread::sleep(Duration::from_millis(10));
    // Wakes the child's thread, not the fibers of the parent that wait here.
    shared.mutex.unlock();
    shared.mutex.lock();
    while shared.stage.get() < 2 {
        shared.cond.wait(&shared.mutex);
    }
    shared.stage.up();
    shared.cond.signal();
    shared.mutex.unlock();
    // SAFETY: pthread_join(3) of a thread of our own.
    unsafe { libc::pthread_join(thread, ptr::null_mut()) }
}

#[test]
fn a_childs_threads_get_the_wakes_that_the_parents_fibers_waited_for() {
    on_fibers_alone(|host| {
        let shared = Arc::new(Shared {
            mutex: Mutex::initializer(),
            cond: Cond::new(),
            stage: Count::new(),
        });
        let waiting = Arc::new(Count::new());
        // Fibers wait for the condition, then others for the mutex, which a plain thread holds.
        let done = Arc::new(Count::new());
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let (shared, waiting, done) =
                    (Arc::clone(&shared), Arc::clone(&waiting), Arc::clone(&done));
                host.spawn(move || {
                    shared.mutex.lock();
                    waiting.up();
                    while done.get() == 0 {
                        shared.cond.wait(&shared.mutex);
                    }
                    shared.mutex.unlock();
                })
            })
            .collect();
        crate::support::timing::eventually("they wait", || {
            shared.mutex.with_lock(|| waiting.get() == 4)
        });
        let (locked, is_locked) = std::sync::mpsc::channel();
        let forks = thread::spawn({
            let shared = Arc::clone(&shared);
            let waiting = Arc::clone(&waiting);
            move || {
                shared.mutex.lock();
                locked.send(()).unwrap();
                while waiting.get() < 8 {
                    thread::yield_now();
                }
                thread::sleep(Duration::from_millis(5));
                // SAFETY: fork(2); the child calls `child` and ends.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    let status = child(&shared);
                    // SAFETY: _exit(2).
                    unsafe { libc::_exit(status) };
                }
                shared.mutex.unlock();
                let mut status = 0;
                // SAFETY: waitpid(2) of our own child.
                unsafe { libc::waitpid(pid, &mut status, 0) };
                status
            }
        });
        is_locked.recv().unwrap();
        let others = host.spawn_many(4, {
            let (shared, waiting) = (Arc::clone(&shared), Arc::clone(&waiting));
            move |_| {
                waiting.up();
                (shared.mutex.lock(), shared.mutex.unlock())
            }
        });
        assert_eq!(others, [(0, 0); 4]);
        assert_eq!(forks.join().unwrap(), 0, "the child's status");
        shared.mutex.with_lock(|| done.up());
        shared.cond.broadcast();
        waiters.into_iter().for_each(|waiter| waiter.value());
    });
}
