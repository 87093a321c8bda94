//! OS threads and fibers on the same locks, conditions and channels.
//!
//! A wake-up must reach whoever waits at an address, in the kernel's table or in the fibers' one,
//! and count both. Inside a fiber `std::thread` still makes threads of the kernel.

use std::sync::{Arc, Barrier, Condvar, Mutex, RwLock, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::timing::GENEROUS;
use crate::support::{Count, Flag, everywhere};

/// How many OS threads and how many fibers meet in each test.
const EACH: usize = 8;

/// Spawns `EACH` plain threads beside whatever the body spawns itself.
fn plain_threads<T: Send + 'static>(
    f: impl Fn(usize) -> T + Send + Clone + 'static,
) -> Vec<thread::JoinHandle<T>> {
    (0..EACH)
        .map(|i| {
            let f = f.clone();
            thread::spawn(move || f(i))
        })
        .collect()
}

#[test]
fn threads_and_fibers_share_a_mutex() {
    everywhere(|host| {
        let number = Arc::new(Mutex::new(0));
        let work = {
            let number = Arc::clone(&number);
            move |_| {
                for round in 0..500 {
                    let mut number = number.lock().unwrap();
                    if round % 100 == 0 {
                        let before = *number;
                        thread::sleep(Duration::from_micros(200));
                        *number = before + 1;
                    } else {
                        *number += 1;
                    }
                }
            }
        };
        let outside = plain_threads(work.clone());
        host.spawn_many(EACH, work);
        outside.into_iter().for_each(|thread| thread.join().unwrap());
        *number.lock().unwrap()
    });
}

#[test]
fn threads_and_fibers_take_turns_through_a_condvar() {
    everywhere(|host| {
        const TURNS: usize = 200;
        let shared = Arc::new((Mutex::new(0), Condvar::new()));
        // Even turns are the fibers', odd ones the threads'. `notify_all` must wake both kinds.
        let play = |parity: usize| {
            let shared = Arc::clone(&shared);
            move |_| {
                let mut mine = 0;
                let mut turn = shared.0.lock().unwrap();
                loop {
                    turn = shared
                        .1
                        .wait_while(turn, |turn| *turn < TURNS && *turn % 2 != parity)
                        .unwrap();
                    if *turn >= TURNS {
                        shared.1.notify_all();
                        return mine;
                    }
                    *turn += 1;
                    mine += 1;
                    shared.1.notify_all();
                }
            }
        };
        let outside = plain_threads(play(1));
        let by_fibers: usize = host.spawn_many(EACH, play(0)).into_iter().sum();
        let by_threads: usize = outside.into_iter().map(|thread| thread.join().unwrap()).sum();
        (by_fibers, by_threads)
    });
}

#[test]
fn notify_one_wakes_one_of_both_kinds() {
    everywhere(|host| {
        // As many notifications as waiters: were one counted twice or lost, one would stay.
        let shared = Arc::new((Mutex::new((0, 0)), Condvar::new()));
        let wait = {
            let shared = Arc::clone(&shared);
            move |_: usize| {
                let mut state = shared.0.lock().unwrap();
                state.0 += 1;
                state = shared.1.wait_while(state, |state| state.1 == 0).unwrap();
                state.1 -= 1;
            }
        };
        let outside = plain_threads(wait.clone());
        let inside: Vec<_> = (0..EACH)
            .map(|i| {
                let wait = wait.clone();
                host.spawn(move || wait(i))
            })
            .collect();
        crate::support::timing::eventually("all wait", || shared.0.lock().unwrap().0 == 2 * EACH);
        for _ in 0..2 * EACH {
            shared.0.lock().unwrap().1 += 1;
            shared.1.notify_one();
        }
        outside.into_iter().for_each(|thread| thread.join().unwrap());
        inside.into_iter().for_each(|fiber| fiber.value());
        shared.0.lock().unwrap().1
    });
}

#[test]
fn channels_cross_the_border_both_ways() {
    everywhere(|host| {
        let (to_thread, from_fiber) = mpsc::sync_channel(0);
        let (to_fiber, from_thread) = mpsc::sync_channel(2);
        let outside = thread::spawn(move || {
            for value in from_fiber {
                to_fiber.send(value * 2).unwrap();
            }
        });
        let feeder = host.spawn(move || (0..1000).for_each(|i| to_thread.send(i).unwrap()));
        let sum = host.spawn(move || from_thread.iter().sum::<i32>());
        feeder.value();
        outside.join().unwrap();
        sum.value()
    });
}

#[test]
fn threads_and_fibers_meet_at_barriers_and_rwlocks() {
    everywhere(|host| {
        let barrier = Arc::new(Barrier::new(2 * EACH));
        let lock = Arc::new(RwLock::new(0));
        let work = {
            let lock = Arc::clone(&lock);
            move |i| {
                let mut leaders = 0;
                for round in 0..20 {
                    leaders += usize::from(barrier.wait().is_leader());
                    if round % EACH == i {
                        *lock.write().unwrap() += 1;
                    } else {
                        assert!(*lock.read().unwrap() <= 2 * (round + 1));
                    }
                }
                leaders
            }
        };
        let outside = plain_threads(work.clone());
        let inside: usize = host.spawn_many(EACH, work).into_iter().sum();
        let outside: usize = outside.into_iter().map(|thread| thread.join().unwrap()).sum();
        (inside + outside, *lock.read().unwrap())
    });
}

#[test]
fn a_fiber_joins_an_os_thread_while_the_others_go_on() {
    everywhere(|host| {
        let stop = Arc::new(Flag::new());
        let beats = Arc::new(Count::new());
        let heart = host.spawn({
            let (stop, beats) = (Arc::clone(&stop), Arc::clone(&beats));
            move || {
                while !stop.is_up() {
                    beats.up();
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let joiner = host.spawn({
            let beats = Arc::clone(&beats);
            move || {
                // The thread ends when the other fiber has gone on: on one worker that needs a
                // join that does not hold the worker.
                let thread = thread::spawn(move || {
                    let target = beats.get() + 50;
                    let start = std::time::Instant::now();
                    while beats.get() < target && start.elapsed() < GENEROUS {
                        thread::sleep(Duration::from_millis(1));
                    }
                    beats.get() >= target
                });
                thread.join().unwrap()
            }
        });
        let went_on = joiner.value();
        stop.raise();
        heart.value();
        went_on
    });
}

#[test]
fn a_scope_of_os_threads_inside_a_fiber_borrows_its_stack() {
    everywhere(|host| {
        host.spawn_many(4, move |i| {
            let mut numbers = [i; 16];
            let total = Count::new();
            thread::scope(|scope| {
                for (at, number) in numbers.iter_mut().enumerate() {
                    let total = &total;
                    scope.spawn(move || {
                        *number += at;
                        total.add(*number);
                    });
                }
            });
            (numbers, total.get())
        })
    });
}

#[test]
fn an_os_thread_joins_what_the_host_spawned() {
    everywhere(|host| {
        let tasks: Vec<_> = (0..20)
            .map(|i| {
                host.spawn(move || {
                    thread::sleep(Duration::from_millis(i % 5));
                    i
                })
            })
            .collect();
        let outside = thread::spawn(move || tasks.into_iter().map(|t| t.value()).sum::<u64>());
        outside.join().unwrap()
    });
}

#[test]
fn an_arc_shared_by_both_kinds_is_dropped_once() {
    struct Dropped(Arc<Count>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.up();
        }
    }
    everywhere(|host| {
        let drops = Arc::new(Count::new());
        let shared = Arc::new(Dropped(Arc::clone(&drops)));
        let work = {
            let shared = Arc::clone(&shared);
            move |_| {
                for _ in 0..100 {
                    let mine = Arc::clone(&shared);
                    thread::yield_now();
                    drop(mine);
                }
            }
        };
        let outside = plain_threads(work.clone());
        host.spawn_many(100, work);
        outside.into_iter().for_each(|thread| thread.join().unwrap());
        let left = Arc::strong_count(&shared);
        let early = drops.get();
        drop(shared);
        (left, early, drops.get())
    });
}
