//! The report: a file in which a process says at its end what became of it.
//!
//! `SLEAVE_REPORT=FILE` in the environment asks for it, `sleave run --report FILE` sets that. It is for whoever runs a
//! program that was not written for fibers: a feature of threads that only the kernel has is not lost without a word.
//!
//! ```text
//!   note("thread made as an OS thread", "real-time policy") ─▶ NOTES ─┐
//!                                                    exit(3) ─▶ write ─┴─▶ FILE, appended
//! ```
//!
//! Processes that a program starts inherit the variable, so each *appends* its section, by one write(2), which begins with
//! its number and its command. A process that never had a runtime nor anything to note writes none. Nor does one that ends
//! without exit(3): by `_exit`, a signal, `abort`.
//!
//! Beside the notes it has the calls that blocked a worker (`calls`), and the most fibers and threads there were at a look of the
//! monitor, every 5 ms.
//!
//! Notes are counted, and their number is bounded: `MOST` different ones, the others are one line.

use std::ffi::CString;
use std::fmt::Write;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use sleave_context::lock::Lock;

use super::calls::{self, blocked_calls};
use crate::fiber::{AtWork, FiberId};
use crate::kernel;

/// How many different notes are kept.
const MOST: usize = 128;

/// The variable that names the file.
const VARIABLE: &str = "SLEAVE_REPORT";

struct Note {
    kind: &'static str,
    detail: Box<str>,
    times: u64,
}

static NOTES: Lock<Vec<Note>> = Lock::new(Vec::new());
/// Notes for which there was no room.
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// Where the report goes, if somebody wants one.
static FILE: Lock<Option<CString>> = Lock::new(None);
/// Whose it is.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Notes that something was not as the program asked for, for the report: what `kind` of thing, and in `detail` which.
/// Equal notes are counted.
///
/// Cheap enough for every creation of a thread, not for every call. Must not be called in a signal handler.
///
/// # Examples
///
/// ```
/// sleave_runtime::inspect::report::note("thread made as an OS thread", "real-time policy");
/// ```
pub fn note(kind: &'static str, detail: &str) {
    {
        // What allocates below may not park under the lock.
        let _at_work = AtWork::begin();
        let mut notes = NOTES.lock();
        let known = notes.iter_mut().find(|note| note.kind == kind && *note.detail == *detail);
        if let Some(note) = known {
            note.times += 1;
        } else if notes.len() < MOST {
            notes.push(Note { kind, detail: detail.into(), times: 1 });
        } else {
            // Relaxed: a count only.
            OTHERS.fetch_add(1, Ordering::Relaxed);
        }
    }
    // A variable that makes no sense is an error of whoever makes a runtime.
    let _ = configure();
}

/// What has been noted so far: kind, detail, how often.
pub fn notes() -> Vec<(&'static str, String, u64)> {
    let _at_work = AtWork::begin();
    NOTES.lock().iter().map(|note| (note.kind, note.detail.to_string(), note.times)).collect()
}

/// The most fibers, and the most OS threads with a processor, that the monitor has seen at one of its looks.
static FIBERS: AtomicUsize = AtomicUsize::new(0);
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The monitor has seen so many.
pub(crate) fn seen(fibers: usize, threads: usize) {
    // Relaxed: the monitor alone writes.
    FIBERS.fetch_max(fibers, Ordering::Relaxed);
    THREADS.fetch_max(threads, Ordering::Relaxed);
}

/// Sees to it that the report is written at the end if the environment asks for one. Called whenever a runtime is
/// made; the first call counts.
///
/// # Errors
/// `InvalidInput` for a file that cannot be written.
pub(crate) fn configure() -> io::Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    // Relaxed, both: one of several does it, and the others need not wait for it.
    if DONE.load(Ordering::Relaxed) {
        return Ok(());
    }
    let path = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
    if let Some(path) = path {
        let refused = |why: io::Error| {
            let message = format!("{VARIABLE}={path:?}: {why}");
            io::Error::new(io::ErrorKind::InvalidInput, message)
        };
        // The program may go elsewhere before it ends.
        let absolute = std::path::absolute(&path).map_err(refused)?;
        let absolute = CString::new(absolute.into_os_string().into_vec())
            .map_err(|why| refused(why.into()))?;
        kernel::append(&absolute, b"").map_err(refused)?;
        if DONE.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        *FILE.lock() = Some(absolute);
        // Relaxed: read by this process's end, or by a child's, which finds another number.
        PROCESS.store(kernel::getpid(), Ordering::Relaxed);
        // SAFETY: atexit(3) of a function without arguments. It fails for lack of memory only: then there is no report.
        unsafe { libc::atexit(write) };
    }
    DONE.store(true, Ordering::Relaxed);
    Ok(())
}

/// Writes the report, if it is this process's: a child of fork(2) has inherited it, and has nothing to say.
extern "C" fn write() {
    // Relaxed: see `configure`. Before the lock, which somebody may have held when a child was made.
    if PROCESS.load(Ordering::Relaxed) != kernel::getpid() {
        return;
    }
    let _at_work = AtWork::begin();
    let file = FILE.lock().take();
    if let Some(file) = file {
        // Who cannot be written to now cannot be told either.
        let _ = kernel::append(&file, text().as_bytes());
    }
}

/// The process's section.
fn text() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = compose(&mut text);
    text
}

fn compose(text: &mut String) -> std::fmt::Result {
    let command: Vec<_> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    writeln!(text, "sleave report of process {}: {}", std::process::id(), command.join(" "))?;
    // Relaxed, here and below: numbers for their own sake.
    let (fibers, threads) = (FIBERS.load(Ordering::Relaxed), THREADS.load(Ordering::Relaxed));
    let spawned = FiberId::count();
    writeln!(text, "  fibers: {spawned} altogether, at most {fibers} at once")?;
    writeln!(text, "  OS threads that run them: at most {threads} at once")?;
    for (kind, detail, times) in notes() {
        writeln!(text, "  {kind}: {detail}: {times}")?;
    }
    match OTHERS.load(Ordering::Relaxed) {
        0 => {}
        others => writeln!(text, "  other notes: {others}")?,
    }
    for call in blocked_calls() {
        writeln!(text, "  call that blocked a worker: {call}")?;
    }
    match calls::others() {
        0 => Ok(()),
        others => writeln!(text, "  other calls that blocked a worker: {others}"),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn equal_notes_are_counted_and_their_number_is_bounded() {
        for number in 0..2 * MOST {
            note("a test's note", &number.to_string());
        }
        note("a test's note", "0");
        let notes = notes();
        assert_eq!(notes.len(), MOST);
        assert!(notes.contains(&("a test's note", "0".into(), 2)));
        // Others of this binary may have noted something as well.
        assert!(OTHERS.load(Ordering::Relaxed) >= MOST as u64);
        assert!(text().contains("a test's note: 0: 2\n"), "{}", text());
    }
}
