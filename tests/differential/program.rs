//! What a program is made of, and how programs are drawn.
//!
//! A program is a list of steps. Each step names an actor and an operation on **slots**, numbered places for
//! descriptors: whatever a slot holds when its turn comes, the operation is tried on. That keeps every
//! program meaningful, also after a failure has been shrunk by leaving steps out.

use proptest::prelude::*;

/// Places for descriptors.
pub const SLOTS: usize = 10;
/// Who takes the steps.
pub const ACTORS: usize = 3;

/// One step of a program.
#[derive(Clone, Debug)]
pub enum Step {
    /// An actor does something alone.
    One(usize, Op),
    /// An actor waits for something on a slot that has nothing; the next actor makes it happen.
    /// Which of them comes first makes no difference.
    Pair(usize, usize, Waiting, Waking),
}

/// Two connected descriptors, or one that is both ends.
#[derive(Clone, Copy, Debug)]
pub enum Make {
    Stream,
    Datagram,
    Packets,
    Tcp,
    Pipe,
    Event,
}

/// An operation of one actor, which may wait, but not for long.
#[derive(Clone, Debug)]
pub enum Op {
    Make(Make, usize, usize),
    Listen(usize),
    Connect { listener: usize, into: usize },
    Accept { listener: usize, into: usize },
    Instance(usize),
    Enlist { instance: usize, member: usize, events: u32, change: Change },
    Await { instance: usize, wait: bool },
    Duplicate { from: usize, into: usize },
    Replace { from: usize, over: usize },
    Close(usize),
    Nonblocking(usize, bool),
    Timeout(usize, Side),
    Read(usize, usize),
    ReadParts(usize, usize),
    Write(usize, usize),
    WriteParts(usize, usize),
    Receive(usize, usize, Flag),
    Send(usize, usize),
    ReceiveMany(usize, usize),
    SendMany(usize, usize),
    Splice { from: usize, to: usize, len: usize },
    Tee { from: usize, to: usize, len: usize },
    SendFile(usize, usize),
    Shutdown(usize, Half),
    Poll(Vec<(usize, i16)>, bool),
    Select(Vec<usize>, bool),
    ErrorOf(usize),
    Unread(usize),
}

/// What becomes of a member of an epoll instance.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Add,
    Modify,
    Delete,
}

/// Which timeout of a socket.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    Receive,
    Send,
}

/// How a receive is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Flag {
    None,
    DontWait,
    Peek,
    WaitAll,
}

/// Which half of a connection is shut down.
#[derive(Clone, Copy, Debug)]
pub enum Half {
    Read,
    Write,
    Both,
}

/// A way to wait until a slot is readable.
#[derive(Clone, Copy, Debug)]
pub enum Waiting {
    Read,
    ReadParts,
    Receive,
    ReceiveMany,
    Poll,
    Select,
    Epoll { edge: bool },
    NestedEpoll,
    Splice,
    Tee,
}

/// A way to make it so, from the other end.
#[derive(Clone, Copy, Debug)]
pub enum Waking {
    Write(usize),
    WriteDuplicate(usize),
    Shutdown,
    Close,
}

fn slot() -> impl Strategy<Value = usize> {
    0..SLOTS
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..100usize, 1 => 1000..5000usize]
}

fn one_of<T: Clone + std::fmt::Debug + 'static>(values: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(values)
}

fn make() -> impl Strategy<Value = Op> {
    use Make::*;
    let kinds = one_of(&[Stream, Datagram, Packets, Tcp, Pipe, Event]);
    (kinds, slot(), slot()).prop_map(|(kind, a, b)| Op::Make(kind, a, b))
}

fn transfer() -> impl Strategy<Value = Op> {
    let flags = one_of(&[Flag::None, Flag::DontWait, Flag::Peek, Flag::WaitAll]);
    prop_oneof![
        3 => (slot(), len()).prop_map(|(s, n)| Op::Read(s, n)),
        1 => (slot(), len()).prop_map(|(s, n)| Op::ReadParts(s, n)),
        4 => (slot(), len()).prop_map(|(s, n)| Op::Write(s, n)),
        1 => (slot(), len()).prop_map(|(s, n)| Op::WriteParts(s, n)),
        2 => (slot(), len(), flags).prop_map(|(s, n, flag)| Op::Receive(s, n, flag)),
        2 => (slot(), len()).prop_map(|(s, n)| Op::Send(s, n)),
        1 => (slot(), 1..4usize).prop_map(|(s, n)| Op::ReceiveMany(s, n)),
        1 => (slot(), 1..4usize).prop_map(|(s, n)| Op::SendMany(s, n)),
        1 => (slot(), slot(), len()).prop_map(|(from, to, len)| Op::Splice { from, to, len }),
        1 => (slot(), slot(), len()).prop_map(|(from, to, len)| Op::Tee { from, to, len }),
        1 => (slot(), len()).prop_map(|(s, n)| Op::SendFile(s, n)),
    ]
}

fn readiness() -> impl Strategy<Value = Op> {
    const EVENTS: &[i16] = &[
        libc::POLLIN,
        libc::POLLOUT,
        libc::POLLIN | libc::POLLOUT,
        libc::POLLIN | libc::POLLRDHUP,
        libc::POLLPRI,
        0,
    ];
    const MEMBER: &[u32] = &[
        libc::EPOLLIN as u32,
        libc::EPOLLOUT as u32,
        (libc::EPOLLIN | libc::EPOLLET) as u32,
        (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32,
        (libc::EPOLLIN | libc::EPOLLONESHOT) as u32,
    ];
    let changes = one_of(&[Change::Add, Change::Add, Change::Modify, Change::Delete]);
    let enlist =
        (slot(), slot(), one_of(MEMBER), changes).prop_map(|(instance, member, events, change)| {
            Op::Enlist { instance, member, events, change }
        });
    let entries = prop::collection::vec((slot(), one_of(EVENTS)), 0..5);
    let members = prop::collection::vec(slot(), 0..5);
    prop_oneof![
        1 => slot().prop_map(Op::Instance),
        3 => enlist,
        3 => (slot(), any::<bool>())
            .prop_map(|(instance, wait)| Op::Await { instance, wait }),
        3 => (entries, any::<bool>()).prop_map(|(entries, wait)| Op::Poll(entries, wait)),
        2 => (members, any::<bool>()).prop_map(|(members, wait)| Op::Select(members, wait)),
    ]
}

fn change() -> impl Strategy<Value = Op> {
    let halves = one_of(&[Half::Read, Half::Write, Half::Both]);
    prop_oneof![
        1 => slot().prop_map(Op::Listen),
        2 => (slot(), slot()).prop_map(|(listener, into)| Op::Connect { listener, into }),
        2 => (slot(), slot()).prop_map(|(listener, into)| Op::Accept { listener, into }),
        2 => (slot(), slot()).prop_map(|(from, into)| Op::Duplicate { from, into }),
        1 => (slot(), slot()).prop_map(|(from, over)| Op::Replace { from, over }),
        2 => slot().prop_map(Op::Close),
        2 => (slot(), any::<bool>()).prop_map(|(slot, on)| Op::Nonblocking(slot, on)),
        1 => (slot(), one_of(&[Side::Receive, Side::Send])).prop_map(|(s, side)| Op::Timeout(s, side)),
        2 => (slot(), halves).prop_map(|(slot, half)| Op::Shutdown(slot, half)),
        1 => slot().prop_map(Op::ErrorOf),
        1 => slot().prop_map(Op::Unread),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    use Waiting::*;
    let op = prop_oneof![3 => make(), 6 => transfer(), 4 => readiness(), 4 => change()];
    let waiting = one_of(&[
        Read,
        ReadParts,
        Receive,
        ReceiveMany,
        Poll,
        Select,
        Epoll { edge: false },
        Epoll { edge: true },
        NestedEpoll,
        Splice,
        Tee,
    ]);
    let waking = prop_oneof![
        (1..100usize).prop_map(Waking::Write),
        (1..100usize).prop_map(Waking::WriteDuplicate),
        Just(Waking::Shutdown),
        Just(Waking::Close),
    ];
    prop_oneof![
        3 => (0..ACTORS, op).prop_map(|(actor, op)| Step::One(actor, op)),
        1 => (0..ACTORS, slot(), waiting, waking)
            .prop_map(|(actor, slot, waiting, waking)| Step::Pair(actor, slot, waiting, waking)),
    ]
}

/// A program: something to begin with, and then anything.
pub fn program() -> impl Strategy<Value = Vec<Step>> {
    let begin =
        prop::collection::vec((0..ACTORS, make()).prop_map(|(a, op)| Step::One(a, op)), 1..4);
    let steps = prop::collection::vec(step(), 1..50);
    (begin, steps).prop_map(|(mut program, steps)| {
        program.extend(steps);
        program
    })
}
