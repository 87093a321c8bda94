//! `sleave scale fibers`: a million fibers parked at once in one process.
//!
//! ```text
//!   spawn N ─▶ each: begins, is counted, waits ─▶ all counted and the runtime says: N wait, none runs, none is due
//!           ─▶ look: memory, OS threads; a second of silence: processor time
//!           ─▶ wake all ─▶ join all, compare what each returns ─▶ the runtime says: none is left
//! ```
//!
//! Two witnesses say that all wait at once: the count, which each fiber raises before it waits, with nobody woken yet,
//! and the scheduler, in which then none is running or runnable. Until the wake none of them can end, so all are there together.
//!
//! A fiber that waits costs two touched pages (stack; identity with control block), its heap block, its handle, and
//! page tables. That is asked of the machine beforehand: on a kernel that overcommits, the answer afterwards
//! would be the out-of-memory killer's.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sleave::{Builder, JoinHandle, Runtime};

use super::args::{Fibers, Wait};
use super::plan::meminfo;
use super::report::FibersReport;
use crate::console::{bar, print, say};
use crate::process;
use crate::report::{bytes, grouped, thousandths};

/// What a fiber needs beside its two pages: heap block, handle, page tables of a small slot.
const BESIDE_PAGES: u64 = 1 << 10;
/// How long nothing at all may happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(20);
/// The deadline of those that wait with one: too far to come.
const FAR: Duration = Duration::from_secs(24 * 3600);
/// How long all wait while their processor time is looked at.
const SILENCE: Duration = Duration::from_secs(1);

/// Where all fibers wait.
#[derive(Default)]
struct Meeting {
    /// Fibers that are about to wait or wait.
    here: AtomicUsize,
    /// Fibers that have been woken.
    gone: AtomicUsize,
    go: AtomicBool,
    gate: Mutex<()>,
    opened: Condvar,
}

impl Meeting {
    /// Waits until it is over. What a fiber does.
    fn attend(&self, wait: Wait) {
        // Relaxed, all counts: they order nothing.
        self.here.fetch_add(1, Ordering::Relaxed);
        match wait {
            // A token may come without the word, hence the loops. Acquire pairs with the Release of `end`.
            Wait::Park => {
                while !self.go.load(Ordering::Acquire) {
                    sleave::park();
                }
            }
            Wait::Timed => {
                while !self.go.load(Ordering::Acquire) {
                    sleave::park_timeout(FAR);
                }
            }
            Wait::Condvar => {
                let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
                let over = |(): &mut ()| !self.go.load(Ordering::Acquire);
                drop(self.opened.wait_while(gate, over));
            }
        }
        self.gone.fetch_add(1, Ordering::Relaxed);
    }

    /// Wakes all.
    fn end(&self, wait: Wait, fibers: &[JoinHandle<usize>]) {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        // Release: who sees it sees all that came before. Under the lock, or one that is about to wait on the condition
        // variable would miss it.
        self.go.store(true, Ordering::Release);
        drop(gate);
        match wait {
            Wait::Park | Wait::Timed => fibers.iter().for_each(|fiber| fiber.fiber().unpark()),
            Wait::Condvar => self.opened.notify_all(),
        }
    }
}

/// `sleave scale fibers`. Says whether all went without an error.
pub fn run(arguments: &Fibers) -> io::Result<bool> {
    let Fibers { fibers, wait, stack, workers, json } = *arguments;
    if let Err(why) = sleave::identity() {
        return Err(io::Error::other(format!("each fiber would be an OS thread here: {why}")));
    }
    check_memory(fibers as u64)?;
    let this = std::process::id();
    let runtime = Runtime::builder().workers(workers).stack_size(stack).build()?;
    // The workers start with the first fiber, and are not what is measured.
    runtime
        .spawn(|| ())
        .join()
        .map_err(|_| io::Error::other("a fiber that does nothing panicked"))?;
    let before = process::memory(this)?;

    let meeting = Arc::new(Meeting::default());
    let bar = bar(fibers as u64, "parking");
    let begin = Instant::now();
    let mut handles = Vec::with_capacity(fibers);
    for number in 0..fibers {
        let place = Arc::clone(&meeting);
        handles.push(Builder::new().spawn_on(&runtime, move || {
            place.attend(wait);
            number
        })?);
        if number % 10_000 == 0 {
            bar.set_position(meeting.here.load(Ordering::Relaxed) as u64);
        }
    }
    until(&meeting.here, &mut |here| {
        bar.set_position(here as u64);
        here == fibers && all_wait(&runtime, fibers)
    })?;
    let create = begin.elapsed();
    bar.finish_and_clear();

    let memory = process::memory(this)?;
    let os_threads = process::threads(this)?;
    let cpu = process::cpu_time(this)?;
    let silence = Instant::now();
    thread::sleep(SILENCE);
    let cpu = process::cpu_time(this)?.saturating_sub(cpu);
    let idle_cpu_share = cpu.as_secs_f64() / silence.elapsed().as_secs_f64();
    let mut errors = 0;
    if !all_wait(&runtime, fibers) || meeting.gone.load(Ordering::Relaxed) != 0 {
        say(&format!("not all of them stayed parked: {:?}", runtime.statistics()));
        errors += 1;
    }

    let begin = Instant::now();
    meeting.end(wait, &handles);
    until(&meeting.gone, &mut |gone| gone == fibers)?;
    for (number, handle) in handles.into_iter().enumerate() {
        errors += u64::from(handle.join().ok() != Some(number));
    }
    let wake = begin.elapsed();
    let left = runtime.statistics().fibers;
    if left > 0 {
        say(&format!("{} fibers have not ended", grouped(left as u64)));
        errors += left as u64;
    }
    runtime.stop();

    let each = |now: u64, then: u64| now.saturating_sub(then) / fibers as u64;
    let report = FibersReport {
        fibers,
        wait,
        errors,
        workers,
        os_threads,
        stack_bytes: stack,
        create_seconds: thousandths(create.as_secs_f64()),
        wake_seconds: thousandths(wake.as_secs_f64()),
        bytes_per_fiber: each(memory.total(), before.total()),
        resident_bytes_per_fiber: each(memory.resident, before.resident),
        page_table_bytes_per_fiber: each(memory.page_tables, before.page_tables),
        idle_cpu_share: thousandths(idle_cpu_share),
    };
    print(&if json { report.json() } else { report.table() })?;
    Ok(errors == 0)
}

/// Whether at this moment all wait, and none runs or is about to.
fn all_wait(runtime: &Runtime, fibers: usize) -> bool {
    let now = runtime.statistics();
    (now.fibers, now.waiting, now.running, now.runnable) == (fibers, fibers, 0, 0)
}

/// Waits until `done` says so of the count; an error if that has not moved for long.
fn until(count: &AtomicUsize, done: &mut dyn FnMut(usize) -> bool) -> io::Result<()> {
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let now = count.load(Ordering::Relaxed);
        if done(now) {
            return Ok(());
        }
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            return Err(io::Error::other(format!(
                "nothing has happened for {PATIENCE:?} after {} fibers",
                grouped(now as u64)
            )));
        }
        thread::sleep(TICK);
    }
}

/// Says what the fibers need, and refuses what would not fit beside everything else.
fn check_memory(fibers: u64) -> io::Result<()> {
    // SAFETY: sysconf(3) has no preconditions.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let each = 2 * page + BESIDE_PAGES;
    let (available, all) = (meminfo("MemAvailable:")?, meminfo("MemTotal:")?);
    say(&format!(
        "{} fibers need about {}, {} for each; available: {}",
        grouped(fibers),
        bytes(fibers * each),
        bytes(each),
        bytes(available)
    ));
    fit(fibers, each, available, all).map_err(io::Error::other)
}

/// Whether so many fit; a tenth of the machine stays free.
fn fit(fibers: u64, each: u64, available: u64, all: u64) -> Result<(), String> {
    let room = available.saturating_sub(all / 10) / each;
    if fibers <= room {
        return Ok(());
    }
    Err(format!(
        "no room for {} fibers: at most {}, if a tenth of the memory ({}) shall stay free",
        grouped(fibers),
        grouped(room),
        bytes(all / 10)
    ))
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn more_than_the_memory_holds_is_refused_with_the_reason() {
        let (each, available, all) = (10 << 10, 9 << 30, 20 << 30);
        let most = (7 << 30) / (10 << 10);
        assert_eq!(fit(most, each, available, all), Ok(()));
        let refused = fit(most + 1, each, available, all).unwrap_err();
        assert!(refused.contains("at most 734,003") && refused.contains("2.0 GiB"), "{refused}");
        assert!(fit(1, each, all / 10, all).is_err());
    }
}
