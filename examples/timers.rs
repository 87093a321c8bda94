//! Timers: once, again and again, on a condition; cancelled, refreshed, reset.
//!
//! A pending timer is a small block in a wheel, without a fiber or a stack. When it is due, its callback
//! is called on a fiber, so it may wait: here for the others, by sending into a channel. What is printed
//! is the same every time:
//!
//! ```text
//! once: 10 ms, 20 ms, 30 ms
//! recurring: call 1, call 2 takes two and a half periods, call 3, call 4
//! recurring: no drift, and times were left out
//! condition: tick, tick, and over with its session
//! cancel: true, and again: false; the callback is dropped
//! refresh: alive, alive, alive, and idle 20 ms after the last
//! reset: an hour has become 5 ms
//! ```

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sleave::{Runtime, Since, Timer};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

/// The lines above.
pub fn story() -> std::io::Result<Vec<String>> {
    // One worker, the calling thread: what is due earlier also runs earlier.
    let runtime = Runtime::builder().workers(1).use_caller().build()?;
    let lines = runtime
        .run(|| [once(), recurring(), conditional(), cancelled(), refreshed(), reset()].concat());
    // An hour's timer would not keep it.
    Timer::builder().on(&runtime).after(HOUR, || unreachable!("the runtime stops first"))?;
    runtime.stop();
    Ok(lines)
}

/// What is sent until the last sender, in the last callback, is dropped.
fn told(title: &str, trace: mpsc::Receiver<String>) -> String {
    format!("{title}: {}", trace.iter().collect::<Vec<_>>().join(", "))
}

fn once() -> Vec<String> {
    let (say, trace) = mpsc::channel();
    // Started first, and not the first to be due.
    let last = Timer::after(HOUR, || unreachable!("it is cancelled"));
    for delay in [10, 20, 30] {
        let say = say.clone();
        Timer::after(delay * MS, move || say.send(format!("{delay} ms")).unwrap());
    }
    drop(say);
    let fired = told("once", trace);
    assert!(last.cancel());
    vec![fired]
}

fn recurring() -> Vec<String> {
    let (say, trace) = mpsc::channel();
    let (start, period) = (Instant::now(), 10 * MS);
    let mut calls = 0;
    let timer = Timer::every(period, move |timer| {
        calls += 1;
        // The k-th time is k periods after the start, whatever the calls before it took.
        assert!(start.elapsed() >= period * (calls + timer.missed() as u32));
        if calls == 2 {
            say.send("call 2 takes two and a half periods".into()).unwrap();
            thread::sleep(period * 5 / 2);
        } else {
            say.send(format!("call {calls}")).unwrap();
        }
        if calls == 4 {
            timer.cancel();
        }
    });
    let calls = told("recurring", trace);
    assert!(timer.missed() >= 2);
    vec![calls, "recurring: no drift, and times were left out".into()]
}

fn conditional() -> Vec<String> {
    struct Session;
    let session = Arc::new(Session);
    let (say, trace) = mpsc::channel();
    let timer = Timer::builder()
        .while_alive(&Arc::downgrade(&session))
        .every(5 * MS, move |_| say.send("tick").unwrap())
        .expect("a timer");
    let ticks: Vec<_> = trace.iter().take(2).collect();
    drop(session);
    // Its channel closes when the timer finds nobody at its next time, and ends.
    trace.iter().for_each(drop);
    assert!(timer.is_over());
    vec![format!("condition: {}, and over with its session", ticks.join(", "))]
}

fn cancelled() -> Vec<String> {
    let held = Arc::new(());
    let callback = held.clone();
    let timer = Timer::after(HOUR, move || drop(callback));
    let (first, again) = (timer.cancel(), timer.cancel());
    assert_eq!(Arc::strong_count(&held), 1);
    vec![format!("cancel: {first}, and again: {again}; the callback is dropped")]
}

fn refreshed() -> Vec<String> {
    let (say, idle) = mpsc::channel();
    let timer = Timer::after(HOUR, move || say.send(Instant::now()).unwrap());
    let (mut lines, mut last) = (Vec::new(), Instant::now());
    for _ in 0..3 {
        thread::sleep(5 * MS);
        last = Instant::now();
        // The hour begins anew.
        assert!(timer.refresh());
        lines.push("alive");
    }
    assert!(timer.reset(20 * MS, Since::Start), "counted from when it was refreshed");
    assert!(idle.recv().unwrap() - last >= 20 * MS);
    vec![format!("refresh: {}, and idle 20 ms after the last", lines.join(", "))]
}

fn reset() -> Vec<String> {
    let (say, fired) = mpsc::channel();
    let start = Instant::now();
    let timer = Timer::after(HOUR, move || say.send(start.elapsed()).unwrap());
    assert!(timer.reset(5 * MS, Since::Start));
    assert!(fired.recv().unwrap() >= 5 * MS);
    vec!["reset: an hour has become 5 ms".into()]
}

fn main() -> std::io::Result<()> {
    story()?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
