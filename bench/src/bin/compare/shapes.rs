//! What is measured, who takes part, and the bars that sleave has to clear.
//!
//! A shape without a peer in its list is one that the peer has not (Boost.Fiber has no sockets, a coroutine without a scheduler does
//! not sleep) or cannot do here (OS threads and may's stacks end at the kernel's 65,530 mappings: some 16,000 of either).
//! One worker each, unless the name says otherwise.

use crate::peers::Peer::{self, *};

/// What a figure is counted in.
#[derive(Clone, Copy, PartialEq)]
pub enum Unit {
    /// Nanoseconds, of the clock or of a processor.
    Nanoseconds,
    /// Bytes, resident and of page tables together.
    Bytes,
}

/// How a sample is taken.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// The program measures itself and tells one figure.
    Own,
    /// Fibers park; memory is read before and after.
    Park,
    /// A server is loaded; its processor time is read before and after.
    Echo,
    /// A server holds connections that do nothing; memory is read before and after.
    Idle,
}

/// One thing to measure.
pub struct Shape {
    /// Its name on the command line.
    pub name: &'static str,
    /// What one figure is, in words.
    pub about: &'static str,
    /// What the programs call it.
    pub order: &'static str,
    /// Fibers or connections.
    pub count: usize,
    /// Operations of all of them together.
    pub effort: usize,
    pub workers: usize,
    pub kind: Kind,
    /// What a sample consists of.
    pub figures: &'static [(&'static str, Unit)],
    /// Who takes part; sleave first.
    pub peers: &'static [Peer],
}

const TIME: &[(&str, Unit)] = &[("time", Unit::Nanoseconds)];
const CPU: &[(&str, Unit)] = &[("processor time", Unit::Nanoseconds)];
const PARKED: &[(&str, Unit)] = &[("memory", Unit::Bytes), ("creation", Unit::Nanoseconds)];
const HELD: &[(&str, Unit)] = &[("memory", Unit::Bytes)];

const COROUTINES: &[Peer] = &[SleaveCoroutine, Corosensei, Generator, Boost];
const SCHEDULERS: &[Peer] = &[Sleave, Tokio, TokioPool, May, Go, Boost];
const WITH_THREADS: &[Peer] = &[Sleave, Tokio, TokioPool, May, Go, Boost, Threads];
const MANY: &[Peer] = &[Sleave, Tokio, TokioPool, Go, Boost];
const TWO: &[Peer] = &[Sleave, TokioPool, May, Go];
const SERVERS: &[Peer] = &[Sleave, Epoll, TokioPool, May, Go, Threads];

/// What all shapes of a kind have in common.
const fn own(
    name: &'static str,
    order: &'static str,
    count: usize,
    effort: usize,
    peers: &'static [Peer],
) -> Shape {
    Shape {
        name,
        about: "",
        order,
        count,
        effort,
        workers: 1,
        kind: Kind::Own,
        figures: TIME,
        peers,
    }
}

const fn echo(name: &'static str, about: &'static str, count: usize) -> Shape {
    Shape { about, kind: Kind::Echo, figures: CPU, ..own(name, "echo", count, count, SERVERS) }
}

const fn park(
    name: &'static str,
    about: &'static str,
    count: usize,
    peers: &'static [Peer],
) -> Shape {
    Shape { about, kind: Kind::Park, figures: PARKED, ..own(name, "park", count, count, peers) }
}

/// All of them, in the order in which they are measured.
pub const SHAPES: &[Shape] = &[
    Shape {
        about: "one switch: a coroutine is resumed and suspends itself, half of it",
        ..own("switch-1", "switch", 1, 20_000_000, COROUTINES)
    },
    Shape {
        about: "the same, 1,000 coroutines in turn",
        ..own("switch-1000", "switch", 1_000, 10_000_000, COROUTINES)
    },
    Shape {
        about: "one yield of 1,000 fibers in turn",
        ..own("yield-1000", "yield", 1_000, 2_000_000, WITH_THREADS)
    },
    Shape {
        about: "one yield of 10,000 fibers in turn",
        ..own("yield-10000", "yield", 10_000, 2_000_000, SCHEDULERS)
    },
    Shape {
        about: "one yield of a million fibers in turn",
        ..own("yield-1000000", "yield", 1_000_000, 20_000_000, MANY)
    },
    Shape {
        about: "spawn and join, one at a time",
        ..own("spawn-1", "spawn", 1, 50_000, WITH_THREADS)
    },
    Shape {
        about: "spawn and join, 1,000 outstanding",
        ..own("spawn-1000", "spawn", 1_000, 400_000, WITH_THREADS)
    },
    Shape {
        about: "spawn and join, a million outstanding",
        ..own("spawn-1000000", "spawn", 1_000_000, 1_000_000, MANY)
    },
    Shape {
        about: "spawn and join, 1,000 outstanding, two workers",
        workers: 2,
        ..own("spawn2-1000", "spawn", 1_000, 400_000, TWO)
    },
    Shape {
        about: "spawn and join, a million outstanding, two workers",
        workers: 2,
        ..own("spawn2-1000000", "spawn", 1_000_000, 1_000_000, &[Sleave, TokioPool, Go])
    },
    Shape {
        about: "a message from one fiber to another, there and back: std's mpsc, or the peer's own channel",
        ..own("mpsc", "mpsc", 1, 200_000, WITH_THREADS)
    },
    Shape {
        about: "the same over crossbeam's channel",
        ..own("crossbeam", "crossbeam", 1, 200_000, &[Sleave, Threads])
    },
    Shape {
        about: "a mutex that is held over a yield, 64 fibers in need of it",
        ..own("mutex", "mutex", 64, 64_000, WITH_THREADS)
    },
    Shape {
        about: "a sleep of 1 to 1,000 ms, 100,000 fibers",
        figures: CPU,
        ..own("timers", "timers", 100_000, 400_000, &[Sleave, Tokio, TokioPool, Go, Boost])
    },
    park("park-1000", "a parked fiber, of 1,000", 1_000, WITH_THREADS),
    park("park-100000", "a parked fiber, of 100,000", 100_000, MANY),
    park("park-1000000", "a parked fiber, of a million", 1_000_000, MANY),
    echo("echo-50", "an echoed request over 50 connections: the server's processor time", 50),
    echo("echo-500", "the same over 500 connections", 500),
    echo("echo-5000", "the same over 5,000 connections", 5_000),
    Shape {
        about: "a connection that waits for its next request, of 8,000",
        kind: Kind::Idle,
        figures: HELD,
        ..own("idle", "echo", 8_000, 8_000, SERVERS)
    },
];

/// How much a figure of sleave's may be.
pub enum Limit {
    /// So many times the figure of the best of these peers.
    Peers(f64, &'static [Peer]),
    /// So many times sleave's own in another shape.
    Shape(f64, &'static str),
    /// So much.
    Fixed(f64),
}

/// What has to hold.
pub struct Bar {
    pub shape: &'static str,
    /// Which of the shape's figures.
    pub figure: usize,
    pub limit: Limit,
}

const fn bar(shape: &'static str, figure: usize, limit: Limit) -> Bar {
    Bar { shape, figure, limit }
}

const TOKIO: &[Peer] = &[Tokio, TokioPool];
const KIB: f64 = 1024.0;

/// All bars. Where tokio has two schedulers the faster one counts, except where one is named.
pub const BARS: &[Bar] = &[
    bar("yield-1000", 0, Limit::Peers(0.6, &[Tokio])),
    bar("yield-1000000", 0, Limit::Shape(4.0, "yield-1000")),
    bar("spawn-1", 0, Limit::Peers(0.8, TOKIO)),
    bar("spawn-1000", 0, Limit::Peers(0.6, &[Go])),
    bar("spawn-1000000", 0, Limit::Peers(0.6, &[Go])),
    bar("spawn2-1000", 0, Limit::Peers(0.6, &[Go])),
    bar("spawn2-1000000", 0, Limit::Peers(0.6, &[Go])),
    bar("mpsc", 0, Limit::Peers(0.8, TOKIO)),
    bar("timers", 0, Limit::Peers(0.8, TOKIO)),
    bar("park-1000000", 0, Limit::Fixed(8.7 * KIB)),
    bar("park-1000000", 1, Limit::Peers(1.0, &[Go])),
    bar("echo-50", 0, Limit::Peers(1.05, &[Epoll])),
    bar("echo-500", 0, Limit::Peers(1.05, &[Epoll])),
    bar("echo-5000", 0, Limit::Peers(1.10, &[Epoll])),
    bar("idle", 0, Limit::Fixed(9.5 * KIB)),
];
