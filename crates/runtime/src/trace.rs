//! A line on standard error for everything that happens to a fiber: the feature `trace`.
//!
//! For who wants to see the scheduler at work, or to know what a program was doing when it ceased to.
//! The feature compiles it in, `SLEAVE_TRACE=1` in the environment switches it on when the first
//! runtime is made:
//!
//! ```text
//!   seconds since then   where it happens   who           what
//!
//!   sleave 0.000031207   outside:           fiber 1       is created
//!   sleave 0.000105832   worker 0:          fiber 1       starts
//!   sleave 0.000117050   worker 0:          fiber 2 "Ada" is created
//!   sleave 0.000122918   worker 0:          fiber 1       leaves: waits for a fiber's end
//!   sleave 0.000129445   worker 0:          fiber 2 "Ada" starts
//!   sleave 0.000138310   worker 0:          fiber 2 "Ada" ends
//!   sleave 0.000142127   worker 0:          fiber 1       is woken
//!   sleave 0.000148890   worker 0:          fiber 2 "Ada" leaves: has ended
//!   sleave 0.000153264   worker 0:          fiber 1       resumes
//! ```
//!
//! So a fiber *is created*, *starts*, *leaves* and *resumes* by turns, *ends* and *leaves*. Between leaving and
//! resuming it *is woken*, unless it yields or moves: then it goes from queue to queue by itself. A wake
//! that comes before the fiber has left keeps it where it is, and is not told.
//!
//! * **It changes nothing.** A line is made in a buffer on the stack and written by one write(2): no
//!   memory is allocated, no lock taken, no thread-local touched, nothing parked, `errno` left alone;
//!   a signal handler may do it. No line is written under a lock of the runtime, so a reader who is
//!   slow holds up this worker only. What write(2) refuses is lost.
//! * **It costs nothing unless it is compiled in.** Every function here first asks [`is_on`], which is then
//!   `false` for the compiler. Compiled in and not switched on, it is a load and a branch.
//! * **Lines of one fiber are in order,** wherever it ran, for a line is written before what it tells can have
//!   consequences; those of one worker as well. Between two workers the time decides, but for what
//!   happened within the same few microseconds.
//!
//! *Why* a fiber leaves is known several calls above the switch. Who knows it says so for the
//! length of a scope ([`because`]); who says nothing waits on a futex.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::fiber::{Control, FiberId, Header, Kind, Runnable, TaskRef, current};
use crate::kernel;
use crate::scheduler::Processor;
use crate::wait::{Batch, Reason};

/// Bytes of a line: a name takes [`NAME`] of them.
const LINE: usize = 192;
/// Bytes of a fiber's name that are shown.
const NAME: usize = 64;

static ON: AtomicBool = AtomicBool::new(false);
/// When it was switched on, in nanoseconds of `CLOCK_MONOTONIC`.
static START: AtomicU64 = AtomicU64::new(0);

/// Whether lines are written.
#[inline(always)]
fn is_on() -> bool {
    // Relaxed: it guards no memory. Runtimes, and so all workers, begin after the start was stored.
    cfg!(feature = "trace") && ON.load(Ordering::Relaxed)
}

/// Switches it on if the environment says so. Called whenever a runtime is made; on is on.
///
/// # Errors
/// `InvalidInput` for a value that is neither 0 nor 1.
pub(crate) fn configure() -> io::Result<()> {
    if !cfg!(feature = "trace") {
        return Ok(());
    }
    match std::env::var_os("SLEAVE_TRACE") {
        None => {}
        Some(value) if value == "0" => {}
        Some(value) if value == "1" => {
            // Relaxed, all: the first of several sets the start; see `is_on`.
            let first =
                START.compare_exchange(0, kernel::now(), Ordering::Relaxed, Ordering::Relaxed);
            if first.is_ok() {
                ON.store(true, Ordering::Relaxed);
            }
        }
        Some(value) => {
            let message = format!("SLEAVE_TRACE={value:?}: 0 or 1 was expected");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
    }
    Ok(())
}

/// Why a fiber leaves its worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// To let others go first.
    Yields,
    /// To the worker that it has pinned itself to.
    Moves,
    /// For a descriptor, or one of several.
    Descriptor,
    /// It sleeps.
    Timer,
    /// For a futex: a lock, a condition variable, a channel, `std::thread::park`.
    Lock,
    /// For the end of a fiber, or of all those in a scope.
    Join,
    /// It has parked until it is unparked.
    Token,
    /// For ever.
    Ended,
}

impl Why {
    fn text(self) -> &'static str {
        match self {
            Why::Yields => "yields",
            Why::Moves => "moves to its worker",
            Why::Descriptor => "waits for a descriptor",
            Why::Timer => "waits for a timer",
            Why::Lock => "waits for a lock",
            Why::Join => "waits for a fiber's end",
            Why::Token => "waits for a token",
            Why::Ended => "has ended",
        }
    }
}

/// What a control block keeps for this file.
pub(crate) struct OfFiber {
    why: Cell<Why>,
    /// It has not run yet.
    fresh: Cell<bool>,
}

impl OfFiber {
    pub(crate) fn new() -> OfFiber {
        OfFiber { why: Cell::new(Why::Lock), fresh: Cell::new(true) }
    }
}

/// While this lives, the calling fiber leaves for a reason of its own.
#[must_use]
pub(crate) struct Because(Option<(NonNull<Control>, Why)>);

/// Says why the calling fiber leaves, if it does, until the result is dropped.
#[inline(always)]
pub(crate) fn because(why: Why) -> Because {
    if !is_on() {
        return Because(None);
    }
    Because(current().map(|control| {
        // SAFETY: the caller's own control block.
        (control, unsafe { control.as_ref() }.trace.why.replace(why))
    }))
}

impl Drop for Because {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some((control, before)) = self.0 {
            // SAFETY: the fiber is inside the call that made this value, so its block is alive.
            unsafe { control.as_ref() }.trace.why.set(before);
        }
    }
}

/// The slot of `fiber` has been given to a task.
#[inline(always)]
pub(crate) fn begins(fiber: &Control) {
    if is_on() {
        fiber.trace.fresh.set(true);
    }
}

/// `fiber` is what `processor` runs next.
#[inline(always)]
pub(crate) fn enters(fiber: &Control, processor: &Processor) {
    if is_on() {
        let what = if fiber.trace.fresh.replace(false) { "starts" } else { "resumes" };
        tell(Some(processor), who(fiber), what, "");
    }
}

/// `fiber`, the caller, leaves its worker.
#[inline(always)]
pub(crate) fn leaves(fiber: &Control) {
    if is_on() {
        tell(fiber.runner(), who(fiber), "leaves: ", fiber.trace.why.get().text());
    }
}

/// The task of `fiber`, the caller, has run; nobody has been told yet.
#[inline(always)]
pub(crate) fn ends(fiber: &Control) {
    if is_on() {
        tell(fiber.runner(), who(fiber), "ends", "");
    }
}

/// `fiber`, the caller, which ran `task`, leaves for ever.
#[inline(always)]
pub(crate) fn leaves_for_ever(fiber: &Control, task: &TaskRef) {
    if is_on() {
        tell(fiber.runner(), (task.id(), task.name()), "leaves: ", Why::Ended.text());
    }
}

/// What is in `batch` will be queued: tasks that have just been made, fibers that have been woken.
/// `here` is the caller's processor, if it has one.
#[inline(always)]
pub(crate) fn scheduled(batch: &Batch, here: Option<&Processor>) {
    if is_on() {
        let mut next = batch.first;
        while let Some(runnable) = next {
            // SAFETY: a batch owns what is in it.
            next = unsafe { tell_scheduled(runnable, here) };
        }
    }
}

/// Tells of one; the next of its batch.
///
/// # Safety
/// The runnable is in a batch of the caller's.
unsafe fn tell_scheduled(
    runnable: NonNull<Runnable>,
    here: Option<&Processor>,
) -> Option<NonNull<Runnable>> {
    // SAFETY: by contract; the kind says what the runnable is the first field of.
    unsafe {
        match runnable.as_ref().kind {
            Kind::Fresh => tell(here, runnable.cast::<Header>().as_ref().who(), "is created", ""),
            Kind::Started => {
                let fiber = runnable.cast::<Control>().as_ref();
                let why = match fiber.wait.reason() {
                    Reason::Woken => "",
                    Reason::TimedOut => ": the time is over",
                    Reason::Closed => ": the descriptor was closed",
                    Reason::Interrupted => ": something else is wanted of it",
                };
                tell(here, who(fiber), "is woken", why);
            }
        }
        // Relaxed: the batch is the caller's own.
        NonNull::new(runnable.as_ref().next.load(Ordering::Relaxed))
    }
}

/// A fiber's number and name.
type Who<'a> = (FiberId, Option<&'a str>);

/// Who runs on the slot of `fiber`.
fn who(fiber: &Control) -> Who<'_> {
    // SAFETY: every caller runs this fiber, or is about to, or owns it: it has a task, and that is alive.
    unsafe { fiber.task().as_ref() }.who()
}

/// Writes a line.
#[cold]
fn tell(here: Option<&Processor>, who: Who<'_>, what: &str, more: &str) {
    // Relaxed: see `is_on`.
    let since = kernel::now().saturating_sub(START.load(Ordering::Relaxed));
    let mut line = Line { bytes: [0; LINE], len: 0 };
    // A line that does not fit is cut off.
    let _ = line.compose(since, here.map(Processor::number), (who.0.get(), who.1), (what, more));
    line.bytes[line.len] = b'\n';
    kernel::complain(&line.bytes[..=line.len]);
}

/// A line in the making; the last byte is kept for its end.
struct Line {
    bytes: [u8; LINE],
    len: usize,
}

impl Line {
    fn compose(
        &mut self,
        since: u64,
        worker: Option<usize>,
        (id, name): (u64, Option<&str>),
        (what, more): (&str, &str),
    ) -> fmt::Result {
        write!(self, "sleave {}.{:09} ", since / 1_000_000_000, since % 1_000_000_000)?;
        match worker {
            Some(number) => write!(self, "worker {number}: ")?,
            None => self.write_str("outside: ")?,
        }
        write!(self, "fiber {id} ")?;
        if let Some(name) = name {
            self.write_char('"')?;
            let end = self.len + NAME;
            // Whatever is in the name, the line stays one.
            for character in name.chars().flat_map(char::escape_debug) {
                if self.len + character.len_utf8() > end {
                    self.write_char('…')?;
                    break;
                }
                self.write_char(character)?;
            }
            self.write_str("\" ")?;
        }
        self.write_str(what)?;
        self.write_str(more)
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..LINE - 1];
        let count = text.len().min(room.len());
        room[..count].copy_from_slice(&text.as_bytes()[..count]);
        self.len += count;
        if count == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn line(worker: Option<usize>, name: Option<&str>, what: (&str, &str)) -> String {
        let mut line = Line { bytes: [0; LINE], len: 0 };
        line.compose(1_000_002_003, worker, (7, name), what).expect("it fits");
        String::from_utf8(line.bytes[..line.len].to_vec()).expect("whole characters")
    }

    #[test]
    fn a_line_says_when_where_who_and_what() {
        assert_eq!(
            line(Some(3), Some("Ada"), ("leaves: ", Why::Timer.text())),
            "sleave 1.000002003 worker 3: fiber 7 \"Ada\" leaves: waits for a timer"
        );
        assert_eq!(
            line(None, None, ("is created", "")),
            "sleave 1.000002003 outside: fiber 7 is created"
        );
    }

    #[test]
    fn a_name_cannot_make_two_lines_of_one() {
        assert!(line(None, Some("a\nb\"c"), ("ends", "")).ends_with(r#"fiber 7 "a\nb\"c" ends"#));
    }

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let line = line(Some(511), Some(&"ß".repeat(100)), ("leaves: ", Why::Descriptor.text()));
        assert!(line.contains(&format!("\"{}…\" leaves", "ß".repeat(NAME / 2))), "{line}");
    }

    #[test]
    fn the_longest_line_fits() {
        let (name, mut line) = ("x".repeat(NAME + 1), Line { bytes: [0; LINE], len: 0 });
        let what = ("is woken", ": the descriptor was closed");
        line.compose(u64::MAX, Some(usize::MAX), (u64::MAX, Some(&name)), what).expect("it fits");
    }
}
