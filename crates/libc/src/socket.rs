//! Sockets: `accept accept4 connect shutdown setsockopt getsockopt`.
//!
//! **Accepting.** There is no accept that does not wait short of `O_NONBLOCK`, and that flag is
//! everybody's who has the listener. So a fiber looks (poll without a timeout) and then accepts,
//! under a lock of the descriptor: two fibers never see one connection and both go for it. The
//! lock is held for two system calls. Only somebody outside, a thread or another process on the
//! same listener, can snatch the connection in between; then the accept blocks its worker until
//! the next one comes, and fibers that wait for the lock meanwhile sleep between their looks.
//!
//! **Connecting.** TCP sockets that this process made and nobody shares lend their `O_NONBLOCK`
//! for the one call that starts the connection; `F_GETFL` hides it. When the socket becomes
//! writable, `connect` is called *again*: that fetches the result in the kernel's own way,
//! including the state in which a failed socket may try once more (fetching `SO_ERROR` would not).
//! Every other connect is the plain call: it either never waits (datagrams) or has no readiness to
//! wait for (a Unix listener's full backlog), or the flag is not ours to borrow.
//!
//! **Giving up.** The socket's own timeout ends the waiting and nothing else. The calling fiber's limit
//! for connects ends the attempt, as the kernel ends one by itself: `ETIMEDOUT`, and a socket that may
//! try anew. That is what connecting to no address (`AF_UNSPEC`) does. A fiber that found the attempt
//! under way does not end it: it belongs to whoever began it.
//!
//! **Options.** Both timeouts are remembered to the microsecond, where the kernel rounds to its
//! clock tick; a timeout that has passed is `EAGAIN`, from connect `EINPROGRESS`.
//!
//! Sources: accept(2), connect(2), socket(7), tcp(7), unix(7); `__inet_stream_connect`,
//! `tcp_disconnect`, `sock_set_timeout` of Linux.

use std::ffi::{c_int, c_void};

use libc::{sockaddr, socklen_t};
use sleave_runtime::reactor::{self, Direction};
use sleave_runtime::wait::{Deadline, connect_deadline, sleep_until};
use sleave_runtime::{interpose, scheduler};

use crate::table::{self, Descriptor, Entry, Kind, NEVER, Side, State};
use crate::wait::{self, Next, Wait};
use crate::{errno, kernel, next};

/// `SO_RCVTIMEO_NEW` and `SO_SNDTIMEO_NEW` of `asm-generic/socket.h`. On 64-bit Linux they take
/// the same `timeval` as the old numbers.
const RECEIVE_TIMEOUT_NEW: c_int = 66;
const SEND_TIMEOUT_NEW: c_int = 67;

/// `fd` was accepted on `listener` with `flags` of accept4(2).
fn accepted(listener: c_int, fd: c_int, flags: c_int) {
    let from = Descriptor::of(listener);
    // A TCP socket is a copy of its listener, timeouts and low-water mark included; others start
    // fresh. If the listener ever had a timeout, the kernel is asked when it matters.
    let copied = from.kind() == Kind::Tcp;
    let untimed = !copied || !from.state.is_shared() && !from.state.has(State::TIMED);
    let facts = if copied && from.state.has(State::LOW_WATER) { State::LOW_WATER } else { 0 };
    table::created(fd, from.kind(), flags & libc::SOCK_NONBLOCK != 0, facts, untimed);
    reactor::opened(fd);
}

/// The accept lock of one fiber, given back on drop.
struct Accepting {
    entry: Option<&'static Entry>,
    seen: State,
}

impl Accepting {
    fn lock(d: &Descriptor) -> Accepting {
        let entry = d.entry();
        let mut tries = 0;
        while entry.is_some_and(|entry| !entry.lock_accept()) {
            // The holder is between two system calls: let it go on. Should it be stuck in the
            // second (see above), do not spin for as long as that takes.
            tries += 1;
            if tries < 64 {
                scheduler::sched_yield();
            } else {
                sleep_until(Deadline::after(1_000_000));
            }
        }
        Accepting { entry, seen: d.state }
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            entry.unlock_accept(self.seen);
        }
    }
}

/// Looks whether `d`, a socket on which nothing is ready, listens; remembers it if so.
fn listens(d: &mut Descriptor) -> bool {
    if !d.state.has(State::LISTENS) && kernel::socket_int(d.fd, libc::SO_ACCEPTCONN) == Some(1) {
        d.note(State::LISTENS, 0);
    }
    d.state.has(State::LISTENS)
}

/// `accept4` in a fiber; answers as the kernel does.
///
/// # Safety
/// As accept4(2).
unsafe fn accept_one(
    mut d: Descriptor,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
    flags: c_int,
) -> isize {
    // SAFETY: the caller's arguments, unchanged.
    let plain = move || unsafe { kernel::accept4(d.fd, name, name_len, flags) };
    // The kernel refuses a flag that it does not know before it looks for a connection.
    let known_flags = flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) == 0;
    if !d.kind().is_socket() || d.known_nonblocking() || !known_flags {
        return plain();
    }
    let fd = d.fd;
    let mut wait = Wait::new(d, Direction::Read);
    // A look that would be wasted is skipped once it is known that the socket listens: on another
    // one accept fails, however little there is to read.
    let mut parked = match d.state.has(State::LISTENS) {
        true => wait::skip_wasted_look(&mut wait),
        false => Next::Retry,
    };
    loop {
        match parked {
            Next::Retry => {}
            Next::Fail(error) => return error,
            // SAFETY: the caller's arguments, unchanged.
            Next::Block => return unsafe { kernel::accept4(fd, name, name_len, flags) },
        }
        let lock = Accepting::lock(&d);
        reactor::attempt(fd, Direction::Read);
        // What never listens never becomes ready either: the kernel says what is wrong with it.
        if kernel::ready(fd, libc::POLLIN) != 0 || !listens(&mut d) {
            // SAFETY: the caller's arguments, unchanged.
            let result = unsafe { kernel::accept4(fd, name, name_len, flags) };
            drop(lock);
            // One connection was there, so there may be another: the next fiber looks.
            reactor::leave(fd, Direction::Read, true);
            return result;
        }
        drop(lock);
        parked = wait.park();
    }
}

/// accept4(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept4(
    fd: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    let new = unsafe {
        if interpose::active() {
            errno::finish_int(accept_one(Descriptor::of(fd), name, name_len, flags))
        } else {
            next::accept4(fd, name, name_len, flags)
        }
    };
    if new >= 0 {
        accepted(fd, new, flags);
    }
    new
}

/// accept(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept(
    fd: c_int,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
) -> c_int {
    // SAFETY: accept(2) is accept4(2) without flags; the caller's arguments.
    unsafe { accept4(fd, name, name_len, 0) }
}

/// The connection is being made.
const IN_PROGRESS: isize = errno::error(libc::EINPROGRESS);

/// Starts a connection without waiting for it, with the socket's own `O_NONBLOCK` borrowed.
unsafe fn start(d: &mut Descriptor, name: *const sockaddr, len: socklen_t) -> isize {
    d.note(State::BORROWED, 0);
    kernel::set_nonblocking(d.fd, true);
    // SAFETY: the caller's address.
    let result = unsafe { kernel::connect(d.fd, name, len) };
    // What the program wants by now: another thread may have said so meanwhile.
    let wanted = d.entry().is_some_and(|entry| entry.state().has(State::NONBLOCKING));
    kernel::set_nonblocking(d.fd, wanted);
    d.note(0, State::BORROWED);
    result
}

/// Ends the attempt to connect that `d` has under way; a connection that has just been made, too.
fn end_attempt(d: &Descriptor) {
    let nowhere = sockaddr { sa_family: libc::AF_UNSPEC as _, sa_data: [0; 14] };
    // SAFETY: an address of our own, alive for the call. connect(2): it cannot fail on a TCP socket, but
    // with EBADF, and does not wait.
    unsafe { kernel::connect(d.fd, &nowhere, size_of::<sockaddr>() as socklen_t) };
    // It leaves ECONNRESET for the next call; after its own ETIMEDOUT the kernel leaves nothing.
    kernel::socket_int(d.fd, libc::SO_ERROR);
}

/// `connect` in a fiber; answers as the kernel does.
///
/// # Safety
/// As connect(2).
unsafe fn connect_one(mut d: Descriptor, name: *const sockaddr, len: socklen_t) -> isize {
    let fd = d.fd;
    // SAFETY: the caller's address.
    let plain = move || unsafe { kernel::connect(fd, name, len) };
    let ours = d.kind() == Kind::Tcp && d.state.has(State::OWN) && !d.state.is_shared();
    if !ours || d.known_nonblocking() {
        return plain();
    }
    let mut wait = Wait::new(d, Direction::Write);
    reactor::attempt(fd, Direction::Write);
    // SAFETY: the caller's address.
    let started = unsafe { start(&mut d, name, len) };
    let under_way = [IN_PROGRESS, errno::error(libc::EALREADY)];
    if !under_way.contains(&started) {
        reactor::leave(fd, Direction::Write, true);
        return started;
    }
    // EALREADY: another fiber has begun it; a second blocking connect waits for the same end.
    let mut began = started == IN_PROGRESS;
    let limited = d.timeout(Side::Send) == NEVER;
    if limited {
        wait.until(connect_deadline());
    }
    loop {
        let over = match wait.park() {
            Next::Retry => false,
            Next::Fail(errno::AGAIN) if limited => true,
            // The connection goes on in the background.
            Next::Fail(errno::AGAIN) => return started,
            Next::Fail(error) => return error,
            Next::Block => return plain(),
        };
        // Closed since the time was over: what the number names now is none of ours.
        if over && !d.is_current() {
            return errno::error(libc::EBADF);
        }
        reactor::attempt(fd, Direction::Write);
        let events = kernel::ready(fd, libc::POLLOUT);
        if events != 0 {
            // One that has failed may begin anew, if another fiber has fetched the error.
            let result = match events & libc::POLLHUP {
                0 => plain(),
                // SAFETY: the caller's address.
                _ => unsafe { start(&mut d, name, len) },
            };
            if !under_way.contains(&result) {
                reactor::leave(fd, Direction::Write, true);
                return result;
            }
            began = result == IN_PROGRESS;
        }
        if over {
            if began {
                end_attempt(&d);
            }
            return errno::error(libc::ETIMEDOUT);
        }
    }
}

/// connect(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::connect(fd, name, len);
        }
        errno::finish_int(connect_one(Descriptor::of(fd), name, len))
    }
}

/// `connect`, as old programs call it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __connect(
    fd: c_int,
    name: *const sockaddr,
    len: socklen_t,
) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { connect(fd, name, len) }
}

/// shutdown(2): the kernel wakes who waits, by an event like any other.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn shutdown(fd: c_int, how: c_int) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { next::shutdown(fd, how) }
}

/// Remembers what setsockopt(2) has just accepted.
unsafe fn option_set(fd: c_int, level: c_int, option: c_int, value: *const c_void) {
    let Some(entry) = table::existing(fd) else { return };
    let state = entry.state();
    match (level, option) {
        (libc::SOL_SOCKET, libc::SO_RCVTIMEO | RECEIVE_TIMEOUT_NEW)
        | (libc::SOL_SOCKET, libc::SO_SNDTIMEO | SEND_TIMEOUT_NEW) => {
            // SAFETY: socket(7): the kernel has read a timeval there.
            let time = unsafe { value.cast::<libc::timeval>().read_unaligned() };
            let receive = matches!(option, libc::SO_RCVTIMEO | RECEIVE_TIMEOUT_NEW);
            let side = if receive { Side::Receive } else { Side::Send };
            let microseconds = table::microseconds(time);
            entry.set_timeout(state, side, microseconds);
            if microseconds != NEVER {
                entry.note(state, State::TIMED, 0);
            }
        }
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => {
            entry.note(state, State::LOW_WATER, 0);
        }
        // Records instead of bytes: a short read proves nothing any more.
        (libc::IPPROTO_TCP, libc::TCP_ULP) if state.kind() == Kind::Tcp => {
            entry.set_kind(state, Kind::Stream);
        }
        _ => {}
    }
}

/// setsockopt(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    // SAFETY: the caller's arguments for the same function; a value that it accepted is readable.
    unsafe {
        let result = next::setsockopt(fd, level, option, value, len);
        if result == 0 {
            option_set(fd, level, option, value);
        }
        result
    }
}

/// getsockopt(2): every option is set in the kernel, so the kernel knows it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    unsafe { next::getsockopt(fd, level, option, value, len) }
}
