//! Random sequences of register, delete, cancel, write, read, hang up and close, against the [`model`](super::model).

use std::fs::File;
use std::io::{Read, Write};

use proptest::test_runner::{Config, TestRunner};

use super::model::*;
use super::*;
use crate::support::timing::eventually;
use sleave::event::cancel_all;
use std::sync::{Arc, Mutex};

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
