//! Whose limit holds: the socket's before the fiber's before the runtime's; and how each is set.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use sleave::event::{self, Direction};
use sleave::{Builder, Runtime, Timer, set_connect_timeout, set_wait_timeout, uninterposed};

use super::{MS, on_runtimes};
use crate::support::Host;
use crate::support::timing::{GENEROUS, assert_prompt, assert_socket_waits, assert_waits};

/// A limit that is over soon.
const SOON: Duration = Duration::from_millis(10);
/// A limit that is never over in a test.
const LATE: Duration = Duration::from_secs(3600);

/// Asserts that a read of something that never comes is given up.
fn assert_gives_up() {
    let (mut reader, _writer) = pipe().unwrap();
    assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// Asserts that a read of something that comes long after `SOON` waits for it.
fn assert_patient(host: Host, mut reader: impl Read, mut writer: impl Write + Send + 'static) {
    let start = Instant::now();
    let late = host.spawn(move || {
        thread::sleep(6 * SOON);
        writer.write_all(b"late").unwrap();
        writer
    });
    assert_eq!(reader.read(&mut [0; 8]).unwrap(), 4);
    assert!(start.elapsed() >= 6 * SOON);
    drop(late.value());
}

fn assert_patient_at_pipe(host: Host) {
    let (reader, writer): (PipeReader, PipeWriter) = pipe().unwrap();
    assert_patient(host, reader, writer);
}

#[test]
fn a_runtimes_limits_hold_for_every_fiber_on_it() {
    on_runtimes(
        |builder| builder.wait_timeout(SOON).connect_timeout(2 * SOON),
        |host| {
            // Switched off: nobody inherits from the fiber that spawns.
            let own = || (set_wait_timeout(None).unwrap(), set_connect_timeout(None).unwrap());
            let expected = (Some(SOON), Some(2 * SOON));
            assert_eq!(own(), expected);
            assert_eq!(own(), (None, None));
            assert_eq!(host.spawn(own).value(), expected);
            assert_eq!(host.scope(|scope| scope.spawn(own).value()), expected);
            let (send, receive) = mpsc::channel();
            let (timer, ready) = (send.clone(), send);
            Timer::after(MS, move || timer.send(own()).unwrap());
            assert_eq!(receive.recv(), Ok(expected));
            let (_reader, writer) = pipe().unwrap();
            event::once(&writer, Direction::Write, move |_| ready.send(own()).unwrap()).unwrap();
            assert_eq!(receive.recv(), Ok(expected));
            // And what is said is meant.
            host.spawn(assert_gives_up).value();
            assert_patient_at_pipe(host);
        },
    );
}

#[test]
fn nothing_is_limited_unless_asked_for() {
    on_runtimes(
        |builder| builder,
        |host| {
            assert_patient_at_pipe(host);
            assert_eq!(
                (set_wait_timeout(SOON).unwrap(), set_connect_timeout(SOON).unwrap()),
                (None, None)
            );
            assert_gives_up();
            // The next fiber, which may get the memory of one that has ended, begins anew.
            for _ in 0..50 {
                let before = host.spawn(|| {
                    (set_wait_timeout(SOON).unwrap(), set_connect_timeout(SOON).unwrap())
                });
                assert_eq!(before.value(), (None, None));
            }
        },
    );
}

#[test]
fn a_fibers_limit_comes_before_its_runtimes() {
    on_runtimes(
        |builder| builder.wait_timeout(3 * SOON),
        |host| {
            let shorter = Builder::new().wait_timeout(SOON).spawn(move || {
                assert_waits(host, SOON, assert_gives_up);
            });
            let longer =
                Builder::new().wait_timeout(LATE).spawn(move || assert_patient_at_pipe(host));
            let none = Builder::new().wait_timeout(None).spawn(move || {
                assert_patient_at_pipe(host);
                set_wait_timeout(SOON).unwrap()
            });
            let other = Builder::new().connect_timeout(SOON).spawn(move || {
                assert_waits(host, 3 * SOON, assert_gives_up);
                set_connect_timeout(None).unwrap()
            });
            shorter.unwrap().join().unwrap();
            longer.unwrap().join().unwrap();
            assert_eq!(none.unwrap().join().unwrap(), None);
            assert_eq!(other.unwrap().join().unwrap(), Some(SOON));
        },
    );
}

#[test]
fn a_fiber_changes_its_own_limit_as_it_goes() {
    on_runtimes(
        |builder| builder.wait_timeout(SOON),
        |host| {
            assert_eq!(set_wait_timeout(2 * SOON).unwrap(), Some(SOON));
            assert_waits(host, 2 * SOON, assert_gives_up);
            assert_eq!(set_wait_timeout(None).unwrap(), Some(2 * SOON));
            assert_patient_at_pipe(host);
            assert_eq!(set_wait_timeout(SOON).unwrap(), None);
            assert_waits(host, SOON, assert_gives_up);
            // It keeps its own wherever it runs, and others keep theirs.
            let numbers = host.spawn_many(40, move |i| {
                let own = MS * (i as u32 + 1);
                set_wait_timeout(own).unwrap();
                (0..100).for_each(|_| host.yield_now());
                assert_eq!(set_wait_timeout(own).unwrap(), Some(own));
                let start = Instant::now();
                assert_gives_up();
                start.elapsed() >= own
            });
            assert!(numbers.iter().all(|exact| *exact));
        },
    );
}

#[test]
fn a_sockets_own_timeout_comes_first() {
    on_runtimes(
        |builder| builder.wait_timeout(3 * SOON),
        |host| {
            let own = |timeout| {
                let (near, far) = UnixStream::pair().unwrap();
                near.set_read_timeout(Some(timeout)).unwrap();
                (near, far)
            };
            for timeout in [SOON, 6 * SOON] {
                let (mut near, _far) = own(timeout);
                assert_socket_waits(host, timeout, || {
                    assert_eq!(near.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
                });
            }
            // Also if it is longer than the table of descriptors can tell.
            for timeout in [LATE, Duration::from_secs(100 * 365 * 86400)] {
                let (near, far) = own(timeout);
                assert_patient(host, near, far);
            }
            // The other direction has none, and neither has a socket that gave its own back.
            let (mut near, _far) = own(LATE);
            assert_socket_waits(host, 3 * SOON, || while near.write(&[0; 1 << 16]).is_ok() {});
            near.set_read_timeout(None).unwrap();
            assert_waits(host, 3 * SOON, || assert!(near.read(&mut [0]).is_err()));
        },
    );
}

#[test]
fn waits_that_say_how_long_are_not_limited() {
    on_runtimes(
        |builder| builder.wait_timeout(SOON).connect_timeout(SOON),
        |host| {
            let (reader, mut writer) = pipe().unwrap();
            let (send, receive) = mpsc::channel();
            let late = host.spawn(move || {
                thread::sleep(6 * SOON);
                writer.write_all(b"x").unwrap();
                thread::sleep(6 * SOON);
                send.send(()).unwrap();
                writer
            });
            let start = Instant::now();
            let mut pollfd =
                libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: poll(2) of an array of one that lives for the call.
            assert_eq!(unsafe { libc::poll(&mut pollfd, 1, -1) }, 1);
            receive.recv().unwrap();
            assert!(start.elapsed() >= 12 * SOON);
            drop(late.value());
            assert_waits(host, 6 * SOON, || thread::sleep(6 * SOON));
            let (send, receive) = mpsc::channel::<()>();
            assert_waits(host, 6 * SOON, || assert!(receive.recv_timeout(6 * SOON).is_err()));
            drop(send);
            // Unlike a read.
            assert_gives_up();
        },
    );
}

#[test]
fn calls_that_never_wait_do_not_wait_for_the_limit() {
    on_runtimes(
        |builder| builder.wait_timeout(2 * GENEROUS),
        |_| {
            let (mut near, mut far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let tried = assert_prompt(GENEROUS, || near.read(&mut [0]));
            assert_eq!(tried.unwrap_err().kind(), ErrorKind::WouldBlock);
            // A fiber in blocking mode is limited all the same.
            set_wait_timeout(SOON).unwrap();
            assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        },
    );
}

#[test]
fn calls_that_are_not_interposed_are_not_limited() {
    on_runtimes(
        |builder| builder.wait_timeout(SOON),
        |host| {
            uninterposed(|| assert_patient_at_pipe(host));
            assert_gives_up();
        },
    );
}

#[test]
fn zero_is_refused_and_the_longest_is_none() {
    let refused = |error: std::io::Error| assert_eq!(error.kind(), ErrorKind::InvalidInput);
    refused(Runtime::builder().wait_timeout(Duration::ZERO).build().unwrap_err());
    refused(Runtime::builder().connect_timeout(Duration::ZERO).build().unwrap_err());
    on_runtimes(
        |builder| builder.wait_timeout(Duration::MAX).connect_timeout(Duration::MAX),
        |host| {
            refused(Builder::new().wait_timeout(Duration::ZERO).spawn(|| ()).unwrap_err());
            refused(Builder::new().connect_timeout(Duration::ZERO).spawn(|| ()).unwrap_err());
            assert_eq!(set_wait_timeout(SOON).unwrap(), None);
            assert_eq!(set_connect_timeout(SOON).unwrap(), None);
            refused(set_wait_timeout(Duration::ZERO).unwrap_err());
            refused(set_connect_timeout(Duration::ZERO).unwrap_err());
            // What was refused has changed nothing.
            assert_eq!(set_wait_timeout(Duration::MAX).unwrap(), Some(SOON));
            assert_eq!(set_connect_timeout(Duration::MAX).unwrap(), Some(SOON));
            assert_patient_at_pipe(host);
            // The shortest there is, and one that ends beyond the clock.
            set_wait_timeout(Duration::from_nanos(1)).unwrap();
            assert_gives_up();
            let longest = Duration::from_nanos(u64::MAX - 1);
            set_wait_timeout(longest).unwrap();
            assert_patient_at_pipe(host);
            assert_eq!(set_wait_timeout(None).unwrap(), Some(longest));
        },
    );
}

#[test]
fn on_a_plain_thread_there_is_nothing_to_limit() {
    let refused = set_wait_timeout(SOON).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert_eq!(set_connect_timeout(SOON).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!((set_wait_timeout(None).unwrap(), set_connect_timeout(None).unwrap()), (None, None));
}
