//! While a call of a second is on, a thousand other fibers tick every 10 ms.
//!
//! What is asserted holds on a machine that has a lot else to do, of the best of several tries; what was measured is
//! printed (`--nocapture`). The exact figures are those of `bench/src/bin/blocking.rs`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::kernel::block_thread;
use crate::support::{Company, Flag, Host, LONG_PATIENCE, watchdog::Watchdog};
use crate::{Directory, outcome};

const TICKERS: usize = 1000;
const PERIOD: Duration = Duration::from_millis(10);
const CALL: Duration = Duration::from_secs(1);
const TRIES: usize = 4;

/// The 99th percentile and the worst of how late the others wake while `call` is on.
fn delays(workers: usize, call: impl FnOnce() + Send + 'static) -> (Duration, Duration) {
    let runtime = sleave::Runtime::builder().workers(workers).build().unwrap();
    let over = Arc::new(Flag::new());
    let tickers: Vec<_> = (0..TICKERS)
        .map(|i| {
            let over = Arc::clone(&over);
            runtime.spawn(move || {
                thread::sleep(PERIOD * i as u32 / TICKERS as u32);
                let mut delays = Vec::new();
                while !over.is_up() {
                    let due = Instant::now() + PERIOD;
                    thread::sleep(PERIOD);
                    delays.push(due.elapsed());
                }
                delays
            })
        })
        .collect();
    let caller = runtime.spawn(move || {
        thread::sleep(5 * PERIOD);
        let start = Instant::now();
        call();
        assert!(start.elapsed() >= CALL, "a call of {:?}", start.elapsed());
    });
    let called = caller.join();
    over.raise();
    let mut delays: Vec<_> =
        tickers.into_iter().flat_map(|ticker| ticker.join().unwrap()).collect();
    called.unwrap();
    runtime.stop();
    delays.sort_unstable();
    (delays[delays.len() * 99 / 100], delays[delays.len() - 1])
}

/// One of several tries must have delayed nobody for long, on one worker and on two.
fn delays_nobody<F: FnOnce() + Send + 'static>(name: &str, call: impl Fn() -> F) {
    Company::Alone.keep(|| {
        for workers in [1, 2] {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, LONG_PATIENCE);
            let mut seen = Vec::new();
            while seen.len() < TRIES {
                let (p99, worst) = delays(workers, call());
                println!(
                    "{name} on {workers} worker(s): others late by {p99:?} (p99), {worst:?} (worst)"
                );
                seen.push((p99, worst));
                if p99 < CALL / 10 && worst < CALL / 4 {
                    break;
                }
            }
            assert!(seen.len() < TRIES, "{name} on {workers} worker(s): others late by {seen:?}");
        }
    });
}

#[test]
fn beside_blocking() {
    delays_nobody("blocking", || || sleave::blocking(|| block_thread(CALL)));
}

#[test]
fn beside_a_wait_for_a_group_of_processes() {
    delays_nobody("waitpid of a group", || {
        || {
            #[allow(
                clippy::zombie_processes,
                reason = "it is waited for by the number of its group"
            )]
            let child = Command::new("sleep").arg("1").process_group(0).spawn().unwrap();
            let pid = child.id() as libc::pid_t;
            // SAFETY: waitpid(2) without a status.
            let waited = unsafe { libc::waitpid(-pid, std::ptr::null_mut(), 0) };
            assert_eq!(waited, pid);
        }
    });
}

#[test]
fn beside_a_wait_for_one_child() {
    delays_nobody("waitpid of a child", || {
        || assert!(Command::new("sleep").arg("1").status().unwrap().success())
    });
}

#[test]
fn beside_a_wait_for_a_lock() {
    let directory = Directory::make();
    let path = directory.path("lock");
    delays_nobody("flock", || {
        let (held, wanted) = (File::create(&path).unwrap(), File::create(&path).unwrap());
        held.lock().unwrap();
        move || {
            let holder = thread::spawn(move || {
                block_thread(CALL + PERIOD);
                drop(held);
            });
            // SAFETY: flock(2) of an open file.
            assert_eq!(outcome(unsafe { libc::flock(wanted.as_raw_fd(), libc::LOCK_EX) }), Ok(0));
            holder.join().unwrap();
        }
    });
}

#[test]
fn beside_the_opening_of_a_fifo() {
    let directory = Directory::make();
    let path = directory.fifo("fifo");
    delays_nobody("open of a FIFO", || {
        let (reading, writing) = (path.clone(), path.clone());
        move || {
            let writer = thread::spawn(move || {
                block_thread(CALL + PERIOD);
                File::options().write(true).open(writing).unwrap()
            });
            drop(File::open(reading).unwrap());
            drop(writer.join().unwrap());
        }
    });
}
