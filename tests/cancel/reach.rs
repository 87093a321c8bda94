//! What a cancelled fiber's waits do.

use std::io::{ErrorKind, Read};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave::event::{Direction, wait_any};

use crate::support::timing::eventually;
use crate::{assert_cancelled, on_runtimes};

/// Counts itself out, wherever it is dropped.
struct Guest(Arc<AtomicUsize>);

impl Guest {
    fn new(count: &Arc<AtomicUsize>) -> Guest {
        count.fetch_add(1, Ordering::SeqCst);
        Guest(Arc::clone(count))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Cancelled when it surely waits, and long before.
fn cancelled_in(wait: fn()) {
    on_runtimes(|runtime| {
        let guests = Arc::new(AtomicUsize::new(0));
        for late in [true, false] {
            let guest = Guest::new(&guests);
            let fiber = runtime.spawn(move || {
                let _guest = guest;
                wait();
            });
            if late {
                eventually("it waits", || runtime.statistics().waiting == 1);
            }
            fiber.cancel();
            assert_cancelled(fiber);
            assert_eq!(guests.load(Ordering::SeqCst), 0, "a destructor has not run");
        }
    });
}

#[test]
fn park_unwinds() {
    cancelled_in(sleave::park);
}

#[test]
fn park_with_a_deadline_unwinds() {
    cancelled_in(|| assert!(sleave::park_timeout(Duration::from_secs(600))));
}

#[test]
fn join_unwinds() {
    cancelled_in(|| {
        let _ = sleave::spawn(|| thread::sleep(Duration::from_millis(50))).join();
        sleave::park();
    });
}

#[test]
fn wait_for_events_unwinds() {
    cancelled_in(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        wait_any(&[(near.as_fd(), Direction::Read)], None).unwrap();
    });
}

#[test]
fn computing_unwinds_at_a_checkpoint_or_a_yield() {
    on_runtimes(|runtime| {
        for body in [|| sleave::checkpoint(), || sleave::yield_now()] {
            let (begun, begins) = mpsc::channel();
            let fiber = runtime.spawn(move || {
                begun.send(()).unwrap();
                loop {
                    body();
                }
            });
            begins.recv().unwrap();
            fiber.cancel();
            assert_cancelled(fiber);
        }
    });
}

#[test]
fn calls_for_descriptors_fail_and_so_does_the_next() {
    on_runtimes(|runtime| {
        let fiber = runtime.spawn(|| {
            let (mut near, _far) = UnixStream::pair().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let read = near.read(&mut [0; 8]).unwrap_err().raw_os_error();
            let all = near.read_exact(&mut [0; 8]).unwrap_err().raw_os_error();
            let accept = listener.accept().unwrap_err().raw_os_error();
            assert_eq!([read, all, accept], [Some(libc::ECANCELED); 3]);
            assert!(sleave::cancel::is_due());
            // What can be done without waiting goes on.
            std::io::Write::write_all(&mut near, b"farewell").unwrap();
            "in order"
        });
        eventually("it waits", || runtime.statistics().waiting == 1);
        fiber.cancel();
        assert_eq!(fiber.join().unwrap(), "in order");
    });
}

#[test]
fn sleeps_are_over() {
    on_runtimes(|runtime| {
        let fiber = runtime.spawn(|| {
            thread::sleep(Duration::from_secs(600));
            thread::sleep(Duration::from_secs(600));
            7
        });
        let begin = Instant::now();
        fiber.cancel();
        match fiber.join() {
            Ok(seven) => assert_eq!(seven, 7),
            // It had not begun.
            Err(payload) => assert!(payload.is::<sleave::Cancelled>()),
        }
        assert!(begin.elapsed() < Duration::from_secs(300));
    });
}

#[test]
fn a_lock_is_waited_for_and_held_all_the_same() {
    on_runtimes(|runtime| {
        let lock = Arc::new(Mutex::new(0));
        let held = lock.lock().unwrap();
        let fiber = runtime.spawn({
            let lock = Arc::clone(&lock);
            move || {
                *lock.lock().unwrap() += 1;
                sleave::checkpoint();
            }
        });
        eventually("it waits", || runtime.statistics().waiting == 1);
        fiber.cancel();
        let fiber =
            fiber.join_timeout(Duration::from_millis(20)).expect_err("it has not got the lock");
        drop(held);
        assert_cancelled(fiber);
        assert_eq!(*lock.lock().unwrap(), 1);
    });
}

#[test]
fn one_that_has_not_begun_never_does() {
    on_runtimes(|runtime| {
        let guests = Arc::new(AtomicUsize::new(0));
        // All workers are busy until the others have been cancelled.
        let (go, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let busy: Vec<_> = (0..runtime.statistics().workers.max(4))
            .map(|_| {
                let (go, stop) = (Arc::clone(&go), Arc::clone(&stop));
                runtime.spawn(move || {
                    go.fetch_add(1, Ordering::SeqCst);
                    while stop.load(Ordering::SeqCst) == 0 {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        eventually("a worker is busy", || go.load(Ordering::SeqCst) > 0);
        let begun = Arc::new(AtomicUsize::new(0));
        let late: Vec<_> = (0..100)
            .map(|_| {
                let (begun, guest) = (Arc::clone(&begun), Guest::new(&guests));
                runtime.spawn(move || {
                    let _guest = guest;
                    begun.fetch_add(1, Ordering::SeqCst);
                    sleave::park();
                })
            })
            .collect();
        late.iter().for_each(sleave::JoinHandle::cancel);
        stop.store(1, Ordering::SeqCst);
        late.into_iter().for_each(assert_cancelled);
        busy.into_iter().for_each(|fiber| fiber.join().unwrap());
        assert_eq!(guests.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn what_is_swallowed_is_raised_again() {
    on_runtimes(|runtime| {
        let swallowed = Arc::new(AtomicUsize::new(0));
        let fiber = runtime.spawn({
            let swallowed = Arc::clone(&swallowed);
            move || {
                for _ in 0..3 {
                    catch_unwind(AssertUnwindSafe(sleave::park)).unwrap_err();
                    swallowed.fetch_add(1, Ordering::SeqCst);
                }
                sleave::park();
            }
        });
        eventually("it waits", || runtime.statistics().waiting == 1);
        fiber.cancel();
        assert_cancelled(fiber);
        assert_eq!(swallowed.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn destructors_may_wait_while_it_unwinds() {
    struct Waits(mpsc::Sender<bool>);
    impl Drop for Waits {
        fn drop(&mut self) {
            let begin = Instant::now();
            thread::sleep(Duration::from_millis(5));
            sleave::yield_now();
            let (mut near, mut far) = UnixStream::pair().unwrap();
            let echo = sleave::spawn(move || std::io::Write::write_all(&mut far, b"x").unwrap());
            let read = near.read_exact(&mut [0]).is_ok();
            echo.join().unwrap();
            self.0.send(read && begin.elapsed() >= Duration::from_millis(5)).unwrap();
        }
    }
    on_runtimes(|runtime| {
        let (say, hear) = mpsc::channel();
        let fiber = runtime.spawn(move || {
            let _waits = Waits(say);
            sleave::park();
        });
        eventually("it waits", || runtime.statistics().waiting == 1);
        fiber.cancel();
        assert_cancelled(fiber);
        assert!(hear.recv().unwrap());
    });
}

#[test]
fn one_that_has_ended_is_left_alone() {
    on_runtimes(|runtime| {
        let fiber = runtime.spawn(|| 7);
        let handle = fiber.fiber().clone();
        eventually("it ends", || fiber.is_finished());
        fiber.cancel();
        assert_eq!(fiber.join().unwrap(), 7);
        handle.cancel();
        // The next in its slot is another.
        assert!(!runtime.spawn(sleave::cancel::is_due).join().unwrap());
    });
}

#[test]
fn errors_are_no_interruptions_to_be_tried_again() {
    on_runtimes(|runtime| {
        let fiber = runtime.spawn(|| {
            let (mut near, _far) = UnixStream::pair().unwrap();
            near.read_to_end(&mut Vec::new()).unwrap_err().kind()
        });
        eventually("it waits", || runtime.statistics().waiting == 1);
        fiber.cancel();
        assert_ne!(fiber.join().unwrap(), ErrorKind::Interrupted);
    });
}

#[test]
fn a_shutdown_drains_then_cancels() {
    on_runtimes(|_| {
        let runtime = sleave::Runtime::builder().workers(2).build().unwrap();
        let (done, guests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..20 {
            let done = Arc::clone(&done);
            runtime.spawn(move || {
                thread::sleep(Duration::from_millis(5));
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        for _ in 0..200 {
            let guest = Guest::new(&guests);
            runtime.spawn(move || {
                let _guest = guest;
                let (mut near, _far) = UnixStream::pair().unwrap();
                let _ = near.read(&mut [0]);
                sleave::park();
            });
        }
        assert!(runtime.shutdown(Duration::from_millis(100), crate::support::LONG_PATIENCE));
        assert_eq!((done.load(Ordering::SeqCst), guests.load(Ordering::SeqCst)), (20, 0));
    });
}
