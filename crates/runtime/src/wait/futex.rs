//! Waiting on a word of memory: futex(2) for fibers.
//!
//! All of `std::sync`, parking_lot and crossbeam wait through `FUTEX_WAIT`. For a fiber that
//! means this table: address → queue of fibers, first come first served.
//!
//! The table is a fixed array of buckets, each a lock and a **treap** of addresses (Seidel &
//! Aragon, "Randomized Search Trees", 1996; Go's semaphores do the same). The first fiber that
//! waits on an address is the tree's node for it and heads the queue of the others, so a million
//! fibers on one condition variable are one node, and a million on a million addresses are a
//! tree 20 deep: nothing is quadratic, nothing is allocated, nothing ever rehashes.
//!
//! ```text
//!   bucket ─▶ (tree by address)          head of queue: first waiter
//!                  A ── queue ─▶ w1 ⇄ w2 ⇄ w3
//!                 / \
//!                B   C
//! ```
//!
//! Nothing is lost: a waiter compares the word *under the bucket's lock* and then links itself;
//! a waker changes the word first and takes the lock afterwards. Either the waiter sees the new
//! value or the waker sees the waiter.
//!
//! Threads wait in the kernel, not here; whoever wakes looks in both places
//! (`sleave-libc`'s `syscall`).

use std::cell::UnsafeCell;
use std::marker::PhantomPinned;
use std::pin::pin;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sleave_context::lock::Lock;

use super::{Batch, Deadline, Reason, Wait};
use crate::fiber::Control;

/// A power of two.
const BUCKETS: usize = 1024;
/// How many are woken under one hold of a bucket's lock.
const BATCH: usize = 128;

/// How a [`wait`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waited {
    /// By a [`wake`].
    Woken,
    /// At once: the word did not have the expected value.
    Mismatch,
    /// By its deadline.
    TimedOut,
}

struct Waiter {
    control: NonNull<Control>,
    address: usize,
    mask: u32,
    /// Written under the bucket's lock; `false` last, when the waiter is released.
    linked: AtomicBool,
    links: UnsafeCell<Links>,
    _pinned: PhantomPinned,
}

/// Guarded by the bucket's lock.
struct Links {
    /// Of a head: the subtrees. Null otherwise.
    left: *mut Waiter,
    right: *mut Waiter,
    /// The queue of one address. A head's `previous` is null and its `last` is the queue's.
    previous: *mut Waiter,
    next: *mut Waiter,
    last: *mut Waiter,
}

/// The root of a bucket's tree.
struct Tree(*mut Waiter);

// SAFETY: the tree's waiters are touched only under the bucket's lock.
unsafe impl Send for Tree {}

static TABLE: [Lock<Tree>; BUCKETS] = [const { Lock::new(Tree(null_mut())) }; BUCKETS];

/// The address scattered over all bits: the top ones choose the bucket, the others are the
/// treap's priority, as random as it needs.
fn scatter(address: usize) -> u64 {
    // 2^64 divided by the golden ratio (Knuth, "The Art of Computer Programming" 3, 6.4); the
    // second round makes the low bits depend on all.
    let x = (address as u64 >> 2).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

fn bucket(address: usize) -> &'static Lock<Tree> {
    &TABLE[(scatter(address) >> (64 - BUCKETS.trailing_zeros())) as usize]
}

fn priority(address: usize) -> u64 {
    scatter(address) << BUCKETS.trailing_zeros()
}

/// The links of a waiter.
///
/// # Safety
/// The bucket's lock is held and the waiter is in its tree or being linked.
#[allow(clippy::mut_from_ref)]
unsafe fn links<'a>(waiter: *mut Waiter) -> &'a mut Links {
    // SAFETY: by contract nobody else has a reference to these links now.
    unsafe { &mut *(*waiter).links.get() }
}

impl Tree {
    /// The place that holds the head for `address`, or null where it would be hung.
    ///
    /// # Safety
    /// The bucket's lock is held, as for all functions of the tree.
    unsafe fn find(&mut self, address: usize) -> *mut *mut Waiter {
        let mut place: *mut *mut Waiter = &mut self.0;
        // SAFETY: every place is the root or a link of a waiter in this tree.
        unsafe {
            while !(*place).is_null() && (**place).address != address {
                let links = links(*place);
                let left = address < (**place).address;
                place = if left { &mut links.left } else { &mut links.right };
            }
        }
        place
    }

    /// Queues `waiter` behind those who wait on its address.
    ///
    /// # Safety
    /// Lock held; the waiter is pinned, in no tree, and released before it is dropped.
    unsafe fn push(&mut self, waiter: *mut Waiter) {
        // SAFETY: lock held; all pointers are waiters of this tree.
        unsafe {
            let address = (*waiter).address;
            let head = *self.find(address);
            if !head.is_null() {
                let last = links(head).last;
                links(waiter).previous = last;
                links(last).next = waiter;
                links(head).last = waiter;
                return;
            }
            links(waiter).last = waiter;
            // Hang it where its priority allows, splitting the subtree it displaces.
            let mut place: *mut *mut Waiter = &mut self.0;
            while !(*place).is_null() && priority((**place).address) >= priority(address) {
                let links = links(*place);
                let left = address < (**place).address;
                place = if left { &mut links.left } else { &mut links.right };
            }
            let (mut rest, new) = (*place, links(waiter));
            *place = waiter;
            let (mut smaller, mut larger): (*mut *mut Waiter, *mut *mut Waiter) =
                (&mut new.left, &mut new.right);
            while !rest.is_null() {
                let links = links(rest);
                if (*rest).address < address {
                    *smaller = rest;
                    smaller = &mut links.right;
                    rest = links.right;
                } else {
                    *larger = rest;
                    larger = &mut links.left;
                    rest = links.left;
                }
            }
            *smaller = null_mut();
            *larger = null_mut();
        }
    }

    /// Takes `waiter` out of its queue, and its address out of the tree if it was the last.
    ///
    /// # Safety
    /// Lock held; the waiter is linked.
    unsafe fn remove(&mut self, waiter: *mut Waiter) {
        // SAFETY: lock held; all pointers are waiters of this tree.
        unsafe {
            let own = links(waiter);
            if !own.previous.is_null() {
                // In the middle or at the end of a queue.
                links(own.previous).next = own.next;
                if own.next.is_null() {
                    links(*self.find((*waiter).address)).last = own.previous;
                } else {
                    links(own.next).previous = own.previous;
                }
                return;
            }
            let place = self.find((*waiter).address);
            if !own.next.is_null() {
                // The head: the second takes its place in the tree.
                let heir = links(own.next);
                heir.previous = null_mut();
                heir.left = own.left;
                heir.right = own.right;
                heir.last = own.last;
                *place = own.next;
                return;
            }
            // The only one: join its subtrees, the higher priority on top.
            let (mut place, mut left, mut right) = (place, own.left, own.right);
            loop {
                if left.is_null() || right.is_null() {
                    *place = if left.is_null() { right } else { left };
                    return;
                }
                if priority((*left).address) >= priority((*right).address) {
                    *place = left;
                    place = &mut links(left).right;
                    left = *place;
                } else {
                    *place = right;
                    place = &mut links(right).left;
                    right = *place;
                }
            }
        }
    }
}

/// Parks the calling fiber while `*word == expected`, until it is woken by a [`wake`] whose mask
/// has a bit in common with `mask`, or `deadline` passes.
///
/// # Safety
/// `word` is readable for the duration of the call.
///
/// # Panics
/// If the caller is not a fiber.
pub unsafe fn wait(word: *const AtomicU32, expected: u32, mask: u32, deadline: Deadline) -> Waited {
    let wait = Wait::prepare();
    let bucket = bucket(word as usize);
    let waiter = pin!(Waiter {
        control: wait.control(),
        address: word as usize,
        mask,
        linked: AtomicBool::new(true),
        links: UnsafeCell::new(Links {
            left: null_mut(),
            right: null_mut(),
            previous: null_mut(),
            next: null_mut(),
            last: null_mut(),
        }),
        _pinned: PhantomPinned,
    });
    let waiter = waiter.as_ref().get_ref();
    let pointer = std::ptr::from_ref(waiter).cast_mut();
    {
        let mut tree = bucket.lock();
        // SAFETY: readable by contract. Relaxed: the lock orders this read against wakers.
        if unsafe { (*word).load(Ordering::Relaxed) } != expected {
            drop(tree);
            wait.abandon();
            return Waited::Mismatch;
        }
        // SAFETY: lock held; pinned; released below before it goes out of scope.
        unsafe { tree.push(pointer) };
    }
    let reason = wait.commit(deadline);
    // Acquire: `false` is the waker's last access.
    if waiter.linked.load(Ordering::Acquire) {
        let mut tree = bucket.lock();
        // Relaxed: under the lock.
        if waiter.linked.load(Ordering::Relaxed) {
            // SAFETY: lock held; linked.
            unsafe { tree.remove(pointer) };
        }
    }
    if reason == Reason::TimedOut { Waited::TimedOut } else { Waited::Woken }
}

/// Wakes up to `count` fibers that wait on `address` with a mask that meets `mask`, in the
/// order of their coming; returns how many. Wakes no OS thread.
///
/// May be called from anywhere. The address is only a name: nothing is read there.
pub fn wake(address: usize, count: usize, mask: u32) -> usize {
    let bucket = bucket(address);
    let mut total = 0;
    loop {
        let mut woken = Batch::new();
        let mut more = false;
        {
            let mut tree = bucket.lock();
            // SAFETY: lock held; the queue's waiters are linked, hence alive.
            unsafe {
                let mut waiter = *tree.find(address);
                let mut seen = 0;
                while let Some(candidate) = waiter.as_ref() {
                    if total == count || seen == BATCH {
                        more = total < count;
                        break;
                    }
                    let next = links(waiter).next;
                    if candidate.mask & mask != 0 {
                        seen += 1;
                        tree.remove(waiter);
                        // One that its deadline has claimed a moment ago does not count.
                        total += usize::from(woken.wake(candidate.control, Reason::Woken));
                        // Release: the waiter may be gone after this.
                        candidate.linked.store(false, Ordering::Release);
                    }
                    waiter = next;
                }
            }
        }
        woken.schedule();
        if !more {
            return total;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
