//! Ctrl-C: one stops the server cleanly, two end it at once.
//!
//! A signal handler interrupts whatever runs, on a fiber too, between any two instructions: of the switch, of malloc,
//! of a lock. So this one does next to nothing and asks for nothing that could be half done: one atomic
//! increment and one system call, made directly rather than through a function of libc (in a program of
//! fibers `shutdown` is a function that may park). It touches no thread-local, not even `errno`.
//!
//! The call is `shutdown` on the listening socket, which makes the accept that waits on it fail, on a thread and on a
//! fiber alike. The accept loop then asks [`stopping`] and does all the rest.
//!
//! Sources: signal-safety(7), sigaction(2), shutdown(2).

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use syscalls::{Sysno, syscall};

/// The listening socket, open until the process ends once it stands here.
static LISTENER: AtomicI32 = AtomicI32::new(-1);
/// Signals so far.
static SIGNALS: AtomicU32 = AtomicU32::new(0);
/// What a shell reports for a program that SIGINT ended.
pub const INTERRUPTED: u8 = 128 + libc::SIGINT as u8;

/// Lets SIGINT and SIGTERM stop the accepting on `listener`, which stays open for good.
pub fn stop_on_signal(listener: &'static TcpListener) -> io::Result<()> {
    // Release: a handler that sees the number sees an open socket; it pairs with the handler's load.
    LISTENER.store(listener.as_raw_fd(), Ordering::Release);
    // SAFETY: sigaction is a C struct for which all bytes zero is a value: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
    // Calls that the kernel can restart go on as if nothing had happened.
    action.sa_flags = libc::SA_RESTART;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: sigaction(2) reads the action; the handler is async-signal-safe, see above.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether a signal has asked to stop.
pub fn stopping() -> bool {
    // Acquire: pairs with the handler's increment, which precedes its shutdown of the socket.
    SIGNALS.load(Ordering::Acquire) > 0
}

extern "C" fn on_signal(_: libc::c_int) {
    // AcqRel: the increment is seen before the effect of the shutdown, and exactly one handler gets the zero.
    let earlier = SIGNALS.fetch_add(1, Ordering::AcqRel);
    let listener = LISTENER.load(Ordering::Acquire);
    // SAFETY: shutdown(2) and exit_group(2) read no memory of ours; the first acts on a socket that stays
    // open, the second does not return. Failure leaves nothing to do: a second signal ends the process.
    unsafe {
        if earlier == 0 {
            let _ = syscall!(Sysno::shutdown, listener, libc::SHUT_RDWR);
        } else {
            let _ = syscall!(Sysno::exit_group, usize::from(INTERRUPTED));
        }
    }
}
