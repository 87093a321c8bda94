//! A pipeline of fibers: the sieve of Eratosthenes with a fiber and a channel for each prime.
//!
//! Each stage holds one prime, drops its multiples and passes the rest on. The channels are
//! `std::sync::mpsc` and bounded: a stage that is ahead waits, parked, for the next one. `scope`
//! lets all stages borrow `found`, and returns when the last of them has ended.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};

const LIMIT: u32 = 4_000;

/// One stage: its prime is the first number that arrives.
fn stage<'scope>(
    scope: &'scope sleave::Scope<'scope, '_>,
    numbers: Receiver<u32>,
    found: &'scope Mutex<Vec<u32>>,
) {
    let Ok(prime) = numbers.recv() else { return };
    found.lock().unwrap().push(prime);
    let (sender, rest) = sync_channel(16);
    scope.spawn(move || stage(scope, rest, found));
    for number in numbers.iter().filter(|number| number % prime != 0) {
        sender.send(number).unwrap();
    }
}

/// What has been found.
pub fn story() -> Vec<String> {
    let found = Mutex::new(Vec::new());
    sleave::run(|| {
        sleave::scope(|scope| {
            let (sender, numbers) = sync_channel(16);
            let found = &found;
            scope.spawn(move || stage(scope, numbers, found));
            for number in 2..LIMIT {
                sender.send(number).unwrap();
            }
        });
    });
    let primes = found.into_inner().unwrap();
    let (count, last) = (primes.len(), primes.last().expect("2, at least"));
    vec![format!("{count} primes below {LIMIT}, the last is {last}")]
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
