//! One client process of `sleave scale connections`: opens its part of the connections and holds them.
//!
//! ```text
//!   standard output                              standard input
//!   {"opened": 512} …  {"open": {…}}      ──▶
//!                                         ◀──    a line: one exchange on each connection
//!   {"exchanged": 512} …  {"round": {…}}  ──▶
//!                                         ◀──    the end: close all
//! ```
//!
//! The end of standard input also comes when the process that started this one has died. It is a plain epoll loop
//! ([`crate::load`]) on an OS thread, so that the witness does not depend on what it watches.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::args::Client;
use crate::load::{Load, Plan, WINDOW};
use crate::{console, limits};

/// How long the servers may leave a client without any answer: dozens of processes share the processors.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A line of standard output.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// So many connections are open.
    Opened(usize),
    /// Opening has come to its end.
    Open {
        /// How many stand.
        connections: usize,
        /// Why no more.
        refusal: Option<String>,
    },
    /// So many replies have come in this round.
    Exchanged(u64),
    /// A round has come to its end.
    Round {
        /// Replies, each right.
        replies: u64,
        /// Connections without a right reply.
        errors: u64,
        /// The first of the errors.
        first_error: Option<String>,
    },
}

/// `sleave scale client`.
pub fn run(arguments: &Client) -> io::Result<bool> {
    limits::raise_open_files()?;
    let plan = Plan {
        server: arguments.server,
        connections: arguments.connections,
        first: arguments.first,
        payload: arguments.payload,
        patience: PATIENCE,
    };
    // Where nobody listens to progress any more, the end of standard input comes next.
    let (mut load, refusal) = Load::open(plan, &mut |opened| {
        let _ = tell(&Report::Opened(opened));
    })?;
    let refusal = refusal.map(|refusal| refusal.reason);
    tell(&Report::Open { connections: load.connections(), refusal })?;
    for line in io::stdin().lines() {
        line?;
        let outcome = load.round(WINDOW, &mut |replies| {
            let _ = tell(&Report::Exchanged(replies));
        })?;
        let (replies, errors, first_error) = (outcome.replies, outcome.errors, outcome.first_error);
        tell(&Report::Round { replies, errors, first_error })?;
    }
    Ok(true)
}

fn tell(report: &Report) -> io::Result<()> {
    console::print(&serde_json::to_string(report).expect("numbers and words are always JSON"))
}
