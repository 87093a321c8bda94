//! How registrations end: deleted, cancelled, closed, by a panic, and before their runtime.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use super::*;
use crate::support::timing::eventually;
use sleave::event::{cancel_all, wait_any};

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
