//! Dumps while everything changes: fibers begin, wait, move, end, and slots are used again, made and given back.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
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

#[test]
fn dumps_are_consistent_while_ten_thousand_fibers_churn() {
    if !can() {
        return;
    }
    Company::Alone.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, LONG_PATIENCE);
            let runtime = sleave::Runtime::builder().workers(workers).build().unwrap();
            let done = Arc::new(AtomicBool::new(false));
            let lookers: Vec<_> = (0..2).map(|_| look_until(done.clone())).collect();
            let lives = scaled(10_000);
            let ended = AtomicUsize::new(0);
            runtime.run(|| {
                let mutex = Mutex::new(0);
                sleave::scope(|s| {
                    for number in 0..lives {
                        let (mutex, ended) = (&mutex, &ended);
                        let builder = Builder::new().name(format!("churn {number}"));
                        let life = move || {
                            live(number, mutex);
                            ended.fetch_add(1, Ordering::Relaxed);
                        };
                        builder.spawn_scoped(s, life).unwrap();
                        if number % 1000 == 0 {
                            // Slots go back to the kernel, and are made anew.
                            sleave::pool::trim();
                        }
                    }
                });
                assert_eq!(*mutex.lock().unwrap(), lives);
            });
            done.store(true, Ordering::Relaxed);
            let dumps: usize = lookers.into_iter().map(|looker| looker.join().unwrap()).sum();
            assert!(dumps > 0, "somebody has looked");
            assert_eq!(ended.into_inner(), lives);
            runtime.stop();
        }
    });
}

/// A thread that dumps until `done`, and holds every dump against what must be true of it; how many there were.
fn look_until(done: Arc<AtomicBool>) -> thread::JoinHandle<usize> {
    thread::spawn(move || {
        let mut dumps = 0;
        while !done.load(Ordering::Relaxed) || dumps == 0 {
            let dump = sleave::dump();
            assert!(dump.complete);
            let ids: HashSet<_> = dump.fibers.iter().map(|fiber| fiber.id).collect();
            assert_eq!(ids.len(), dump.fibers.len(), "each fiber once");
            for fiber in &dump.fibers {
                if let Some(name) = &fiber.name {
                    let number = name.strip_prefix("churn ").expect("no name but these");
                    assert!(number.parse::<usize>().is_ok(), "a whole name: {name}");
                }
                if let State::Waiting { what, left, .. } = fiber.state {
                    // Only those who sleep have a deadline here, and none of a second.
                    match what {
                        Awaited::Time => assert!(left.is_some_and(|left| left.as_secs() == 0)),
                        _ => assert_eq!(left, None, "{fiber}"),
                    }
                }
            }
            assert!(dump.to_string().lines().count() > dump.fibers.len());
            dumps += 1;
            // Who looks all the time holds up all that end; that is not the point here.
            thread::sleep(Duration::from_millis(1));
        }
        dumps
    })
}
