//! What all fibers are doing, and what they wait for.
//!
//! One fiber holds a lock and sleeps; the others wait: for that lock, for bytes, for a fiber's end, for a token. A
//! dump has a line for each, by its name. A program that runs with `SLEAVE_DUMP=SIGQUIT` in its environment writes the same to
//! its standard error when it gets that signal, or `sleave dump PID` sends it.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use sleave::{Awaited, Builder, Dump, State};

/// What the example tells of a dump: the names of those who wait, and for what, without the numbers that differ each time.
pub fn tell(dump: &Dump) -> Vec<String> {
    let line = |fiber: &sleave::FiberState| {
        let name = fiber.name.as_deref()?;
        let what = match fiber.state {
            State::Waiting { what: Awaited::Lock(_), .. } => "waits for a lock",
            State::Waiting { what: Awaited::Readable(_), .. } => "waits to read",
            State::Waiting { what: Awaited::Fiber(_), .. } => "waits for a fiber's end",
            State::Waiting { what: Awaited::Token, .. } => "waits to be unparked",
            State::Waiting { what: Awaited::Time, left: Some(_), .. } => "sleeps, with a deadline",
            _ => "does something else",
        };
        Some(format!("{name} {what}"))
    };
    dump.fibers.iter().filter_map(line).collect()
}

/// Has five fibers wait, dumps until all do, lets them go; the dump.
pub fn story() -> Dump {
    let lock = Mutex::new(());
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    sleave::run(|| {
        sleave::scope(|s| {
            let named = |name: &str| Builder::new().name(name);
            let parked = named("parked").spawn(sleave::park).expect("a fiber");
            let token = parked.fiber().clone();
            let (lock, waits) = (&lock, token.clone());
            let hold = move || {
                let _guard = lock.lock();
                // Until the others have been seen.
                while is_there(&waits) {
                    thread::sleep(Duration::from_millis(200));
                }
            };
            named("holder").spawn_scoped(s, hold).expect("a fiber");
            sleave::yield_now();
            named("locker").spawn_scoped(s, || drop(lock.lock())).expect("a fiber");
            named("reader").spawn_scoped(s, || (&near).read(&mut [0; 1])).expect("a fiber");
            named("joiner").spawn_scoped(s, || parked.join()).expect("a fiber");

            let dump = loop {
                let dump = sleave::dump();
                let lines = tell(&dump);
                if lines.len() == 5 && lines.iter().all(|line| !line.ends_with("something else")) {
                    break dump;
                }
                sleave::yield_now();
            };
            token.unpark();
            drop(far);
            dump
        })
    })
}

/// Whether the fiber has not ended.
fn is_there(fiber: &sleave::Fiber) -> bool {
    sleave::dump().fibers.iter().any(|one| one.id == fiber.id())
}

fn main() {
    if let Err(why) = sleave::identity() {
        println!("fibers cannot be had here, and each is an OS thread: {why}");
        return;
    }
    print!("{}", story());
}
