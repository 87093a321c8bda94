//! `sem_post` in a signal handler, whatever that has interrupted: the program, the scheduler, a lock of the
//! runtime's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};
use std::{ptr, thread};

use crate::objects::{Mutex, Semaphore};
use crate::support::timing::eventually;
use crate::support::{Count, Flag, on_fibers_alone, scaled};

/// What the handler posts.
static POSTED_TO: AtomicPtr<libc::sem_t> = AtomicPtr::new(ptr::null_mut());
static POSTS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handler(_: libc::c_int) {
    let semaphore = POSTED_TO.load(SeqCst);
    if !semaphore.is_null() {
        POSTS.fetch_add(1, SeqCst);
        // SAFETY: sem_post(3) is async-signal-safe; the semaphore lives while the pointer is set.
        assert_eq!(unsafe { libc::sem_post(semaphore) }, 0);
    }
}

/// The threads of this process.
fn threads() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// Signals every thread but itself until told to stop.
fn storm(stop: &AtomicBool) {
    // SAFETY: gettid(2), getpid(2), tgkill(2) at threads of our own, or of nobody any more.
    let (me, process) = unsafe { (libc::gettid(), libc::getpid()) };
    while !stop.load(SeqCst) {
        let threads = threads();
        for _ in 0..1000 {
            for thread in threads.iter().filter(|thread| **thread != me) {
                // SAFETY: as above.
                unsafe { libc::syscall(libc::SYS_tgkill, process, *thread, libc::SIGUSR1) };
            }
        }
    }
}

#[test]
fn posts_by_handlers_are_all_taken() {
    on_fibers_alone(|host| {
        let shared = Arc::new((Semaphore::of(0), Count::new(), Flag::new()));
        POSTS.store(0, SeqCst);
        POSTED_TO.store(shared.0.get(), SeqCst);
        // SAFETY: sigaction(2) with a zeroed mask and a handler that does what handlers may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()), 0);
        }
        let takers: Vec<_> = (0..20)
            .map(|_| {
                let shared = Arc::clone(&shared);
                host.spawn(move || {
                    loop {
                        assert_eq!(shared.0.wait(), 0);
                        if shared.2.is_up() {
                            return;
                        }
                        shared.1.up();
                    }
                })
            })
            .collect();
        // What the handler interrupts: parks, wakes, switches, spawns.
        let busy = Arc::new((Mutex::initializer(), Semaphore::of(2)));
        let workers: Vec<_> = (0..8)
            .map(|i| {
                let (busy, shared) = (Arc::clone(&busy), Arc::clone(&shared));
                host.spawn(move || {
                    for round in 0..scaled(5000) {
                        // The very semaphore: its wake is what the handler most likely interrupts.
                        shared.0.post();
                        POSTS.fetch_add(1, SeqCst);
                        busy.0.with_lock(|| {
                            if round % 16 == i {
                                host.yield_now();
                            }
                        });
                        assert_eq!(busy.1.wait(), 0);
                        host.yield_now();
                        busy.1.post();
                        if round % 64 == 0 {
                            host.spawn(|| {}).value();
                        }
                    }
                })
            })
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let storming = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || storm(&stop))
        };
        workers.into_iter().for_each(|worker| worker.value());
        // On a busy machine the storm may begin only now.
        eventually("the handler posts, too", || POSTS.load(SeqCst) > 8 * scaled(5000));
        stop.store(true, SeqCst);
        storming.join().unwrap();
        // The last handlers may still be on their way.
        eventually("as many are taken as were posted", || {
            let taken = shared.1.get();
            taken == POSTS.load(SeqCst) && shared.0.value() == 0 && taken == shared.1.get()
        });
        POSTED_TO.store(ptr::null_mut(), SeqCst);
        shared.2.raise();
        takers.iter().for_each(|_| _ = shared.0.post());
        takers.into_iter().for_each(|taker| taker.value());
    });
}
