//! What calls that block their thread do to the other fibers: noticed by the monitor, or handed off.
//!
//! ```text
//! cargo run --release --bin blocking [rounds]
//! ```
//!
//! A thousand fibers sleep for 10 ms again and again, and note how late they wake. Meanwhile one more fiber makes
//! the same call again and again for a second: once as libc's own, so that the runtime's monitor has to notice
//! (`uninterposed`), once as a fiber sees it. The medians over the rounds are printed: how long the call took, and the 99th
//! percentile and the worst of the others' delays. In the row "nothing" that fiber only sleeps.

use std::fs::File;
use std::hint::black_box;
use std::net::ToSocketAddrs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Fibers that tick.
const TICKERS: usize = 1000;
const PERIOD: Duration = Duration::from_millis(10);
/// How long a call is made again and again.
const SPAN: Duration = Duration::from_secs(1);
/// Bytes of the file that is read.
const SIZE: usize = 64 << 20;
/// Bytes of one read.
const PART: usize = 64 << 10;

fn main() {
    let rounds = std::env::args().nth(1).map_or(3, |n| n.parse().expect("a number of rounds"));
    let path = std::env::temp_dir().join(format!("sleave-blocking-{}", std::process::id()));
    std::fs::write(&path, vec![1u8; SIZE]).expect("a file");
    let file = Arc::new(File::options().read(true).write(true).open(&path).expect("the file"));
    file.sync_all().expect("a disk");

    for workers in [1, 2] {
        println!(
            "| {workers} worker(s) | call, µs: monitor | handed off | p99 of delays, ms: monitor | handed off \
             | worst, ms: monitor | handed off |"
        );
        println!("|---|--:|--:|--:|--:|--:|--:|");
        for (name, call) in calls(&file) {
            let mut figures = [const { Vec::new() }; 2];
            for _ in 0..rounds {
                figures[0].push(measure(workers, call.clone(), true));
                figures[1].push(measure(workers, call.clone(), false));
            }
            let [monitor, handed_off] = figures.map(median);
            print!("| {name} ");
            for i in 0..3 {
                print!("| {:.3} | {:.3} ", monitor[i], handed_off[i]);
            }
            println!("|");
        }
        println!();
    }
    empty(rounds);
    opening(rounds, &path);
    std::fs::remove_file(&path).expect("the file");
}

type Call = Arc<dyn Fn(usize) + Send + Sync>;

/// The calls by name.
fn calls(file: &Arc<File>) -> Vec<(&'static str, Call)> {
    let cached = file.clone();
    let uncached = file.clone();
    let synced = file.clone();
    vec![
        ("nothing", Arc::new(|_| thread::sleep(Duration::from_millis(100)))),
        // Through a shell: nothing but a call that is handed off whole.
        (
            "system(\"sleep 1\")",
            // SAFETY: system(3) of a string.
            Arc::new(|_| assert_eq!(unsafe { libc::system(c"sleep 1".as_ptr()) }, 0)),
        ),
        ("a read of 64 KiB, cached", Arc::new(move |i| read(&cached, i))),
        (
            "the same, from the disk",
            Arc::new(move |i| {
                // The whole file: of what is cached in large pieces no part is given up.
                // SAFETY: posix_fadvise(2) on an open file.
                unsafe {
                    libc::posix_fadvise(uncached.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED)
                };
                read(&uncached, i);
            }),
        ),
        (
            "a write of 4 KiB and fsync",
            Arc::new(move |i| {
                synced.write_all_at(&[i as u8; 4096], offset(i) as u64).expect("a write");
                synced.sync_all().expect("fsync");
            }),
        ),
        (
            "getaddrinfo(\"localhost\")",
            Arc::new(|_| {
                black_box(("localhost", 80).to_socket_addrs().expect("localhost").count());
            }),
        ),
        (
            "waitpid of a child of 1 s",
            Arc::new(|_| {
                child().wait().expect("a child");
            }),
        ),
    ]
}

fn child() -> Child {
    Command::new("sleep").arg("1").spawn().expect("sleep(1)")
}

fn offset(i: usize) -> libc::off_t {
    (i * 37 % (SIZE / PART) * PART) as libc::off_t
}

fn read(file: &File, i: usize) {
    let mut buffer = [0u8; PART];
    file.read_exact_at(&mut buffer, offset(i) as u64).expect("a read");
    black_box(buffer[0]);
}

/// Microseconds of a call, the 99th percentile and the worst of the others' delays in milliseconds.
fn measure(workers: usize, call: Call, by_monitor: bool) -> [f64; 3] {
    let runtime = sleave::Runtime::builder().workers(workers).build().expect("a runtime");
    let stop = Arc::new(AtomicBool::new(false));
    let tickers: Vec<_> = (0..TICKERS)
        .map(|i| {
            let stop = stop.clone();
            let tick = move || {
                // Not all at the same moment.
                thread::sleep(PERIOD * i as u32 / TICKERS as u32);
                let mut delays = Vec::with_capacity(256);
                while !stop.load(Ordering::Relaxed) {
                    let due = Instant::now() + PERIOD;
                    thread::sleep(PERIOD);
                    delays.push(due.elapsed().as_micros() as u64);
                }
                delays
            };
            runtime.spawn(tick)
        })
        .collect();
    let caller = runtime.spawn(move || {
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        let mut made = 0;
        while start.elapsed() < SPAN {
            if by_monitor {
                sleave::uninterposed(|| call(made));
            } else {
                call(made);
            }
            made += 1;
            // Others' turn, as between two requests.
            sleave::yield_now();
        }
        start.elapsed().as_secs_f64() * 1e6 / made as f64
    });
    let micros = caller.join().expect("a fiber");
    stop.store(true, Ordering::Relaxed);
    let mut delays: Vec<u64> =
        tickers.into_iter().flat_map(|t| t.join().expect("a fiber")).collect();
    runtime.stop();
    delays.sort_unstable();
    let p99 = delays[delays.len() * 99 / 100] as f64 / 1e3;
    [micros, p99, delays[delays.len() - 1] as f64 / 1e3]
}

/// Of each figure.
fn median(figures: Vec<[f64; 3]>) -> [f64; 3] {
    std::array::from_fn(|i| {
        let mut values: Vec<f64> = figures.iter().map(|f| f[i]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    })
}

/// What `blocking` costs around nothing: alone, and with a fiber that always yields.
fn empty(rounds: usize) {
    const CALLS: usize = 20_000;
    let runtime = sleave::Runtime::builder().workers(1).build().expect("a runtime");
    for (name, busy) in [("nobody else", false), ("a fiber that yields", true)] {
        let figures = (0..rounds)
            .map(|_| {
                let stop = Arc::new(AtomicBool::new(!busy));
                let other = {
                    let stop = stop.clone();
                    runtime.spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            sleave::yield_now();
                        }
                    })
                };
                let timed = |with: fn()| {
                    runtime
                        .spawn(move || {
                            let start = Instant::now();
                            for _ in 0..CALLS {
                                with();
                            }
                            start.elapsed().as_nanos() as f64 / CALLS as f64
                        })
                        .join()
                        .expect("a fiber")
                };
                let blocking = timed(|| sleave::blocking(|| ()));
                let yielding = timed(|| {
                    sleave::blocking(|| ());
                    sleave::yield_now();
                });
                stop.store(true, Ordering::Relaxed);
                other.join().expect("a fiber");
                [blocking, yielding, 0.0]
            })
            .collect();
        let [blocking, yielding, _] = median(figures);
        println!(
            "blocking(|| ()), {name}: {blocking:.0} ns; with a yield after each: {yielding:.0} ns"
        );
    }
    runtime.stop();
}

/// What it costs to ask before every `open` whether it names a FIFO, and before every read whether it is cached.
fn opening(rounds: usize, path: &std::path::Path) {
    const CALLS: usize = 20_000;
    let runtime = sleave::Runtime::builder().workers(1).build().expect("a runtime");
    let path = path.to_owned();
    let figures = (0..rounds)
        .map(|_| {
            let path = path.clone();
            let body = move || {
                let open = || {
                    let start = Instant::now();
                    for _ in 0..CALLS {
                        black_box(File::open(&path).expect("the file"));
                    }
                    start.elapsed().as_nanos() as f64 / CALLS as f64
                };
                (sleave::uninterposed(open), open())
            };
            let (plain, asked) = runtime.spawn(body).join().expect("a fiber");
            [plain, asked, 0.0]
        })
        .collect();
    let [plain, asked, _] = median(figures);
    println!(
        "open and close of a file: {plain:.0} ns as libc's own, {asked:.0} ns as a fiber sees it"
    );
    runtime.stop();
}
