//! A descriptor under loom: readers that try and wait, events, a deadline, a close.
//!
//! Descriptor, queue, wait word and timer wheel are the production code. Modelled are the kernel, as a
//! number of bytes under a lock, and the switch, as registers that must have been saved before
//! somebody takes them. Loom reports whoever touches registers or waiter without an order to what
//! others did there; a reader that is forgotten has no outcome, and one that is woken twice has two.

use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::OnceLock;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Mutex;
use loom::thread;
use sleave_context::stack::Arena;

use super::{Descriptor, Direction, Joined, Ordering, READ_READY};
use crate::fiber::Control;
use crate::reactor::queue::Waiter;
use crate::wait::timer::{Entry, Wheel};
use crate::wait::{Batch, Deadline, Reason};

/// The driver that watches.
const DRIVER: u32 = 1;
/// When deadlines are, and the clock of who looks at the wheel then.
const DUE: u64 = 2 << 16;

struct Socket {
    open: bool,
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Read,
    TimedOut,
    Closed,
}

use Outcome::{Closed, Read, TimedOut};

struct Stage {
    descriptor: Descriptor,
    wheel: Wheel,
    socket: Mutex<Socket>,
    readers: Vec<Box<Reader>>,
}

/// A fiber that wants one byte.
#[repr(C)]
struct Reader {
    /// First, so that a queue's pointer is the reader's.
    control: Control,
    deadline: bool,
    waiter: Waiter,
    timer: Entry,
    registers: UnsafeCell<usize>,
    outcome: Mutex<Option<Outcome>>,
}

// SAFETY: a fiber's own parts are touched by whoever runs it, or loom reports it.
unsafe impl Send for Reader {}
// SAFETY: as for Send.
unsafe impl Sync for Reader {}

/// Where the slots come from that control blocks need, and that nobody uses.
fn arena() -> &'static Arena {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    ARENA.get_or_init(|| Arena::reserve().expect("address space"))
}

impl Reader {
    fn new(deadline: bool) -> Box<Reader> {
        let reader = Box::new_uninit();
        let control: NonNull<Control> = NonNull::from(&*reader).cast();
        Box::write(
            reader,
            Reader {
                control: Control::new(0, arena().take(16 << 10).expect("a slot")),
                deadline,
                waiter: Waiter::new(control, false),
                timer: Entry::of_wait(control),
                registers: UnsafeCell::new(0),
                outcome: Mutex::new(None),
            },
        )
    }

    fn outcome(&self) -> Option<Outcome> {
        *self.outcome.lock().unwrap()
    }

    fn timer(&self) -> Pin<&Entry> {
        // SAFETY: the reader stays in its box until the stage is taken down.
        unsafe { Pin::new_unchecked(&self.timer) }
    }
}

impl Stage {
    /// As the interposed `read`: tries, and waits while there is nothing.
    fn read(&'static self, reader: &'static Reader) {
        loop {
            self.descriptor.attempt(Direction::Read);
            let tried = {
                let mut socket = self.socket.lock().unwrap();
                let taken = socket.bytes.min(1);
                socket.bytes -= taken;
                socket.open.then_some(taken)
            };
            let outcome = match tried {
                None => Closed,
                Some(0) => match self.join(reader) {
                    Joined::Waiting => return self.commit(reader),
                    Joined::Closed => Closed,
                    Joined::Ready | Joined::Unpollable => continue,
                },
                Some(_) => {
                    // It got all that it asked for, so there may be more.
                    schedule(self.descriptor.leave(Direction::Read, true));
                    Read
                }
            };
            return self.finish(reader, outcome);
        }
    }

    /// As the first half of `table::wait`.
    fn join(&self, reader: &Reader) -> Joined {
        let control = &reader.control;
        control.wait.prepare();
        let add =
            |_| if self.socket.lock().unwrap().open { Ok(()) } else { Err(syscalls::Errno::EBADF) };
        // SAFETY: parted from in `go_on`.
        let joined = unsafe {
            self.descriptor.join(Direction::Read, &reader.waiter, true, |state| {
                self.descriptor.register(state, DRIVER, add)
            })
        };
        if joined != Joined::Waiting {
            control.wait.end();
        }
        joined
    }

    /// As `Wait::commit`.
    fn commit(&'static self, reader: &'static Reader) {
        if reader.deadline {
            reader.timer().start(&self.wheel, Deadline::at(DUE));
        }
        if reader.control.wait.is_unclaimed() {
            reader.registers.with_mut(|registers| {
                // SAFETY: the fiber's own, until it has parked.
                unsafe { *registers = 1 }
            });
            if !reader.control.wait.park() {
                self.resume(reader);
            }
        } else {
            self.go_on(reader);
        }
    }

    /// What a scheduler does with a fiber that it was given.
    fn resume(&'static self, reader: &'static Reader) {
        let registers = reader.registers.with_mut(|registers| {
            // SAFETY: exclusive, or loom reports it.
            unsafe { std::mem::take(&mut *registers) }
        });
        assert_eq!(registers, 1, "resumed before it was saved, or twice");
        self.go_on(reader);
    }

    /// The fiber runs again: the end of `Wait::commit` and of `table::wait`.
    fn go_on(&'static self, reader: &'static Reader) {
        reader.timer().cancel();
        let reason = reader.control.wait.end();
        self.descriptor.part(Direction::Read, &reader.waiter);
        reader.waiter.goes();
        match reason {
            Reason::Woken => self.read(reader),
            Reason::TimedOut => self.finish(reader, TimedOut),
            Reason::Closed => self.finish(reader, Closed),
            Reason::Interrupted => unreachable!("nobody interrupts here"),
        }
    }

    fn finish(&self, reader: &Reader, outcome: Outcome) {
        let before = reader.outcome.lock().unwrap().replace(outcome);
        assert_eq!(before, None, "it has come back twice");
        // Its next wait, for something else: nobody may claim that.
        reader.control.wait.prepare();
    }

    /// Bytes arrive, and a worker collects the one event.
    fn arrive(&'static self, bytes: usize) {
        self.socket.lock().unwrap().bytes += bytes;
        let mut woken = Batch::new();
        self.descriptor.report(0, libc::EPOLLIN as u32, &mut woken);
        schedule(woken);
    }

    /// As `table::close`.
    fn close(&'static self) {
        let mut woken = Batch::new();
        let generation = self.descriptor.close(|_| (), &mut woken);
        self.socket.lock().unwrap().open = false;
        self.descriptor.closed(generation);
        schedule(woken);
    }

    /// The deadlines come.
    fn expire(&'static self) {
        let mut woken = Batch::new();
        self.wheel.fire(DUE, &mut woken);
        schedule(woken);
    }

    fn reader(&self, number: usize) -> &Reader {
        &self.readers[number]
    }

    fn outcomes(&self) -> Vec<Option<Outcome>> {
        self.readers.iter().map(|reader| reader.outcome()).collect()
    }
}

thread_local! {
    /// The stage of the present execution.
    static STAGE: std::cell::Cell<Option<&'static Stage>> = const { std::cell::Cell::new(None) };
}

fn schedule(mut batch: Batch) {
    while let Some(runnable) = batch.take() {
        let stage = STAGE.get().expect("inside of a model");
        // SAFETY: only readers of this stage wait, and each is its control block's container.
        stage.resume(unsafe { runnable.cast::<Reader>().as_ref() });
    }
}

/// Checks `model`, in which the readers have these deadlines or none, in all orders.
fn check<const READERS: usize>(deadlines: [bool; READERS], model: fn(&'static Stage)) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let stage = Box::into_raw(Box::new(Stage {
            descriptor: Descriptor::new(),
            wheel: Wheel::new(0),
            socket: Mutex::new(Socket { open: true, bytes: 0 }),
            readers: deadlines.into_iter().map(Reader::new).collect(),
        }));
        {
            // SAFETY: freed below, when the model's threads have been joined.
            let stage: &'static Stage = unsafe { &*stage };
            STAGE.set(Some(stage));
            let registered =
                stage.descriptor.register(&mut stage.descriptor.state.lock(), DRIVER, |_| Ok(()));
            assert_eq!(registered, Ok(true));
            model(stage);
            for reader in &stage.readers {
                let next = reader.outcome().is_none() || reader.control.wait.is_unclaimed();
                assert!(next, "its next wait was claimed");
            }
        }
        // SAFETY: as above.
        let stage = unsafe { Box::from_raw(stage) };
        stage.readers.into_iter().for_each(|reader| arena().give(reader.control.slot));
    });
}

#[test]
fn loom_an_event_between_try_and_wait_is_not_lost() {
    check([false], |stage| {
        let writer = thread::spawn(|| stage.arrive(1));
        stage.read(stage.reader(0));
        writer.join().unwrap();
        assert_eq!(stage.outcomes(), [Some(Read)]);
    });
}

#[test]
fn loom_one_event_reaches_two_readers_if_there_is_something_for_both() {
    check([false, false], |stage| {
        let writer = thread::spawn(|| stage.arrive(2));
        let other = thread::spawn(|| stage.read(stage.reader(1)));
        stage.read(stage.reader(0));
        writer.join().unwrap();
        other.join().unwrap();
        assert_eq!(stage.outcomes(), [Some(Read); 2]);
    });
}

#[test]
fn loom_an_event_or_the_deadline_ends_a_wait_and_what_has_arrived_is_there_for_the_next() {
    check([true, false], |stage| {
        let writer = thread::spawn(|| stage.arrive(1));
        let worker = thread::spawn(|| stage.expire());
        stage.read(stage.reader(0));
        writer.join().unwrap();
        worker.join().unwrap();
        match stage.reader(0).outcome() {
            // The worker came before the deadline was there: it will come again.
            Some(Read) => stage.expire(),
            Some(TimedOut) => {
                stage.read(stage.reader(1));
                assert_eq!(stage.reader(1).outcome(), Some(Read));
            }
            other => panic!("the wait ended with {other:?}"),
        }
    });
}

#[test]
fn loom_an_event_for_one_whose_deadline_has_come_goes_to_the_next_who_waits() {
    check([true, false], |stage| {
        stage.read(stage.reader(0));
        stage.read(stage.reader(1));
        let worker = thread::spawn(|| stage.expire());
        stage.arrive(1);
        worker.join().unwrap();
        match stage.outcomes()[..] {
            [Some(TimedOut), Some(Read)] => {}
            // Woken for what may be left, the other waits again.
            [Some(Read), None] => {
                stage.close();
                assert_eq!(stage.reader(1).outcome(), Some(Closed));
            }
            ref other => panic!("the waits ended with {other:?}"),
        }
    });
}

#[test]
fn loom_a_close_ends_every_wait_whatever_arrives() {
    check([false], |stage| {
        let writer = thread::spawn(|| stage.arrive(1));
        let closer = thread::spawn(|| stage.close());
        stage.read(stage.reader(0));
        writer.join().unwrap();
        closer.join().unwrap();
        match stage.reader(0).outcome() {
            Some(Read) => {}
            Some(Closed) => {
                let flags = stage.descriptor.flags.load(Ordering::Relaxed);
                assert_eq!(flags & READ_READY, 0, "the old one's event says nothing of the next");
            }
            other => panic!("the wait ended with {other:?}"),
        }
    });
}

#[test]
fn loom_a_close_or_the_deadline_ends_a_wait() {
    check([true, false], |stage| {
        let worker = thread::spawn(|| stage.expire());
        let closer = thread::spawn(|| stage.close());
        stage.read(stage.reader(0));
        worker.join().unwrap();
        closer.join().unwrap();
        let outcome = stage.reader(0).outcome();
        assert!(matches!(outcome, Some(TimedOut | Closed)), "{outcome:?}");
        // Nothing of the wait is left behind.
        stage.read(stage.reader(1));
        assert_eq!(stage.reader(1).outcome(), Some(Closed));
    });
}
