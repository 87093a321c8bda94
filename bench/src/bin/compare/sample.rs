//! One sample: a process is started, does one shape, and ends.
//!
//! The protocol is that of `sleave_bench::peer`. Memory is `VmRSS` and `VmPTE` of the process, read while it stands still;
//! processor time is its `utime` and `stime`. Both are read here, the same way for every peer.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::children::{Children, Event};
use crate::load::{self, Load, Plan};
use crate::process;
use crate::server::Server;
use crate::shapes::{Kind, Shape};

/// How long a program may take for one sample.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a request.
const PAYLOAD: usize = 64;

/// Runs `command`, and returns as many figures as the shape has.
pub fn take(mut command: Command, shape: &Shape, quick: bool) -> io::Result<Vec<f64>> {
    match shape.kind {
        Kind::Own => own(&mut command),
        Kind::Park => park(&mut command, shape.count),
        Kind::Echo => {
            echo(&mut command, shape.count, Duration::from_millis(if quick { 500 } else { 1500 }))
        }
        Kind::Idle => idle(&mut command, shape.count),
    }
}

/// A program that measures itself.
fn own(command: &mut Command) -> io::Result<Vec<f64>> {
    let mut children = Children::new();
    children.start(command)?;
    let figures = figures(&line(&mut children, "figures ")?)?;
    Ok(figures)
}

/// Memory and creation of a parked fiber.
fn park(command: &mut Command, count: usize) -> io::Result<Vec<f64>> {
    let mut children = Children::new();
    children.start(command)?;
    line(&mut children, "base")?;
    let before = process::memory(children.pid(0))?.total();
    children.tell(0, "")?;
    let mut told = figures(&line(&mut children, "parked ")?)?;
    let after = process::memory(children.pid(0))?.total();
    told.insert(0, after.saturating_sub(before) as f64 / count as f64);
    Ok(told)
}

/// The server's processor time for a request, in nanoseconds.
fn echo(command: &mut Command, connections: usize, span: Duration) -> io::Result<Vec<f64>> {
    let server = Server::start(command)?;
    let mut load = open(&server, connections)?;
    let before = process::cpu_time(server.pid())?;
    let outcome = load.run(connections, span, &mut |_, _| {})?;
    let spent = process::cpu_time(server.pid())?.saturating_sub(before);
    if let Some(error) = outcome.first_error {
        return Err(io::Error::other(format!("{} errors: {error}", outcome.errors)));
    }
    drop(load);
    server.stop()?;
    Ok(vec![spent.as_nanos() as f64 / outcome.replies.max(1) as f64])
}

/// What the server holds for a connection that has had one request.
fn idle(command: &mut Command, connections: usize) -> io::Result<Vec<f64>> {
    let server = Server::start(command)?;
    let before = process::memory(server.pid())?.total();
    let load = open(&server, connections)?;
    let after = process::memory(server.pid())?.total();
    drop(load);
    server.stop()?;
    Ok(vec![after.saturating_sub(before) as f64 / connections as f64])
}

fn open(server: &Server, connections: usize) -> io::Result<Load> {
    let plan = Plan {
        server: server.address(),
        connections,
        first: 0,
        payload: PAYLOAD,
        patience: load::PATIENCE,
    };
    match Load::open(plan, &mut |_| {})? {
        (load, None) => Ok(load),
        (load, Some(refusal)) => {
            let message = format!("{} connections, then: {}", load.connections(), refusal.reason);
            Err(io::Error::other(message))
        }
    }
}

/// The next line of the child, which begins with `word`; what comes after that.
fn line(children: &mut Children, word: &str) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut complaint = None;
    loop {
        match children.next(deadline)? {
            Some(Event::Line { text, .. }) => match text.strip_prefix(word) {
                Some(rest) => return Ok(rest.to_owned()),
                None => return Err(io::Error::other(format!("it said {text:?}"))),
            },
            // The first says most: what follows a panic's message is advice.
            Some(Event::Complaint { text, .. }) if !text.trim().is_empty() => {
                complaint.get_or_insert(text);
            }
            Some(Event::Complaint { .. } | Event::Signal) => {}
            Some(Event::Ended { status, .. }) => {
                let complaint = complaint.map_or(String::new(), |text| format!(": {text}"));
                return Err(io::Error::other(format!("it ended with {status}{complaint}")));
            }
            None => return Err(io::Error::other(format!("no answer within {PATIENCE:?}"))),
        }
    }
}

fn figures(text: &str) -> io::Result<Vec<f64>> {
    let parse = |word: &str| {
        word.parse::<f64>().map_err(|_| io::Error::other(format!("no figure: {word:?}")))
    };
    text.split_ascii_whitespace().map(parse).collect()
}
