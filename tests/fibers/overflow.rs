//! A fiber that runs off its stack dies as a thread does, and says whose stack it was.
//!
//! The process that does it cannot report, so each test runs itself again as a child (the same
//! binary, this one test, told by an environment variable) and reads its standard error.
//!
//! Sources: signal(7) (SIGABRT, SIGSEGV), sigaltstack(2) (a handler needs a stack of its own).

use std::env;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use crate::support::{Company, WORKERS};

const CHILD: &str = "SLEAVE_TEST_CHILD_WORKERS";
const NAME: &str = "deep-diver";
const STACK: usize = 256 << 10;

/// In the child, how many workers it is to use.
fn child() -> Option<usize> {
    env::var(CHILD).ok().map(|workers| workers.parse().expect("set by the parent"))
}

/// Runs the test `name` of this file as a child and returns what became of it.
fn run_child(name: &str, workers: usize) -> Output {
    let module = module_path!().split_once("::").expect("a module of the test crate").1;
    Command::new(env::current_exe().expect("the path of this test binary"))
        .args([&format!("{module}::{name}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, workers.to_string())
        .output()
        .expect("the child starts")
}

/// Never returns: a frame of its own for every call, none of which the compiler may drop.
#[expect(unconditional_recursion, reason = "what this file is about")]
#[inline(never)]
fn sink(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    sink(depth + 1) + black_box(frame)[0]
}

/// Spawns a named fiber among a hundred others that wait, and lets it do `deed`.
fn in_a_named_fiber(workers: usize, deed: fn() -> u64) {
    let runtime = sleave::Runtime::builder().workers(workers).build().unwrap();
    runtime.run(|| {
        let gate = std::sync::Arc::new(crate::support::Gate::default());
        for i in 0..100 {
            let gate = std::sync::Arc::clone(&gate);
            let bystander = sleave::Builder::new().name(format!("bystander {i}"));
            drop(bystander.spawn(move || gate.pass()).unwrap());
        }
        let fiber = sleave::Builder::new().name(NAME).stack_size(STACK);
        let handle = fiber
            .spawn(move || {
                sleave::yield_now();
                deed()
            })
            .unwrap();
        handle.join().unwrap()
    });
}

/// Every number in `text`, in bytes where a unit follows it.
fn sizes(text: &str) -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = &rest[start..];
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let unit = after.trim_start();
        let scale = match unit {
            unit if unit.starts_with("KiB") => 1 << 10,
            unit if unit.starts_with("MiB") => 1 << 20,
            _ => 1,
        };
        sizes.extend(number.parse::<usize>().ok().map(|number| number.saturating_mul(scale)));
        rest = after;
    }
    sizes
}

#[test]
fn a_stack_overflow_names_the_fiber_and_its_stack_and_aborts() {
    if let Some(workers) = child() {
        return in_a_named_fiber(workers, || sink(0));
    }
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let output =
                run_child("a_stack_overflow_names_the_fiber_and_its_stack_and_aborts", workers);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.signal(),
                Some(libc::SIGABRT),
                "ended with {}: {errors}",
                output.status
            );
            assert!(errors.contains(NAME), "does not name the fiber: {errors}");
            assert!(!errors.contains("bystander"), "names another fiber: {errors}");
            assert!(errors.contains("overflow"), "does not say what happened: {errors}");
            // The slot may be larger than what was asked for, by its rounding.
            let named = sizes(&errors).into_iter().any(|size| (STACK..=4 * STACK).contains(&size));
            assert!(named, "does not tell the size of the stack: {errors}");
        }
    });
}

#[test]
fn an_overflow_of_a_plain_thread_stays_stds_business() {
    if let Some(workers) = child() {
        return in_a_named_fiber(workers, || {
            let thread = std::thread::Builder::new().name("plain thread".into());
            thread.stack_size(STACK).spawn(|| sink(0)).unwrap().join().unwrap()
        });
    }
    Company::Shared.keep(|| {
        let output = run_child("an_overflow_of_a_plain_thread_stays_stds_business", 2);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{errors}");
        assert!(errors.contains("plain thread"), "std's own report is lost: {errors}");
        assert!(!errors.contains(NAME), "a fiber is blamed for a thread: {errors}");
    });
}

#[test]
fn a_wild_pointer_is_no_stack_overflow() {
    if let Some(workers) = child() {
        return in_a_named_fiber(workers, || {
            let wild = std::ptr::without_provenance_mut::<u8>(black_box(64));
            // SAFETY: none, on purpose: the first page is never mapped (mmap_min_addr), so this
            // faults, in a child that exists only to die of it.
            unsafe { wild.write_volatile(1) };
            0
        });
    }
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let output = run_child("a_wild_pointer_is_no_stack_overflow", workers);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{errors}");
            assert!(!errors.contains("overflow"), "takes a fault for an overflow: {errors}");
        }
    });
}
