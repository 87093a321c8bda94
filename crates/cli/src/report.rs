//! What the demonstration prints: a line of JSON for each mode, or a table for a person.
//!
//! The JSON field names are an interface: others parse them. New fields may be added, none renamed.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::args::Mode;

/// The figures of one mode.
#[derive(Serialize, Clone, Debug)]
pub struct Row {
    /// What served the connections.
    pub mode: Mode,
    /// Connections that were open and busy.
    pub connections: usize,
    /// Threads of the server process, as the kernel counts them.
    pub os_threads: u64,
    /// Replies within the time, by that time.
    pub requests_per_second: f64,
    /// Median from request to complete reply, in microseconds.
    pub p50_us: f64,
    /// The same for 99 of 100.
    pub p99_us: f64,
    /// Resident memory and page tables of the server that the connections added, for each.
    pub bytes_per_connection: u64,
    /// Wrong or missing replies, failed connections, a server that did not stop cleanly.
    pub errors: u64,
    /// Processor time of the server for each request, in microseconds.
    pub server_cpu_us_per_request: f64,
    /// Worker threads asked for (fibers only).
    pub workers: usize,
    /// Bytes of each request.
    pub payload_bytes: usize,
    /// Replies in all, each compared with its request.
    pub requests: u64,
    /// How long it ran.
    pub seconds: f64,
}

impl Row {
    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a struct of plain numbers is always JSON")
    }
}

/// All rows as a table.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "mode",
        "connections",
        "OS threads",
        "requests/s",
        "p50",
        "p99",
        "memory/connection",
        "CPU/request",
        "errors",
    ]);
    for row in rows {
        table.add_row([
            row.mode.name().to_owned(),
            grouped(row.connections as u64),
            grouped(row.os_threads),
            grouped(row.requests_per_second.round() as u64),
            time(row.p50_us),
            time(row.p99_us),
            format!("{:.1} KiB", row.bytes_per_connection as f64 / 1024.0),
            time(row.server_cpu_us_per_request),
            grouped(row.errors),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// One digit behind the point: more would pretend to a precision that the clock does not have.
pub fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// The same for what may be short: seconds to the millisecond.
pub fn thousandths(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// A number of bytes, in the unit that reads best.
pub fn bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        below if below < 1024.0 => format!("{below:.0} B"),
        below if below < 1048576.0 => format!("{:.1} KiB", below / 1024.0),
        below if below < 1073741824.0 => format!("{:.1} MiB", below / 1048576.0),
        above => format!("{:.1} GiB", above / 1073741824.0),
    }
}

/// A duration given in microseconds, in the unit that reads best.
pub fn time(microseconds: f64) -> String {
    match microseconds {
        below if below < 1.0 => format!("{:.0} ns", below * 1e3),
        below if below < 10.0 => format!("{below:.2} µs"),
        below if below < 1_000.0 => format!("{below:.0} µs"),
        below if below < 10_000.0 => format!("{:.2} ms", below / 1e3),
        below if below < 1_000_000.0 => format!("{:.1} ms", below / 1e3),
        above => format!("{:.2} s", above / 1e6),
    }
}

/// A number with its thousands set apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::{bytes, grouped, time};

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn bytes_take_the_unit_that_reads_best() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (9_216, "9.0 KiB"),
            (3 << 20, "3.0 MiB"),
            (9 << 29, "4.5 GiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations_take_the_unit_that_reads_best() {
        for (microseconds, text) in [
            (0.3714, "371 ns"),
            (2.346, "2.35 µs"),
            (250.4, "250 µs"),
            (1_500.0, "1.50 ms"),
            (45_678.0, "45.7 ms"),
            (2e6, "2.00 s"),
        ] {
            assert_eq!(time(microseconds), text);
        }
    }
}
