//! `sem_post` in a signal handler, whatever that has interrupted: the program, the scheduler, a lock of the
//! runtime's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use std::{ptr, thread};

use crate::objects::{Mutex, Semaphore};
use crate::support::{Count, Flag, everywhere_alone, scaled};

/// What the handler posts.
static POSTED_TO: std::sync::atomic::AtomicPtr<libc::sem_t> =
    std::sync::atomic::AtomicPtr::new(ptr::null_mut());
static POSTS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handler(_: libc::c_int) {
    let semaphore = POSTED_TO.load(SeqCst);
    if !semaphore.is_null() {
        // SAFETY: sem_post(3) is async-signal-safe; the semaphore lives while the pointer is set.
        assert_eq!(unsafe { libc::sem_post(semaphore) }, 0);
        POSTS.fetch_add(1, SeqCst);
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
        for thread in threads() {
            if thread != me {
                // SAFETY: as above.
                unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) };
            }
        }
        thread::sleep(Duration::from_micros(50));
    }
}

#[test]
fn posts_by_handlers_are_all_taken() {
    everywhere_alone(|host| {
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
                        // A thread's wait may end with EINTR; a fiber's does not.
                        match shared.0.wait() {
                            0 if shared.2.is_up() => return,
                            0 => _ = shared.1.up(),
                            code => assert_eq!(code, libc::EINTR),
                        }
                    }
                })
            })
            .collect();
        // What the handler interrupts: parks, wakes, switches, spawns.
        let busy = Arc::new((Mutex::initializer(), Semaphore::of(2)));
        let workers: Vec<_> = (0..8)
            .map(|i| {
                let busy = Arc::clone(&busy);
                host.spawn(move || {
                    for round in 0..scaled(5000) {
                        busy.0.with_lock(|| {
                            if round % 16 == i {
                                host.yield_now();
                            }
                        });
                        while busy.1.wait() != 0 {}
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
        stop.store(true, SeqCst);
        storming.join().unwrap();
        let start = Instant::now();
        while shared.1.get() < POSTS.load(SeqCst) {
            assert!(start.elapsed() < crate::support::timing::GENEROUS, "a post was lost");
            thread::sleep(Duration::from_millis(1));
        }
        let exact = shared.1.get() == POSTS.load(SeqCst) && shared.0.value() == 0;
        POSTED_TO.store(ptr::null_mut(), SeqCst);
        shared.2.raise();
        takers.iter().for_each(|_| _ = shared.0.post());
        takers.into_iter().for_each(|taker| taker.value());
        (exact, POSTS.load(SeqCst) > 0)
    });
}
