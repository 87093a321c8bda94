//! The options of `sleave scale`, and what it says to nonsense.

use std::net::SocketAddr;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::args::{connections, payload, processes, whole, workers};

/// What to have many of.
#[derive(Subcommand, Clone, Debug)]
pub enum Scale {
    /// Open as many connections to echo servers on fibers as the machine lets, and show that every one is alive
    ///
    /// Starts several server processes that share one address (SO_REUSEPORT) and several client processes with source
    /// addresses of their own, since each process may have only so many open files and each pair of addresses only
    /// so many ports. What the limits allow is computed and explained before anything starts. Every
    /// connection opens with a checked exchange; when all are open, each one has another. Then the table shows
    /// what they cost. The exit code is 0 only if there was not a single error.
    #[command(after_help = "\
Memory is what the server processes have resident, and their page tables, less what they had before the first
connection. The kernel's own memory is shown beside it; it belongs to both ends, and others may have used some.

Examples:
  sleave scale connections                        as many as there is room for
  sleave scale connections --connections 100000
  sleave scale connections --processes 2 --connections 400 --json
  sleave scale connections --hold 60              a minute to look at it: ss -s, htop, /proc")]
    Connections(Connections),
    /// Park a million fibers in one process at once, then wake them all
    ///
    /// Spawns the fibers, waits until the runtime says that each of them waits and none runs or is due, shows what
    /// they cost, wakes them, and compares what they return. Needs some 9 KiB for each, and says beforehand if the
    /// machine has not that much.
    #[command(after_help = "\
A fiber that waits costs the pages that it has touched: one of its stack, one of its identity (thread-locals,
struct pthread), what the heap holds of it, and page tables. A slot of 64 KiB needs a quarter of the
page tables of the ordinary 256 KiB.

Examples:
  sleave scale fibers
  sleave scale fibers --fibers 100000 --wait timed
  sleave scale fibers --json | jq .bytes_per_fiber")]
    Fibers(Fibers),
    /// One client process of `connections`; told what to do on standard input
    #[command(hide = true)]
    Client(Client),
}

/// Options of `scale connections`.
#[derive(Args, Clone, Debug)]
pub struct Connections {
    /// Connections to open; without it as many as there is room for
    #[arg(long, value_name = "N", value_parser = many_connections)]
    #[arg(allow_negative_numbers = true)]
    pub connections: Option<usize>,
    /// Server processes; without it as many as the connections need
    #[arg(long, value_name = "P", value_parser = processes)]
    #[arg(allow_negative_numbers = true)]
    pub processes: Option<usize>,
    /// Worker threads of each server process
    #[arg(long, value_name = "W", default_value = "1", value_parser = workers)]
    #[arg(allow_negative_numbers = true)]
    pub workers: usize,
    /// Bytes of each request
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = payload)]
    #[arg(allow_negative_numbers = true)]
    pub payload: usize,
    /// Seconds to keep all open and silent before the last exchange, 0 to 3600; a process that dies ends it
    #[arg(long, value_name = "S", default_value = "0", value_parser = hold)]
    #[arg(allow_negative_numbers = true)]
    pub hold: usize,
    /// Print one JSON object on the standard output, and nothing else there
    #[arg(long)]
    pub json: bool,
}

/// Options of `scale fibers`.
#[derive(Args, Clone, Debug)]
pub struct Fibers {
    /// Fibers to park
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = fibers)]
    #[arg(allow_negative_numbers = true)]
    pub fibers: usize,
    /// What they wait for
    #[arg(long, value_enum, default_value_t = Wait::Park)]
    pub wait: Wait,
    /// Usable bytes of each stack; the slot is the next power of two that also holds guard and identity
    #[arg(long, value_name = "BYTES", default_value = "49152", value_parser = stack)]
    #[arg(allow_negative_numbers = true)]
    pub stack: usize,
    /// Worker threads
    #[arg(long, value_name = "W", default_value = "2", value_parser = workers)]
    #[arg(allow_negative_numbers = true)]
    pub workers: usize,
    /// Print one JSON object on the standard output, and nothing else there
    #[arg(long)]
    pub json: bool,
}

/// What a fiber waits for.
#[derive(ValueEnum, Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Each for its own token, by `sleave::park`
    Park,
    /// The same with a deadline, and so a timer, for each
    Timed,
    /// All for one `std::sync::Condvar`
    Condvar,
}

/// Options of `scale client`.
#[derive(Args, Clone, Debug)]
pub struct Client {
    /// Where the servers listen
    #[arg(long)]
    pub server: SocketAddr,
    /// Connections to open
    #[arg(long, value_parser = connections)]
    pub connections: usize,
    /// The number of the first, over all clients
    #[arg(long)]
    pub first: usize,
    /// Bytes of each request
    #[arg(long, value_parser = payload)]
    pub payload: usize,
}

fn many_connections(text: &str) -> Result<usize, String> {
    whole(text, 1, 10_000_000, "connections")
}

fn fibers(text: &str) -> Result<usize, String> {
    whole(text, 1, 10_000_000, "fibers")
}

fn hold(text: &str) -> Result<usize, String> {
    whole(text, 0, 3600, "seconds")
}

fn stack(text: &str) -> Result<usize, String> {
    whole(text, 1 << 12, 64 << 20, "bytes")
}
