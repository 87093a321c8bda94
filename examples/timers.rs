//! Sleep sort: each fiber sleeps as long as its number is large, then sends it.
//!
//! 10,000 fibers are in `thread::sleep` at the same time, on as many OS threads as there are
//! CPUs. A timer costs nothing but the sleeping fiber: it lies on that fiber's stack.
//!
//! (As an algorithm this is a joke. As a test of ten thousand timers it is not.)

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const NUMBERS: u64 = 10_000;

fn main() {
    // Numbers from 0 to 9,999 in an order that is none: 7,919 is prime to 10,000.
    let numbers = (0..NUMBERS).map(|i| i * 7_919 % NUMBERS);
    let start = Instant::now();
    let sorted: Vec<u64> = sleave::run(|| {
        let (sender, receiver) = mpsc::channel();
        // Everyone counts from the same moment, when all have been spawned.
        let begin = Instant::now() + Duration::from_millis(200);
        for number in numbers {
            let sender = sender.clone();
            sleave::spawn(move || {
                let at = begin + Duration::from_micros(50 * number);
                thread::sleep(at.saturating_duration_since(Instant::now()));
                sender.send(number).unwrap();
            });
        }
        drop(sender);
        receiver.iter().collect()
    });
    let out_of_order = sorted.windows(2).filter(|pair| pair[0] > pair[1]).count();
    println!(
        "{} numbers in {:?}; {out_of_order} neighbours out of order (50 µs apart, ticks of 65 µs)",
        sorted.len(),
        start.elapsed()
    );
    assert_eq!(sorted.len() as u64, NUMBERS);
}
