//! Peer: tokio. The first word says which of its schedulers: `current` or `pool`. See `sleave_bench::peer`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use sleave_bench::peer::{self, Gate, Order, figure, per};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Mutex, Notify, mpsc};

fn main() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    let current = words.next().as_deref() == Some("current");
    let order = Order::parse(words);
    let runtime = if current {
        Builder::new_current_thread().enable_all().build()?
    } else {
        Builder::new_multi_thread().worker_threads(order.workers).enable_all().build()?
    };
    // What drives the shape is a task, as it would be in a program; `block_on` only waits for it.
    let run = run(order);
    if current { runtime.block_on(run) } else { on_pool(&runtime, run) }
}

fn on_pool(
    runtime: &Runtime,
    run: impl Future<Output = io::Result<()>> + Send + 'static,
) -> io::Result<()> {
    runtime.block_on(runtime.spawn(run)).map_err(io::Error::other)?
}

async fn run(order: Order) -> io::Result<()> {
    let (count, each) = (order.count, order.each());
    match order.shape.as_str() {
        "park" => park(count).await,
        "echo" => serve().await?,
        "timers" => figure(timers(count, each).await),
        "yield" => {
            yields(count, each).await;
            figure(yields(count, each).await);
        }
        _ => {
            let operations = match order.shape.as_str() {
                "mpsc" => 2 * order.effort,
                _ => order.total(),
            };
            once(&order).await;
            let start = Instant::now();
            once(&order).await;
            figure(per(start.elapsed(), operations));
        }
    }
    Ok(())
}

async fn once(order: &Order) {
    let (count, each) = (order.count, order.each());
    match order.shape.as_str() {
        "spawn" => spawns(count, each).await,
        "mpsc" => messages(order.effort).await,
        "mutex" => locks(count, each).await,
        _ => order.unknown(),
    }
}

async fn yields(tasks: usize, each: usize) -> f64 {
    let gate = Gate::of(tasks);
    let all: Vec<_> = (0..tasks)
        .map(|_| {
            let gate = gate.clone();
            tokio::spawn(async move {
                gate.arrive();
                while !gate.is_open() {
                    tokio::task::yield_now().await;
                }
                for _ in 0..each {
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for task in all {
        task.await.expect("a task");
    }
    gate.since(tasks * each)
}

async fn spawns(outstanding: usize, times: usize) {
    for _ in 0..times {
        if outstanding == 1 {
            tokio::spawn(async {}).await.expect("a task");
            continue;
        }
        let all: Vec<_> = (0..outstanding).map(|_| tokio::spawn(async {})).collect();
        for task in all {
            task.await.expect("a task");
        }
    }
}

async fn messages(count: usize) {
    let (ping, mut pinged) = mpsc::unbounded_channel();
    let (pong, mut ponged) = mpsc::unbounded_channel();
    let other = tokio::spawn(async move {
        while let Some(i) = pinged.recv().await {
            pong.send(i).expect("a receiver");
        }
    });
    for i in 0..count {
        ping.send(i).expect("a receiver");
        assert_eq!(ponged.recv().await, Some(i));
    }
    drop(ping);
    other.await.expect("a task");
}

async fn locks(tasks: usize, each: usize) {
    let counter = Arc::new(Mutex::new(0));
    let all: Vec<_> = (0..tasks)
        .map(|_| {
            let counter = counter.clone();
            tokio::spawn(async move {
                for _ in 0..each {
                    let mut counter = counter.lock().await;
                    tokio::task::yield_now().await;
                    *counter += 1;
                }
            })
        })
        .collect();
    for task in all {
        task.await.expect("a task");
    }
    assert_eq!(*counter.lock().await, tasks * each);
}

async fn timers(tasks: usize, each: usize) -> f64 {
    let started = Arc::new(AtomicUsize::new(0));
    let all: Vec<_> = (0..tasks)
        .map(|number| {
            let started = started.clone();
            tokio::spawn(async move {
                started.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(peer::first_nap(number)).await;
                for turn in 1..=each {
                    tokio::time::sleep(peer::nap(number, turn)).await;
                }
            })
        })
        .collect();
    while started.load(Ordering::Relaxed) < tasks {
        tokio::task::yield_now().await;
    }
    let before = peer::cpu();
    for task in all {
        task.await.expect("a task");
    }
    per(peer::cpu() - before, tasks * each)
}

async fn park(tasks: usize) {
    tokio::spawn(async {}).await.expect("a task");
    peer::stage("base");
    let start = Instant::now();
    let parked = Arc::new(AtomicUsize::new(0));
    let never = Arc::new(Notify::new());
    let all: Vec<_> = (0..tasks)
        .map(|_| {
            let (parked, never) = (parked.clone(), never.clone());
            tokio::spawn(async move {
                parked.fetch_add(1, Ordering::Relaxed);
                never.notified().await;
            })
        })
        .collect();
    while parked.load(Ordering::Relaxed) < tasks {
        tokio::task::yield_now().await;
    }
    peer::stage(format_args!("parked {}", per(start.elapsed(), tasks)));
    drop(all);
    std::process::exit(0);
}

async fn serve() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    peer::say(format_args!("listening on {}", listener.local_addr()?));
    loop {
        let (stream, _) = listener.accept().await?;
        // A connection that fails, fails alone.
        tokio::spawn(async move { drop(echo(stream).await) });
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}
