//! The `sleave` tool: the library at work, in one command.
//!
//! ```text
//!  main ─┬─ demo ──▶ server ──▶ (a process) echo        args      the command line
//!        │     ├───▶ load                               report    table, JSON, numbers for people
//!        │     └───▶ process, limits, report            console   results here, remarks there
//!        ├─ echo ──▶ connections, signals, limits       children  processes that never outlive us
//!        │     └───▶ supervisor ──▶ fleet ──▶ (processes) echo --reuse-port
//!        ├─ scale ─┬─ connections ─▶ fleet, (processes) client ─▶ load
//!        │         └─ fibers
//!        ├─ bench ─── pool
//!        ├─ dump ──── /proc/PID, kill
//!        └─ run ───── program, object ─▶ execve
//! ```
//!
//! Exit codes: 0 all well, 1 something failed (an error in the demonstration, an address that cannot be had),
//! 2 a command line that makes no sense, 130 ended by Ctrl-C. `run` has its own.

mod args;
mod bench;
mod children;
mod connections;
mod console;
mod demo;
mod dump;
mod echo;
mod fleet;
mod limits;
mod load;
mod process;
mod report;
mod run;
mod scale;
mod server;
mod signals;
mod supervisor;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let done = match args::Arguments::parse().command {
        args::Command::Demo(arguments) => demo::run(&arguments),
        args::Command::Echo(arguments) => echo::run(&arguments),
        args::Command::Scale(arguments) => scale::run(&arguments),
        args::Command::Bench(arguments) => bench::run(&arguments).map(|()| true),
        args::Command::Dump(arguments) => dump::run(&arguments).map(|()| true),
        args::Command::Run(arguments) => return run::run(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Ctrl-C; what a shell reports for a program that SIGINT ended.
        Err(error) if error.kind() == ErrorKind::Interrupted => {
            ExitCode::from(signals::INTERRUPTED)
        }
        // Who reads our output has seen enough: `sleave demo | head -1`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sleave: {error}");
            ExitCode::FAILURE
        }
    }
}
