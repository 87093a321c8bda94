//! Peer: OS threads, the same `std` code as sleave's, on what it was written for. See `sleave_bench::peer`.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave_bench::peer::{self, Gate, Order, figure, second};

fn main() {
    let order = Order::parse(std::env::args().skip(1));
    match order.shape.as_str() {
        "yield" => {
            yields(order.count, order.each());
            figure(yields(order.count, order.each()));
        }
        "spawn" => figure(second(order.total(), || spawns(order.count, order.each()))),
        "mpsc" => figure(second(2 * order.effort, || std_messages(order.effort))),
        "crossbeam" => figure(second(2 * order.effort, || crossbeam_messages(order.effort))),
        "mutex" => figure(second(order.total(), || locks(order.count, order.each()))),
        "park" => park(order.count),
        "echo" => serve().expect("a server"),
        _ => order.unknown(),
    }
}

fn yields(threads: usize, each: usize) -> f64 {
    let gate = Gate::of(threads);
    let all: Vec<_> = (0..threads)
        .map(|_| {
            let gate = gate.clone();
            thread::spawn(move || {
                gate.arrive();
                while !gate.is_open() {
                    thread::yield_now();
                }
                (0..each).for_each(|_| thread::yield_now());
            })
        })
        .collect();
    all.into_iter().for_each(|thread| thread.join().expect("a thread"));
    gate.since(threads * each)
}

fn spawns(outstanding: usize, times: usize) {
    for _ in 0..times {
        let all: Vec<_> = (0..outstanding).map(|_| thread::spawn(|| ())).collect();
        all.into_iter().for_each(|thread| thread.join().expect("a thread"));
    }
}

fn std_messages(count: usize) {
    let (ping, pinged) = mpsc::channel();
    let (pong, ponged) = mpsc::channel();
    let other = thread::spawn(move || {
        pinged.into_iter().for_each(|i: usize| pong.send(i).expect("a receiver"));
    });
    for i in 0..count {
        ping.send(i).expect("a receiver");
        assert_eq!(ponged.recv(), Ok(i));
    }
    drop(ping);
    other.join().expect("a thread");
}

fn crossbeam_messages(count: usize) {
    let (ping, pinged) = crossbeam_channel::unbounded();
    let (pong, ponged) = crossbeam_channel::unbounded();
    let other = thread::spawn(move || {
        pinged.into_iter().for_each(|i: usize| pong.send(i).expect("a receiver"));
    });
    for i in 0..count {
        ping.send(i).expect("a receiver");
        assert_eq!(ponged.recv(), Ok(i));
    }
    drop(ping);
    other.join().expect("a thread");
}

/// The lock is held over a yield, so that the others meet it locked.
fn locks(threads: usize, each: usize) {
    let counter = Arc::new(Mutex::new(0));
    let all: Vec<_> = (0..threads)
        .map(|_| {
            let counter = counter.clone();
            thread::spawn(move || {
                for _ in 0..each {
                    let mut counter = counter.lock().expect("not poisoned");
                    thread::yield_now();
                    *counter += 1;
                }
            })
        })
        .collect();
    all.into_iter().for_each(|thread| thread.join().expect("a thread"));
    assert_eq!(*counter.lock().expect("not poisoned"), threads * each);
}

fn park(threads: usize) {
    thread::spawn(|| ()).join().expect("a thread");
    peer::stage("base");
    let start = Instant::now();
    let parked = Arc::new(AtomicUsize::new(0));
    let all: Vec<_> = (0..threads)
        .map(|_| {
            let parked = parked.clone();
            thread::spawn(move || {
                parked.fetch_add(1, Ordering::Relaxed);
                loop {
                    thread::park();
                }
            })
        })
        .collect();
    while parked.load(Ordering::Relaxed) < threads {
        thread::sleep(Duration::from_millis(1));
    }
    peer::stage(format_args!("parked {}", peer::per(start.elapsed(), threads)));
    drop(all);
    std::process::exit(0);
}

fn serve() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    peer::say(format_args!("listening on {}", listener.local_addr()?));
    loop {
        let (stream, _) = listener.accept()?;
        // A connection that fails, fails alone.
        thread::spawn(move || drop(echo(stream)));
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
