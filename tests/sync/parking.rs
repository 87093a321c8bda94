//! `thread::park`, `thread::sleep`, `thread::yield_now`: waiting for oneself, a time, or the rest.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::timing::{GENEROUS, assert_prompt, assert_waits};
use crate::support::{Count, Flag, everywhere};

#[test]
fn a_token_given_before_is_kept_and_there_is_only_one() {
    everywhere(|host| {
        let asked = Duration::from_millis(30);
        let task = host.spawn(move || {
            let me = thread::current();
            me.unpark();
            me.unpark();
            assert_prompt(GENEROUS, || {
                thread::park();
                me.unpark();
                thread::park_timeout(GENEROUS * 2);
            });
            // No token is left, and nobody else knows this thread: only the time ends this.
            assert_waits(host, asked, || thread::park_timeout(asked));
        });
        task.value();
    });
}

#[test]
fn two_fibers_park_and_unpark_each_other() {
    everywhere(|host| {
        const ROUNDS: usize = 1000;
        let ball = Arc::new(Count::new());
        // Each sends the other its own `Thread`, then moves the ball on when it is its turn.
        let (to_even, from_odd) = mpsc::channel::<thread::Thread>();
        let (to_odd, from_even) = mpsc::channel::<thread::Thread>();
        let player =
            |ball: Arc<Count>, parity, introduce: mpsc::Sender<_>, other: mpsc::Receiver<_>| {
                host.spawn(move || {
                    introduce.send(thread::current()).unwrap();
                    let other: thread::Thread = other.recv().unwrap();
                    for round in 0..ROUNDS {
                        while ball.get() != 2 * round + parity {
                            thread::park();
                        }
                        ball.up();
                        other.unpark();
                    }
                })
            };
        let even = player(Arc::clone(&ball), 0, to_odd, from_odd);
        let odd = player(Arc::clone(&ball), 1, to_even, from_even);
        even.value();
        odd.value();
        ball.get()
    });
}

#[test]
fn an_os_thread_unparks_a_fiber() {
    everywhere(|host| {
        let (hand, parked) = mpsc::channel::<(thread::Thread, Arc<Flag>)>();
        let outside = thread::spawn(move || {
            for (thread, flag) in parked {
                flag.raise();
                thread.unpark();
            }
        });
        let woken = host.spawn_many(50, move |_| {
            let flag = Arc::new(Flag::new());
            hand.send((thread::current(), Arc::clone(&flag))).unwrap();
            while !flag.is_up() {
                thread::park();
            }
        });
        outside.join().unwrap();
        woken.len()
    });
}

#[test]
fn a_sleep_is_never_early_and_not_absurdly_late() {
    everywhere(|host| {
        for micros in [0, 1, 300, 1_000, 12_345, 100_000] {
            let asked = Duration::from_micros(micros);
            assert_waits(host, asked, || thread::sleep(asked));
        }
    });
}

#[test]
fn a_hundred_sleeps_of_100_ms_overlap() {
    everywhere(|host| {
        // One after the other they take 10 s.
        assert_prompt(Duration::from_secs(5), || {
            host.spawn_many(100, |_| thread::sleep(Duration::from_millis(100)))
        });
    });
}

#[test]
fn a_thousand_sleeps_overlap_and_none_ends_early() {
    everywhere(|host| {
        // One after the other they take 150 s.
        assert_prompt(GENEROUS, || {
            host.spawn_many(1000, |i| {
                let asked = Duration::from_millis(100 + (i as u64 * 37) % 101);
                let start = Instant::now();
                thread::sleep(asked);
                start.elapsed() >= asked
            })
        })
    });
}

#[test]
fn sleepers_wake_in_the_order_of_their_deadlines() {
    everywhere(|host| {
        // Spawned in a scrambled order, 20 ms apart. A stall of the machine can make two of them
        // due at once, and then two workers may swap them: one try in order is asked for.
        let in_order = || {
            let woken = Arc::new(Mutex::new(Vec::new()));
            let start = Instant::now();
            host.spawn_many(8, {
                let woken = Arc::clone(&woken);
                move |i| {
                    let deadline = Duration::from_millis(20 * (1 + (i as u64 * 5) % 8));
                    thread::sleep(deadline.saturating_sub(start.elapsed()));
                    woken.lock().unwrap().push(deadline);
                }
            });
            let woken = woken.lock().unwrap();
            woken.is_sorted()
        };
        (0..20).any(|_| in_order())
    });
}

#[test]
fn std_yield_now_lets_the_others_run() {
    everywhere(|host| {
        // On one worker the flag can only be raised if the spinning fiber really steps aside.
        let flag = Arc::new(Flag::new());
        let spinner = host.spawn({
            let flag = Arc::clone(&flag);
            move || {
                while !flag.is_up() {
                    thread::yield_now();
                }
            }
        });
        let raiser = host.spawn(move || {
            for _ in 0..10 {
                thread::yield_now();
            }
            flag.raise();
        });
        raiser.value();
        spinner.value();
    });
}

#[test]
fn fibers_that_yield_do_not_starve_a_sleeper() {
    everywhere(|host| {
        let stop = Arc::new(Flag::new());
        let spinners: Vec<_> = (0..8)
            .map(|_| {
                let stop = Arc::clone(&stop);
                host.spawn(move || {
                    while !stop.is_up() {
                        host.yield_now();
                    }
                })
            })
            .collect();
        assert_prompt(GENEROUS, || {
            for _ in 0..20 {
                thread::sleep(Duration::from_millis(2));
            }
        });
        stop.raise();
        spinners.into_iter().for_each(|spinner| spinner.value());
    });
}
