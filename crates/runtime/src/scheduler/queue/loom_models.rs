//! The queue under loom: every order in which an owner and thieves can meet.
//!
//! An item carries a cell that its maker fills and its taker empties, each with exclusive access:
//! loom reports a taker that is not ordered after the maker, or a second taker. Under loom the
//! first buffer has two slots, so three items grow the ring and a fourth wraps around.

use std::ptr::NonNull;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

use super::Queue;
use crate::fiber::{Kind, Runnable};

#[repr(C)]
struct Item {
    link: Runnable,
    number: UnsafeCell<usize>,
}

/// An item with a number, which is not 0.
fn make(number: usize) -> NonNull<Runnable> {
    let item = Item { link: Runnable::new(Kind::Fresh), number: UnsafeCell::new(0) };
    let item = Box::leak(Box::new(item));
    // SAFETY: nobody else has it yet.
    item.number.with_mut(|cell| unsafe { *cell = number });
    NonNull::from(item).cast()
}

/// The number of an item that has been taken, which frees it.
fn number(taken: NonNull<Runnable>) -> usize {
    // SAFETY: made by `make`; it is ours, or the test fails with good reason.
    let item = unsafe { Box::from_raw(taken.cast::<Item>().as_ptr()) };
    // SAFETY: as above.
    item.number.with_mut(|cell| unsafe { std::mem::take(&mut *cell) })
}

/// # Safety
/// The caller is the owner.
unsafe fn pop(queue: &Queue) -> Option<usize> {
    // SAFETY: by contract.
    unsafe { queue.pop() }.map(number)
}

/// What one theft brings, the oldest first.
fn steal(victim: &Queue) -> Vec<usize> {
    let own = Queue::new();
    let mut all = Vec::new();
    // SAFETY: this thread made its own queue.
    unsafe {
        all.extend(victim.steal(&own).map(number));
        while let Some(next) = pop(&own) {
            all.push(next);
        }
    }
    all
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    // Bugs of such structures need two preemptions at the most; three are explored.
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Each of `1..=count` was taken once, and each taker got them in the order of their coming.
fn assert_complete(count: usize, takers: &[Vec<usize>]) {
    for taken in takers {
        assert!(taken.is_sorted(), "out of order: {taken:?}");
    }
    let mut all: Vec<usize> = takers.concat();
    all.sort_unstable();
    assert_eq!(all, (1..=count).collect::<Vec<_>>(), "{takers:?}");
}

#[test]
fn loom_a_thief_and_a_growing_owner_take_everything_once() {
    check(|| {
        let queue = Arc::new(Queue::new());
        // SAFETY: this thread is the owner, here and below.
        unsafe { queue.push(make(1)) };
        let thief = {
            let queue = queue.clone();
            thread::spawn(move || steal(&queue))
        };
        let mut own = Vec::new();
        // SAFETY: as above.
        unsafe {
            queue.push(make(2));
            queue.push(make(3));
            own.extend(pop(&queue));
        }
        let stolen = thief.join().unwrap();
        // SAFETY: as above.
        own.extend(std::iter::from_fn(|| unsafe { pop(&queue) }));
        assert_complete(3, &[own, stolen]);
    });
}

#[test]
fn loom_slots_are_not_used_again_while_a_thief_reads_them() {
    check(|| {
        let queue = Arc::new(Queue::new());
        // SAFETY: this thread is the owner, here and below.
        unsafe {
            queue.push(make(1));
            queue.push(make(2));
        }
        let thief = {
            let queue = queue.clone();
            thread::spawn(move || steal(&queue))
        };
        let mut own = Vec::new();
        // SAFETY: as above.
        unsafe {
            own.extend(pop(&queue));
            // Into the slot of the first, if the ring has not grown.
            queue.push(make(3));
            own.extend(pop(&queue));
            queue.push(make(4));
        }
        let stolen = thief.join().unwrap();
        // SAFETY: as above.
        own.extend(std::iter::from_fn(|| unsafe { pop(&queue) }));
        assert_complete(4, &[own, stolen]);
    });
}

#[test]
fn loom_two_thieves_do_not_take_the_same() {
    check(|| {
        let queue = Arc::new(Queue::new());
        // SAFETY: this thread is the owner, here and below.
        unsafe {
            queue.push(make(1));
            queue.push(make(2));
        }
        let thieves = [(); 2].map(|()| {
            let queue = queue.clone();
            thread::spawn(move || steal(&queue))
        });
        // SAFETY: as above.
        let mut own: Vec<usize> = unsafe { pop(&queue) }.into_iter().collect();
        let [first, second] = thieves.map(|thief| thief.join().unwrap());
        // SAFETY: as above.
        own.extend(std::iter::from_fn(|| unsafe { pop(&queue) }));
        assert_complete(2, &[own, first, second]);
    });
}

#[test]
fn loom_what_was_stolen_can_be_stolen_on() {
    check(|| {
        let (first, second) = (Arc::new(Queue::new()), Arc::new(Queue::new()));
        // SAFETY: nobody else is there yet.
        unsafe {
            first.push(make(1));
            first.push(make(2));
            first.push(make(3));
        }
        let thief = {
            let (first, second) = (first.clone(), second.clone());
            thread::spawn(move || {
                // SAFETY: this thread owns `second`.
                let mut own: Vec<usize> =
                    unsafe { first.steal(&second) }.map(number).into_iter().collect();
                // SAFETY: as above.
                own.extend(unsafe { pop(&second) });
                own
            })
        };
        // The thief's own loot, which the maker of the items did not push there.
        let again = steal(&second);
        let mut stolen = thief.join().unwrap();
        // SAFETY: the other thread has ended, so both queues are ours.
        stolen.extend(std::iter::from_fn(|| unsafe { pop(&second) }));
        // SAFETY: as above.
        let rest = std::iter::from_fn(|| unsafe { pop(&first) }).collect();
        assert_complete(3, &[stolen, again, rest]);
    });
}
