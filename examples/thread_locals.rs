//! Thread-locals belong to the fiber, wherever it runs.
//!
//! The fibers sleep and so move between the two workers. The one thing that changes is what the kernel
//! says: the OS thread below. What the language keeps per thread goes along: a `thread_local!`,
//! its destructor at the fiber's end, `thread::current().id()`, even the *address* of the
//! variable, which a compiler may keep in a register over the sleep.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

const FIBERS: usize = 1_000;
static DESTROYED: AtomicUsize = AtomicUsize::new(0);

#[derive(Default)]
struct Diary(RefCell<Vec<usize>>);

impl Drop for Diary {
    fn drop(&mut self) {
        DESTROYED.fetch_add(1, Ordering::Relaxed);
    }
}

thread_local!(static DIARY: Diary = Diary::default());

/// The OS thread that carries the caller.
fn carrier() -> i32 {
    // SAFETY: gettid(2) has no arguments.
    unsafe { libc::gettid() }
}

fn live(number: usize) -> (thread::ThreadId, usize) {
    let (id, address) = (thread::current().id(), DIARY.with(|diary| &raw const *diary));
    let mut carriers = HashSet::new();
    for day in 0..10 {
        DIARY.with(|diary| diary.0.borrow_mut().push(number));
        carriers.insert(carrier());
        thread::sleep(Duration::from_millis(1 + (number * day % 7) as u64));
    }
    assert_eq!(DIARY.with(|diary| diary.0.take()), [number; 10], "only its own entries");
    assert_eq!((id, address), (thread::current().id(), DIARY.with(|d| &raw const *d)));
    (id, carriers.len())
}

/// What is found in the end. The last line is another every time.
pub fn story() -> Vec<String> {
    let runtime = sleave::Runtime::builder().workers(2).build().expect("a runtime");
    let fibers: Vec<_> = (0..FIBERS).map(|number| runtime.spawn(move || live(number))).collect();
    let (ids, carriers): (HashSet<_>, Vec<_>) =
        fibers.into_iter().map(|fiber| fiber.join().unwrap()).unzip();
    let moved = carriers.iter().filter(|&&count| count > 1).count();
    runtime.stop();
    vec![
        format!("{FIBERS} fibers, each with its own entries, at one address, to its end"),
        format!("{} thread ids, {} destructors", ids.len(), DESTROYED.load(Ordering::Relaxed)),
        format!("this time: {moved} of them ran on more than one OS thread"),
    ]
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
