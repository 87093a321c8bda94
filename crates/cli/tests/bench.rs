//! `sleave bench` at a small scale, as a program that parses its output would run it. How long things take is not asked.

#[allow(dead_code, reason = "each test binary uses its part of the helpers")]
mod common;

use common::{run, sleave};
use serde_json::Value;

#[test]
fn the_pool_is_measured_against_none_and_against_threads() {
    let arguments = ["bench", "pool", "--lives", "200", "--batch", "50", "--rounds", "2", "--json"];
    let output = run(sleave(&arguments));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = rows
        .iter()
        .map(|row| (row["pattern"].as_str().unwrap(), row["mode"].as_str().unwrap()))
        .collect();
    let modes = ["threads", "fibers_without_pool", "fibers_with_pool"];
    let expected: Vec<_> = ["one_at_a_time", "at_once"]
        .into_iter()
        .flat_map(|pattern| modes.map(|mode| (pattern, mode)))
        .collect();
    assert_eq!(kinds, expected);
    for row in &rows {
        assert_eq!(row["measurement"], "pool", "{row}");
        assert_eq!((row["lives"].as_u64(), row["rounds"].as_u64()), (Some(200), Some(2)), "{row}");
        assert_eq!(row["workers"].as_u64(), Some(1), "{row}");
        let batch = if row["pattern"] == "at_once" { 50 } else { 1 };
        assert_eq!(row["batch"].as_u64(), Some(batch), "{row}");
        let [least, median, most] = ["least_ns", "median_ns", "most_ns"]
            .map(|field| row[field].as_f64().unwrap_or_else(|| panic!("no {field} in {row}")));
        assert!(0.0 < least && least <= median && median <= most, "{row}");
        // That the settings are what they are called: each slot new, or each used again.
        let counts = (row["made"].as_u64(), row["reused"].as_u64());
        match row["mode"].as_str().unwrap() {
            "threads" => assert_eq!(counts, (Some(0), Some(0)), "{row}"),
            "fibers_without_pool" => assert_eq!(counts, (Some(400), Some(0)), "{row}"),
            _ => {
                assert_eq!(counts, (Some(0), Some(400)), "{row}");
                assert_eq!(row["ratio_to_pool"].as_f64(), Some(1.0), "{row}");
            }
        }
    }
}

#[test]
fn the_table_has_a_line_for_each_and_remarks_stand_elsewhere() {
    let arguments = ["bench", "pool", "--lives", "20", "--batch", "10", "--rounds", "1"];
    let output = run(sleave(&arguments));
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    for word in ["OS threads", "fibers, no pool", "fibers, pool", "one at a time", "10 at once"] {
        assert!(table.contains(word), "no {word} in:\n{table}");
    }
    assert!(!table.contains("Median"), "{table}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("Median"));
}

#[test]
fn several_workers_lose_no_life() {
    let arguments = ["bench", "pool", "--quick", "--lives", "400", "--batch", "100", "--workers"];
    let output = run(sleave(&[&arguments[..], &["3", "--json"]].concat()));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let fibers = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    for row in fibers.filter(|row| row["mode"] != "threads") {
        let begun = row["made"].as_u64().unwrap() + row["reused"].as_u64().unwrap();
        assert_eq!(begun, 3 * 400, "{row}");
    }
}

#[test]
fn where_fibers_are_threads_there_is_nothing_to_measure() {
    let mut command = sleave(&["bench", "pool", "--quick"]);
    command.env("SLEAVE_IDENTITY", "threads");
    let output = run(command);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("SLEAVE_IDENTITY=threads"), "{complaint}");
    assert!(output.stdout.is_empty());
}
