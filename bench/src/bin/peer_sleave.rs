//! sleave: ordinary `std` code, on fibers. See `sleave_bench::peer` for what is asked of it.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Instant;

use sleave_bench::peer::{self, Gate, Order, figure, second};

fn main() {
    let order = Order::parse(std::env::args().skip(1));
    if let Err(why) = sleave::identity() {
        eprintln!("here fibers are OS threads: {why}");
        std::process::exit(1);
    }
    let runtime = sleave::Runtime::builder().workers(order.workers).build().expect("a runtime");
    runtime.run(move || match order.shape.as_str() {
        "yield" => {
            yields(order.count, order.each());
            figure(yields(order.count, order.each()));
        }
        "spawn" => figure(second(order.total(), || spawns(order.count, order.each()))),
        "mpsc" => figure(second(2 * order.effort, || std_messages(order.effort))),
        "crossbeam" => figure(second(2 * order.effort, || crossbeam_messages(order.effort))),
        "mutex" => figure(second(order.total(), || locks(order.count, order.each()))),
        "timers" => figure(timers(order.count, order.each())),
        "park" => park(order.count),
        "echo" => serve().expect("a server"),
        _ => order.unknown(),
    });
}

fn yields(fibers: usize, each: usize) -> f64 {
    let gate = Gate::of(fibers);
    let all: Vec<_> = (0..fibers)
        .map(|_| {
            let gate = gate.clone();
            sleave::spawn(move || {
                gate.arrive();
                while !gate.is_open() {
                    sleave::yield_now();
                }
                (0..each).for_each(|_| sleave::yield_now());
            })
        })
        .collect();
    all.into_iter().for_each(|fiber| fiber.join().expect("a fiber"));
    gate.since(fibers * each)
}

fn spawns(outstanding: usize, times: usize) {
    for _ in 0..times {
        if outstanding == 1 {
            sleave::spawn(|| ()).join().expect("a fiber");
            continue;
        }
        let all: Vec<_> = (0..outstanding).map(|_| sleave::spawn(|| ())).collect();
        all.into_iter().for_each(|fiber| fiber.join().expect("a fiber"));
    }
}

fn std_messages(count: usize) {
    let (ping, pinged) = mpsc::channel();
    let (pong, ponged) = mpsc::channel();
    let other = sleave::spawn(move || {
        pinged.into_iter().for_each(|i: usize| pong.send(i).expect("a receiver"));
    });
    for i in 0..count {
        ping.send(i).expect("a receiver");
        assert_eq!(ponged.recv(), Ok(i));
    }
    drop(ping);
    other.join().expect("a fiber");
}

fn crossbeam_messages(count: usize) {
    let (ping, pinged) = crossbeam_channel::unbounded();
    let (pong, ponged) = crossbeam_channel::unbounded();
    let other = sleave::spawn(move || {
        pinged.into_iter().for_each(|i: usize| pong.send(i).expect("a receiver"));
    });
    for i in 0..count {
        ping.send(i).expect("a receiver");
        assert_eq!(ponged.recv(), Ok(i));
    }
    drop(ping);
    other.join().expect("a fiber");
}

/// The lock is held over a yield, so that the others meet it locked.
fn locks(fibers: usize, each: usize) {
    let counter = Arc::new(Mutex::new(0));
    let all: Vec<_> = (0..fibers)
        .map(|_| {
            let counter = counter.clone();
            sleave::spawn(move || {
                for _ in 0..each {
                    let mut counter = counter.lock().expect("not poisoned");
                    sleave::yield_now();
                    *counter += 1;
                }
            })
        })
        .collect();
    all.into_iter().for_each(|fiber| fiber.join().expect("a fiber"));
    assert_eq!(*counter.lock().expect("not poisoned"), fibers * each);
}

fn timers(fibers: usize, each: usize) -> f64 {
    let all: Vec<_> = (0..fibers)
        .map(|number| {
            sleave::spawn(move || {
                thread::sleep(peer::first_nap(number));
                (1..=each).for_each(|turn| thread::sleep(peer::nap(number, turn)));
            })
        })
        .collect();
    // Behind all of them in the queue: when it has run, each is in its first sleep.
    sleave::spawn(|| ()).join().expect("a fiber");
    let before = peer::cpu();
    all.into_iter().for_each(|fiber| fiber.join().expect("a fiber"));
    peer::per(peer::cpu() - before, fibers * each)
}

fn park(fibers: usize) {
    sleave::spawn(|| ()).join().expect("a fiber");
    peer::stage("base");
    let start = Instant::now();
    let parked = Arc::new(AtomicUsize::new(0));
    let all: Vec<_> = (0..fibers)
        .map(|_| {
            let parked = parked.clone();
            sleave::spawn(move || {
                parked.fetch_add(1, Ordering::Relaxed);
                loop {
                    thread::park();
                }
            })
        })
        .collect();
    while parked.load(Ordering::Relaxed) < fibers {
        sleave::yield_now();
    }
    peer::stage(format_args!("parked {}", peer::per(start.elapsed(), fibers)));
    drop(all);
    std::process::exit(0);
}

fn serve() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    peer::say(format_args!("listening on {}", listener.local_addr()?));
    loop {
        let (stream, _) = listener.accept()?;
        // A connection that fails, fails alone.
        sleave::spawn(move || drop(echo(stream)));
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}
