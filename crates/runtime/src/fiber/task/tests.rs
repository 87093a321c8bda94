//! Closure, result and payload are dropped exactly once, whoever comes first.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Task;
use crate::scheduler::{Core, Options};
use crate::wait::{Deadline, Timeouts};
use crate::{JoinHandle, Runtime};

/// Counts how many of its clones there were and how many are gone.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// How a fiber ends.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Returns,
    Panics,
}

/// What becomes of its handle.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Handle {
    JoinedWhileItRuns,
    JoinedWhenItHasEnded,
    DroppedWhileItRuns,
    DroppedWhenItHasEnded,
}

const ENDS: [End; 2] = [End::Returns, End::Panics];
const HANDLES: [Handle; 4] = [
    Handle::JoinedWhileItRuns,
    Handle::JoinedWhenItHasEnded,
    Handle::DroppedWhileItRuns,
    Handle::DroppedWhenItHasEnded,
];

fn finish(end: End, result: Counted) -> Counted {
    match end {
        End::Returns => result,
        // Not `panic_any`: no message, no backtrace.
        End::Panics => resume_unwind(Box::new(result)),
    }
}

fn claim(end: End, joined: std::thread::Result<Counted>) {
    match (end, joined) {
        (End::Returns, Ok(result)) => drop(result),
        (End::Panics, Err(payload)) => drop(payload.downcast::<Counted>().unwrap()),
        (end, joined) => panic!("{end:?}, but {joined:?} was joined"),
    }
}

/// Takes a fiber through `end` and `handle`; the caller's `pause` gives it time to run.
fn live(
    spawn: impl FnOnce(Box<dyn FnOnce() -> Counted + Send>) -> JoinHandle<Counted>,
    end: End,
    handle: Handle,
    pause: impl Fn(),
) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let may_end = Arc::new(AtomicUsize::new(0));
    let (captured, result) = (Counted(dropped.clone()), Counted(dropped.clone()));
    let gate = may_end.clone();
    let spawned = spawn(Box::new(move || {
        let _captured = captured;
        while gate.load(Ordering::SeqCst) == 0 {
            crate::yield_now();
        }
        finish(end, result)
    }));
    let fiber = spawned.fiber().clone();
    let open = || may_end.store(1, Ordering::SeqCst);
    let until_done = || {
        while !fiber.0.is_done() {
            pause();
        }
    };
    match handle {
        Handle::JoinedWhileItRuns => {
            let opener = std::thread::spawn({
                let may_end = may_end.clone();
                move || may_end.store(1, Ordering::SeqCst)
            });
            claim(end, spawned.join());
            opener.join().unwrap();
        }
        Handle::JoinedWhenItHasEnded => {
            open();
            until_done();
            assert_eq!(dropped.load(Ordering::SeqCst), 1, "the result waits for its joiner");
            claim(end, spawned.join());
        }
        Handle::DroppedWhileItRuns => {
            drop(spawned);
            assert_eq!(dropped.load(Ordering::SeqCst), 0, "the fiber runs on");
            open();
            until_done();
        }
        Handle::DroppedWhenItHasEnded => {
            open();
            until_done();
            drop(spawned);
        }
    }
    // What the closure has captured, and the result or the payload.
    assert_eq!(dropped.load(Ordering::SeqCst), 2, "{end:?}, {handle:?}");
}

#[test]
fn results_are_dropped_once_in_every_order_seen_from_a_thread() {
    let runtime = Runtime::builder().workers(2).build().unwrap();
    for (end, handle) in ENDS.iter().flat_map(|&end| HANDLES.map(|handle| (end, handle))) {
        live(|f| runtime.spawn(f), end, handle, std::thread::yield_now);
    }
    runtime.stop();
}

#[test]
fn results_are_dropped_once_in_every_order_seen_from_a_fiber() {
    for workers in [1, 2] {
        let runtime = Runtime::builder().workers(workers).build().unwrap();
        runtime.run(|| {
            for (end, handle) in ENDS.iter().flat_map(|&end| HANDLES.map(|handle| (end, handle))) {
                live(crate::spawn, end, handle, crate::yield_now);
            }
        });
        runtime.stop();
    }
}

/// The handle goes while the closure returns: whoever comes second drops the result.
#[test]
fn a_handle_dropped_at_the_very_end_drops_the_result_once() {
    const ROUNDS: usize = 20_000;
    let (slot, timeouts) = (0, Timeouts::NONE);
    let name = "unused".into();
    let deadlock = crate::Deadlock::Ignore;
    let most = usize::MAX;
    let options = Options { workers: 1, use_caller: false, slot, timeouts, deadlock, most, name };
    let core = Core::new(options).unwrap();
    let (begin, over) = (Barrier::new(2), Barrier::new(2));
    let dropped = Arc::new(AtomicUsize::new(0));
    let runner = std::sync::Mutex::new(None);
    std::thread::scope(|s| {
        s.spawn(|| {
            for _ in 0..ROUNDS {
                begin.wait();
                let task: super::TaskRef = runner.lock().unwrap().take().unwrap();
                // SAFETY: once, by the thread that stands for the fiber.
                unsafe { task.run() };
                task.finish();
                drop(task);
                over.wait();
            }
        });
        for round in 0..ROUNDS {
            let end = ENDS[round % 2];
            let result = Counted(dropped.clone());
            let closure = move || finish(end, result);
            // SAFETY: closure and result may cross threads and borrow nothing.
            let (handle, task) = unsafe { Task::new(core, None, 0, Timeouts::NONE, None, closure) };
            *runner.lock().unwrap() = Some(task);
            begin.wait();
            // A little later each time, so that every instant of the other's run is met.
            for _ in 0..round % 300 {
                std::hint::spin_loop();
            }
            match round % 3 {
                0 => claim(end, handle.join()),
                _ => drop(handle),
            }
            over.wait();
            assert_eq!(dropped.load(Ordering::SeqCst), round + 1);
        }
    });
    core.release();
    assert!(core.join(Deadline::NEVER));
    core.abandon();
}

/// A payload whose destructor panics is the end of the process, as std has it; one that the
/// joiner drops is the joiner's affair.
#[test]
fn a_joined_payload_panics_where_it_is_dropped() {
    struct Grenade;
    impl Drop for Grenade {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                resume_unwind(Box::new("dropped"));
            }
        }
    }
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let payload = runtime.spawn(|| resume_unwind(Box::new(Grenade))).join().unwrap_err();
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(payload))).unwrap_err();
    assert_eq!(*dropped.downcast::<&str>().unwrap(), "dropped");
    runtime.stop();
}
