//! What a fiber costs: yielding, spawning and joining, sleeping; beside OS threads and tokio tasks.
//!
//! ```text
//! cargo run --release --bin fibers [rounds]
//! ```
//!
//! Candidates of a table are measured by turns and the medians printed. Memory is that of this very process while
//! the fibers sleep: resident pages and page tables, less what there was before they were spawned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Fibers that yield in turn.
const YIELDERS: usize = 1000;
/// Fibers that sleep while memory is read.
const SLEEPERS: usize = 100_000;

fn main() {
    let rounds = std::env::args().nth(1).map_or(5, |n| n.parse().expect("a number of rounds"));
    if let Err(why) = sleave::identity() {
        println!("Here fibers are OS threads: {why}");
    }
    let one = sleave::Runtime::builder().workers(1).build().expect("a runtime");
    let tokio = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let tokio_pool =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");

    println!(
        "| one worker, ns each | sleave | tokio current_thread | tokio 1 worker | OS threads |"
    );
    println!("|---|--:|--:|--:|--:|");
    table(
        "yield, 1,000 in turn",
        rounds,
        &mut [
            &mut || one.run(|| yields(YIELDERS, 300)),
            &mut || tokio.block_on(tokio_yields(YIELDERS, 300)),
            &mut || {
                tokio_pool
                    .block_on(async { tokio::spawn(tokio_yields(YIELDERS, 300)).await.unwrap() })
            },
        ],
    );
    table(
        "spawn + join, one at a time",
        rounds,
        &mut [
            &mut || one.run(|| spawn_one_by_one(20_000)),
            &mut || tokio.block_on(tokio_one_by_one(20_000)),
            &mut || {
                tokio_pool.block_on(async { tokio::spawn(tokio_one_by_one(20_000)).await.unwrap() })
            },
            &mut || threads_one_by_one(500),
        ],
    );
    for count in [1_000, 1_000_000] {
        let name = format!("spawn + join, {count} outstanding");
        table(
            &name,
            rounds,
            &mut [
                &mut || one.run(|| spawn_many(count)),
                &mut || tokio.block_on(tokio_many(count)),
                &mut || {
                    tokio_pool
                        .block_on(async move { tokio::spawn(tokio_many(count)).await.unwrap() })
                },
            ],
        );
    }
    table(
        "std mpsc ping-pong, a message",
        rounds,
        &mut [
            &mut || one.run(|| ping_pong_fibers(20_000)),
            &mut || tokio.block_on(tokio_ping_pong(20_000)),
            &mut || {
                tokio_pool.block_on(async { tokio::spawn(tokio_ping_pong(20_000)).await.unwrap() })
            },
            &mut || ping_pong_threads(5_000),
        ],
    );
    println!();
    memory();
}

/// Runs the candidates by turns; each returns nanoseconds for one.
fn table(name: &str, rounds: usize, candidates: &mut [&mut dyn FnMut() -> f64]) {
    let mut samples = vec![Vec::new(); candidates.len()];
    for _ in 0..rounds {
        for (candidate, samples) in candidates.iter_mut().zip(&mut samples) {
            samples.push(candidate());
        }
    }
    let medians = samples.iter_mut().map(|samples| {
        samples.sort_by(f64::total_cmp);
        format!(" {:.0} |", samples[samples.len() / 2])
    });
    println!("| {name} |{}", medians.collect::<String>());
}

fn each(start: Instant, count: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / count as f64
}

fn yields(fibers: usize, rounds: usize) -> f64 {
    let start = Instant::now();
    sleave::scope(|s| {
        for _ in 0..fibers {
            s.spawn(move || (0..rounds).for_each(|_| sleave::yield_now()));
        }
    });
    each(start, fibers * rounds)
}

async fn tokio_yields(tasks: usize, rounds: usize) -> f64 {
    let start = Instant::now();
    let tasks_: Vec<_> = (0..tasks)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..rounds {
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for task in tasks_ {
        task.await.unwrap();
    }
    each(start, tasks * rounds)
}

fn spawn_one_by_one(count: usize) -> f64 {
    let start = Instant::now();
    (0..count).for_each(|_| sleave::spawn(|| ()).join().unwrap());
    each(start, count)
}

async fn tokio_one_by_one(count: usize) -> f64 {
    let start = Instant::now();
    for _ in 0..count {
        tokio::spawn(async {}).await.unwrap();
    }
    each(start, count)
}

fn threads_one_by_one(count: usize) -> f64 {
    let start = Instant::now();
    (0..count).for_each(|_| thread::spawn(|| ()).join().unwrap());
    each(start, count)
}

fn spawn_many(count: usize) -> f64 {
    let start = Instant::now();
    let fibers: Vec<_> = (0..count).map(|_| sleave::spawn(|| ())).collect();
    fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
    each(start, count)
}

async fn tokio_many(count: usize) -> f64 {
    let start = Instant::now();
    let tasks: Vec<_> = (0..count).map(|_| tokio::spawn(async {})).collect();
    for task in tasks {
        task.await.unwrap();
    }
    each(start, count)
}

/// Messages to a peer and back, over std's channels.
fn ping_pong<H>(
    count: usize,
    spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> H,
    join: impl FnOnce(H),
) -> f64 {
    let (ping, pinged) = std::sync::mpsc::channel();
    let (pong, ponged) = std::sync::mpsc::channel();
    let start = Instant::now();
    let other =
        spawn(Box::new(move || pinged.into_iter().for_each(|i: usize| pong.send(i).unwrap())));
    for i in 0..count {
        ping.send(i).unwrap();
        assert_eq!(ponged.recv().unwrap(), i);
    }
    drop(ping);
    join(other);
    each(start, 2 * count)
}

fn ping_pong_fibers(count: usize) -> f64 {
    ping_pong(count, sleave::spawn, |peer| peer.join().unwrap())
}

fn ping_pong_threads(count: usize) -> f64 {
    ping_pong(count, thread::spawn, |peer| peer.join().unwrap())
}

async fn tokio_ping_pong(count: usize) -> f64 {
    let (ping, mut pinged) = tokio::sync::mpsc::unbounded_channel();
    let (pong, mut ponged) = tokio::sync::mpsc::unbounded_channel();
    let start = Instant::now();
    let other = tokio::spawn(async move {
        while let Some(i) = pinged.recv().await {
            pong.send(i).unwrap();
        }
    });
    for i in 0..count {
        ping.send(i).unwrap();
        assert_eq!(ponged.recv().await, Some(i));
    }
    drop(ping);
    other.await.unwrap();
    each(start, 2 * count)
}

/// Resident pages and page tables of this process, in bytes.
fn resident() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc(5) is mounted");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("a field of proc(5)");
        line.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok()).expect("a number")
            * 1024
    };
    (field("VmRSS:"), field("VmPTE:"))
}

/// What a fiber that sleeps costs in memory, and what a million of them did before it in this process is not in it.
fn memory() {
    let runtime = sleave::Runtime::builder().workers(1).build().expect("a runtime");
    let slept = Arc::new(AtomicUsize::new(0));
    let awake = Arc::new(AtomicBool::new(false));
    // What earlier tables left behind is used up first, then stays as it is.
    let sleepers = |count: usize| {
        (0..count)
            .map(|_| {
                let (slept, awake) = (slept.clone(), awake.clone());
                runtime.spawn(move || {
                    slept.fetch_add(1, Ordering::Relaxed);
                    while !awake.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_secs(1000));
                    }
                })
            })
            .collect::<Vec<_>>()
    };
    let wait = |count: usize| {
        while slept.load(Ordering::Relaxed) < count {
            thread::sleep(Duration::from_millis(10));
        }
        // The last one may still be on its way into the sleep.
        thread::sleep(Duration::from_millis(200));
    };
    let first = 10_000;
    let warm = sleepers(first);
    wait(first);
    let before = resident();
    let all = sleepers(SLEEPERS);
    wait(first + SLEEPERS);
    let after = resident();
    let rss = (after.0 - before.0) / SLEEPERS;
    let tables = (after.1 - before.1) / SLEEPERS;
    println!("A sleeping fiber, of {SLEEPERS}: {rss} B resident, {tables} B page tables.");
    // They sleep for a quarter of an hour: the process ends without them.
    drop((warm, all));
    std::process::exit(0);
}
