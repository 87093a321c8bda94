//! `flume`: a mutex and a queue of signals, each of which unparks its thread by `std::thread::unpark`.

use std::sync::{Arc, Mutex};

use flume::{Receiver, RecvError, Selector, Sender, bounded, unbounded};

use crate::crowd::{Ledger, Traffic, gather, members};
use crate::support::on_fibers_alone;

#[test]
fn thousands_send_to_thousands_through_a_flume_channel() {
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

/// What a member has of its group's two channels.
#[derive(Clone)]
enum End {
    Sends(Sender<usize>, Sender<usize>),
    Receives(Receiver<usize>, Receiver<usize>),
}

/// What a selector takes from either of two channels; `None` when both have been closed.
fn take(a: &Receiver<usize>, b: &Receiver<usize>) -> Option<usize> {
    let take = |received: Result<usize, RecvError>| received.ok();
    let either = Selector::new().recv(a, take).recv(b, take).wait();
    // One of the two may be at its end before the other.
    either.or_else(|| a.recv().ok()).or_else(|| b.recv().ok())
}

/// Sends through `b`, through `a`, or as a selector on `a`.
fn send(a: &Sender<usize>, b: &Sender<usize>, value: usize) {
    match value % 4 {
        0 => b.send(value).unwrap(),
        1 => a.send(value).unwrap(),
        _ => Selector::new().send(a, value, |sent| sent.unwrap()).wait(),
    }
}

#[test]
fn thousands_of_flume_selectors_lose_nothing() {
    // Several receivers that select on one channel lose wake-ups in flume 0.11, on plain threads too: a selector
    // that was woken for a value that another has taken waits on, no longer in the channel's queue. So each
    // channel has one.
    const EACH: usize = 4;
    on_fibers_alone(|host| {
        let ledger = Ledger::new(members() / 4 * 3 * EACH);
        let book = Arc::clone(&ledger);
        // Three senders and a receiver from the four quarters of the crowd, the plain threads in its last.
        let groups = members() / 4;
        let mut ends: Vec<End> = Vec::new();
        let mut receivers = Vec::new();
        for _ in 0..groups {
            let ((a, from_a), (b, from_b)) = (bounded(2), unbounded());
            ends.push(End::Sends(a, b));
            receivers.push(End::Receives(from_a, from_b));
        }
        ends.extend_from_within(..);
        ends.extend_from_within(..groups);
        ends.extend(receivers);
        let ends = Mutex::new(ends.into_iter().map(Some).collect::<Vec<_>>());
        gather(host, move |member| {
            let end = ends.lock().unwrap().get_mut(member.number).and_then(Option::take);
            match end {
                Some(End::Sends(a, b)) => {
                    for value in member.number * EACH..(member.number + 1) * EACH {
                        send(&a, &b, value);
                        member.dawdle(value);
                    }
                }
                Some(End::Receives(a, b)) => {
                    while let Some(value) = take(&a, &b) {
                        book.enter(value);
                        member.dawdle(value);
                    }
                }
                // A quarter of the crowd is no whole number.
                None => {}
            }
        });
        ledger.close();
    });
}
