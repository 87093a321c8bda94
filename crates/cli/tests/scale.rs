//! `sleave scale` at a small scale, as a program that parses its output would run it.

#[allow(dead_code, reason = "each test binary uses its part of the helpers")]
mod common;

use std::process::{Command, Output};

use common::{Running, kill, run, sleave, wait_for_the_end};
use serde_json::Value;

/// What a run has printed, its exit code, and what it said beside.
fn result(output: Output) -> (Value, Option<i32>, String) {
    let complaint = String::from_utf8(output.stderr).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error} in `{text}`, after {complaint}"));
    (value, output.status.code(), complaint)
}

/// The same of a run that must succeed.
fn figures(command: Command) -> (Value, String) {
    let (value, code, complaint) = result(run(command));
    assert_eq!((code, value["errors"].as_u64()), (Some(0), Some(0)), "{value} {complaint}");
    (value, complaint)
}

fn limited(files: u32, arguments: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("ulimit -n {files} && exec \"$@\"");
    shell.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_sleave")]).args(arguments);
    shell
}

/// A run with two servers and two clients that holds 200 connections open for a long time, and the processes: the
/// servers first.
fn held() -> (Running, Vec<u32>) {
    let arguments = ["scale", "connections", "--processes", "2", "--connections", "200"];
    let running = Running::start(sleave(&[&arguments[..], &["--hold", "3600", "--json"]].concat()));
    let servers = running.complaint("server processes on");
    running.complaint("open and silent");
    let servers = servers.rsplit_once(": ").unwrap().1.split(", ");
    let mut pids: Vec<u32> = servers.map(|pid| pid.parse().unwrap()).collect();
    let others: Vec<_> = running.children().into_iter().filter(|pid| !pids.contains(pid)).collect();
    pids.extend(others);
    assert_eq!(pids.len(), 4);
    (running, pids)
}

#[test]
fn all_connections_to_all_processes_are_alive_at_once() {
    let arguments = ["scale", "connections", "--processes", "2", "--connections", "400", "--json"];
    let (row, complaint) = figures(sleave(&arguments));
    for (field, value) in [("connections", 400), ("planned", 400), ("servers", 2), ("clients", 2)] {
        assert_eq!(row[field].as_u64(), Some(value), "{row}");
    }
    // Either server has a share: that one gets none of 400 has a chance of 2 to the power of -399.
    let (least, most) = (&row["least_of_a_server"], &row["most_of_a_server"]);
    assert!(1 <= least.as_u64().unwrap() && most.as_u64().unwrap() < 400, "{row}");
    // Both ends of each are on this machine; other tests have sockets, too.
    assert!(row["tcp_sockets"].as_u64().unwrap() >= 800, "{row}");
    // A connection has a stack, and so at least a page.
    assert!(row["resident_bytes_per_connection"].as_u64().unwrap() >= 4096, "{row}");
    assert!((2..40).contains(&row["os_threads"].as_u64().unwrap()), "{row}");
    assert!(complaint.contains("plan: 400 connections from 2 client"), "{complaint}");
}

#[test]
fn processes_together_hold_more_than_one_may_have_files() {
    let arguments = ["scale", "connections", "--processes", "3", "--json"];
    let (row, complaint) = figures(limited(150, &arguments));
    // 86 descriptors are left to each, of which 50 leave five standard deviations.
    assert_eq!(row["connections"].as_u64(), Some(3 * 50), "{complaint}");
    assert!(complaint.contains("by the descriptors of 3 server processes"), "{complaint}");
}

#[test]
fn more_than_there_is_room_for_is_refused_with_the_reason() {
    let arguments = ["scale", "connections", "--processes", "3", "--connections", "151"];
    let output = run(limited(150, &arguments));
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("no room for 151 connections: at most 150"), "{complaint}");
    assert!(output.stdout.is_empty());
}

#[test]
fn the_table_shows_what_connections_cost() {
    let arguments = ["scale", "connections", "--connections", "50"];
    let output = run(sleave(&arguments));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for word in ["servers + clients", "alive at once", "page tables", "slab", "errors"] {
        assert!(table.contains(word), "no {word} in:\n{table}");
    }
}

#[test]
fn an_interrupt_leaves_no_process_behind() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let (running, pids) = held();
        running.signal(signal);
        let (status, output, complaint) = running.finish();
        assert_eq!((status.code(), output.as_str()), (Some(130), ""), "{complaint}");
        // Ended and waited for, before it ended itself.
        assert!(pids.into_iter().all(|pid| common::stat(pid).is_none()));
    }
}

#[test]
fn the_processes_end_with_a_parent_that_is_killed() {
    let (running, pids) = held();
    running.signal(libc::SIGKILL);
    pids.into_iter().for_each(wait_for_the_end);
}

/// Kills one of the processes of a run while it holds its connections, which ends the hold. Returns what it says then.
fn with_one_killed(position: usize) -> (Value, String) {
    let (running, pids) = held();
    kill(pids[position], libc::SIGKILL);
    let (status, stdout, stderr) = running.finish();
    let output = Output { status, stdout: stdout.into_bytes(), stderr: stderr.into_bytes() };
    let (value, code, complaint) = result(output);
    assert_eq!(code, Some(1), "{complaint}");
    assert!(complaint.contains(&format!("process {} ended: signal: 9", pids[position])));
    (value, complaint)
}

#[test]
fn the_connections_of_a_killed_server_are_errors() {
    let (row, complaint) = with_one_killed(0);
    let (alive, errors) = (row["connections"].as_u64().unwrap(), row["errors"].as_u64().unwrap());
    // Its connections, each of them, and its own end.
    assert!((1..200).contains(&alive), "{row}");
    assert_eq!(errors, 200 - alive + 1, "{row} {complaint}");
}

#[test]
fn the_connections_of_a_killed_client_are_missing() {
    let (row, _) = with_one_killed(2);
    assert_eq!(row["connections"].as_u64(), Some(100), "{row}");
    assert!(row["errors"].as_u64().unwrap() >= 1, "{row}");
}

#[test]
fn thousands_of_fibers_are_parked_at_once_whatever_they_wait_for() {
    for wait in ["park", "timed", "condvar"] {
        let arguments = ["scale", "fibers", "--fibers", "20000", "--wait", wait, "--json"];
        let (row, _) = figures(sleave(&arguments));
        assert_eq!((row["fibers"].as_u64(), row["wait"].as_str()), (Some(20_000), Some(wait)));
        assert!(row["os_threads"].as_u64().unwrap() < 20, "{row}");
        // A page of its stack and one of its identity; a slot more or less is noise.
        let bytes = row["resident_bytes_per_fiber"].as_u64().unwrap();
        assert!((8_000..40_000).contains(&bytes), "{row}");
        assert!(row["page_table_bytes_per_fiber"].as_u64().unwrap() >= 64, "{row}");
    }
}

#[test]
fn a_single_fiber_on_a_larger_stack_is_a_run_too() {
    let arguments = ["scale", "fibers", "--fibers", "1", "--stack", "1048576", "--workers", "1"];
    let output = run(sleave(&arguments));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for word in ["all parked at once", "create and park", "wake and end", "page tables"] {
        assert!(table.contains(word), "no {word} in:\n{table}");
    }
}

#[test]
fn fibers_that_are_os_threads_are_refused() {
    let mut command = sleave(&["scale", "fibers", "--fibers", "100"]);
    command.env("SLEAVE_IDENTITY", "threads");
    let output = run(command);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("each fiber would be an OS thread here"), "{complaint}");
}

#[test]
fn nonsense_is_named_and_exits_with_2() {
    for (arguments, message) in [
        (["connections", "--connections", "0"], "expected 1 to 10000000 connections"),
        (["connections", "--connections", "many"], "expected a whole number of connections"),
        (["connections", "--processes", "0"], "expected 1 to 1000 processes"),
        (["connections", "--workers", "-1"], "expected 1 to 256 worker threads"),
        (["connections", "--payload", "0"], "expected 1 to 1048576 bytes"),
        (["connections", "--hold", "3601"], "expected 0 to 3600 seconds"),
        (["fibers", "--fibers", "0"], "expected 1 to 10000000 fibers"),
        (["fibers", "--stack", "1"], "expected 4096 to 67108864 bytes"),
        (["fibers", "--wait", "godot"], "possible values: park, timed, condvar"),
        (["fibers", "--workers", "257"], "expected 1 to 256 worker threads"),
    ] {
        let output = run(sleave(&[&["scale"], &arguments[..]].concat()));
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(complaint.contains(message), "{arguments:?}: {complaint}");
        assert!(output.stdout.is_empty(), "{arguments:?} printed results");
    }
}

#[test]
fn help_explains_every_option() {
    let help = |command| {
        let output = run(sleave(&["scale", command, "--help"]));
        String::from_utf8(output.stdout).unwrap()
    };
    let connections = help("connections");
    for word in ["--connections", "--processes", "--workers", "--payload", "--hold", "--json"] {
        assert!(connections.contains(word), "no {word} in:\n{connections}");
    }
    let fibers = help("fibers");
    for word in ["--fibers", "--wait", "--stack", "--workers", "--json", "Examples:"] {
        assert!(fibers.contains(word), "no {word} in:\n{fibers}");
    }
}
