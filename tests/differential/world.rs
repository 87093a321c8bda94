//! The descriptors of a running program, and what its operations do with them.
//!
//! A slot holds a descriptor of a **description**, which knows its kind and its other end. What is in
//! flight over TCP arrives when it arrives; so whoever sends, shuts down or closes waits until the other
//! end shows it (`settle`). Everything else that is used here is synchronous: after a call, its effect can be
//! seen. With that, each operation's outcome is a matter of those before it, and of nothing else.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::calls::{self, Outcome, own, ready};
use crate::program::{Change, Flag, Half, Make, Op, SLOTS, Side};
use crate::support::Host;

/// How long an operation waits that finds nothing.
pub(super) const SHORT: Duration = Duration::from_millis(4);
/// The same in milliseconds.
pub(super) const SHORT_MS: c_int = 4;
/// How long something may take that is certain to happen.
pub(super) const LONG: Duration = Duration::from_secs(20);
pub(super) const LONG_MS: c_int = 20_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Stream,
    Datagram,
    Packets,
    Tcp,
    Listener(SocketAddr),
    PipeReader,
    PipeWriter,
    Event,
    Instance,
}

impl Kind {
    pub(super) fn is_socket(self) -> bool {
        matches!(self, Kind::Stream | Kind::Datagram | Kind::Packets | Kind::Tcp)
    }

    /// Whether it is a socket whose connection ends for the other side.
    pub(super) fn is_connection(self) -> bool {
        self.is_socket() && self != Kind::Datagram
    }
}

pub(super) struct Description {
    pub(super) kind: Kind,
    peer: Mutex<Weak<Description>>,
    /// Connections that wait to be accepted.
    pending: Mutex<VecDeque<Weak<Description>>>,
    pub(super) no_more_writes: Mutex<bool>,
}

impl Description {
    fn new(kind: Kind) -> Arc<Description> {
        Arc::new(Description {
            kind,
            peer: Mutex::new(Weak::new()),
            pending: Mutex::default(),
            no_more_writes: Mutex::new(false),
        })
    }

    fn connected(kinds: [Kind; 2]) -> [Arc<Description>; 2] {
        let ends = kinds.map(Description::new);
        *lock(&ends[0].peer) = Arc::downgrade(&ends[1]);
        *lock(&ends[1].peer) = Arc::downgrade(&ends[0]);
        ends
    }
}

pub(super) struct Slot {
    fd: OwnedFd,
    pub(super) of: Arc<Description>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slot as an operation sees it: the number stays open as long as the operation takes, since nobody
/// else has a turn.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) fd: RawFd,
    pub(super) kind: Kind,
}

pub struct World {
    host: Host,
    pub(super) slots: Mutex<Vec<Option<Slot>>>,
    file: OwnedFd,
}

/// Bytes that tell where they come from.
pub(super) fn bytes(step: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (step * 37 + i * 11 + i / 250) as u8).collect()
}

pub(super) fn show<T: std::fmt::Debug>(value: T) -> String {
    format!("{value:?}")
}

/// How many bytes a call has sent.
fn sent(result: &Outcome) -> i64 {
    result.unwrap_or(0)
}

/// Calls that ask for `SHORT` at least and found nothing have waited for it.
fn timed<T>(least: Option<Duration>, empty: impl Fn(&T) -> bool, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = call();
    let elapsed = start.elapsed();
    assert!(elapsed < LONG, "took {elapsed:?}");
    if let Some(least) = least.filter(|_| empty(&result)) {
        assert!(elapsed >= least, "waited for {elapsed:?} only");
    }
    result
}

impl World {
    pub fn new(host: Host) -> World {
        // SAFETY: memfd_create(2) with a NUL-terminated name.
        let file = own(unsafe { libc::memfd_create(c"file".as_ptr(), libc::MFD_CLOEXEC) });
        let file = file.expect("a file in memory");
        assert_eq!(calls::write(file.as_raw_fd(), &bytes(0, 8192)), Ok(8192));
        World { host, slots: Mutex::new((0..SLOTS).map(|_| None).collect()), file }
    }

    pub(super) fn see(&self, slot: usize) -> Option<Seen> {
        let slots = lock(&self.slots);
        slots[slot].as_ref().map(|slot| Seen { fd: slot.fd.as_raw_fd(), kind: slot.of.kind })
    }

    /// The first slot that holds the other end of `slot`.
    pub(super) fn other_end(&self, slot: usize) -> Option<usize> {
        let slots = lock(&self.slots);
        let here = slots[slot].as_ref()?;
        if here.of.kind == Kind::Event {
            return Some(slot);
        }
        let peer = lock(&here.of.peer).upgrade()?;
        slots.iter().position(|s| s.as_ref().is_some_and(|s| Arc::ptr_eq(&s.of, &peer)))
    }

    /// Puts something new into a slot; what was there is closed.
    fn put(&self, slot: usize, new: Slot) {
        self.clear(slot);
        lock(&self.slots)[slot] = Some(new);
    }

    /// Closes a slot. The last descriptor of a connection tells the other end.
    pub(super) fn clear(&self, slot: usize) {
        let Some(old) = lock(&self.slots)[slot].take() else { return };
        self.end(old);
    }

    fn end(&self, old: Slot) {
        let last = Arc::strong_count(&old.of) == 1;
        let unread = old.of.kind == Kind::Tcp
            && calls::told(old.fd.as_raw_fd(), libc::FIONREAD).is_ok_and(|count| count > 0);
        let peer = lock(&old.of.peer).upgrade();
        let tcp = old.of.kind == Kind::Tcp;
        drop(old);
        if let (true, true, Some(peer)) = (last, tcp, peer) {
            let reset = libc::POLLERR | libc::POLLHUP;
            self.settle(&peer, if unread { reset } else { libc::POLLRDHUP | reset });
        }
    }

    /// Waits until one of `events` has reached `end`.
    fn settle(&self, end: &Arc<Description>, events: i16) {
        let fd = {
            let slots = lock(&self.slots);
            slots.iter().flatten().find(|s| Arc::ptr_eq(&s.of, end)).map(|s| s.fd.as_raw_fd())
        };
        let Some(fd) = fd else { return };
        let start = Instant::now();
        while ready(fd, events, 0) & events == 0 {
            assert!(start.elapsed() < LONG, "nothing arrives");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Sends by `call`, which answers with the number of bytes, and waits until they have arrived.
    fn send<T: std::fmt::Debug>(
        &self,
        slot: usize,
        count: impl Fn(&T) -> i64,
        call: impl FnOnce() -> T,
    ) -> T {
        let tcp = self.see(slot).filter(|seen| seen.kind == Kind::Tcp);
        let Some(seen) = tcp else { return call() };
        let other = self.other_end(slot).and_then(|other| self.see(other));
        let unread = |seen: &Seen| calls::told(seen.fd, libc::FIONREAD).unwrap_or(0);
        let before = other.as_ref().map(unread);
        let result = call();
        let sent = count(&result);
        let start = Instant::now();
        let reset = || ready(seen.fd, 0, 0) & (libc::POLLERR | libc::POLLHUP) != 0;
        if let (Some(other), Some(before)) = (&other, before) {
            // An end that has been shut down for reading refuses what comes.
            while unread(other) < before + sent && !reset() {
                assert!(start.elapsed() < LONG, "nothing arrives");
                std::thread::sleep(Duration::from_micros(200));
            }
        } else if sent > 0 {
            // Nobody is there: a reset comes back.
            while !reset() {
                assert!(start.elapsed() < LONG, "nothing arrives");
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        result
    }

    /// Whether a call on `seen` could wait for ever: a pipe or event that is not ready. Sockets have
    /// timeouts.
    fn would_block(&self, seen: &Seen, events: i16) -> bool {
        let forever = matches!(seen.kind, Kind::PipeReader | Kind::PipeWriter | Kind::Event);
        forever && !calls::is_nonblocking(seen.fd) && ready(seen.fd, events, SHORT_MS) == 0
    }

    /// The shortest wait of a receive or send that ends in `EAGAIN`; the kernel counts in ticks, the
    /// first of which has begun.
    fn least(&self, seen: &Seen) -> Option<Duration> {
        let waits = self.host.is_fibers() && seen.kind.is_socket();
        (waits && !calls::is_nonblocking(seen.fd)).then_some(SHORT)
    }

    fn receives<T>(&self, seen: &Seen, call: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        timed(self.least(seen), |result| matches!(result, Err(libc::EAGAIN)), call)
    }

    /// Does `op` as step number `step`; tells what came of it.
    pub fn run(&self, step: usize, op: &Op) -> String {
        self.try_run(step, op).unwrap_or_else(|| "skipped".into())
    }

    fn try_run(&self, step: usize, op: &Op) -> Option<String> {
        Some(match *op {
            Op::Make(make, a, b) => {
                self.make(make, a, b);
                show(())
            }
            Op::Listen(slot) => {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
                let address = listener.local_addr().expect("its address");
                let of = Description::new(Kind::Listener(address));
                self.put(slot, self.limited(Slot { fd: listener.into(), of }));
                show(())
            }
            Op::Connect { listener, into } => self.connect(listener, into)?,
            Op::Accept { listener, into } => self.accept(listener, into)?,
            Op::Instance(slot) => {
                // SAFETY: epoll_create1(2) takes a flag.
                let fd = own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).expect("epoll");
                self.put(slot, Slot { fd, of: Description::new(Kind::Instance) });
                show(())
            }
            Op::Enlist { instance, member, events, change } => {
                let (instance, seen) = (self.see(instance)?, self.see(member)?);
                let op = match change {
                    Change::Add => libc::EPOLL_CTL_ADD,
                    Change::Modify => libc::EPOLL_CTL_MOD,
                    Change::Delete => libc::EPOLL_CTL_DEL,
                };
                show(calls::epoll_ctl(instance.fd, op, seen.fd, events, member as u64))
            }
            Op::Await { instance, wait } => {
                let seen = self.see(instance)?;
                let timeout = if wait { SHORT_MS } else { 0 };
                let least = wait.then_some(SHORT);
                // Room for all: which of several come first is nobody's promise.
                let call = || calls::epoll_wait(seen.fd, 64, timeout);
                show(timed(least, |found| found.as_ref().is_ok_and(Vec::is_empty), call))
            }
            Op::Duplicate { from, into } => {
                let seen = self.see(from)?;
                // SAFETY: fcntl(2) F_DUPFD_CLOEXEC takes a number.
                let fd = own(unsafe { libc::fcntl(seen.fd, libc::F_DUPFD_CLOEXEC, 0) });
                let of = lock(&self.slots)[from].as_ref().map(|slot| Arc::clone(&slot.of))?;
                self.put(into, Slot { fd: fd.expect("a number"), of });
                show(())
            }
            Op::Replace { from, over } => self.replace(from, over)?,
            Op::Close(slot) => {
                self.see(slot)?;
                self.clear(slot);
                show(())
            }
            Op::Nonblocking(slot, on) => show(calls::set_nonblocking(self.see(slot)?.fd, on)),
            Op::Timeout(slot, side) => {
                let option = match side {
                    Side::Receive => libc::SO_RCVTIMEO,
                    Side::Send => libc::SO_SNDTIMEO,
                };
                show(calls::set_timeout(self.see(slot)?.fd, option, 2 * SHORT))
            }
            Op::Read(slot, len) => self.take(slot, |fd| calls::read(fd, len))?,
            Op::ReadParts(slot, len) => self.take(slot, |fd| calls::readv(fd, len))?,
            Op::Write(slot, len) => self.give(slot, &bytes(step, len), calls::write)?,
            Op::WriteParts(slot, len) => self.give(slot, &bytes(step, len), calls::writev)?,
            Op::Receive(slot, len, flag) => {
                let (flags, waits) = match flag {
                    Flag::None => (0, true),
                    Flag::DontWait => (libc::MSG_DONTWAIT, false),
                    Flag::Peek => (libc::MSG_PEEK, true),
                    Flag::WaitAll => (libc::MSG_WAITALL, true),
                };
                let seen = self.see(slot)?;
                let call = || calls::recv(seen.fd, len, flags);
                show(if waits { self.receives(&seen, call) } else { call() })
            }
            Op::Send(slot, len) => {
                let seen = self.see(slot)?;
                let call = || calls::send(seen.fd, &bytes(step, len));
                show(self.send(slot, sent, || self.receives(&seen, call)))
            }
            Op::ReceiveMany(slot, count) => {
                let seen = self.see(slot)?;
                show(self.receives(&seen, || calls::recvmmsg(seen.fd, count)))
            }
            Op::SendMany(slot, count) => {
                let seen = self.see(slot)?;
                let buffers = (0..count).map(|i| bytes(step + i, 20 + 30 * i)).collect();
                let total = |sent: &Outcome<Vec<usize>>| {
                    sent.as_ref().map_or(0, |lens| lens.iter().sum::<usize>() as i64)
                };
                show(self.send(slot, total, || calls::sendmmsg(seen.fd, buffers)))
            }
            Op::Splice { from, to, len } => {
                let (from, seen) = (self.see(from)?, self.see(to)?);
                let call = || calls::splice(from.fd, seen.fd, len, libc::SPLICE_F_NONBLOCK);
                if self.would_block(&from, libc::POLLIN) || self.would_block(&seen, libc::POLLOUT) {
                    return Some("not ready".into());
                }
                show(self.send(to, sent, call))
            }
            Op::Tee { from, to, len } => {
                let (from, to) = (self.see(from)?, self.see(to)?);
                show(calls::tee(from.fd, to.fd, len, libc::SPLICE_F_NONBLOCK))
            }
            Op::SendFile(slot, len) => {
                let seen = self.see(slot)?;
                if self.would_block(&seen, libc::POLLOUT) {
                    return Some("not ready".into());
                }
                let call = || calls::sendfile(seen.fd, self.file.as_raw_fd(), len);
                show(self.send(slot, sent, call))
            }
            Op::Shutdown(slot, half) => self.shutdown(slot, half)?,
            Op::Poll(ref entries, wait) => {
                let mut polled: Vec<_> = entries
                    .iter()
                    .filter_map(|&(slot, events)| self.see(slot).map(|seen| (seen.fd, events)))
                    .map(|(fd, events)| libc::pollfd { fd, events, revents: 0 })
                    .collect();
                let timeout = if wait { SHORT_MS } else { 0 };
                let least = wait.then_some(SHORT);
                let found =
                    timed(least, |found| *found == Ok(0), || calls::poll(&mut polled, timeout));
                show((found, polled.iter().map(|entry| entry.revents).collect::<Vec<_>>()))
            }
            Op::Select(ref members, wait) => {
                let fds: Vec<_> =
                    members.iter().filter_map(|&slot| self.see(slot)).map(|seen| seen.fd).collect();
                let timeout = if wait { SHORT } else { Duration::ZERO };
                let none =
                    |found: &Outcome<(i64, _)>| found.as_ref().is_ok_and(|found| found.0 == 0);
                show(timed(Some(timeout), none, || calls::select(&fds, &fds, Some(timeout))))
            }
            Op::ErrorOf(slot) => show(calls::option(self.see(slot)?.fd, libc::SO_ERROR)),
            Op::Unread(slot) => show(calls::told(self.see(slot)?.fd, libc::FIONREAD)),
        })
    }

    fn take(&self, slot: usize, call: impl Fn(RawFd) -> Outcome<Vec<u8>>) -> Option<String> {
        let seen = self.see(slot)?;
        if self.would_block(&seen, libc::POLLIN) {
            return Some("not ready".into());
        }
        Some(show(self.receives(&seen, || call(seen.fd))))
    }

    fn give(
        &self,
        slot: usize,
        bytes: &[u8],
        call: impl Fn(RawFd, &[u8]) -> Outcome,
    ) -> Option<String> {
        let seen = self.see(slot)?;
        if self.would_block(&seen, libc::POLLOUT) {
            return Some("not ready".into());
        }
        let value = (bytes.len() as u64).to_ne_bytes();
        let bytes = match seen.kind {
            Kind::Event => &value[..],
            // So much a pipe takes that is ready.
            Kind::PipeWriter => &bytes[..bytes.len().min(libc::PIPE_BUF)],
            _ => bytes,
        };
        let call = || self.receives(&seen, || call(seen.fd, bytes));
        Some(show(self.send(slot, sent, call)))
    }

    /// Sockets wait for a short time only.
    fn limited(&self, slot: Slot) -> Slot {
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            calls::set_timeout(slot.fd.as_raw_fd(), option, SHORT).expect("a timeout");
        }
        slot
    }

    fn make(&self, make: Make, a: usize, b: usize) {
        // SAFETY: socketpair(2) and pipe2(2) write two numbers.
        let unix = |kind| unsafe {
            calls::pair(|at| libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, at))
        };
        let (pair, kinds) = match make {
            Make::Stream => (unix(libc::SOCK_STREAM), [Kind::Stream; 2]),
            Make::Datagram => (unix(libc::SOCK_DGRAM), [Kind::Datagram; 2]),
            Make::Packets => (unix(libc::SOCK_SEQPACKET), [Kind::Packets; 2]),
            Make::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
                let address = listener.local_addr().expect("its address");
                let near = TcpStream::connect(address).expect("a connection");
                let (far, _) = listener.accept().expect("its other end");
                (Ok([near.into(), far.into()]), [Kind::Tcp; 2])
            }
            Make::Pipe => {
                // SAFETY: as above.
                let pipe = calls::pair(|at| unsafe { libc::pipe2(at, libc::O_CLOEXEC) });
                (pipe, [Kind::PipeReader, Kind::PipeWriter])
            }
            Make::Event => {
                // SAFETY: eventfd(2) takes numbers.
                let fd = own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }).expect("an eventfd");
                return self.put(a, Slot { fd, of: Description::new(Kind::Event) });
            }
        };
        let [near, far] = pair.expect("a pair");
        let [of_near, of_far] = Description::connected(kinds);
        for (slot, fd, of) in [(a, near, of_near), (b, far, of_far)] {
            let slot_is_socket = of.kind.is_socket();
            let new = Slot { fd, of };
            self.put(slot, if slot_is_socket { self.limited(new) } else { new });
        }
    }

    fn connect(&self, listener: usize, into: usize) -> Option<String> {
        let seen = self.see(listener)?;
        let Kind::Listener(address) = seen.kind else { return None };
        let of = lock(&self.slots)[listener].as_ref().map(|slot| Arc::clone(&slot.of))?;
        if lock(&of.pending).len() >= 4 || ready(seen.fd, 0, 0) != 0 {
            return None;
        }
        let before = lock(&of.pending).len();
        let stream = match TcpStream::connect(address) {
            Ok(stream) => stream,
            Err(error) => return Some(show(error.raw_os_error())),
        };
        if before == 0 {
            ready(seen.fd, libc::POLLIN, LONG_MS);
        }
        let client = Description::new(Kind::Tcp);
        lock(&of.pending).push_back(Arc::downgrade(&client));
        drop(of);
        self.put(into, self.limited(Slot { fd: stream.into(), of: client }));
        Some(show(()))
    }

    fn accept(&self, listener: usize, into: usize) -> Option<String> {
        let seen = self.see(listener)?;
        let of = lock(&self.slots)[listener].as_ref().map(|slot| Arc::clone(&slot.of))?;
        let null = std::ptr::null_mut();
        // One that nobody accepts has all arrived: the kernel took it in `connect`.
        // SAFETY: accept4(2) without a place for the address.
        let call = || own(unsafe { libc::accept4(seen.fd, null, null.cast(), libc::SOCK_CLOEXEC) });
        let listens = matches!(seen.kind, Kind::Listener(_));
        if !listens && !seen.kind.is_socket() {
            return Some(show(call().map(drop)));
        }
        let accepted = self.receives(&seen, call);
        let result = accepted.as_ref().map(drop).map_err(|&error| error);
        if let Ok(fd) = accepted {
            let server = Description::new(Kind::Tcp);
            if let Some(client) = lock(&of.pending).pop_front().and_then(|client| client.upgrade())
            {
                *lock(&client.peer) = Arc::downgrade(&server);
                *lock(&server.peer) = Arc::downgrade(&client);
            }
            drop(of);
            self.put(into, self.limited(Slot { fd, of: server }));
        }
        Some(show(result))
    }

    fn replace(&self, from: usize, over: usize) -> Option<String> {
        let (source, target) = (self.see(from)?, self.see(over)?);
        if from == over {
            // SAFETY: dup2(2) takes numbers.
            let same = calls::outcome(unsafe { libc::dup2(source.fd, target.fd) });
            return Some(show(same.map(drop)));
        }
        // Keeps the old description alive until the call has replaced its number: then it ends here.
        // SAFETY: fcntl(2) F_DUPFD_CLOEXEC and dup2(2) take numbers; the slot's owner goes on owning
        // the number.
        let kept = own(unsafe { libc::fcntl(target.fd, libc::F_DUPFD_CLOEXEC, 0) });
        // SAFETY: as above.
        let result = calls::outcome(unsafe { libc::dup2(source.fd, target.fd) }).map(drop);
        let old = {
            let mut slots = lock(&self.slots);
            let of = slots[from].as_ref().map(|slot| Arc::clone(&slot.of))?;
            let place = slots[over].as_mut()?;
            Slot { fd: kept.expect("a number"), of: std::mem::replace(&mut place.of, of) }
        };
        self.end(old);
        Some(show(result))
    }

    fn shutdown(&self, slot: usize, half: Half) -> Option<String> {
        let seen = self.see(slot)?;
        let how = match half {
            Half::Read => libc::SHUT_RD,
            Half::Write => libc::SHUT_WR,
            Half::Both => libc::SHUT_RDWR,
        };
        if matches!(seen.kind, Kind::Listener(_)) {
            return None;
        }
        // SAFETY: shutdown(2) takes numbers.
        let result = calls::outcome(unsafe { libc::shutdown(seen.fd, how) });
        if how != libc::SHUT_RD && result.is_ok() {
            let of = lock(&self.slots)[slot].as_ref().map(|slot| Arc::clone(&slot.of))?;
            *lock(&of.no_more_writes) = true;
            let peer = lock(&of.peer).upgrade();
            if let (Kind::Tcp, Some(peer)) = (seen.kind, peer) {
                self.settle(&peer, libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR);
            }
        }
        Some(show(result))
    }
}
