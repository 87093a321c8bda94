//! What `sleave scale` prints: one object of JSON, or a table for a person.
//!
//! The JSON field names are an interface: others parse them. New fields may be added, none renamed.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::args::Wait;
use crate::report::{bytes, grouped, time};

/// The figures of `scale connections`.
#[derive(Serialize, Clone, Debug)]
pub struct ConnectionsReport {
    /// Connections that were open at once and had a checked exchange then.
    pub connections: u64,
    /// Connections that the plan wanted.
    pub planned: usize,
    /// Server processes.
    pub servers: usize,
    /// Client processes.
    pub clients: usize,
    /// The fewest connections of a server process.
    pub least_of_a_server: u64,
    /// The most connections of a server process.
    pub most_of_a_server: u64,
    /// Connections that failed, replies that were wrong or missing, processes that ended badly.
    pub errors: u64,
    /// From the first connect to the last first reply.
    pub setup_seconds: f64,
    /// Connections opened in a second, each with its exchange.
    pub connections_per_second: f64,
    /// From the first to the last reply of the last round, over all connections.
    pub round_seconds: f64,
    /// Exchanges in a second in that round.
    pub exchanges_per_second: f64,
    /// What the servers have for each connection: resident memory and page tables.
    pub bytes_per_connection: u64,
    /// Of that, resident memory.
    pub resident_bytes_per_connection: u64,
    /// Of that, page tables.
    pub page_table_bytes_per_connection: u64,
    /// Kernel memory (slab) that came in meanwhile, of both ends and of whatever else the machine did.
    pub kernel_bytes_per_connection: Option<u64>,
    /// Memory of the whole machine that came into use meanwhile, caches of files left out.
    pub machine_bytes_per_connection: Option<u64>,
    /// TCP sockets of the whole machine when all were open.
    pub tcp_sockets: Option<u64>,
    /// OS threads of all server processes.
    pub os_threads: u64,
    /// Worker threads asked for in each server process.
    pub workers: usize,
    /// Processor time of the servers for each connection opened, in microseconds.
    pub setup_cpu_us_per_connection: f64,
    /// Processor time of the servers for each exchange of the last round, in microseconds.
    pub round_cpu_us_per_exchange: f64,
    /// Bytes of each request.
    pub payload_bytes: usize,
}

impl ConnectionsReport {
    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a struct of plain numbers is always JSON")
    }

    /// A table, one figure a line.
    pub fn table(&self) -> String {
        let both = |this: u64, that: u64| format!("{} + {}", grouped(this), grouped(that));
        let maybe = |figure: Option<u64>, show: fn(u64) -> String| {
            figure.map_or_else(|| "unknown".to_owned(), show)
        };
        table(&[
            ("processes: servers + clients", both(self.servers as u64, self.clients as u64)),
            ("connections, all alive at once", grouped(self.connections)),
            (
                "connections of a server process",
                format!(
                    "{} to {}",
                    grouped(self.least_of_a_server),
                    grouped(self.most_of_a_server)
                ),
            ),
            ("errors", grouped(self.errors)),
            (
                "set up",
                format!(
                    "{:.1} s, {} a second",
                    self.setup_seconds,
                    grouped(self.connections_per_second as u64)
                ),
            ),
            (
                "an exchange on each",
                format!(
                    "{:.1} s, {} a second",
                    self.round_seconds,
                    grouped(self.exchanges_per_second as u64)
                ),
            ),
            ("memory of the servers for each", bytes(self.bytes_per_connection)),
            ("  resident", bytes(self.resident_bytes_per_connection)),
            ("  page tables", bytes(self.page_table_bytes_per_connection)),
            ("kernel memory (slab) for each", maybe(self.kernel_bytes_per_connection, bytes)),
            ("memory of the machine for each", maybe(self.machine_bytes_per_connection, bytes)),
            ("TCP sockets of the machine", maybe(self.tcp_sockets, grouped)),
            ("OS threads of the servers", grouped(self.os_threads)),
            ("CPU of the servers to set one up", time(self.setup_cpu_us_per_connection)),
            ("CPU of the servers for an exchange", time(self.round_cpu_us_per_exchange)),
        ])
    }
}

/// The figures of `scale fibers`.
#[derive(Serialize, Clone, Debug)]
pub struct FibersReport {
    /// Fibers that all waited at once.
    pub fibers: usize,
    /// What for.
    pub wait: Wait,
    /// Fibers that returned what they should not have, or nothing.
    pub errors: u64,
    /// Worker threads asked for.
    pub workers: usize,
    /// OS threads of the process while all waited.
    pub os_threads: u64,
    /// Usable bytes of stack asked for.
    pub stack_bytes: usize,
    /// From the first spawn until all waited.
    pub create_seconds: f64,
    /// From the first wake until all had ended.
    pub wake_seconds: f64,
    /// Resident memory and page tables for each.
    pub bytes_per_fiber: u64,
    /// Of that, resident memory.
    pub resident_bytes_per_fiber: u64,
    /// Of that, page tables.
    pub page_table_bytes_per_fiber: u64,
    /// Processor time while all waited, as a share of the time that passed.
    pub idle_cpu_share: f64,
}

impl FibersReport {
    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a struct of plain numbers is always JSON")
    }

    /// A table, one figure a line.
    pub fn table(&self) -> String {
        let each = |seconds: f64| {
            format!("{seconds:.1} s, {} for each", time(seconds * 1e6 / self.fibers as f64))
        };
        table(&[
            ("fibers, all parked at once", grouped(self.fibers as u64)),
            ("errors", grouped(self.errors)),
            ("OS threads", grouped(self.os_threads)),
            ("create and park", each(self.create_seconds)),
            ("wake and end", each(self.wake_seconds)),
            ("memory for each", bytes(self.bytes_per_fiber)),
            ("  resident", bytes(self.resident_bytes_per_fiber)),
            ("  page tables", bytes(self.page_table_bytes_per_fiber)),
            ("processor while all are parked", format!("{:.1} %", self.idle_cpu_share * 100.0)),
        ])
    }
}

fn table(rows: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    for (name, value) in rows {
        table.add_row([*name, value]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
