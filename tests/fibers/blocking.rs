//! A fiber that holds its worker in the kernel does not hold the others.
//!
//! Not every wait can be seen: a lock inside libc, a system call made by hand. The monitor notices
//! a worker that has sat in one call for long and gives its processor to another thread. Without
//! it the first test would never end on one worker: the fiber that holds the lock sleeps, and the
//! next one takes the only thread into the kernel to wait for it.
//!
//! Source: flockfile(3).

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::kernel::block_thread;
use crate::support::{Flag, Host, everywhere, on_fibers};

unsafe extern "C" {
    fn flockfile(file: *mut libc::FILE);
    fn funlockfile(file: *mut libc::FILE);
}

/// A stream of the C library that several fibers write to.
struct Stream(*mut libc::FILE);

// SAFETY: stdio streams are locked by every call on them (unlocked_stdio(3)).
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    fn temporary() -> Self {
        // SAFETY: tmpfile(3) takes nothing.
        let file = unsafe { libc::tmpfile() };
        assert!(!file.is_null(), "tmpfile: {}", std::io::Error::last_os_error());
        Stream(file)
    }

    /// Runs `f` with the stream's lock held.
    fn locked<T>(&self, f: impl FnOnce() -> T) -> T {
        // SAFETY: flockfile(3): the stream is open; the lock belongs to the calling thread, which
        // is the fiber, and is given back below by the same.
        unsafe { flockfile(self.0) };
        let value = f();
        // SAFETY: as above.
        unsafe { funlockfile(self.0) };
        value
    }

    fn put(&self, line: &CStr) {
        // SAFETY: fputs(3): the stream is open, the line ends with a zero.
        assert!(unsafe { libc::fputs(line.as_ptr(), self.0) } >= 0);
    }

    /// All that has been written.
    fn text(&self) -> String {
        // SAFETY: fflush(3), fileno(3): the stream is open.
        let number = unsafe {
            assert_eq!(libc::fflush(self.0), 0);
            libc::fileno(self.0)
        };
        // SAFETY: the stream keeps its descriptor open while it is borrowed here.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let mut file = File::from(descriptor.try_clone_to_owned().unwrap());
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: fclose(3): opened by `temporary`, closed once.
        assert_eq!(unsafe { libc::fclose(self.0) }, 0);
    }
}

#[test]
fn a_lock_inside_libc_held_over_a_sleep_does_not_dead_lock() {
    everywhere(|host| {
        let stream = Arc::new(Stream::temporary());
        let (held, is_held) = mpsc::channel();
        let holder = host.spawn({
            let stream = Arc::clone(&stream);
            move || {
                stream.locked(|| {
                    held.send(()).unwrap();
                    stream.put(c"first\n");
                    thread::sleep(Duration::from_millis(100));
                    stream.put(c"second\n");
                });
            }
        });
        is_held.recv().unwrap();
        host.spawn_many(6, {
            let stream = Arc::clone(&stream);
            move |_| {
                stream.put(c"one of many\n");
                stream.locked(|| {
                    stream.put(c"a pair\n");
                    host.yield_now();
                    stream.put(c"a pair\n");
                });
            }
        });
        holder.value();
        let text = stream.text();
        let lines: Vec<_> = text.lines().collect();
        let pairs_whole = lines.split(|&line| line != "a pair").all(|run| run.len() % 2 == 0);
        (lines[..2].join(" "), pairs_whole, lines.len())
    });
}

#[test]
fn a_system_call_made_by_hand_holds_nobody_else() {
    on_fibers(|host| {
        const TRIES: usize = 8;
        // The longest time that a fiber which only naps has to wait, while another blocks its
        // worker for a second. One try of several must be good: the machine may be busy.
        let longest_gap = || {
            let (blocked, gap) = (Arc::new(Flag::new()), Arc::new(Mutex::new(Duration::ZERO)));
            let napper = host.spawn({
                let (blocked, gap) = (Arc::clone(&blocked), Arc::clone(&gap));
                move || {
                    while !blocked.is_up() {
                        let before = Instant::now();
                        thread::sleep(Duration::from_millis(1));
                        let mut gap = gap.lock().unwrap();
                        *gap = (*gap).max(before.elapsed());
                    }
                }
            });
            let blocker = host.spawn(move || {
                block_thread(Duration::from_secs(1));
                blocked.raise();
            });
            blocker.value();
            napper.value();
            *gap.lock().unwrap()
        };
        let gaps = std::iter::repeat_with(longest_gap).take(TRIES);
        let mut seen = Vec::new();
        for gap in gaps {
            seen.push(gap);
            if gap < Duration::from_millis(100) {
                return;
            }
        }
        panic!("{host}: the others waited {seen:?}");
    });
}

#[test]
fn calls_that_hold_their_worker_overlap() {
    on_fibers(|host| {
        // Eight for each worker: one after the other they take four seconds.
        let Host::Fibers { workers } = host else { unreachable!("on fibers only") };
        let blocked_together = || {
            let start = Instant::now();
            host.spawn_many(8 * workers, |_| block_thread(Duration::from_millis(500)));
            start.elapsed()
        };
        let tries: Vec<_> = std::iter::repeat_with(blocked_together).take(3).collect();
        assert!(tries.iter().min() < Some(&Duration::from_secs(3)), "{host}: took {tries:?}");
    });
}

#[test]
fn child_processes_are_run_and_read() {
    everywhere(|host| {
        host.spawn_many(6, |i| {
            let mut child = Command::new("cat");
            let mut child =
                child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat exists");
            let mut input = child.stdin.take().unwrap();
            // More than a pipe holds would have to be read meanwhile; this fits.
            write!(input, "through child {i}").unwrap();
            drop(input);
            let output = child.wait_with_output().unwrap();
            let missing = Command::new("/there/is/no/such/program").spawn();
            (
                String::from_utf8(output.stdout).unwrap(),
                output.status.code(),
                missing.map(drop).map_err(|error| error.kind()),
            )
        })
    });
}
