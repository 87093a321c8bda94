//! `poll(2)` from a fiber: several descriptors, one deadline.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::pairs::{Stream, listen};
use crate::support::timing::{GENEROUS, assert_prompt, assert_waits};
use crate::support::{Host, everywhere};

fn entry(fd: &impl AsRawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

/// `poll(2)`; panics where it fails.
fn poll(entries: &mut [libc::pollfd], timeout: i32) -> i32 {
    // SAFETY: poll(2) reads and writes the given entries only.
    let count = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) };
    assert!(count >= 0, "poll: {}", std::io::Error::last_os_error());
    count
}

#[test]
fn poll_times_out_precisely_with_and_without_descriptors() {
    everywhere(|host| {
        let (near, _far) = TcpStream::pair();
        let (reader, _writer) = std::io::pipe().unwrap();
        for millis in [1, 40] {
            let asked = Duration::from_millis(millis);
            assert_waits(host, asked, || assert_eq!(poll(&mut [], millis as i32), 0));
            assert_waits(host, asked, || {
                let mut entries = [entry(&near, libc::POLLIN), entry(&reader, libc::POLLIN)];
                assert_eq!(poll(&mut entries, millis as i32), 0);
                assert_eq!((entries[0].revents, entries[1].revents), (0, 0));
            });
        }
        assert_prompt(GENEROUS, || poll(&mut [entry(&near, libc::POLLIN)], 0))
    });
}

/// Polls `waiting` and more until something happens, while another task does `act`.
fn poll_while<T: Send + 'static>(
    host: Host,
    entries: &mut [libc::pollfd],
    timeout: i32,
    act: impl FnOnce() -> T + Send + 'static,
) -> (i32, Vec<libc::c_short>) {
    let actor = host.spawn(move || {
        thread::sleep(Duration::from_millis(20));
        act()
    });
    let count = poll(entries, timeout);
    let kept = actor.value();
    let seen = entries.iter().map(|entry| entry.revents).collect();
    drop(kept);
    (count, seen)
}

#[test]
fn poll_returns_for_whatever_comes_first() {
    everywhere(|host| {
        let minute = 60_000;
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let all = || {
            [
                entry(&listener, libc::POLLIN),
                entry(&near, libc::POLLIN | libc::POLLPRI),
                entry(&reader, libc::POLLIN),
            ]
        };
        let mut results = Vec::new();
        let mut entries = all();
        results.push(poll_while(host, &mut entries, -1, move || {
            far.write_all(b"x").unwrap();
            far
        }));
        (&near).read_exact(&mut [0]).unwrap();
        // The other end has been dropped by now: its end of file is an event that stays.
        results.push((poll(&mut all()[1..2], minute), Vec::new()));
        let mut entries = [all()[0], all()[2]];
        results.push(poll_while(host, &mut entries, minute, move || TcpStream::connect(address)));
        listener.accept().unwrap();
        let mut entries = [all()[0], all()[2]];
        results.push(poll_while(host, &mut entries, minute, move || drop(writer)));
        results
    });
}

#[test]
fn poll_reports_room_hang_up_and_no_descriptor() {
    everywhere(|host| {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let mut results = Vec::new();
        let mut entries = [entry(&near, libc::POLLIN | libc::POLLOUT)];
        results.push((poll(&mut entries, -1), entries[0].revents));
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 4096]).is_ok() {}
        let mut entries = [entry(&near, libc::POLLOUT)];
        results.push((poll(&mut entries, 0), entries[0].revents));
        let (count, seen) = poll_while(host, &mut entries, -1, move || {
            // Unix sockets have room again when most of it has been read.
            let mut sink = vec![0; 1 << 20];
            far.set_nonblocking(true).unwrap();
            while far.read(&mut sink).is_ok() {}
            far
        });
        results.push((count, seen[0]));
        // A negative number is skipped, a closed one is reported and counted.
        let mut entries = [
            libc::pollfd { fd: -1, events: libc::POLLIN, revents: 7 },
            libc::pollfd { fd: 1_000_000, events: libc::POLLIN, revents: 0 },
        ];
        results.push((poll(&mut entries, -1), entries[1].revents));
        results.push((0, entries[0].revents));
        results
    });
}

#[test]
fn a_hundred_fibers_poll_the_same_descriptor() {
    everywhere(|host| {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let reader = std::sync::Arc::new(reader);
        let pollers: Vec<_> = (0..100)
            .map(|_| {
                let reader = std::sync::Arc::clone(&reader);
                host.spawn(move || {
                    let mut entries = [entry(&*reader, libc::POLLIN)];
                    (poll(&mut entries, -1), entries[0].revents)
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(20));
        // Nobody reads it: it stays ready, and every one of them must hear of it.
        writer.write_all(b"!").unwrap();
        pollers.into_iter().map(|poller| poller.value()).collect::<Vec<_>>()
    });
}
