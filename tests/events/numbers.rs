//! What epoll does not do: regular files, several numbers of one description, numbers that are closed behind
//! the runtime's back; and a machine without fibers.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use super::*;
use sleave::event::{cancel_all, wait_any};
use syscalls::{Sysno, syscall};

#[test]
fn a_regular_file_is_ready_at_once_and_nothing_ever_arrives_there() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let file = File::open("/proc/self/exe").unwrap();
        for direction in [Direction::Read, Direction::Write] {
            assert_eq!(once(&file, direction).1.recv(), Ok(Event::Ready));
        }
        let (_, told) = persistent(&file, Direction::Read);
        assert_eq!(told.recv(), Ok(Event::Ready));
        let (_silent, peer) = UnixStream::pair().unwrap();
        let interests = [(peer.as_fd(), Direction::Read), (file.as_fd(), Direction::Read)];
        assert_eq!(wait_any(&interests, None).unwrap(), [1]);
        drop(file);
        assert_eq!(told.recv(), Ok(Event::Closed), "and not ready before");
    });
}

#[test]
fn numbers_of_one_description_have_registrations_of_their_own() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (mut near, far) = UnixStream::pair().unwrap();
        let twin = far.try_clone().unwrap();
        let (_, first) = once(&far, Direction::Read);
        let (_, second) = once(&twin, Direction::Read);
        drop(far);
        assert_eq!(first.recv(), Ok(Event::Closed));
        settle();
        assert!(second.try_recv().is_err());
        near.write_all(b"x").unwrap();
        assert_eq!(second.recv(), Ok(Event::Ready));
    });
}

#[test]
fn one_closed_behind_our_back_is_told_so_when_its_number_is_opened_again() {
    on_fibers_alone(|_| {
        if !supported() {
            return;
        }
        let (_near, far) = UnixStream::pair().unwrap();
        let (_, told) = once(&far, Direction::Read);
        let number = far.into_raw_fd();
        // SAFETY: close(2) of a descriptor that nobody else owns, past the C library.
        unsafe { syscall!(Sysno::close, number) }.unwrap();
        settle();
        assert!(told.try_recv().is_err(), "nobody has told");
        // The lowest free number is used first, open(2).
        let mut opened: Vec<UnixStream> = Vec::new();
        while !opened.iter().any(|end| end.as_raw_fd() == number) {
            opened.extend(<[_; 2]>::from(UnixStream::pair().unwrap()));
        }
        assert_eq!(told.recv(), Ok(Event::Closed));
    });
}

#[test]
fn where_fibers_are_threads_registrations_are_refused() {
    const NAME: &str = "where_fibers_are_threads_registrations_are_refused";
    if supported() {
        // What fibers are is decided once for each process.
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", NAME]).env("SLEAVE_IDENTITY", "threads");
        let output = Company::Shared.keep(|| child.output()).unwrap();
        assert!(output.status.success(), "{output:?}");
    } else {
        let (near, _far) = UnixStream::pair().unwrap();
        let refused = event::once(&near, Direction::Write, |_| unreachable!()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert_eq!(cancel_all(&near), 0);
        let ready = sleave::run(|| wait_any(&[(near.as_fd(), Direction::Write)], None).unwrap());
        assert_eq!(ready, [0]);
    }
}
