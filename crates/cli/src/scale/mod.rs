//! `sleave scale`: how many at once. Connections over several processes, fibers in one.
//!
//! ```text
//!   connections ─▶ plan ─▶ fleet: servers (`sleave echo --reuse-port`) ◀── checked exchanges ──▶ client, client, …
//!   fibers      ─▶ one runtime of this process
//!   args, report: the command line; table and JSON
//! ```

pub mod args;
mod client;
mod connections;
mod fibers;
mod plan;
mod report;

use std::io;

/// Runs what was chosen. Says whether all went without an error.
pub fn run(arguments: &args::Scale) -> io::Result<bool> {
    match arguments {
        args::Scale::Connections(arguments) => connections::run(arguments),
        args::Scale::Fibers(arguments) => fibers::run(arguments),
        args::Scale::Client(arguments) => client::run(arguments),
    }
}
