//! Read-write locks: readers together, writers alone, and who is next.

use std::sync::Arc;
use std::time::Duration;

use crate::objects::{Barrier, RwLock, at};
use crate::support::timing::eventually;
use crate::support::{Count, Host, everywhere};

const KINDS: [i32; 3] = [0, 1, 2];
/// `PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP`
const WRITERS_FIRST: i32 = 2;

#[test]
fn readers_share_and_a_writer_excludes() {
    everywhere(|host| {
        KINDS.map(|kind| {
            // Readers meet inside: they would wait for ever if one excluded another.
            let shared = Arc::new((RwLock::of_kind(kind), Barrier::of(2)));
            host.spawn_many(2, {
                let shared = Arc::clone(&shared);
                move |_| {
                    shared.0.read();
                    shared.1.wait();
                    shared.0.unlock();
                }
            });
            let shared = Arc::new((RwLock::of_kind(kind), Count::new(), Count::new()));
            let torn: usize = host
                .spawn_many(20, {
                    let shared = Arc::clone(&shared);
                    move |i| {
                        let (lock, one, other) = &*shared;
                        let mut torn = 0;
                        for round in 0..30 {
                            if (i + round) % 4 == 0 {
                                assert_eq!(lock.write(), 0);
                                one.up();
                                host.yield_now();
                                other.up();
                            } else {
                                assert_eq!(lock.read(), 0);
                                let seen = one.get();
                                host.yield_now();
                                torn += usize::from(seen != other.get());
                            }
                            assert_eq!(lock.unlock(), 0);
                        }
                        torn
                    }
                })
                .into_iter()
                .sum();
            (torn, shared.1.get(), shared.2.get())
        })
    });
}

#[test]
fn a_writer_knows_its_own_deadlock() {
    everywhere(|host| {
        let lock = Arc::new(RwLock::of_kind(0));
        let soon = at(libc::CLOCK_REALTIME, Duration::from_secs(1));
        let mine = [
            lock.write(),
            lock.write(),
            lock.read(),
            lock.timed_write(&soon),
            lock.try_read(),
            lock.try_write(),
        ];
        let other = Arc::clone(&lock);
        let others = host.spawn(move || [other.try_read(), other.try_write()]).value();
        (mine, others, lock.unlock(), lock.destroy())
    });
}

/// One holds the lock as a reader, a writer waits; may another reader get in?
fn reader_beside_waiting_writer(host: Host, kind: i32) -> (i32, i32) {
    let shared = Arc::new((RwLock::of_kind(kind), Count::new()));
    let (lock, stage) = &*shared;
    lock.read();
    let writer = host.spawn({
        let shared = Arc::clone(&shared);
        move || {
            shared.1.up();
            let code = shared.0.write();
            shared.0.unlock();
            code
        }
    });
    eventually("the writer comes", || stage.get() == 1);
    // It waits soon after. A reader that is not kept out leaves again, until one is.
    let mut code = 0;
    for _ in 0..if kind == WRITERS_FIRST { 10_000 } else { 20 } {
        code = lock.try_read();
        if code != 0 {
            break;
        }
        lock.unlock();
        std::thread::sleep(Duration::from_millis(1));
    }
    lock.unlock();
    (code, writer.value())
}

#[test]
fn a_waiting_writer_keeps_readers_out_only_if_it_is_preferred() {
    everywhere(|host| KINDS.map(|kind| reader_beside_waiting_writer(host, kind)));
}

#[test]
fn readers_that_stood_back_get_in_when_the_writer_gives_up() {
    everywhere(|host| {
        let shared = Arc::new((RwLock::of_kind(WRITERS_FIRST), Count::new()));
        let (lock, stage) = &*shared;
        lock.read();
        let writer = host.spawn({
            let shared = Arc::clone(&shared);
            move || {
                shared.1.up();
                shared.0.timed_write(&at(libc::CLOCK_REALTIME, Duration::from_millis(60)))
            }
        });
        eventually("the writer comes", || stage.get() == 1);
        // These come while it waits, or after: they must all get in while the first still reads.
        let readers = host.spawn_many(10, {
            let shared = Arc::clone(&shared);
            move |_| (shared.0.read(), shared.0.unlock())
        });
        let writer = writer.value();
        (readers, writer, lock.unlock(), lock.try_write())
    });
}

#[test]
fn a_stream_of_readers_does_not_starve_a_preferred_writer() {
    everywhere(|host| {
        let shared = Arc::new((RwLock::of_kind(WRITERS_FIRST), Count::new()));
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let shared = Arc::clone(&shared);
                host.spawn(move || {
                    while shared.1.get() == 0 {
                        shared.0.read();
                        host.yield_now();
                        shared.0.unlock();
                    }
                })
            })
            .collect();
        let code = shared.0.write();
        shared.1.up();
        shared.0.unlock();
        readers.into_iter().for_each(|reader| reader.value());
        code
    });
}

#[test]
fn a_stream_of_writers_does_not_starve_readers() {
    // A writer hands over to readers that wait, so each reader gets in by the next unlock.
    everywhere(|host| {
        let shared = Arc::new((RwLock::of_kind(0), Count::new()));
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let shared = Arc::clone(&shared);
                host.spawn(move || {
                    while shared.1.get() < 4 {
                        shared.0.write();
                        host.yield_now();
                        shared.0.unlock();
                    }
                })
            })
            .collect();
        host.spawn_many(4, {
            let shared = Arc::clone(&shared);
            move |_| {
                for _ in 0..20 {
                    shared.0.read();
                    shared.0.unlock();
                }
                shared.1.up();
            }
        });
        writers.into_iter().for_each(|writer| writer.value());
        shared.0.try_write()
    });
}
