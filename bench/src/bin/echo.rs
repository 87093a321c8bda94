//! What an echoed request costs the server: a plain epoll loop, `sleave echo`, tokio, in one run.
//!
//! The figure that counts is the server's processor time per request, because the load generator shares the machine and
//! requests per second measure the two of them together. Both are shown.
//!
//! ```text
//!   this process                       one server process at a time, fresh for each sample
//!   load generator (one thread) ◀───▶  echo_epoll W │ sleave echo --workers W │ echo_tokio W
//! ```
//!
//! The samples are interleaved: each round measures every server once, and each round begins with another, so that a
//! machine that grows warm or busy treats all alike. Shown is the median over the rounds; a ratio is the median
//! of the ratios within each round, never a ratio of two separate runs.
//!
//! The load generator, the reading of /proc and the starting of servers are those of `sleave demo`: the very same
//! files, compiled in. It checks each reply, and one wrong byte makes the run fail.

#[allow(dead_code, reason = "the demonstration uses more of it")]
#[path = "../../../crates/cli/src/children.rs"]
mod children;
#[allow(dead_code, reason = "the demonstration uses more of it")]
#[path = "../../../crates/cli/src/limits.rs"]
mod limits;
#[allow(dead_code, reason = "the demonstration uses more of it")]
#[path = "../../../crates/cli/src/load/mod.rs"]
mod load;
#[allow(dead_code, reason = "the demonstration uses more of it")]
#[path = "../../../crates/cli/src/process.rs"]
mod process;
#[allow(dead_code, reason = "the demonstration uses more of it")]
#[path = "../../../crates/cli/src/server.rs"]
mod server;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use serde::Serialize;

use load::{Load, Plan};
use server::Server;

/// Echo servers side by side: processor time per request, requests per second.
#[derive(Parser)]
struct Arguments {
    /// Connections, all of them open at a time
    #[arg(long, value_delimiter = ',', default_values_t = [50, 500, 5_000])]
    connections: Vec<usize>,
    /// How many of them are busy (all, unless given)
    #[arg(long)]
    active: Option<usize>,
    /// Threads of the server
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    workers: Vec<usize>,
    /// Samples of each server
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a sample
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Bytes of each request
    #[arg(long, default_value_t = 64)]
    payload: usize,
    /// The tool to measure (built by `cargo build --release` at the top of the checkout)
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/sleave"))]
    sleave: PathBuf,
    /// Three short samples instead of five
    #[arg(long)]
    quick: bool,
    /// One JSON object a line instead of the table
    #[arg(long)]
    json: bool,
}

/// The servers, the one that the others are compared with first.
const SERVERS: [&str; 3] = ["epoll loop", "sleave", "tokio"];

/// One run of one server.
#[derive(Clone, Copy)]
struct Sample {
    cpu_us: f64,
    per_second: f64,
    p99_us: f64,
}

/// The medians of one server in one setting.
#[derive(Serialize)]
struct Line {
    benchmark: &'static str,
    server: &'static str,
    workers: usize,
    connections: usize,
    active: usize,
    payload_bytes: usize,
    rounds: usize,
    cpu_us_per_request: f64,
    cpu_ratio_to_epoll: f64,
    requests_per_second: f64,
    requests_ratio_to_epoll: f64,
    p99_us: f64,
}

fn main() -> ExitCode {
    match measure(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(mut arguments: Arguments) -> io::Result<()> {
    if arguments.quick {
        (arguments.rounds, arguments.seconds) = (3, 0.5);
    }
    // Inherited by the servers, so that 5,000 connections need no setting of the shell.
    eprintln!("{}", limits::raise_open_files()?);
    if !arguments.json {
        println!(
            "| threads | connections | server | CPU µs/request | × epoll | requests/s | × epoll | p99 ms |"
        );
        println!("|--:|--:|:--|--:|--:|--:|--:|--:|");
    }
    for &workers in &arguments.workers {
        for &connections in &arguments.connections {
            // samples[round][server]
            let mut samples = Vec::new();
            for round in 0..arguments.rounds.max(1) {
                let mut row = [None; SERVERS.len()];
                for turn in 0..SERVERS.len() {
                    let which = (round + turn) % SERVERS.len();
                    eprintln!(
                        "{connections} connections, {workers} threads, round {}: {}",
                        round + 1,
                        SERVERS[which]
                    );
                    row[which] = Some(sample(&arguments, which, workers, connections)?);
                }
                samples.push(row.map(|sample| sample.expect("each server has had its turn")));
            }
            for which in 0..SERVERS.len() {
                print(&line(&arguments, &samples, which, workers, connections), arguments.json)?;
            }
        }
    }
    Ok(())
}

/// Starts a server, loads it, and returns what it took.
fn sample(
    arguments: &Arguments,
    which: usize,
    workers: usize,
    connections: usize,
) -> io::Result<Sample> {
    let server = Server::start(&mut command(arguments, which, workers)?)?;
    let plan = Plan {
        server: server.address(),
        connections,
        first: 0,
        payload: arguments.payload,
        patience: load::PATIENCE,
    };
    let (mut load, refusal) = Load::open(plan, &mut |_| {})?;
    if let Some(refusal) = refusal {
        return Err(io::Error::other(format!("{}: {}", SERVERS[which], refusal.reason)));
    }
    let before = process::cpu_time(server.pid())?;
    let active = arguments.active.unwrap_or(connections);
    let outcome = load.run(active, Duration::from_secs_f64(arguments.seconds), &mut |_, _| {})?;
    let cpu = process::cpu_time(server.pid())?.saturating_sub(before);
    if let Some(error) = outcome.first_error {
        let errors = outcome.errors;
        return Err(io::Error::other(format!("{}: {errors} errors: {error}", SERVERS[which])));
    }
    drop(load);
    server.stop()?;
    Ok(Sample {
        cpu_us: cpu.as_secs_f64() * 1e6 / outcome.replies.max(1) as f64,
        per_second: outcome.replies_in_time as f64 / outcome.elapsed.as_secs_f64(),
        p99_us: outcome.latency.value_at_quantile(0.99) as f64 / 1e3,
    })
}

fn command(arguments: &Arguments, which: usize, workers: usize) -> io::Result<Command> {
    let workers = workers.to_string();
    let beside = |name: &str| Ok::<_, io::Error>(std::env::current_exe()?.with_file_name(name));
    let (program, options): (PathBuf, Vec<&str>) = match which {
        0 => (beside("echo_epoll")?, vec![&workers]),
        1 => (
            arguments.sleave.clone(),
            vec!["echo", "--listen", "127.0.0.1:0", "--mode", "fibers", "--workers", &workers],
        ),
        _ => (beside("echo_tokio")?, vec![&workers]),
    };
    require(&program)?;
    let mut command = Command::new(program);
    command.args(options);
    Ok(command)
}

/// `cargo run --bin echo` builds only this program; the others need a word.
fn require(program: &Path) -> io::Result<()> {
    if program.exists() {
        return Ok(());
    }
    let message = format!(
        "{} is not there: run `cargo build --release` here and at the top of the checkout",
        program.display()
    );
    Err(io::Error::new(io::ErrorKind::NotFound, message))
}

fn line(
    arguments: &Arguments,
    samples: &[[Sample; SERVERS.len()]],
    which: usize,
    workers: usize,
    connections: usize,
) -> Line {
    let over = |figure: &dyn Fn(&[Sample; SERVERS.len()]) -> f64| {
        median(samples.iter().map(figure).collect())
    };
    Line {
        benchmark: "echo",
        server: SERVERS[which],
        workers,
        connections,
        active: arguments.active.map_or(connections, |active| active.min(connections)),
        payload_bytes: arguments.payload,
        rounds: samples.len(),
        cpu_us_per_request: over(&|row| row[which].cpu_us),
        cpu_ratio_to_epoll: over(&|row| row[which].cpu_us / row[0].cpu_us),
        requests_per_second: over(&|row| row[which].per_second),
        requests_ratio_to_epoll: over(&|row| row[which].per_second / row[0].per_second),
        p99_us: over(&|row| row[which].p99_us),
    }
}

fn print(line: &Line, json: bool) -> io::Result<()> {
    if json {
        println!("{}", serde_json::to_string(line).map_err(io::Error::other)?);
    } else {
        println!(
            "| {} | {} | {} | {:.2} | {:.2} | {:.0} | {:.2} | {:.2} |",
            line.workers,
            line.connections,
            line.server,
            line.cpu_us_per_request,
            line.cpu_ratio_to_epoll,
            line.requests_per_second,
            line.requests_ratio_to_epoll,
            line.p99_us / 1e3,
        );
    }
    Ok(())
}

/// The middle one; of an even number the mean of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}
