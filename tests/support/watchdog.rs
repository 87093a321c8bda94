//! A hang is a failure with a name.
//!
//! A plain OS thread waits beside every run. If the run has not ended in time, it says which test
//! hung on which host and what each OS thread of the process is doing, and aborts.
//!
//! The watchdog may not depend on what it watches: it waits in the kernel's futex through the bare
//! `syscall` instruction, past the interposed C library, and writes the first line of its report
//! the same way. Only then does it use `std`, so that a broken table of waiters can cost the
//! details, not the name.
//!
//! Sources: futex(2), proc(5) (`task/*/comm`, `stat`, `wchan`).

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use syscalls::{Sysno, syscall};

use super::Host;
use super::kernel::say;

const RUNNING: u32 = 0;
const DONE: u32 = 1;

/// Watches until it is dropped. Made and dropped by a plain thread.
#[derive(Debug)]
pub struct Watchdog {
    state: Arc<AtomicU32>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watchdog {
    /// Watches over a run on `host` of the test that the calling libtest thread is named after.
    pub fn over(host: Host, patience: Duration) -> Self {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        let state = Arc::new(AtomicU32::new(RUNNING));
        let watched = Arc::clone(&state);
        let watch = move || {
            if !ends_in_time(&watched, patience) {
                report(&test, host, patience);
                std::process::abort();
            }
        };
        let thread = thread::Builder::new()
            .name("watchdog".into())
            .spawn(watch)
            .expect("a thread for the watchdog");
        Watchdog { state, thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Relaxed: the word carries nothing but itself, and the wake below orders it.
        self.state.store(DONE, Ordering::Relaxed);
        // SAFETY: futex(2): FUTEX_WAKE only takes the address of a live, aligned 32-bit word.
        let woken = unsafe {
            syscall!(
                Sysno::futex,
                self.state.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                1
            )
        };
        woken.expect("FUTEX_WAKE cannot fail on a mapped word");
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the watchdog itself does not panic");
        }
    }
}

/// Waits until `state` says so (true) or `patience` is over (false).
fn ends_in_time(state: &AtomicU32, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        // Relaxed: as above.
        if state.load(Ordering::Relaxed) == DONE {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let timeout = libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: left.subsec_nanos().into(),
        };
        // SAFETY: futex(2): FUTEX_WAIT reads the live word and the timespec, both outlive the call.
        // Whatever it returns (woken, EAGAIN, EINTR, ETIMEDOUT), the loop looks again.
        let _ = unsafe {
            syscall!(
                Sysno::futex,
                state.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                RUNNING,
                &raw const timeout
            )
        };
    }
}

fn report(test: &str, host: Host, patience: Duration) {
    say(&format!("\nwatchdog: test `{test}` on {host} has not ended after {patience:?}\n"));
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return };
    for task in tasks.flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        // proc(5): the state is the word after the parenthesised name.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?');
        let (comm, wchan) = (read("comm"), read("wchan"));
        say(&format!(
            "  thread {:>8} {:<16} {state} {wchan}\n",
            task.file_name().to_string_lossy(),
            comm.trim_end()
        ));
    }
}
