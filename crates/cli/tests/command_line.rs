//! What the tool says to a question and to nonsense.

#[allow(dead_code, reason = "each test binary uses its part of the helpers")]
mod common;

use common::{run, sleave};

#[test]
fn help_names_each_command_and_shows_examples() {
    let output = run(sleave(&["--help"]));
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for word in ["run", "demo", "echo", "bench", "Examples:", "sleave demo --json"] {
        assert!(help.contains(word), "no {word} in:\n{help}");
    }
}

#[test]
fn help_of_each_command_explains_its_options() {
    let demo = String::from_utf8(run(sleave(&["demo", "--help"])).stdout).unwrap();
    for word in ["--connections", "--seconds", "--workers", "--payload", "--json", "Examples:"] {
        assert!(demo.contains(word), "no {word} in:\n{demo}");
    }
    let echo = String::from_utf8(run(sleave(&["echo", "--help"])).stdout).unwrap();
    for word in ["--listen", "--mode", "--workers", "Ctrl-C", "Examples:"] {
        assert!(echo.contains(word), "no {word} in:\n{echo}");
    }
    let pool = String::from_utf8(run(sleave(&["bench", "pool", "--help"])).stdout).unwrap();
    for word in ["--lives", "--batch", "--rounds", "--workers", "--quick", "--json", "Examples:"] {
        assert!(pool.contains(word), "no {word} in:\n{pool}");
    }
}

#[test]
fn nonsense_values_are_named_and_exit_with_2() {
    for (arguments, message) in [
        (["demo", "--connections", "0"], "expected 1 to 1000000 connections"),
        (["demo", "--connections", "-5"], "expected 1 to 1000000 connections"),
        (["demo", "--connections", "99999999999999999999"], "expected 1 to 1000000 connections"),
        (["demo", "--connections", "many"], "expected a whole number of connections"),
        (["demo", "--seconds", "0"], "expected 0.1 to 3600 seconds"),
        (["demo", "--seconds", "-1"], "expected 0.1 to 3600 seconds"),
        (["demo", "--seconds", "nan"], "expected 0.1 to 3600 seconds"),
        (["demo", "--seconds", "soon"], "expected a number of seconds"),
        (["demo", "--workers", "0"], "expected 1 to 256 worker threads"),
        (["demo", "--workers", "2.5"], "expected a whole number of worker threads"),
        (["demo", "--payload", "0"], "expected 1 to 1048576 bytes"),
        (["echo", "--workers", "0"], "expected 1 to 256 worker threads"),
        (["echo", "--mode", "goroutines"], "possible values: threads, fibers"),
    ] {
        let output = run(sleave(&arguments));
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(complaint.contains(message), "{arguments:?}: {complaint}");
        assert!(output.stdout.is_empty(), "{arguments:?} printed results");
    }
}

#[test]
fn nonsense_measurements_are_named_and_exit_with_2() {
    for (arguments, message) in [
        (["--lives", "0"], "expected 1 to 10000000 lives"),
        (["--lives", "some"], "expected a whole number of lives"),
        (["--batch", "0"], "expected 1 to 10000 at once"),
        (["--batch", "-3"], "expected 1 to 10000 at once"),
        (["--rounds", "0"], "expected 1 to 1000 rounds"),
        (["--rounds", "1e3"], "expected a whole number of rounds"),
        (["--workers", "300"], "expected 1 to 256 worker threads"),
    ] {
        let output = run(sleave(&[&["bench", "pool"][..], &arguments].concat()));
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(complaint.contains(message), "{arguments:?}: {complaint}");
        assert!(output.stdout.is_empty(), "{arguments:?} printed results");
    }
}

#[test]
fn a_missing_or_unknown_command_exits_with_2() {
    for arguments in [&[][..], &["dance"], &["echo"], &["bench"], &["bench", "luck"]] {
        let output = run(sleave(arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}
