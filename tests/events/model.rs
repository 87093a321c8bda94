//! What a random sequence of steps does, and what must have become of each registration.
//!
//! A model knows of each pair of descriptors whether it is ready, and of each registration whether it
//! goes on and what its last call will say. It says nothing of the number of calls of a lasting one,
//! for several events may be one call.

use std::io::{PipeReader, PipeWriter, pipe};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use sleave::event::{Direction, Event, Registration};

use crate::support::timing::eventually;

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Pipe,
    Tcp,
    Unix,
}

/// What is registered at, and the other end while it is open.
pub(super) struct Pair {
    pub(super) near: OwnedFd,
    pub(super) far: Option<OwnedFd>,
    /// What the model knows: bytes that have not been read.
    pub(super) unread: usize,
    pub(super) kind: Kind,
}

impl Pair {
    pub(super) fn open(kind: Kind) -> Pair {
        let (near, far): (OwnedFd, OwnedFd) = match kind {
            Kind::Pipe => {
                let (reader, writer): (PipeReader, PipeWriter) = pipe().unwrap();
                (reader.into(), writer.into())
            }
            Kind::Tcp => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                (listener.accept().unwrap().0.into(), far.into())
            }
            Kind::Unix => {
                let (near, far) = UnixStream::pair().unwrap();
                (near.into(), far.into())
            }
        };
        Pair { near, far: Some(far), unread: 0, kind }
    }

    pub(super) fn is_ready(&self, direction: Direction) -> bool {
        match (direction, self.kind) {
            (Direction::Read, _) => self.unread > 0 || self.far.is_none(),
            // The reading end of a pipe cannot be written, but hangs up in both directions.
            (Direction::Write, Kind::Pipe) => self.far.is_none(),
            (Direction::Write, _) => true,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Register {
        pair: usize,
        direction: Direction,
        lasting: bool,
    },
    Delete(usize),
    Cancel(usize),
    CancelAll(usize),
    Write(usize),
    Read(usize),
    HangUp(usize),
    /// Closed, and others opened, mostly under the same numbers.
    Reopen(usize),
}

pub(super) const PAIRS: usize = 2;

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pair = 0..PAIRS;
    let direction = prop_oneof![3 => Just(Direction::Read), 1 => Just(Direction::Write)];
    let register = (pair.clone(), direction, any::<bool>())
        .prop_map(|(pair, direction, lasting)| Step::Register { pair, direction, lasting });
    let step = prop_oneof![
        6 => register,
        1 => (0..64usize).prop_map(Step::Delete),
        1 => (0..64usize).prop_map(Step::Cancel),
        1 => pair.clone().prop_map(Step::CancelAll),
        3 => pair.clone().prop_map(Step::Write),
        2 => pair.clone().prop_map(Step::Read),
        1 => pair.clone().prop_map(Step::HangUp),
        1 => pair.prop_map(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

/// A registration, and what must have become of it.
pub(super) struct Expected {
    pub(super) registration: Registration,
    pub(super) pair: usize,
    pub(super) direction: Direction,
    pub(super) lasting: bool,
    pub(super) calls: Arc<Mutex<Vec<Event>>>,
    /// It goes on.
    pub(super) open: bool,
    /// What the last call says, if it has ended with one.
    pub(super) last: Option<Event>,
    /// The most calls there may be, if it was deleted.
    pub(super) most: usize,
}

impl Expected {
    pub(super) fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    pub(super) fn end(&mut self, last: Event) {
        self.open = false;
        self.last = Some(last);
    }
}

/// Something has arrived for `direction` of `pair`: who waits for it is called.
pub(super) fn arrive(all: &mut [Expected], pair: usize, direction: Direction, act: impl FnOnce()) {
    let called: Vec<usize> = (0..all.len())
        .filter(|&i| all[i].open && all[i].pair == pair && all[i].direction == direction)
        .collect();
    let before: Vec<usize> = called.iter().map(|&i| all[i].count()).collect();
    act();
    for (&i, before) in called.iter().zip(before) {
        eventually("a call for what has arrived", || all[i].count() > before);
        all[i].open = all[i].lasting;
    }
}
