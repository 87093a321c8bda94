//! Green threads in linked form: `std::thread::spawn` gives a fiber when the process asks for it.
//!
//! The switch is the process's, so each test holds it alone. Its body runs on OS threads, then on green threads,
//! and the results must be equal; that these are fibers the body's caller sees by [`sleave::current`].

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "support/mod.rs"]
mod support;

#[allow(dead_code, reason = "its main prints")]
#[path = "../examples/green_threads.rs"]
mod green_threads;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::fmt::Debug;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::thread::JoinHandleExt;
use std::panic::panic_any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use support::{Host, Watchdog};

/// Whoever holds it may turn the switch.
static SWITCH: Mutex<()> = Mutex::new(());

/// Turns the switch, and back.
struct Green(bool);

impl Green {
    fn turn(on: bool) -> Green {
        Green(sleave::green_threads(on))
    }
}

impl Drop for Green {
    fn drop(&mut self) {
        sleave::green_threads(self.0);
    }
}

/// Runs `body` on OS threads and on green threads; both must have the same result.
fn both<T: PartialEq + Debug>(body: impl Fn() -> T) {
    let _switch = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    let _watchdog = Watchdog::over(Host::Threads, support::PATIENCE);
    let threads = {
        let _off = Green::turn(false);
        assert!(!is_fiber());
        body()
    };
    let _on = Green::turn(true);
    assert!(is_fiber() || sleave::identity().is_err(), "threads are made, not fibers");
    assert_eq!(body(), threads);
}

/// What a new thread is.
fn is_fiber() -> bool {
    thread::spawn(|| sleave::current().is_some()).join().unwrap()
}

#[test]
fn spawn_joins_with_the_result() {
    both(|| {
        let threads: Vec<_> = (0..500).map(|i| thread::spawn(move || i * i)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
    });
}

#[test]
fn panic_is_the_joiners() {
    both(|| {
        let payload = thread::spawn(|| panic_any(42)).join().unwrap_err();
        *payload.downcast::<i32>().unwrap()
    });
}

#[test]
fn scope_waits_for_its_threads() {
    both(|| {
        let mut parts = [0; 8];
        thread::scope(|s| {
            for (i, part) in parts.iter_mut().enumerate() {
                s.spawn(move || *part = i + 1);
            }
        });
        parts
    });
}

#[test]
fn builder_names_and_sizes() {
    both(|| {
        let name = thread::Builder::new()
            .name("a name".into())
            .spawn(|| thread::current().name().map(str::to_owned));
        fn deep(n: usize) -> usize {
            let frame = std::hint::black_box([n; 128]);
            if n == 0 { 0 } else { deep(n - 1) + frame[0] / n }
        }
        // Some seven megabytes.
        let depth = thread::Builder::new().stack_size(16 << 20).spawn(|| deep(6000)).unwrap();
        (name.unwrap().join().unwrap(), depth.join().unwrap())
    });
}

#[test]
fn park_and_unpark_find_each_other() {
    both(|| {
        let sleeper = thread::spawn(|| {
            thread::park();
            "unparked"
        });
        sleeper.thread().unpark();
        let start = Instant::now();
        let other = thread::spawn(|| thread::park_timeout(Duration::from_millis(20)));
        other.join().unwrap();
        (sleeper.join().unwrap(), start.elapsed() >= Duration::from_millis(1))
    });
}

#[test]
fn thread_locals_are_each_threads_own_and_end_before_the_join() {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    struct Own(usize);
    impl Drop for Own {
        fn drop(&mut self) {
            ENDED.fetch_add(self.0, Ordering::Relaxed);
        }
    }
    thread_local!(static OWN: RefCell<Option<Own>> = const { RefCell::new(None) });
    both(|| {
        ENDED.store(0, Ordering::Relaxed);
        let threads = (1..=100).map(|i| {
            thread::spawn(move || {
                let before = OWN.replace(Some(Own(i))).is_some();
                thread::yield_now();
                (before, OWN.with_borrow(|own| own.as_ref().unwrap().0))
            })
        });
        let seen: Vec<_> = threads.map(|thread| thread.join().unwrap()).collect();
        (seen, ENDED.load(Ordering::Relaxed))
    });
}

#[test]
fn ids_of_living_threads_differ() {
    both(|| {
        let barrier = Barrier::new(100);
        let ids = Mutex::new(BTreeSet::new());
        thread::scope(|s| {
            for _ in 0..100 {
                s.spawn(|| {
                    // SAFETY: pthread_self(3) cannot fail.
                    ids.lock().unwrap().insert(unsafe { libc::pthread_self() });
                    barrier.wait();
                });
            }
        });
        ids.into_inner().unwrap().len()
    });
}

#[test]
fn channels_locks_and_conditions_meet() {
    both(|| {
        let (send, receive) = mpsc::sync_channel(0);
        let pair = Arc::new((Mutex::new(0), Condvar::new()));
        for i in 0..50 {
            let (send, pair) = (send.clone(), Arc::clone(&pair));
            thread::spawn(move || {
                let (count, all) = &*pair;
                let mut count = count.lock().unwrap();
                *count += 1;
                all.notify_all();
                while *count < 50 {
                    count = all.wait(count).unwrap();
                }
                drop(count);
                send.send(i).unwrap();
            });
        }
        drop(send);
        receive.iter().sum::<i32>()
    });
}

/// A round trip over every kind of pair: who joins, who is joined.
#[test]
fn fibers_and_threads_join_each_other() {
    both(|| {
        let inner = thread::spawn(|| thread::spawn(|| thread::spawn(|| 1).join().unwrap() + 1));
        let from_a_fiber = sleave::spawn(|| thread::spawn(|| 5).join().unwrap()).join().unwrap();
        (inner.join().unwrap().join().unwrap(), from_a_fiber)
    });
}

extern "C" fn joins(other: *mut c_void) -> *mut c_void {
    // SAFETY: pthread_join(3) of a thread that is there until one of the two has been joined.
    let told = unsafe {
        let pair = &*other.cast::<Pair>();
        pair.barrier.wait();
        let own = libc::pthread_self();
        let [a, b] = *pair.ids.lock().unwrap();
        let result = libc::pthread_join(if own == a { b } else { a }, std::ptr::null_mut());
        if result != 0 {
            pair.told.fetch_add(1, Ordering::Relaxed);
        }
        result
    };
    told as usize as *mut c_void
}

struct Pair {
    ids: Mutex<[libc::pthread_t; 2]>,
    barrier: Barrier,
    told: AtomicUsize,
}

/// glibc looks before it says that it joins, and two at once may wait for ever; here one is told, or both are.
#[test]
fn two_that_join_each_other_do_not_both_wait() {
    let _switch = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    if sleave::identity().is_err() {
        return;
    }
    let _watchdog = Watchdog::over(Host::Threads, support::PATIENCE);
    let _on = Green::turn(true);
    for _ in 0..200 {
        let pair =
            Pair { ids: Mutex::new([0; 2]), barrier: Barrier::new(3), told: AtomicUsize::new(0) };
        let argument = (&raw const pair).cast_mut().cast::<c_void>();
        let mut ids = [0; 2];
        for id in &mut ids {
            // SAFETY: pthread_create(3); the pair lives until both have been joined.
            let made = unsafe { libc::pthread_create(id, std::ptr::null(), joins, argument) };
            assert_eq!(made, 0);
        }
        *pair.ids.lock().unwrap() = ids;
        pair.barrier.wait();
        // Whoever is not joined by the other is joined here.
        let results = ids.map(|id| {
            let mut value = std::ptr::null_mut();
            // SAFETY: pthread_join(3); a stale id of a fiber is told so.
            match unsafe { libc::pthread_join(id, &raw mut value) } {
                0 => Some(value as usize as c_int),
                refused => {
                    assert!([libc::EINVAL, libc::ESRCH].contains(&refused), "{refused}");
                    None
                }
            }
        });
        let joined: Vec<_> = results.into_iter().flatten().collect();
        assert!(!joined.is_empty(), "somebody has to be joined here");
        assert!(
            joined.iter().all(|told| [0, libc::EDEADLK, libc::EINVAL, libc::ESRCH].contains(told))
        );
    }
}

#[test]
fn stale_ids_and_fibers_of_rust_are_refused() {
    let _switch = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    if sleave::identity().is_err() {
        return;
    }
    let _on = Green::turn(true);
    // SAFETY: pthread_self(3); pthread_join(3) and its kin are asked for ids that are none, which the runtime
    // knows by their address.
    unsafe {
        let refused = |id| {
            let null = std::ptr::null_mut();
            assert_eq!(libc::pthread_join(id, null), libc::ESRCH);
            assert_eq!(libc::pthread_detach(id), libc::ESRCH);
            assert_eq!(libc::pthread_kill(id, 0), libc::ESRCH);
            assert_eq!(libc::pthread_cancel(id), libc::ESRCH);
        };
        // Of a size that no other thread of this program has, or its slot may be somebody's already.
        let large = thread::Builder::new().stack_size(100 << 20);
        let id = large.spawn(|| libc::pthread_self()).unwrap().join().unwrap();
        refused(id);
        refused(id + 8);
        let (send, receive) = mpsc::channel();
        let fiber = sleave::spawn(move || {
            let own = libc::pthread_self();
            assert_eq!(libc::pthread_join(own, std::ptr::null_mut()), libc::EDEADLK);
            assert_eq!(libc::pthread_cancel(own), libc::ESRCH);
            send.send(own).unwrap();
            sleave::park();
        });
        refused(receive.recv().unwrap());
        fiber.fiber().unpark();
        fiber.join().unwrap();
    }
}

static HANDLED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static HANDLED_HERE: Cell<usize> = const { Cell::new(0) };
}

extern "C" fn count(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
    HANDLED_HERE.set(HANDLED_HERE.get() + 1);
}

/// Threads that talk, lock, sleep and compute, while others send them signals all the time, whose handler lets calls go on: none
/// of them notices, and each handler has run on the thread that was meant.
#[test]
fn a_storm_of_signals_disturbs_nobody() {
    const THREADS: usize = 60;
    const ROUNDS: usize = 200;
    let _switch = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    if sleave::identity().is_err() {
        return;
    }
    let _on = Green::turn(true);
    // SAFETY: sigaction(2): zeroes are an action; the handler does what signal-safety(7) allows: atomics, and a
    // thread-local without a destructor.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = count as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let shared = Arc::new((Mutex::new(0usize), Condvar::new()));
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (mut near, mut far) = UnixStream::pair().unwrap();
                let echo = thread::spawn(move || {
                    let mut byte = [0];
                    while far.read(&mut byte).unwrap() != 0 {
                        far.write_all(&byte).unwrap();
                    }
                });
                for round in 0..ROUNDS {
                    let byte = [(number + round) as u8];
                    near.write_all(&byte).unwrap();
                    let mut back = [0];
                    near.read_exact(&mut back).unwrap();
                    assert_eq!(back, byte);
                    match round % 3 {
                        0 => thread::sleep(Duration::from_micros(200)),
                        1 => {
                            *shared.0.lock().unwrap() += 1;
                            shared.1.notify_all();
                        }
                        _ => {
                            let begin = Instant::now();
                            while begin.elapsed() < Duration::from_micros(50) {}
                        }
                    }
                }
                drop(near);
                echo.join().unwrap();
                // What comes from now on is nobody's.
                // SAFETY: sigemptyset(3), sigaddset(3), pthread_sigmask(3) on a set of ours.
                unsafe {
                    let mut set = std::mem::zeroed();
                    libc::sigemptyset(&mut set);
                    libc::sigaddset(&mut set, libc::SIGUSR1);
                    libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
                }
                HANDLED_HERE.get()
            })
        })
        .collect();
    let ids: Vec<_> = threads.iter().map(JoinHandleExt::as_pthread_t).collect();
    let mut storm = 0;
    while threads.iter().any(|thread| !thread.is_finished()) {
        for &id in &ids {
            // SAFETY: pthread_kill(3) of threads that are joined below.
            assert_eq!(unsafe { libc::pthread_kill(id, libc::SIGUSR1) }, 0);
            storm += 1;
        }
        thread::yield_now();
    }
    let handled: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    // Several that come before the first is handled are one.
    assert!(handled > 0 && handled <= storm, "{handled} of {storm}");
    assert_eq!(handled, HANDLED.load(Ordering::Relaxed), "a handler has run on another thread");
    assert_eq!(
        *shared.0.lock().unwrap(),
        THREADS * (0..ROUNDS).filter(|round| round % 3 == 1).count()
    );
}

#[test]
fn example_tells_of_ten_thousand_threads() {
    let _switch = SWITCH.lock().unwrap_or_else(PoisonError::into_inner);
    if sleave::identity().is_err() {
        return;
    }
    let mut lines = green_threads::story();
    lines.retain(|line| !line.starts_with("this time"));
    assert_eq!(
        lines,
        [
            "threads that were there at once: 10000",
            "that the kernel knows, fewer than 100: true",
            "sum of what they sent: 49995000",
            "sum of what they returned: 45000",
        ]
    );
}

#[test]
fn slots_of_detached_threads_come_back() {
    both(|| {
        let (send, receive) = mpsc::channel();
        for round in 0..20 {
            for i in 0..50 {
                let send = send.clone();
                thread::spawn(move || send.send(round * 50 + i).unwrap());
            }
        }
        drop(send);
        receive.iter().sum::<i32>()
    });
}
