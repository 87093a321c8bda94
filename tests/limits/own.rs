//! The runtime's own descriptors: out of the program's way, and not the program's to close.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::Duration;

use syscalls::{Sysno, syscall};

use super::child;
use super::descriptors::Full;
use crate::support::{Host, Watchdog};

/// The numbers of this process's descriptors that are an epoll instance, an eventfd or a timerfd.
fn anonymous() -> Vec<i32> {
    let entries: Vec<_> =
        fs::read_dir("/proc/self/fd").unwrap().map(|e| e.unwrap().path()).collect();
    let anonymous = entries.into_iter().filter(|path| {
        fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains("anon_inode:["))
    });
    anonymous.map(|path| path.file_name().unwrap().to_string_lossy().parse().unwrap()).collect()
}

fn runtime(host: Host) -> sleave::Runtime {
    let Host::Fibers { workers } = host else { panic!("only fibers have runtimes") };
    sleave::Runtime::builder().workers(workers).build().unwrap()
}

/// What a runtime does that needs its descriptors: sleeps, and waits for others and for sockets.
fn works(host: Host, runtime: &sleave::Runtime) {
    let outside = runtime.spawn(|| thread::sleep(Duration::from_millis(5)));
    runtime.run(|| {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let echo = host.spawn(move || {
            let mut word = [0; 4];
            far.read_exact(&mut word).unwrap();
            thread::sleep(Duration::from_millis(5));
            far.write_all(&word).unwrap();
        });
        thread::sleep(Duration::from_millis(5));
        near.write_all(b"word").unwrap();
        let mut word = [0; 4];
        near.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"word");
        echo.value();
    });
    outside.join().unwrap();
}

/// What this process's standard streams are, under other numbers.
struct Streams([RawFd; 3]);

impl Streams {
    fn keep() -> Streams {
        // SAFETY: dup(2) takes a number.
        Streams([0, 1, 2].map(|fd| unsafe { libc::dup(fd) }))
    }

    /// Runs `f` while their own numbers are nobody's.
    fn without<T>(&self, f: impl FnOnce() -> T) -> T {
        // SAFETY: close(2); they come back.
        (0..3).for_each(|fd| assert_eq!(unsafe { libc::close(fd) }, 0));
        let value = f();
        for (fd, &kept) in (0..3).zip(&self.0) {
            // SAFETY: dup2(2) to a number that nobody has, or that must not have been taken.
            assert_eq!(unsafe { libc::dup2(kept, fd) }, fd);
        }
        value
    }
}

#[test]
fn a_program_that_closes_everything_leaves_the_runtime_alone() {
    child::run(
        "own::a_program_that_closes_everything_leaves_the_runtime_alone",
        &child::fibers(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        let runtime = runtime(host);
        works(host, &runtime);
        let own = anonymous();
        assert_eq!(own.len(), 5, "{own:?}");
        let ebadf = |result: i32| {
            assert_eq!(result, -1);
            assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EBADF));
        };
        for _ in 0..2 {
            for &fd in &own {
                // SAFETY: close(2), dup2(2) and dup3(2) of numbers that are not this program's: they are refused.
                unsafe {
                    ebadf(libc::close(fd));
                    ebadf(libc::dup2(2, fd));
                    ebadf(libc::dup3(2, fd, libc::O_CLOEXEC));
                }
            }
            // The loop of a daemon, up to the last number there is.
            let last = *own.iter().max().unwrap();
            // SAFETY: close(2): this process has nothing open that it needs, but for what is refused.
            (3..=last).for_each(|fd| _ = unsafe { libc::close(fd) });
            works(host, &runtime);
            // And once more, by a fiber.
            runtime.run(|| {
                // SAFETY: as above.
                (3..=last).for_each(|fd| _ = unsafe { libc::close(fd) });
            });
            works(host, &runtime);
        }
        assert_eq!(anonymous(), own);
        runtime.stop();
    }
}

#[test]
fn descriptors_that_are_closed_past_the_c_library_end_the_process_with_a_word() {
    child::run(
        "own::descriptors_that_are_closed_past_the_c_library_end_the_process_with_a_word",
        &child::fibers(),
        body,
        |host, output| {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{host}: {errors}");
            assert!(errors.contains("has closed descriptor"), "{host}: {errors}");
        },
    );
    fn body(host: Host) {
        let runtime = runtime(host);
        works(host, &runtime);
        for fd in anonymous() {
            // SAFETY: close(2); the runtime's business, which is what this is about.
            unsafe { syscall!(Sysno::close, fd) }.unwrap();
        }
        works(host, &runtime);
    }
}

#[test]
fn the_standard_streams_numbers_are_never_the_runtimes() {
    child::run(
        "own::the_standard_streams_numbers_are_never_the_runtimes",
        &child::fibers(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        let streams = Streams::keep();
        // More of them than have room at the very top.
        let (runtimes, taken, own) = streams.without(|| {
            let runtimes: Vec<_> = (0..30).map(|_| runtime(host)).collect();
            let taken = [0, 1, 2].map(|fd| fs::read_link(format!("/proc/self/fd/{fd}")).is_ok());
            runtimes.iter().for_each(|runtime| works(host, runtime));
            (runtimes, taken, anonymous())
        });
        assert_eq!(taken, [false; 3]);
        assert_eq!(own.len(), 5 * runtimes.len());
        assert!(own.iter().all(|&fd| fd > 10), "small numbers: {own:?}");
    }
}

#[test]
fn a_runtime_that_gets_no_descriptors_says_so_and_leaves_none_behind() {
    child::run(
        "own::a_runtime_that_gets_no_descriptors_says_so_and_leaves_none_behind",
        &child::fibers(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        child::settle();
        let Host::Fibers { workers } = host else { unreachable!() };
        let build = || sleave::Runtime::builder().workers(workers).build();
        // What is read while it is made.
        sleave::identity().unwrap();
        let streams = Streams::keep();
        let mut full = Full::with_room(16);
        for left in 0..5 {
            full.leave(left);
            for _ in 0..10 {
                let error = build().expect_err("it needs five");
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
            }
            // All that were left are left.
            full.fill();
        }
        full.leave(5);
        let runtime = build().unwrap();
        let _watchdog = Watchdog::over(host, Duration::from_secs(60));
        runtime.run(|| thread::sleep(Duration::from_millis(5)));
        full.leave(2);
        works(host, &runtime);
        // A runtime that has stopped leaves its descriptors to the next.
        full.fill();
        runtime.stop();
        drop(runtime);
        let runtime = build().unwrap();
        runtime.run(|| thread::sleep(Duration::from_millis(5)));
        // Where only the standard streams' numbers are left there is none for another one.
        let error = streams.without(|| build().map(drop).unwrap_err());
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
    }
}
