//! The dump on a signal: `SLEAVE_DUMP=SIGQUIT` in the environment.
//!
//! ```text
//!   signal ─▶ handler: REQUESTS += 1, futex wake ─▶ thread "sleave-dump": dump, blocked calls ─▶ standard error
//! ```
//!
//! The handler does only that: it may have interrupted anything. The thread waits for nothing else, so it answers when every
//! worker sleeps, computes, or is stuck; it exists only where the variable does.
//!
//! The handler is there from the start of the program (from `crates/libc`'s constructor, or from the first runtime), lest the signal end
//! a process that has not come so far; the thread from the first runtime on. A handler that the program has installed
//! before is left in place; one that it installs afterwards takes the place of this one.
//!
//! Sources: sigaction(2), signal(7), signal-safety(7).

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use sleave_context::lock::Lock;

use super::blocked_calls;
use super::dump::dump_as_configured;
use crate::kernel::{self, OsThread};
use crate::signal;

/// The variable that names the signal.
const VARIABLE: &CStr = c"SLEAVE_DUMP";

/// Bytes of the thread's stack.
const STACK: usize = 512 << 10;

/// Dumps that have been asked for; a futex.
static REQUESTS: AtomicU32 = AtomicU32::new(0);

/// The process that has the thread; 0 while there is none.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Signals that may ask for a dump, by name. Others have a meaning that would be lost.
const SIGNALS: [(&str, c_int); 10] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("TERM", libc::SIGTERM),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("URG", libc::SIGURG),
    ("WINCH", libc::SIGWINCH),
];

/// The signal that `text` names, as `SLEAVE_DUMP` does: `SIGQUIT`, `QUIT` or `3`; `None` if there is none or it cannot ask for a
/// dump.
pub fn dump_signal(text: &str) -> Option<i32> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if let Some((_, signal)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Some(*signal);
    }
    let number: c_int = text.parse().ok()?;
    let usable = SIGNALS.iter().any(|(_, signal)| *signal == number)
        || (libc::SIGRTMIN()..signal::KICK).contains(&number);
    usable.then_some(number)
}

/// What the environment says: the signal, or text that names none.
fn wish() -> Option<Result<c_int, String>> {
    // SAFETY: getenv(3) of a terminated name; what it answers is a terminated string.
    let value = unsafe {
        let value = libc::getenv(VARIABLE.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value))
    }?;
    let text = value.to_str().unwrap_or("?");
    (!text.is_empty()).then(|| dump_signal(text).ok_or_else(|| text.to_owned()))
}

/// Installs the handler if the environment asks for it. For constructors: what is wrong is told when a runtime is made.
pub fn prepare() {
    if let Some(Ok(signal)) = wish() {
        install(signal);
    }
}

/// The same, and starts the thread. Called whenever a runtime is made; the first call counts.
///
/// # Errors
/// `InvalidInput` for a value that names no signal; what pthread_create(3) says.
pub(super) fn configure() -> io::Result<()> {
    let signal = match wish() {
        None => return Ok(()),
        Some(Ok(signal)) => signal,
        Some(Err(text)) => {
            let message = format!("SLEAVE_DUMP={text:?}: a signal was expected, such as SIGQUIT");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
    };
    static STARTING: Lock<()> = Lock::new(());
    let process = kernel::getpid();
    // Relaxed, here and below: the number is all there is; the lock is against two threads.
    if PROCESS.load(Ordering::Relaxed) == process {
        return Ok(());
    }
    install(signal);
    let _starting = STARTING.lock();
    if PROCESS.load(Ordering::Relaxed) != process {
        OsThread::start("sleave-dump".into(), STACK, answer)?;
        PROCESS.store(process, Ordering::Relaxed);
    }
    Ok(())
}

type SigAction = unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;

/// Installs the handler unless the program has one.
fn install(signal: c_int) {
    let Some(function) = kernel::next(c"sigaction") else { return };
    // SAFETY: this is sigaction(2) of the C library, of this type; it reads and writes structures of our own, for which
    // all bytes zero is a value. The handler is async-signal-safe.
    unsafe {
        let sigaction = std::mem::transmute::<*mut c_void, SigAction>(function);
        let mut action: libc::sigaction = std::mem::zeroed();
        let known = sigaction(signal, std::ptr::null(), &mut action) == 0;
        if !known || ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction) {
            return;
        }
        action = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        // Calls that the kernel can restart go on; the program's alternate stack is used where it has one.
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        sigaction(signal, &action, null_mut());
    }
}

/// Async-signal-safe: two atomic words and two system calls, made directly.
extern "C" fn on_signal(_: c_int) {
    // Relaxed: see `configure`.
    if PROCESS.load(Ordering::Relaxed) != kernel::getpid() {
        kernel::complain(b"sleave dump: this process has no runtime, and so no fibers\n");
        return;
    }
    // Release: the thread sees a number that it has not answered.
    REQUESTS.fetch_add(1, Ordering::Release);
    kernel::futex_wake(REQUESTS.as_ptr() as usize, 1);
}

/// The thread.
fn answer() {
    // Signals are for the program's threads and fibers, but this one may come here when all others block it.
    let own = wish().and_then(Result::ok).map_or(0, |signal| 1 << (signal - 1));
    kernel::set_signal_mask(signal::ALL & !own);
    let mut answered = 0;
    loop {
        // Acquire pairs with the handler's Release.
        let requests = REQUESTS.load(Ordering::Acquire);
        if requests == answered {
            kernel::futex_wait(&REQUESTS, answered, None);
            continue;
        }
        answered = requests;
        kernel::complain(dump_as_configured().to_string().as_bytes());
        // After the fibers: to name these places the loader's lock is needed, which a stuck call may hold.
        for call in blocked_calls() {
            kernel::complain(format!("call that blocked a worker: {call}\n").as_bytes());
        }
        kernel::complain(b"end of the dump\n");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["SIGQUIT", "QUIT", "3"] {
            assert_eq!(dump_signal(text), Some(libc::SIGQUIT), "{text}");
        }
        assert_eq!(dump_signal("40"), Some(40));
        for text in
            ["", "SIG", "KILL", "SIGSEGV", "9", "11", "32", "33", "64", "65", "-3", "sigquit", "3x"]
        {
            assert_eq!(dump_signal(text), None, "{text}");
        }
    }
}
