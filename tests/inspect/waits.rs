//! Every kind of wait has its name in the dump.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use sleave::{Awaited, Builder, Fiber, JoinHandle, State};

use super::support::timing::eventually;
use super::support::{Company, Host, PATIENCE};
use super::support::{WORKERS, Watchdog};
use super::{can, fiber, state};

const MS: Duration = Duration::from_millis(1);

fn spawn<T: Send + 'static>(name: String, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().name(name).spawn(f).expect("a fiber")
}

/// Waits until the fiber called `name` waits for `what`; for how long it will at most.
fn awaits(name: &str, what: Awaited) -> Option<Duration> {
    let mut limit = None;
    eventually("the dump says what it waits for", || match state(name) {
        Some(State::Waiting { what: seen, left, .. }) => {
            limit = left;
            seen == what
        }
        _ => false,
    });
    limit
}

/// Runs `body` on fibers of a runtime of each size, with a prefix for the names of its fibers.
fn each(body: impl Fn(&str) + Sync) {
    if !can() {
        return;
    }
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let test = thread::current().name().unwrap_or("a test").to_owned();
            let prefix = format!("{test}-{workers}");
            Host::Fibers { workers }.run(PATIENCE, &|_| body(&prefix));
        }
    });
}

#[test]
fn waits_for_descriptors_have_their_number_and_direction() {
    each(|prefix| {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let fd = near.as_raw_fd();
        let reader = spawn(format!("{prefix}-reader"), {
            let mut near = near.try_clone().unwrap();
            // The clone has a number of its own.
            move || near.read(&mut [0; 1]).map(|count| (count, near.as_raw_fd()))
        });
        let name = format!("{prefix}-reader");
        eventually(
            "it reads",
            || matches!(state(&name), Some(State::Waiting { what: Awaited::Readable(seen), .. }) if seen != fd),
        );
        far.write_all(b"x").unwrap();
        assert_eq!(reader.join().unwrap().unwrap().0, 1);

        let writer = spawn(format!("{prefix}-writer"), move || {
            // More than any buffer holds.
            near.write_all(&vec![7; 8 << 20])
        });
        assert_eq!(awaits(&format!("{prefix}-writer"), Awaited::Writable(fd)), None);
        drop(far);
        assert!(writer.join().unwrap().is_err(), "the other end is gone");
    });
}

#[test]
fn poll_of_several_is_a_wait_for_any_with_its_deadline() {
    each(|prefix| {
        let pairs = [UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];
        let fds = [pairs[0].0.as_raw_fd(), pairs[1].0.as_raw_fd()];
        let poller = spawn(format!("{prefix}-poller"), move || {
            let mut fds = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
            // SAFETY: poll(2) of two entries of our own.
            unsafe { libc::poll(fds.as_mut_ptr(), 2, 3_600_000) }
        });
        let left = awaits(&format!("{prefix}-poller"), Awaited::AnyOf(2)).expect("a deadline");
        assert!(left > Duration::from_secs(3000) && left <= Duration::from_secs(3600), "{left:?}");
        (&pairs[1].1).write_all(b"x").unwrap();
        assert_eq!(poller.join().unwrap(), 1);
    });
}

#[test]
fn sleep_is_a_wait_for_a_time() {
    each(|prefix| {
        let stop = Arc::new(AtomicBool::new(false));
        let sleeper = spawn(format!("{prefix}-sleeper"), {
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(100 * MS);
                }
            }
        });
        let left = awaits(&format!("{prefix}-sleeper"), Awaited::Time).expect("a deadline");
        assert!(left <= 101 * MS, "{left:?}");
        stop.store(true, Ordering::Relaxed);
        sleeper.join().unwrap();
    });
}

#[test]
fn locks_have_their_address_and_say_for_how_long() {
    each(|prefix| {
        let mutex = Arc::new(Mutex::new(()));
        let address = Arc::as_ptr(&mutex) as usize;
        let guard = mutex.lock().unwrap();
        let name = format!("{prefix}-locker");
        let locker = spawn(name.clone(), {
            let mutex = mutex.clone();
            move || drop(mutex.lock().unwrap())
        });
        let lies_in_it = |at: usize| (address..address + size_of::<Mutex<()>>()).contains(&at);
        let waited = || match state(&name) {
            Some(State::Waiting { what: Awaited::Lock(at), since, left: None })
                if lies_in_it(at) =>
            {
                Some(since)
            }
            _ => None,
        };
        eventually("it waits for the lock", || waited().is_some());
        eventually("it has waited for a while", || waited().is_some_and(|since| since > 50 * MS));
        drop(guard);
        locker.join().unwrap();

        let pair = Arc::new((Mutex::new(false), Condvar::new()));
        let name = format!("{prefix}-patient");
        let patient = spawn(name.clone(), {
            let pair = pair.clone();
            move || {
                let hour = Duration::from_secs(3600);
                let told = pair.1.wait_timeout_while(pair.0.lock().unwrap(), hour, |told| !*told);
                told.unwrap().1.timed_out()
            }
        });
        eventually("it waits with a deadline", || {
            matches!(state(&name), Some(State::Waiting { what: Awaited::Lock(_), left: Some(left), .. })
                if left > Duration::from_secs(3000))
        });
        *pair.0.lock().unwrap() = true;
        pair.1.notify_all();
        assert!(!patient.join().unwrap());
    });
}

#[test]
fn joins_scopes_tokens_and_stops_say_so() {
    each(|prefix| {
        let parked = spawn(format!("{prefix}-parked"), sleave::park);
        let token: Fiber = parked.fiber().clone();
        assert_eq!(awaits(&format!("{prefix}-parked"), Awaited::Token), None);

        let id = token.id();
        let joiner = spawn(format!("{prefix}-joiner"), move || parked.join().unwrap());
        assert_eq!(awaits(&format!("{prefix}-joiner"), Awaited::Fiber(id)), None);
        token.unpark();
        joiner.join().unwrap();

        let (sender, receiver) = std::sync::mpsc::channel();
        let scope = spawn(format!("{prefix}-scope"), move || {
            sleave::scope(|s| {
                s.spawn(|| {
                    sender.send(sleave::current().unwrap()).unwrap();
                    sleave::park();
                });
            })
        });
        let inner = receiver.recv().unwrap();
        assert_eq!(awaits(&format!("{prefix}-scope"), Awaited::Scope), None);
        inner.unpark();
        scope.join().unwrap();

        let other = sleave::Runtime::builder().workers(1).build().unwrap();
        let stubborn = other.spawn(sleave::park);
        let stopper = spawn(format!("{prefix}-stopper"), move || other.stop());
        assert_eq!(awaits(&format!("{prefix}-stopper"), Awaited::Runtime), None);
        stubborn.fiber().unpark();
        stopper.join().unwrap();
    });
}

#[test]
fn running_fibers_name_their_worker_and_pins_are_told() {
    each(|prefix| {
        let me = sleave::current().unwrap().id();
        let dump = sleave::dump();
        let own = dump.fibers.iter().find(|fiber| fiber.id == me).expect("the caller");
        assert_eq!(own.state, State::Running);
        assert_eq!((own.worker, own.pinned), (sleave::worker(), None));
        let name = format!("{prefix}-pinned");
        let pinned = Builder::new().name(name.clone()).pin(0).spawn(sleave::park).unwrap();
        eventually("it is there", || {
            fiber(&name).is_some_and(|fiber| fiber.pinned == Some(0) && fiber.worker == Some(0))
        });
        let text = sleave::dump().to_string();
        let line = text.lines().find(|line| line.contains(&name)).expect("a line of it");
        assert!(line.contains("0 (pin)"), "{line}");
        pinned.fiber().unpark();
        pinned.join().unwrap();
        eventually("it is gone", || fiber(&name).is_none());
    });
}

/// Parks, in a frame of its own.
#[inline(never)]
fn parks_here() {
    sleave::park();
    std::hint::black_box(());
}

#[test]
fn backtrace_of_a_parked_fiber_goes_through_where_it_waits() {
    /// More than the function's code has.
    const LENGTH: usize = 512;
    each(|prefix| {
        let name = format!("{prefix}-parks");
        let parks = spawn(name.clone(), parks_here);
        awaits(&name, Awaited::Token);
        assert_eq!(fiber(&name).unwrap().frames, [], "nobody has asked for it");
        let dump = sleave::dump_with_backtraces();
        let parked = dump.fibers.iter().find(|fiber| fiber.name.as_ref() == Some(&name));
        let frames = &parked.expect("it is there").frames;
        let here = parks_here as fn() as usize;
        assert!(
            frames.iter().any(|address| (here..here + LENGTH).contains(address)),
            "{here:#x}: {frames:#x?}"
        );
        let text = dump.to_string();
        let mut lines = text.lines().skip_while(|line| !line.contains(&name)).skip(1);
        assert!(lines.next().is_some_and(|line| line.trim_start().starts_with("#0 ")), "{text}");
        parks.fiber().unpark();
        parks.join().unwrap();
    });
}

#[test]
fn call_that_blocks_its_thread_is_told() {
    each(|prefix| {
        let (reader, writer) = std::io::pipe().unwrap();
        let name = format!("{prefix}-blocks");
        let blocks =
            spawn(name.clone(), move || sleave::blocking(|| (&reader).read(&mut [0; 1]).unwrap()));
        eventually("it blocks", || state(&name) == Some(State::Blocked));
        (&writer).write_all(b"x").unwrap();
        blocks.join().unwrap();
    });
}

#[test]
fn what_has_not_begun_is_counted_and_metrics_add_up() {
    if !can() {
        return;
    }
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, PATIENCE);
        let runtime = sleave::Runtime::builder().workers(1).use_caller().build().unwrap();
        let before = sleave::metrics();
        let early: Vec<_> = (0..10).map(|_| runtime.spawn(|| ())).collect();
        let dump = sleave::dump();
        assert_eq!(dump.metrics.fibers - before.fibers, 10);
        assert!(dump.unlisted >= 10, "{dump}");
        assert!(dump.to_string().contains("that have not begun"), "{dump}");
        runtime.run(|| early.into_iter().for_each(|one| one.join().unwrap()));
        let after = sleave::metrics();
        assert_eq!((after.fibers, after.spawned - before.spawned), (before.fibers, 11));
        assert!(after.switches > before.switches);
        runtime.stop();
    });
}
