//! Where fibers cannot be had each is an OS thread: what a program calls on one is the same.
//!
//! One test, in a process of its own: it sets the environment that all of the process goes by.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sleave_runtime::{Builder, Runtime, current, interpose, park, park_timeout, worker};
use sleave_runtime::{set_connect_timeout, set_wait_timeout};

#[test]
fn a_thread_that_stands_for_a_fiber_parks_and_is_counted() {
    // SAFETY: the only test of this process, and its first act: nobody else reads the environment.
    unsafe { std::env::set_var("SLEAVE_IDENTITY", "threads") };
    assert!(sleave_runtime::identity().is_err());
    let runtime = Runtime::builder().workers(1).build().unwrap();

    const ROUNDS: usize = 10_000;
    let turns = Arc::new(AtomicUsize::new(0));
    let answering = runtime.spawn({
        let turns = turns.clone();
        move || {
            for round in 0..ROUNDS {
                park();
                assert_eq!(turns.swap(2 * round + 2, Ordering::Relaxed), 2 * round + 1);
            }
        }
    });
    for round in 0..ROUNDS {
        turns.store(2 * round + 1, Ordering::Relaxed);
        answering.fiber().unpark();
        while turns.load(Ordering::Relaxed) != 2 * round + 2 {
            std::thread::yield_now();
        }
    }
    answering.join().unwrap();

    runtime
        .spawn(|| {
            current().unwrap().unpark();
            current().unwrap().unpark();
            assert!(park_timeout(Duration::MAX));
            let (begun, asked) = (Instant::now(), Duration::from_millis(20));
            assert!(!park_timeout(asked));
            assert!(begun.elapsed() >= asked);
            assert!(!interpose::set(false), "there is nothing to switch");
            assert!(!interpose::set(true));
            // Nobody would keep such a limit. That there is none is true.
            let refused = |e: std::io::Error| assert_eq!(e.kind(), ErrorKind::Unsupported);
            refused(set_wait_timeout(asked).unwrap_err());
            refused(set_connect_timeout(asked).unwrap_err());
            refused(Builder::new().wait_timeout(asked).spawn(|| ()).unwrap_err());
            refused(Builder::new().connect_timeout(asked).spawn(|| ()).unwrap_err());
            refused(Runtime::builder().wait_timeout(asked).build().unwrap_err());
            refused(Runtime::builder().connect_timeout(asked).build().unwrap_err());
            assert_eq!(set_wait_timeout(None).unwrap(), None);
            let unlimited = Builder::new().wait_timeout(None).connect_timeout(Duration::MAX);
            unlimited.spawn(|| ()).unwrap().join().unwrap();
        })
        .join()
        .unwrap();

    // What it spawns is its runtime's: counted there, and for `stop` to wait for.
    let heir = runtime.spawn(|| sleave_runtime::spawn(park)).join().unwrap();
    assert_eq!(runtime.statistics().fibers, 1, "{:?}", runtime.statistics());
    heir.fiber().unpark();
    heir.join().unwrap();

    let parked = runtime.spawn(park);
    let counted = runtime.statistics();
    assert_eq!(counted.fibers, 1, "{counted:?}");
    assert_eq!((counted.running, counted.runnable, counted.waiting), (0, 0, 0), "{counted:?}");
    assert!(!runtime.stop_timeout(Duration::from_millis(5)), "one has not ended");
    assert!(Builder::new().spawn_on(&runtime, || ()).is_err(), "it takes nothing from outside");
    parked.fiber().unpark();
    parked.join().unwrap();
    runtime.stop();
    runtime.stop();

    // Workers can be named, though each fiber is alone on its thread.
    let confined = Arc::new(Runtime::builder().workers(1).use_caller().build().unwrap());
    assert_eq!(confined.run(|| (sleave_runtime::pin(0).is_ok(), worker())), (true, None));
    assert!(confined.run(|| sleave_runtime::pin(1).is_err()));
    assert!(Builder::new().pin(1).spawn_on(&confined, || ()).is_err());
    assert_eq!(Builder::new().pin(0).spawn_on(&confined, || 7).unwrap().join().unwrap(), 7);
    let asking = {
        let confined = confined.clone();
        confined.clone().spawn(move || confined.stop())
    };
    asking.join().unwrap();
    confined.stop();
    drop(Runtime::builder().workers(1).use_caller().build().unwrap());
}
