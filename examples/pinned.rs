//! Tasks that are pinned to a thread.
//!
//! Some things belong to one OS thread: a graphics context, a library that keeps its state per thread, a
//! cache that is to stay warm. A fiber that is pinned to a worker runs on that worker's
//! thread only, whoever wakes it; others move as the scheduler likes. A pin to a worker that does not exist is an
//! error at once.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use sleave::{Builder, Runtime};

const WORKERS: usize = 3;

/// The OS thread that carries the caller.
fn carrier() -> i32 {
    // SAFETY: gettid(2) has no arguments.
    unsafe { libc::gettid() }
}

/// Sleeps and yields a few times; the workers and OS threads on which that went on.
fn wander() -> (HashSet<Option<usize>>, HashSet<i32>) {
    let step = |round| {
        match round % 2 {
            0 => thread::sleep(Duration::from_micros(200)),
            _ => sleave::yield_now(),
        }
        (sleave::worker(), carrier())
    };
    (0..50).map(step).unzip()
}

/// What comes of it.
pub fn story() -> Vec<String> {
    let mut lines = Vec::new();
    let runtime = Runtime::builder().workers(WORKERS).name("pinned").build().expect("a runtime");
    let fibers: Vec<_> = (0..2 * WORKERS)
        .map(|number| Builder::new().pin(number % WORKERS).spawn_on(&runtime, wander))
        .collect();
    for (number, fiber) in fibers.into_iter().enumerate() {
        let (workers, threads) = fiber.expect("such a worker").join().expect("no panic");
        assert_eq!(workers, [Some(number % WORKERS)].into());
        lines.push(format!(
            "fiber {number}: on worker {} only: {} thread",
            number % WORKERS,
            threads.len()
        ));
    }

    let moved = runtime.spawn(|| {
        let places: Vec<_> = [2, 0, 1]
            .map(|worker| {
                sleave::pin(worker).expect("such a worker");
                sleave::worker().expect("this is a fiber")
            })
            .into();
        sleave::unpin();
        places
    });
    lines.push(format!("one that pins itself has been to {:?}", moved.join().expect("no panic")));

    let error = Builder::new().pin(WORKERS).spawn_on(&runtime, || ()).expect_err("no such worker");
    lines.push(format!("worker {WORKERS}: {:?}", error.kind()));
    runtime.stop();
    lines
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
