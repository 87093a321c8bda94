//! What the feature `trace` tells, compared with what has happened.
//!
//! The trace goes to standard error for the whole life of a process, so each test runs itself again as a
//! child and reads that.

#[allow(dead_code, reason = "its main prints")]
#[path = "../examples/life_cycle.rs"]
mod life_cycle;

use std::collections::HashMap;
use std::env;
use std::process::{Command, Output};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

const CHILD: &str = "SLEAVE_TEST_CHILD";

/// In the child of the test that calls: does `deed`, and answers `None`. Else runs the test `name` as a child, with
/// `trace` as `SLEAVE_TRACE`, and answers what became of it.
fn child(name: &str, trace: Option<&str>, deed: impl FnOnce()) -> Option<Output> {
    if env::var_os(CHILD).is_some() {
        deed();
        return None;
    }
    let mut command = Command::new(env::current_exe().expect("the path of this test binary"));
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    match trace {
        Some(value) => command.env("SLEAVE_TRACE", value),
        None => command.env_remove("SLEAVE_TRACE"),
    };
    Some(command.output().expect("the child starts"))
}

/// The lines of a trace: nanoseconds and the rest.
fn lines(output: &Output) -> Vec<(u64, String)> {
    assert!(output.status.success(), "{output:?}");
    let text = std::str::from_utf8(&output.stderr).expect("whole characters");
    let line = |line: &str| {
        let (time, rest) = line.strip_prefix("sleave ")?.split_once(' ')?;
        let (seconds, fraction) = time.split_once('.')?;
        assert_eq!(fraction.len(), 9, "{line}");
        let seconds = seconds.parse::<u64>().ok()?;
        Some((seconds * 1_000_000_000 + fraction.parse::<u64>().ok()?, rest.to_owned()))
    };
    text.lines()
        .map(|text| line(text).unwrap_or_else(|| panic!("no line of a trace: {text}")))
        .collect()
}

#[test]
fn a_life_on_one_worker_is_told_step_by_step() {
    let name = "a_life_on_one_worker_is_told_step_by_step";
    let Some(output) = child(name, Some("1"), || drop(life_cycle::story())) else { return };
    let trace = lines(&output);
    assert!(trace.is_sorted_by_key(|line| line.0), "{trace:?}");
    let told: Vec<_> = trace.iter().map(|line| line.1.replace("fiber 2 \"Ada\"", "Ada")).collect();
    let expected = [
        "outside: fiber 1 is created",
        "worker 0: fiber 1 starts",
        "worker 0: Ada is created",
        "worker 0: fiber 1 leaves: yields",
        "worker 0: Ada starts",
        "worker 0: Ada leaves: yields",
        "worker 0: fiber 1 resumes",
        "worker 0: fiber 1 leaves: waits for a token",
        "worker 0: Ada resumes",
        "worker 0: Ada leaves: waits for a timer",
        "worker 0: Ada is woken: the time is over",
        "worker 0: Ada resumes",
        "worker 0: fiber 1 is woken",
        "worker 0: Ada leaves: waits for a lock",
        "worker 0: fiber 1 resumes",
        "worker 0: Ada is woken",
        "worker 0: fiber 1 leaves: waits for a token",
        "worker 0: Ada resumes",
        "worker 0: fiber 1 is woken",
        "worker 0: Ada leaves: waits for a descriptor",
        "worker 0: fiber 1 resumes",
        "worker 0: fiber 1 leaves: waits for a token",
        "worker 0: Ada is woken",
        "worker 0: Ada resumes",
        "worker 0: fiber 1 is woken",
        "worker 0: Ada leaves: waits for a token",
        "worker 0: fiber 1 resumes",
        "worker 0: Ada is woken",
        "worker 0: fiber 1 leaves: waits for a fiber's end",
        "worker 0: Ada resumes",
        "worker 0: Ada ends",
        "worker 0: fiber 1 is woken",
        "worker 0: Ada leaves: has ended",
        "worker 0: fiber 1 resumes",
        "worker 0: fiber 1 ends",
        "worker 0: fiber 1 leaves: has ended",
    ];
    assert_eq!(told, expected);
}

/// Fibers that wait for all there is to wait for, on four workers.
fn bustle() {
    const FIBERS: usize = 50;
    let runtime = sleave::Runtime::builder().workers(4).build().expect("a runtime");
    let lock = Mutex::new(0);
    runtime.run(|| {
        sleave::scope(|scope| {
            let (send, receive) = mpsc::channel();
            for number in 0..FIBERS {
                let (send, lock) = (send.clone(), &lock);
                scope.spawn(move || {
                    for round in 0..10 {
                        let mut guard = lock.lock().unwrap();
                        sleave::yield_now();
                        *guard += 1;
                        drop(guard);
                        thread::sleep(Duration::from_micros((number * round % 7) as u64));
                        send.send(number).unwrap();
                        if number % 5 == 0 {
                            sleave::pin(round % 4).expect("such a worker");
                        }
                    }
                });
            }
            drop(send);
            assert_eq!(receive.iter().count(), FIBERS * 10);
        });
    });
    runtime.stop();
    assert_eq!(lock.into_inner().unwrap(), FIBERS * 10);
}

#[test]
fn every_fiber_s_lines_are_in_order_on_several_workers() {
    let name = "every_fiber_s_lines_are_in_order_on_several_workers";
    let Some(output) = child(name, Some("1"), bustle) else { return };
    // What a fiber's last line was: what may follow is determined.
    let (mut last, mut moved) = (HashMap::new(), false);
    for (_, line) in lines(&output) {
        let (place, line) = line.split_once(": fiber ").expect("a place");
        let (number, what) = line.split_once(' ').expect("a number");
        let inside = place.strip_prefix("worker ").map(|number| number.parse::<usize>().is_ok());
        assert!(place == "outside" || inside == Some(true), "{place}");
        moved |= what == "leaves: moves to its worker";
        let before = last.insert(number.parse::<u64>().expect("a number"), what.to_owned());
        let fits = match what {
            "is created" => before.is_none(),
            "starts" => before.as_deref() == Some("is created"),
            "is woken" | "is woken: the time is over" => {
                before.as_deref().is_some_and(|before| before.starts_with("leaves: waits for"))
            }
            "resumes" => before.as_deref().is_some_and(|before| {
                matches!(before, "leaves: yields" | "leaves: moves to its worker")
                    || before.starts_with("is woken")
            }),
            "leaves: has ended" => before.as_deref() == Some("ends"),
            _ if what == "ends" || what.starts_with("leaves: ") => {
                before.as_deref().is_some_and(|before| matches!(before, "starts" | "resumes"))
            }
            _ => false,
        };
        assert!(fits, "fiber {number}: {before:?}, then {what}");
    }
    assert_eq!(last.len(), 51);
    assert!(moved, "some pin themselves to one worker after the other");
    assert!(last.values().all(|what| what == "leaves: has ended"), "{last:?}");
}

#[test]
fn nothing_is_told_unless_it_is_asked_for() {
    for value in [None, Some("0")] {
        let name = "nothing_is_told_unless_it_is_asked_for";
        let Some(output) = child(name, value, || drop(life_cycle::story())) else { return };
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn a_value_that_makes_no_sense_is_refused() {
    for value in ["2", "yes", ""] {
        let refused = || {
            let error = sleave::Runtime::builder().build().expect_err("no runtime");
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
            println!("refused: {error}");
        };
        let name = "a_value_that_makes_no_sense_is_refused";
        let Some(output) = child(name, Some(value), refused) else { return };
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(&format!("refused: SLEAVE_TRACE={value:?}")), "{said}");
    }
}
