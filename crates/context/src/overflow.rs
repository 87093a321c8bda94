//! The report of a stack overflow: whose stack, how large, how to help.
//!
//! A coroutine that runs off its stack faults in the guard below it. Without this module that is a bare
//! SIGSEGV; with it, the process says what happened and aborts, as Rust's does for a thread:
//!
//! ```text
//! coroutine 'parser' has overflowed its stack of 64 KiB
//! help: give it a larger stack, or recurse less deeply
//! ```
//!
//! ```text
//!  fault ──▶ handler ──▶ address in the guard of a stack that is listed? ── no ──▶ whoever handled the signal before
//!           (on the thread's           │ yes
//!            alternate stack)          ▼
//!                              describers, newest first ── none knows ──▶ the stack's name (stack::Named)
//!                                      │ who, and how to help
//!                                      ▼
//!                              standard error, abort
//! ```
//!
//! * [`install`] once, at the start of the program or of the library that makes coroutines.
//! * [`prepare_thread`] on each thread that runs coroutines: the handler cannot run on the stack that has
//!   overflowed, so the thread needs another one for it. (Threads of Rust's standard library have one of 8 KiB or
//!   more, which is enough for the report alone, but not for whatever else handles the signal. Other threads have none,
//!   and the kernel kills the process without a word.)
//! * Stacks of an [`Arena`](crate::stack::Arena), hence every [`Slab`](crate::stack::Slab), and every
//!   [`Mapped`] are listed by themselves. A layer above that knows more about who runs there says
//!   so in a [`Describer`].
//!
//! # What is not reported
//!
//! * A stack without a guard ([`Supplied`](crate::stack::Supplied)): nothing faults, memory is corrupted.
//! * A frame larger than the guard, in code that does not touch it page by page. Rust does; C compilers do
//!   with `-fstack-clash-protection`.
//! * Stack types of somebody else. Their overflow is a bare SIGSEGV.
//!
//! A wild pointer that happens to hit a guard is taken for an overflow.
//!
//! Everything in the handler is async-signal-safe: no lock, no allocation. `sigaction` is the C library's, as the
//! return from a handler goes through code of its own; all else is bare system calls.
//!
//! Sources: sigaction(2), sigaltstack(2), signal-safety(7), getauxval(3) for `AT_MINSIGSTKSZ`.

use crate::lock::Lock;
use crate::stack::{Error, Location, Mapped, Stack, locate, name_of};
use crate::sys;
use core::cell::UnsafeCell;
use core::ffi::{c_int, c_void};
use core::fmt::{self, Write};
use core::marker::PhantomData;
use core::mem::{MaybeUninit, forget, transmute};
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// A signal that faults raise, and what handled it before us.
struct Chain {
    signal: c_int,
    installed: AtomicBool,
    before: UnsafeCell<MaybeUninit<libc::sigaction>>,
}

// SAFETY: `before` is written once, under a lock and before `installed`; from then on it is only read.
unsafe impl Sync for Chain {}

impl Chain {
    const fn of(signal: c_int) -> Chain {
        let (installed, before) = (AtomicBool::new(false), UnsafeCell::new(MaybeUninit::zeroed()));
        Chain { signal, installed, before }
    }
}

static CHAINS: [Chain; 2] = [Chain::of(libc::SIGSEGV), Chain::of(libc::SIGBUS)];

/// Installs the handler of SIGSEGV and SIGBUS, for the whole process and for good; once, however often it is called.
///
/// Whatever handled these signals before is called for every fault that is no overflow of a stack of ours.
/// Who installs a handler later does well to do the same.
pub fn install() {
    static INSTALLING: Lock<()> = Lock::new(());
    let _installing = INSTALLING.lock();
    // Asked for now: it takes a descriptor for a moment, which nobody expects when a thread starts.
    signal_stack_size();
    for chain in &CHAINS {
        // Relaxed: stored under the lock.
        if chain.installed.load(Ordering::Relaxed) {
            continue;
        }
        // SAFETY: sigaction(2) writes and reads structures of our own, one of which nobody reads before `installed`. An
        // all-zero sigaction is a valid value.
        unsafe {
            let known = libc::sigaction(chain.signal, null(), (*chain.before.get()).as_mut_ptr());
            // Not for these signals, says the man page; unless a filter of system calls forbids it.
            if known != 0 {
                continue;
            }
            // Release: the handler, on whatever thread, sees what it is to pass faults on to.
            chain.installed.store(true, Ordering::Release);
            let mut new = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            new.sa_sigaction = handle as Handler as usize;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(chain.signal, &new, null_mut());
        }
    }
}

/// Bytes that the handler needs. The kernel says what registers take, which with wide vectors and tiles
/// may be most of it.
fn signal_stack_size() -> usize {
    static SIZE: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: the number stands for itself, and whoever sees it late asks the kernel once more.
    match SIZE.load(Ordering::Relaxed) {
        0 => {
            let size = HANDLER_STACK + sys::auxiliary(libc::AT_MINSIGSTKSZ).unwrap_or(0);
            SIZE.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}

/// What the handler needs beside the registers that the kernel saves: its own frames, and those of a handler that it
/// passes a fault on to.
const HANDLER_STACK: usize = 64 << 10;

/// Gives the calling thread an alternate signal stack that is large enough for a report, unless it has one.
///
/// The thread has it until the value is dropped, on the same thread; then it has what it had before. A thread that
/// runs coroutines to its end may [`forget`] the value, which costs its memory: some 80 KiB of address space, of which
/// a few pages are touched, and only when a signal comes.
///
/// # Errors
///
/// Those of [`Mapped::new`], or [`Error::Kernel`] if the kernel refuses the stack.
///
/// # Examples
///
/// ```
/// use sleave_context::overflow;
///
/// overflow::install();
/// std::thread::spawn(|| {
///     let _alternate = overflow::prepare_thread().expect("memory for a signal stack");
///     // … run coroutines …
/// })
/// .join()
/// .unwrap();
/// ```
pub fn prepare_thread() -> Result<AlternateStack, Error> {
    let size = signal_stack_size();
    // SAFETY: only asks.
    let now = unsafe { sys::signal_stack(None) }.map_err(Error::from_kernel)?;
    let enough = now.ss_flags & libc::SS_DISABLE == 0 && now.ss_size >= size;
    // On an alternate stack already: it cannot be exchanged while we stand on it (EPERM).
    if enough || now.ss_flags & libc::SS_ONSTACK != 0 {
        return Ok(AlternateStack { replaced: None, thread: PhantomData });
    }
    let memory = Mapped::new(size + sys::page_size())?;
    let (limit, top) = (memory.limit(), memory.top());
    let new = libc::stack_t {
        ss_sp: limit.as_ptr().cast(),
        ss_flags: 0,
        ss_size: top.addr().get() - limit.addr().get(),
    };
    // SAFETY: the memory is unmapped only when the thread has another signal stack, see `drop`.
    unsafe { sys::signal_stack(Some(&new)) }.map_err(Error::from_kernel)?;
    Ok(AlternateStack { replaced: Some((memory, now)), thread: PhantomData })
}

/// The signal stack of a thread, from [`prepare_thread`]. It cannot be sent to another one.
///
/// ```compile_fail
/// fn is_send<T: Send>() {}
/// is_send::<sleave_context::overflow::AlternateStack>();
/// ```
#[derive(Debug)]
#[must_use = "the thread loses its signal stack when this is dropped"]
pub struct AlternateStack {
    /// Our memory, and what the thread had before; nothing, if that was good enough.
    replaced: Option<(Mapped, libc::stack_t)>,
    thread: PhantomData<*mut ()>,
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        let Some((memory, before)) = self.replaced.take() else { return };
        // SAFETY: only asks.
        let now = unsafe { sys::signal_stack(None) };
        if now.is_ok_and(|now| now.ss_sp != memory.limit().as_ptr().cast()) {
            return; // somebody has set another one since, and ours is unused
        }
        // SAFETY: what the kernel told us was in force before we came.
        if unsafe { sys::signal_stack(Some(&before)) }.is_err() {
            forget(memory); // we stand on it, in a handler
        }
    }
}

/// Says who ran on a stack; see [`describe`].
///
/// It is given the stack, and a line to write to (`fiber 'parser' (number 7)`), and returns how to help, in a few
/// words for a person. If the stack is none of its own, it writes nothing and returns `None`.
///
/// It runs in a signal handler, on little stack, while the overflowing stack is intact and in use: no lock, no
/// allocation, nothing that may fault.
pub type Describe = fn(&Location, &mut Line) -> Option<&'static str>;

/// A layer's way to say who runs on its stacks. A static, as it is asked for ever.
pub struct Describer {
    describe: Describe,
    next: AtomicPtr<Describer>,
}

impl Describer {
    /// A describer, to be handed to [`describe`].
    pub const fn new(describe: Describe) -> Describer {
        Describer { describe, next: AtomicPtr::new(null_mut()) }
    }
}

impl fmt::Debug for Describer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Describer").finish_non_exhaustive()
    }
}

static NEWEST: AtomicPtr<Describer> = AtomicPtr::new(null_mut());

/// The describers, newest first. Async-signal-safe.
fn describers() -> impl Iterator<Item = &'static Describer> {
    let follow = |link: &AtomicPtr<Describer>| {
        // SAFETY: null, or a static. Acquire: pairs with the release in `describe`.
        unsafe { link.load(Ordering::Acquire).as_ref::<'static>() }
    };
    core::iter::successors(follow(&NEWEST), move |describer| follow(&describer.next))
}

/// From now on `describer` is asked, before all earlier ones, who ran on a stack that has overflowed. Once, however
/// often it is called.
///
/// ```
/// use sleave_context::overflow::{self, Describer, Line};
/// use sleave_context::stack::Location;
/// use std::fmt::Write;
///
/// fn task(stack: &Location, who: &mut Line) -> Option<&'static str> {
///     let _ = write!(who, "task {}", stack.index);
///     Some("set TASK_STACK to a larger size")
/// }
/// static TASKS: Describer = Describer::new(task);
/// overflow::describe(&TASKS);
/// ```
pub fn describe(describer: &'static Describer) {
    static ADDING: Lock<()> = Lock::new(());
    let _adding = ADDING.lock();
    if !describers().any(|known| core::ptr::eq(known, describer)) {
        // Relaxed: not yet reachable, and `NEWEST` changes under the lock only.
        describer.next.store(NEWEST.load(Ordering::Relaxed), Ordering::Relaxed);
        // Release: whoever finds the describer sees where it leads on.
        NEWEST.store(core::ptr::from_ref(describer).cast_mut(), Ordering::Release);
    }
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo_t. One that was not sent by somebody (then its code is not positive)
    // holds the address of the fault: sigaction(2).
    let (sent, address) = unsafe { ((*info).si_code <= 0, (*info).si_addr() as usize) };
    if !sent && let Some(location) = locate(address).filter(|location| location.in_guard) {
        report(&location);
        sys::abort();
    }
    let chain = &CHAINS[usize::from(signal == CHAINS[1].signal)];
    // Acquire: pairs with the release in `install`.
    if chain.installed.load(Ordering::Acquire) {
        // SAFETY: installed, hence written, and never written again; the arguments are our own.
        unsafe { pass_on((*chain.before.get()).assume_init_ref(), sent, signal, info, context) };
    }
}

/// Says whose stack has overflowed. On its own, so that a fault which is no overflow needs less stack.
#[inline(never)]
fn report(stack: &Location) {
    let mut line = Line::new();
    // What does not fit is cut off; there is nobody to tell.
    let _ = line.write_str("\n");
    line.limit = WHO_MAX;
    let help = describers()
        .find_map(|describer| (describer.describe)(stack, &mut line))
        .unwrap_or_else(|| describe_by_name(stack, &mut line));
    line.limit = LINE_MAX;
    let kib = stack.size / 1024;
    let _ = write!(line, " has overflowed its stack of {kib} KiB\nhelp: {help}\n");
    sys::complain(line.as_bytes());
}

/// What is said of a stack that no layer above knows.
fn describe_by_name(stack: &Location, who: &mut Line) -> &'static str {
    // SAFETY: the stack has just overflowed, on this thread: it is in use.
    let named = unsafe { name_of(stack.limit(), |name| write!(who, "coroutine '{name}'")) };
    if named.is_none() {
        let _ = who.write_str("coroutine '<unnamed>'");
    }
    "give it a larger stack, or recurse less deeply"
}

/// Lets the handler that was there before decide.
///
/// # Safety
///
/// The arguments are those of a signal handler for `signal`, whose action was `before`.
unsafe fn pass_on(
    before: &libc::sigaction,
    sent: bool,
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    match before.sa_sigaction {
        libc::SIG_IGN if sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // The instruction is tried again when we return, and the default action taken. (The
            // kernel takes it as well for a fault whose signal is ignored.)
            // SAFETY: sigaction(2) with a value that the kernel gave us.
            unsafe { libc::sigaction(signal, before, null_mut()) };
            if sent {
                sys::raise(signal); // nothing is tried again: comes when we return
            }
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with SA_SIGINFO this is a function of three arguments, sigaction(2).
            let handler = unsafe { transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO it is a function of one.
            let handler = unsafe { transmute::<usize, extern "C" fn(c_int)>(handler) };
            handler(signal);
        }
    }
}

/// Bytes of a whole report.
const LINE_MAX: usize = 512;
/// Bytes of it that say who, so that a long name leaves room for the rest.
const WHO_MAX: usize = 200;

/// A line of text that is put together without allocating; what does not fit is cut off.
#[derive(Debug)]
pub struct Line {
    bytes: [u8; LINE_MAX],
    len: usize,
    limit: usize,
}

impl Line {
    fn new() -> Line {
        Line { bytes: [0; LINE_MAX], len: 0, limit: LINE_MAX }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..self.limit];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        if len == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
