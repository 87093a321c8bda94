//! Events, as a program sees them: who is called, when, how often, with what.
//!
//! Each behaviour is shown on runtimes of 1, 2 and 4 workers ([`on_fibers`]). The last test plays
//! random sequences on pipes, TCP and Unix sockets against a model of which callbacks must have been
//! called.
//!
//! Sources: epoll(7), poll(2), dup(2), pipe(7), "Capacity".

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
mod support;

use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sleave::event::{self, Direction, Event, Registration, cancel_all, wait_any};
use support::timing::{GENEROUS, eventually};
use support::{Company, Count, Host, PATIENCE, WORKERS, on_fibers, on_fibers_alone};
use syscalls::{Sysno, syscall};

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

// ---- a callback ----

#[test]
fn a_callback_is_called_once_when_something_arrives() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (mut near, far) = UnixStream::pair().unwrap();
        let (registration, told) = once(&far, Direction::Read);
        settle();
        assert!(told.try_recv().is_err() && !registration.is_over(), "nothing has come");
        near.write_all(b"x").unwrap();
        assert_eq!(told.recv(), Ok(Event::Ready));
        // The callback is gone with its call, so there will be no second one.
        assert!(told.recv().is_err() && registration.is_over());
        assert!(!registration.delete() && !registration.cancel());
    });
}

#[test]
fn a_callback_is_called_at_once_if_something_is_there() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"x").unwrap();
        // The first lets the driver know of the descriptor, so the second finds it watched.
        for _ in 0..2 {
            assert_eq!(once(&far, Direction::Read).1.recv(), Ok(Event::Ready));
            assert_eq!(once(&far, Direction::Write).1.recv(), Ok(Event::Ready));
        }
    });
}

#[test]
fn a_write_callback_is_called_when_there_is_room_again() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (mut near, mut far) = UnixStream::pair().unwrap();
        fill(&mut near);
        let (_, told) = once(&near, Direction::Write);
        settle();
        assert!(told.try_recv().is_err(), "there is no room");
        far.set_nonblocking(true).unwrap();
        let _ = far.read_to_end(&mut Vec::new());
        assert_eq!(told.recv(), Ok(Event::Ready));
    });
}

#[test]
fn a_callback_runs_on_a_fiber_and_may_wait() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let caller = sleave::current().unwrap().id();
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let (send, receive) = mpsc::channel();
        let twin = far.try_clone().unwrap();
        event::once(&twin, Direction::Read, move |_| {
            let fiber = sleave::current().expect("a fiber").id();
            let mut two = [0; 2];
            // The second byte has not been sent yet.
            far.read_exact(&mut two).unwrap();
            send.send((fiber, two)).unwrap();
        })
        .unwrap();
        near.write_all(b"a").unwrap();
        settle();
        assert!(receive.try_recv().is_err());
        near.write_all(b"b").unwrap();
        let (fiber, two) = receive.recv().unwrap();
        assert!(fiber != caller && two == *b"ab");
    });
}

#[test]
fn a_persistent_callback_is_called_for_each_arrival() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (mut near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let (send, receive) = mpsc::channel();
        let reader = far.try_clone().unwrap();
        let registration = event::persistent(&far, Direction::Read, move |event, _| {
            let mut bytes = Vec::new();
            let _ = (&reader).read_to_end(&mut bytes);
            send.send((event, bytes)).unwrap();
        })
        .unwrap();
        for byte in 0..50 {
            near.write_all(&[byte]).unwrap();
            assert_eq!(receive.recv(), Ok((Event::Ready, vec![byte])));
        }
        drop(near);
        assert_eq!(receive.recv(), Ok((Event::HungUp, vec![])));
        assert!(registration.delete());
        assert!(receive.recv().is_err(), "what the callback held is gone");
    });
}

#[test]
fn calls_of_one_registration_never_overlap_and_miss_nothing() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (mut near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let reader = far.try_clone().unwrap();
        let (inside, taken) = (Arc::new(Count::new()), Arc::new(Count::new()));
        let registration = event::persistent(&far, Direction::Read, {
            let (inside, taken) = (inside.clone(), taken.clone());
            move |_, _| {
                assert_eq!(inside.up(), 1);
                let mut bytes = Vec::new();
                let _ = (&reader).read_to_end(&mut bytes);
                taken.add(bytes.len());
                // What comes now must lead to another call.
                sleave::yield_now();
                std::thread::sleep(MS / 10);
                inside.down();
            }
        })
        .unwrap();
        for _ in 0..500 {
            near.write_all(b"x").unwrap();
            sleave::yield_now();
        }
        eventually("all bytes are taken", || taken.get() == 500);
        assert!(registration.delete());
    });
}

#[test]
fn any_number_of_callbacks_and_fibers_wait_for_one_descriptor() {
    on_fibers(|host| {
        if !supported() {
            return;
        }
        let (mut near, far) = UnixStream::pair().unwrap();
        let told: Vec<_> = (0..100).map(|_| once(&far, Direction::Read).1).collect();
        let far = Arc::new(far);
        let readers: Vec<_> = (0..10)
            .map(|_| {
                let far = far.clone();
                host.spawn(move || (&*far).read_exact(&mut [0]).unwrap())
            })
            .collect();
        settle();
        near.write_all(&[0]).unwrap();
        // More than the readers take: what stays there is true for every callback.
        near.write_all(&[0; 20]).unwrap();
        readers.into_iter().for_each(|reader| reader.value());
        for told in told {
            assert_eq!(told.recv(), Ok(Event::Ready));
        }
    });
}

#[test]
fn hang_up_reaches_callbacks_and_fibers_of_both_directions() {
    on_fibers(|host| {
        if !supported() {
            return;
        }
        let (near, mut far) = UnixStream::pair().unwrap();
        fill(&mut far);
        let (_, read) = once(&far, Direction::Read);
        let (_, write) = once(&far, Direction::Write);
        let twin = far.try_clone().unwrap();
        let reader = host.spawn(move || {
            let interests = [(twin.as_fd(), Direction::Write)];
            wait_any(&interests, None).unwrap()
        });
        settle();
        assert!(read.try_recv().is_err() && write.try_recv().is_err());
        drop(near);
        assert_eq!(read.recv(), Ok(Event::HungUp));
        assert_eq!(write.recv(), Ok(Event::HungUp));
        assert_eq!(reader.value(), [0]);
    });
}

// ---- its end ----

#[test]
fn a_deleted_callback_is_never_called() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (mut near, far) = UnixStream::pair().unwrap();
        for lasting in [false, true] {
            let register = if lasting { persistent } else { once };
            let (registration, told) = register(&far, Direction::Read);
            let (_, other) = once(&far, Direction::Read);
            assert!(registration.delete() && !registration.delete() && !registration.cancel());
            // What it held is gone, before anything happens.
            assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Disconnected));
            near.write_all(b"x").unwrap();
            assert_eq!(other.recv(), Ok(Event::Ready));
            (&far).read_exact(&mut [0]).unwrap();
        }
    });
}

#[test]
fn a_cancelled_callback_is_called_once_more_and_told_so() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (mut near, far) = UnixStream::pair().unwrap();
        for lasting in [false, true] {
            let register = if lasting { persistent } else { once };
            let (registration, told) = register(&far, Direction::Read);
            assert!(registration.cancel());
            near.write_all(b"x").unwrap();
            assert_eq!(told.recv(), Ok(Event::Cancelled));
            assert!(told.recv().is_err() && registration.is_over() && !registration.cancel());
            (&far).read_exact(&mut [0]).unwrap();
        }
    });
}

#[test]
fn cancel_all_reaches_both_directions_of_one_descriptor_only() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (near, mut far) = UnixStream::pair().unwrap();
        fill(&mut far);
        let told =
            [Direction::Read, Direction::Write].map(|d| [once(&far, d), persistent(&far, d)]);
        let (_, other) = persistent(&near, Direction::Read);
        assert_eq!(other.recv(), Ok(Event::Ready));
        assert_eq!((cancel_all(&far), cancel_all(&far)), (4, 0));
        for (registration, told) in told.into_iter().flatten() {
            assert_eq!(told.recv(), Ok(Event::Cancelled));
            assert!(told.recv().is_err() && registration.is_over());
        }
        drop(near);
        assert_eq!(other.iter().last(), Some(Event::Closed));
    });
}

#[test]
fn closing_ends_every_callback_and_wait_of_the_number() {
    on_fibers_alone(|host| {
        if !supported() {
            return;
        }
        let (near, far) = UnixStream::pair().unwrap();
        let told = [once(&far, Direction::Read), persistent(&far, Direction::Read)];
        let number = far.as_raw_fd();
        let reader = host.spawn(move || {
            // SAFETY: open until it is closed behind this one's back, and not closed by it.
            let far = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(number) });
            (&*far).read(&mut [0]).unwrap_err().raw_os_error()
        });
        settle();
        drop(far);
        for (registration, told) in told {
            assert_eq!(told.recv(), Ok(Event::Closed));
            assert!(told.recv().is_err() && registration.is_over());
        }
        assert_eq!(reader.value(), Some(libc::EBADF));
        drop(near);
    });
}

#[test]
fn a_reused_number_wakes_neither_the_callbacks_nor_the_fibers_of_its_predecessor() {
    on_fibers_alone(|host| {
        if !supported() {
            return;
        }
        let mut early = 0;
        for _ in 0..30 {
            let (_near, far) = UnixStream::pair().unwrap();
            let number = far.as_raw_fd();
            let told = [once(&far, Direction::Read), persistent(&far, Direction::Read)];
            let waiter = host.spawn(move || {
                // SAFETY: only looked at; closed meanwhile, which is the point.
                let far = unsafe { BorrowedFd::borrow_raw(number) };
                wait_any(&[(far, Direction::Read)], None).unwrap()
            });
            sleave::yield_now();
            // The pipe takes the number over in one step, and it has nothing to be read.
            let (reader, mut writer) = pipe().unwrap();
            // SAFETY: dup2(2) on two descriptors of ours; `far` is given up below.
            assert_eq!(unsafe { libc::dup2(reader.as_raw_fd(), number) }, number);
            for (_, told) in &told {
                assert_eq!(told.recv(), Ok(Event::Closed));
            }
            settle();
            early += usize::from(waiter.is_finished());
            let (_, next) = once(&far, Direction::Read);
            writer.write_all(b"x").unwrap();
            assert_eq!(next.recv(), Ok(Event::Ready));
            assert!(told.iter().all(|(_, told)| told.recv().is_err()));
            // One that another worker began too late has waited for the pipe, and has it now.
            assert_eq!(waiter.value(), [0]);
        }
        // The others came back although their number had nothing to tell.
        assert!(early > 0);
    });
}

#[test]
fn a_callback_that_panics_ends_its_registration() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (mut near, far) = UnixStream::pair().unwrap();
        let (send, receive) = mpsc::channel::<()>();
        let registration = event::persistent(&far, Direction::Read, move |_, _| {
            let _held = &send;
            std::panic::resume_unwind(Box::new("on purpose"));
        })
        .unwrap();
        near.write_all(b"x").unwrap();
        assert!(receive.recv().is_err());
        eventually("it is over", || registration.is_over());
    });
}

#[test]
fn a_callback_may_delete_cancel_and_register() {
    on_fibers(|_| {
        if !supported() {
            return;
        }
        let (mut near, far) = UnixStream::pair().unwrap();
        let (send, receive) = mpsc::channel();
        let far = Arc::new(far);
        let (twin, told) = (far.clone(), send.clone());
        event::persistent(&*far, Direction::Read, move |event, registration| {
            told.send(event).unwrap();
            match event {
                Event::Ready => assert!(registration.cancel()),
                _ => {
                    assert!(!registration.delete(), "this is the last call");
                    let told = told.clone();
                    event::once(&*twin, Direction::Write, move |e| told.send(e).unwrap()).unwrap();
                }
            }
        })
        .unwrap();
        drop(send);
        near.write_all(b"x").unwrap();
        let events: Vec<_> = receive.iter().collect();
        assert_eq!(events, [Event::Ready, Event::Cancelled, Event::Ready]);
    });
}

#[test]
fn stop_waits_for_a_registration_as_for_a_fiber() {
    if !supported() {
        return;
    }
    Company::Shared.keep(|| {
        let runtime = sleave::Runtime::builder().workers(1).build().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        let (_, told) = runtime.run(|| once(&far, Direction::Read));
        assert_eq!(runtime.statistics().fibers, 1);
        let stopper = std::thread::spawn(move || runtime.stop());
        std::thread::sleep(20 * MS);
        assert!(!stopper.is_finished());
        near.write_all(b"x").unwrap();
        stopper.join().unwrap();
        assert_eq!(told.try_recv(), Ok(Event::Ready));
    });
}

// ---- what epoll does not do ----

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

// ---- any of several ----

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

// ---- random sequences against a model ----

#[derive(Clone, Copy, Debug)]
enum Kind {
    Pipe,
    Tcp,
    Unix,
}

/// What is registered at, and the other end while it is open.
struct Pair {
    near: OwnedFd,
    far: Option<OwnedFd>,
    /// What the model knows: bytes that have not been read.
    unread: usize,
    kind: Kind,
}

impl Pair {
    fn open(kind: Kind) -> Pair {
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

    fn is_ready(&self, direction: Direction) -> bool {
        match (direction, self.kind) {
            (Direction::Read, _) => self.unread > 0 || self.far.is_none(),
            // The reading end of a pipe cannot be written, but hangs up in both directions.
            (Direction::Write, Kind::Pipe) => self.far.is_none(),
            (Direction::Write, _) => true,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
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

const PAIRS: usize = 2;

fn steps() -> impl Strategy<Value = Vec<Step>> {
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
struct Expected {
    registration: Registration,
    pair: usize,
    direction: Direction,
    lasting: bool,
    calls: Arc<Mutex<Vec<Event>>>,
    /// It goes on.
    open: bool,
    /// What the last call says, if it has ended with one.
    last: Option<Event>,
    /// The most calls there may be, if it was deleted.
    most: usize,
}

impl Expected {
    fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn end(&mut self, last: Event) {
        self.open = false;
        self.last = Some(last);
    }
}

/// Something has arrived for `direction` of `pair`: who waits for it is called.
fn arrive(all: &mut [Expected], pair: usize, direction: Direction, act: impl FnOnce()) {
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

fn play(kind: Kind, workers: usize, steps: &[Step]) {
    let mut pairs: Vec<Pair> = (0..PAIRS).map(|_| Pair::open(kind)).collect();
    let mut all: Vec<Expected> = Vec::new();
    let close = |all: &mut Vec<Expected>, pair| {
        let ended = all.iter_mut().filter(|e| e.open && e.pair == pair);
        ended.for_each(|expected| expected.end(Event::Closed));
    };
    for &step in steps {
        match step {
            Step::Register { pair, direction, lasting } => {
                let calls = Arc::new(Mutex::new(Vec::new()));
                let near = &pairs[pair].near;
                let log = calls.clone();
                let registration = if lasting {
                    event::persistent(near, direction, move |e, _| log.lock().unwrap().push(e))
                } else {
                    event::once(near, direction, move |e| log.lock().unwrap().push(e))
                };
                let registration = registration.unwrap();
                let ready = pairs[pair].is_ready(direction);
                if ready {
                    eventually("a call at once", || !calls.lock().unwrap().is_empty());
                }
                let open = lasting || !ready;
                let (last, most) = (None, usize::MAX);
                all.push(Expected {
                    registration,
                    pair,
                    direction,
                    lasting,
                    calls,
                    open,
                    last,
                    most,
                });
            }
            Step::Delete(which) | Step::Cancel(which) => {
                let Some(count) = all.len().checked_sub(1) else { continue };
                let expected = &mut all[which % (count + 1)];
                if let Step::Delete(_) = step {
                    // A last call may not have begun yet: then it is prevented.
                    if expected.last.is_none() {
                        assert_eq!(expected.registration.delete(), expected.open);
                        // One that had begun before may be counted only now.
                        expected.most = expected.count() + usize::from(workers > 1);
                        expected.open = false;
                    }
                } else {
                    assert_eq!(expected.registration.cancel(), expected.open);
                    if expected.open {
                        expected.end(Event::Cancelled);
                    }
                }
            }
            Step::CancelAll(pair) => {
                let open = all.iter_mut().filter(|e| e.open && e.pair == pair);
                let count = open.map(|expected| expected.end(Event::Cancelled)).count();
                assert_eq!(cancel_all(&pairs[pair].near), count);
            }
            Step::Write(pair) => {
                let Pair { far: Some(far), unread, .. } = &mut pairs[pair] else { continue };
                *unread += 1;
                let mut far = File::from(far.try_clone().unwrap());
                arrive(&mut all, pair, Direction::Read, || far.write_all(b"x").unwrap());
            }
            Step::Read(pair) => {
                let Pair { near, unread, .. } = &mut pairs[pair];
                let mut bytes = vec![0; std::mem::take(unread)];
                File::from(near.try_clone().unwrap()).read_exact(&mut bytes).unwrap();
            }
            Step::HangUp(pair) => {
                let Some(far) = pairs[pair].far.take() else { continue };
                // The end of a TCP stream says nothing about the other direction.
                match kind {
                    Kind::Tcp => arrive(&mut all, pair, Direction::Read, || drop(far)),
                    _ => {
                        let (mut read, mut write): (Vec<_>, Vec<_>) =
                            all.drain(..).partition(|e| e.direction == Direction::Read);
                        arrive(&mut read, pair, Direction::Read, || {
                            arrive(&mut write, pair, Direction::Write, || drop(far));
                        });
                        all.extend(read.into_iter().chain(write));
                    }
                }
            }
            Step::Reopen(pair) => {
                close(&mut all, pair);
                drop(pairs.remove(pair));
                pairs.insert(pair, Pair::open(kind));
            }
        }
    }
    for pair in 0..PAIRS {
        close(&mut all, pair);
    }
    drop(pairs);
    for expected in all {
        let Expected { registration, lasting, calls, last, most, .. } = expected;
        // Whatever is still to be called has been when the callback is gone.
        eventually("the callback dies", || Arc::strong_count(&calls) == 1);
        assert!(registration.is_over());
        let calls = calls.lock().unwrap();
        let readiness = calls.iter().take_while(|e| matches!(e, Event::Ready | Event::HungUp));
        let readiness = readiness.count();
        assert_eq!(calls[readiness..], *last.as_slice(), "{calls:?}");
        assert!(calls.len() <= most, "{calls:?}: deleted after {most}");
        assert!(lasting || calls.len() <= 1, "{calls:?}");
    }
}

#[test]
fn random_sequences_call_whom_the_model_says() {
    if !supported() {
        return;
    }
    Company::Shared.keep(|| {
        let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&steps(), |steps| {
                for kind in [Kind::Pipe, Kind::Tcp, Kind::Unix] {
                    for workers in WORKERS {
                        let host = Host::Fibers { workers };
                        host.run(PATIENCE, &|_| play(kind, workers, &steps));
                    }
                }
                Ok(())
            })
            .unwrap();
    });
}
