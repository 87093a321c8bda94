//! The demonstration at a small scale, as a program that parses its output would run it.

#[allow(dead_code, reason = "each test binary uses its part of the helpers")]
mod common;

use std::process::Command;

use common::{run, sleave};
use serde_json::Value;

/// Runs a demonstration that must succeed, and returns its two objects.
fn rows(command: Command) -> (Vec<Value>, String) {
    let output = run(command);
    let complaint = String::from_utf8(output.stderr).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{complaint}{text}");
    let rows: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let modes: Vec<_> = rows.iter().map(|row| row["mode"].as_str().unwrap()).collect();
    assert_eq!(modes, ["threads", "fibers"]);
    for row in &rows {
        assert_eq!(row["errors"].as_u64(), Some(0), "{row}");
    }
    (rows, complaint)
}

#[test]
fn both_modes_serve_all_connections_without_an_error() {
    let (rows, _) = rows(sleave(&["demo", "--connections", "200", "--seconds", "1", "--json"]));
    for row in &rows {
        assert_eq!(row["connections"].as_u64(), Some(200), "{row}");
        assert!(row["requests_per_second"].as_f64().unwrap() > 0.0, "{row}");
        let (p50, p99) = (row["p50_us"].as_f64().unwrap(), row["p99_us"].as_f64().unwrap());
        assert!(0.0 < p50 && p50 <= p99, "{row}");
        // A connection has a stack, and so at least a page.
        assert!(row["bytes_per_connection"].as_u64().unwrap() >= 4096, "{row}");
        assert!(row["requests"].as_u64().unwrap() >= 200, "{row}");
    }
    assert!(rows[0]["os_threads"].as_u64().unwrap() > 200, "{}", rows[0]);
}

#[test]
fn fibers_need_few_os_threads() {
    let arguments =
        ["demo", "--connections", "100", "--seconds", "0.2", "--workers", "3", "--json"];
    let (rows, _) = rows(sleave(&arguments));
    let threads = rows[1]["os_threads"].as_u64().unwrap();
    // The workers, and what the runtime has beside them; in any case no number that follows the connections.
    assert!((3..20).contains(&threads), "{}", rows[1]);
}

#[test]
fn requests_larger_than_any_buffer_come_back_whole() {
    // 1 MiB is more than the sockets hold: both ends write and read in pieces.
    let arguments =
        ["demo", "--connections", "8", "--seconds", "0.5", "--payload", "1048576", "--json"];
    let (rows, _) = rows(sleave(&arguments));
    assert!(rows.iter().all(|row| row["requests"].as_u64().unwrap() >= 8));
}

#[test]
fn a_low_limit_of_open_files_means_fewer_connections_and_a_word_why() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 150 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sleave")]);
    shell.args(["demo", "--connections", "500", "--seconds", "0.2", "--json"]);
    let (rows, complaint) = rows(shell);
    assert!(rows.iter().all(|row| row["connections"].as_u64() == Some(150 - 64)), "{rows:?}");
    assert!(complaint.contains("86 connections instead of 500"), "{complaint}");
}

#[test]
fn the_soft_limit_of_open_files_is_raised() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -Sn 100 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sleave")]);
    shell.args(["demo", "--connections", "120", "--seconds", "0.2", "--json"]);
    let (rows, complaint) = rows(shell);
    assert!(rows.iter().all(|row| row["connections"].as_u64() == Some(120)), "{rows:?}");
    assert!(complaint.contains("limit raised from 100 to"), "{complaint}");
}

#[test]
fn the_table_shows_both_modes() {
    let output = run(sleave(&["demo", "--connections", "10", "--seconds", "0.2"]));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for word in ["threads", "fibers", "requests/s", "p50", "p99", "memory/connection", "errors"] {
        assert!(table.contains(word), "no {word} in:\n{table}");
    }
}
