//! Running the program's handlers on the fiber that a signal was sent to.
//!
//! The handler is asked for when the signal is delivered, as the kernel does, and is called as the kernel would call it:
//! with the signals of its `sa_mask` and its own blocked, with a `siginfo_t` that says who sent it, and on the fiber's
//! own stack (there is no alternate one). It may park; `errno` is put back when it returns. What has no handler
//! is ignored, or done to the process.
//!
//! ```text
//!   a wait has ended   ─▶ runtime: attend ─▶ deliver ─▶ handler, on the fiber's stack, an ordinary call
//!   the fiber computes ─▶ KICK's handler ──▶ deliver ─▶ handler, on top of what it interrupted
//! ```
//!
//! Sources: sigaction(2), signal(7), tgkill(2) on `SI_TKILL`.

use std::ffi::{c_int, c_void};
use std::mem::{MaybeUninit, zeroed};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU8, Ordering};

use libc::{sigaction, siginfo_t, ucontext_t};
use sleave_runtime::signal::{self, KICK, bit};

use crate::{cancel, errno, kernel};

/// Prepares the process for signals between fibers, the first time that one is sent. Async-signal-safe.
pub(crate) fn use_fibers_signals() {
    static READY: AtomicU8 = AtomicU8::new(0);
    // Relaxed: whoever comes here twice does the same again.
    if READY.load(Ordering::Relaxed) != 0 {
        return;
    }
    // SAFETY: sigaction(2): zeroes are an action; the handler is a function of the type that SA_SIGINFO asks for. A program that
    // has a use of its own for the signal keeps it: then fibers hear of theirs when they wait.
    let kicks = unsafe {
        let mut action = zeroed::<sigaction>();
        libc::sigaction(KICK, null(), &mut action);
        let free = action.sa_sigaction == libc::SIG_DFL;
        if free {
            action.sa_sigaction = kicked as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
        }
        free && libc::sigaction(KICK, &action, null_mut()) == 0
    };
    signal::on_delivery(deliver, kicks);
    READY.store(1, Ordering::Relaxed);
}

/// The handler of [`KICK`], which is blocked but while a handler of the program's runs: kicks in a storm must not pile up, and one
/// that parks must not leave it blocked on the thread.
unsafe extern "C-unwind" fn kicked(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    if !signal::kicked() {
        return;
    }
    let errno = errno::get();
    deliver_all(true);
    if cancel::is_due() {
        if cancel::is_due_anywhere() {
            signal::set_mask_in_kick(signal::mask().unwrap_or(0), false);
            cancel::act();
        }
        // It may be on its way into a wait, and have looked before it was cancelled.
        signal::remind();
    }
    errno::set(errno);
}

/// Delivers all that the calling fiber has been sent and lets in.
fn deliver() {
    deliver_all(false);
}

/// As [`deliver`]; `kicked`: in the kick's handler.
fn deliver_all(kicked: bool) {
    while let Some((signal, value)) = signal::mask().and_then(|mask| signal::take(!mask)) {
        let errno = errno::get();
        one(signal, value, kicked);
        errno::set(errno);
    }
}

fn one(number: c_int, value: Option<usize>, kicked: bool) {
    // SAFETY: sigaction(2) writes an action.
    let action = unsafe {
        let mut action = zeroed::<sigaction>();
        libc::sigaction(number, null(), &mut action);
        action
    };
    match action.sa_sigaction {
        libc::SIG_IGN => {}
        libc::SIG_DFL => default(number),
        _ => handle(number, value, &action, kicked),
    }
}

/// What the kernel does about a signal that has no handler: to the process, or nothing.
fn default(number: c_int) {
    let ignored = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
    if !ignored.contains(&number) {
        // This thread blocks what its fiber does, so it lets this one in.
        kernel::raise(number);
    }
}

fn handle(number: c_int, value: Option<usize>, action: &sigaction, kicked: bool) {
    let before = signal::mask().unwrap_or(0);
    // SAFETY: the kernel's part of a sigset_t are its first eight bytes.
    let also = unsafe { *(&raw const action.sa_mask).cast::<u64>() };
    let own = if action.sa_flags & libc::SA_NODEFER == 0 { bit(number) } else { 0 };
    if action.sa_flags & libc::SA_RESETHAND != 0 {
        // SAFETY: signal(2).
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let mask = |mask, hold| match kicked {
        true => signal::set_mask_in_kick(mask, hold),
        false => signal::set_mask(mask),
    };
    mask(before | also | own, false);
    signal::aside(|| {
        // SAFETY: sigaction(2): a function of one of two types, by the flag. Zeroes are a siginfo_t; the context is
        // that of this call.
        unsafe {
            if action.sa_flags & libc::SA_SIGINFO == 0 {
                let handler: extern "C-unwind" fn(c_int) = std::mem::transmute(action.sa_sigaction);
                handler(number);
            } else {
                let handler: extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void) =
                    std::mem::transmute(action.sa_sigaction);
                let mut info = sent_by_this_process(number, value);
                let mut context = MaybeUninit::<ucontext_t>::zeroed();
                libc::getcontext(context.as_mut_ptr());
                handler(number, &mut info, context.as_mut_ptr().cast());
            }
        }
    });
    mask(before, true);
    signal::handled(action.sa_flags & libc::SA_RESTART != 0);
}

/// `SI_TKILL` of siginfo.h.
pub(super) const TKILL: c_int = -6;

/// What tgkill(2) says of a signal, or sigqueue(3) of one with a value. `si_pid`, `si_uid` and `si_value` come after three ints, on
/// 64-bit machines after four.
pub(super) fn sent_by_this_process(number: c_int, value: Option<usize>) -> siginfo_t {
    // SAFETY: zeroes are a siginfo_t, whose bytes up to the 32nd are plain numbers; getpid(2), getuid(2).
    unsafe {
        let mut info = zeroed::<siginfo_t>();
        info.si_signo = number;
        info.si_code = if value.is_some() { libc::SI_QUEUE } else { TKILL };
        let fields = (&raw mut info).cast::<c_int>();
        fields.add(4).write(libc::getpid());
        fields.add(5).cast::<libc::uid_t>().write(libc::getuid());
        fields.add(6).cast::<usize>().write(value.unwrap_or(0));
        info
    }
}
