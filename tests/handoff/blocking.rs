//! `sleave::blocking`: declared, run, taken back.

use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use sleave::Runtime;

use crate::support::kernel::{block_thread, os_threads, tid};
use crate::support::timing::eventually;
use crate::support::{
    Company, LONG_PATIENCE, everywhere, on_fibers, on_fibers_alone, watchdog::Watchdog,
};
use crate::{MANY, all_wait, support::Host};

#[test]
fn value_panic_and_errno_are_the_closures() {
    everywhere(|_| {
        let value = sleave::blocking(|| 7);
        let panic: Result<(), _> =
            catch_unwind(|| sleave::blocking(|| std::panic::resume_unwind(Box::new(8))));
        let panic = *panic.unwrap_err().downcast::<i32>().unwrap();
        // SAFETY: close(2) of no descriptor, for its error.
        let error = sleave::blocking(|| crate::outcome(unsafe { libc::close(-1) }));
        (value, panic, error, sleave::blocking(|| sleave::blocking(|| 9)))
    });
}

#[test]
fn a_call_that_has_returned_or_panicked_blocks_nothing_any_more() {
    on_fibers(|host| {
        let Host::Fibers { workers } = host else { unreachable!("on fibers only") };
        for panics in [false, true] {
            let ended = catch_unwind(|| {
                sleave::blocking(|| {
                    if panics {
                        std::panic::resume_unwind(Box::new(()));
                    }
                })
            });
            assert_eq!(ended.is_err(), panics);
            assert!(sleave::interpose(true), "interposition is on again");
            // Parks: on a worker that does not count, or without interposition, this would hold the others.
            host.spawn_many(4 * workers, |_| thread::sleep(Duration::from_millis(1)));
        }
    });
}

#[test]
fn it_stays_on_its_thread_with_libcs_own_calls() {
    on_fibers(|_| {
        let before = tid();
        sleave::blocking(|| {
            assert_eq!(tid(), before);
            assert!(!sleave::interpose(false), "interposition is off");
            // One that parked here would come back on another thread sooner or later.
            for _ in 0..20 {
                thread::sleep(Duration::from_millis(1));
                assert_eq!(tid(), before);
            }
        });
        assert_eq!(tid(), before);
    });
}

#[test]
fn what_parks_inside_comes_back() {
    on_fibers(|host| {
        let total: usize = host
            .spawn_many(50, move |i| {
                sleave::blocking(|| {
                    sleave::yield_now();
                    let inner = host.spawn(move || i);
                    sleave::yield_now();
                    inner.value()
                })
            })
            .into_iter()
            .sum();
        assert_eq!(total, 49 * 50 / 2);
    });
}

#[test]
fn many_block_at_once_on_one_worker() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let (reader, mut writer) = std::io::pipe().unwrap();
        let reader = Arc::new(reader);
        let wait = move |_| {
            let mut byte = [0];
            sleave::blocking(|| (&*reader).read_exact(&mut byte)).unwrap();
            byte[0]
        };
        let bytes = all_wait(MANY, wait, || writer.write_all(&[5; MANY]).unwrap());
        assert_eq!(bytes, [5; MANY]);
    });
}

#[test]
fn no_thread_is_left_over() {
    Company::Alone.keep(|| {
        let before = os_threads();
        for workers in [1, 2] {
            let runtime = Runtime::builder().workers(workers).build().unwrap();
            let calls: Vec<_> = (0..MANY)
                .map(|_| {
                    runtime.spawn(|| sleave::blocking(|| block_thread(Duration::from_millis(20))))
                })
                .collect();
            calls.into_iter().for_each(|call| call.join().unwrap());
            runtime.stop();
        }
        // The monitor, one for the process, may have been started by these runtimes.
        eventually("the threads are gone", || os_threads() <= before + 1);
    });
}

#[test]
fn a_pinned_fiber_blocks_its_worker_and_those_pinned_there_alone() {
    let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let (mut go, gate) = (std::io::pipe().unwrap(), Arc::new(crate::support::Flag::new()));
    let pinned = |f: Box<dyn FnOnce() -> usize + Send>| {
        sleave::Builder::new().pin(0).spawn_on(&runtime, f).unwrap()
    };
    let raised = Arc::clone(&gate);
    let blocked = pinned(Box::new(move || {
        let thread = tid();
        sleave::blocking(|| go.0.read_exact(&mut [0]).unwrap());
        assert!(raised.raise(), "the second runs after the others");
        assert_eq!(tid(), thread);
        thread
    }));
    eventually("it blocks", || runtime.statistics().blocked == 1);
    let second = pinned(Box::new(tid));
    // Not pinned: goes on elsewhere.
    let elsewhere = runtime.spawn(tid).join().unwrap();
    gate.raise();
    go.1.write_all(&[1]).unwrap();
    let (first, second) = (blocked.join().unwrap(), second.join().unwrap());
    assert_eq!(first, second);
    assert_ne!(first, elsewhere);
    runtime.stop();
}

#[test]
fn a_confined_runtime_has_no_other_thread() {
    let runtime = Runtime::builder().workers(1).use_caller().build().unwrap();
    let here = tid();
    let threads = runtime.run(|| {
        let other = sleave::spawn(tid);
        let blocking = sleave::blocking(|| {
            block_thread(Duration::from_millis(50));
            tid()
        });
        (other.join().unwrap(), blocking)
    });
    assert_eq!(threads, (here, here));
    runtime.stop();
}

#[test]
fn on_a_plain_thread_it_is_a_call() {
    let here = tid();
    assert_eq!(sleave::blocking(tid), here);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        sleave::blocking(|| std::panic::resume_unwind(Box::new(1)))
    }));
    assert!(panic.is_err());
}

/// Workers leave and come back all the time, and nobody is forgotten or counted twice.
#[test]
fn calls_mixed_with_all_other_waits_end() {
    on_fibers_alone(|host| {
        const FIBERS: usize = 100;
        const STEPS: usize = 100;
        let done = host.spawn_many(FIBERS, |i| {
            let mut state = i * 7919 + 1;
            for _ in 0..STEPS {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                match state >> 33 & 7 {
                    0 => sleave::yield_now(),
                    1 => thread::sleep(Duration::from_micros(200)),
                    2 => sleave::blocking(sleave::yield_now),
                    3 => sleave::blocking(|| block_thread(Duration::from_micros(300))),
                    4 => sleave::spawn(|| sleave::blocking(|| ())).join().unwrap(),
                    _ => sleave::blocking(|| ()),
                }
            }
            STEPS
        });
        assert_eq!(done.into_iter().sum::<usize>(), FIBERS * STEPS);
    });
}
