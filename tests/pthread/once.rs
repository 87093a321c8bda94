//! Once: one run for all, a run that takes long, a run that fails, a run that a fork cuts short.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use crate::support::{Company, everywhere, everywhere_alone};

/// A `pthread_once_t`, as C programs have them: static.
struct Once(UnsafeCell<libc::pthread_once_t>);

// SAFETY: made to be shared.
unsafe impl Sync for Once {}

unsafe extern "C-unwind" {
    fn pthread_once(
        once: *mut libc::pthread_once_t,
        routine: unsafe extern "C-unwind" fn(),
    ) -> c_int;
}

impl Once {
    const fn new() -> Once {
        Once(UnsafeCell::new(libc::PTHREAD_ONCE_INIT))
    }

    /// As new, when nobody uses it.
    fn reset(&self) {
        // SAFETY: the tests call it between their runs.
        unsafe { *self.0.get() = libc::PTHREAD_ONCE_INIT };
    }

    fn call(&self, routine: unsafe extern "C-unwind" fn()) -> c_int {
        // SAFETY: pthread_once(3p).
        unsafe { pthread_once(self.0.get(), routine) }
    }
}

#[test]
fn all_wait_for_one_long_run() {
    static ONCE: Once = Once::new();
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C-unwind" fn routine() {
        RUNS.fetch_add(1, SeqCst);
        thread::sleep(Duration::from_millis(20));
        ENDED.fetch_add(1, SeqCst);
    }
    everywhere_alone(|host| {
        ONCE.reset();
        RUNS.store(0, SeqCst);
        ENDED.store(0, SeqCst);
        let call = |_| (ONCE.call(routine), ENDED.load(SeqCst));
        let threads = [(); 4].map(|()| thread::spawn(move || call(0)));
        let seen = host.spawn_many(20, call);
        let threads = threads.map(|thread| thread.join().unwrap());
        (seen, threads, RUNS.load(SeqCst))
    });
}

#[test]
fn after_a_panic_another_runs_it() {
    static ONCE: Once = Once::new();
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C-unwind" fn routine() {
        if RUNS.fetch_add(1, SeqCst) < 3 {
            thread::sleep(Duration::from_millis(2));
            std::panic::resume_unwind(Box::new("not yet"));
        }
    }
    everywhere_alone(|host| {
        ONCE.reset();
        RUNS.store(0, SeqCst);
        let tasks: Vec<_> = (0..10).map(|_| host.spawn(|| ONCE.call(routine))).collect();
        let failed = tasks.into_iter().filter_map(|task| task.join().err()).count();
        (failed, RUNS.load(SeqCst))
    });
}

#[test]
fn a_routine_may_use_another_once() {
    static OUTER: Once = Once::new();
    static INNER: Once = Once::new();
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C-unwind" fn inner() {
        RUNS.fetch_add(1, SeqCst);
    }
    unsafe extern "C-unwind" fn outer() {
        INNER.call(inner);
        RUNS.fetch_add(1, SeqCst);
    }
    everywhere_alone(|host| {
        OUTER.reset();
        INNER.reset();
        RUNS.store(0, SeqCst);
        host.spawn_many(8, |i| if i % 2 == 0 { OUTER.call(outer) } else { INNER.call(inner) });
        RUNS.load(SeqCst)
    });
}

#[test]
fn the_child_of_a_fork_runs_anew_what_another_was_running() {
    static ONCE: Once = Once::new();
    static STARTED: AtomicI32 = AtomicI32::new(0);
    static RELEASED: AtomicI32 = AtomicI32::new(0);
    unsafe extern "C-unwind" fn routine() {
        STARTED.store(1, SeqCst);
        while RELEASED.load(SeqCst) == 0 {
            std::hint::spin_loop();
        }
    }
    unsafe extern "C-unwind" fn quick() {}
    Company::Alone.keep(|| {
        thread::scope(|scope| {
            scope.spawn(|| ONCE.call(routine));
            while STARTED.load(SeqCst) == 0 {
                thread::yield_now();
            }
            // SAFETY: fork(2); the child calls async-signal-safe functions and pthread_once.
            let child = unsafe { libc::fork() };
            if child == 0 {
                ONCE.call(quick);
                // SAFETY: _exit(2).
                unsafe { libc::_exit(7) };
            }
            RELEASED.store(1, SeqCst);
            let mut status = 0;
            // SAFETY: waitpid(2) of our own child.
            unsafe { libc::waitpid(child, &mut status, 0) };
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
        });
    });
}

#[test]
fn a_done_once_does_nothing() {
    static ONCE: Once = Once::new();
    unsafe extern "C-unwind" fn nothing() {}
    unsafe extern "C-unwind" fn never() {
        unreachable!("it has been run");
    }
    ONCE.call(nothing);
    everywhere(|_| ONCE.call(never));
}
