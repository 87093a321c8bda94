//! What the kernel says about this process, asked past the C library.
//!
//! The bare instruction, which nothing can interpose, tells which OS thread it runs on. That is
//! how the tests see a fiber move, and how they know that a thousand waits hold no thousand
//! threads.
//!
//! Sources: gettid(2), getrusage(2), proc(5) (`maps`, `task`).

use std::fs;
use std::mem::MaybeUninit;
use std::time::Duration;

use syscalls::{Sysno, syscall};

/// The kernel's id of the OS thread under the caller.
pub fn tid() -> usize {
    // SAFETY: gettid(2) takes nothing and cannot fail.
    unsafe { syscall!(Sysno::gettid) }.expect("gettid cannot fail")
}

/// Writes to the standard error past libtest's capture and past the interposed `write`.
pub fn say(text: &str) {
    // SAFETY: write(2) reads `text.len()` bytes at a live pointer. A report that cannot be written
    // has nobody to tell, so the result is dropped.
    let _ = unsafe { syscall!(Sysno::write, 2, text.as_ptr(), text.len()) };
}

/// Sleeps in the kernel, behind the back of the interposed C library: a call that blocks its OS
/// thread whatever the runtime does.
pub fn block_thread(duration: Duration) {
    let request = libc::timespec {
        tv_sec: duration.as_secs() as libc::time_t,
        tv_nsec: duration.subsec_nanos().into(),
    };
    // SAFETY: nanosleep(2) reads the live request; a null remainder asks for none.
    let slept = unsafe { syscall!(Sysno::nanosleep, &raw const request, 0) };
    // A signal may end it early, as any thread's sleep.
    assert!(matches!(slept, Ok(0) | Err(syscalls::Errno::EINTR)), "nanosleep: {slept:?}");
}

/// Whether this kernel marks guard pages without a mapping of their own (Linux 6.13).
pub fn has_guard_markers() -> bool {
    const MADV_GUARD_INSTALL: libc::c_int = 102;
    let page = 4096;
    // SAFETY: mmap(2): a fresh private anonymous page touches nothing that exists.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(address, libc::MAP_FAILED);
    // SAFETY: madvise(2) on our own page; an unknown advice is refused with EINVAL.
    let installed = unsafe { libc::madvise(address, page, MADV_GUARD_INSTALL) } == 0;
    // SAFETY: munmap(2) of exactly the page mapped above, which nothing refers to.
    assert_eq!(unsafe { libc::munmap(address, page) }, 0);
    installed
}

/// How many OS threads this process has.
pub fn os_threads() -> usize {
    fs::read_dir("/proc/self/task").expect("/proc is mounted").count()
}

/// How many threads of this process have a name that begins with `prefix`.
pub fn threads_named(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}

/// How many mappings this process has: what `vm.max_map_count` limits.
pub fn mappings() -> usize {
    let maps = fs::read("/proc/self/maps").expect("/proc is mounted");
    maps.iter().filter(|&&byte| byte == b'\n').count()
}

/// The CPU time, user and system, of all threads of this process so far.
pub fn cpu_time() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: getrusage(2) fills the struct it is given.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    assert_eq!(result, 0, "getrusage of oneself cannot fail");
    // SAFETY: it returned 0, so it has filled the struct.
    let usage = unsafe { usage.assume_init() };
    let duration =
        |t: libc::timeval| Duration::new(t.tv_sec as u64, (t.tv_usec as u32).saturating_mul(1000));
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

/// Remembers on which OS threads one fiber has been seen.
#[derive(Debug)]
pub struct Moves {
    last: usize,
    seen: usize,
}

impl Moves {
    /// Starts where the caller is now.
    pub fn new() -> Self {
        Moves { last: tid(), seen: 0 }
    }

    /// Looks again; returns how many moves it has seen so far.
    pub fn look(&mut self) -> usize {
        let now = tid();
        if now != self.last {
            self.last = now;
            self.seen += 1;
        }
        self.seen
    }
}
