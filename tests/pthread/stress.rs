//! Thousands of fibers, and threads beside them, in every kind of object at once: nothing is
//! lost, nobody is where somebody else is.

use std::sync::Arc;
use std::time::Duration;
use std::{cell::UnsafeCell, thread};

use crate::objects::{Barrier, Cond, Mutex, RwLock, Semaphore, at};
use crate::support::{Count, on_fibers_alone, scaled};

/// How many fibers.
fn crowd() -> usize {
    scaled(10_000)
}

const THREADS: usize = 4;

/// Runs `f` on `n` fibers and on [`THREADS`] threads.
fn mixed(host: crate::support::Host, n: usize, f: impl Fn(usize) + Send + Clone + 'static) {
    let threads: Vec<_> = (0..THREADS)
        .map(|i| {
            let f = f.clone();
            thread::spawn(move || f(n + i))
        })
        .collect();
    host.spawn_many(n, f);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A number that only the object under test protects.
struct Bare(UnsafeCell<usize>);

// SAFETY: what the tests below are about.
unsafe impl Sync for Bare {}
// SAFETY: as above.
unsafe impl Send for Bare {}

impl Bare {
    const fn new() -> Bare {
        Bare(UnsafeCell::new(0))
    }

    /// Adds one in two steps, with `between` in between.
    fn up(&self, between: impl FnOnce()) {
        // SAFETY: exclusive, if the object under test is right; a volatile read and write, so that
        // a lost one is seen.
        let value = unsafe { self.0.get().read_volatile() };
        between();
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(value + 1) };
    }

    fn get(&self) -> usize {
        // SAFETY: as above.
        unsafe { self.0.get().read_volatile() }
    }
}

#[test]
fn a_mutex_loses_no_increment() {
    on_fibers_alone(|host| {
        for kind in 0..4 {
            let shared = Arc::new((Mutex::of_type(kind), Bare::new()));
            mixed(host, crowd(), {
                let shared = Arc::clone(&shared);
                move |i| {
                    for round in 0..4 {
                        let (mutex, number) = &*shared;
                        match (i + round) % 5 {
                            0 => {
                                while mutex.try_lock() != 0 {
                                    host.yield_now();
                                }
                            }
                            1 => {
                                let soon = at(libc::CLOCK_REALTIME, Duration::from_millis(2));
                                while mutex.timed_lock(&soon) != 0 {
                                    host.yield_now();
                                }
                            }
                            _ => assert_eq!(mutex.lock(), 0),
                        }
                        number.up(|| {
                            if i % 64 == 0 {
                                host.yield_now();
                            }
                        });
                        assert_eq!(mutex.unlock(), 0);
                    }
                }
            });
            assert_eq!(shared.1.get(), 4 * (crowd() + THREADS));
        }
    });
}

#[test]
fn a_queue_of_conditions_loses_and_doubles_nothing() {
    on_fibers_alone(|host| {
        struct Queue {
            mutex: Mutex,
            filled: Cond,
            emptied: Cond,
            items: std::sync::Mutex<std::collections::VecDeque<usize>>,
            sum: Count,
        }
        const ROOM: usize = 16;
        let n = crowd() / 2;
        let queue = Arc::new(Queue {
            mutex: Mutex::initializer(),
            filled: Cond::new(),
            emptied: Cond::with(libc::CLOCK_MONOTONIC, 0),
            items: std::sync::Mutex::new(std::collections::VecDeque::new()),
            sum: Count::new(),
        });
        // Never contended: the pthread mutex is around it.
        let len = |queue: &Queue| queue.items.try_lock().expect("exclusive").len();
        let all = n + THREADS / 2;
        let put = {
            let queue = Arc::clone(&queue);
            move |i: usize| {
                queue.mutex.lock();
                while len(&queue) == ROOM {
                    if i.is_multiple_of(3) {
                        let soon = at(libc::CLOCK_MONOTONIC, Duration::from_millis(1));
                        queue.emptied.timed_wait(&queue.mutex, &soon);
                    } else {
                        queue.emptied.wait(&queue.mutex);
                    }
                }
                queue.items.try_lock().expect("exclusive").push_back(i);
                queue.filled.signal();
                queue.mutex.unlock();
            }
        };
        let get = {
            let queue = Arc::clone(&queue);
            move |_: usize| {
                queue.mutex.lock();
                while len(&queue) == 0 {
                    queue.filled.wait(&queue.mutex);
                }
                let item = queue.items.try_lock().expect("exclusive").pop_front();
                queue.mutex.unlock();
                queue.emptied.signal();
                queue.sum.add(item.expect("one"));
            }
        };
        mixed(host, 2 * n, move |i| if i.is_multiple_of(2) { put(i / 2) } else { get(i) });
        assert_eq!(queue.sum.get(), all * (all - 1) / 2);
        assert_eq!(len(&queue), 0);
    });
}

#[test]
fn readers_never_see_half_a_write() {
    on_fibers_alone(|host| {
        for kind in 0..3 {
            let shared = Arc::new((RwLock::of_kind(kind), Bare::new(), Bare::new()));
            mixed(host, crowd(), {
                let shared = Arc::clone(&shared);
                move |i| {
                    let (lock, one, other) = &*shared;
                    for round in 0..3 {
                        let soon = at(libc::CLOCK_REALTIME, Duration::from_millis(1));
                        if (i + round) % 8 == 0 {
                            if i % 3 == 0 {
                                while lock.timed_write(&soon) != 0 {
                                    host.yield_now();
                                }
                            } else {
                                assert_eq!(lock.write(), 0);
                            }
                            one.up(|| {
                                if i % 64 == 0 {
                                    host.yield_now();
                                }
                            });
                            other.up(|| {});
                        } else {
                            if i % 3 == 0 {
                                while lock.timed_read(&soon) != 0 {
                                    host.yield_now();
                                }
                            } else {
                                assert_eq!(lock.read(), 0);
                            }
                            assert_eq!(one.get(), other.get());
                        }
                        assert_eq!(lock.unlock(), 0);
                    }
                }
            });
            assert_eq!(shared.0.try_write(), 0, "free in the end");
        }
    });
}

#[test]
fn barriers_of_thousands_have_one_serial_member_a_round() {
    on_fibers_alone(|host| {
        let members = crowd() + THREADS;
        let shared = Arc::new((Barrier::of(members as u32), Count::new(), Count::new()));
        mixed(host, crowd(), {
            let shared = Arc::clone(&shared);
            move |_| {
                for round in 1..=5 {
                    shared.1.up();
                    if shared.0.wait() == libc::PTHREAD_BARRIER_SERIAL_THREAD {
                        shared.2.up();
                    }
                    assert!(shared.1.get() >= round * members, "left before all had come");
                }
            }
        });
        assert_eq!(shared.2.get(), 5);
        assert_eq!(shared.0.destroy(), 0);
    });
}

#[test]
fn a_semaphore_of_one_excludes() {
    on_fibers_alone(|host| {
        let shared = Arc::new((Semaphore::of(1), Bare::new()));
        mixed(host, crowd(), {
            let shared = Arc::clone(&shared);
            move |i| {
                for _ in 0..4 {
                    if i % 3 == 0 {
                        let soon = || at(libc::CLOCK_REALTIME, Duration::from_millis(2));
                        while shared.0.timed_wait(&soon()) != 0 {}
                    } else {
                        assert_eq!(shared.0.wait(), 0);
                    }
                    shared.1.up(|| {
                        if i % 64 == 0 {
                            host.yield_now();
                        }
                    });
                    assert_eq!(shared.0.post(), 0);
                }
            }
        });
        assert_eq!(shared.1.get(), 4 * (crowd() + THREADS));
        assert_eq!(shared.0.value(), 1);
    });
}
