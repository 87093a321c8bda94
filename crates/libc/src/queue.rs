//! Queues and semaphores between processes: POSIX's `mq_receive mq_timedreceive mq_send mq_timedsend`, System V's
//! `msgrcv msgsnd semop semtimedop`.
//!
//! A POSIX queue is a descriptor that epoll watches. Whether a call would wait is found out without waiting by giving
//! it a time that is over long since: what would wait is told `ETIMEDOUT`.
//!
//! ```text
//!   call with the time 0 ── done, or another error ─▶ the result
//!          └─ ETIMEDOUT: park until the queue may be ready, or the program's own time is over; try again
//! ```
//!
//! System V's have no readiness: a try with `IPC_NOWAIT`, then the call that waits is handed off.
//!
//! Sources: mq_receive(3), mq_send(3), msgop(2), semop(2).

use std::ffi::{c_char, c_int, c_long, c_uint, c_void};
use std::ptr::null;

use libc::{mqd_t, sembuf, size_t, ssize_t, timespec};
use sleave_runtime::interpose;
use sleave_runtime::reactor::Direction;

use crate::handoff::{Interrupted, hand_off_again};
use crate::table::Descriptor;
use crate::wait::{Next, Wait};
use crate::{errno, next, time};

/// Makes `call` again and again, each time with a time that is over, until it does not say that it would wait; in between the
/// fiber waits for `queue`, until `at` at most. Answers as the C library does.
///
/// # Safety
/// `at` is null or readable.
unsafe fn transfer(
    queue: mqd_t,
    direction: Direction,
    at: *const timespec,
    call: impl Fn(*const timespec) -> ssize_t,
) -> ssize_t {
    const CLOCK: libc::clockid_t = libc::CLOCK_REALTIME;
    const OVER: timespec = timespec { tv_sec: 0, tv_nsec: 0 };
    if !interpose::active() {
        return call(at);
    }
    // SAFETY: by contract.
    let until = match unsafe { at.as_ref() } {
        None => None,
        Some(at) => match time::nanoseconds(at) {
            Some(at) => Some(at),
            // Refused, whether it would wait or not.
            None => return call(at),
        },
    };
    let before = errno::get();
    let mut wait = Wait::new(Descriptor::of(queue), direction);
    loop {
        sleave_runtime::reactor::attempt(queue, direction);
        let result = call(&OVER);
        if result >= 0 || errno::get() != libc::ETIMEDOUT {
            sleave_runtime::reactor::leave(queue, direction, true);
            return result;
        }
        if until.is_some_and(|at| time::passed(CLOCK, at)) {
            return result;
        }
        errno::set(before);
        if let Some(at) = until {
            wait.until(time::deadline_on(CLOCK, at));
        }
        match wait.park() {
            Next::Retry => {}
            // The time may be over, or the time of day has been set back.
            Next::Fail(errno::AGAIN) if until.is_some() => {}
            Next::Fail(error) => return errno::finish(error),
            Next::Block => return hand_off_again(|| call(at)),
        }
    }
}

/// mq_timedreceive(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mq_timedreceive(
    queue: mqd_t,
    message: *mut c_char,
    len: size_t,
    priority: *mut c_uint,
    at: *const timespec,
) -> ssize_t {
    // SAFETY: the caller's arguments for the same function, at another time.
    unsafe {
        transfer(queue, Direction::Read, at, |at| {
            next::mq_timedreceive(queue, message, len, priority, at)
        })
    }
}

/// mq_receive(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mq_receive(
    queue: mqd_t,
    message: *mut c_char,
    len: size_t,
    priority: *mut c_uint,
) -> ssize_t {
    // SAFETY: the caller's arguments; without a time it is the same.
    unsafe { mq_timedreceive(queue, message, len, priority, null()) }
}

/// mq_timedsend(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mq_timedsend(
    queue: mqd_t,
    message: *const c_char,
    len: size_t,
    priority: c_uint,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's arguments for the same function, at another time.
    let sent = unsafe {
        transfer(queue, Direction::Write, at, |at| {
            next::mq_timedsend(queue, message, len, priority, at) as ssize_t
        })
    };
    sent as c_int
}

/// mq_send(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mq_send(
    queue: mqd_t,
    message: *const c_char,
    len: size_t,
    priority: c_uint,
) -> c_int {
    // SAFETY: the caller's arguments; without a time it is the same.
    unsafe { mq_timedsend(queue, message, len, priority, null()) }
}

/// Makes the call that does not wait; if that says `wait`, the one that does.
fn take<T: Copy + Interrupted + Into<i64>>(
    wait: c_int,
    try_call: impl FnOnce() -> T,
    call: impl Fn() -> T,
) -> T {
    let before = errno::get();
    let result = try_call();
    if result.into() == -1 && errno::get() == wait {
        errno::set(before);
        return hand_off_again(call);
    }
    result
}

/// msgrcv(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn msgrcv(
    queue: c_int,
    message: *mut c_void,
    len: size_t,
    kind: c_long,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's arguments for the same function.
    let call = |flags| unsafe { next::msgrcv(queue, message, len, kind, flags) } as i64;
    if !interpose::active() || flags & libc::IPC_NOWAIT != 0 {
        return call(flags) as ssize_t;
    }
    take(libc::ENOMSG, || call(flags | libc::IPC_NOWAIT), || call(flags)) as ssize_t
}

/// msgsnd(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn msgsnd(
    queue: c_int,
    message: *const c_void,
    len: size_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let call = |flags| unsafe { next::msgsnd(queue, message, len, flags) };
    if !interpose::active() || flags & libc::IPC_NOWAIT != 0 {
        return call(flags);
    }
    take(libc::EAGAIN, || call(flags | libc::IPC_NOWAIT), || call(flags))
}

/// The work of `semop` and `semtimedop`: `call` makes the call with any operations.
///
/// # Safety
/// semop(2): so many operations are readable.
unsafe fn operate(
    operations: *mut sembuf,
    count: size_t,
    call: impl Fn(*mut sembuf) -> c_int,
) -> c_int {
    /// What is copied for a try; more than almost anybody does at once.
    const FEW: usize = 8;
    if !interpose::active() {
        return call(operations);
    }
    if count == 0 || count > FEW || operations.is_null() {
        return hand_off_again(|| call(operations));
    }
    let mut tries = [sembuf { sem_num: 0, sem_op: 0, sem_flg: 0 }; FEW];
    // SAFETY: by contract.
    tries[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(operations, count) });
    tries.iter_mut().for_each(|operation| operation.sem_flg |= libc::IPC_NOWAIT as i16);
    take(libc::EAGAIN, || call(tries.as_mut_ptr()), || call(operations))
}

/// semop(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn semop(set: c_int, operations: *mut sembuf, count: size_t) -> c_int {
    // SAFETY: the caller's arguments for the same function, or with a copy of the operations.
    unsafe { operate(operations, count, |operations| next::semop(set, operations, count)) }
}

/// semtimedop(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn semtimedop(
    set: c_int,
    operations: *mut sembuf,
    count: size_t,
    timeout: *const timespec,
) -> c_int {
    // SAFETY: the caller's arguments for the same function, or with a copy of the operations.
    unsafe {
        operate(operations, count, |operations| next::semtimedop(set, operations, count, timeout))
    }
}
