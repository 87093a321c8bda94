//! Children: `wait waitpid waitid wait3 wait4 system` (`pclose` is in `stdio`).
//!
//! ```text
//!   ask without waiting ── ended, or an error ─▶ the result
//!     │      ▲
//!     │      └─ readable ◄─ park on a pidfd ◄┐   one child, and its end is all that is asked for
//!     └─ not yet ────────────────────────────┤
//!                                            └─▶ hand off: any child, a group, stops and continuations
//! ```
//!
//! A pidfd is readable when its process has ended: so a fiber waits for one child without a thread. The pidfd is
//! opened *before* the question that answers "not yet", and so names the child that was asked about even if
//! another fiber collects it meanwhile and the number is used again. It is closed before the call returns.
//!
//! A child that is traced (ptrace(2)) reports its stops by these calls, too, and a pidfd does not: a tracer asks for them
//! with `__WALL` or on a thread. It has to anyway, as ptrace belongs to one thread of the kernel's.
//!
//! A signal for the process, `SIGCHLD` among them, ends a call that was handed off if its thread gets it, and no parked one.
//!
//! Sources: wait(2), wait4(2), pidfd_open(2), system(3), popen(3).

use std::ffi::{c_char, c_int};
use std::ptr::null_mut;

use libc::{id_t, idtype_t, pid_t, rusage, siginfo_t};
use sleave_runtime::interpose;
use sleave_runtime::reactor::{self, Direction, Readiness};
use sleave_runtime::wait::Deadline;

use crate::handoff::{hand_off_again, hand_off_whole};
use crate::signal::interruption;
use crate::{errno, kernel, next};

/// A descriptor for a process, closed when it goes; `None` where there can be none.
struct PidFd(c_int);

impl PidFd {
    fn open(pid: pid_t) -> Option<PidFd> {
        let fd = kernel::pidfd_open(pid) as c_int;
        (fd >= 0).then(|| {
            reactor::opened(fd);
            PidFd(fd)
        })
    }
}

impl Drop for PidFd {
    fn drop(&mut self) {
        reactor::close(self.0, || kernel::close(self.0));
    }
}

/// Parks until the process of `fd` has ended; `false` if that cannot be waited for, an error if the caller is interrupted.
fn ends(fd: c_int) -> Result<bool, isize> {
    loop {
        match reactor::wait(fd, Direction::Read, Deadline::NEVER) {
            Readiness::Interrupted => match interruption(true) {
                None => {}
                Some(error) => return Err(error),
            },
            readiness => return Ok(readiness == Readiness::Ready),
        }
    }
}

/// `wait4` in a fiber; answers as the kernel does.
///
/// # Safety
/// As wait4(2).
unsafe fn await_child(pid: pid_t, status: *mut c_int, options: c_int, usage: *mut rusage) -> isize {
    // SAFETY: the caller's arguments.
    let ask = |options| unsafe { kernel::wait4(pid, status, options, usage) };
    let now = ask(options | libc::WNOHANG);
    if now != 0 || options & libc::WNOHANG != 0 {
        return now;
    }
    if pid > 0
        && options == 0
        && let Some(child) = PidFd::open(pid)
    {
        loop {
            let now = ask(libc::WNOHANG);
            if now != 0 {
                return now;
            }
            match ends(child.0) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return error,
            }
        }
    }
    hand_off_again(|| ask(options))
}

/// wait4(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn wait4(
    pid: pid_t,
    status: *mut c_int,
    options: c_int,
    usage: *mut rusage,
) -> pid_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::wait4(pid, status, options, usage);
        }
        errno::finish_int(await_child(pid, status, options, usage))
    }
}

/// wait3(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn wait3(
    status: *mut c_int,
    options: c_int,
    usage: *mut rusage,
) -> pid_t {
    // SAFETY: the caller's arguments: wait3 is wait4 of any child.
    unsafe { wait4(-1, status, options, usage) }
}

/// waitpid(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t {
    // SAFETY: the caller's arguments.
    unsafe {
        if !interpose::active() {
            // The thread's own is a cancellation point, and so not wait4.
            return next::waitpid(pid, status, options);
        }
        errno::finish_int(await_child(pid, status, options, null_mut()))
    }
}

/// wait(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn wait(status: *mut c_int) -> pid_t {
    // SAFETY: the caller's argument: wait is waitpid of any child.
    unsafe { waitpid(-1, status, 0) }
}

/// `waitid` in a fiber; answers as the kernel does.
///
/// # Safety
/// As waitid(2).
unsafe fn await_id(kind: idtype_t, id: id_t, info: *mut siginfo_t, options: c_int) -> isize {
    // Only `info` says whether there was a child.
    // SAFETY: zeroes are a siginfo_t.
    let mut own = unsafe { std::mem::zeroed::<siginfo_t>() };
    let info = if info.is_null() { &raw mut own } else { info };
    // SAFETY: the caller's arguments, or memory of our own.
    let ask = |options| unsafe { kernel::waitid(kind, id, info, options) };
    let now = ask(options | libc::WNOHANG);
    // SAFETY: waitid(2) with WNOHANG has written it, zeroes if there was nothing.
    let none = || unsafe { (*info).si_signo == 0 };
    if now < 0 || options & libc::WNOHANG != 0 || !none() {
        return now;
    }
    if kind == libc::P_PIDFD && kernel::status_flags(id as c_int) & libc::O_NONBLOCK as isize != 0 {
        // The program's own wish, and its EAGAIN.
        return ask(options);
    }
    let only_the_end = options & !libc::WNOWAIT == libc::WEXITED;
    let child = match kind {
        libc::P_PID if only_the_end => PidFd::open(id as pid_t),
        _ => None,
    };
    let fd = match (kind, &child) {
        (_, Some(child)) => Some(child.0),
        (libc::P_PIDFD, None) if only_the_end => Some(id as c_int),
        _ => None,
    };
    if let Some(fd) = fd {
        loop {
            let now = ask(options | libc::WNOHANG);
            if now < 0 || !none() {
                return now;
            }
            match ends(fd) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return error,
            }
        }
    }
    hand_off_again(|| ask(options))
}

/// waitid(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn waitid(
    kind: idtype_t,
    id: id_t,
    info: *mut siginfo_t,
    options: c_int,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::waitid(kind, id, info, options);
        }
        errno::finish_int(await_id(kind, id, info, options))
    }
}

hand_off_whole! {
    /// system(3)
    Waits system(command: *const c_char) -> c_int;
}
