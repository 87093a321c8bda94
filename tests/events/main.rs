//! Events, as a program sees them: who is called, when, how often, with what.
//!
//! Each behaviour is shown on runtimes of 1, 2 and 4 workers ([`on_fibers`]). [`random`] plays random
//! sequences on pipes, TCP and Unix sockets against a [`model`] of which callbacks must have been
//! called.
//!
//! Sources: epoll(7), poll(2), dup(2), pipe(7), "Capacity".

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod any;
mod calls;
mod ends;
mod model;
mod numbers;
mod random;

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use sleave::event::{self, Direction, Event, Registration};
use support::{Company, Count, Host, PATIENCE, WORKERS, on_fibers, on_fibers_alone};

const MS: Duration = Duration::from_millis(1);

/// Whether this machine has fibers: there is nothing else to test where events are unsupported.
fn supported() -> bool {
    sleave::identity().is_ok()
}

/// Registers for one call, whose event comes through the channel; that breaks when the callback dies.
fn once(fd: impl AsFd, direction: Direction) -> (Registration, Receiver<Event>) {
    let (send, receive) = mpsc::channel();
    let told = move |event| send.send(event).unwrap();
    (event::once(fd, direction, told).unwrap(), receive)
}

fn persistent(fd: impl AsFd, direction: Direction) -> (Registration, Receiver<Event>) {
    let (send, receive) = mpsc::channel();
    let told = move |event, _: &Registration| send.send(event).unwrap();
    (event::persistent(fd, direction, told).unwrap(), receive)
}

/// Lets everything run that can: on one worker, each yield runs all who are runnable.
fn settle() {
    (0..20).for_each(|_| sleave::yield_now());
    std::thread::sleep(3 * MS);
}

fn fill(writer: &mut (impl Write + AsFd)) {
    let flags = socket2::SockRef::from(&*writer);
    flags.set_nonblocking(true).unwrap();
    while writer.write(&[0; 4096]).is_ok() {}
    while writer.write(&[0]).is_ok() {}
}
