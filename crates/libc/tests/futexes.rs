//! Futexes by `syscall` on threads and on fibers, and system calls that have nothing to do with them.

use std::ffi::c_int;
use std::ptr::null;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use libc::timespec;
use support::{errno, everywhere, outcome, set_errno};

#[macro_use]
mod support;

const SHORT: Duration = Duration::from_millis(30);
const PRIVATE: c_int = libc::FUTEX_PRIVATE_FLAG;

fn call(
    word: *const AtomicU32,
    operation: c_int,
    value: u32,
    timeout: *const timespec,
    second: *const AtomicU32,
    value3: u32,
) -> Result<i64, c_int> {
    // SAFETY: futex(2): the words and the timeout are live, or addresses that the kernel refuses.
    outcome(unsafe {
        libc::syscall(libc::SYS_futex, word, operation, value, timeout, second, value3)
    })
}

fn wait(word: &AtomicU32, expected: u32, timeout: Option<&timespec>) -> Result<i64, c_int> {
    let timeout = timeout.map_or(null(), |t| t as *const timespec);
    call(word, libc::FUTEX_WAIT | PRIVATE, expected, timeout, null(), 0)
}

fn wake(word: &AtomicU32, count: u32) -> Result<i64, c_int> {
    call(word, libc::FUTEX_WAKE | PRIVATE, count, null(), null(), 0)
}

/// Starts `n` threads that run `wait`, and wakes with `wake` until `n` have been woken in all:
/// the results of the wakes add up to the waiters, whenever those arrive.
fn woken_in_all(n: i64, wait: impl Fn() -> Result<i64, c_int> + Sync, wake: impl Fn() -> i64) {
    scope!(|s| {
        let waiters: Vec<_> = (0..n).map(|_| s.spawn(&wait)).collect();
        let mut woken = 0;
        while woken < n {
            woken += wake();
            thread::yield_now();
        }
        assert_eq!(woken, n);
        for waiter in waiters {
            assert_eq!(waiter.join().expect("a waiter"), Ok(0));
        }
    });
    assert_eq!(wake(), 0, "nobody is left");
}

#[test]
fn wakes_count_who_wakes() {
    everywhere(|| {
        let word = AtomicU32::new(7);
        woken_in_all(5, || wait(&word, 7, None), || wake(&word, 2).expect("a wake"));
        woken_in_all(5, || wait(&word, 7, None), || wake(&word, i32::MAX as u32).expect("a wake"));
        set_errno(libc::EXDEV);
        assert_eq!(wake(&word, 1), Ok(0));
        assert_eq!(errno(), libc::EXDEV, "success leaves errno alone");
    });
}

#[test]
fn bitsets_choose_who_wakes() {
    everywhere(|| {
        let word = AtomicU32::new(0);
        let waits = || call(&word, libc::FUTEX_WAIT_BITSET | PRIVATE, 0, null(), null(), 0b10);
        let wakes = |mask| {
            call(&word, libc::FUTEX_WAKE_BITSET | PRIVATE, 9, null(), null(), mask).expect("a wake")
        };
        woken_in_all(3, waits, || {
            assert_eq!(wakes(0b01), 0, "another bit");
            wakes(0b110)
        });
        for operation in [libc::FUTEX_WAIT_BITSET, libc::FUTEX_WAKE_BITSET] {
            let result = call(&word, operation | PRIVATE, 0, null(), null(), 0);
            assert_eq!(result, Err(libc::EINVAL), "no bit at all");
        }
    });
}

#[test]
fn another_value_is_eagain() {
    everywhere(|| {
        let word = AtomicU32::new(1);
        assert_eq!(wait(&word, 2, None), Err(libc::EAGAIN));
        let shared = call(&word, libc::FUTEX_WAIT, 2, null(), null(), 0);
        assert_eq!(shared, Err(libc::EAGAIN));
    });
}

#[test]
fn timeouts_relative_and_absolute() {
    everywhere(|| {
        let word = AtomicU32::new(0);
        let timed = |call: &dyn Fn() -> Result<i64, c_int>| {
            let start = Instant::now();
            assert_eq!(call(), Err(libc::ETIMEDOUT));
            assert!(start.elapsed() >= SHORT, "gave up after {:?}", start.elapsed());
        };
        let short = timespec { tv_sec: 0, tv_nsec: SHORT.as_nanos() as i64 };
        timed(&|| wait(&word, 0, Some(&short)));
        for (clock, flag) in
            [(libc::CLOCK_MONOTONIC, 0), (libc::CLOCK_REALTIME, libc::FUTEX_CLOCK_REALTIME)]
        {
            timed(&|| {
                let mut at = timespec { tv_sec: 0, tv_nsec: 0 };
                // SAFETY: clock_gettime(2) writes one timespec.
                unsafe { libc::clock_gettime(clock, &mut at) };
                at.tv_nsec += short.tv_nsec;
                at.tv_sec += at.tv_nsec / 1_000_000_000;
                at.tv_nsec %= 1_000_000_000;
                let operation = libc::FUTEX_WAIT_BITSET | PRIVATE | flag;
                call(&word, operation, 0, &at, null(), u32::MAX)
            });
        }
        let past = timespec { tv_sec: 1, tv_nsec: 0 };
        let operation = libc::FUTEX_WAIT_BITSET | PRIVATE | libc::FUTEX_CLOCK_REALTIME;
        assert_eq!(call(&word, operation, 0, &past, null(), u32::MAX), Err(libc::ETIMEDOUT));
    });
}

#[test]
fn errors_are_the_kernels() {
    everywhere(|| {
        let word = AtomicU32::new(0);
        for (tv_sec, tv_nsec) in [(0, 1_000_000_000), (-1, 0), (0, -1)] {
            let time = timespec { tv_sec, tv_nsec };
            assert_eq!(wait(&word, 0, Some(&time)), Err(libc::EINVAL));
            assert_eq!(
                wait(&word, 1, Some(&time)),
                Err(libc::EINVAL),
                "before the word is looked at"
            );
        }
        let odd = (&raw const word).wrapping_byte_add(1);
        let high = std::ptr::without_provenance(1 << 62);
        for operation in [libc::FUTEX_WAIT | PRIVATE, libc::FUTEX_WAIT] {
            assert_eq!(call(odd, operation, 0, null(), null(), 0), Err(libc::EINVAL));
            assert_eq!(call(null(), operation, 0, null(), null(), 0), Err(libc::EFAULT));
            assert_eq!(call(high, operation, 0, null(), null(), 0), Err(libc::EFAULT));
            let nowhere = std::ptr::without_provenance(8);
            assert_eq!(call(&word, operation, 0, nowhere, null(), 0), Err(libc::EFAULT));
        }
        assert_eq!(call(odd, libc::FUTEX_WAKE | PRIVATE, 1, null(), null(), 0), Err(libc::EINVAL));
        let realtime = libc::FUTEX_WAIT | PRIVATE | libc::FUTEX_CLOCK_REALTIME;
        assert_eq!(call(&word, realtime, 0, null(), null(), 0), Err(libc::ENOSYS));
        assert_eq!(call(&word, 100 | PRIVATE, 0, null(), null(), 0), Err(libc::ENOSYS));
    });
}

#[test]
fn requeued_waiters_are_woken_by_the_other_word() {
    everywhere(|| {
        let (first, second) = (AtomicU32::new(0), AtomicU32::new(0));
        let done = AtomicU32::new(0);
        const N: u32 = 4;
        scope!(|s| {
            for _ in 0..N {
                s.spawn(|| {
                    // A waiter may wake early on either word; it is done when the second says so.
                    while second.load(SeqCst) == 0 {
                        let _ = wait(&first, 0, None);
                        while second.load(SeqCst) == 0 {
                            let _ = wait(&second, 0, None);
                        }
                    }
                    done.fetch_add(1, SeqCst);
                });
            }
            // val2 travels in the place of the timeout.
            let all = std::ptr::without_provenance(N as usize);
            let operation = libc::FUTEX_CMP_REQUEUE | PRIVATE;
            assert_eq!(call(&first, operation, 0, all, &second, 1), Err(libc::EAGAIN));
            thread::sleep(SHORT);
            call(&first, operation, 0, all, &second, 0).expect("a requeue");
            second.store(1, SeqCst);
            while done.load(SeqCst) < N {
                wake(&first, N).expect("a wake");
                wake(&second, N).expect("a wake");
                thread::yield_now();
            }
        });
    });
}

#[test]
fn std_locks_work_on_it() {
    everywhere(|| {
        let (lock, changed) = (Mutex::new(0u32), Condvar::new());
        scope!(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..1000 {
                        *lock.lock().expect("the lock") += 1;
                        changed.notify_all();
                    }
                });
            }
            let mut sum = lock.lock().expect("the lock");
            while *sum < 4000 {
                sum = changed.wait(sum).expect("the lock");
            }
            let (sum, waited) = changed.wait_timeout(sum, SHORT).expect("the lock");
            assert_eq!((*sum, waited.timed_out()), (4000, true));
        });
    });
}

#[test]
fn other_system_calls_pass() {
    everywhere(|| {
        // SAFETY: getpid(2) and gettid(2) take nothing; the last is no system call.
        unsafe {
            let pid = i64::from(std::process::id());
            assert_eq!(outcome(libc::syscall(libc::SYS_getpid)), Ok(pid));
            assert!(outcome(libc::syscall(libc::SYS_gettid)).expect("an id") >= pid);
            assert_eq!(outcome(libc::syscall(9999)), Err(libc::ENOSYS));
            // Six words: mmap(2).
            let at =
                libc::syscall(libc::SYS_mmap, 0usize, 4096usize, 3usize, 0x22usize, -1isize, 0);
            let at = outcome(at).expect("a page");
            assert_eq!(outcome(libc::syscall(libc::SYS_munmap, at, 4096usize)), Ok(0));
        }
    });
}
