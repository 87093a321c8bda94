//! The demonstration: the same echo server on threads and on fibers, each under the same load.
//!
//! ```text
//!   this process                              server process (this program again: `sleave echo …`)
//!   ────────────                              ─────────────────────────────────────────────────────
//!   start, read `listening on ADDR`  ◀──────  bind
//!   look: memory before                       one accept loop waiting
//!   open N connections, check each   ◀─────▶  a thread or a fiber for each
//!   run S seconds, check every reply ◀─────▶  read, write, read, write …
//!   look: memory, threads, CPU                all N still open
//!   close all by reset; SIGINT       ──────▶  the connections end, exit 0
//! ```
//!
//! Two processes, since each end of a connection costs a descriptor and the limit counts by process, and so that
//! the server's memory and processor time are its own.
//!
//! On threads, a server that cannot start another one has met the machine's limit, and the run goes on with what
//! stands. On fibers the same would be a fault and counts as an error.

use std::io;
use std::process::Command;
use std::time::Duration;

use crate::args::{Demo, Mode};
use crate::console::{bar, print, say};
use crate::load::{self, Load, Outcome, Plan};
use crate::report::{self, Row, grouped};
use crate::server::Server;
use crate::{limits, process};

/// `sleave demo`. Says whether all went without an error.
pub fn run(arguments: &Demo) -> io::Result<bool> {
    let files = limits::raise_open_files()?;
    say(&files.to_string());
    let mut arguments = arguments.clone();
    let most =
        usize::try_from(files.now.saturating_sub(limits::RESERVED_FILES)).unwrap_or(usize::MAX);
    if most == 0 {
        return Err(io::Error::other("the limit of open files leaves no room for a connection"));
    }
    if arguments.connections > most {
        say(&format!(
            "{} connections instead of {}: each end of one is an open file, and the limit allows no more",
            grouped(most as u64),
            grouped(arguments.connections as u64),
        ));
        arguments.connections = most;
    }

    let mut rows = Vec::new();
    for mode in [Mode::Threads, Mode::Fibers] {
        let row = show(mode, &arguments)?;
        if arguments.json {
            print(&row.json())?;
        }
        rows.push(row);
    }
    if !arguments.json {
        print(&report::table(&rows))?;
        print(
            "Memory: resident pages and page tables of the server process. The kernel's own is not in it: \
             sockets in either mode, and a kernel stack (16 KiB on x86-64) for each OS thread.",
        )?;
    }
    Ok(rows.iter().all(|row| row.errors == 0))
}

/// Runs one mode from the start of its server to its end.
fn show(mode: Mode, arguments: &Demo) -> io::Result<Row> {
    let name = mode.name();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["echo", "--listen", "127.0.0.1:0", "--mode", name]);
    command.args(["--workers", &arguments.workers.to_string()]);
    let mut server = Server::start(&mut command)?;
    let before = process::memory(server.pid())?;
    let mut errors = 0;

    let plan = Plan {
        server: server.address(),
        connections: arguments.connections,
        first: 0,
        payload: arguments.payload,
        patience: load::PATIENCE,
    };
    let bar = bar(arguments.connections as u64, &format!("{name}: connecting"));
    let (mut load, refusal) = Load::open(plan, &mut |opened| bar.set_position(opened as u64))?;
    bar.finish_and_clear();
    let connections = load.connections();
    for line in server.complaints()? {
        say(&format!("{name} server: {line}"));
    }
    if let Some(refusal) = refusal {
        say(&format!(
            "{name}: {} connections, not {}: {}",
            grouped(connections as u64),
            grouped(arguments.connections as u64),
            refusal.reason
        ));
        errors += u64::from(mode == Mode::Fibers || connections == 0);
    }

    let duration = Duration::from_secs_f64(arguments.seconds);
    let cpu_before = process::cpu_time(server.pid())?;
    let outcome = keep_busy(&mut load, name, connections, duration)?;
    let cpu = process::cpu_time(server.pid())?.saturating_sub(cpu_before);
    // A server that has died has none; its errors and its exit status tell the story below.
    let memory = process::memory(server.pid()).unwrap_or(before);
    let os_threads = process::threads(server.pid())?;
    errors += outcome.errors;
    if let Some(error) = &outcome.first_error {
        say(&format!("{name}: {} errors, the first: {error}", grouped(outcome.errors)));
    }
    if outcome.replies == 0 {
        say(&format!("{name}: not a single reply"));
        errors += 1;
    }

    drop(load);
    let last_words = server.stop()?;
    if !last_words.status.success() {
        say(&format!("{name}: the server ended with {}", last_words.status));
        errors += 1;
    }
    for line in last_words.complaints {
        say(&format!("{name} server: {line}"));
    }

    let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    Ok(Row {
        mode,
        connections,
        os_threads,
        requests_per_second: report::tenths(
            outcome.replies_in_time as f64 / outcome.elapsed.as_secs_f64(),
        ),
        p50_us: report::tenths(microseconds(outcome.latency.value_at_quantile(0.50))),
        p99_us: report::tenths(microseconds(outcome.latency.value_at_quantile(0.99))),
        bytes_per_connection: memory.total().saturating_sub(before.total())
            / connections.max(1) as u64,
        errors,
        server_cpu_us_per_request: cpu.as_secs_f64() * 1e6 / outcome.replies.max(1) as f64,
        workers: arguments.workers,
        payload_bytes: arguments.payload,
        requests: outcome.replies,
        seconds: report::tenths(outcome.elapsed.as_secs_f64()),
    })
}

/// The running phase with its bar.
fn keep_busy(
    load: &mut Load,
    name: &str,
    connections: usize,
    duration: Duration,
) -> io::Result<Outcome> {
    let label = format!("{name}: {} connections busy", grouped(connections as u64));
    let bar = bar(duration.as_millis() as u64, &label);
    let outcome = load.run(connections, duration, &mut |elapsed, replies| {
        bar.set_position(elapsed.as_millis() as u64);
        bar.set_message(format!("{label}, {} replies", grouped(replies)));
    });
    bar.finish_and_clear();
    outcome
}
