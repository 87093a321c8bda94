//! `std`'s backtraces and panic messages cross from coroutines into their resumers.

use sleave_context::{Coroutine, Yielder};
use std::backtrace::Backtrace;
use std::hint::black_box;
use std::process::Command;

#[inline(never)]
fn captures(yielder: &Yielder<(), String>, (): ()) {
    // After a suspension too: the resumer of now, not the first one.
    for _ in 0..2 {
        yielder.suspend(Backtrace::force_capture().to_string());
    }
}

#[inline(never)]
fn first_resumer(coroutine: &mut Coroutine<(), String, ()>) -> String {
    black_box(coroutine.next()).unwrap()
}

#[inline(never)]
fn second_resumer(coroutine: &mut Coroutine<(), String, ()>) -> String {
    let text = coroutine.next();
    black_box(text).unwrap()
}

/// Panics unless the words are there, in this order, each in a line of its own.
#[track_caller]
fn assert_in_order(text: &str, words: &[&str]) {
    let mut lines = text.lines();
    for word in words {
        assert!(lines.any(|line| line.contains(word)), "no {word} in its place:\n{text}");
    }
}

#[test]
fn a_backtrace_names_the_resumer_of_the_moment() {
    let mut coroutine = Coroutine::new(captures);
    let first = first_resumer(&mut coroutine);
    let test = "a_backtrace_names_the_resumer_of_the_moment";
    assert_in_order(&first, &["captures", "start_linked", "first_resumer", test]);
    assert!(!first.contains("second_resumer"));
    let second = second_resumer(&mut coroutine);
    assert_in_order(&second, &["captures", "start_linked", "second_resumer", test]);
    assert!(!second.contains("first_resumer"));
}

#[inline(never)]
fn panics(_: &Yielder<(), ()>, (): ()) {
    panic!("in the coroutine");
}

#[inline(never)]
fn resumes_what_panics() {
    black_box(Coroutine::new(panics).resume(()));
}

#[test]
fn the_backtrace_of_a_panic_names_the_resumer() {
    const NAME: &str = "backtrace::the_backtrace_of_a_panic_names_the_resumer";
    if std::env::var_os("SLEAVE_CONTEXT_TEST_CHILD").is_some() {
        return resumes_what_panics();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
        .env("SLEAVE_CONTEXT_TEST_CHILD", NAME)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    assert!(!child.status.success());
    let text = String::from_utf8_lossy(&child.stderr);
    let words = ["in the coroutine", "panics", "start_linked", "resumes_what_panics", "resumer"];
    assert_in_order(&text, &words);
}
