//! The load generator: many connections, one thread, every reply checked.
//!
//! A plain edge-triggered epoll loop, and deliberately not a program of fibers: it is the *witness* of what
//! the server does. Were both ends built on the same runtime, one fault could hide another (a wake-up lost
//! on both sides looks like silence), and a change in the runtime would move both ends of the measurement.
//! It depends on no interposed call: its sockets are non-blocking and it runs on an ordinary thread.
//!
//! The load is *closed*: each connection has one request outstanding and sends the next as soon as the
//! reply has come. So the latency shown is that at saturation (connections divided by throughput, by
//! Little's law), and requests per second is the capacity of the machine, shared with this very loop, which
//! spends one `write`, one `read` and a fraction of an `epoll_wait` per request.
//!
//! ```text
//!  open()  ── at most WINDOW connections between connect and first checked reply ──▶ Load
//!  run()   ── every active connection: request ▶ reply ▶ request …   until the deadline
//!             then only replies, until the last has come or the patience has passed (what is missing is an error)
//!  round() ── every connection once: request ▶ reply, at most `window` of them at a time
//! ```
//!
//! A connection counts as open only when its first exchange has come back. That is what notices a server that
//! accepts but cannot serve, and it bounds the server's accept queue: no more than WINDOW can be in it
//! (std asks for 128, `net.core.somaxconn` may allow less).
//!
//! Sources: epoll(7), listen(2); Schroeder, Wierman, Harchol-Balter: *Open Versus Closed* (NSDI 2006).

mod connection;
mod payload;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token};

use connection::{Connection, Step};

/// Connections on their way at any time.
pub const WINDOW: usize = 64;
/// Attempts per connection where the kernel says "not now".
const ATTEMPTS: u32 = 5;
/// How often the caller hears of progress.
const TICK: Duration = Duration::from_millis(100);
/// Bytes moved in one call at most.
const SCRATCH: usize = 64 * 1024;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where the echo server listens.
    pub server: SocketAddr,
    /// Connections to open.
    pub connections: usize,
    /// The number of the first. Where several processes share the load, each has numbers of its own: they set the
    /// payloads apart and choose the source addresses.
    pub first: usize,
    /// Bytes of each request.
    pub payload: usize,
    /// How long nothing at all may happen while connecting, and how long the last replies may take.
    pub patience: Duration,
}

/// A patience that a loaded machine does not try.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why no more connections could be opened.
#[derive(Debug)]
pub struct Refusal {
    /// The first failure, in words.
    pub reason: String,
}

/// What a run has shown.
#[derive(Debug)]
pub struct Outcome {
    /// Replies within the time asked for.
    pub replies_in_time: u64,
    /// All replies, the last ones that came after the deadline among them.
    pub replies: u64,
    /// From the first request to the deadline.
    pub elapsed: Duration,
    /// Nanoseconds from request to complete reply.
    pub latency: Histogram<u64>,
    /// Connections that failed, replies that were wrong or never came.
    pub errors: u64,
    /// The first of them in words.
    pub first_error: Option<String>,
}

/// Open connections, ready to run.
pub struct Load {
    poll: Poll,
    events: Events,
    connections: Vec<Option<Connection>>,
    payload: usize,
    patience: Duration,
    scratch: Vec<u8>,
}

impl Load {
    /// Opens the connections, each with one checked exchange. Where that fails for one of them no further are
    /// opened, and the reason comes back beside those that stand.
    pub fn open(
        plan: Plan,
        progress: &mut dyn FnMut(usize),
    ) -> io::Result<(Self, Option<Refusal>)> {
        let mut load = Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            connections: Vec::with_capacity(plan.connections),
            payload: plan.payload,
            patience: plan.patience,
            scratch: vec![0; SCRATCH],
        };
        let refusal = load.open_all(plan, progress)?;
        load.connections.retain(Option::is_some);
        // Tokens are positions: after the gaps are gone each connection is told its new one.
        if refusal.is_some() {
            for (position, connection) in load.connections.iter_mut().enumerate() {
                if let Some(connection) = connection {
                    load.poll.registry().reregister(
                        connection.source(),
                        Token(position),
                        INTEREST,
                    )?;
                }
            }
        }
        Ok((load, refusal))
    }

    fn open_all(
        &mut self,
        plan: Plan,
        progress: &mut dyn FnMut(usize),
    ) -> io::Result<Option<Refusal>> {
        let (mut opened, mut underway) = (0, 0);
        let mut refusal: Option<Refusal> = None;
        let (mut last_success, mut last_tick) = (Instant::now(), Instant::now());
        loop {
            while refusal.is_none()
                && underway < WINDOW
                && self.connections.len() < plan.connections
            {
                match self.start_one(plan) {
                    Ok(()) => underway += 1,
                    Err(error) => refusal = Some(Refusal { reason: error.to_string() }),
                }
            }
            if underway == 0 {
                progress(opened);
                return Ok(refusal);
            }
            wait(&mut self.poll, &mut self.events, TICK)?;
            let now = Instant::now();
            for event in &self.events {
                let slot = &mut self.connections[event.token().0];
                let Some(connection) = slot else { continue };
                let was_outstanding = connection.is_outstanding();
                match connection.advance(now, self.payload, &mut self.scratch) {
                    Ok(Step::Pending) => {}
                    Ok(Step::Replied) => {
                        underway -= 1;
                        opened += 1;
                        last_success = now;
                    }
                    Err(error) => {
                        *slot = None;
                        if was_outstanding {
                            underway -= 1;
                        } else {
                            opened -= 1;
                        }
                        refusal.get_or_insert(Refusal { reason: error.to_string() });
                    }
                }
            }
            if now - last_tick >= TICK {
                progress(opened);
                last_tick = now;
            }
            if now - last_success >= plan.patience {
                for slot in &mut self.connections {
                    slot.take_if(|connection| connection.is_outstanding());
                }
                underway = 0;
                let reason =
                    format!("the server answered no new connection for {:?}", plan.patience);
                refusal.get_or_insert(Refusal { reason });
            }
        }
    }

    /// Begins one more connection and registers it.
    fn start_one(&mut self, plan: Plan) -> io::Result<()> {
        let position = self.connections.len();
        let mut attempt = 1;
        let mut connection = loop {
            match Connection::open(plan.server, plan.first + position) {
                Ok(connection) => break connection,
                Err(error) if attempt < ATTEMPTS && is_transient(&error) => {
                    attempt += 1;
                    // Ports come back as others close theirs; a pause is all that helps.
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error),
            }
        };
        self.poll.registry().register(connection.source(), Token(position), INTEREST)?;
        self.connections.push(Some(connection));
        Ok(())
    }

    /// The number of connections that stand.
    pub fn connections(&self) -> usize {
        self.connections.iter().flatten().count()
    }

    /// Keeps the first `active` connections busy for `duration`; the others stay open and silent.
    pub fn run(
        &mut self,
        active: usize,
        duration: Duration,
        progress: &mut dyn FnMut(Duration, u64),
    ) -> io::Result<Outcome> {
        let begin = Instant::now();
        let deadline = begin + duration;
        let mut tally = Tally::new();
        for slot in self.connections.iter_mut().filter(|slot| slot.is_some()).take(active) {
            tally.send(slot, Instant::now(), self.payload, &mut self.scratch);
        }
        let (mut now, mut last_tick) = (Instant::now(), begin);
        while tally.outstanding > 0 && now < deadline + self.patience {
            // Up to the deadline no longer than to it, so that its passing is seen at once.
            let left = if now < deadline { deadline - now } else { TICK };
            self.turn(&mut tally, deadline, left.min(TICK))?;
            now = Instant::now();
            if now - last_tick >= TICK {
                progress(now - begin, tally.in_time);
                last_tick = now;
            }
        }
        tally.miss(self.patience);
        Ok(tally.outcome(duration.min(now - begin)))
    }

    /// One request and its reply on each connection, at most `window` of them at a time: proof that every one is
    /// alive. The replies count as late ones, since no time was asked for.
    pub fn round(&mut self, window: usize, progress: &mut dyn FnMut(u64)) -> io::Result<Outcome> {
        let begin = Instant::now();
        let mut tally = Tally::new();
        let (mut at, mut last_reply, mut last_tick) = (0, begin, begin);
        loop {
            while at < self.connections.len() && tally.outstanding < window as u64 {
                let slot = &mut self.connections[at];
                // One that has failed meanwhile has been counted as an error.
                tally.send(slot, Instant::now(), self.payload, &mut self.scratch);
                at += 1;
            }
            let now = Instant::now();
            if tally.outstanding == 0 || now - last_reply >= self.patience {
                progress(tally.late);
                // Those that were not asked because so many others owe a reply have not shown that they are alive.
                tally.outstanding += self.connections[at..].iter().flatten().count() as u64;
                tally.miss(self.patience);
                return Ok(tally.outcome(now - begin));
            }
            let before = tally.late;
            // The deadline has passed: nobody sends again by itself.
            self.turn(&mut tally, begin, TICK)?;
            if tally.late > before {
                last_reply = Instant::now();
            }
            if now - last_tick >= TICK {
                progress(tally.late);
                last_tick = now;
            }
        }
    }

    /// Waits for events, at most `timeout`, and deals with each. A connection whose reply has come before `deadline`
    /// sends its next request.
    fn turn(&mut self, tally: &mut Tally, deadline: Instant, timeout: Duration) -> io::Result<()> {
        wait(&mut self.poll, &mut self.events, timeout)?;
        let mut now = Instant::now();
        for event in &self.events {
            let slot = &mut self.connections[event.token().0];
            let Some(connection) = slot else { continue };
            let was_outstanding = connection.is_outstanding();
            match connection.advance(now, self.payload, &mut self.scratch) {
                Ok(Step::Pending) => {}
                Ok(Step::Replied) => {
                    // One look at the clock per request: it ends this one and begins the next.
                    now = Instant::now();
                    tally.replied(now - connection.started(), now < deadline);
                    if now < deadline {
                        tally.send(slot, now, self.payload, &mut self.scratch);
                    }
                }
                Err(error) => {
                    *slot = None;
                    tally.outstanding -= u64::from(was_outstanding);
                    tally.error(error.to_string());
                }
            }
        }
        Ok(())
    }
}

/// Registered once for both directions: with edges, a direction that stays ready costs nothing.
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Counts of a run.
struct Tally {
    outstanding: u64,
    in_time: u64,
    late: u64,
    latency: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

impl Tally {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(100, 120_000_000_000, 3)
            .expect("bounds that hdrhistogram allows");
        Self { outstanding: 0, in_time: 0, late: 0, latency, errors: 0, first_error: None }
    }

    fn send(
        &mut self,
        slot: &mut Option<Connection>,
        now: Instant,
        size: usize,
        scratch: &mut [u8],
    ) {
        let Some(connection) = slot else { return };
        match connection.send(now, size, scratch) {
            Ok(()) => self.outstanding += 1,
            Err(error) => {
                *slot = None;
                self.error(error.to_string());
            }
        }
    }

    fn replied(&mut self, latency: Duration, in_time: bool) {
        self.outstanding -= 1;
        if in_time {
            self.in_time += 1;
        } else {
            self.late += 1;
        }
        // The late ones count here: to leave out the slowest would flatter the server.
        self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What is still outstanding has been waited for long enough.
    fn miss(&mut self, patience: Duration) {
        if self.outstanding > 0 {
            let missing =
                format!("{} replies missing {patience:?} after the end", self.outstanding);
            self.errors += self.outstanding - 1;
            self.error(missing);
        }
    }

    fn error(&mut self, reason: String) {
        self.errors += 1;
        self.first_error.get_or_insert(reason);
    }

    fn outcome(self, elapsed: Duration) -> Outcome {
        Outcome {
            replies_in_time: self.in_time,
            replies: self.in_time + self.late,
            elapsed,
            latency: self.latency,
            errors: self.errors,
            first_error: self.first_error,
        }
    }
}

/// Waits for events; a signal that interrupts the wait is no error.
fn wait(poll: &mut Poll, events: &mut Events, timeout: Duration) -> io::Result<()> {
    match poll.poll(events, Some(timeout)) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            events.clear();
            Ok(())
        }
        other => other,
    }
}

/// Whether a later attempt to connect may succeed.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE | libc::EAGAIN | libc::EINTR | libc::ENOBUFS)
    )
}

#[cfg(test)]
mod tests;
