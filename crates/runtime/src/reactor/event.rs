//! Events: a callback when a descriptor is ready, and a wait for any of several.
//!
//! A **registration** is a fiber that waits for a descriptor, less the stack: an entry in the
//! descriptor's list. When there is something to tell, a fiber is begun which calls the callback; so a
//! callback may do and wait for whatever a fiber may, and never holds up the driver.
//!
//! ```text
//!   Descriptor { …, Lock { …, registrations ─▶ [Entry, Entry, …] } }
//!                                                 │ callback, news?, last?, served?
//!        event, cancel, close: note it, and ──────┤
//!        begin a fiber unless there is one        ▼
//!                                 serve: next() ─▶ callback(event) ─▶ next() ─▶ … ─▶ nothing to tell
//! ```
//!
//! # Who decides what
//!
//! Entries belong to their list, and everything about them is decided under the lock of the
//! descriptor; nothing here is lock-free. What an event, a cancellation or a close does is to leave a
//! note in the entry and to see to it that a fiber serves it (`summon`). That fiber looks at the notes
//! when a call **begins** (`next`), and only there. From this everything follows:
//!
//! * **Nothing is told twice, or in the wrong order.** An entry has at most one fiber (`served`), so
//!   calls of a registration never overlap. `next` takes the notes; the last call takes the entry as well.
//! * **Nothing is lost.** A note that comes before `next` is taken by it. One that comes after it finds
//!   `served` set, and the fiber will call `next` again; or it finds it cleared, under the same lock, and
//!   begins another fiber.
//! * **Delete is silent.** Whoever removes the entry has prevented every call that has not begun. A fiber
//!   on its way finds no entry and ends. Keys are never reused, so it cannot find another one's.
//! * **Readiness is true.** `next` asks the kernel, under the lock, before it says "ready": what another
//!   has taken meanwhile is no news. Who closes the descriptor takes the same lock first, and notes
//!   it: so whoever is asked about is the description that was registered, not its successor.
//!
//! While a call runs, its callback is out of the entry, on the fiber's stack. If the entry is gone when the
//! call ends, or the call panics, the callback dies there. User code, destructors included, is
//! never run under the lock.
//!
//! # Readiness and registrations
//!
//! A registration takes no readiness from anybody, and no part in the cached flags: every event of the
//! kernel is noted in every entry of its direction. So it needs no share in what
//! [`leave`](super::leave) passes on, and a callback that writes is not called again because it has written.
//!
//! # The runtime's end
//!
//! A registration counts as a fiber of its runtime, which therefore does not end before it: the events
//! of a runtime that has ended are collected by nobody.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use syscalls::Errno;

pub use super::descriptor::Direction;
use super::descriptor::{entry, lookup};
use super::poll;
use crate::fiber::{Task, current, space};
use crate::kernel;
use crate::runtime::{CoreRef, here};
use crate::scheduler::Core;
use crate::wait::{Batch, Deadline, default_deadline};

/// What a callback is told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A try in the registered direction would not block: the kernel said so right before the call.
    Ready,
    /// The same, and there was an error or the peer has hung up. There may still be something to be
    /// read; a try tells.
    HungUp,
    /// The registration was cancelled. This is its last call.
    Cancelled,
    /// The descriptor was closed, and its number may be another's already. This is the last call.
    Closed,
}

type Callback = Box<dyn FnMut(Event, &Registration) + Send>;

/// The registrations at one descriptor, in the order of their coming.
pub(super) struct Registrations {
    entries: Vec<Entry>,
}

struct Entry {
    key: u64,
    core: &'static Core,
    direction: Direction,
    /// It goes on after a call.
    lasting: bool,
    /// There is a fiber that will look at what is noted here.
    served: bool,
    /// The kernel has reported something since the last look.
    news: bool,
    /// What the last call will say.
    last: Option<Event>,
    /// `None` while a call is running.
    callback: Option<Callback>,
}

impl Entry {
    /// Has a fiber look at the notes.
    fn summon(&mut self, fd: RawFd, woken: &mut Batch) {
        if mem::replace(&mut self.served, true) {
            return;
        }
        let (core, key) = (self.core, self.key);
        // SAFETY: the closure is Send and 'static, and returns nothing.
        let (_, task) = unsafe {
            Task::new(core, None, core.slot_size(), core.timeouts(), None, move || serve(fd, key))
        };
        core.fiber_begins();
        woken.add(task.into_raw().cast());
    }

    /// Notes that the registration ends with a call that says `last`; whether it was not ending yet.
    fn end(&mut self, fd: RawFd, last: Event, woken: &mut Batch) -> bool {
        if self.last.is_some() {
            return false;
        }
        self.last = Some(last);
        self.summon(fd, woken);
        true
    }
}

impl Registrations {
    /// The place of `key`, or of whoever would follow it.
    fn place(&self, key: u64) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&key, |entry| entry.key)
    }

    fn get(&mut self, key: u64) -> Option<&mut Entry> {
        self.place(key).ok().map(|place| &mut self.entries[place])
    }

    /// Notes that the kernel has reported something for `direction` of `fd`.
    pub(super) fn announce(&mut self, fd: RawFd, direction: Direction, woken: &mut Batch) {
        for entry in self.entries.iter_mut().filter(|entry| entry.direction == direction) {
            entry.news = true;
            entry.summon(fd, woken);
        }
    }

    /// Notes that all end with a call that says `last`; how many were not ending yet.
    pub(super) fn end_all(&mut self, fd: RawFd, last: Event, woken: &mut Batch) -> usize {
        self.entries.iter_mut().filter_map(|entry| entry.end(fd, last, woken).then_some(())).count()
    }
}

/// Removes `key` from `list`, which goes with its last entry.
fn remove(list: &mut Option<Box<Registrations>>, key: u64) -> Option<Entry> {
    let registrations = list.as_mut()?;
    let place = registrations.place(key).ok()?;
    let entry = registrations.entries.remove(place);
    if registrations.entries.is_empty() {
        *list = None;
    }
    Some(entry)
}

/// The fiber of a registration: makes its calls until there is nothing to tell.
fn serve(fd: RawFd, key: u64) {
    /// A call that panics ends its registration.
    struct Call(Registration);
    impl Drop for Call {
        fn drop(&mut self) {
            self.0.delete();
        }
    }
    let mut returned = None;
    while let Some((event, mut callback)) = next(fd, key, returned) {
        let call = Call(Registration { fd, key });
        callback(event, &call.0);
        mem::forget(call);
        returned = Some(callback);
    }
}

/// Takes what there is to tell, and the callback to tell it to, which `returned` from a former call.
/// `None`: nothing, and the caller serves the registration no longer.
fn next(fd: RawFd, key: u64, returned: Option<Callback>) -> Option<(Event, Callback)> {
    let descriptor = lookup(fd)?;
    let (event, over) = {
        let mut state = descriptor.state.lock();
        let entry = state.registrations.as_mut()?.get(key)?;
        if returned.is_some() {
            entry.callback = returned;
        }
        let news = mem::replace(&mut entry.news, false);
        let told = entry.last.or_else(|| news.then(|| ask(fd, entry.direction)).flatten());
        let Some(event) = told else {
            entry.served = false;
            return None;
        };
        let over = !entry.lasting || matches!(event, Event::Cancelled | Event::Closed);
        if !over {
            return entry.callback.take().map(|callback| (event, callback));
        }
        (event, remove(&mut state.registrations, key)?)
    };
    over.core.fiber_ends();
    over.callback.map(|callback| (event, callback))
}

/// What the kernel says of `direction` of `fd` at this moment.
fn ask(fd: RawFd, direction: Direction) -> Option<Event> {
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
    fd: RawFd,
    key: u64,
}

impl Registration {
    /// Ends the registration in silence; whether there was something to end.
    ///
    /// `true`: no call will begin after this. A call that is running goes on, and is not waited
    /// for. What the callback holds has been dropped, or will be when that call has ended. `false`:
    /// the only call, or the last one, has begun.
    pub fn delete(&self) -> bool {
        let removed = lookup(self.fd)
            .and_then(|descriptor| remove(&mut descriptor.state.lock().registrations, self.key));
        let Some(Entry { core, callback, .. }) = removed else { return false };
        drop(callback);
        core.fiber_ends();
        true
    }

    /// Ends the registration with a last call, which is told [`Event::Cancelled`]; whether there
    /// was something to end.
    ///
    /// `true`: there will be exactly this call, unless it is [deleted](Registration::delete) before
    /// it begins. One that is running goes on, and comes first. `false`: the only call, or the last
    /// one, has begun, or is to be told something else.
    pub fn cancel(&self) -> bool {
        let mut woken = Batch::new();
        let cancelled = lookup(self.fd).is_some_and(|descriptor| {
            let registrations = &mut descriptor.state.lock().registrations;
            let entry = registrations.as_mut().and_then(|all| all.get(self.key));
            entry.is_some_and(|entry| entry.end(self.fd, Event::Cancelled, &mut woken))
        });
        woken.schedule();
        cancelled
    }

    /// Whether no call will begin any more.
    pub fn is_over(&self) -> bool {
        lookup(self.fd).is_none_or(|descriptor| {
            let registrations = &mut descriptor.state.lock().registrations;
            registrations.as_mut().and_then(|all| all.get(self.key)).is_none()
        })
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
    let key = {
        let mut state = descriptor.state.lock();
        if descriptor.is_closing() {
            return Err(kernel::error(Errno::EBADF));
        }
        // If the driver has not watched it before, it will report what is ready already.
        let news = match state.register(descriptor, fd, &core.driver) {
            Ok(reported) => !reported && ask(fd, direction).is_some(),
            Err(Errno::EPERM) => true,
            Err(e) => return Err(kernel::error(e)),
        };
        static KEYS: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only uniqueness matters; that keys of one list ascend is due to the lock.
        let key = KEYS.fetch_add(1, Ordering::Relaxed);
        let callback = Some(callback);
        let mut entry =
            Entry { key, core, direction, lasting, served: false, news, last: None, callback };
        core.fiber_begins();
        if news {
            entry.summon(fd, &mut woken);
        }
        let none = || Box::new(Registrations { entries: Vec::with_capacity(1) });
        state.registrations.get_or_insert_with(none).entries.push(entry);
        key
    };
    woken.schedule();
    Ok(Registration { fd, key })
}

/// [Cancels](Registration::cancel) all registrations at `fd`, of both directions; returns how many.
pub fn cancel_all(fd: impl AsFd) -> usize {
    let fd = fd.as_fd().as_raw_fd();
    let Some(descriptor) = lookup(fd) else { return 0 };
    let mut woken = Batch::new();
    let count = match &mut descriptor.state.lock().registrations {
        Some(registrations) => registrations.end_all(fd, Event::Cancelled, &mut woken),
        None => 0,
    };
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
        Some(_) => poll(&mut fds, deadline),
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
