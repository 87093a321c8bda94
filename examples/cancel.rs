//! Ending work from outside: a fiber is cancelled, a piece of work has a time limit, a failure ends its siblings, a runtime is shut
//! down. What is ended unwinds, and what it holds is dropped.
//!
//! ```text
//! cargo run -p sleave --example cancel
//! ```

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::time::Duration;

/// What has happened, in order.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn say(line: String) {
    LINES.lock().unwrap().push(line);
}

/// Tells when it goes.
struct Held(&'static str);

impl Drop for Held {
    fn drop(&mut self) {
        say(format!("{} is put back", self.0));
    }
}

/// The example, and what it has to tell.
pub fn story() -> Vec<String> {
    // With one worker, a fiber that is spawned has its turn at the next yield.
    let runtime = sleave::Runtime::builder().workers(1).build().expect("a runtime");
    runtime.run(|| {
        // A fiber that waits unwinds from its wait.
        let fiber = sleave::spawn(|| {
            let _held = Held("the lock file");
            sleave::park();
        });
        sleave::yield_now();
        fiber.cancel();
        let payload = fiber.join().expect_err("it waits for ever");
        say(format!("cancelled: {}", payload.is::<sleave::Cancelled>()));

        // A call of the C library's fails instead, and the program passes it on.
        let fiber = sleave::spawn(|| {
            let (mut near, _far) = UnixStream::pair()?;
            near.read_exact(&mut [0; 8])
        });
        sleave::yield_now();
        fiber.cancel();
        if let Ok(Err(error)) = fiber.join() {
            say(format!("read: {error}"));
        }

        // What takes too long.
        let late = sleave::timeout(Duration::from_millis(10), || {
            let _held = Held("the connection");
            sleave::park();
        });
        say(format!("in time: {}", late.is_ok()));

        // One fails, and all end.
        let failed = catch_unwind(AssertUnwindSafe(|| {
            sleave::cancelling_scope(|s| {
                s.spawn(|| {
                    let _held = Held("the other half");
                    sleave::park();
                });
                sleave::yield_now();
                resume_unwind(Box::new("no use"));
            });
        }));
        say(format!("failed: {}", failed.is_err()));
    });

    // What has not ended after a while is ended.
    runtime.spawn(|| {
        let _held = Held("the cache");
        sleave::park();
    });
    let ended = runtime.shutdown(Duration::from_millis(20), Duration::from_secs(60));
    say(format!("shut down: {ended}"));
    std::mem::take(&mut *LINES.lock().unwrap())
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
