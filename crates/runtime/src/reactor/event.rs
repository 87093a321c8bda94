//! Events: a callback when a descriptor is ready, and a wait for any of several.
//!
//! Here is what a program calls. What a registration is, and who decides what about it, is told in
//! `registrations`.
//!
//! # The runtime's end
//!
//! A registration counts as a fiber of its runtime, which therefore does not end before it: the events
//! of a runtime that has ended are collected by nobody.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use syscalls::Errno;

pub use super::descriptor::Direction;
use super::poll;
pub use super::registrations::Event;
use super::registrations::{Callback, Host, New, Registrations};
use super::table::{self, entry, lookup};
use crate::cancel;
use crate::fiber::{Task, current, space};
use crate::kernel;
use crate::runtime::{CoreRef, here};
use crate::scheduler::Core;
use crate::wait::{Batch, Deadline, default_deadline};

impl Host for Core {
    fn begins(&self) {
        self.fiber_begins();
    }

    fn ends(&self) {
        self.fiber_ends();
    }

    fn launch(&'static self, registration: Registration, woken: &mut Batch) {
        let serve = move || {
            if let Some(descriptor) = lookup(registration.fd) {
                descriptor.serve(registration);
            }
        };
        // SAFETY: the closure is Send and 'static, and returns nothing.
        let (_, task) =
            unsafe { Task::new(self, None, self.slot_size(), self.timeouts(), None, serve) };
        self.fiber_begins();
        woken.add(task.into_raw().cast());
    }

    fn ask(&self, fd: RawFd, direction: Direction) -> Option<Event> {
        let events = match direction {
            Direction::Read => libc::POLLIN | libc::POLLPRI | libc::POLLRDHUP,
            Direction::Write => libc::POLLOUT,
        };
        let mut pollfd = [libc::pollfd { fd, events, revents: 0 }];
        match kernel::poll_now(&mut pollfd) {
            Ok(0) => None,
            // No memory to look: a try will tell.
            Err(_) => Some(Event::Ready),
            Ok(_) => {
                let has = |bits| pollfd[0].revents & bits != 0;
                Some(if has(libc::POLLNVAL) {
                    Event::Closed
                } else if has(libc::POLLERR | libc::POLLHUP | libc::POLLRDHUP) {
                    Event::HungUp
                } else {
                    Event::Ready
                })
            }
        }
    }
}

/// A callback that is called when a descriptor is ready: once ([`once`]), or whenever something
/// new arrives ([`persistent`]).
///
/// A handle: copies are the same registration, and **dropping them changes nothing**, as dropping a
/// [`JoinHandle`](crate::JoinHandle) leaves its fiber running. It ends when it is
/// [deleted](Registration::delete), [cancelled](Registration::cancel), when its descriptor is
/// closed, when its callback panics, and `once` with its call. All methods may be called from any
/// thread and any fiber, from the callback as well.
///
/// # The callback
///
/// It runs on a fiber of the runtime that the registration was made on, with the stack that the
/// runtime's fibers usually have. Calls of one registration never overlap; those of different ones
/// may. What a call is told is decided when it begins. There may be any number of registrations and
/// of waiting fibers for each direction, and every event reaches all of the registrations. Errors
/// and hang-ups reach both directions. A panic in a callback is that of a detached fiber: it is
/// reported, and ends the registration.
///
/// # The end of the runtime
///
/// A registration is as good as a fiber that waits: it counts as one in
/// [`Statistics`](crate::Statistics), and [`Runtime::stop`](crate::Runtime::stop) waits until it
/// has ended.
///
/// # What epoll does not do
///
/// * **Regular files** and directories cannot be watched (`EPERM`, epoll_ctl(2)); for poll(2) they
///   are always ready. So a registration of one is called at once, and, as nothing ever arrives,
///   not again.
/// * **Duplicates** (dup(2)): a registration belongs to one *number*. Each number of a description
///   may have some, and closing one of the numbers ends those of that number only.
/// * **Closed behind our back**, by a system call that the runtime does not see
///   (`syscall(SYS_close)`, the interposed C library switched off): nobody tells, and epoll forgets
///   the descriptor in silence. The registration is told [`Event::Closed`] when the number is next
///   handed out by a call that the runtime does see, or when an event finds it closed; or it is
///   deleted. It is never told of its successor's events once that has been seen to be opened.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Registration {
    pub(super) fd: RawFd,
    /// Never another one's.
    pub(super) key: u64,
}

impl Registration {
    /// Ends the registration in silence; whether there was something to end.
    ///
    /// `true`: no call will begin after this. A call that is running goes on, and is not waited
    /// for. What the callback holds has been dropped, or will be when that call has ended. `false`:
    /// the only call, or the last one, has begun.
    pub fn delete(&self) -> bool {
        lookup(self.fd).is_some_and(|descriptor| descriptor.delete(self.key))
    }

    /// Ends the registration with a last call, which is told [`Event::Cancelled`]; whether there
    /// was something to end.
    ///
    /// `true`: there will be exactly this call, unless it is [deleted](Registration::delete) before
    /// it begins. One that is running goes on, and comes first. `false`: the only call, or the last
    /// one, has begun, or is to be told something else.
    pub fn cancel(&self) -> bool {
        let mut woken = Batch::new();
        let cancelled =
            lookup(self.fd).is_some_and(|descriptor| descriptor.cancel(self.key, &mut woken));
        woken.schedule();
        cancelled
    }

    /// Whether no call will begin any more.
    pub fn is_over(&self) -> bool {
        lookup(self.fd).is_none_or(|descriptor| descriptor.is_over(self.key))
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("fd", &self.fd)
            .field("over", &self.is_over())
            .finish_non_exhaustive()
    }
}

/// Calls `callback` once, when `fd` is ready in `direction`: at once if it is already.
///
/// It runs on the runtime of the calling fiber, or on the default one. See [`Registration`].
///
/// # Errors
/// `EBADF` if `fd` is being closed; what epoll_ctl(2) says, but for `EPERM`; if no worker exists
/// and none can be started, what pthread_create(3) says; `Unsupported` where fibers are OS threads
/// ([`identity`](fn@crate::identity)); and as
/// [`RuntimeBuilder::build`](crate::RuntimeBuilder::build) if this starts the default runtime.
///
/// # Examples
///
/// ```
/// # if sleave_runtime::identity().is_err() { return Ok(()) }
/// use std::io::Write;
/// use std::sync::mpsc;
///
/// use sleave_runtime::event::{self, Direction, Event};
///
/// let (reader, mut writer) = std::io::pipe()?;
/// let (send, receive) = mpsc::channel();
/// event::once(&reader, Direction::Read, move |event| send.send(event).unwrap())?;
/// writer.write_all(b"x")?;
/// assert_eq!(receive.recv(), Ok(Event::Ready));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn once<F>(fd: impl AsFd, direction: Direction, callback: F) -> io::Result<Registration>
where
    F: FnOnce(Event) + Send + 'static,
{
    let mut callback = Some(callback);
    let callback = move |event, _: &Registration| {
        if let Some(callback) = callback.take() {
            callback(event);
        }
    };
    register(fd.as_fd(), direction, false, Box::new(callback))
}

/// Calls `callback` whenever something new arrives for `direction` of `fd`, and at once if it is
/// ready already.
///
/// Precisely: the kernel reports **edges** (`EPOLLET`, epoll(7)): bytes have come, space has become
/// free, the peer has hung up. After each report, a call begins that is told so, unless by then
/// `fd` is not ready any more. Several reports may be one call; a report may repeat what was told
/// before, while that is still there. So a callback takes all there is, until `EAGAIN` (on a
/// descriptor in non-blocking mode): it is *not* called again for what it leaves behind.
///
/// The callback is given the registration, so that it can end it. It runs on the runtime of the
/// calling fiber, or on the default one. See [`Registration`].
///
/// # Errors
/// As [`once`].
///
/// # Examples
///
/// ```
/// # if sleave_runtime::identity().is_err() { return Ok(()) }
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
/// use std::sync::mpsc;
///
/// use sleave_runtime::event::{self, Direction, Event};
///
/// let (mut near, far) = UnixStream::pair()?;
/// far.set_nonblocking(true)?;
/// let (send, receive) = mpsc::channel();
/// event::persistent(&far.try_clone()?, Direction::Read, move |event, _| {
///     let mut text = Vec::new();
///     // Ends with `WouldBlock`, or with the end of the stream.
///     let _ = (&far).read_to_end(&mut text);
///     if event != Event::Closed {
///         send.send(text).unwrap();
///     }
/// });
/// near.write_all(b"x")?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn persistent<F>(fd: impl AsFd, direction: Direction, callback: F) -> io::Result<Registration>
where
    F: FnMut(Event, &Registration) + Send + 'static,
{
    register(fd.as_fd(), direction, true, Box::new(callback))
}

fn register(
    fd: BorrowedFd<'_>,
    direction: Direction,
    lasting: bool,
    callback: Callback,
) -> io::Result<Registration> {
    if let Err(why) = space() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, why.to_string()));
    }
    let CoreRef(core) = here()?;
    if current().is_none() {
        core.ensure_worker()?;
    }
    let fd = fd.as_raw_fd();
    let descriptor = entry(fd).ok_or_else(|| kernel::error(Errno::EBADF))?;
    let mut woken = Batch::new();
    let registration = {
        let mut state = descriptor.state.lock();
        if descriptor.is_closing() {
            return Err(kernel::error(Errno::EBADF));
        }
        // If the driver has not watched it before, it will report what is ready already.
        let news = match table::register(descriptor, &mut state, fd, &core.driver) {
            Ok(reported) => !reported && core.ask(fd, direction).is_some(),
            Err(Errno::EPERM) => true,
            Err(e) => return Err(kernel::error(e)),
        };
        let new = New { fd, host: core, direction, lasting, callback };
        Registrations::add(&mut state.registrations, new, news, &mut woken)
    };
    woken.schedule();
    Ok(registration)
}

/// [Cancels](Registration::cancel) all registrations at `fd`, of both directions; returns how many.
pub fn cancel_all(fd: impl AsFd) -> usize {
    let fd = fd.as_fd().as_raw_fd();
    let Some(descriptor) = lookup(fd) else { return 0 };
    let mut woken = Batch::new();
    let count = descriptor.cancel_all(&mut woken);
    woken.schedule();
    count
}

/// Waits until any of `interests` is ready, at most for `timeout`, and returns the indices of those
/// that are, in order: none if the time was over first. It parks the calling fiber; on an OS thread
/// it is poll(2). Without a timeout it waits for as long as the fiber's calls do
/// ([`set_wait_timeout`](crate::set_wait_timeout)): mostly for ever.
///
/// It looks, and takes nothing: what is ready stays so until somebody tries. Errors and hang-ups
/// are reported whatever the direction. A descriptor that is not open counts as ready, for a try
/// fails at once (`EBADF`); so does, for a fiber, one that is closed meanwhile, even if its number
/// is in use again. Regular files are always ready.
///
/// # Errors
/// `EINVAL` for more descriptors than the process may have, `ENOMEM`: poll(2).
///
/// # Examples
///
/// ```
/// use std::io::Write;
/// use std::os::fd::AsFd;
/// use std::os::unix::net::UnixStream;
/// use std::time::Duration;
///
/// use sleave_runtime::event::{Direction, wait_any};
///
/// sleave_runtime::run(|| {
///     let (a, mut b) = UnixStream::pair()?;
///     let a = a.as_fd();
///     let soon = Some(Duration::from_millis(1));
///     assert!(wait_any(&[(a, Direction::Read)], soon)?.is_empty());
///     assert_eq!(wait_any(&[(a, Direction::Read), (a, Direction::Write)], soon)?, [1]);
///     b.write_all(b"x")?;
///     assert_eq!(wait_any(&[(a, Direction::Read), (a, Direction::Write)], None)?, [0, 1]);
///     Ok::<(), std::io::Error>(())
/// })
/// # .unwrap();
/// ```
pub fn wait_any(
    interests: &[(BorrowedFd<'_>, Direction)],
    timeout: Option<Duration>,
) -> io::Result<Vec<usize>> {
    let deadline = match timeout {
        None => default_deadline(),
        // What does not fit is never.
        Some(timeout) => Deadline::after(timeout.as_nanos().try_into().unwrap_or(u64::MAX)),
    };
    let mut fds: Vec<libc::pollfd> = interests
        .iter()
        .map(|(fd, direction)| {
            let events = match direction {
                Direction::Read => libc::POLLIN,
                Direction::Write => libc::POLLOUT,
            };
            libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
        })
        .collect();
    let at = (deadline != Deadline::NEVER).then_some(deadline.nanoseconds());
    let answer = match current() {
        Some(_) => {
            cancel::checkpoint();
            let answer = poll(&mut fds, deadline, || cancel::error().map(|code| -(code as isize)));
            if answer < 0 {
                cancel::checkpoint();
            }
            answer
        }
        None => match kernel::poll(&mut fds, at) {
            Ok(count) => count as isize,
            Err(e) => -(e.into_raw() as isize),
        },
    };
    if answer < 0 {
        return Err(io::Error::from_raw_os_error(-answer as i32));
    }
    let ready = |(index, pollfd): (usize, &libc::pollfd)| (pollfd.revents != 0).then_some(index);
    Ok(fds.iter().enumerate().filter_map(ready).collect())
}
