//! One client connection: a small state machine that never blocks.
//!
//! ```text
//!   Connecting ──writable──▶ Exchanging ──whole reply──▶ Idle
//!                               ▲                          │
//!                               └──────── send() ──────────┘      any failure: the connection is dropped
//! ```
//!
//! At most one request is outstanding, so a reply that is complete cannot be followed by more bytes, and the
//! edge-triggered socket need not be read until it says `EAGAIN`: one `write` and one `read` per request.
//!
//! A connection is closed by a reset (`SO_LINGER` of zero seconds). The side that closes first by the book stays
//! in TIME_WAIT for a minute, and a few runs of ten thousand connections would use up the port range.
//!
//! Sources: epoll(7), socket(7) on SO_LINGER, tcp(7).

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

use super::payload::Payload;

/// Connections that share a source address. The kernel hands out at most some 28,000 ports per pair of
/// addresses (`net.ipv4.ip_local_port_range`); a third of that leaves room for others.
const PER_SOURCE_ADDRESS: usize = 8192;

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Connecting,
    Exchanging,
    Idle,
}

/// What an event led to.
#[derive(Debug)]
pub enum Step {
    /// Nothing is complete yet.
    Pending,
    /// The reply has come whole and is right.
    Replied,
}

/// A connection of the load generator.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    number: u64,
    request: u64,
    state: State,
    sent: usize,
    received: usize,
    /// When the outstanding request was sent.
    started: Instant,
}

impl Connection {
    /// Begins to connect; `number` sets the payloads apart, and chooses the source address.
    pub fn open(server: SocketAddr, number: usize) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(server),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_linger(Some(Duration::ZERO))?;
        // A request is one write; without this a larger one would wait for an acknowledgement.
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = source_address(server, number) {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&server.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            stream: TcpStream::from_std(socket.into()),
            number: number as u64,
            request: 0,
            state: State::Connecting,
            sent: 0,
            received: 0,
            started: Instant::now(),
        })
    }

    /// What to register with the poll.
    pub fn source(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// When the outstanding request was sent.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether a request (or the first connecting) is still without its reply.
    pub fn is_outstanding(&self) -> bool {
        self.state != State::Idle
    }

    /// Sends the next request, as much of it as the socket takes now.
    pub fn send(&mut self, now: Instant, size: usize, scratch: &mut [u8]) -> io::Result<()> {
        debug_assert_ne!(self.state, State::Exchanging, "one request at a time");
        self.state = State::Exchanging;
        self.request += 1;
        (self.sent, self.received) = (0, 0);
        self.started = now;
        self.write_on(size, scratch)
    }

    /// Goes on after an event of the poll.
    pub fn advance(&mut self, now: Instant, size: usize, scratch: &mut [u8]) -> io::Result<Step> {
        match self.state {
            // Nothing is due: then there is nothing to read, unless the server has hung up or says too much.
            State::Idle => {
                return match self.stream.read(scratch) {
                    Ok(0) => Err(hung_up()),
                    Ok(_) => Err(differs()),
                    Err(error) if is_retry(&error) => Ok(Step::Pending),
                    Err(error) => Err(error),
                };
            }
            State::Connecting => {
                if let Some(error) = self.stream.take_error()? {
                    return Err(error);
                }
                match self.stream.peer_addr() {
                    Ok(_) => self.send(now, size, scratch)?,
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                    Err(error) => return Err(error),
                }
                return Ok(Step::Pending);
            }
            State::Exchanging => {}
        }
        self.write_on(size, scratch)?;
        self.read_on(size, scratch)
    }

    /// Writes what is left of the request until the socket is full.
    fn write_on(&mut self, size: usize, scratch: &mut [u8]) -> io::Result<()> {
        while self.sent < size {
            let piece = &mut scratch[..(size - self.sent).min(super::SCRATCH)];
            Payload::new(self.number, self.request).fill(self.sent, piece);
            match self.stream.write(piece) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads and checks what there is of the reply.
    fn read_on(&mut self, size: usize, scratch: &mut [u8]) -> io::Result<Step> {
        while self.received < size {
            // Whatever is there, even too much: a server that sends more than it was sent is wrong, too.
            match self.stream.read(scratch) {
                Ok(0) => return Err(hung_up()),
                Ok(count) => {
                    let right = self.received + count <= self.sent
                        && Payload::new(self.number, self.request)
                            .matches(self.received, &scratch[..count]);
                    if !right {
                        return Err(differs());
                    }
                    self.received += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Step::Pending);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.state = State::Idle;
        Ok(Step::Replied)
    }
}

fn hung_up() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up")
}

fn differs() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the reply differs from what was sent")
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The address to connect from: the kernel's choice for the first few thousand, then one after the other of
/// 127.0.0.0/8, all of which is loopback. Elsewhere the kernel chooses.
fn source_address(server: SocketAddr, number: usize) -> Option<IpAddr> {
    let block = number / PER_SOURCE_ADDRESS;
    if block == 0 || !server.is_ipv4() || !server.ip().is_loopback() {
        return None;
    }
    let address = u32::from(Ipv4Addr::LOCALHOST) + u32::try_from(block).ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(address)))
}

#[cfg(test)]
mod tests {
    use super::{PER_SOURCE_ADDRESS, source_address};

    #[test]
    fn source_addresses_stay_in_loopback_and_change_in_time() {
        let server = "127.0.0.1:7".parse().unwrap();
        assert_eq!(source_address(server, PER_SOURCE_ADDRESS - 1), None);
        let far: Vec<_> = (1..=130)
            .map(|block| source_address(server, block * PER_SOURCE_ADDRESS).unwrap())
            .collect();
        assert!(far.iter().all(|address| address.is_loopback()));
        assert_eq!(far[0].to_string(), "127.0.0.2");
        assert!(far.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(source_address("192.0.2.1:7".parse().unwrap(), 1_000_000), None);
    }
}
