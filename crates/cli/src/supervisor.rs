//! `sleave echo --processes N`: N server processes behind one address, and one that looks after them.
//!
//! ```text
//!   hold the port ─▶ start N ─▶ all listen: `listening on ADDR` ─┬─ one ends unasked ─▶ say so, go on with the rest
//!                                                               └─ a signal ─▶ SIGINT to each ─▶ sum of what they served
//! ```
//!
//! A server that ends unasked takes its connections with it; the kernel gives new ones to those that are left. It is not
//! started again: that would hide the fault. The exit code tells of it in the end.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use crate::args::Echo;
use crate::children::{Children, Event};
use crate::console::{print, say};
use crate::fleet::{self, Port};
use crate::server::PATIENCE;

/// Serves until a signal comes. Says whether every server process lasted until then and ended well.
pub fn run(arguments: &Echo) -> io::Result<bool> {
    let mut children = Children::with_signals()?;
    let port = Port::hold(&*arguments.listen).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {}: {error}", arguments.listen))
    })?;
    let mut said = Said::default();
    let Echo { processes, mode, workers, .. } = *arguments;
    fleet::start(&mut children, &port, processes, mode, workers, &mut |child, text| {
        said.once(child, text);
    })?;
    let pids: Vec<_> = (0..processes).map(|child| children.pid(child).to_string()).collect();
    say(&format!("{processes} server processes: {}", pids.join(", ")));
    print(&format!("listening on {}", port.address()))?;

    let (mut served, mut well) = (0, true);
    let mut stopping: Option<Instant> = None;
    while children.running() > 0 {
        // Without a stop there is no deadline; an hour is as good as any.
        let deadline = stopping.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        match children.next(deadline)? {
            Some(Event::Line { child, text }) => match fleet::served(&text) {
                Some(count) => served += count,
                None => said.once(child, &text),
            },
            Some(Event::Complaint { child, text }) => said.once(child, &text),
            Some(Event::Ended { child, status }) => {
                let pid = children.pid(child);
                if stopping.is_none() {
                    let left = children.running();
                    say(&format!("server process {pid} ended: {status}; {left} go on"));
                    well = false;
                } else if !status.success() {
                    say(&format!("server process {pid} ended: {status}"));
                    well = false;
                }
            }
            Some(Event::Signal) => {
                // To each the first means stop, the second means now.
                for child in 0..processes {
                    children.signal(child, libc::SIGINT);
                }
                if stopping.is_some() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                stopping = Some(Instant::now() + PATIENCE);
            }
            None if stopping.is_some() => {
                return Err(io::Error::other(format!(
                    "{} server processes did not stop within {PATIENCE:?}",
                    children.running()
                )));
            }
            None => {}
        }
    }
    if stopping.is_none() {
        return Err(io::Error::other("no server process is left"));
    }
    print(&format!("stopped: {served} connections served"))?;
    Ok(well)
}

/// Passes on what servers say; what all of them say is passed on once.
#[derive(Default)]
pub struct Said(HashSet<String>);

impl Said {
    /// Passes `text` on unless it has been already.
    pub fn once(&mut self, child: usize, text: &str) {
        if self.0.insert(text.to_owned()) {
            say(&format!("server {child}: {text}"));
        }
    }
}
