//! A fiber has whatever a thread has of its own, and keeps it when it moves.
//!
//! A compiler may keep the address of a thread-local over a call that switches; a runtime whose
//! fibers use the worker's thread-locals is therefore wrong as soon as a fiber moves. Here that
//! address belongs to the fiber. These tests move fibers between workers, see with the kernel's
//! own thread id that they did move, and ask whether anything has changed: thread-locals of Rust,
//! keys of pthreads, `errno`, `pthread_self`, `std::thread::current`, the count of panics.
//!
//! Sources: pthreads(7) (what distinct threads have of their own), errno(3), pthread_self(3),
//! pthread_key_create(3).

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use support::kernel::Moves;
use support::{Count, Flag, Host, everywhere, everywhere_alone};

/// Keeps fibers moving until one of them has been seen on two OS threads.
///
/// Equal fibers on equal queues need not move at all. A contended lock makes them: who unlocks
/// wakes the next one on *its* worker. Where there is no second worker there is nothing to see.
#[derive(Default)]
struct Stirrer {
    lock: Mutex<()>,
    moved: Flag,
}

impl Stirrer {
    /// Stirs until some fiber has moved, at least `rounds` times; runs `check` after each.
    fn stir(&self, host: Host, rounds: usize, mut check: impl FnMut()) {
        let limit = Instant::now() + support::timing::GENEROUS;
        let mut moves = Moves::new();
        let mut round = 0;
        while round < rounds || (host.moves() && !self.moved.is_up() && Instant::now() < limit) {
            round += 1;
            // On one worker, and among the kernel's threads, a lock held over a yield stirs nothing.
            if round % 3 == 0 && host.moves() {
                let _guard = self.lock.lock().unwrap();
                host.yield_now();
            } else {
                host.yield_now();
            }
            if moves.look() > 0 {
                self.moved.raise();
            }
            check();
        }
    }

    /// Asserts that the test has shown something: with two workers or more, fibers have moved.
    fn assert_stirred(&self, host: Host) {
        assert!(!host.moves() || self.moved.is_up(), "{host}: no fiber was seen to move");
    }
}

/// What each fiber keeps in its thread-locals; counts how often one is dropped.
#[derive(Default)]
struct Mine {
    values: Vec<usize>,
    dropped: Option<Arc<Count>>,
}

impl Drop for Mine {
    fn drop(&mut self) {
        if let Some(dropped) = &self.dropped {
            dropped.up();
        }
    }
}

thread_local! {
    static MINE: RefCell<Mine> = RefCell::default();
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

#[test]
fn each_of_2000_fibers_sees_only_its_own_thread_locals() {
    const FIBERS: usize = 2000;
    const ROUNDS: usize = 12;
    everywhere_alone(|host| {
        let dropped = Arc::new(Count::new());
        let stirrer = Arc::new(Stirrer::default());
        let all_there = Arc::new(Barrier::new(FIBERS));
        let sums = host.spawn_many(FIBERS, {
            let (dropped, stirrer) = (Arc::clone(&dropped), Arc::clone(&stirrer));
            move |i| {
                MINE.with_borrow_mut(|mine| {
                    assert!(mine.values.is_empty(), "a fresh fiber found another one's values");
                    mine.dropped = Some(Arc::clone(&dropped));
                });
                assert_eq!(NUMBER.get(), 0);
                // From here on all of them are alive together.
                all_there.wait();
                let mut round = 0;
                stirrer.stir(host, ROUNDS, || {
                    MINE.with_borrow_mut(|mine| mine.values.push(i * 1000 + round % ROUNDS));
                    NUMBER.set(NUMBER.get() + 1);
                    round += 1;
                });
                assert_eq!(NUMBER.get(), round);
                MINE.with_borrow(|mine| {
                    let expected = (0..round).map(|round| i * 1000 + round % ROUNDS);
                    assert!(mine.values.iter().copied().eq(expected), "fiber {i} lost values");
                    mine.values[..ROUNDS].iter().sum::<usize>()
                })
            }
        });
        stirrer.assert_stirred(host);
        assert_eq!(dropped.get(), FIBERS, "every destructor runs once, before join returns");
        sums
    });
}

#[test]
fn the_address_of_a_thread_local_holds_over_a_move() {
    everywhere(|host| {
        let stirrer = Arc::new(Stirrer::default());
        let addresses = host.spawn_many(64, {
            let stirrer = Arc::clone(&stirrer);
            move |i| {
                NUMBER.with(|number| {
                    let address = ptr::from_ref(number);
                    number.set(i);
                    stirrer.stir(host, 30, || {
                        // The reference was taken before the moves, the second look is after them.
                        assert_eq!(number.get(), i);
                        assert!(NUMBER.with(|again| ptr::eq(again, address)));
                    });
                    number.get()
                })
            }
        });
        stirrer.assert_stirred(host);
        addresses
    });
}

thread_local! {
    static OUTER: Ending = const { Ending };
    static INNER: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    static REPORT: RefCell<Option<Arc<Mutex<Vec<usize>>>>> = const { RefCell::new(None) };
}

/// Its destructor does what a destructor of a thread-local may do: use another thread-local, take
/// a lock, sleep.
struct Ending;

impl Drop for Ending {
    fn drop(&mut self) {
        let seen = INNER.try_with(|inner| inner.borrow().len());
        thread::sleep(Duration::from_millis(2));
        let _ = REPORT.try_with(|report| {
            if let Some(report) = &*report.borrow() {
                report.lock().unwrap().push(seen.unwrap_or(usize::MAX));
            }
        });
    }
}

#[test]
fn a_thread_locals_destructor_may_wait_and_use_other_thread_locals() {
    everywhere(|host| {
        let report = Arc::new(Mutex::new(Vec::new()));
        host.spawn_many(40, {
            let report = Arc::clone(&report);
            move |_| {
                // Registered first, so destroyed after the ones registered later … unless they
                // need no destructor; the reference run tells.
                OUTER.with(|_| ());
                REPORT.set(Some(Arc::clone(&report)));
                INNER.with_borrow_mut(|inner| inner.extend(["one", "two"]));
                host.yield_now();
            }
        });
        let mut seen = report.lock().unwrap().clone();
        seen.sort_unstable();
        seen
    });
}

#[test]
fn thread_locals_of_a_panicking_fiber_are_destroyed_too() {
    everywhere(|host| {
        let dropped = Arc::new(Count::new());
        for _ in 0..20 {
            let dropped = Arc::clone(&dropped);
            let task = host.spawn(move || {
                MINE.with_borrow_mut(|mine| mine.dropped = Some(dropped));
                host.yield_now();
                std::panic::resume_unwind(Box::new(()));
            });
            assert!(task.join().is_err());
        }
        dropped.get()
    });
}

#[test]
fn thread_current_is_distinct_and_stable() {
    everywhere(|host| {
        let stirrer = Arc::new(Stirrer::default());
        let all_there = Arc::new(Barrier::new(200));
        let ids = host.spawn_many(200, {
            let stirrer = Arc::clone(&stirrer);
            move |_| {
                let id = thread::current().id();
                all_there.wait();
                stirrer.stir(host, 30, || assert_eq!(thread::current().id(), id));
                id
            }
        });
        stirrer.assert_stirred(host);
        ids.into_iter().collect::<HashSet<_>>().len()
    });
}

#[test]
fn pthread_self_is_distinct_and_stable() {
    everywhere(|host| {
        let stirrer = Arc::new(Stirrer::default());
        let all_there = Arc::new(Barrier::new(200));
        let ids = host.spawn_many(200, {
            let stirrer = Arc::clone(&stirrer);
            move |_| {
                // SAFETY: pthread_self(3) takes nothing and always succeeds.
                let own = || unsafe { libc::pthread_self() };
                let id = own();
                // Ids may be used again after a thread has ended; none ends before all are there.
                all_there.wait();
                stirrer.stir(host, 30, || assert_eq!(own(), id));
                id
            }
        });
        stirrer.assert_stirred(host);
        ids.into_iter().collect::<HashSet<_>>().len()
    });
}

/// The caller's `errno`.
fn errno() -> *mut libc::c_int {
    // SAFETY: errno(3): every thread has one, for as long as it lives.
    unsafe { libc::__errno_location() }
}

#[test]
fn errno_is_kept_over_a_move() {
    everywhere(|host| {
        let stirrer = Arc::new(Stirrer::default());
        let last = host.spawn_many(100, {
            let stirrer = Arc::clone(&stirrer);
            move |i| {
                let location = errno();
                let value = 1000 + i as libc::c_int;
                let mut held = true;
                stirrer.stir(host, 30, || {
                    // SAFETY: this fiber's own errno, see `errno`.
                    unsafe { *errno() = value };
                    host.yield_now();
                    // SAFETY: as above. The location taken before the first switch is read too.
                    held &= unsafe { *errno() == value && *location == value };
                });
                assert_eq!(location, errno(), "the location itself is the fiber's");
                held
            }
        });
        stirrer.assert_stirred(host);
        last
    });
}

#[test]
fn a_failed_call_sets_the_errno_of_its_own_fiber() {
    everywhere(|host| {
        host.spawn_many(50, move |i| {
            (0..20).all(|_| {
                // SAFETY: close(2) and dup(2) of a number that is no descriptor touch nothing.
                let expected = unsafe {
                    if i % 2 == 0 {
                        libc::close(-1);
                        libc::EBADF
                    } else {
                        libc::lseek(-1, 0, 12345);
                        libc::EBADF
                    }
                };
                host.yield_now();
                // SAFETY: this fiber's own errno.
                unsafe { *errno() == expected }
            })
        })
    });
}

/// Counts the destructions of a value of `pthread_setspecific`.
unsafe extern "C" fn destroy_counted(value: *mut libc::c_void) {
    // SAFETY: the value was made by `Arc::into_raw` and the key's destructor runs once per value.
    let count = unsafe { Arc::from_raw(value.cast::<Count>()) };
    count.up();
}

#[test]
fn pthread_keys_are_per_fiber_and_destroyed_at_its_end() {
    everywhere(|host| {
        let mut key: libc::pthread_key_t = 0;
        // SAFETY: pthread_key_create(3) writes the key and keeps the address of the function.
        assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(destroy_counted)) }, 0);
        let destroyed = Arc::new(Count::new());
        let stirrer = Arc::new(Stirrer::default());
        host.spawn_many(300, {
            let (destroyed, stirrer) = (Arc::clone(&destroyed), Arc::clone(&stirrer));
            move |_| {
                // SAFETY: the key lives until all fibers have been joined.
                let get = || unsafe { libc::pthread_getspecific(key) };
                assert!(get().is_null(), "a fresh fiber has no value");
                let value = Arc::into_raw(Arc::clone(&destroyed));
                // SAFETY: as above; the destructor takes the count over.
                assert_eq!(unsafe { libc::pthread_setspecific(key, value.cast()) }, 0);
                stirrer.stir(host, 20, || assert!(ptr::eq(get().cast(), value)));
            }
        });
        stirrer.assert_stirred(host);
        // SAFETY: pthread_key_delete(3): nobody uses the key any more.
        assert_eq!(unsafe { libc::pthread_key_delete(key) }, 0);
        (destroyed.get(), Arc::strong_count(&destroyed))
    });
}

/// Yields while it is dropped by an unwinding stack.
struct YieldsInUnwinding(Host, Arc<Flag>);

impl Drop for YieldsInUnwinding {
    fn drop(&mut self) {
        self.1.raise();
        for _ in 0..50 {
            self.0.yield_now();
            assert!(thread::panicking(), "this one is");
        }
        self.1.lower();
    }
}

#[test]
fn a_fiber_that_waits_while_it_unwinds_panics_alone() {
    everywhere(|host| {
        let unwinding = Arc::new(Flag::new());
        let panicker = host.spawn({
            let unwinding = Arc::clone(&unwinding);
            move || {
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    let _guard = YieldsInUnwinding(host, unwinding);
                    std::panic::resume_unwind(Box::new("unwinds"));
                }));
                (caught.is_err(), thread::panicking())
            }
        });
        let others = host.spawn_many(8, move |_| {
            (0..200).all(|_| {
                host.yield_now();
                !thread::panicking()
            })
        });
        (panicker.value(), others, unwinding.is_up())
    });
}

#[test]
fn a_thread_local_is_initialised_once_per_fiber() {
    thread_local! {
        static STARTED: Instant = Instant::now();
        static LAZY: usize = {
            INITIALISED.with_borrow_mut(|count| *count += 1);
            // An initialiser may wait: nobody else can be in this one.
            thread::sleep(Duration::from_millis(1));
            thread::yield_now();
            42
        };
        static INITIALISED: RefCell<usize> = const { RefCell::new(0) };
    }
    everywhere(|host| {
        host.spawn_many(100, move |_| {
            let started = STARTED.with(|started| *started);
            let mut sum = 0;
            for _ in 0..5 {
                sum += LAZY.with(|value| *value);
                host.yield_now();
            }
            assert_eq!(STARTED.with(|again| *again), started);
            (sum, INITIALISED.take())
        })
    });
}

/// What the kernel keeps for each thread is that of the worker, while the fiber is on it: the book's table says of what.
#[test]
fn to_the_kernel_a_fiber_is_its_worker() {
    if sleave::identity().is_err() {
        return;
    }
    let runtime = sleave::Runtime::builder().workers(2).build().unwrap();
    let fibers: Vec<_> = (0..20)
        .map(|_| {
            runtime.spawn(|| {
                sleave::pin(0).unwrap();
                // SAFETY: gettid(2), getpriority(2), sched_getcpu(3), sigaltstack(2), clock_gettime(2) with places of ours.
                let (thread, priority, cpus) = unsafe {
                    let thread = libc::syscall(libc::SYS_gettid) as usize;
                    let mut cpus = std::mem::zeroed::<libc::cpu_set_t>();
                    let size = size_of::<libc::cpu_set_t>();
                    assert_eq!(libc::sched_getaffinity(0, size, &mut cpus), 0);
                    (thread, libc::getpriority(libc::PRIO_PROCESS, 0), libc::CPU_COUNT(&cpus))
                };
                assert!(std::path::Path::new(&format!("/proc/self/task/{thread}")).exists());
                // The clock is that of all fibers of the worker: it has run before this one.
                let clock = || {
                    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                    // SAFETY: clock_gettime(2).
                    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
                    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
                };
                let begun = clock();
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_millis(2) {
                    std::hint::spin_loop();
                }
                (thread, priority, cpus, begun, clock())
            })
        })
        .collect();
    let seen: Vec<_> = fibers.into_iter().map(|fiber| fiber.join().unwrap()).collect();
    let threads: HashSet<_> = seen.iter().map(|fiber| fiber.0).collect();
    assert_eq!(threads.len(), 1, "one worker, one thread of the kernel's");
    assert!(seen.iter().all(|fiber| (fiber.1, fiber.2) == (seen[0].1, seen[0].2)));
    // Each goes on where another has left off.
    let mut spans: Vec<_> = seen.iter().map(|fiber| (fiber.3, fiber.4)).collect();
    spans.sort_unstable();
    assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{spans:?}");
    runtime.stop();
}
