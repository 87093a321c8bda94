//! Calls that block their thread and have no readiness: files, locks, children, names, queues, joins, signals, `blocking`.
//!
//! Their results are those on a thread. While one of them waits, the others go on; as many wait at once as there may be
//! threads, which the runtime's own count shows without a clock (`all_wait`).

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod blocking;
mod children;
mod example;
mod files;
mod limit;
mod locks;
mod names;
mod opening;
mod queues;
mod signals;
mod threads;
mod ticks;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use sleave::Runtime;
use support::timing::eventually;

/// So many wait at once in the tests of overlap.
pub const MANY: usize = 100;

/// On one worker, `count` fibers make the call `wait`, which does not return before `release` has been called: all are in it at once. Then it is, and all
/// return. The number that `wait` gets is the fiber's.
pub fn all_wait<T: Send + 'static>(
    count: usize,
    wait: impl Fn(usize) -> T + Send + Sync + Clone + 'static,
    release: impl FnOnce(),
) -> Vec<T> {
    let runtime = Runtime::builder().workers(1).build().expect("a runtime");
    let fibers: Vec<_> = (0..count)
        .map(|i| {
            let wait = wait.clone();
            runtime.spawn(move || wait(i))
        })
        .collect();
    eventually("all are in their calls", || runtime.statistics().blocked == count);
    // A worker is there for others all the time.
    assert_eq!(runtime.spawn(|| 7).join().expect("a fiber"), 7);
    assert_eq!(runtime.statistics().blocked, count, "a call has returned too early");
    release();
    let values = fibers.into_iter().map(|fiber| fiber.join().expect("a fiber")).collect();
    assert_eq!(runtime.statistics().blocked, 0, "a worker that moves is counted as blocked");
    runtime.stop();
    values
}

/// A directory of the test's own, removed when it goes.
pub struct Directory(PathBuf);

impl Directory {
    /// On the disk that the build is on: a file system with a page cache, and not one in memory.
    pub fn make() -> Directory {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("handoff-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir(&path).expect("a directory");
        Directory(path)
    }

    /// The path of `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// As [`Directory::path`], of a FIFO that is made.
    pub fn fifo(&self, name: &str) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let path = self.path(name);
        let c = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL in it");
        // SAFETY: mkfifo(3) of a string.
        assert_eq!(unsafe { libc::mkfifo(c.as_ptr(), 0o600) }, 0, "mkfifo");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left over lies in the build's own directory for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A result of the C library: the value, or `errno` where it is -1.
pub fn outcome(result: impl Into<i64>) -> Result<i64, i32> {
    match result.into() {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().expect("errno is set")),
        value => Ok(value),
    }
}
