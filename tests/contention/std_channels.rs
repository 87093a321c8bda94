//! `std::sync::mpsc`: thousands of senders, one receiver or a receiver behind a mutex.

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::crowd::{Ledger, Traffic, gather, members};
use crate::support::{Host, on_fibers_alone};

/// Receives what `members` send `each` of, all of it and nothing twice.
fn receive_all(receiver: &Receiver<usize>, each: usize) {
    let ledger = Ledger::new(members() * each);
    let mut next: Vec<usize> = (0..members()).map(|i| i * each).collect();
    for value in receiver {
        assert_eq!(value, next[value / each], "out of its sender's order");
        next[value / each] += 1;
        ledger.enter(value);
    }
    ledger.close();
}

/// All send; `receiver` is received from on a plain thread if so `plain`, else on a fiber.
fn send_to_one<S: Clone + Send + Sync + 'static>(
    host: Host,
    (sender, receiver): (S, Receiver<usize>),
    send: fn(&S, usize),
    plain: bool,
) {
    const EACH: usize = 5;
    let receive = move || receive_all(&receiver, EACH);
    let (thread, fiber) = match plain {
        true => (Some(thread::spawn(receive)), None),
        false => (None, Some(host.spawn(receive))),
    };
    gather(host, move |member| {
        for value in member.number * EACH..(member.number + 1) * EACH {
            send(&sender, value);
            member.dawdle(value);
        }
    });
    if let Some(fiber) = fiber {
        fiber.value();
    }
    if let Some(thread) = thread {
        thread.join().expect("the receiver");
    }
}

#[test]
fn ten_thousand_send_to_one_receiver_of_either_kind() {
    on_fibers_alone(|host| {
        for plain in [false, true] {
            send_to_one(host, mpsc::channel(), |s, v| s.send(v).unwrap(), plain);
            for room in [0, 1, 64] {
                send_to_one(host, mpsc::sync_channel(room), |s, v| s.send(v).unwrap(), plain);
            }
        }
    });
}

#[test]
fn thousands_share_one_receiver_under_a_mutex() {
    on_fibers_alone(|host| {
        for room in [0, 16] {
            let (sender, receiver) = mpsc::sync_channel(room);
            let receiver = Arc::new(Mutex::new(receiver));
            Traffic { each: 4 }.run(
                host,
                (sender, |s, v| s.send(v).unwrap()),
                // The guard is held while it waits for a value.
                (receiver, |r| r.lock().unwrap().recv().ok()),
            );
        }
    });
}
