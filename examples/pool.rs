//! The pool at work: one slot for a thousand fibers, a thousand slots for a thousand at once, a limit, no pool.
//!
//! A slot is a fiber's stack and identity. The pool works by itself; this looks at it and sets its limit.
//! `cargo run --release -- bench pool` measures what it saves.
//!
//! ```text
//! cargo run --release -p sleave --example pool
//! ```

use std::sync::{Arc, Barrier};

use sleave::{Runtime, pool, spawn};

/// What happens, line by line. One worker, so that the numbers are the same each time.
pub fn story() -> Vec<String> {
    let runtime = Runtime::builder().workers(1).build().expect("a runtime");
    // Whatever ran before in this process: begin without a warm slot.
    pool::trim();
    let lines = runtime.run(tell);
    runtime.stop();
    pool::set_limit(None);
    lines
}

fn tell() -> Vec<String> {
    let mut lines = Vec::new();
    let mut before = pool::statistics();
    let mut say = |what: &str, before: &mut pool::Statistics| {
        let now = pool::statistics();
        let (made, reused) = (now.made - before.made, now.reused - before.reused);
        lines.push(format!("{what}: {made} slots made, {reused} times one was used again"));
        *before = now;
    };

    one_after_another(1_000);
    say("1,000 fibers, one after another", &mut before);
    let in_use = at_once(1_000);
    say("1,000 fibers at once", &mut before);
    at_once(1_000);
    say("1,000 at once, again", &mut before);
    pool::set_limit(Some(0));
    one_after_another(100);
    say("100 fibers without a pool", &mut before);

    lines.push(format!("when they ran at once, {in_use} slots were in use, one by this fiber"));
    pool::set_limit(Some(100));
    at_once(1_000);
    let warm = pool::statistics().warm;
    lines.push(format!("with a limit of 100, of 1,000 slots stayed warm: {warm}"));
    pool::trim();
    let now = pool::statistics();
    lines.push(format!("after a trim: {} warm, {} in use", now.warm, now.in_use));
    lines
}

fn one_after_another(fibers: usize) {
    (0..fibers).for_each(|_| spawn(|| ()).join().expect("it does nothing"));
}

/// Runs so many fibers that wait for each other; says how many slots were in use when all were there.
fn at_once(fibers: usize) -> usize {
    let (arrived, leave) = (Arc::new(Barrier::new(fibers + 1)), Arc::new(Barrier::new(fibers + 1)));
    let fibers: Vec<_> = (0..fibers)
        .map(|_| {
            let (arrived, leave) = (Arc::clone(&arrived), Arc::clone(&leave));
            spawn(move || {
                arrived.wait();
                leave.wait();
            })
        })
        .collect();
    arrived.wait();
    let in_use = pool::statistics().in_use;
    leave.wait();
    fibers.into_iter().for_each(|fiber| fiber.join().expect("it only waits"));
    in_use
}

fn main() {
    match sleave::identity() {
        Ok(()) => story().iter().for_each(|line| println!("{line}")),
        Err(why) => println!("There is no pool here, as fibers are OS threads: {why}"),
    }
}
