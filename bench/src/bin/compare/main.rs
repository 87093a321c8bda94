//! sleave beside its peers, in one run: `cargo run --release --manifest-path bench/Cargo.toml`.
//!
//! ```text
//!  shapes.rs   what is measured, and the bars          peers.rs   who is measured: building and starting them
//!      │                                                  │
//!      ▼                                                  ▼
//!  main.rs     for each shape, for each round, for each peer (each round begins with another): one sample
//!      │                                                  │
//!      ▼                                                  ▼
//!  report.rs   medians, ratios, Markdown, JSON, bars   sample.rs  one process, one figure or two
//! ```
//!
//! Each sample is a process of its own, so that nobody pays for what another has left behind, and memory and processor time are
//! read from outside. Samples are interleaved: a machine that grows warm or busy treats all alike. What is shown is the median over
//! the rounds and the distance of the quartiles; a ratio is one of medians of the same run, never of two runs.
//!
//! The load generator, the reading of /proc and the starting of processes are those of the tool `sleave`: the very same
//! files, compiled in.

#[allow(dead_code, reason = "the tool uses more of it")]
#[path = "../../../../crates/cli/src/children.rs"]
mod children;
#[allow(dead_code, reason = "the tool uses more of it")]
#[path = "../../../../crates/cli/src/limits.rs"]
mod limits;
#[allow(dead_code, reason = "the tool uses more of it")]
#[path = "../../../../crates/cli/src/load/mod.rs"]
mod load;
mod peers;
#[allow(dead_code, reason = "the tool uses more of it")]
#[path = "../../../../crates/cli/src/process.rs"]
mod process;
mod report;
mod sample;
#[allow(dead_code, reason = "the tool uses more of it")]
#[path = "../../../../crates/cli/src/server.rs"]
mod server;
mod shapes;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use peers::Programs;
use report::{Entry, Report};
use shapes::{SHAPES, Shape};

/// sleave beside tokio, may, corosensei, generator, Boost.Fiber, Go, OS threads and a plain epoll loop.
#[derive(Parser)]
#[command(name = "compare")]
struct Arguments {
    /// Three rounds of a quarter of the work
    #[arg(long)]
    quick: bool,
    /// Only this shape, or those that begin so (may be given several times; `--list` names them)
    #[arg(long, value_name = "SHAPE")]
    only: Vec<String>,
    /// Samples of each peer in each shape
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Print `MISS shape: measured, bar` for each bar that is missed, and exit with 1 if one is
    #[arg(long)]
    check: bool,
    /// Write everything that was measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables as Markdown, instead of printing them
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Only name the shapes
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match compare(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::from(2)
        }
    }
}

fn compare(arguments: &Arguments) -> io::Result<ExitCode> {
    let chosen = chosen(&arguments.only)?;
    if arguments.list {
        for shape in chosen {
            writeln!(io::stdout(), "{:<16} {}", shape.name, shape.about)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Inherited by the servers, so that thousands of connections need no setting of the shell.
    limits::raise_open_files()?;
    let programs = Programs::build()?;
    let rounds = arguments.rounds.map_or(if arguments.quick { 3 } else { 7 }, usize::from);
    let report = Report {
        quick: arguments.quick,
        rounds,
        entries: measure(&chosen, &programs, rounds, arguments.quick),
    };

    let markdown = report.markdown();
    match &arguments.markdown {
        Some(path) => std::fs::write(path, markdown)?,
        None => io::stdout().write_all(markdown.as_bytes())?,
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json()?)?;
    }
    if !arguments.check {
        return Ok(ExitCode::SUCCESS);
    }
    let complaints = report.complaints();
    complaints.iter().try_for_each(|complaint| writeln!(io::stdout(), "{complaint}"))?;
    let missed = complaints.iter().any(|complaint| complaint.starts_with("MISS"));
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The shapes whose names begin with one of `only`; all, if it is empty.
fn chosen(only: &[String]) -> io::Result<Vec<&'static Shape>> {
    if let Some(unknown) =
        only.iter().find(|word| !SHAPES.iter().any(|s| s.name.starts_with(*word)))
    {
        return Err(io::Error::other(format!(
            "no shape is called {unknown:?}; `--list` names them"
        )));
    }
    let wanted =
        |shape: &&Shape| only.is_empty() || only.iter().any(|word| shape.name.starts_with(word));
    Ok(SHAPES.iter().filter(wanted).collect())
}

fn measure(
    chosen: &[&'static Shape],
    programs: &Programs,
    rounds: usize,
    quick: bool,
) -> Vec<Entry> {
    let total: usize = chosen.iter().map(|shape| shape.peers.len() * rounds).sum();
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left");
    let bar =
        ProgressBar::new(total as u64).with_style(style.expect("a template that indicatif knows"));
    let mut entries = Vec::new();
    for shape in chosen {
        let mut entry = Entry::new(shape);
        for round in 0..rounds {
            for turn in 0..shape.peers.len() {
                let at = (round + turn) % shape.peers.len();
                bar.set_message(format!("{}: {}", shape.name, shape.peers[at].name()));
                // What has failed once is not tried again: its row says why.
                if entry.rows[at].error.is_none() {
                    let command = programs.command(shape.peers[at], shape, quick);
                    match command.and_then(|command| sample::take(command, shape, quick)) {
                        Ok(figures) => entry.rows[at].samples.push(figures),
                        Err(error) => entry.rows[at].error = Some(error.to_string()),
                    }
                }
                bar.inc(1);
            }
        }
        entries.push(entry);
    }
    bar.finish_and_clear();
    entries
}
