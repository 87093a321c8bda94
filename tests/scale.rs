//! As many fibers as nobody has threads.
//!
//! A hundred thousand asleep at once, a million spawned, two hundred thousand guarded stacks in
//! fewer mappings than `vm.max_map_count`, and a thousand waits of every kind that together use no
//! CPU time and no OS thread. All of them run alone, one after the other.
//!
//! Sources: proc(5) (`maps`, `vm.max_map_count`), madvise(2) (`MADV_GUARD_INSTALL`), getrusage(2).

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
mod support;

use std::hint::black_box;
use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Barrier, Mutex, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use support::kernel::{cpu_time, has_guard_markers, mappings, os_threads};
use support::timing::{GENEROUS, eventually};
use support::{Count, Flag, Gate, Host, Task, everywhere_alone, on_fibers_alone, scaled};

#[test]
fn a_hundred_thousand_fibers_sleep_at_once() {
    const FIBERS: usize = 100_000;
    on_fibers_alone(|host| {
        // A machine that cannot even spawn them in the time they sleep gets longer sleeps.
        let mut nap = Duration::from_secs(4);
        for _ in 0..4 {
            let (asleep, most) = (Arc::new(Count::new()), Arc::new(Count::new()));
            let start = Instant::now();
            let tasks: Vec<_> = (0..FIBERS)
                .map(|_| {
                    let (asleep, most) = (Arc::clone(&asleep), Arc::clone(&most));
                    host.spawn(move || {
                        most.at_least(asleep.up());
                        thread::sleep(nap.saturating_sub(start.elapsed()));
                        asleep.down();
                        start.elapsed() >= nap
                    })
                })
                .collect();
            let on_time = tasks.into_iter().all(Task::value);
            assert!(on_time, "somebody woke early");
            assert_eq!(asleep.get(), 0);
            let elapsed = start.elapsed();
            assert!(elapsed < nap + GENEROUS * 2, "{host}: {nap:?} took {elapsed:?}");
            if most.get() == FIBERS {
                return;
            }
            nap *= 2;
        }
        panic!("{host}: never were all {FIBERS} asleep together");
    });
}

#[test]
fn a_million_fibers_are_spawned_and_joined() {
    let fibers = scaled(1_000_000);
    on_fibers_alone(|host| {
        // All of them are outstanding before the first is joined.
        let tasks: Vec<_> = (0..fibers).map(|i| host.spawn(move || black_box(i))).collect();
        let sum: usize = tasks.into_iter().map(Task::value).sum();
        assert_eq!(sum, (0..fibers).sum());
    });
}

#[test]
fn a_million_fibers_are_joined_as_they_are_spawned() {
    let fibers = scaled(1_000_000);
    on_fibers_alone(|host| {
        let sum: usize = (0..fibers).map(|i| host.spawn(move || black_box(i)).value()).sum();
        assert_eq!(sum, (0..fibers).sum());
    });
}

#[test]
fn two_hundred_thousand_guarded_stacks_need_few_mappings() {
    // Where the kernel has no guard markers, a guard page is a mapping of its own and its stack
    // another: then a tenth of the number must fit under the default limit of 65,530.
    let (fibers, limit) = if has_guard_markers() { (200_000, 5_000) } else { (20_000, 60_000) };
    on_fibers_alone(|host| {
        let (gate, waiting) = (Arc::new(Gate::default()), Arc::new(Count::new()));
        let tasks: Vec<_> = (0..fibers)
            .map(|i| {
                let (gate, waiting) = (Arc::clone(&gate), Arc::clone(&waiting));
                host.spawn(move || {
                    let frame = black_box([i; 16]);
                    waiting.up();
                    gate.pass();
                    black_box(frame)[7]
                })
            })
            .collect();
        let start = Instant::now();
        while waiting.get() < fibers {
            assert!(start.elapsed() < GENEROUS * 5, "{} of {fibers} wait", waiting.get());
            thread::sleep(Duration::from_millis(10));
        }
        // All have begun and none has ended: every one of them has its stack.
        let mappings = mappings();
        gate.open();
        let sum: usize = tasks.into_iter().map(Task::value).sum();
        assert_eq!(sum, (0..fibers).sum());
        assert!(mappings < limit, "{host}: {fibers} stacks in {mappings} mappings");
    });
}

/// Fibers that wait, by what they wait for, and what ends each wait.
struct Waits {
    host: Host,
    arrived: Arc<Count>,
    tasks: Vec<Task<()>>,
    endings: Vec<Box<dyn FnOnce() + Send>>,
}

/// How many fibers wait for each kind of thing.
const OF_EACH: usize = 72;

impl Waits {
    /// Spawns one fiber that runs `wait`.
    fn spawn(&mut self, wait: impl FnOnce() + Send + 'static) {
        let arrived = Arc::clone(&self.arrived);
        self.tasks.push(self.host.spawn(move || {
            arrived.up();
            wait();
        }));
    }

    /// Runs `end` when the waiting is over.
    fn at_the_end(&mut self, end: impl FnOnce() + Send + 'static) {
        self.endings.push(Box::new(end));
    }

    /// What ends with a gate: conditions, joins, and locks held by a fiber that waits for it.
    fn for_locks(&mut self) {
        let gate = Arc::new(Gate::default());
        let (mutex, rwlock) = (Arc::new(Mutex::new(())), Arc::new(RwLock::new(())));
        let parking_lot = Arc::new(parking_lot::Mutex::new(()));
        let held = Arc::new(Flag::new());
        let holder = {
            let (gate, held) = (Arc::clone(&gate), Arc::clone(&held));
            let (mutex, rwlock) = (Arc::clone(&mutex), Arc::clone(&rwlock));
            let parking_lot = Arc::clone(&parking_lot);
            move || {
                let _guards = (mutex.lock().unwrap(), rwlock.write().unwrap(), parking_lot.lock());
                held.raise();
                gate.pass();
            }
        };
        self.spawn(holder);
        eventually("the locks are held", || held.is_up());
        let barrier = Arc::new(Barrier::new(OF_EACH + 1));
        for _ in 0..OF_EACH {
            let (lock, read) = (Arc::clone(&mutex), Arc::clone(&rwlock));
            self.spawn(move || drop(lock.lock().unwrap()));
            self.spawn(move || drop(read.read().unwrap()));
            let lock = Arc::clone(&parking_lot);
            self.spawn(move || drop(lock.lock()));
            let condition = Arc::clone(&gate);
            self.spawn(move || condition.pass());
            let (joined, host) = (Arc::clone(&gate), self.host);
            self.spawn(move || host.spawn(move || joined.pass()).value());
            let meeting = Arc::clone(&barrier);
            self.spawn(move || {
                meeting.wait();
            });
        }
        self.at_the_end(move || gate.open());
        self.at_the_end(move || {
            barrier.wait();
        });
    }

    /// What ends when the other end of a channel goes, or with an unpark, or by itself.
    fn for_channels_and_time(&mut self, nap: Duration) {
        let unparked = Arc::new(Flag::new());
        for _ in 0..OF_EACH {
            let (sender, receiver) = mpsc::channel::<()>();
            self.spawn(move || assert!(receiver.recv().is_err()));
            self.at_the_end(move || drop(sender));
            let (sender, receiver) = mpsc::sync_channel(0);
            self.spawn(move || assert!(sender.send(()).is_err()));
            self.at_the_end(move || drop(receiver));
            let (sender, receiver) = crossbeam_channel::bounded::<()>(0);
            self.spawn(move || assert!(receiver.recv().is_err()));
            self.at_the_end(move || drop(sender));
            self.spawn(move || thread::sleep(nap));
            let (hand, parked) = mpsc::channel();
            let may_go = Arc::clone(&unparked);
            self.spawn(move || {
                hand.send(thread::current()).unwrap();
                while !may_go.is_up() {
                    thread::park();
                }
            });
            let flag = Arc::clone(&unparked);
            self.at_the_end(move || {
                flag.raise();
                parked.recv().unwrap().unpark();
            });
        }
    }

    /// What ends when something comes through a descriptor.
    fn for_descriptors(&mut self) {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        let (pipe, polled) = std::io::pipe().unwrap();
        let pipe = Arc::new(pipe);
        for _ in 0..OF_EACH {
            let mut near = TcpStream::connect(address).unwrap();
            let (far, _) = listener.accept().unwrap();
            self.spawn(move || assert_eq!(near.read(&mut [0]).unwrap(), 0));
            self.at_the_end(move || far.shutdown(Shutdown::Both).unwrap());
            let (mut near, far) = UnixStream::pair().unwrap();
            self.spawn(move || assert_eq!(near.read(&mut [0]).unwrap(), 0));
            self.at_the_end(move || drop(far));
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let to = socket.local_addr().unwrap();
            self.spawn(move || assert_eq!(socket.recv(&mut [0; 4]).unwrap(), 1));
            self.at_the_end(move || {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                assert_eq!(socket.send_to(b"!", to).unwrap(), 1);
            });
            let polling = Arc::clone(&pipe);
            self.spawn(move || {
                let events = libc::POLLIN;
                let mut entry = libc::pollfd { fd: polling.as_raw_fd(), events, revents: 0 };
                // SAFETY: poll(2) reads and writes the one live entry.
                assert_eq!(unsafe { libc::poll(&raw mut entry, 1, -1) }, 1);
            });
        }
        self.at_the_end(move || drop(polled));
        for _ in 0..OF_EACH {
            let acceptor = Arc::clone(&listener);
            self.spawn(move || drop(acceptor.accept().unwrap()));
            self.at_the_end(move || drop(TcpStream::connect(address).unwrap()));
        }
    }
}

#[test]
fn a_thousand_waits_of_every_kind_use_no_cpu_and_no_threads() {
    /// Half seconds within which it must come to rest.
    const WINDOWS: usize = 30;
    on_fibers_alone(|host| {
        let threads_before = os_threads();
        let arrived = Arc::new(Count::new());
        let mut waits = Waits { host, arrived, tasks: Vec::new(), endings: Vec::new() };
        // Long enough for setting up and for measuring on a quick machine; on a slow one the
        // sleepers end early, which costs the others nothing.
        waits.for_channels_and_time(Duration::from_secs(3));
        waits.for_locks();
        waits.for_descriptors();
        let Waits { arrived, tasks, endings, .. } = waits;
        assert!(tasks.len() > 1000);
        eventually("all have begun", || arrived.get() == tasks.len());
        thread::sleep(Duration::from_millis(100));

        let window = || {
            let (cpu, start) = (cpu_time(), Instant::now());
            thread::sleep(Duration::from_millis(500));
            (cpu_time() - cpu).as_secs_f64() / start.elapsed().as_secs_f64()
        };
        // Not at once: first the monitor returns the memory of stacks that the tests before needed, and
        // after hundreds of thousands of them that takes seconds. Then there is rest.
        let mut shares: Vec<f64> = Vec::new();
        let mut at_rest = false;
        while !at_rest && shares.len() < WINDOWS {
            shares.push(window());
            at_rest = shares.last().is_some_and(|&share| share < 0.02);
        }
        let threads = os_threads();
        endings.into_iter().for_each(|end| end());
        tasks.into_iter().for_each(Task::value);

        assert!(at_rest, "{host}: everybody waits, yet the CPU is used at {shares:.3?}");
        assert!(
            threads <= threads_before + 8,
            "{host}: {threads} OS threads, {threads_before} before a thousand waits"
        );
    });
}

#[test]
fn a_thousand_fibers_contend_for_one_lock_and_one_channel() {
    // Threads are the reference here, too, and a machine may not let them be many more.
    let fibers = 1000;
    everywhere_alone(|host| {
        let (sum, lock) = (Arc::new(Count::new()), Arc::new(Mutex::new(0)));
        let (sender, receiver) = mpsc::sync_channel(10);
        let consumer = host.spawn(move || receiver.iter().sum::<usize>());
        host.spawn_many(fibers, {
            let (sum, lock) = (Arc::clone(&sum), Arc::clone(&lock));
            move |i| {
                for _ in 0..10 {
                    let mut number = lock.lock().unwrap();
                    let before = *number;
                    host.yield_now();
                    *number = before + 1;
                }
                sender.send(i).unwrap();
                sum.add(i);
            }
        });
        let consumed = consumer.value();
        assert_eq!(consumed, sum.get());
        (consumed, *lock.lock().unwrap())
    });
}
