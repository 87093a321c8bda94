//! The calling thread as the worker: a scheduler without a thread of its own.
//!
//! A runtime that uses its caller, with one worker, is confined to one thread: whoever is inside `run` or
//! `stop` does the work. What is spawned before waits, `run` runs it beside its own closure until that has
//! ended, and `stop` runs what is left. So a program can have a scheduler on each of its threads, and
//! decides when it runs.

use std::sync::{Arc, Mutex};
use std::thread;

use sleave::Runtime;

/// The OS thread that carries the caller.
fn carrier() -> i32 {
    // SAFETY: gettid(2) has no arguments.
    unsafe { libc::gettid() }
}

/// What happens, in its order.
pub fn story() -> Vec<String> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let say = {
        let (lines, caller) = (lines.clone(), carrier());
        move |line: &str| {
            assert_eq!(carrier(), caller, "nothing runs anywhere else");
            lines.lock().unwrap().push(line.to_owned());
        }
    };
    let runtime = Runtime::builder().workers(1).use_caller().build().expect("a runtime");
    let spawn = |name: &'static str| {
        let say = say.clone();
        runtime.spawn(move || {
            say(&format!("  {name}: begins"));
            sleave::yield_now();
            say(&format!("  {name}: ends"));
        })
    };

    say("main: spawns A and B");
    let (a, b) = (spawn("A"), spawn("B"));
    thread::yield_now();
    say("main: has yielded, which is no use: it is a plain thread");
    assert!(!a.is_finished() && !b.is_finished());
    say("main: runs until A has ended");
    runtime.run(|| a.join().expect("no panic"));
    say("main: is back, and spawns C");
    let c = spawn("C");
    say("main: stops");
    runtime.stop();
    say("main: has run all that was left");
    assert!(b.is_finished() && c.is_finished());
    std::mem::take(&mut *lines.lock().unwrap())
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
