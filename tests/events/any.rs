//! A wait for any of several descriptors, on threads and on fibers.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;
use crate::support::timing::GENEROUS;
use sleave::event::wait_any;

#[test]
fn wait_any_tells_which_are_ready_on_threads_and_fibers() {
    support::everywhere(|host| {
        let pairs: Vec<_> = (0..5).map(|_| UnixStream::pair().unwrap()).collect();
        let mut full = UnixStream::pair().unwrap();
        fill(&mut full.0);
        let mut interests: Vec<_> = pairs.iter().map(|p| (p.0.as_fd(), Direction::Read)).collect();
        interests.push((full.0.as_fd(), Direction::Write));
        let mut answers = Vec::new();
        let mut writer = pairs[3].1.try_clone().unwrap();
        let write = host.spawn(move || writer.write_all(b"x").unwrap());
        answers.push(wait_any(&interests, None).unwrap());
        write.value();
        (&pairs[0].1).write_all(b"x").unwrap();
        answers.push(wait_any(&interests, Some(GENEROUS)).unwrap());
        (&pairs[0].0).read_exact(&mut [0]).unwrap();
        (&pairs[3].0).read_exact(&mut [0]).unwrap();
        // A write end becomes ready, and nothing else.
        let mut drain = full.1.try_clone().unwrap();
        let drain = host.spawn(move || {
            drain.set_nonblocking(true).unwrap();
            let _ = drain.read_to_end(&mut Vec::new());
        });
        answers.push(wait_any(&interests, None).unwrap());
        drain.value();
        answers
    });
}

#[test]
fn wait_any_has_one_deadline_and_is_never_early() {
    support::everywhere(|_| {
        let (a, b) = UnixStream::pair().unwrap();
        let interests = [(a.as_fd(), Direction::Read), (b.as_fd(), Direction::Read)];
        for timeout in [Duration::ZERO, 3 * MS, 10 * MS] {
            let start = Instant::now();
            assert!(wait_any(&interests, Some(timeout)).unwrap().is_empty());
            assert!(start.elapsed() >= timeout);
        }
        assert!(wait_any(&[], Some(MS)).unwrap().is_empty());
    });
}
