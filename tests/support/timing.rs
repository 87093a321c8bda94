//! Time, measured so that a loaded machine cannot turn a right answer into a wrong one.
//!
//! A wait that ends early is a bug however busy the machine is: the lower bound is exact and holds
//! for every try. A wait that ends late may be the machine's fault: so a precise upper bound is
//! asked of the *best* of several tries, and only a very generous one of each.

use std::time::{Duration, Instant};

use super::Host;

/// What no single wait may exceed, beyond what it asked for.
pub const GENEROUS: Duration = Duration::from_secs(20);

/// How often a wait is tried until one try is precise.
const TRIES: usize = 20;

/// How much later than asked a wait may end on an idle machine. A fiber's timers are read with
/// the clock's precision; the kernel rounds a socket's timeout to its tick, at worst 10 ms.
fn slack(host: Host) -> Duration {
    if host.is_fibers() { Duration::from_millis(8) } else { Duration::from_millis(25) }
}

/// How long `wait` takes.
fn duration_of(wait: &mut impl FnMut()) -> Duration {
    let start = Instant::now();
    wait();
    start.elapsed()
}

/// Runs `wait`, which asks to wait for `asked`, and asserts that it does so precisely.
pub fn assert_waits(host: Host, asked: Duration, mut wait: impl FnMut()) {
    assert_durations(host, asked, asked, || duration_of(&mut wait));
}

/// As [`assert_waits`], for a timeout that a socket keeps. On threads the kernel counts these in
/// ticks, the first of which has already begun: it may be early by one, 10 ms at worst. A fiber's
/// timer knows no ticks and is never early.
pub fn assert_socket_waits(host: Host, asked: Duration, mut wait: impl FnMut()) {
    assert_socket_durations(host, asked, || duration_of(&mut wait));
}

/// As [`assert_socket_waits`], where `wait` says itself how long the call took that counts.
pub fn assert_socket_durations(host: Host, asked: Duration, wait: impl FnMut() -> Duration) {
    let tick = Duration::from_millis(10);
    let least = if host.is_fibers() { asked } else { asked.saturating_sub(tick) };
    assert_durations(host, least, asked, wait);
}

fn assert_durations(
    host: Host,
    least: Duration,
    asked: Duration,
    mut wait: impl FnMut() -> Duration,
) {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let elapsed = wait();
        assert!(elapsed >= least, "{host}: asked for {asked:?}, woke after {elapsed:?}");
        assert!(elapsed < asked + GENEROUS, "{host}: asked for {asked:?}, took {elapsed:?}");
        best = best.min(elapsed.saturating_sub(asked));
        if best < slack(host) {
            return;
        }
    }
    panic!("{host}: asked for {asked:?}, the best of {TRIES} tries was {best:?} late");
}

/// Runs `f` and asserts that it returns long before `limit`, a wait that must not have been run
/// to its end.
pub fn assert_prompt<T>(limit: Duration, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let value = f();
    let elapsed = start.elapsed();
    assert!(elapsed < limit, "took {elapsed:?} where {limit:?} was the limit");
    value
}

/// Looks until `condition` holds, sleeping between; panics after [`GENEROUS`].
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < GENEROUS, "{what}: not within {GENEROUS:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
