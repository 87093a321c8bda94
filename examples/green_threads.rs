//! `std::thread::spawn` gives fibers, for a process that asks for it.
//!
//! Ten thousand threads of std are alive at once: they sleep, count, wait at a barrier and send. The code names sleave in one
//! line; without it the same code needs ten thousand threads of the kernel.

use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const THREADS: u32 = 10_000;

/// Threads of this process that the kernel knows.
fn of_the_kernel() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// What happens.
pub fn story() -> Vec<String> {
    sleave::green_threads(true);

    let (there, count) = (Arc::new(Barrier::new(THREADS as usize + 1)), Arc::new(Mutex::new(0)));
    let (send, receive) = mpsc::channel();
    let threads: Vec<_> = (0..THREADS)
        .map(|own| {
            let (there, count, send) = (Arc::clone(&there), Arc::clone(&count), send.clone());
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(10));
                *count.lock().unwrap() += 1;
                there.wait();
                send.send(u64::from(own)).unwrap();
                own % 10
            })
        })
        .collect();
    drop(send);
    there.wait();
    let kernels = of_the_kernel();
    let sum: u64 = receive.iter().sum();
    let joined: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();

    sleave::green_threads(false);
    vec![
        format!("threads that were there at once: {}", count.lock().unwrap()),
        format!("that the kernel knows, fewer than 100: {}", kernels < 100),
        format!("this time {kernels}"),
        format!("sum of what they sent: {sum}"),
        format!("sum of what they returned: {joined}"),
    ]
}

fn main() {
    for line in story() {
        println!("{line}");
    }
}
