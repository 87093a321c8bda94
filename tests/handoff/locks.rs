//! `flock`, `lockf`, `F_SETLKW` and `F_OFD_SETLKW`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Company, Count, Host, LONG_PATIENCE, everywhere, watchdog::Watchdog};
use crate::{Directory, MANY, all_wait, outcome};

/// `flock` of `file`.
fn flock(file: &File, operation: i32) -> Result<i64, i32> {
    // SAFETY: flock(2) takes two numbers.
    outcome(unsafe { libc::flock(file.as_raw_fd(), operation) })
}

/// `fcntl` with a write lock, or none, of the bytes from `start` on, so many.
fn section(file: &File, command: i32, kind: i32, start: i64, len: i64) -> Result<i64, i32> {
    // SAFETY: zeroes are a flock; fcntl(2) reads it.
    unsafe {
        let mut lock = std::mem::zeroed::<libc::flock>();
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        (lock.l_start, lock.l_len) = (start, len);
        outcome(libc::fcntl(file.as_raw_fd(), command, &raw mut lock))
    }
}

/// `lockf` of all from the file position on.
fn lockf(file: &File, command: i32) -> Result<i64, i32> {
    // SAFETY: lockf(3) takes numbers.
    outcome(unsafe { libc::lockf(file.as_raw_fd(), command, 0) })
}

#[test]
fn a_held_lock_is_waited_for_and_excludes() {
    let directory = Arc::new(Directory::make());
    everywhere(move |host| {
        let path = directory.path("lock");
        File::create(&path).unwrap();
        let (inside, most) = (Arc::new(Count::new()), Arc::new(Count::new()));
        for ofd in [false, true] {
            host.spawn_many(8, {
                let (path, inside, most) = (path.clone(), Arc::clone(&inside), Arc::clone(&most));
                move |_| {
                    let file = File::options().write(true).open(&path).unwrap();
                    for _ in 0..5 {
                        let lock = |on: bool| match ofd {
                            false => flock(&file, if on { libc::LOCK_EX } else { libc::LOCK_UN }),
                            true => {
                                let kind = if on { libc::F_WRLCK } else { libc::F_UNLCK };
                                section(&file, libc::F_OFD_SETLKW, kind, 0, 0)
                            }
                        };
                        assert_eq!(lock(true), Ok(0));
                        let now = inside.up();
                        most.set(most.get().max(now));
                        std::thread::sleep(Duration::from_millis(1));
                        inside.down();
                        assert_eq!(lock(false), Ok(0));
                    }
                }
            });
        }
        most.get()
    });
}

#[test]
fn errors_and_refusals_are_the_kernels() {
    let directory = Directory::make();
    everywhere(|_| {
        let path = directory.path("errors");
        let (one, other) = (File::create(&path).unwrap(), File::create(&path).unwrap());
        let reader = File::open(&path).unwrap();
        assert_eq!(flock(&one, libc::LOCK_EX), Ok(0));
        // SAFETY: flock(2), lockf(3) and fcntl(2) of no descriptor, for their errors.
        let closed = unsafe {
            let number = i32::MAX;
            (
                outcome(libc::flock(number, libc::LOCK_EX)),
                outcome(libc::lockf(number, libc::F_LOCK, 0)),
                outcome(libc::fcntl(number, libc::F_SETLKW, std::ptr::null::<libc::flock>())),
            )
        };
        (
            flock(&other, libc::LOCK_EX | libc::LOCK_NB),
            flock(&other, 77),
            section(&one, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 10),
            section(&other, libc::F_OFD_SETLK, libc::F_WRLCK, 5, 10),
            section(&other, libc::F_OFD_SETLKW, libc::F_WRLCK, 10, 10),
            // What is opened for reading cannot be locked for writing.
            section(&reader, libc::F_OFD_SETLKW, libc::F_WRLCK, 0, 1),
            section(&one, libc::F_SETLKW, libc::F_WRLCK, -5, 1),
            lockf(&reader, libc::F_LOCK),
            closed,
        )
    });
}

/// In a child process: holds a lock of the whole file until its input ends.
#[test]
fn child_holds_a_lock() {
    let Some(path) = std::env::var_os("SLEAVE_TEST_LOCK") else { return };
    let file = File::options().write(true).open(path).unwrap();
    assert_eq!(lockf(&file, libc::F_LOCK), Ok(0));
    // Past libtest, which captures what a test prints.
    let mut out = File::options().write(true).open("/dev/stdout").unwrap();
    out.write_all(b"\nheld\n").unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// A process that holds the POSIX lock of `path` until its input is closed, and what it says.
fn holder(path: &Path) -> (Child, impl Sized) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "locks::child_holds_a_lock"])
        .env("SLEAVE_TEST_LOCK", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "held"), "the child holds the lock");
    (child, lines)
}

/// A way to lock a whole file.
type Way = fn(&File) -> Result<i64, i32>;

#[test]
fn a_lock_of_another_process_is_waited_for() {
    let directory = Directory::make();
    everywhere(|_| {
        let path = directory.path("posix");
        let file = File::create(&path).unwrap();
        let ways: [Way; 2] = [
            |file| lockf(file, libc::F_LOCK),
            |file| section(file, libc::F_SETLKW, libc::F_WRLCK, 0, 0),
        ];
        ways.map(|way| {
            let (mut child, _output) = holder(&path);
            assert!(lockf(&file, libc::F_TLOCK).is_err());
            let input = child.stdin.take();
            let releases = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                drop(input);
            });
            let taken = way(&file);
            assert!(child.wait().unwrap().success());
            releases.join().unwrap();
            (taken, lockf(&file, libc::F_ULOCK))
        })
    });
}

#[test]
fn many_wait_for_a_lock_at_once_on_one_worker() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let directory = Directory::make();
        let path = directory.path("many");
        let held = File::create(&path).unwrap();
        assert_eq!(flock(&held, libc::LOCK_EX), Ok(0));
        let wait = move |_| {
            let file = File::open(&path).unwrap();
            (flock(&file, libc::LOCK_EX), flock(&file, libc::LOCK_UN))
        };
        let taken = all_wait(MANY, wait, || drop(held));
        assert_eq!(taken, [(Ok(0), Ok(0)); MANY]);
    });
}

/// Who holds the lock makes blocking calls of its own, while more wait for it than there may be threads.
#[test]
fn a_holder_that_works_is_not_held_up_by_those_who_wait() {
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let runtime = sleave::Runtime::builder().workers(1).build().unwrap();
        let directory = Arc::new(Directory::make());
        let path = directory.path("lock");
        File::create(&path).unwrap();
        let fibers: Vec<_> = (0..600u32)
            .map(|i| {
                let path = path.clone();
                runtime.spawn(move || {
                    let mut file = File::options().append(true).open(path).unwrap();
                    assert_eq!(flock(&file, libc::LOCK_EX), Ok(0));
                    file.write_all(&i.to_le_bytes()).unwrap();
                    if i % 50 == 0 {
                        file.sync_data().unwrap();
                    }
                    std::thread::sleep(Duration::from_micros(100));
                    assert_eq!(flock(&file, libc::LOCK_UN), Ok(0));
                })
            })
            .collect();
        fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
        runtime.stop();
        assert_eq!(std::fs::read(&path).unwrap().len(), 4 * 600);
    });
}
