//! Completion against suspension, a million times.
//!
//! A fiber starts an operation and suspends itself until it is complete. The operation may be complete before,
//! after, or in the very middle of the suspension:
//!
//! ```text
//!   fiber       start ──▶ queue myself ──▶ save my registers ──▶ "I am suspended"
//!   completer            ▲              ▲                     ▲                  ▲   any of these
//! ```
//!
//! Schedulers have lost wake-ups here, or resumed a fiber whose registers were half saved. In this one the fiber
//! says that it is suspended by a hook of the switch, on the next fiber's stack; who completes
//! before that leaves a word, and the hook puts the fiber back into the queue.
//!
//! The completer, a thread of its own, completes what has just been started, the moment it sees it. There is
//! nothing to wait by but the token of `park`: were one lost, its fiber would wait for ever; were one
//! given twice, a `park` would return before its operation is complete, which is looked at.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sleave::{Fiber, Runtime};

const FIBERS: usize = 8;
/// Operations of each fiber; fewer without optimisation.
const ROUNDS: usize = if cfg!(debug_assertions) { 12_500 } else { 125_000 };

/// One fiber, as the completer knows it: how many operations it has started, and how many are complete.
#[derive(Default)]
struct Client {
    fiber: OnceLock<Fiber>,
    started: AtomicUsize,
    completed: AtomicUsize,
}

#[derive(Default)]
struct Port {
    clients: [Client; FIBERS],
    /// Who has just started an operation: whom the completer looks at first.
    latest: AtomicUsize,
}

/// Completes what is started, at once.
fn complete(port: &Port) {
    let (mut left, mut turns) = (FIBERS * ROUNDS, 0);
    while left > 0 {
        turns += 1;
        let first = port.latest.load(Ordering::Relaxed);
        for client in [&port.clients[first], &port.clients[turns % FIBERS]] {
            let completed = client.completed.load(Ordering::Relaxed);
            if client.started.load(Ordering::Acquire) > completed {
                client.completed.store(completed + 1, Ordering::Release);
                client.fiber.get().expect("it has introduced itself").unpark();
                left -= 1;
                break;
            }
        }
        if turns % 4096 == 0 {
            thread::yield_now(); // there may be no other processor for the fibers
        }
    }
}

/// A fiber's operations, one after the other; how many were complete before it parked.
fn operate(port: &Port, number: usize) -> usize {
    let (client, mut early) = (&port.clients[number], 0);
    client.fiber.set(sleave::current().expect("this is a fiber")).expect("for the first time");
    for round in 1..=ROUNDS {
        client.started.store(round, Ordering::Release);
        port.latest.store(number, Ordering::Relaxed);
        (0..round % 16).for_each(|_| std::hint::spin_loop()); // not always at the same moment
        early += usize::from(client.completed.load(Ordering::Acquire) == round);
        sleave::park();
        assert_eq!(client.completed.load(Ordering::Acquire), round, "woken for nothing");
    }
    early
}

/// What came of it. The last line is another every time.
pub fn story() -> Vec<String> {
    let port = Port::default();
    let runtime = Runtime::builder().workers(1).use_caller().build().expect("a runtime");
    let early: usize = thread::scope(|threads| {
        threads.spawn(|| complete(&port));
        runtime.run(|| {
            sleave::scope(|scope| {
                let port = &port;
                let begin = |number| scope.spawn(move || operate(port, number));
                let fibers: Vec<_> = (0..FIBERS).map(begin).collect();
                fibers.into_iter().map(|fiber| fiber.join().expect("no panic")).sum()
            })
        })
    });
    runtime.stop();
    let completed: usize = port.clients.iter().map(|c| c.completed.load(Ordering::Relaxed)).sum();
    assert_eq!(completed, FIBERS * ROUNDS);
    vec![
        "every operation has woken its fiber, once".into(),
        format!("this time: {completed} operations, {early} complete before the fiber parked"),
    ]
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
