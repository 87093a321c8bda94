//! Callbacks are called: once or again and again, on fibers, one at a time, all of them.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use super::*;
use crate::support::timing::eventually;
use sleave::event::wait_any;

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
