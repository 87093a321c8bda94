//! How many connections this machine has room for, and how to divide them over processes.
//!
//! ```text
//!   connections ≤ what each of these allows                          because of
//!     (files of the system − in use) / 2                             a socket at either end
//!     epoll watches of this user / 2                                 a registration at either end
//!     available memory less a tenth of all / what a connection takes
//!     entries of the connection tracker, where it tracks loopback    one for a connection
//!     tasks that may still be started                                processes and their threads
//!     files of this process                                          pipes to all others
//!   a client process holds    room         = files of a process − a few
//!   a server process holds    even_share   on average, so that hardly ever one gets more than its room
//! ```
//!
//! **The margin.** SO_REUSEPORT deals connections out by a hash: of N connections to P processes each gets m = N/P on
//! average, with a standard deviation of just under √m (a binomial distribution). One that gets more than it may have
//! files would let the surplus wait in its accept queue for ever. So m is chosen with five deviations to spare,
//! m + 5·√m = room: that fails by chance about once in 3.5 million processes. Of 20,000 files 19,936 are for connections,
//! and m is 19,242.
//!
//! **Ports** need no bound: a client's connections come from the addresses 127.0.0.1, 127.0.0.2, … in turn, some
//! thousands from each, and 127.0.0.0/8 has 16 million.
//!
//! Sources: proc_sys_fs(5), proc_meminfo(5), epoll(7), proc_loadavg(5), getrlimit(2), socket(7) on SO_REUSEPORT.

use std::{fs, io};

use crate::limits::{OpenFiles, RESERVED_FILES};
use crate::report::{bytes, grouped};

/// Memory that a connection takes, all told, rounded up: a fiber of the server, a record of the client, and
/// sockets with their files and registrations at both ends.
const MEMORY: u64 = 20 << 10;
/// Tasks and files left to everyone else.
const OTHERS: u64 = 1_000;
/// Threads of a server process beside its workers: the monitor, and a spare for a moment.
const BESIDE_WORKERS: u64 = 2;

/// What the machine has left. `None`: the kernel does not tell, or sets no bound.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Open files that one process may have.
    pub files_of_a_process: u64,
    /// Open files that the system may still have.
    pub files: Option<u64>,
    /// Descriptors that this user may register with epoll.
    pub watches: Option<u64>,
    /// Bytes of memory that can be had without swapping.
    pub available: Option<u64>,
    /// Bytes of memory in all.
    pub memory: Option<u64>,
    /// Entries that the connection tracker has left, if it is at work.
    pub tracked: Option<u64>,
    /// Tasks (processes and threads) that may still be started.
    pub tasks: Option<u64>,
}

impl Machine {
    /// Looks at the machine as it is now.
    pub fn look(files: OpenFiles) -> Self {
        let left = |most: Option<u64>, used: Option<u64>| Some(most?.saturating_sub(used?));
        let tracker = |name| number(&format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
        let used = words("/proc/loadavg")
            .get(3)
            .and_then(|tasks| tasks.split_once('/').and_then(|(_, all)| all.parse().ok()));
        let tasks = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
        Self {
            files_of_a_process: files.now,
            files: left(
                words("/proc/sys/fs/file-nr").get(2).and_then(|most| most.parse().ok()),
                words("/proc/sys/fs/file-nr").first().and_then(|used| used.parse().ok()),
            ),
            watches: number("/proc/sys/fs/epoll/max_user_watches"),
            available: meminfo("MemAvailable:").ok(),
            memory: meminfo("MemTotal:").ok(),
            // A tracker that knows of nothing, not even of what this machine has open, is not at work.
            tracked: left(tracker("max"), tracker("count").filter(|&count| count > 0)),
            tasks: left(tasks.into_iter().flatten().min(), used),
        }
    }
}

/// A number of bytes in /proc/meminfo, by its name there with the colon.
pub fn meminfo(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    crate::process::field(&text, name).map(|kibibytes| kibibytes * 1024)
}

fn words(path: &str) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

fn number(path: &str) -> Option<u64> {
    words(path).first()?.parse().ok()
}

/// Who opens how many connections to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// All connections.
    pub connections: usize,
    /// Server processes.
    pub servers: usize,
    /// Client processes.
    pub clients: usize,
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Connections, or as many as possible.
    pub connections: Option<usize>,
    /// Server processes, or as many as needed.
    pub processes: Option<usize>,
    /// Worker threads of each server process.
    pub workers: usize,
}

impl Plan {
    /// Divides the connections. Beside the plan stands its explanation, line by line.
    pub fn make(machine: &Machine, wanted: Wanted) -> Result<(Self, Vec<String>), String> {
        let room = machine.files_of_a_process.saturating_sub(RESERVED_FILES);
        let share = even_share(room);
        if share == 0 {
            return Err(format!(
                "the limit of open files ({}) leaves no room for a connection",
                grouped(machine.files_of_a_process)
            ));
        }
        let mut explained = vec![format!(
            "descriptors: {} a process. A client holds {} connections; a server {} on average, since the \
             kernel deals them out by a hash and five standard deviations are left for an uneven share",
            grouped(machine.files_of_a_process),
            grouped(room),
            grouped(share),
        )];

        let mut bounds = bounds(machine, wanted, room, share);
        bounds.sort_by_key(|&(most, _)| most);
        let Some((most, why)) = bounds.first().cloned() else {
            return Err("nothing is known of this machine: is /proc mounted?".to_owned());
        };
        explained.push("room for so many connections:".to_owned());
        explained
            .extend(bounds.iter().map(|(most, why)| format!("{:>13}  by {why}", grouped(*most))));
        let connections = match wanted.connections {
            Some(connections) if connections as u64 > most => {
                return Err(format!(
                    "no room for {} connections: at most {} by {why}",
                    grouped(connections as u64),
                    grouped(most)
                ));
            }
            Some(connections) => connections as u64,
            None if most == 0 => return Err(format!("no room for a connection by {why}")),
            None => most,
        };

        let needed = if connections <= room { 1 } else { connections.div_ceil(share) };
        let servers = wanted.processes.map_or(needed, |processes| processes as u64);
        // Several clients set up side by side; a client without a connection would be none.
        let clients = connections.div_ceil(room).max(servers).min(connections);
        explained.push(format!(
            "plan: {} connections from {clients} client {} to {servers} server {}",
            grouped(connections),
            processes(clients),
            processes(servers),
        ));
        let plan = Self {
            connections: connections as usize,
            servers: servers as usize,
            clients: clients as usize,
        };
        Ok((plan, explained))
    }

    /// How many connections client number `client` opens.
    pub fn of_client(&self, client: usize) -> usize {
        let (even, rest) = (self.connections / self.clients, self.connections % self.clients);
        even + usize::from(client < rest)
    }
}

/// How many connections each bound allows, and what it is.
fn bounds(machine: &Machine, wanted: Wanted, room: u64, share: u64) -> Vec<(u64, String)> {
    let of_servers = |servers: u64| if servers == 1 { room } else { servers.saturating_mul(share) };
    let mut bounds = Vec::new();
    if let Some(files) = machine.files {
        let most = files.saturating_sub(OTHERS) / 2;
        bounds.push((most, format!("the {} files of the system", grouped(files))));
    }
    if let Some(watches) = machine.watches {
        bounds.push((watches / 2, format!("the {} epoll watches of a user", grouped(watches))));
    }
    if let (Some(available), Some(memory)) = (machine.available, machine.memory) {
        let most = available.saturating_sub(memory / 10) / MEMORY;
        let (here, each) = (bytes(available), bytes(MEMORY));
        bounds.push((most, format!("memory ({here} available, {each} for each with both ends)")));
    }
    if let Some(tracked) = machine.tracked {
        bounds.push((tracked, "the table of the connection tracker (nf_conntrack_max)".to_owned()));
    }
    if let Some(tasks) = machine.tasks {
        // A server and a client for each share.
        let for_each = wanted.workers as u64 + BESIDE_WORKERS + 2;
        let servers = tasks.saturating_sub(OTHERS) / for_each;
        bounds.push((of_servers(servers), format!("the {} tasks left", grouped(tasks))));
    }
    // This process has three pipes to each of the others.
    let pipes = of_servers(room / 6);
    bounds
        .push((pipes, "the descriptors of this process, which has pipes to all others".to_owned()));
    if let Some(servers) = wanted.processes {
        let most = of_servers(servers as u64);
        bounds.push((most, format!("the descriptors of {servers} server processes")));
    }
    bounds
}

/// How many connections a process gets on average, so that five deviations more still are within `room`.
fn even_share(room: u64) -> u64 {
    // m + 5·√m = room, solved for √m.
    let root = ((25.0 + 4.0 * room as f64).sqrt() - 5.0) / 2.0;
    (root * root).floor() as u64
}

fn processes(count: u64) -> &'static str {
    if count == 1 { "process" } else { "processes" }
}

#[cfg(test)]
mod tests {
    use super::{Machine, Plan, Wanted, even_share};

    fn machine() -> Machine {
        Machine {
            files_of_a_process: 20_064,
            files: Some(2_000_000),
            watches: Some(5_000_000),
            available: Some(100 << 30),
            memory: Some(100 << 30),
            tracked: None,
            tasks: Some(30_000),
        }
    }

    const AS_MANY: Wanted = Wanted { connections: None, processes: None, workers: 1 };

    fn plan(machine: &Machine, wanted: Wanted) -> Plan {
        Plan::make(machine, wanted).unwrap().0
    }

    #[test]
    fn a_share_leaves_five_deviations() {
        for room in [100, 1_000, 20_000, 1_000_000] {
            let share = even_share(room) as f64;
            let most = share + 5.0 * share.sqrt();
            assert!((room as f64 - 8.0..=room as f64).contains(&most), "{room}: {share}, {most}");
        }
        assert_eq!((even_share(0), even_share(20_000)), (0, 19_305));
    }

    #[test]
    fn without_a_wish_the_scarcest_decides() {
        let files = plan(&machine(), AS_MANY);
        assert_eq!(files.connections, (2_000_000 - 1_000) / 2);
        assert_eq!((files.servers, files.clients), (52, 52));
        let little = Machine { available: Some(12 << 30), ..machine() };
        assert_eq!(plan(&little, AS_MANY).connections, (2 << 30) / (20 << 10));
        let tracked = Machine { tracked: Some(5_000), ..machine() };
        assert_eq!(plan(&tracked, AS_MANY), Plan { connections: 5_000, servers: 1, clients: 1 });
    }

    #[test]
    fn processes_hold_what_their_descriptors_allow() {
        let one = Wanted { processes: Some(1), ..AS_MANY };
        assert_eq!(plan(&machine(), one).connections, 20_000);
        let two = Wanted { processes: Some(2), ..AS_MANY };
        assert_eq!(plan(&machine(), two).connections, 2 * 19_305);
        let refused = Plan::make(&machine(), Wanted { connections: Some(38_611), ..two });
        assert!(refused.unwrap_err().contains("at most 38,610 by the descriptors of 2 server"));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let wanted = Wanted { connections: Some(1_000_000), ..AS_MANY };
        let refused = Plan::make(&machine(), wanted).unwrap_err();
        assert!(refused.contains("at most 999,500 by the 2,000,000 files"), "{refused}");
        let none = Machine { files_of_a_process: 64, ..machine() };
        assert!(Plan::make(&none, AS_MANY).unwrap_err().contains("no room"));
        let full = Machine { available: Some(1 << 30), ..machine() };
        assert!(Plan::make(&full, AS_MANY).unwrap_err().contains("memory"));
    }

    #[test]
    fn the_clients_open_all_connections_between_them() {
        for connections in [1, 3, 400, 77_777] {
            let wanted = Wanted { connections: Some(connections), processes: Some(5), workers: 1 };
            let plan = plan(&machine(), wanted);
            let shares: Vec<_> = (0..plan.clients).map(|client| plan.of_client(client)).collect();
            assert_eq!(shares.iter().sum::<usize>(), connections);
            assert!(shares.iter().all(|&share| (1..=20_000).contains(&share)), "{shares:?}");
        }
    }
}
