//! A scheduler with two threads: post tasks, post again, stop.
//!
//! A task is a closure, posted by a thread or by another task; or a fiber that exists already and has
//! suspended itself, which is posted again by its handle. `stop` waits until all of them have
//! ended, and until the two threads are gone: nothing that was posted is lost.
//!
//! Which of the two threads runs what, and what runs first, is up to the scheduler. The story tells who
//! posted what, and what each has done.

use std::sync::{Arc, Mutex};

use sleave::Runtime;

type Lines = Arc<Mutex<Vec<String>>>;

fn say(lines: &Lines, line: String) {
    lines.lock().unwrap().push(line);
}

/// A task that posts another one `rounds` times over, each from the one before.
fn again(lines: Lines, name: char, rounds: u32) {
    say(&lines, format!("task {name}, {rounds} to go"));
    if rounds > 0 {
        sleave::spawn(move || again(lines, name, rounds - 1));
    }
}

/// What happens, each task's lines in their order.
pub fn story() -> Vec<String> {
    let lines = Lines::default();
    let scheduler = Runtime::builder().workers(2).name("pool").build().expect("a runtime");
    for name in ['A', 'B', 'C'] {
        let lines = lines.clone();
        scheduler.spawn(move || again(lines, name, 3));
    }
    let sleeper = scheduler.spawn({
        let lines = lines.clone();
        move || {
            say(&lines, "fiber S suspends itself".into());
            sleave::park();
            say(&lines, "fiber S goes on".into());
        }
    });
    let fiber = sleeper.fiber().clone();
    scheduler.spawn({
        let lines = lines.clone();
        move || {
            say(&lines, "task P posts fiber S again".into());
            fiber.unpark(); // before it suspends itself or after: it is all the same
        }
    });
    scheduler.stop();
    say(&lines, "the scheduler has stopped".into());
    assert!(sleeper.is_finished());
    std::mem::take(&mut *lines.lock().unwrap())
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
