//! Dumps while everything changes: fibers begin, wait, move, end, and slots are used again, made and given back.

use std::collections::HashSet;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use sleave::{Awaited, Builder, State};

use super::can;
use super::support::{Company, Host};
use super::support::{LONG_PATIENCE, WORKERS, Watchdog, scaled};

/// One short life: whatever waits there are, each for a moment.
fn live(number: usize, mutex: &Mutex<usize>) {
    sleave::yield_now();
    *mutex.lock().unwrap() += 1;
    thread::sleep(Duration::from_micros(number as u64 % 300));
    let (sender, receiver) = mpsc::channel();
    let child = sleave::spawn(move || sender.send(number).unwrap());
    assert_eq!(receiver.recv().unwrap(), number);
    child.join().unwrap();
}

/// How often each of two threads looks.
const DUMPS: usize = 100;

#[test]
fn dumps_are_consistent_while_ten_thousand_fibers_churn() {
    if !can() {
        return;
    }
    Company::Alone.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, LONG_PATIENCE);
            let runtime = sleave::Runtime::builder().workers(workers).build().unwrap();
            let lookers = [false, true].map(|frames| thread::spawn(move || look(frames)));
            let lives = scaled(10_000);
            let mut rounds = 0;
            while rounds == 0 || !lookers.iter().all(thread::JoinHandle::is_finished) {
                runtime.run(|| churn(lives));
                rounds += 1;
            }
            lookers.into_iter().for_each(|looker| looker.join().unwrap());
            runtime.stop();
        }
    });
}

/// Many fibers live, all at once, and none is lost.
fn churn(lives: usize) {
    let mutex = Mutex::new(0);
    sleave::scope(|s| {
        for number in 0..lives {
            let mutex = &mutex;
            let builder = Builder::new().name(format!("churn {number}"));
            builder.spawn_scoped(s, move || live(number, mutex)).unwrap();
            if number % 1000 == 0 {
                // Slots go back to the kernel, and are made anew.
                sleave::pool::trim();
            }
        }
    });
    assert_eq!(mutex.into_inner().unwrap(), lives);
}

/// Dumps, with backtraces if it wants `frames`, and holds every dump against what must be true of it.
fn look(frames: bool) {
    for _ in 0..DUMPS {
        let dump = if frames { sleave::dump_with_backtraces() } else { sleave::dump() };
        assert!(dump.complete);
        let ids: HashSet<_> = dump.fibers.iter().map(|fiber| fiber.id).collect();
        assert_eq!(ids.len(), dump.fibers.len(), "each fiber once");
        for fiber in &dump.fibers {
            if let Some(name) = &fiber.name {
                let number = name.strip_prefix("churn ").expect("no name but these");
                assert!(number.parse::<usize>().is_ok(), "a whole name: {name}");
            }
            let waits = matches!(fiber.state, State::Waiting { .. });
            assert_eq!(!fiber.frames.is_empty(), waits && frames, "{fiber}");
            if let State::Waiting { what, left, .. } = fiber.state {
                // Only those who sleep have a deadline here, and none of a second.
                match what {
                    Awaited::Time => assert!(left.is_some_and(|left| left.as_secs() == 0)),
                    _ => assert_eq!(left, None, "{fiber}"),
                }
            }
        }
        if !frames {
            assert!(dump.to_string().lines().count() > dump.fibers.len());
        }
    }
}
