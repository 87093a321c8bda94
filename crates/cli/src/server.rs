//! A server in a process of its own: start, find its address, stop, never leave it behind.
//!
//! The protocol is that of any of the echo servers here: the program prints `listening on ADDR` as a line of its standard
//! output, serves until SIGINT, and exits with 0. The end of its output is the sign that it ends.

use std::io;
use std::net::SocketAddr;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::children::{Children, Event};

/// How long a server may take to start, and to stop.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running server.
pub struct Server {
    children: Children,
    address: SocketAddr,
    complaints: Vec<String>,
    ended: Option<ExitStatus>,
}

/// How a server ended.
pub struct LastWords {
    /// Its exit code, or the signal that ended it.
    pub status: ExitStatus,
    /// What it had still said on standard error.
    pub complaints: Vec<String>,
}

/// The address in the first line of a server.
pub fn address(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("listening on ")?.trim().parse().ok()
}

impl Server {
    /// Starts `command` and waits for its address.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let mut children = Children::new();
        children.start(command)?;
        let none = SocketAddr::from(([0; 4], 0));
        let mut server = Self { children, address: none, complaints: Vec::new(), ended: None };
        let line = server.next(Instant::now() + PATIENCE)?;
        match line.as_deref().and_then(address) {
            Some(address) => server.address = address,
            None => {
                let said = server.complaints()?.join("; ");
                return Err(io::Error::other(format!("the server did not start: {said}")));
            }
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.children.pid(0)
    }

    /// What it has said on standard error since the last call.
    pub fn complaints(&mut self) -> io::Result<Vec<String>> {
        self.next(Instant::now())?;
        Ok(std::mem::take(&mut self.complaints))
    }

    /// Asks it to stop as Ctrl-C would, and waits until it has.
    pub fn stop(mut self) -> io::Result<LastWords> {
        self.children.signal(0, libc::SIGINT);
        let deadline = Instant::now() + PATIENCE;
        while self.next(deadline)?.is_some() {}
        match self.ended {
            Some(status) => Ok(LastWords { status, complaints: self.complaints }),
            None => Err(io::Error::other(format!("the server did not stop within {PATIENCE:?}"))),
        }
    }

    /// Hears it until `deadline`, its end, or a line of its standard output, which is returned.
    fn next(&mut self, deadline: Instant) -> io::Result<Option<String>> {
        while self.ended.is_none() {
            match self.children.next(deadline)? {
                Some(Event::Line { text, .. }) => return Ok(Some(text)),
                Some(Event::Complaint { text, .. }) => self.complaints.push(text),
                Some(Event::Ended { status, .. }) => self.ended = Some(status),
                Some(Event::Signal) => {}
                None => break,
            }
        }
        Ok(None)
    }
}
