//! The harness of the tests beside it: many fibers of two workers, each in a call that waits, and proof
//! that they waited together and on no threads of their own.
//!
//! The crates under test are as published, and know nothing of fibers. What they wait in (a socket, a lock, a
//! condition variable, somebody's event loop) is theirs; that it parks the fiber is what is asserted:
//!
//! * **overlap**: all together take far less time than one after the other would;
//! * **no thread per fiber**: `/proc/self/task` grows by a handful, whatever the number of fibers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a fiber's stack: what TLS libraries take in a debug build.
const STACK: usize = 1 << 20;

/// What running many fibers at once has shown.
#[derive(Debug)]
pub struct Overlap<T> {
    /// What they returned, in order.
    pub results: Vec<T>,
    /// From before the first was spawned until the last was joined.
    pub took: Duration,
    /// The most OS threads of this process at any time, beyond those that there were before.
    pub threads: usize,
}

impl<T> Overlap<T> {
    /// Asserts that less than `limit` passed and that the fibers had no threads of their own.
    #[track_caller]
    pub fn assert(&self, limit: Duration) {
        let fibers = self.results.len();
        println!("{fibers} fibers: {:?}, {} more threads", self.took, self.threads);
        assert!(self.took < limit, "{fibers} fibers took {:?}, no less than {limit:?}", self.took);
        assert!(self.threads < fibers / 2, "{} more threads for {fibers} fibers", self.threads);
    }
}

/// Runs `body(0)`, `body(1)`, … on `fibers` fibers of two workers.
pub fn together<T, F>(fibers: usize, body: F) -> Overlap<T>
where
    T: Send + 'static,
    F: Fn(usize) -> T + Send + Sync + 'static,
{
    sleave::identity().expect("fibers are fibers here");
    let before = os_threads();
    let watch = Watch::new();
    let runtime =
        sleave::Runtime::builder().workers(2).stack_size(STACK).build().expect("a runtime");
    let body = Arc::new(body);
    let begun = Instant::now();
    let handles: Vec<_> = (0..fibers)
        .map(|number| {
            let body = Arc::clone(&body);
            runtime.spawn(move || body(number))
        })
        .collect();
    let results = handles.into_iter().map(|handle| handle.join().expect("no panic")).collect();
    let took = begun.elapsed();
    runtime.stop();
    Overlap { results, took, threads: watch.end().saturating_sub(before) }
}

/// OS threads of this process.
fn os_threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("procfs").count()
}

/// A thread that counts threads.
struct Watch {
    over: Arc<AtomicBool>,
    most: Arc<AtomicUsize>,
    thread: thread::JoinHandle<()>,
}

impl Watch {
    fn new() -> Watch {
        let (over, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = thread::spawn({
            let (over, most) = (Arc::clone(&over), Arc::clone(&most));
            move || {
                while !over.load(Ordering::Relaxed) {
                    // Not this one.
                    most.fetch_max(os_threads() - 1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
        Watch { over, most, thread }
    }

    fn end(self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch does not panic");
        self.most.load(Ordering::Relaxed)
    }
}

/// The address of a server that `.ci/compat` has started.
///
/// # Panics
/// If the variable is not set: the tests are run by that script.
pub fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run .ci/compat, which starts the servers")
    })
}

/// A certificate for `localhost` that nobody has signed, in DER and PEM, and its key.
pub fn certificate() -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate")
}
