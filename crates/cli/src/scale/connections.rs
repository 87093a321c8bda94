//! `sleave scale connections`: as many connections as the machine lets, all of them alive at once.
//!
//! ```text
//!   this process                       servers 0 … S−1               clients S … S+C−1
//!   ────────────                       ───────────────               ─────────────────
//!   plan, explain
//!   hold the port, start servers  ──▶  listen on one address
//!   look: memory before                (SO_REUSEPORT)
//!   start clients                 ──────────────────────────────▶    connect, one checked exchange on each
//!   all open; look: memory, shares     a fiber for each
//!   hold for a while
//!   ask for a round               ──────────────────────────────▶    one checked exchange on each that is open
//!   let the clients go            ──────────────────────────────▶    close all by reset
//!   SIGINT                        ──▶  closing lines: their sum is the number of connections
//! ```
//!
//! The clients take turns, a few at a time: on few processors fifty at once would mostly wait for each other.
//!
//! The last round is the proof: a connection that answers then has been alive since it was opened, for it is never
//! opened again. The closing lines are a second witness of the number.
//!
//! Whatever ends this run early (an error, Ctrl-C, a death) ends the processes, see [`crate::children`]. Nothing waits
//! without bound: a client by its own patience, this process by a longer one since the last word of any client.

use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};
use std::{fs, ops, thread};

use indicatif::ProgressBar;

use super::args::Connections;
use super::client::{self, Report};
use super::plan::{Machine, Plan, Wanted, meminfo};
use super::report::ConnectionsReport;
use crate::args::Mode;
use crate::children::{Children, Event};
use crate::console::{bar, print, say};
use crate::fleet::{self, Port};
use crate::process::{self, Memory};
use crate::report::{grouped, tenths, thousandths};
use crate::supervisor::Said;
use crate::{limits, server};

/// How long no client may have anything to say: longer than any of them waits for a server.
const PATIENCE: Duration = Duration::from_secs(90);

/// `sleave scale connections`. Says whether all went without an error.
pub fn run(arguments: &Connections) -> io::Result<bool> {
    let mut run = Run::start(arguments)?;
    let before = run.look();

    let begin = Instant::now();
    run.open()?;
    let setup = begin.elapsed();
    let open = run.look();
    run.hold(Duration::from_secs(arguments.hold as u64))?;

    let (begin, cpu_before) = (Instant::now(), run.cpu());
    let exchanged = run.round()?;
    let (round, round_cpu) = (begin.elapsed(), run.cpu().saturating_sub(cpu_before));
    run.stop()?;

    let each = |now: u64, then: u64| now.saturating_sub(then) / run.opened.max(1);
    let maybe_each = |now: Option<u64>, then: Option<u64>| Some(each(now?, then?));
    let shares =
        || open.files.iter().zip(&before.files).map(|(now, then)| now.saturating_sub(*then));
    let memory = (open.memory, before.memory);
    let report = ConnectionsReport {
        connections: exchanged,
        planned: run.plan.connections,
        servers: run.plan.servers,
        clients: run.plan.clients,
        least_of_a_server: shares().min().unwrap_or(0),
        most_of_a_server: shares().max().unwrap_or(0),
        errors: run.errors,
        setup_seconds: thousandths(setup.as_secs_f64()),
        connections_per_second: tenths(run.opened as f64 / setup.as_secs_f64()),
        round_seconds: thousandths(round.as_secs_f64()),
        exchanges_per_second: tenths(exchanged as f64 / round.as_secs_f64()),
        bytes_per_connection: each(memory.0.total(), memory.1.total()),
        resident_bytes_per_connection: each(memory.0.resident, memory.1.resident),
        page_table_bytes_per_connection: each(memory.0.page_tables, memory.1.page_tables),
        kernel_bytes_per_connection: maybe_each(open.slab, before.slab),
        machine_bytes_per_connection: maybe_each(open.used, before.used),
        tcp_sockets: open.tcp_sockets,
        os_threads: open.threads,
        workers: arguments.workers,
        setup_cpu_us_per_connection: microseconds(open.cpu.saturating_sub(before.cpu), run.opened),
        round_cpu_us_per_exchange: microseconds(round_cpu, exchanged),
        payload_bytes: arguments.payload,
    };
    if arguments.json {
        print(&report.json())?;
    } else {
        print(&report.table())?;
        print(
            "Memory of the servers: resident pages and page tables, less what they had before. Kernel memory and that of \
             the machine\nare differences of /proc/meminfo: both ends of each connection, and whatever else went on.",
        )?;
    }
    Ok(run.errors == 0)
}

fn microseconds(cpu: Duration, count: u64) -> f64 {
    tenths(cpu.as_secs_f64() * 1e6 / count.max(1) as f64)
}

/// A run under way. The servers are the first children, the clients follow.
struct Run {
    plan: Plan,
    children: Children,
    port: Port,
    payload: usize,
    /// Connections whose first exchange has come back.
    opened: u64,
    /// What the servers say that they have served.
    served: u64,
    errors: u64,
    said: Said,
}

/// What the kernel says at one moment.
struct Look {
    memory: Memory,
    threads: u64,
    cpu: Duration,
    /// Open files of each server.
    files: Vec<u64>,
    slab: Option<u64>,
    used: Option<u64>,
    tcp_sockets: Option<u64>,
}

impl Run {
    /// Plans, explains, and starts the servers.
    fn start(arguments: &Connections) -> io::Result<Self> {
        let Connections { connections, processes, workers, payload, .. } = *arguments;
        let files = limits::raise_open_files()?;
        let machine = Machine::look(files);
        let (plan, explained) = Plan::make(&machine, Wanted { connections, processes, workers })
            .map_err(io::Error::other)?;
        for line in explained {
            say(&line);
        }
        if let Err(why) = sleave::identity() {
            say(&format!("fibers are OS threads here: {why}"));
        }
        let mut run = Self {
            plan,
            children: Children::with_signals()?,
            port: Port::hold((Ipv4Addr::LOCALHOST, 0))?,
            payload,
            opened: 0,
            served: 0,
            errors: 0,
            said: Said::default(),
        };
        let Self { children, port, said, .. } = &mut run;
        fleet::start(children, port, plan.servers, Mode::Fibers, workers, &mut |child, text| {
            said.once(child, text);
        })?;
        let pids: Vec<_> = run.servers().map(|child| run.children.pid(child).to_string()).collect();
        say(&format!("server processes on {}: {}", run.port.address(), pids.join(", ")));
        Ok(run)
    }

    fn servers(&self) -> ops::Range<usize> {
        0..self.plan.servers
    }

    fn clients(&self) -> ops::Range<usize> {
        self.plan.servers..self.plan.servers + self.plan.clients
    }

    /// Starts the clients, some at a time; returns when each has opened its connections or given up.
    fn open(&mut self) -> io::Result<()> {
        let bar = bar(self.plan.connections as u64, "connecting");
        let start = &mut Self::start_client;
        self.opened = self.by_turns(&bar, start, &mut |report| match report {
            Report::Opened(count) => Heard::Progress(count as u64),
            Report::Open { connections, refusal } => Heard::Done(connections as u64, 0, refusal),
            _ => Heard::Nonsense,
        })?;
        let missing = (self.plan.connections as u64).saturating_sub(self.opened);
        if missing > 0 {
            say(&format!("{} connections could not be opened", grouped(missing)));
            self.errors += missing;
        }
        Ok(())
    }

    /// Starts client number `client`. They come in order, so that it is child number S + `client`.
    fn start_client(&mut self, client: usize) -> io::Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["scale", "client", "--server", &self.port.address().to_string()]);
        let first = (0..client).map(|earlier| self.plan.of_client(earlier)).sum();
        for (option, value) in [
            ("--connections", self.plan.of_client(client)),
            ("--first", first),
            ("--payload", self.payload),
        ] {
            command.args([option, &value.to_string()]);
        }
        self.children.start(&mut command).map(drop)
    }

    /// Keeps all open and silent, and hears what happens meanwhile. A process that ends ends the silence, too: there is
    /// a fault to report.
    fn hold(&mut self, time: Duration) -> io::Result<()> {
        if time.is_zero() {
            return Ok(());
        }
        say(&format!("{} connections open and silent for {time:?}", grouped(self.opened)));
        let deadline = Instant::now() + time;
        while let Some(event) = self.children.next(deadline)? {
            match event {
                Event::Line { .. } => {}
                Event::Ended { child, status } => {
                    self.ended(child, status, false);
                    break;
                }
                other => self.remark(other)?,
            }
        }
        Ok(())
    }

    /// One exchange on each connection. Returns how many there were.
    fn round(&mut self) -> io::Result<u64> {
        let bar = bar(self.opened, "an exchange on each");
        let ask = &mut |run: &mut Self, client| {
            // Fails where the client has ended: that is an event of its own, or has been one.
            let _ = run.children.tell(run.plan.servers + client, "round");
            Ok(())
        };
        self.by_turns(&bar, ask, &mut |report| match report {
            Report::Exchanged(count) => Heard::Progress(count),
            Report::Round { replies, errors, first_error } => {
                Heard::Done(replies, errors, first_error)
            }
            _ => Heard::Nonsense,
        })
    }

    /// Lets every client do what `begin` begins, a few at a time: all at once would only wait for each other.
    /// Returns the sum of what they have achieved.
    fn by_turns(
        &mut self,
        bar: &ProgressBar,
        begin: &mut dyn FnMut(&mut Self, usize) -> io::Result<()>,
        understand: &mut dyn FnMut(Report) -> Heard,
    ) -> io::Result<u64> {
        let first = self.plan.servers;
        let at_a_time = 2 * thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut counts = vec![0; self.plan.clients];
        let mut busy = vec![false; self.plan.clients];
        let mut left = 0..self.plan.clients;
        loop {
            while busy.iter().filter(|&&busy| busy).count() < at_a_time
                && let Some(client) = left.next()
            {
                begin(self, client)?;
                busy[client] = self.children.is_running(first + client);
            }
            if !busy.contains(&true) {
                bar.finish_and_clear();
                return Ok(counts.iter().sum());
            }
            let Some(event) = self.children.next(Instant::now() + PATIENCE)? else {
                return Err(io::Error::other(format!("no client has said a word in {PATIENCE:?}")));
            };
            match event {
                Event::Line { child, text } if child >= first => {
                    let client = child - first;
                    let heard =
                        serde_json::from_str(&text).map_or(Heard::Nonsense, &mut *understand);
                    match heard {
                        Heard::Progress(count) => counts[client] = count,
                        Heard::Done(count, errors, why) => {
                            counts[client] = count;
                            busy[client] = false;
                            self.errors += errors;
                            if let Some(why) = why {
                                say(&format!("client {client}: {why}"));
                            }
                        }
                        Heard::Nonsense => {
                            return Err(io::Error::other(format!("client {client} said `{text}`")));
                        }
                    }
                    bar.set_position(counts.iter().sum());
                }
                Event::Ended { child, status } => {
                    if child >= first {
                        counts[child - first] = 0;
                        busy[child - first] = false;
                    }
                    self.remark(Event::Ended { child, status })?;
                }
                other => self.remark(other)?,
            }
        }
    }

    /// Ends the clients, then the servers, and compares what these have served with what was opened.
    fn stop(&mut self) -> io::Result<()> {
        for client in self.clients() {
            self.children.tell_no_more(client);
        }
        self.wait_for_the_end(self.clients())?;
        for server in self.servers() {
            self.children.signal(server, libc::SIGINT);
        }
        self.wait_for_the_end(self.servers())?;
        if self.served != self.opened {
            say(&format!(
                "the servers have served {} connections, the clients opened {}",
                grouped(self.served),
                grouped(self.opened)
            ));
            // Where something has failed already the two may well differ.
            self.errors = self.errors.max(1);
        }
        Ok(())
    }

    fn wait_for_the_end(&mut self, of: ops::Range<usize>) -> io::Result<()> {
        let deadline = Instant::now() + server::PATIENCE + client::PATIENCE;
        while of.clone().any(|child| self.children.is_running(child)) {
            match self.children.next(deadline)? {
                Some(Event::Line { child, text }) if self.servers().contains(&child) => {
                    self.served += fleet::served(&text).unwrap_or(0);
                }
                Some(Event::Line { .. }) => {}
                Some(Event::Ended { child, status }) if of.contains(&child) => {
                    self.ended(child, status, status.success());
                }
                Some(other) => self.remark(other)?,
                None => return Err(io::Error::other("processes that do not stop")),
            }
        }
        Ok(())
    }

    /// What may happen at any time.
    fn remark(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Signal => {
                say("interrupted: all processes are ended");
                Err(io::ErrorKind::Interrupted.into())
            }
            Event::Complaint { child, text } | Event::Line { child, text } => {
                self.said.once(child, &text);
                Ok(())
            }
            Event::Ended { child, status } => {
                self.ended(child, status, false);
                Ok(())
            }
        }
    }

    fn ended(&mut self, child: usize, status: ExitStatus, well: bool) {
        if !well {
            let kind = if self.servers().contains(&child) { "server" } else { "client" };
            say(&format!("{kind} process {} ended: {status}", self.children.pid(child)));
            self.errors += 1;
        }
    }

    fn cpu(&self) -> Duration {
        self.of_servers(process::cpu_time).sum()
    }

    /// What `ask` says of each server; one that has died has nothing.
    fn of_servers<T: Default>(&self, ask: fn(u32) -> io::Result<T>) -> impl Iterator<Item = T> {
        self.servers().map(move |child| ask(self.children.pid(child)).unwrap_or_default())
    }

    fn look(&self) -> Look {
        let mut memory = Memory::default();
        for of_one in self.of_servers(process::memory) {
            memory.resident += of_one.resident;
            memory.page_tables += of_one.page_tables;
        }
        Look {
            memory,
            threads: self.of_servers(process::threads).sum(),
            cpu: self.cpu(),
            files: self.of_servers(process::open_files).collect(),
            slab: meminfo("Slab:").ok(),
            used: memory_in_use().ok(),
            tcp_sockets: tcp_sockets(),
        }
    }
}

/// What a line of a client means for whoever waits for it.
enum Heard {
    /// So much is achieved.
    Progress(u64),
    /// So much is achieved, so many errors, and the first of them; no more will come.
    Done(u64, u64, Option<String>),
    /// Not what was asked for.
    Nonsense,
}

/// Memory of the machine that is neither free nor a cache of files.
fn memory_in_use() -> io::Result<u64> {
    let free = meminfo("MemFree:")? + meminfo("Buffers:")? + meminfo("Cached:")?;
    Ok(meminfo("MemTotal:")?.saturating_sub(free))
}

/// TCP sockets in use, as /proc/net/sockstat counts them (IPv4).
fn tcp_sockets() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/sockstat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: inuse "))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
