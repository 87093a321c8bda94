//! Everything at once, at random, with nothing lost.
//!
//! Some dozens of actors each run a program of random operations: transfers between locked
//! accounts, messages through channels, echoes through sockets, children, naps, parks, timeouts.
//! What an actor *does* depends on the seed alone, so its digest must be the same on threads and on
//! fibers, whatever the order in which things happened. And some sums are conserved:
//!
//! ```text
//!     accounts   the money is the same at the end
//!     tokens     as many in the pool as at the start
//!     children   as many joined as spawned
//!     locals     each actor counts its operations in a thread-local, and finds them all
//!     drops      every value that was made is dropped, once
//! ```
//!
//! The seed is printed; `SLEAVE_STRESS_SEED` runs it again.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
mod support;

use std::cell::Cell;
use std::env;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use support::kernel::say;
use support::random::{Random, fresh_seed};
use support::{Count, Host, everywhere_alone};

const ACTORS: usize = 48;
const OPERATIONS: usize = if cfg!(debug_assertions) { 150 } else { 400 };
const ACCOUNTS: usize = 16;
const TOKENS: usize = 12;

thread_local! {
    static DONE: Cell<usize> = const { Cell::new(0) };
}

/// Counts the live values of its kind.
struct Value {
    number: u64,
    live: Arc<Count>,
}

impl Value {
    fn new(number: u64, live: &Arc<Count>) -> Self {
        live.up();
        Value { number, live: Arc::clone(live) }
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.live.down();
    }
}

/// What all actors share.
struct World {
    host: Host,
    accounts: Vec<Mutex<i64>>,
    history: RwLock<Vec<u64>>,
    pool: (crossbeam_channel::Sender<usize>, crossbeam_channel::Receiver<usize>),
    permits: parking_lot::Mutex<usize>,
    returned: parking_lot::Condvar,
    echo: std::net::SocketAddr,
    live: Arc<Count>,
    spawned: Count,
    joined: Count,
}

impl World {
    /// Moves money between two accounts, both locked, in the order of their numbers.
    fn transfer(&self, random: &mut Random) -> u64 {
        let (from, to) = (random.within(0..ACCOUNTS), random.within(0..ACCOUNTS));
        let amount = random.within(1..100) as i64;
        if from != to {
            let low = self.accounts[from.min(to)].lock().unwrap();
            if random.within(0..3) == 0 {
                self.host.yield_now();
            }
            let high = self.accounts[from.max(to)].lock().unwrap();
            let (mut source, mut target) = if from < to { (low, high) } else { (high, low) };
            *source -= amount;
            if random.within(0..8) == 0 {
                thread::sleep(Duration::from_micros(300));
            }
            *target += amount;
        }
        amount as u64
    }

    /// Takes a token out of the pool, holds it a moment, puts it back.
    fn borrow_token(&self, random: &mut Random) -> u64 {
        let token = self.pool.1.recv().unwrap();
        self.nap(random);
        self.pool.0.send(token).unwrap();
        1
    }

    /// Takes one of a few permits, waiting for it with a timeout that is tried again.
    fn borrow_permit(&self, random: &mut Random) -> u64 {
        let mut free = self.permits.lock();
        while *free == 0 {
            let _ = self.returned.wait_for(&mut free, Duration::from_micros(500));
        }
        *free -= 1;
        drop(free);
        self.nap(random);
        *self.permits.lock() += 1;
        self.returned.notify_one();
        2
    }

    /// Sends some bytes to the echo server over a connection of its own.
    fn echo_tcp(&self, random: &mut Random) -> u64 {
        let mut message = vec![0; random.within(1..20_000)];
        random.fill(&mut message);
        let mut stream = TcpStream::connect(self.echo).unwrap();
        stream.write_all(&message).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer == message, "the echo changed the message");
        checksum(&answer)
    }

    /// The same through a pair of Unix sockets, with a child at the other end.
    fn echo_unix(&self, random: &mut Random) -> u64 {
        let mut message = vec![0; random.within(1..200_000)];
        random.fill(&mut message);
        let (mut near, far) = UnixStream::pair().unwrap();
        let server = self.spawn(move || {
            let (mut input, mut output) = (&far, &far);
            std::io::copy(&mut input, &mut output).unwrap();
            far.shutdown(Shutdown::Write).unwrap();
        });
        let answer = self.host.scope(|scope| {
            let mut reading = near.try_clone().unwrap();
            let reader = scope.spawn(move || {
                let mut answer = Vec::new();
                reading.read_to_end(&mut answer).unwrap();
                answer
            });
            near.write_all(&message).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
            reader.value()
        });
        self.join(server);
        assert!(answer == message, "the echo changed the message");
        checksum(&answer)
    }

    /// A family of children, each with a value of its own, some of whom panic.
    fn children(self: &Arc<Self>, random: &mut Random) -> u64 {
        let children: Vec<_> = (0..random.within(1..6))
            .map(|_| {
                let (mut random, world) = (random.split(), Arc::clone(self));
                self.spawn(move || {
                    let value = Value::new(random.next(), &world.live);
                    world.nap(&mut random);
                    if random.within(0..5) == 0 {
                        std::panic::resume_unwind(Box::new(value));
                    }
                    value
                })
            })
            .collect();
        children.into_iter().fold(0, |sum, child| {
            self.joined.up();
            let value = match child.join() {
                Ok(value) => value,
                Err(payload) => *payload.downcast::<Value>().expect("the child's own value"),
            };
            sum ^ value.number
        })
    }

    /// Waits for a child through a condition, with a deadline that is far away.
    fn handshake(&self, random: &mut Random) -> u64 {
        let shared = Arc::new((Mutex::new(None), Condvar::new()));
        let number = random.next();
        let child = {
            let shared = Arc::clone(&shared);
            self.spawn(move || {
                *shared.0.lock().unwrap() = Some(number);
                shared.1.notify_one();
            })
        };
        let (answer, result) = shared
            .1
            .wait_timeout_while(shared.0.lock().unwrap(), Duration::from_secs(60), |answer| {
                answer.is_none()
            })
            .unwrap();
        assert!(!result.timed_out());
        let answer = answer.expect("notified with an answer");
        self.join(child);
        answer
    }

    /// A producer and this actor, at a rendezvous or through a small buffer.
    fn channel(&self, random: &mut Random) -> u64 {
        let (sender, receiver) = mpsc::sync_channel(random.within(0..3));
        let count = random.within(1..30) as u64;
        let (mut inner, live) = (random.split(), Arc::clone(&self.live));
        let producer = self.spawn(move || {
            for _ in 0..count {
                // The receiver may go early; what it leaves behind must be dropped all the same.
                if sender.send(Value::new(inner.next(), &live)).is_err() {
                    return;
                }
            }
        });
        let wanted = random.within(1..30);
        let sum = receiver.iter().take(wanted).fold(0, |sum, value| sum ^ value.number);
        drop(receiver);
        self.join(producer);
        sum
    }

    /// Parks until a child has unparked it, or for a short time.
    fn park(&self, random: &mut Random) -> u64 {
        let asked = Duration::from_micros(random.within(1..1500) as u64);
        if random.within(0..2) == 0 {
            thread::park_timeout(asked);
        } else {
            let (me, flag) = (thread::current(), Arc::new(Count::new()));
            let waker = {
                let flag = Arc::clone(&flag);
                self.spawn(move || {
                    flag.up();
                    me.unpark();
                })
            };
            while flag.get() == 0 {
                thread::park();
            }
            self.join(waker);
        }
        asked.as_micros() as u64
    }

    /// Nothing, a yield, or a sleep that must not end early.
    fn nap(&self, random: &mut Random) {
        match random.within(0..4) {
            0 => {}
            1 | 2 => self.host.yield_now(),
            _ => {
                let asked = Duration::from_micros(random.within(1..2000) as u64);
                let start = Instant::now();
                thread::sleep(asked);
                assert!(start.elapsed() >= asked, "woke early");
            }
        }
    }

    /// Appends to a history that others read meanwhile.
    fn remember(&self, random: &mut Random) -> u64 {
        if random.within(0..3) == 0 {
            let number = random.next() % 1000;
            self.history.write().unwrap().push(number);
            number
        } else {
            let history = self.history.read().unwrap();
            let before = history.len();
            self.host.yield_now();
            assert_eq!(history.len(), before, "written while it was read");
            3
        }
    }

    fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> support::Task<T> {
        self.spawned.up();
        self.host.spawn(f)
    }

    fn join<T>(&self, task: support::Task<T>) -> T {
        self.joined.up();
        task.value()
    }

    /// The whole life of one actor; its digest depends on the seed alone.
    fn act(self: &Arc<Self>, mut random: Random) -> u64 {
        let mut digest = 0_u64;
        for _ in 0..OPERATIONS {
            let result = match random.within(0..20) {
                0..5 => self.transfer(&mut random),
                5..8 => self.borrow_token(&mut random),
                8..10 => self.borrow_permit(&mut random),
                10 => self.echo_tcp(&mut random),
                11 => self.echo_unix(&mut random),
                12 => self.children(&mut random),
                13 => self.handshake(&mut random),
                14 => self.channel(&mut random),
                15 => self.park(&mut random),
                16 | 17 => self.remember(&mut random),
                _ => {
                    self.nap(&mut random);
                    4
                }
            };
            digest = digest.rotate_left(7) ^ result;
            DONE.set(DONE.get() + 1);
        }
        assert_eq!(DONE.get(), OPERATIONS, "a thread-local lost count");
        digest
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum: u64, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

/// Serves the echo until a connection says nothing at all.
fn serve(host: Host, listener: &TcpListener) {
    host.scope(|scope| {
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut first = [0];
            if stream.read(&mut first).unwrap() == 0 {
                return;
            }
            scope.spawn(move || {
                stream.write_all(&first).unwrap();
                let (mut input, mut output) = (&stream, &stream);
                std::io::copy(&mut input, &mut output).unwrap();
            });
        }
    });
}

fn run(host: Host, seed: u64) -> (Vec<u64>, i64, usize, usize, Vec<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let echo = listener.local_addr().unwrap();
    let server = host.spawn(move || serve(host, &listener));
    let world = Arc::new(World {
        host,
        accounts: (0..ACCOUNTS).map(|_| Mutex::new(1000)).collect(),
        history: RwLock::default(),
        pool: crossbeam_channel::bounded(TOKENS),
        permits: parking_lot::Mutex::new(5),
        returned: parking_lot::Condvar::new(),
        echo,
        live: Arc::new(Count::new()),
        spawned: Count::new(),
        joined: Count::new(),
    });
    (0..TOKENS).for_each(|token| world.pool.0.send(token).unwrap());

    let mut random = Random::new(seed);
    let actors: Vec<_> = (0..ACTORS)
        .map(|_| {
            let (random, world) = (random.split(), Arc::clone(&world));
            host.spawn(move || world.act(random))
        })
        .collect();
    let digests = actors.into_iter().map(|actor| actor.value()).collect();
    TcpStream::connect(echo).unwrap().shutdown(Shutdown::Write).unwrap();
    server.value();

    assert_eq!(world.spawned.get(), world.joined.get(), "children");
    assert_eq!(world.live.get(), 0, "values that were never dropped");
    assert_eq!(*world.permits.lock(), 5, "permits");
    let mut tokens: Vec<_> = world.pool.1.try_iter().collect();
    tokens.sort_unstable();
    assert!(tokens.into_iter().eq(0..TOKENS), "tokens");
    let money = world.accounts.iter().map(|account| *account.lock().unwrap()).sum();
    let mut history = world.history.read().unwrap().clone();
    history.sort_unstable();
    (digests, money, world.spawned.get(), world.joined.get(), history)
}

#[test]
fn random_programs_of_everything_lose_nothing() {
    let seed = env::var("SLEAVE_STRESS_SEED")
        .map_or_else(|_| fresh_seed(), |seed| seed.parse().expect("SLEAVE_STRESS_SEED: a number"));
    // Past libtest's capture, so that it is known also when the watchdog ends the process.
    say(&format!("stress: SLEAVE_STRESS_SEED={seed}\n"));
    everywhere_alone(|host| run(host, seed));
}
