//! What is asked of a thread that exists: its stack, its name, its priority; and its alternate signal stack.
//!
//! glibc answers from the kernel, which does not know a fiber: it looks for a thread with the fiber's number. So
//! stack and name come from the runtime.
//!
//! The alternate signal stack is the worker's, and stays so: a handler runs on whatever fiber is running. A fiber that
//! sets one is believed, and nothing happens: else the next fiber's handler would run on memory that this one has freed.
//!
//! Sources: pthread_getattr_np(3), pthread_setname_np(3), sigaltstack(2).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null;

use libc::{pthread_attr_t, pthread_t, sched_param, size_t, stack_t};
use sleave_runtime::green::{self, Found, Life, NAME};
use sleave_runtime::identity;

use crate::{errno, next};

unsafe extern "C" {
    static program_invocation_short_name: *const c_char;
}

fn is_caller(thread: pthread_t) -> bool {
    thread as usize == identity::thread_pointer()
}

/// pthread_getattr_np(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_getattr_np(
    thread: pthread_t,
    attr: *mut pthread_attr_t,
) -> c_int {
    let ((base, size), guard, detached) = match green::find(thread as usize) {
        Found::Green(green) => (green.stack(), green.guard(), green.is_detached()),
        Found::Fiber if is_caller(thread) => match green::stack_of_caller() {
            Some(stack) => (stack, 0, true),
            None => return libc::ESRCH,
        },
        Found::Fiber => return libc::ESRCH,
        // SAFETY: the caller's arguments for the same function.
        Found::Foreign => return unsafe { next::pthread_getattr_np(thread, attr) },
    };
    let detach =
        if detached { libc::PTHREAD_CREATE_DETACHED } else { libc::PTHREAD_CREATE_JOINABLE };
    // SAFETY: pthread_attr_init(3) and its kin, on the caller's attributes.
    unsafe {
        let mut failed = libc::pthread_attr_init(attr);
        for step in 0..3 {
            if failed != 0 {
                return failed;
            }
            failed = match step {
                0 => libc::pthread_attr_setstack(attr, base as *mut c_void, size),
                1 => libc::pthread_attr_setguardsize(attr, guard),
                _ => libc::pthread_attr_setdetachstate(attr, detach),
            };
        }
        failed
    }
}

/// pthread_setname_np(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_setname_np(
    thread: pthread_t,
    name: *const c_char,
) -> c_int {
    let green = match green::find(thread as usize) {
        Found::Green(green) => green,
        // It has the name that it was spawned with.
        Found::Fiber if is_caller(thread) => return libc::ENOTSUP,
        Found::Fiber => return libc::ESRCH,
        // SAFETY: the caller's arguments for the same function.
        Found::Foreign => return unsafe { next::pthread_setname_np(thread, name) },
    };
    // SAFETY: the caller's terminated string.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    let mut own = [0; NAME];
    if name.len() >= own.len() {
        return libc::ERANGE;
    }
    own[..name.len()].copy_from_slice(name);
    green.set_name(own);
    0
}

/// pthread_getname_np(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_getname_np(
    thread: pthread_t,
    name: *mut c_char,
    len: size_t,
) -> c_int {
    let fibers = match green::find(thread as usize) {
        Found::Green(green) => green.name(),
        Found::Fiber if is_caller(thread) => {
            let fiber = sleave_runtime::current();
            short(fiber.as_ref().and_then(|fiber| fiber.name()).unwrap_or("").as_bytes())
        }
        Found::Fiber => return libc::ESRCH,
        // SAFETY: the caller's arguments for the same function.
        Found::Foreign => return unsafe { next::pthread_getname_np(thread, name, len) },
    };
    if len < NAME {
        return libc::ERANGE;
    }
    let answer = match fibers[0] {
        // Nobody has named it or its creator: it has the program's name, as a thread has.
        // SAFETY: a terminated string that glibc sets before `main`.
        0 => short(unsafe { CStr::from_ptr(program_invocation_short_name) }.to_bytes()),
        _ => fibers,
    };
    // SAFETY: the caller's buffer has room for so many.
    unsafe { name.cast::<u8>().copy_from_nonoverlapping(answer.as_ptr(), NAME) };
    0
}

/// As much of a name as the kernel keeps.
fn short(name: &[u8]) -> [u8; NAME] {
    let mut kept = [0; NAME];
    let len = name.len().min(NAME - 1);
    kept[..len].copy_from_slice(&name[..len]);
    kept
}

/// What a fiber is scheduled by, to those who ask: the usual policy, which knows no priorities.
const USUAL: c_int = libc::SCHED_OTHER;

/// pthread_getschedparam(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_getschedparam(
    thread: pthread_t,
    policy: *mut c_int,
    parameters: *mut sched_param,
) -> c_int {
    match green::life(thread as usize) {
        // SAFETY: the caller's arguments for the same function.
        Life::Foreign => unsafe { next::pthread_getschedparam(thread, policy, parameters) },
        Life::Nobody if !is_caller(thread) => libc::ESRCH,
        _ => {
            // SAFETY: the caller's places.
            unsafe {
                policy.write(USUAL);
                (*parameters).sched_priority = 0;
            }
            0
        }
    }
}

/// pthread_setschedparam(3): a fiber stays what it is. A policy that only the kernel can follow is `ENOTSUP`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_setschedparam(
    thread: pthread_t,
    policy: c_int,
    parameters: *const sched_param,
) -> c_int {
    match green::life(thread as usize) {
        // SAFETY: the caller's arguments for the same function.
        Life::Foreign => unsafe { next::pthread_setschedparam(thread, policy, parameters) },
        Life::Nobody if !is_caller(thread) => libc::ESRCH,
        // SAFETY: the caller's parameters.
        _ => match (policy, unsafe { (*parameters).sched_priority }) {
            (USUAL, 0) => 0,
            (libc::SCHED_FIFO | libc::SCHED_RR | libc::SCHED_BATCH | libc::SCHED_IDLE, _) => {
                libc::ENOTSUP
            }
            _ => libc::EINVAL,
        },
    }
}

/// sigaltstack(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sigaltstack(new: *const stack_t, old: *mut stack_t) -> c_int {
    if !green::is_fiber() {
        // SAFETY: the caller's arguments for the same function.
        return unsafe { next::sigaltstack(new, old) };
    }
    // SAFETY: the caller's stack, if there is one.
    if let Some(new) = unsafe { new.as_ref() } {
        /// `SS_AUTODISARM` of linux/signal.h.
        const AUTODISARM: c_int = 1 << 31;
        let mode = new.ss_flags & !AUTODISARM;
        if ![0, libc::SS_ONSTACK, libc::SS_DISABLE].contains(&mode) {
            errno::set(libc::EINVAL);
            return -1;
        }
        if mode != libc::SS_DISABLE && new.ss_size < libc::MINSIGSTKSZ {
            errno::set(libc::ENOMEM);
            return -1;
        }
    }
    // SAFETY: the caller's place for the one that is in force, the worker's.
    unsafe { next::sigaltstack(null(), old) }
}
