//! setuid(2) and its kin, called while fibers exist.
//!
//! The kernel changes the ids of one OS thread; POSIX means the process. So glibc sends every thread of
//! its lists signal 33 and waits until each has answered in its own `struct pthread`
//! (nptl(7), "NPTL and signals"). A worker that is signalled while it runs a fiber would answer in the
//! fiber's, and glibc would wait for ever. The handler is therefore wrapped: it runs with the
//! worker's own identity.

use std::ffi::{c_int, c_ulong, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use syscalls::{Sysno, syscall};

use crate::fiber::{current, space};
use crate::identity::thread_pointer;

/// glibc's `SIGSETXID`, the second of the signals below `SIGRTMIN` that it keeps for itself.
const SIGSETXID: c_int = 33;

/// The kernel's `struct sigaction`: libc's function refuses this signal.
#[repr(C)]
struct Action {
    handler: usize,
    flags: c_ulong,
    restorer: usize,
    mask: u64,
}

type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// glibc's handler; 0 before it is wrapped.
static GLIBCS: AtomicUsize = AtomicUsize::new(0);

/// Wraps glibc's handler, which is there since the first thread was made. Called when a runtime is made,
/// under no lock: to wrap twice comes to the same.
pub(crate) fn wrap() {
    let mut action = MaybeUninit::<Action>::zeroed();
    // SAFETY: rt_sigaction(2) fills and reads a structure of the kernel's layout, mask of 8 bytes.
    unsafe {
        let read = syscall!(Sysno::rt_sigaction, SIGSETXID, 0usize, action.as_mut_ptr(), 8usize);
        let mut action = action.assume_init();
        let ours = handle as Handler as usize;
        if read.is_err() || action.handler <= libc::SIG_IGN || action.handler == ours {
            return;
        }
        // Release: the handler is there before ours can be called.
        GLIBCS.store(action.handler, Ordering::Release);
        action.handler = ours;
        // While two identities are at work no other handler shall be.
        action.mask = u64::MAX;
        let _ = syscall!(Sysno::rt_sigaction, SIGSETXID, &raw const action, 0usize, 8usize);
    }
}

unsafe extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // Acquire pairs with the Release in `wrap`.
    let glibcs = GLIBCS.load(Ordering::Acquire);
    // SAFETY: stored before this handler was installed: glibc's own, with SA_SIGINFO.
    let glibcs = unsafe { std::mem::transmute::<usize, Handler>(glibcs) };
    let fiber = thread_pointer();
    // SAFETY: the fiber in force, whose worker this thread is. (Between the change of identity and that of
    // stack it is the next one already, of the same worker.)
    let worker = current().and_then(|control| unsafe { control.as_ref() }.runner());
    let Some((worker, Ok(space))) = worker.map(|worker| (worker, space())) else {
        // SAFETY: a thread with its own identity in force: as the kernel called us.
        return unsafe { glibcs(signal, info, context) };
    };
    // SAFETY: the worker's own identity is in force nowhere else, and the fiber's again before anything of
    // it runs. All signals are blocked meanwhile.
    unsafe {
        space.kit.enter(worker.thread_pointer.get());
        glibcs(signal, info, context);
        space.kit.enter(fiber);
    }
}
