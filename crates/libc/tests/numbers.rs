//! What a number means, on threads and on fibers: numbers that the C library closes by itself, that are
//! closed in rows, that run out, that are 0, 1 and 2, that children close; and what is made of them.

use std::ffi::{c_int, c_uint, c_void};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use support::{
    everywhere, in_fiber, outcome, own, pipe, read, set_nonblocking, spawn, tcp_pair, unix_pair,
    write,
};

mod support;

const SHORT: Duration = Duration::from_millis(30);
const PATIENCE: Duration = Duration::from_secs(60);

/// Another name of what `fd` names, out of the way of what other tests open.
fn moved(fd: &impl AsRawFd, above: c_int) -> RawFd {
    // SAFETY: fcntl(2) F_DUPFD_CLOEXEC takes a number.
    let fd = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
    outcome(fd).expect("a number") as RawFd
}

/// Runs `body` in a process of its own, for it changes what all threads share: this program runs
/// anew, with nothing but the test `name`.
fn alone(name: &str, body: fn()) {
    const MARK: &str = "SLEAVE_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        // Once in a process malloc looks in a file how many CPUs there are: when many threads allocate.
        let all = Barrier::new(32);
        thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| {
                    drop(std::hint::black_box(vec![0u8; 100]));
                    all.wait();
                });
            }
        });
        return body();
    }
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--nocapture"])
        .env(MARK, "1")
        .stdin(Stdio::null())
        .spawn()
        .expect("the program again");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("its status") {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().expect("its end");
            panic!("{name} hangs");
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{name}: {status}");
}

/// Reads from `fd`, on which nothing comes, while another does `act` a little later.
fn read_while(fd: RawFd, act: impl FnOnce() + Send + 'static) -> Result<i64, c_int> {
    let actor = spawn(move || {
        thread::sleep(SHORT);
        act();
    });
    let mut byte = 0u8;
    // SAFETY: read(2) into a byte of ours; the number is the test's.
    let result = outcome(unsafe { libc::read(fd, (&raw mut byte).cast(), 1) });
    actor.join().expect("the actor");
    result
}

#[test]
fn a_stream_that_is_closed_wakes_who_waits_on_its_number() {
    everywhere(|| {
        if !in_fiber() {
            return;
        }
        let (from, _to) = pipe(libc::O_CLOEXEC);
        let fd = moved(&from, 500);
        // SAFETY: fdopen(3) takes the number over, fclose(3) closes it.
        let stream = unsafe { libc::fdopen(fd, c"r".as_ptr()) } as usize;
        let closed = read_while(fd, move || {
            // SAFETY: as above.
            assert_eq!(unsafe { libc::fclose(stream as *mut libc::FILE) }, 0);
        });
        assert_eq!(closed, Err(libc::EBADF));
    });
}

#[test]
fn numbers_that_streams_give_out_again_have_no_past() {
    everywhere(|| {
        for round in 0..10 {
            // The number is a socket's, then a pipe's that popen makes, by turns, unseen.
            let (a, b) = unix_pair(libc::SOCK_STREAM);
            let writer = spawn(move || {
                thread::sleep(Duration::from_millis(2));
                write(&b, b"socket")
            });
            assert_eq!(read(&a, 9).as_deref(), Ok(&b"socket"[..]), "round {round}");
            assert_eq!(writer.join().expect("the writer"), Ok(6));
            // SAFETY: fdopen(3) takes the number over; popen(3) and pclose(3) of a command of ours.
            unsafe {
                let stream = libc::fdopen(a.into_raw_fd(), c"r".as_ptr());
                assert_eq!(libc::fclose(stream), 0);
                for _ in 0..2 {
                    let stream = libc::popen(c"sleep 0.01; echo hi".as_ptr(), c"r".as_ptr());
                    assert!(!stream.is_null());
                    let fd = Borrowed(libc::fileno(stream));
                    assert_eq!(read(&fd, 9).as_deref(), Ok(&b"hi\n"[..]), "round {round}");
                    assert_eq!(libc::pclose(stream), 0);
                }
            }
        }
    });
}

struct Borrowed(RawFd);

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

#[test]
fn directories_and_reopened_streams_give_their_numbers_back() {
    everywhere(|| {
        // SAFETY: opendir(3), freopen(3) and their like, on files that exist; streams of ours.
        unsafe {
            let directory = libc::opendir(c"/proc/self".as_ptr());
            let fd = libc::dirfd(directory);
            assert!(!libc::readdir(directory).is_null());
            assert_eq!(libc::closedir(directory), 0);
            assert!(fd >= 0);
            let stream = libc::fopen(c"/proc/self/stat".as_ptr(), c"r".as_ptr());
            let stream = libc::freopen(c"/proc/self/exe".as_ptr(), c"r".as_ptr(), stream);
            let mut magic = [0u8; 4];
            assert_eq!(libc::fread(magic.as_mut_ptr().cast(), 1, 4, stream), 4);
            assert_eq!(magic, *b"\x7fELF");
            assert_eq!(libc::fclose(stream), 0);
        }
    });
}

#[test]
fn rows_of_numbers_are_closed_at_once() {
    alone("rows_of_numbers_are_closed_at_once", || {
        everywhere(|| {
            let (from, to) = pipe(libc::O_CLOEXEC);
            let first = moved(&from, 600);
            let last = moved(&from, 700);
            let close = move || {
                // SAFETY: close_range(2) of numbers that nobody else has.
                let range = |first: c_int, last: c_int, flags| unsafe {
                    outcome(libc::close_range(first as c_uint, last as c_uint, flags))
                };
                assert_eq!(range(last, first, 0), Err(libc::EINVAL));
                assert_eq!(range(first, last, 1 << 20), Err(libc::EINVAL));
                let cloexec = libc::CLOSE_RANGE_CLOEXEC as c_int;
                assert_eq!(range(first, last, cloexec), Ok(0), "which closes nothing yet");
                assert_eq!(range(first, last, 0), Ok(0));
            };
            if in_fiber() {
                assert_eq!(read_while(first, close), Err(libc::EBADF));
            } else {
                close();
            }
            assert_eq!(read_while(last, || {}), Err(libc::EBADF));
            // A number from the row is as good as new.
            let again = own(moved(&from, first));
            let writer = spawn(move || {
                thread::sleep(SHORT);
                write(&to, b"x")
            });
            assert_eq!(read(&again, 9).as_deref(), Ok(&b"x"[..]));
            assert_eq!(writer.join().expect("the writer"), Ok(1));
        });
    });
}

#[test]
fn what_a_child_closes_concerns_nobody_else() {
    everywhere(|| {
        let (from, to) = pipe(libc::O_CLOEXEC);
        let mut numbers = [from.as_raw_fd(), to.as_raw_fd()];
        let waiter = spawn(move || {
            let result = read(&from, 9);
            (result, from)
        });
        thread::sleep(SHORT);
        for vfork in [false, true] {
            // SAFETY: fork(2): the child closes, and ends.
            unsafe {
                let child = if vfork { in_this_memory(close_all, &numbers) } else { libc::fork() };
                if child == 0 {
                    close_all(numbers.as_mut_ptr().cast());
                }
                let mut status = -1;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                assert_eq!(status, 0);
            }
        }
        assert_eq!(write(&to, b"still here"), Ok(10));
        let (result, _from) = waiter.join().expect("the waiter");
        assert_eq!(result.as_deref(), Ok(&b"still her"[..]));
    });
}

/// A child in this memory, as vfork(2) makes it (which Rust cannot call: it returns twice), but on a
/// stack of its own.
unsafe fn in_this_memory(body: extern "C" fn(*mut c_void) -> c_int, numbers: &[c_int; 2]) -> c_int {
    let mut stack = vec![0u128; 4096];
    let top = stack.as_mut_ptr_range().end.cast();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let numbers = numbers.as_ptr().cast_mut().cast();
    // SAFETY: clone(2): the parent, and so stack and numbers, wait until the child has ended.
    unsafe { libc::clone(body, top, flags, numbers) }
}

extern "C" fn close_all(numbers: *mut c_void) -> c_int {
    // SAFETY: two numbers, alive as long as the child; the calls change the child's numbers only.
    unsafe {
        let [fd, number] = *numbers.cast::<[c_int; 2]>();
        libc::dup2(number, fd);
        libc::close(fd);
        libc::close(number);
        libc::close_range(3, c_uint::MAX, 0);
        libc::_exit(0)
    }
}

#[test]
fn numbers_run_out_as_on_a_thread() {
    alone("numbers_run_out_as_on_a_thread", || {
        // Where the runtime has its own numbers, beyond the new limit.
        everywhere(|| {
            let (a, b) = unix_pair(libc::SOCK_STREAM);
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: getrlimit(2) and setrlimit(2) of a structure of ours.
            let set = |limit: &libc::rlimit| unsafe {
                outcome(libc::setrlimit(libc::RLIMIT_NOFILE, limit)).expect("the limit")
            };
            // SAFETY: as above.
            unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
            set(&libc::rlimit { rlim_cur: 40, ..limit });
            let mut kept: Vec<OwnedFd> = Vec::new();
            // SAFETY: calls that make numbers, which the test keeps.
            unsafe {
                loop {
                    match outcome(libc::dup(a.as_raw_fd())) {
                        Ok(fd) => kept.push(own(fd as c_int)),
                        Err(error) => break assert_eq!(error, libc::EMFILE),
                    }
                }
                let mut pair = [-1; 2];
                let at = pair.as_mut_ptr();
                let epoll = libc::epoll_create1(0);
                let results = [
                    libc::pipe(at),
                    libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0),
                    libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, at),
                    libc::eventfd(0, 0),
                    libc::timerfd_create(libc::CLOCK_MONOTONIC, 0),
                    libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY),
                    libc::inotify_init1(0),
                    libc::memfd_create(c"m".as_ptr(), 0),
                    epoll,
                ];
                for (i, result) in results.into_iter().enumerate() {
                    assert_eq!(result, -1, "call {i}");
                }
                assert_eq!(libc::fcntl(a.as_raw_fd(), libc::F_DUPFD, 0), -1);
                assert_eq!(support::errno(), libc::EMFILE);
                assert_eq!(outcome(libc::dup2(a.as_raw_fd(), 50)), Err(libc::EBADF));
                assert_eq!(pair, [-1; 2]);
            }
            // What is open works, and waits.
            let writer = spawn(move || {
                thread::sleep(SHORT);
                write(&b, b"x")
            });
            assert_eq!(read(&a, 9).as_deref(), Ok(&b"x"[..]));
            assert_eq!(writer.join().expect("the writer"), Ok(1));
            drop(kept);
            set(&limit);
        });
    });
}

#[test]
fn standard_numbers_are_numbers_like_any_other() {
    alone("standard_numbers_are_numbers_like_any_other", || {
        // The harness's output goes elsewhere meanwhile.
        let saved: Vec<RawFd> = (0..3).map(|fd| moved(&Borrowed(fd), 100)).collect();
        let back = |saved: &[RawFd]| {
            for (fd, &saved) in saved.iter().enumerate() {
                // SAFETY: dup2(2) takes numbers.
                unsafe { libc::dup2(saved, fd as c_int) };
            }
        };
        let result = std::panic::catch_unwind(|| {
            everywhere(|| {
                for fd in 0..3 {
                    // SAFETY: close(2) takes a number; nobody prints meanwhile.
                    unsafe { libc::close(fd) };
                }
                let (from, to) = pipe(0);
                let (a, b) = unix_pair(libc::SOCK_STREAM);
                let numbers = [&from, &to, &a].map(AsRawFd::as_raw_fd);
                assert_eq!(numbers, [0, 1, 2], "the lowest are given out first");
                let writer = spawn(move || {
                    thread::sleep(SHORT);
                    assert_eq!(write(&to, b"out"), Ok(3));
                    assert_eq!(write(&b, b"socket"), Ok(6));
                    (to, b)
                });
                assert_eq!(read(&from, 9).as_deref(), Ok(&b"out"[..]));
                assert_eq!(read(&a, 9).as_deref(), Ok(&b"socket"[..]));
                writer.join().expect("the writer");
            });
        });
        back(&saved);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn the_lowest_number_is_the_programs_whatever_the_runtime_does() {
    alone("the_lowest_number_is_the_programs_whatever_the_runtime_does", || {
        everywhere(|| {
            // Workers that are stuck make the monitor look for the reason.
            let stuck: Vec<_> = (0..4)
                .map(|_| {
                    spawn(|| {
                        let sleep = || thread::sleep(Duration::from_millis(150));
                        sleave_runtime::interpose::uninterposed(sleep);
                    })
                })
                .collect();
            let start = Instant::now();
            let mut last = None;
            while start.elapsed() < Duration::from_millis(200) {
                // SAFETY: dup(2) and close(2) of numbers of the test's own.
                unsafe {
                    let fd = libc::dup(2);
                    assert_eq!(libc::close(fd), 0);
                    assert_eq!(*last.get_or_insert(fd), fd, "another number was free");
                }
            }
            stuck.into_iter().for_each(|stuck| stuck.join().expect("one that was stuck"));
        });
    });
}

#[test]
fn children_get_what_is_theirs_and_fibers_keep_the_rest() {
    everywhere(|| {
        let (from, to) = pipe(libc::O_CLOEXEC);
        let waiter = spawn(move || (read(&from, 9), read(&from, 9)));
        let mut child = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let (mut input, mut output) = (child.stdin.take(), child.stdout.take());
        input.as_mut().expect("its input").write_all(b"echo").expect("a pipe");
        let mut text = [0; 4];
        output.as_mut().expect("its output").read_exact(&mut text).expect("what was sent");
        assert_eq!(text, *b"echo");
        assert_eq!(write(&to, b"x"), Ok(1));
        drop(to);
        // The child lives, and has no end of ours.
        let (first, second) = waiter.join().expect("the waiter");
        assert_eq!((first.as_deref(), second.as_deref()), (Ok(&b"x"[..]), Ok(&b""[..])));
        drop(input);
        assert!(child.wait().expect("its status").success());
    });
}

#[test]
fn notifications_timers_and_processes_are_waited_for() {
    everywhere(|| {
        let mut file = std::env::temp_dir();
        file.push(format!("sleave-numbers-{}-{:?}", std::process::id(), thread::current().id()));
        let path = std::ffi::CString::new(file.to_str().expect("a path")).expect("no NUL");
        std::fs::write(&file, b"").expect("a file");
        // SAFETY: inotify(7) on a file of ours; pidfd_open(2) by number, of a child of ours.
        unsafe {
            let watch = own(libc::inotify_init1(libc::IN_CLOEXEC));
            let added = libc::inotify_add_watch(watch.as_raw_fd(), path.as_ptr(), libc::IN_MODIFY);
            outcome(added).expect("a watch");
            let name = file.clone();
            let changer = spawn(move || {
                thread::sleep(SHORT);
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(name)
                    .and_then(|mut file| file.write_all(b"changed"))
            });
            let event = read(&watch, 256).expect("an event");
            assert_eq!(event.len(), size_of::<libc::inotify_event>());
            changer.join().expect("the changer").expect("a change");
            let mut child = Command::new("/bin/sleep").arg("0.05").spawn().expect("a child");
            let process = libc::syscall(libc::SYS_pidfd_open, child.id(), 0);
            let process = own(process as c_int);
            let mut entry =
                [libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            assert_eq!(libc::poll(entry.as_mut_ptr(), 1, 20_000), 1);
            assert!(child.wait().expect("its status").success());
        }
        std::fs::remove_file(&file).expect("the file");
    });
}

#[test]
fn eventfds_are_read_and_written_as_values() {
    everywhere(|| {
        // SAFETY: eventfd(2); eventfd_read(3) and eventfd_write(3) of values of ours.
        unsafe {
            let event = own(libc::eventfd(0, libc::EFD_CLOEXEC));
            let fd = event.as_raw_fd();
            let writer = spawn(move || {
                thread::sleep(SHORT);
                eventfd_write(fd, 7)
            });
            let mut value = 0;
            assert_eq!((eventfd_read(fd, &mut value), value), (0, 7));
            assert_eq!(writer.join().expect("the writer"), 0);
            set_nonblocking(&event, true);
            assert_eq!(outcome(eventfd_read(fd, &mut value)), Err(libc::EAGAIN));
            assert_eq!(outcome(eventfd_write(fd, u64::MAX)), Err(libc::EINVAL));
            assert_eq!(outcome(eventfd_read(-1, &mut value)), Err(libc::EBADF));
        }
    });
}

unsafe extern "C" {
    fn eventfd_read(fd: c_int, value: *mut u64) -> c_int;
    fn eventfd_write(fd: c_int, value: u64) -> c_int;
}

#[test]
fn reads_at_no_offset_are_reads() {
    everywhere(|| {
        let (a, b) = tcp_pair();
        let writer = spawn(move || {
            thread::sleep(SHORT);
            let part = libc::iovec { iov_base: c"part".as_ptr().cast_mut().cast(), iov_len: 4 };
            // SAFETY: pwritev2(2) of an array of one.
            outcome(unsafe { libc::pwritev2(b.as_raw_fd(), &part, 1, -1, 0) })
        });
        let mut bytes = [0u8; 9];
        let part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: preadv2(2) into an array of one.
        let read_at = |fd: RawFd, offset, flags| unsafe {
            outcome(libc::preadv2(fd, &part, 1, offset, flags))
        };
        assert_eq!(read_at(a.as_raw_fd(), -1, 0), Ok(4));
        assert_eq!(bytes[..4], *b"part");
        assert_eq!(writer.join().expect("the writer"), Ok(4));
        assert_eq!(read_at(a.as_raw_fd(), 0, 0), Err(libc::ESPIPE));
        assert_eq!(read_at(a.as_raw_fd(), -1, 1 << 20), Err(libc::EOPNOTSUPP));
        let mut file = std::fs::File::open("/proc/self/exe").expect("this program");
        assert_eq!(read_at(file.as_raw_fd(), 1, 0), Ok(9));
        assert_eq!(bytes[..3], *b"ELF");
        assert_eq!(file.stream_position().ok(), Some(0));
    });
}
