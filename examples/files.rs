//! Files, names, locks and children: calls that block their thread, on one worker.
//!
//! A clock fiber ticks all the while. What has no readiness blocks the thread, and another has taken the worker's place
//! before. (But a child is waited for by its pidfd, without a thread.) What is told is the same every time:
//!
//! ```text
//! read: 1000 lines, the last of which is line 999
//! names: localhost is a loopback address
//! lock: waited until its holder let go
//! children: 10 of them, all well
//! blocking: 10 calls of 100 ms, all at once
//! the clock ticked meanwhile
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::ToSocketAddrs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sleave::Runtime;

const MS: Duration = Duration::from_millis(1);

fn main() -> io::Result<()> {
    story()?.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// What happens, in order.
pub fn story() -> io::Result<Vec<String>> {
    let runtime = Runtime::builder().workers(1).build()?;
    let path = std::env::temp_dir().join(format!("sleave-files-{}", std::process::id()));
    let told = runtime.run(|| {
        let (over, ticks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clock = sleave::spawn({
            let (over, ticks) = (over.clone(), ticks.clone());
            move || {
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(10 * MS);
                    ticks.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut told = Vec::new();
        read(&path, &mut told)?;
        names(&mut told)?;
        lock(&path, &mut told)?;
        children(&mut told)?;
        let before = ticks.load(Ordering::Relaxed);
        blocking(&mut told);
        let ticked = ticks.load(Ordering::Relaxed) > before;
        over.store(true, Ordering::Relaxed);
        clock.join().expect("a clock does not panic");
        let word = if ticked { "ticked" } else { "stood still" };
        told.push(format!("the clock {word} meanwhile"));
        Ok::<_, io::Error>(told)
    });
    runtime.stop();
    fs::remove_file(path)?;
    told
}

fn read(path: &std::path::Path, told: &mut Vec<String>) -> io::Result<()> {
    let mut file = File::create(path)?;
    for i in 0..1000 {
        writeln!(file, "line {i}")?;
    }
    file.sync_all()?;
    let text = fs::read_to_string(path)?;
    let last = text.lines().last().unwrap_or("none");
    told.push(format!("read: {} lines, the last of which is {last}", text.lines().count()));
    Ok(())
}

fn names(told: &mut Vec<String>) -> io::Result<()> {
    let loopback = ("localhost", 80).to_socket_addrs()?.all(|address| address.ip().is_loopback());
    let is = if loopback { "is" } else { "is not" };
    told.push(format!("names: localhost {is} a loopback address"));
    Ok(())
}

/// `File::lock` is flock(2).
fn lock(path: &std::path::Path, told: &mut Vec<String>) -> io::Result<()> {
    let (held, wanted) = (File::open(path)?, File::open(path)?);
    held.lock()?;
    let start = Instant::now();
    let holder = sleave::spawn(move || {
        thread::sleep(50 * MS);
        drop(held);
    });
    wanted.lock()?;
    let waited = if start.elapsed() >= 50 * MS { "waited" } else { "did not wait" };
    holder.join().expect("a holder does not panic");
    told.push(format!("lock: {waited} until its holder let go"));
    Ok(())
}

fn children(told: &mut Vec<String>) -> io::Result<()> {
    let children: Vec<_> =
        (0..10).map(|_| sleave::spawn(|| Command::new("sleep").arg("0.1").status())).collect();
    let mut well = 0;
    for child in children {
        let status = child.join().expect("a fiber that waits does not panic")?;
        well += usize::from(status.success());
    }
    let all = if well == 10 { "all" } else { "not all" };
    told.push(format!("children: 10 of them, {all} well"));
    Ok(())
}

/// For what the library cannot know to block.
fn blocking(told: &mut Vec<String>) {
    let start = Instant::now();
    sleave::scope(|s| {
        for _ in 0..10 {
            s.spawn(|| sleave::blocking(|| thread::sleep(100 * MS)));
        }
    });
    // One after the other they take a second.
    let how = if start.elapsed() < 900 * MS { "all at once" } else { "one by one" };
    told.push(format!("blocking: 10 calls of 100 ms, {how}"));
}
