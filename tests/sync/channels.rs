//! `std::sync::mpsc`: rendezvous, bounded, unbounded, timeouts, disconnection.

use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::timing::{GENEROUS, assert_prompt, assert_waits};
use crate::support::{Flag, everywhere};

#[test]
fn a_rendezvous_keeps_the_sender_until_it_is_received() {
    everywhere(|host| {
        let (sender, receiver) = mpsc::sync_channel(0);
        let sent = Arc::new(Flag::new());
        let task = host.spawn({
            let sent = Arc::clone(&sent);
            move || {
                sender.send(1).unwrap();
                sent.raise();
                for i in 2..500 {
                    sender.send(i).unwrap();
                }
            }
        });
        thread::sleep(Duration::from_millis(50));
        // Nobody has received yet: whatever the machine's load, the send cannot have returned.
        let early = sent.is_up();
        let received: Vec<i32> = receiver.iter().collect();
        task.value();
        (early, received, sent.is_up())
    });
}

#[test]
fn a_bounded_channel_fills_and_drains() {
    everywhere(|host| {
        let (sender, receiver) = mpsc::sync_channel(3);
        let tries: Vec<_> = (0..4).map(|i| sender.try_send(i)).collect();
        let full = matches!(tries[3], Err(TrySendError::Full(3)));
        let producers: Vec<_> = (0..10)
            .map(|p| {
                let sender = sender.clone();
                host.spawn(move || {
                    for i in 0..200 {
                        sender.send(1000 * (p + 1) + i).unwrap();
                    }
                })
            })
            .collect();
        drop(sender);
        let received: Vec<i32> = receiver.iter().collect();
        for producer in producers {
            producer.value();
        }
        // Each producer's own values come in its order.
        let in_order = (1..=10).all(|p| {
            let of_p =
                received.iter().filter(|&&value| value / 1000 == p).map(|value| value % 1000);
            of_p.eq(0..200)
        });
        (full, in_order, received.len(), received.iter().sum::<i32>())
    });
}

#[test]
fn an_unbounded_channel_carries_everything_to_its_only_receiver() {
    everywhere(|host| {
        let (sender, receiver) = mpsc::channel();
        let consumer = host.spawn(move || receiver.iter().sum::<usize>());
        host.spawn_many(50, move |i| {
            for value in 0..500 {
                sender.send(value * (i + 1)).unwrap();
                if value % 50 == 0 {
                    host.yield_now();
                }
            }
        });
        consumer.value()
    });
}

#[test]
fn a_receiver_shared_through_a_mutex_gives_each_value_once() {
    everywhere(|host| {
        // The pool of the Rust book: `recv` waits with the guard held.
        let (sender, receiver) = mpsc::channel::<usize>();
        let receiver = Arc::new(Mutex::new(receiver));
        let consumers: Vec<_> = (0..8)
            .map(|_| {
                let receiver = Arc::clone(&receiver);
                host.spawn(move || {
                    let mut sum = 0;
                    while let Ok(value) = { receiver.lock().unwrap().recv() } {
                        sum += value;
                    }
                    sum
                })
            })
            .collect();
        for value in 1..=1000 {
            sender.send(value).unwrap();
            if value % 100 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        drop(sender);
        consumers.into_iter().map(|consumer| consumer.value()).sum::<usize>()
    });
}

#[test]
fn recv_timeout_is_precise_and_tells_timeout_from_disconnection() {
    everywhere(|host| {
        let (sender, receiver) = mpsc::channel::<u8>();
        let asked = Duration::from_millis(40);
        assert_waits(host, asked, || {
            assert_eq!(receiver.recv_timeout(asked), Err(RecvTimeoutError::Timeout));
        });
        let late = host.spawn(move || {
            thread::sleep(Duration::from_millis(20));
            sender.send(5).unwrap();
        });
        let value = assert_prompt(GENEROUS, || receiver.recv_timeout(GENEROUS * 2));
        late.value();
        let gone = assert_prompt(GENEROUS, || receiver.recv_timeout(GENEROUS * 2));
        (value, gone, receiver.try_recv() == Err(TryRecvError::Disconnected))
    });
}

#[test]
fn a_sender_that_waits_learns_that_its_receiver_has_gone() {
    everywhere(|host| {
        let (sender, receiver) = mpsc::sync_channel::<String>(0);
        let task = host.spawn(move || sender.send("mine again".to_owned()));
        thread::sleep(Duration::from_millis(20));
        drop(receiver);
        task.value().unwrap_err().0
    });
}

#[test]
fn a_chain_of_two_hundred_passes_every_token() {
    everywhere(|host| {
        let (first, mut last) = mpsc::sync_channel(0);
        let links: Vec<_> = (0..200)
            .map(|_| {
                let (sender, receiver) = mpsc::sync_channel(0);
                let previous = std::mem::replace(&mut last, receiver);
                host.spawn(move || {
                    for token in previous {
                        sender.send(token + 1).unwrap();
                    }
                })
            })
            .collect();
        let feeder = host.spawn(move || (0..20).for_each(|token| first.send(token).unwrap()));
        let out: Vec<i32> = last.iter().collect();
        feeder.value();
        links.into_iter().for_each(|link| link.value());
        out
    });
}

#[test]
fn values_left_in_a_channel_are_dropped_once() {
    everywhere(|host| {
        let token = Arc::new(());
        let (sender, receiver) = mpsc::sync_channel(100);
        host.spawn_many(10, {
            let token = Arc::clone(&token);
            move |_| (0..10).for_each(|_| sender.send(Arc::clone(&token)).unwrap())
        });
        let full = Arc::strong_count(&token);
        drop(receiver);
        (full, Arc::strong_count(&token))
    });
}
