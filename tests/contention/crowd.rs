//! The crowd: many fibers and a few plain threads that do the same, and the book of what they hand over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::{Count, Gate, Host, scaled};

/// Plain threads in a crowd: more than there are workers, and than most machines' cores leave alone.
pub const PLAIN: usize = 6;

/// How many fibers are in a crowd.
pub fn fibers() -> usize {
    scaled(10_000)
}

/// How many members a crowd has.
pub fn members() -> usize {
    fibers() + PLAIN
}

/// One of the crowd. Its numbers go from 0 to [`members`]; the plain threads have the last ones.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Which one.
    pub number: usize,
    host: Host,
}

impl Member {
    /// Whether it is a plain thread.
    pub fn is_plain(self) -> bool {
        self.number >= fibers()
    }

    /// How many rounds it plays: a plain thread, of which there are few, has `plain` for each one of a fiber's.
    pub fn rounds(self, each: usize, plain: usize) -> std::ops::Range<usize> {
        0..if self.is_plain() { each * plain } else { each }
    }

    /// Waits a little, now and then: in `round`, nothing, a yield, or a sleep; also with a guard in hand.
    ///
    /// Sleeps are rare, because those of all who hold one lock come one after the other.
    pub fn dawdle(self, round: usize) {
        match (self.number * 7 + round) % 64 {
            0 => thread::sleep(Duration::from_micros(50)),
            1..8 if self.is_plain() => thread::yield_now(),
            1..8 => self.host.yield_now(),
            _ => {}
        }
    }
}

/// Has every member do `work`, when all have been spawned; returns what they return, in the order of their
/// numbers.
pub fn gather<T, F>(host: Host, work: F) -> Vec<T>
where
    T: Send + 'static,
    F: Fn(Member) -> T + Send + Sync + 'static,
{
    let (work, gate) = (Arc::new(work), Arc::new(Gate::default()));
    let task = |number| {
        let (work, gate) = (Arc::clone(&work), Arc::clone(&gate));
        move || {
            gate.pass();
            work(Member { number, host })
        }
    };
    let plain: Vec<_> = (fibers()..members()).map(|i| thread::spawn(task(i))).collect();
    let inside: Vec<_> = (0..fibers()).map(|i| host.spawn(task(i))).collect();
    drop(work);
    gate.open();
    let mut results: Vec<T> = inside.into_iter().map(|fiber| fiber.value()).collect();
    results.extend(plain.into_iter().map(|thread| thread.join().expect("a member")));
    results
}

/// What has been handed over: a count for each value.
#[derive(Debug)]
pub struct Ledger(Vec<Count>);

impl Ledger {
    /// For the values below `n`.
    pub fn new(n: usize) -> Arc<Ledger> {
        Arc::new(Ledger((0..n).map(|_| Count::new()).collect()))
    }

    /// `value` has arrived.
    pub fn enter(&self, value: usize) {
        self.0[value].up();
    }

    /// Asserts that every value has arrived once.
    pub fn close(&self) {
        let wrong =
            |(value, count): (usize, &Count)| (count.get() != 1).then(|| (value, count.get()));
        let wrong: Vec<_> = self.0.iter().enumerate().filter_map(wrong).take(8).collect();
        assert!(wrong.is_empty(), "arrived not once but (value, times): {wrong:?} …");
    }
}

/// A receiving end, and how it receives the next: `None` if there are no more.
pub type Receive<R> = (R, fn(&R) -> Option<usize>);

/// Values of one crowd's senders, and who receives them.
///
/// Every other member sends, so both kinds are on both sides. What is sent is numbered through.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// How many values each sender sends.
    pub each: usize,
}

impl Traffic {
    /// How many values there are in all.
    pub fn total(self) -> usize {
        members().div_ceil(2) * self.each
    }

    /// What `member` sends; `None` if it receives.
    pub fn sent_by(self, member: Member) -> Option<std::ops::Range<usize>> {
        let first = member.number / 2 * self.each;
        member.number.is_multiple_of(2).then_some(first..first + self.each)
    }

    /// Has a crowd send by `send` and receive by `receive`, which says `None` when all has been. Everything must
    /// arrive once, and what one sender sends to one receiver in its order.
    pub fn run<S, R>(self, host: Host, send: (S, fn(&S, usize)), receive: Receive<R>)
    where
        S: Clone + Send + 'static,
        R: Clone + Send + 'static,
    {
        self.pass(host, send, receive, true);
    }

    /// As [`Traffic::run`], over several channels at once, which have no order between them.
    pub fn run_unordered<S, R>(self, host: Host, send: (S, fn(&S, usize)), receive: Receive<R>)
    where
        S: Clone + Send + 'static,
        R: Clone + Send + 'static,
    {
        self.pass(host, send, receive, false);
    }

    fn pass<S, R>(
        self,
        host: Host,
        (sender, send): (S, fn(&S, usize)),
        (receiver, receive): Receive<R>,
        ordered: bool,
    ) where
        S: Clone + Send + 'static,
        R: Clone + Send + 'static,
    {
        let ledger = Ledger::new(self.total());
        let book = Arc::clone(&ledger);
        // Each member has ends of its own, so that the last sender's is the last.
        let ends = Mutex::new(vec![Some((sender, receiver)); members()]);
        gather(host, move |member| {
            let ends = ends.lock().unwrap()[member.number].take();
            let (sender, receiver) = ends.expect("one for each member");
            if let Some(values) = self.sent_by(member) {
                drop(receiver);
                for value in values {
                    send(&sender, value);
                    member.dawdle(value);
                }
                return;
            }
            drop(sender);
            let mut last = HashMap::new();
            while let Some(value) = receive(&receiver) {
                book.enter(value);
                let before = last.insert(value / self.each, value);
                let late = ordered && before.is_some_and(|before| before > value);
                assert!(!late, "{value} after {before:?}");
                member.dawdle(value);
            }
        });
        ledger.close();
    }
}
