//! What a wait leaves behind that was given up: nothing.

use std::io::{ErrorKind, Read, Write, pipe};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use sleave::event::{Direction, wait_any};
use sleave::{Builder, park, set_wait_timeout};

use super::{MS, on_runtimes};
use crate::support::random::{Random, fresh_seed};
use crate::support::{Count, Flag};

fn would_block<T: std::fmt::Debug>(result: std::io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn what_was_given_up_can_be_done_again() {
    on_runtimes(
        |builder| builder.wait_timeout(5 * MS),
        |host| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            would_block(listener.accept());
            let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            set_wait_timeout(None).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            for round in 0..20 {
                set_wait_timeout(MS).unwrap();
                would_block(near.read(&mut [0]));
                set_wait_timeout(None).unwrap();
                let writer = host.spawn(move || {
                    far.write_all(&[round]).unwrap();
                    far
                });
                let mut one = [0];
                near.read_exact(&mut one).unwrap();
                assert_eq!(one, [round]);
                far = writer.value();
            }
        },
    );
}

/// The byte is for whoever still waits: a waiter left behind in the queue would take the wake-up.
#[test]
fn an_event_wakes_who_still_waits_and_nobody_else() {
    on_runtimes(
        |builder| builder,
        |host| {
            for _ in 0..20 {
                let (reader, mut writer) = pipe().unwrap();
                let reader = Arc::new(reader);
                let unparked = Arc::new(Flag::new());
                let given_up = Arc::new(Count::new());
                let gone: Vec<_> = (0..8)
                    .map(|_| {
                        let (reader, unparked) = (Arc::clone(&reader), Arc::clone(&unparked));
                        let given_up = Arc::clone(&given_up);
                        let fiber = Builder::new().wait_timeout(2 * MS).spawn(move || {
                            would_block((&*reader).read(&mut [0]));
                            given_up.up();
                            park();
                            assert!(unparked.is_up(), "woken by what it no longer waits for");
                        });
                        fiber.unwrap()
                    })
                    .collect();
                // It queues behind those, and waits when they have gone.
                let last = host.spawn({
                    let reader = Arc::clone(&reader);
                    move || (&*reader).read(&mut [0; 8]).unwrap()
                });
                while given_up.get() < gone.len() {
                    std::thread::sleep(MS);
                }
                assert!(!last.is_finished());
                writer.write_all(b"x").unwrap();
                assert_eq!(last.value(), 1);
                unparked.raise();
                for fiber in gone {
                    fiber.fiber().unpark();
                    fiber.join().unwrap();
                }
            }
        },
    );
}

/// Bytes come as the time is over, again and again: each is read once, by somebody, and a reader that
/// has given up has taken none.
#[test]
fn a_byte_at_the_last_moment_is_read_or_left() {
    const BYTES: usize = 600;
    on_runtimes(
        |builder| builder,
        |host| {
            let (near, mut far) = UnixStream::pair().unwrap();
            let near = Arc::new(near);
            let (read, given_up) = (Arc::new(Count::new()), Arc::new(Count::new()));
            let readers: Vec<_> = (0..4)
                .map(|_| {
                    let near = Arc::clone(&near);
                    let (read, given_up) = (Arc::clone(&read), Arc::clone(&given_up));
                    let limited = Builder::new().wait_timeout(Duration::from_micros(300));
                    let reader = limited.spawn(move || {
                        let mut room = [0; 8];
                        loop {
                            match (&*near).read(&mut room) {
                                Ok(0) => return,
                                Ok(count) => read.add(count),
                                Err(error) => {
                                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                                    given_up.up();
                                }
                            }
                        }
                    });
                    reader.unwrap()
                })
                .collect();
            let mut random = Random::new(fresh_seed());
            for _ in 0..BYTES {
                far.write_all(b"x").unwrap();
                std::thread::sleep(Duration::from_micros(random.within(200..500) as u64));
            }
            drop(far);
            for reader in readers {
                reader.join().unwrap();
            }
            assert_eq!(read.get(), BYTES, "{host}");
            assert!(given_up.get() > 0, "{host}: no time was over");
        },
    );
}

/// Two waits that give up together with one that is told in time: each has its own answer.
#[test]
fn wait_any_leaves_every_queue_when_it_gives_up() {
    on_runtimes(
        |builder| builder,
        |host| {
            let (reader, mut writer) = pipe().unwrap();
            let (other, _other) = pipe().unwrap();
            let interests = [(reader.as_fd(), Direction::Read), (other.as_fd(), Direction::Read)];
            for _ in 0..20 {
                set_wait_timeout(2 * MS).unwrap();
                assert!(wait_any(&interests, None).unwrap().is_empty());
                // It stands in no queue: this sleep is not cut short, and the byte wakes the next wait.
                host.yield_now();
                assert!(!sleave::park_timeout(MS));
                set_wait_timeout(None).unwrap();
                let late = host.spawn(move || {
                    writer.write_all(b"x").unwrap();
                    writer
                });
                assert_eq!(wait_any(&interests, None).unwrap(), [0]);
                assert_eq!((&reader).read(&mut [0]).unwrap(), 1);
                writer = late.value();
            }
        },
    );
}
