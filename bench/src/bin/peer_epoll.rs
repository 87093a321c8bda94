//! Peer: the plain epoll loop, what an echo server costs when nothing stands between it and the kernel.
//!
//! The ideal that a runtime is measured against: edge-triggered, each socket registered once for both directions,
//! no state for a connection whose reply fits into its socket, one `recv` and one `send` per request, and an
//! `epoll_wait` shared by all that are ready. A read that does not fill the buffer has drained the socket,
//! so there is no second one to be told `EAGAIN`.
//!
//! ```text
//!   loop 0: epoll ◀── listener            accept: connection k goes to the epoll of loop k mod N,
//!           epoll ◀── connections          by one epoll_ctl from outside; no queue, no waking
//!   loop 1: epoll ◀── connections
//! ```
//!
//! Its one shape is `echo`, WORKERS the number of loops. See `sleave_bench::peer` for what is asked of it.
//!
//! Sources: epoll(7), recv(2), send(2).

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::thread;

use sleave_bench::peer::{self, Order};

/// Events taken at once.
const EVENTS: usize = 1024;
/// Bytes read at once.
const BUFFER: usize = 64 * 1024;
const EDGES: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;

/// One thread's epoll, and the replies that did not fit into their sockets.
struct Loop {
    epoll: RawFd,
    unsent: HashMap<RawFd, Vec<u8>>,
    buffer: Vec<u8>,
}

/// What a connection wants next.
enum Fate {
    Waits,
    Ends,
}

impl Loop {
    fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1(2) has no preconditions.
        let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { epoll, unsent: HashMap::new(), buffer: vec![0; BUFFER] })
    }

    /// Serves for ever; `accept` is called for events of descriptor `listener`.
    fn run(
        &mut self,
        listener: RawFd,
        mut accept: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        loop {
            // SAFETY: epoll_wait(2) writes at most EVENTS entries to the vector of that length.
            let count = check(unsafe {
                libc::epoll_wait(self.epoll, events.as_mut_ptr(), EVENTS as i32, -1)
            })?;
            for event in &events[..count as usize] {
                let descriptor = event.u64 as RawFd;
                if descriptor == listener {
                    accept()?;
                    continue;
                }
                if let Fate::Ends = self.advance(descriptor) {
                    self.unsent.remove(&descriptor);
                    // SAFETY: close(2); the descriptor is in no other place, and closing takes it out of the epoll.
                    unsafe { libc::close(descriptor) };
                }
            }
        }
    }

    /// Sends what is left, then echoes until the socket is empty or full.
    fn advance(&mut self, descriptor: RawFd) -> Fate {
        if !self.unsent.is_empty()
            && let Some(mut rest) = self.unsent.remove(&descriptor)
        {
            match send(descriptor, &rest) {
                Some(sent) if sent == rest.len() => {}
                Some(sent) => {
                    rest.drain(..sent);
                    self.unsent.insert(descriptor, rest);
                    return Fate::Waits;
                }
                None => return Fate::Ends,
            }
        }
        loop {
            // SAFETY: recv(2) writes at most BUFFER bytes to the vector of that length.
            let received =
                unsafe { libc::recv(descriptor, self.buffer.as_mut_ptr().cast(), BUFFER, 0) };
            let count = match received {
                0 => return Fate::Ends,
                -1 if would_block() => return Fate::Waits,
                -1 => return Fate::Ends,
                count => count as usize,
            };
            match send(descriptor, &self.buffer[..count]) {
                Some(sent) if sent == count => {}
                // The edge that says "room again" brings us back, to the bytes still unread, too.
                Some(sent) => {
                    self.unsent.insert(descriptor, self.buffer[sent..count].to_vec());
                    return Fate::Waits;
                }
                None => return Fate::Ends,
            }
            if count < BUFFER {
                return Fate::Waits;
            }
        }
    }
}

/// Sends what the socket takes, perhaps nothing; `None` when the connection is broken.
fn send(descriptor: RawFd, bytes: &[u8]) -> Option<usize> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        // SAFETY: send(2) reads the slice.
        match unsafe {
            libc::send(descriptor, rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL)
        } {
            -1 if would_block() => break,
            -1 => return None,
            count => done += count as usize,
        }
    }
    Some(done)
}

fn would_block() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

/// A negative result of a system call is an error, and none of ours.
fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn register(epoll: RawFd, descriptor: RawFd, events: u32) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: descriptor as u64 };
    // SAFETY: epoll_ctl(2) reads one event.
    check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, descriptor, &raw mut event) })?;
    Ok(())
}

fn main() -> io::Result<()> {
    let order = Order::parse(std::env::args().skip(1));
    if order.shape != "echo" {
        order.unknown();
    }
    let mut loops = (0..order.workers).map(|_| Loop::new()).collect::<io::Result<Vec<_>>>()?;
    let epolls: Vec<RawFd> = loops.iter().map(|one| one.epoll).collect();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    register(epolls[0], listener.as_raw_fd(), libc::EPOLLIN as u32)?;
    peer::say(format_args!("listening on {}", listener.local_addr()?));

    for mut other in loops.drain(1..) {
        // No listener there: -1 is no descriptor.
        thread::spawn(move || other.run(-1, || Ok(())).expect("an epoll loop that does not fail"));
    }
    let mut accepted = 0;
    loops[0].run(listener.as_raw_fd(), || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    register(epolls[accepted % epolls.len()], stream.into_raw_fd(), EDGES)?;
                    accepted += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    })
}
