//! The switch of a fiber: whether its blocking calls park it, or block its thread.
//!
//! A fiber begins with it on: `sleep`, `read`, `connect` and the like, as the C library has them, are the runtime's,
//! and the thread goes on with another fiber. `uninterposed` gives a fiber the kernel's own calls for a
//! while: for code that must stay on its thread, or whose calls are too short to pay for a switch. Other
//! fibers, and threads that are none, do not notice.
//!
//! This runtime is confined to the calling thread. In others a blocked thread is noticed after some 15 ms, and
//! another takes its place meanwhile.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use sleave::Runtime;

/// Long enough for another fiber to say something.
fn nap() {
    thread::sleep(Duration::from_millis(10));
}

/// What is said, in its order.
pub fn story() -> Vec<String> {
    let lines = Mutex::new(Vec::new());
    let say = |line: &str| lines.lock().unwrap().push(line.to_owned());
    let runtime = Runtime::builder().workers(1).use_caller().build().expect("a runtime");
    runtime.run(|| {
        sleave::scope(|scope| {
            scope.spawn(|| say("      another fiber runs"));
            say("sleeps, which parks the fiber");
            nap();
            say("has slept");
        });
        sleave::scope(|scope| {
            scope.spawn(|| say("      another fiber runs, at last"));
            say("sleeps, which blocks the thread");
            sleave::uninterposed(nap);
            say("has slept");
        });
    });
    runtime.stop();
    let before = sleave::interpose(false);
    say(&format!("on a plain thread there is nothing to switch: {before}"));
    lines.into_inner().unwrap()
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
