//! Calls that block their thread and are known to: others take over before, not when the monitor has noticed.
//!
//! ```text
//!   fiber ─▶ declare ─▶ the call, libc's own, on this thread ─▶ unblock ─▶ fiber goes on, on the same thread
//!               └─▶ a sleeping worker, or a thread that is called, runs the others meanwhile
//! ```
//!
//! Who stands in, what it costs and how many there may be: `scheduler/core/call.rs`.

use crate::fiber::{AtWork, Control, current};
use crate::interpose::uninterposed;
pub use crate::scheduler::Call;
use crate::scheduler::{Core, Outcome};

/// Calls `f`, which is known to block its OS thread; other threads run the other fibers meanwhile, from the
/// beginning.
///
/// This is for what no interposed call can see: a C library that waits by system calls of its own, a file on a slow
/// disk that is mapped into memory, a computation of seconds. Without it the runtime's monitor notices
/// after some 15 ms, and only then do the worker's other fibers go on elsewhere. (The C library's own blocking calls need it
/// not: where the fiber cannot be parked they do the same by themselves.)
///
/// While `f` runs the calling fiber stays on its OS thread, and its C library calls are libc's own, as in
/// [`uninterposed`]. `sleave`'s own calls
/// (`yield_now`, `park`, `join`) park the fiber as ever; the thread is a worker again then, and remains one until `f` returns.
/// `f` may panic. On a thread that is no fiber `f` is called, and nothing else happens.
///
/// A runtime has at most 512 OS threads that run fibers. If so many calls are on that only one for
/// each of its workers is left, the next waits, parked, until one has returned. In a runtime confined to its caller
/// (`use_caller` with one worker) there is no other thread: `f` holds up the others. So it does for fibers
/// pinned to the same worker.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let runtime = sleave_runtime::Runtime::builder().workers(1).build()?;
/// runtime.run(|| {
/// #   if sleave_runtime::identity().is_err() { return; }
///     let start = Instant::now();
///     // A hundred calls that block a thread each, all at once on one worker.
///     sleave_runtime::scope(|s| {
///         for _ in 0..100 {
///             s.spawn(|| sleave_runtime::blocking(|| std::thread::sleep(Duration::from_millis(50))));
///         }
///     });
///     assert!(start.elapsed() < Duration::from_secs(3));
/// });
/// runtime.stop();
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn blocking<F, T>(f: F) -> T
where
    F: FnOnce() -> T,
{
    crate::cancel::checkpoint();
    hand_off(Call::Waits, f)
}

/// [`blocking`], for a call that ends in the way of `call`. `errno` is what `f` leaves.
#[inline]
pub fn hand_off<F, T>(call: Call, f: F) -> T
where
    F: FnOnce() -> T,
{
    let Some(control) = current() else { return f() };
    // SAFETY: the caller's own control block, which lives as long as the fiber.
    let _declared = Declared::declare(unsafe { control.as_ref() }, call);
    uninterposed(f)
}

/// [`hand_off`] of a call that is mostly over at once ([`Call::Glances`]): nobody is called to stand in until it has lasted for
/// some 5 ms.
///
/// # Errors
/// Gives `f` back if there are as many calls as there may be.
#[inline]
pub fn glance<F, T>(f: F) -> Result<T, F>
where
    F: FnOnce() -> T,
{
    let Some(control) = current() else { return Ok(f()) };
    // SAFETY: as above.
    let declared = Declared::declare(unsafe { control.as_ref() }, Call::Glances);
    if matches!(declared.outcome, Outcome::Refused) {
        return Err(f);
    }
    Ok(uninterposed(f))
}

/// A call that has been declared, until it is over or has panicked.
struct Declared<'a> {
    control: &'a Control,
    outcome: Outcome,
}

/// Does something of the scheduler's on the calling fiber's stack: a signal handler that interrupts it gets
/// libc's own calls, and `errno` stays as it is.
fn at_work<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: errno(3): the calling fiber's own, wherever it goes meanwhile.
    let errno = unsafe { *libc::__errno_location() };
    let at_work = AtWork::begin();
    let value = f();
    drop(at_work);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    value
}

impl Declared<'_> {
    fn declare(control: &Control, call: Call) -> Declared<'_> {
        Declared { control, outcome: at_work(|| Core::declare(control, call)) }
    }
}

impl Drop for Declared<'_> {
    fn drop(&mut self) {
        if let Outcome::Counted = self.outcome {
            at_work(|| {
                // It may be another's by now if the call has parked the fiber; that one moves as well.
                let processor = self.control.processor();
                processor.core().unblock(processor);
            });
        }
    }
}
