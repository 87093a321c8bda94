//! Peer: may, stackful coroutines with a scheduler. See `sleave_bench::peer`.
//!
//! Its `spawn` is unsafe because a coroutine may overflow its stack or touch a thread-local over a switch; nothing here does
//! either. Its default stack, 32 KiB, suits what runs here.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use may::coroutine::{self, JoinHandle};
use may::net::{TcpListener, TcpStream};
use may::sync::{Mutex, mpsc};
use sleave_bench::peer::{self, Order, beyond_one, figure, second};

fn main() {
    let order = Order::parse(std::env::args().skip(1));
    may::config().set_workers(order.workers);
    let driver = spawn(move || match order.shape.as_str() {
        "yield" => figure(beyond_one(&order, |each| yields(order.count, each))),
        "spawn" => figure(second(order.total(), || spawns(order.count, order.each()))),
        "mpsc" => figure(second(2 * order.effort, || messages(order.effort))),
        "mutex" => figure(second(order.total(), || locks(order.count, order.each()))),
        "park" => park(order.count),
        "echo" => serve().expect("a server"),
        _ => order.unknown(),
    });
    driver.join().expect("a coroutine");
}

fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    // SAFETY: no closure here needs more than its stack, and none keeps a thread-local over a switch.
    unsafe { coroutine::spawn(body) }
}

/// Without a gate: who waits by yielding keeps those from running that have not started.
fn yields(coroutines: usize, each: usize) {
    let yielder = move || (0..each).for_each(|_| coroutine::yield_now());
    let all: Vec<_> = (0..coroutines).map(|_| spawn(yielder)).collect();
    all.into_iter().for_each(|one| one.join().expect("a coroutine"));
}

fn spawns(outstanding: usize, times: usize) {
    for _ in 0..times {
        let all: Vec<_> = (0..outstanding).map(|_| spawn(|| ())).collect();
        all.into_iter().for_each(|one| one.join().expect("a coroutine"));
    }
}

fn messages(count: usize) {
    let (ping, pinged) = mpsc::channel();
    let (pong, ponged) = mpsc::channel();
    let other = spawn(move || {
        pinged.into_iter().for_each(|i: usize| pong.send(i).expect("a receiver"));
    });
    for i in 0..count {
        ping.send(i).expect("a receiver");
        assert_eq!(ponged.recv(), Ok(i));
    }
    drop(ping);
    other.join().expect("a coroutine");
}

/// The lock is held over a yield, so that the others meet it locked.
fn locks(coroutines: usize, each: usize) {
    let counter = Arc::new(Mutex::new(0));
    let all: Vec<_> = (0..coroutines)
        .map(|_| {
            let counter = counter.clone();
            spawn(move || {
                for _ in 0..each {
                    let mut counter = counter.lock().expect("not poisoned");
                    coroutine::yield_now();
                    *counter += 1;
                }
            })
        })
        .collect();
    all.into_iter().for_each(|one| one.join().expect("a coroutine"));
    assert_eq!(*counter.lock().expect("not poisoned"), coroutines * each);
}

fn park(coroutines: usize) {
    spawn(|| ()).join().expect("a coroutine");
    peer::stage("base");
    let start = Instant::now();
    let parked = Arc::new(AtomicUsize::new(0));
    let (last, all_parked) = mpsc::channel();
    let all: Vec<_> = (0..coroutines)
        .map(|_| {
            let (parked, last) = (parked.clone(), last.clone());
            spawn(move || {
                if parked.fetch_add(1, Ordering::Relaxed) + 1 == coroutines {
                    last.send(()).expect("a receiver");
                }
                loop {
                    coroutine::park();
                }
            })
        })
        .collect();
    all_parked.recv().expect("the last one");
    peer::stage(format_args!("parked {}", peer::per(start.elapsed(), coroutines)));
    drop(all);
    std::process::exit(0);
}

fn serve() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    peer::say(format_args!("listening on {}", listener.local_addr()?));
    loop {
        let (stream, _) = listener.accept()?;
        // A connection that fails, fails alone.
        spawn(move || drop(echo(stream)));
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
