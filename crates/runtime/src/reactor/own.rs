//! The runtime's own descriptors, which the program may not close.
//!
//! Programs close what they have not opened: a daemon everything above 2, before it begins; a test whatever a loop over
//! numbers finds. As the kernel knows no owners, the interposed `close`, `close_range`, `dup2` and `dup3` ask here, and the
//! runtime's numbers are to them as if nobody had opened them: `EBADF`.
//!
//! A program can still reach them by a bare system call. The next use by the runtime then ends the process
//! with a word (`kernel`): a runtime without its epoll instance could only hang or spin.
//!
//! The list only grows, as drivers are used again and never freed, and is read without a lock: `close` may be called in a
//! signal handler.

use std::os::fd::RawFd;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// How many one driver has.
pub(super) const EACH: usize = 5;

/// One driver's.
struct Node {
    numbers: [RawFd; EACH],
    next: *const Node,
}

static LIST: AtomicPtr<Node> = AtomicPtr::new(null_mut());

/// The least of them all. They live at the top of the limit: nearly every number is below.
static LEAST: AtomicI32 = AtomicI32::new(RawFd::MAX);

/// From now on `numbers` are the runtime's, for ever.
pub(super) fn claim(numbers: [RawFd; EACH]) {
    let node = Box::leak(Box::new(Node { numbers, next: std::ptr::null() }));
    // Relaxed, both loads: the exchange below confirms the one; the other is a bound only.
    let mut first = LIST.load(Ordering::Relaxed);
    loop {
        node.next = first;
        // Release publishes the node.
        match LIST.compare_exchange_weak(first, node, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => break,
            Err(other) => first = other,
        }
    }
    let least = numbers.into_iter().min().unwrap_or(RawFd::MAX);
    // Release: whoever sees the bound finds the node.
    LEAST.fetch_min(least, Ordering::Release);
}

/// Whether `fd` is one of the runtime's own.
#[inline]
pub fn is_own(fd: RawFd) -> bool {
    // Acquire: with the Release in `claim`.
    fd >= LEAST.load(Ordering::Acquire) && is_listed(fd)
}

/// The least of the runtime's own numbers from `first` on.
pub fn next_own(first: u32) -> Option<u32> {
    let own = all().filter_map(|fd| u32::try_from(fd).ok());
    own.filter(|&fd| fd >= first).min()
}

#[cold]
fn is_listed(fd: RawFd) -> bool {
    all().any(|own| own == fd)
}

fn all() -> impl Iterator<Item = RawFd> {
    // Acquire pairs with the Release in `claim`.
    let first = LIST.load(Ordering::Acquire).cast_const();
    // SAFETY: nodes are leaked, and not written after they have been published.
    let nodes =
        std::iter::successors(unsafe { first.as_ref() }, |node| unsafe { node.next.as_ref() });
    nodes.flat_map(|node: &'static Node| node.numbers)
}
