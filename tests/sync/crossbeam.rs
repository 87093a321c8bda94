//! `crossbeam-channel` and `crossbeam-utils`, unmodified: thread-local contexts, `thread::park`
//! with deadlines, spinning before waiting.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{
    RecvTimeoutError, SendTimeoutError, after, bounded, never, select, tick, unbounded,
};
use crossbeam_utils::sync::{Parker, WaitGroup};

use crate::support::timing::{GENEROUS, assert_prompt, assert_waits};
use crate::support::{Count, Flag, everywhere};

#[test]
fn a_zero_channel_is_a_rendezvous() {
    everywhere(|host| {
        let (sender, receiver) = bounded(0);
        let sent = Arc::new(Flag::new());
        let task = host.spawn({
            let sent = Arc::clone(&sent);
            move || {
                sender.send(0).unwrap();
                sent.raise();
                (1..1000).for_each(|i| sender.send(i).unwrap());
            }
        });
        thread::sleep(Duration::from_millis(30));
        // Nobody has received: the send cannot have returned.
        let early = sent.is_up();
        let received: Vec<i32> = receiver.iter().collect();
        task.value();
        (early, received)
    });
}

#[test]
fn many_producers_and_consumers_share_bounded_and_unbounded_channels() {
    everywhere(|host| {
        for capacity in [Some(0), Some(1), Some(16), None] {
            let (sender, receiver) = capacity.map_or_else(unbounded, bounded);
            let consumers: Vec<_> = (0..10)
                .map(|_| {
                    let receiver = receiver.clone();
                    host.spawn(move || receiver.iter().sum::<usize>())
                })
                .collect();
            drop(receiver);
            host.spawn_many(20, move |i| {
                for value in 0..200 {
                    sender.send(i * 200 + value).unwrap();
                }
            });
            let sum: usize = consumers.into_iter().map(|consumer| consumer.value()).sum();
            assert_eq!(sum, (0..4000).sum(), "capacity {capacity:?}");
        }
    });
}

#[test]
fn select_receives_from_whichever_is_ready() {
    everywhere(|host| {
        let (numbers, number) = bounded(0);
        let (words, word) = bounded::<&str>(4);
        let (ends, end) = unbounded::<()>();
        let other_ends = ends.clone();
        // `ends` is dropped by the last of the two feeders, and nothing is ever sent on it.
        host.spawn(move || {
            (1..=300).for_each(|i: usize| numbers.send(i).unwrap());
            drop(ends);
        });
        host.spawn(move || {
            (0..200).for_each(|_| words.send("four").unwrap());
            drop(other_ends);
        });
        let listener = host.spawn(move || {
            let (mut sum, mut length, mut ended) = (0, 0, false);
            let (mut number, mut word, mut end) = (number, word, end);
            let mut open = 3;
            while open > 0 {
                select! {
                    recv(number) -> value => match value {
                        Ok(value) => sum += value,
                        Err(_) => (number, open) = (never(), open - 1),
                    },
                    recv(word) -> value => match value {
                        Ok(value) => length += value.len(),
                        Err(_) => (word, open) = (never(), open - 1),
                    },
                    recv(end) -> _ => (end, ended, open) = (never(), true, open - 1),
                }
            }
            (sum, length, ended)
        });
        listener.value()
    });
}

#[test]
fn select_sends_to_whoever_receives() {
    everywhere(|host| {
        let (left, from_left) = bounded(0);
        let (right, from_right) = bounded(0);
        let takers = [from_left, from_right].map(|channel| {
            host.spawn(move || {
                let mut taken = Vec::new();
                for value in channel {
                    taken.push(value);
                    host.yield_now();
                }
                taken
            })
        });
        for value in 0..1000 {
            select! {
                send(left, value) -> result => result.unwrap(),
                send(right, value) -> result => result.unwrap(),
            }
        }
        drop((left, right));
        let mut all: Vec<i32> = takers.into_iter().flat_map(|taker| taker.value()).collect();
        all.sort_unstable();
        all.into_iter().eq(0..1000)
    });
}

#[test]
fn crossbeam_timeouts_are_precise() {
    everywhere(|host| {
        let asked = Duration::from_millis(30);
        let (sender, receiver) = bounded::<u8>(0);
        assert_waits(host, asked, || {
            assert_eq!(receiver.recv_timeout(asked), Err(RecvTimeoutError::Timeout));
        });
        assert_waits(host, asked, || {
            assert_eq!(sender.send_timeout(9, asked), Err(SendTimeoutError::Timeout(9)));
        });
        assert_waits(host, asked, || {
            select! {
                recv(receiver) -> _ => panic!("nobody sends"),
                default(asked) => {}
            }
        });
        assert_waits(host, asked, || {
            let start = Instant::now();
            assert!(after(asked).recv().unwrap() >= start);
        });
    });
}

#[test]
fn ticks_come_at_their_rate() {
    everywhere(|host| {
        let period = Duration::from_millis(10);
        assert_waits(host, 5 * period, || {
            let ticker = tick(period);
            for _ in 0..5 {
                ticker.recv().unwrap();
            }
        });
    });
}

#[test]
fn a_select_with_a_deadline_is_woken_before_it() {
    everywhere(|host| {
        let (sender, receiver) = bounded(1);
        let task = host.spawn(move || {
            assert_prompt(GENEROUS, || {
                select! {
                    recv(receiver) -> value => value.unwrap(),
                    default(GENEROUS * 2) => 0,
                }
            })
        });
        thread::sleep(Duration::from_millis(20));
        sender.send(77).unwrap();
        task.value()
    });
}

#[test]
fn a_parker_keeps_one_token() {
    everywhere(|host| {
        let asked = Duration::from_millis(20);
        let parker = Parker::new();
        let unparker = parker.unparker().clone();
        unparker.unpark();
        unparker.unpark();
        parker.park();
        assert_waits(host, asked, || parker.park_timeout(asked));
        let task = host.spawn(move || {
            thread::sleep(Duration::from_millis(10));
            unparker.unpark();
        });
        parker.park();
        task.value();
    });
}

#[test]
fn a_wait_group_waits_for_all() {
    everywhere(|host| {
        let (group, done) = (WaitGroup::new(), Arc::new(Count::new()));
        for i in 0..200 {
            let (group, done) = (group.clone(), Arc::clone(&done));
            // Nobody joins these.
            drop(host.spawn(move || {
                if i % 10 == 0 {
                    thread::sleep(Duration::from_millis(5));
                }
                done.up();
                drop(group);
            }));
        }
        group.wait();
        done.get()
    });
}
