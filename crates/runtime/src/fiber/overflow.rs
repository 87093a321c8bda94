//! A stack that overflows is reported, never silent: the handler of SIGSEGV.
//!
//! Below each stack lies a guard. A fault there means that a fiber has used up its stack; the
//! handler says which, how large it was and what to do, and aborts, as Rust's own does for a
//! thread. Any other fault goes to whoever handled it before us.
//!
//! The handler runs on the worker's alternate signal stack (sigaltstack(2)): the fiber's has no
//! room, that is the point. The fiber's identity is in force while it runs. Threads that are no
//! workers come here too, on alternate stacks as small as std's 8 KiB, of which the kernel takes
//! half: their way through is kept short.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use syscalls::{Sysno, syscall};

use super::control::in_slots;
use super::slot::space;
use super::task::TaskRef;
use crate::kernel;

/// Bytes of a worker's alternate signal stack; holds AVX-512 and AMX state (signal(7),
/// `AT_MINSIGSTKSZ`) and a chained handler.
const ALTERNATE_STACK: usize = 64 << 10;

const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// What handled the signals before, in the order of [`SIGNALS`].
static BEFORE: [AtomicPtr<libc::sigaction>; 2] = [const { AtomicPtr::new(null_mut()) }; 2];

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Installs the handlers. Called when the first runtime is made.
pub(crate) fn watch() {
    for (signal, before) in SIGNALS.into_iter().zip(&BEFORE) {
        // Relaxed: called once, under the lock that makes the first runtime.
        if !before.load(Ordering::Relaxed).is_null() {
            continue;
        }
        let mut old = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: sigaction(2) reads and writes structures of our own; an all-zero sigaction is
        // a valid value. The handler is published only after what it reads is in place.
        unsafe {
            if libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr()) != 0 {
                continue;
            }
            // Release: the handler on another thread reads what the box holds.
            before.store(Box::into_raw(Box::new(old.assume_init())), Ordering::Release);
            let mut new = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            new.sa_sigaction = handle as Handler as usize;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(signal, &new, null_mut());
        }
    }
}

/// Gives the calling OS thread an alternate signal stack that is large enough for a report, unless it
/// has one.
pub(crate) fn prepare_thread() {
    // SAFETY: sigaltstack(2) with structures of our own; the mapping is fresh and is kept as
    // long as the thread may take a signal, that is for ever (workers are reused, not many).
    unsafe {
        let mut now = MaybeUninit::<libc::stack_t>::zeroed().assume_init();
        let known = syscall!(Sysno::sigaltstack, 0usize, &raw mut now).is_ok();
        let enough = now.ss_flags & libc::SS_DISABLE == 0 && now.ss_size >= ALTERNATE_STACK;
        if !known || enough || now.ss_flags & libc::SS_ONSTACK != 0 {
            return;
        }
        let memory = syscall!(
            Sysno::mmap,
            0usize,
            ALTERNATE_STACK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            usize::MAX,
            0usize
        );
        if let Ok(memory) = memory {
            let stack = libc::stack_t {
                ss_sp: memory as *mut c_void,
                ss_flags: 0,
                ss_size: ALTERNATE_STACK,
            };
            let _ = syscall!(Sysno::sigaltstack, &raw const stack, 0usize);
        }
    }
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo_t; for these signals it holds an address.
    let address = unsafe { (*info).si_addr() } as usize;
    if in_slots(address) {
        report_overflow(address);
    }
    // Acquire pairs with the Release in `watch`.
    let before = BEFORE[usize::from(signal == SIGNALS[1])].load(Ordering::Acquire);
    // SAFETY: stored before the handler was installed, never freed.
    unsafe { pass_on(&*before, signal, info, context) };
}

/// If `address` lies in a guard, reports and aborts.
#[inline(never)]
fn report_overflow(address: usize) {
    if let Some((location, control)) = space().ok().and_then(|space| space.locate(address))
        && location.in_guard
    {
        report(location.size, control);
        // SAFETY: abort(3) is async-signal-safe.
        unsafe { libc::abort() };
    }
}

/// Says which fiber's stack has overflowed. Async-signal-safe: no allocation, no lock.
fn report(size: usize, control: &super::Control) {
    let mut line = Line::new();
    line.text(b"\nfiber ");
    if let Some(task) = control.task.get() {
        // SAFETY: a fiber that runs keeps its task; the reference is borrowed, not counted.
        let task = std::mem::ManuallyDrop::new(unsafe { TaskRef::from_raw(task) });
        line.text(b"'");
        line.text(task.name().unwrap_or("<unnamed>").as_bytes());
        line.text(b"' (number ");
        line.number(task.id().get());
        line.text(b") ");
    }
    line.text(b"has overflowed its stack of ");
    line.number(size as u64 / 1024);
    line.text(
        b" KiB\nhelp: give it more with sleave::Builder::stack_size, or all fibers with \
          SLEAVE_STACK=1M in the environment\n",
    );
    kernel::complain(line.bytes());
}

/// Lets the handler that was there before decide.
///
/// # Safety
/// The arguments are those of a signal handler for `signal`, whose action was `before`.
unsafe fn pass_on(
    before: &libc::sigaction,
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The instruction is tried again when we return, and the default action taken. (The
            // kernel takes it as well for a fault whose signal is ignored.)
            // SAFETY: sigaction(2) with a value that the kernel gave us.
            unsafe { libc::sigaction(signal, before, null_mut()) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with SA_SIGINFO this is a function of three arguments, sigaction(2).
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO it is a function of one.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
            handler(signal);
        }
    }
}

/// A message put together without allocating.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    fn new() -> Line {
        Line { bytes: [0; 512], len: 0 }
    }

    fn text(&mut self, text: &[u8]) {
        let n = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&text[..n]);
        self.len += n;
    }

    fn number(&mut self, mut number: u64) {
        let mut digits = [0; 20];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.text(&digits[first..]);
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
