//! Counters, flags and a gate for test bodies.
//!
//! Every access is sequentially consistent: a test argues about behaviour, and an argument about
//! a weaker order of its own counters would only be in the way.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

/// A shared number.
#[derive(Debug, Default)]
pub struct Count(AtomicUsize);

impl Count {
    /// Zero.
    pub const fn new() -> Self {
        Count(AtomicUsize::new(0))
    }

    /// Adds one; returns the new value.
    pub fn up(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Takes one away; returns the new value.
    pub fn down(&self) -> usize {
        self.0.fetch_sub(1, Ordering::SeqCst) - 1
    }

    /// Adds `n`.
    pub fn add(&self, n: usize) {
        self.0.fetch_add(n, Ordering::SeqCst);
    }

    /// Raises the value to `n` if it is lower.
    pub fn at_least(&self, n: usize) {
        self.0.fetch_max(n, Ordering::SeqCst);
    }

    /// Sets the value.
    pub fn set(&self, n: usize) {
        self.0.store(n, Ordering::SeqCst);
    }

    /// The value.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A shared truth value.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    /// Lowered.
    pub const fn new() -> Self {
        Flag(AtomicBool::new(false))
    }

    /// Raises it; returns whether it already was.
    pub fn raise(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Lowers it.
    pub fn lower(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether it is raised.
    pub fn is_up(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Closed at first; opens once, for all who wait.
#[derive(Debug, Default)]
pub struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    /// Lets everybody through, now and later.
    pub fn open(&self) {
        *self.open.lock().expect("nobody panics here") = true;
        self.opened.notify_all();
    }

    /// Waits until it is open.
    pub fn pass(&self) {
        let open = self.open.lock().expect("nobody panics here");
        drop(self.opened.wait_while(open, |open| !*open).expect("nobody panics here"));
    }
}
