//! Registrations under loom: events, cancellations, deletions and a close, against each other and against
//! the calls that they bring about.
//!
//! Descriptor and registrations are the production code. The runtime is a list of who is to be served, the
//! kernel a number of bytes. The callback touches a cell of loom's with exclusive access, and so does the
//! drop of what it holds: a call beside another, or after the drop, fails, as does a callback that is
//! dropped twice or never, and a registration that its runtime waits for in vain.

use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Mutex;
use loom::sync::atomic::AtomicUsize;
use loom::thread;

use super::{Event, Host, New, Registrations};
use crate::reactor::descriptor::{Descriptor, Direction};
use crate::reactor::event::Registration;
use crate::wait::Batch;

struct Stage {
    descriptor: Descriptor,
    /// What has arrived and has not been taken.
    bytes: Mutex<usize>,
    launched: Mutex<Vec<Registration>>,
    calls: Mutex<Vec<Event>>,
    registrations: AtomicUsize,
    drops: AtomicUsize,
}

impl Host for Stage {
    fn begins(&self) {
        self.registrations.fetch_add(1, Ordering::Relaxed);
    }

    fn ends(&self) {
        self.registrations.fetch_sub(1, Ordering::Relaxed);
    }

    fn launch(&'static self, registration: Registration, _: &mut Batch) {
        self.launched.lock().unwrap().push(registration);
    }

    fn ask(&self, _: RawFd, _: Direction) -> Option<Event> {
        (*self.bytes.lock().unwrap() > 0).then_some(Event::Ready)
    }
}

/// What a callback holds.
struct Held {
    stage: &'static Stage,
    cell: UnsafeCell<()>,
}

// SAFETY: loom sees to it that the cell is used by one at a time, or fails.
unsafe impl Send for Held {}

impl Held {
    /// Takes all there is, as a callback of an edge must.
    fn call(&self, event: Event) {
        self.cell.with_mut(|_| {
            self.stage.calls.lock().unwrap().push(event);
            *self.stage.bytes.lock().unwrap() = 0;
        });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cell.with_mut(|_| ());
        self.stage.drops.fetch_add(1, Ordering::Relaxed);
    }
}

impl Stage {
    fn register(&'static self, lasting: bool) -> Registration {
        let held = Held { stage: self, cell: UnsafeCell::new(()) };
        let callback = Box::new(move |event, _: &Registration| held.call(event));
        let new = New { fd: 0, host: self, direction: Direction::Read, lasting, callback };
        let list = &mut self.descriptor.state.lock().registrations;
        Registrations::add(list, new, false, &mut Batch::new())
    }

    /// A byte arrives, and a worker collects the event.
    fn arrive(&'static self) {
        *self.bytes.lock().unwrap() += 1;
        self.descriptor.report(0, libc::EPOLLIN as u32, &mut Batch::new());
        self.work();
    }

    fn cancel(&'static self, registration: Registration) -> bool {
        let cancelled = self.descriptor.cancel(registration.key, &mut Batch::new());
        self.work();
        cancelled
    }

    fn cancel_all(&'static self) -> usize {
        let count = self.descriptor.cancel_all(&mut Batch::new());
        self.work();
        count
    }

    fn delete(&self, registration: Registration) -> bool {
        self.descriptor.delete(registration.key)
    }

    /// As `table::close`. The number names something that is ready afterwards.
    fn close(&'static self) {
        let generation = self.descriptor.close(|_| (), &mut Batch::new());
        *self.bytes.lock().unwrap() += 1;
        self.descriptor.closed(generation);
        self.work();
    }

    /// Runs the fibers that have been begun, by whomever.
    fn work(&self) {
        while let Some(registration) = self.take() {
            self.descriptor.serve(registration);
        }
    }

    fn take(&self) -> Option<Registration> {
        self.launched.lock().unwrap().pop()
    }

    fn calls(&self) -> Vec<Event> {
        self.calls.lock().unwrap().clone()
    }

    fn assert_calls(&self, permitted: &[&[Event]]) {
        let calls = self.calls();
        assert!(permitted.contains(&&calls[..]), "called with {calls:?}");
    }
}

/// Checks `model` in all orders; it leaves no registration behind.
fn check(model: impl Fn(&'static Stage) + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let stage = Box::into_raw(Box::new(Stage {
            descriptor: Descriptor::new(),
            bytes: Mutex::new(0),
            launched: Mutex::new(Vec::new()),
            calls: Mutex::new(Vec::new()),
            registrations: AtomicUsize::new(0),
            drops: AtomicUsize::new(0),
        }));
        {
            // SAFETY: freed below, when the model's threads have been joined and its registrations are over.
            let stage: &'static Stage = unsafe { &*stage };
            model(stage);
            assert_eq!(stage.registrations.load(Ordering::Relaxed), 0, "registrations");
            assert_eq!(stage.drops.load(Ordering::Relaxed), 1, "callbacks dropped");
            assert!(stage.descriptor.state.lock().registrations.is_none(), "the list");
        }
        // SAFETY: as above.
        drop(unsafe { Box::from_raw(stage) });
    });
}

use Event::{Cancelled, Closed, Ready};

#[test]
fn loom_a_registration_for_one_call_is_told_of_the_event_or_of_its_cancellation() {
    check(|stage| {
        let registration = stage.register(false);
        let worker = thread::spawn(|| stage.arrive());
        let cancelled = stage.cancel(registration);
        worker.join().unwrap();
        assert_eq!(stage.calls(), [if cancelled { Cancelled } else { Ready }]);
    });
}

#[test]
fn loom_a_lasting_registration_is_told_of_its_cancellation_once_and_last() {
    check(|stage| {
        let registration = stage.register(true);
        let worker = thread::spawn(|| stage.arrive());
        assert!(stage.cancel(registration), "there is always a next time");
        worker.join().unwrap();
        stage.assert_calls(&[&[Cancelled], &[Ready, Cancelled]]);
    });
}

#[test]
fn loom_of_several_who_cancel_one_does() {
    check(|stage| {
        let registration = stage.register(true);
        let other = thread::spawn(move || usize::from(stage.cancel(registration)));
        let third = thread::spawn(|| stage.cancel_all());
        let mut cancelled = usize::from(stage.cancel(registration));
        cancelled += other.join().unwrap() + third.join().unwrap();
        assert_eq!(cancelled, 1);
        assert_eq!(stage.calls(), [Cancelled]);
    });
}

#[test]
fn loom_one_that_is_deleted_is_not_called_from_then_on() {
    for lasting in [false, true] {
        check(move |stage| {
            let registration = stage.register(lasting);
            let worker = thread::spawn(|| stage.arrive());
            let deleted = stage.delete(registration);
            let before = stage.calls();
            worker.join().unwrap();
            if !lasting {
                assert_eq!(stage.calls().len(), usize::from(!deleted));
            }
            assert!(deleted || !lasting, "there was something to end");
            // A call that had begun may be noted after the look, but what comes now is for nobody.
            stage.assert_calls(&[&[], &[Ready]]);
            let before = before.len().max(stage.calls().len());
            stage.arrive();
            assert_eq!(stage.calls().len(), before);
        });
    }
}

#[test]
fn loom_one_that_is_deleted_and_cancelled_ends_once() {
    check(|stage| {
        let registration = stage.register(true);
        let other = thread::spawn(move || stage.cancel(registration));
        let deleted = stage.delete(registration);
        let cancelled = other.join().unwrap();
        assert!(deleted || cancelled);
        // A cancelled one may be deleted before it is told.
        assert_eq!(stage.calls().len(), usize::from(!deleted));
    });
}

#[test]
fn loom_a_close_is_the_last_that_is_told_and_the_next_description_is_not_spoken_of() {
    for lasting in [false, true] {
        check(move |stage| {
            stage.register(lasting);
            let worker = thread::spawn(|| stage.arrive());
            stage.close();
            worker.join().unwrap();
            stage.arrive();
            if lasting {
                stage.assert_calls(&[&[Closed], &[Ready, Closed]]);
            } else {
                stage.assert_calls(&[&[Closed], &[Ready]]);
            }
        });
    }
}

#[test]
fn loom_of_close_and_cancellation_one_is_told() {
    check(|stage| {
        let registration = stage.register(true);
        let closer = thread::spawn(|| stage.close());
        let cancelled = stage.cancel(registration);
        closer.join().unwrap();
        assert_eq!(stage.calls(), [if cancelled { Cancelled } else { Closed }]);
    });
}

#[test]
fn loom_what_arrives_during_a_call_leads_to_another_and_never_to_one_beside_it() {
    check(|stage| {
        let registration = stage.register(true);
        let workers = [(), ()].map(|()| thread::spawn(|| stage.arrive()));
        stage.work();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(*stage.bytes.lock().unwrap(), 0, "something has arrived, and nobody was told");
        stage.assert_calls(&[&[Ready], &[Ready, Ready]]);
        assert!(stage.delete(registration));
    });
}
