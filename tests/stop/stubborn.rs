//! Fibers that never end: a stop with a time limit says so, and is completed when they have been let go.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use sleave::{Fiber, park};

use super::*;
use crate::support::load::{Census, spawn_all};
use crate::support::{Flag, Gate};

/// Fibers that wait for what will not come, in as many ways, until [`Stubborn::let_go`].
struct Stubborn {
    parked: Fiber,
    reading: UnixStream,
    gate: Arc<Gate>,
    sender: mpsc::Sender<()>,
    goes_round: Arc<Flag>,
}

impl Stubborn {
    /// How many they are; one of them does not wait but goes round.
    const ALL: usize = 6;
    const WAITING: usize = Stubborn::ALL - 1;

    fn spawn_on(runtime: &Runtime) -> Stubborn {
        let (gate, goes_round) = (Arc::new(Gate::default()), Arc::new(Flag::new()));
        let (reading, mut far) = UnixStream::pair().unwrap();
        let (sender, receiver) = mpsc::channel();
        let (waiting, going) = (Arc::clone(&gate), Arc::clone(&goes_round));
        let parking = runtime.spawn(park);
        let parked = parking.fiber().clone();
        drop(runtime.spawn(move || parking.join().unwrap()));
        drop(runtime.spawn(move || far.read_exact(&mut [0]).unwrap()));
        drop(runtime.spawn(move || waiting.pass()));
        drop(runtime.spawn(move || receiver.recv().unwrap()));
        drop(runtime.spawn(move || {
            while !going.is_up() {
                sleave::yield_now();
            }
        }));
        Stubborn { parked, reading, gate, sender, goes_round }
    }

    fn let_go(mut self) {
        self.parked.unpark();
        self.reading.write_all(b"x").unwrap();
        self.gate.open();
        self.sender.send(()).unwrap();
        self.goes_round.raise();
    }
}

#[test]
fn a_stop_with_a_limit_says_that_they_are_there_and_they_are_counted() {
    if sleave::identity().is_err() {
        return;
    }
    each(|runtime| {
        let census = Census::new();
        spawn_all(&runtime, &census, 2, &mut random());
        let stubborn = Stubborn::spawn_on(&runtime);
        for limit in [Duration::ZERO, MS, 20 * MS] {
            let start = Instant::now();
            assert!(!runtime.stop_timeout(limit));
            assert!(start.elapsed() >= limit, "too early");
        }
        // What can end has ended, and nothing else.
        let mut statistics = runtime.statistics();
        while statistics.fibers > Stubborn::ALL || statistics.waiting < Stubborn::WAITING {
            assert!(!runtime.stop_timeout(5 * MS));
            statistics = runtime.statistics();
        }
        assert_eq!(statistics.fibers, Stubborn::ALL);
        census.assert_complete();
        assert!(Builder::new().spawn_on(&runtime, || unreachable!()).is_err());
        stubborn.let_go();
        runtime.stop();
        assert_over(&runtime);
    });
}

#[test]
fn a_stop_that_waits_for_them_returns_when_they_are_let_go() {
    each(|runtime| {
        let stubborn = Stubborn::spawn_on(&runtime);
        let stopped = Flag::new();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                runtime.stop();
                stopped.raise();
            });
            let limit = Instant::now() + 30 * MS;
            while Instant::now() < limit {
                assert!(!stopped.is_up(), "they are still there");
                std::thread::sleep(MS);
            }
            stubborn.let_go();
        });
        assert!(stopped.is_up());
        assert_over(&runtime);
    });
}
