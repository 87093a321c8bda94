//! The command line, and what it says to nonsense.
//!
//! Each number has bounds, and a value outside them is answered with the reason rather than with a panic or a
//! run that shows nothing. As for any malformed command line the exit code is 2.

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::bench::args::Bench;
use crate::run::args::Run;
use crate::scale::args::Scale;

const EXAMPLES: &str = "\
Examples:
  sleave run -- python3 server.py      a program as it is, its threads fibers
  sleave dump 4711                     what the fibers of a process do, and wait for
  sleave demo                          10,000 connections on threads, then on fibers
  sleave demo --connections 500 --seconds 2 --workers 1
  sleave demo --json | jq .requests_per_second
  sleave scale connections             as many as this machine lets, over several processes
  sleave scale fibers                  a million parked in one process
  sleave echo --listen 127.0.0.1:7000  then, elsewhere: nc 127.0.0.1 7000
  sleave bench pool                    what it costs to begin and end a fiber";

/// Fibers that are threads: ordinary blocking code, many thousands at once on a few OS threads.
#[derive(Parser, Debug)]
#[command(name = "sleave", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show an echo server with thousands of connections, on threads and on fibers, side by side
    ///
    /// The server is written with std::net alone and runs in a process of its own: first with an OS thread for each
    /// connection, then, the same function, with a fiber for each. All connections are kept busy and every
    /// reply is compared with what was sent. The table shows what either costs. The exit code is 0 only if
    /// there was not a single error.
    #[command(after_help = "\
Memory is what the server process has resident, page tables included, divided by the connections;
the kernel's own memory (sockets, and a kernel stack for each OS thread) is not in it.

Examples:
  sleave demo
  sleave demo --connections 500 --seconds 2
  sleave demo --json")]
    Demo(Demo),
    /// Serve echo on an address until Ctrl-C: a std::net server on fibers
    ///
    /// Sends back whatever it receives, on each connection. The first line of the standard output is
    /// `listening on ADDR`. Ctrl-C (or SIGTERM) stops it cleanly: what has been received is answered, the
    /// connections end, and the last line says how many were served. A second Ctrl-C ends it at once.
    ///
    /// A process may hold as many connections as open files (`ulimit -Hn`). For more, let several processes share the
    /// address: the kernel gives each new connection to one of them by a hash, so their shares are even on average only.
    #[command(after_help = "\
Examples:
  sleave echo --listen 127.0.0.1:7000
  sleave echo --listen 127.0.0.1:0 --workers 4     on any free port
  sleave echo --listen [::1]:7000 --mode threads   the same server on OS threads
  sleave echo --listen 127.0.0.1:7000 --processes 4
      four processes behind one address; one that dies is reported, the stop reaches all")]
    Echo(Echo),
    /// Have a process say what each of its fibers does and waits for
    ///
    /// The process must have been started with SLEAVE_DUMP in its environment: the name of a signal that it answers by a dump on its
    /// standard error. This finds out which, and sends it.
    #[command(after_help = "\
Examples:
  SLEAVE_DUMP=SIGQUIT sleave run -- python3 server.py 2> log &
  sleave dump $!                       then, in the file log: a line for each fiber
  SLEAVE_DUMP=SIGQUIT ./server         in a terminal, Ctrl-\\ does the same")]
    Dump(Dump),
    /// Run a program as it is: its threads become fibers
    ///
    /// The program is neither changed nor linked anew: an object that is put before its libraries makes a fiber where the
    /// program asks the C library for a thread, and parks that fiber where the C library would block a thread. So tens of
    /// thousands of its threads live on a few threads of the kernel. Programs that it starts run the same way.
    ///
    /// It must be linked dynamically with glibc, for this processor, and have no rights that you have not (setuid). Whatever
    /// is not, is refused with the reason. A script is run by its interpreter, of which the same is asked.
    ///
    /// The exit code is the program's; 125 if the tool fails, 126 if the program cannot be run this way, 127 if there is none.
    #[command(after_help = "\
The program's threads cannot be cancelled or be sent signals yet, and what the kernel keeps per thread
(ids, CPUs, priorities, signal masks) is a worker's: docs/run.md says what works, and what does not.

Examples:
  sleave run -- ./server --threads 10000
  sleave run --workers 4 -- python3 server.py
  sleave run --stack 256K -- ./a_million_threads
      less memory for page tables, more threads in the address space; threads that ask for a size get that
  SLEAVE_PRELOAD=/opt/lib/libsleave_preload.so sleave run -- ./server")]
    Run(Run),
    /// Show how many connections, or fibers, there can be at once
    #[command(subcommand)]
    Scale(Scale),
    /// Measure a part of the library, beside what it stands in for
    ///
    /// Candidates take turns, round after round, so that a machine that drifts treats all alike; what is shown is the
    /// median of the rounds, and the least and the most.
    #[command(subcommand)]
    Bench(Bench),
}

/// Options of `demo`.
#[derive(Args, Clone, Debug)]
pub struct Demo {
    /// Connections to open
    #[arg(long, value_name = "N", default_value = "10000", value_parser = connections)]
    #[arg(allow_negative_numbers = true)]
    pub connections: usize,
    /// How long to keep them busy, in each mode
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    #[arg(allow_negative_numbers = true)]
    pub seconds: f64,
    /// Worker threads of the server on fibers
    #[arg(long, value_name = "W", default_value = "2", value_parser = workers)]
    #[arg(allow_negative_numbers = true)]
    pub workers: usize,
    /// Bytes of each request
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = payload)]
    #[arg(allow_negative_numbers = true)]
    pub payload: usize,
    /// Print one JSON object a line on the standard output, and nothing else there
    #[arg(long)]
    pub json: bool,
}

/// Options of `echo`.
#[derive(Args, Clone, Debug)]
pub struct Echo {
    /// Address and port to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDR")]
    pub listen: String,
    /// What serves a connection
    #[arg(long, value_enum, default_value_t = Mode::Fibers)]
    pub mode: Mode,
    /// Worker threads of the fibers of one process (without meaning for threads)
    #[arg(long, value_name = "W", default_value = "2", value_parser = workers)]
    #[arg(allow_negative_numbers = true)]
    pub workers: usize,
    /// Server processes that share the address by SO_REUSEPORT, for more connections than one process may have files
    #[arg(long, value_name = "N", default_value = "1", value_parser = processes)]
    #[arg(allow_negative_numbers = true)]
    pub processes: usize,
    /// Share the address with other processes of this user that ask for it, too (SO_REUSEPORT)
    #[arg(long)]
    pub reuse_port: bool,
}

/// Options of `dump`.
#[derive(Args, Clone, Debug)]
pub struct Dump {
    /// The process
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
}

/// What serves a connection.
#[derive(ValueEnum, Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// An OS thread for each connection
    Threads,
    /// A fiber for each connection, on a few worker threads
    Fibers,
}

impl Mode {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Fibers => "fibers",
        }
    }
}

pub fn connections(text: &str) -> Result<usize, String> {
    whole(text, 1, 1_000_000, "connections")
}

pub fn processes(text: &str) -> Result<usize, String> {
    whole(text, 1, 1000, "processes")
}

pub fn workers(text: &str) -> Result<usize, String> {
    whole(text, 1, 256, "worker threads")
}

pub fn payload(text: &str) -> Result<usize, String> {
    whole(text, 1, 1 << 20, "bytes")
}

pub fn whole(text: &str, least: usize, most: usize, what: &str) -> Result<usize, String> {
    // Wide and signed, so that -5 and a number of twenty digits are numbers out of range, not riddles.
    let number: i128 = text.parse().map_err(|_| format!("expected a whole number of {what}"))?;
    usize::try_from(number)
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("expected {least} to {most} {what}"))
}

fn seconds(text: &str) -> Result<f64, String> {
    const RANGE: std::ops::RangeInclusive<f64> = 0.1..=3600.0;
    let number: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    // A range holds neither NaN nor infinity.
    if RANGE.contains(&number) {
        Ok(number)
    } else {
        Err(format!("expected {} to {} seconds", RANGE.start(), RANGE.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::{Arguments, connections, seconds};
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn bounds_belong_to_the_range() {
        assert_eq!(connections("1"), Ok(1));
        assert_eq!(connections("1000000"), Ok(1_000_000));
        assert_eq!(seconds("0.1"), Ok(0.1));
        for nonsense in ["0", "1000001", "-1", "1.5", "", "ten", "99999999999999999999"] {
            assert!(connections(nonsense).is_err(), "{nonsense}");
        }
        for nonsense in ["0", "-1", "NaN", "inf", "3601", "soon"] {
            assert!(seconds(nonsense).is_err(), "{nonsense}");
        }
    }
}
