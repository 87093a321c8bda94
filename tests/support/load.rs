//! A bit of everything that a runtime is asked to do, and a count of what became of it.
//!
//! Each piece of work is a [`Guest`] of a [`Census`]: counted when it is admitted, when it begins and when
//! it is gone, whether it returned, panicked or unwound. After a stop the three are equal, or something was lost.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use sleave::event::{self, Direction};
use sleave::{Runtime, Timer};

use super::Count;
use super::random::Random;

/// Counts work.
#[derive(Debug, Default)]
pub struct Census {
    admitted: Count,
    begun: Count,
    gone: Count,
}

/// A piece of work, counted out when it is dropped.
#[derive(Debug)]
pub struct Guest(Arc<Census>);

impl Census {
    /// Nobody.
    pub fn new() -> Arc<Census> {
        Arc::default()
    }

    /// One more.
    pub fn guest(self: &Arc<Self>) -> Guest {
        self.admitted.up();
        Guest(Arc::clone(self))
    }

    /// One was refused, and has been dropped by whoever refused it.
    pub fn refused(&self) {
        self.admitted.down();
        self.gone.down();
    }

    /// How many have begun.
    pub fn begun(&self) -> usize {
        self.begun.get()
    }

    /// Asserts that all who were admitted have begun and are gone.
    pub fn assert_complete(&self) {
        let counts = [&self.begun, &self.gone].map(Count::get);
        assert_eq!(counts, [self.admitted.get(); 2], "begun and gone of those who were admitted");
    }
}

impl Guest {
    /// It is at work.
    pub fn begins(&self) {
        self.0.begun.up();
    }

    /// One that this one brings along.
    pub fn another(&self) -> Guest {
        self.0.guest()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.gone.up();
    }
}

/// How many kinds of [`work`] there are.
pub const KINDS: usize = 9;

/// Spawns work of all kinds on `runtime` from outside, and lets go of the handles.
pub fn spawn_all(runtime: &Runtime, census: &Arc<Census>, rounds: usize, random: &mut Random) {
    for kind in (0..rounds).flat_map(|_| 0..KINDS) {
        let (guest, random) = (census.guest(), random.split());
        drop(runtime.spawn(move || work(kind, guest, random)));
    }
}

/// Does some work on the calling fiber.
pub fn work(kind: usize, guest: Guest, mut random: Random) {
    guest.begins();
    let nap = Duration::from_micros(random.next() % 3000);
    match kind % KINDS {
        0 => {
            thread::sleep(nap);
            (0..10).for_each(|_| sleave::yield_now());
        }
        1 => {
            let (near, far) = UnixStream::pair().unwrap();
            echo(&guest, near, far, nap);
        }
        2 => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            echo(&guest, listener.accept().unwrap().0, far, nap);
        }
        3 => {
            let (send, receive) = mpsc::sync_channel(0);
            detach(&guest, move |_| (0..20).for_each(|i| send.send(i).unwrap()));
            assert_eq!(receive.iter().sum::<i32>(), 190);
        }
        4 => {
            // A call, one that is cancelled, and one that comes again until it is told to end.
            let (send, receive) = mpsc::channel();
            let (called, again) = (guest.another(), send.clone());
            let timer = Timer::after(nap, move || {
                called.begins();
                let _ = send.send(());
            });
            let never = Timer::after(Duration::from_secs(1000), || unreachable!());
            let recurring = Timer::every(Duration::from_micros(300), move |_| {
                let _ = again.send(());
            });
            // Of a runtime that is stopping, recurring timers end by themselves.
            while !timer.is_over() {
                receive.recv().unwrap();
            }
            recurring.cancel();
            assert!(never.cancel());
        }
        5 => {
            let (mut near, far) = UnixStream::pair().unwrap();
            let (send, receive) = mpsc::channel();
            let called = guest.another();
            event::once(&far, Direction::Read, move |event| {
                called.begins();
                send.send(event).unwrap();
            })
            .unwrap();
            let held = Box::new([0u8; 100]);
            let lasting = event::persistent(far.as_fd(), Direction::Write, move |_, _| {
                assert_eq!(held.len(), 100);
            });
            let lasting = lasting.unwrap();
            thread::sleep(nap);
            near.write_all(b"x").unwrap();
            assert_eq!(receive.recv(), Ok(event::Event::Ready));
            assert!(lasting.delete());
        }
        6 => {
            sleave::yield_now();
            resume_unwind(Box::new(vec![0u8; 100]));
        }
        7 => {
            let lock = Arc::new((Mutex::new(0), Condvar::new()));
            for _ in 0..5 {
                let lock = Arc::clone(&lock);
                detach(&guest, move |_| {
                    *lock.0.lock().unwrap() += 1;
                    lock.1.notify_all();
                });
            }
            drop(lock.1.wait_while(lock.0.lock().unwrap(), |done| *done < 5).unwrap());
        }
        _ => chain(&guest, random.within(1..6)),
    }
}

/// A fiber that spawns the next one and does not wait for it.
fn chain(guest: &Guest, length: usize) {
    if length > 0 {
        detach(guest, move |own| chain(own, length - 1));
        sleave::yield_now();
    }
}

/// Has `f` done by a fiber of its own, a guest that `guest` brings along.
fn detach(guest: &Guest, f: impl FnOnce(&Guest) + Send + 'static) {
    let other = guest.another();
    drop(sleave::spawn(move || {
        other.begins();
        f(&other);
    }));
}

/// Sends a few blocks through a socket and back.
fn echo<S>(guest: &Guest, mut near: S, mut far: S, nap: Duration)
where
    S: Read + Write + Send + 'static,
{
    detach(guest, move |_| {
        let mut block = [0; 4096];
        while let Ok(count @ 1..) = far.read(&mut block) {
            far.write_all(&block[..count]).unwrap();
        }
    });
    let mut block = [7; 4096];
    for _ in 0..3 {
        near.write_all(&block).unwrap();
        near.read_exact(&mut block).unwrap();
        thread::sleep(nap / 8);
    }
}
