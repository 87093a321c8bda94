//! `crossbeam-channel` and what waits in `crossbeam-utils`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};
use crossbeam_utils::sync::{Parker, ShardedLock, Unparker, WaitGroup};

use crate::crowd::{Ledger, Traffic, gather, members};
use crate::support::{Count, Host, on_fibers_alone, scaled};

#[test]
fn thousands_send_to_thousands_through_a_crossbeam_channel() {
    on_fibers_alone(|host| {
        for room in [Some(0), Some(1), Some(64), None] {
            let (sender, receiver) = room.map_or_else(unbounded, bounded);
            Traffic { each: 4 }.run(
                host,
                (sender, |s, v| s.send(v).unwrap()),
                (receiver, |r| r.recv().ok()),
            );
        }
    });
}

#[test]
fn selects_of_thousands_agree_on_who_sends_what_to_whom() {
    on_fibers_alone(|host| {
        type Ends<T> = (T, T, T);
        let (a, from_a) = bounded(0);
        let (b, from_b) = bounded(1);
        let (c, from_c) = unbounded();
        let sender: Ends<Sender<usize>> = (a, b, c);
        let receiver: Ends<Receiver<usize>> = (from_a, from_b, from_c);
        let traffic = Traffic { each: 4 };
        let send = |(a, b, c): &Ends<Sender<usize>>, value: usize| {
            // The last is always ready; so not always.
            match value % 4 {
                0 => select! {
                    send(a, value) -> sent => sent.unwrap(),
                    send(b, value) -> sent => sent.unwrap(),
                    send(c, value) -> sent => sent.unwrap(),
                },
                _ => select! {
                    send(a, value) -> sent => sent.unwrap(),
                    send(b, value) -> sent => sent.unwrap(),
                },
            }
        };
        let receive = |(a, b, c): &Ends<Receiver<usize>>| {
            let (mut a, mut b, mut c) = (a.clone(), b.clone(), c.clone());
            for _ in 0..3 {
                select! {
                    recv(a) -> value => match value {
                        Ok(value) => return Some(value),
                        Err(_) => a = never(),
                    },
                    recv(b) -> value => match value {
                        Ok(value) => return Some(value),
                        Err(_) => b = never(),
                    },
                    recv(c) -> value => match value {
                        Ok(value) => return Some(value),
                        Err(_) => c = never(),
                    },
                }
            }
            None
        };
        // Three channels do not keep one order.
        traffic.run_unordered(host, (sender, send), (receiver, receive));
    });
}

#[test]
fn a_wait_group_waits_for_ten_thousand() {
    on_fibers_alone(|host| {
        let (group, done) = (WaitGroup::new(), Arc::new(Count::new()));
        let (all, counted) = (std::sync::Mutex::new(vec![group.clone(); members()]), done.clone());
        let waiter = host.spawn(move || {
            group.wait();
            done.get()
        });
        gather(host, move |member| {
            let group = all.lock().unwrap().pop().expect("one for each member");
            member.dawdle(member.number);
            counted.up();
            // Every other one waits for all the rest as well.
            match member.number.is_multiple_of(2) {
                true => {
                    group.wait();
                    assert_eq!(counted.get(), members());
                }
                false => drop(group),
            }
        });
        assert_eq!(waiter.value(), members());
    });
}

#[test]
fn a_sharded_lock_shows_ten_thousand_readers_no_half_written_pair() {
    on_fibers_alone(|host| {
        let pair = Arc::new(ShardedLock::new((0, 0)));
        let shared = Arc::clone(&pair);
        let written: usize = gather(host, move |member| {
            let mut written = 0;
            for round in member.rounds(4, 50) {
                // It has a lock for each of several groups of threads; a writer takes them all.
                if (member.number + round) % 32 == 0 {
                    let mut pair = shared.write().unwrap();
                    pair.0 += 1;
                    member.dawdle(round);
                    pair.1 += 1;
                    written += 1;
                } else {
                    let pair = shared.read().unwrap();
                    let before = *pair;
                    member.dawdle(round);
                    assert_eq!(*pair, before, "written while it was read");
                    assert_eq!(pair.0, pair.1, "half written");
                }
            }
            written
        })
        .into_iter()
        .sum();
        assert_eq!(*pair.read().unwrap(), (written, written));
    });
}

/// The crowd in a ring, each parked until the one before it has a token for it. `tokens` go round `laps` times.
fn ring(host: Host, tokens: usize, laps: usize) {
    struct Place {
        parker: std::sync::Mutex<Option<Parker>>,
        unparker: Unparker,
        tokens: AtomicUsize,
    }
    let ring: Vec<_> = (0..members())
        .map(|i| {
            let parker = Parker::new();
            let unparker = parker.unparker().clone();
            let tokens = AtomicUsize::new(usize::from(i % (members() / tokens) == 0));
            Place { parker: std::sync::Mutex::new(Some(parker)), unparker, tokens }
        })
        .collect();
    let start: usize = ring.iter().map(|place| place.tokens.load(Ordering::SeqCst)).sum();
    let ring = Arc::new(ring);
    let places = Arc::clone(&ring);
    gather(host, move |member| {
        let own = &places[member.number];
        let next = &places[(member.number + 1) % members()];
        let parker = own.parker.lock().unwrap().take().expect("once");
        for round in 0..start * laps {
            while own.tokens.load(Ordering::SeqCst) == 0 {
                parker.park();
            }
            own.tokens.fetch_sub(1, Ordering::SeqCst);
            member.dawdle(round);
            next.tokens.fetch_add(1, Ordering::SeqCst);
            next.unparker.unpark();
        }
    });
    // Each token is where it started.
    for (i, place) in ring.iter().enumerate() {
        let expected = usize::from(i % (members() / tokens) == 0);
        assert_eq!(place.tokens.load(Ordering::SeqCst), expected, "tokens at {i}");
    }
}

#[test]
fn tokens_go_round_a_ring_of_parkers() {
    on_fibers_alone(|host| ring(host, 1, scaled(5)));
    on_fibers_alone(|host| ring(host, 16, 1));
}

#[test]
fn what_many_never_receive_is_dropped_once() {
    on_fibers_alone(|host| {
        // Receivers leave before the senders; what lies in the channel then is dropped with it.
        struct Entry(usize, Arc<Ledger>);
        impl Drop for Entry {
            fn drop(&mut self) {
                self.1.enter(self.0);
            }
        }
        let ledger = Ledger::new(members());
        let (sender, receiver) = bounded(16);
        let ends = std::sync::Mutex::new(vec![Some((sender, receiver)); members()]);
        let book = Arc::clone(&ledger);
        gather(host, move |member| {
            let ends = ends.lock().unwrap()[member.number].take();
            let (sender, receiver) = ends.expect("one for each member");
            let entry = Entry(member.number, Arc::clone(&book));
            if member.number.is_multiple_of(4) {
                // Nobody sends this one.
                drop((sender, entry));
                drop(receiver.recv());
            } else {
                drop(receiver);
                // Fails when the last receiver has gone, and gives the value back.
                drop(sender.send(entry));
            }
        });
        ledger.close();
    });
}
