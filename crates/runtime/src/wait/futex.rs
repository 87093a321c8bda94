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
//! (`sleave-libc`'s `syscall` and `pthread`).
//!
//! # Signal handlers
//!
//! A handler may post a semaphore, and may have interrupted somebody who holds a bucket's lock.
//! [`wake_in_handler`] therefore only *tries* the lock. If it is held, it leaves a note at the bucket, and
//! tries once more. The holder looks for a note after every unlock, and if there is one wakes
//! *every* waiter of the bucket, which futex(2) allows at any time. Of two steps each, "unlock, look for a note" and
//! "leave a note, try the lock", with a full fence between, one sees the other: no wake is lost.

use std::cell::UnsafeCell;
use std::marker::PhantomPinned;
use std::pin::pin;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, compiler_fence, fence};

use sleave_context::lock::{Guard, Lock};

use super::{Batch, Deadline, Reason, Wait, interrupt};
use crate::fiber::{AtWork, Control};
use crate::inspect::Awaited;
use crate::scheduler;

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
    /// Something else is wanted of the fiber, or was; it has attended to that.
    Interrupted,
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

struct Bucket {
    tree: Lock<Tree>,
    /// A signal handler could not take the lock: whoever held it wakes everybody here.
    note: AtomicBool,
}

static TABLE: [Bucket; BUCKETS] =
    [const { Bucket { tree: Lock::new(Tree(null_mut())), note: AtomicBool::new(false) } }; BUCKETS];

impl Bucket {
    /// Runs `f` under the lock, and afterwards does what the notes left meanwhile ask for.
    fn locked<T>(&self, f: impl FnOnce(&mut Tree) -> T) -> T {
        self.with(self.tree.lock(), f)
    }

    fn with<T>(&self, mut tree: Guard<'_, Tree>, f: impl FnOnce(&mut Tree) -> T) -> T {
        let value = f(&mut tree);
        drop(tree);
        self.answer_notes();
        value
    }

    #[inline]
    fn answer_notes(&self) {
        // Between the unlock and the look, see the essay. On x86-64 the unlock, an exchange, is
        // a full fence itself.
        if cfg!(target_arch = "x86_64") {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
        // Relaxed: ordered by the fence.
        if self.note.load(Ordering::Relaxed) {
            self.wake_everybody();
        }
    }

    #[cold]
    fn wake_everybody(&self) {
        // AcqRel: who left the note changed its word before.
        while self.note.swap(false, Ordering::AcqRel) {
            let mut woken = Batch::new();
            let mut tree = self.tree.lock();
            // SAFETY: lock held; the root is linked, hence alive.
            while let Some(waiter) = unsafe { tree.0.as_ref() } {
                // SAFETY: as above.
                unsafe { tree.release(waiter, &mut woken) };
            }
            drop(tree);
            scheduler::post(woken);
            fence(Ordering::SeqCst);
        }
    }
}

/// The address scattered over all bits: the top ones choose the bucket, the others are the
/// treap's priority, as random as it needs.
fn scatter(address: usize) -> u64 {
    // 2^64 divided by the golden ratio (Knuth, "The Art of Computer Programming" 3, 6.4); the
    // second round makes the low bits depend on all.
    let x = (address as u64 >> 2).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

fn bucket(address: usize) -> &'static Bucket {
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

    /// Takes `waiter` out of the tree and wakes it, unless its deadline was a moment faster;
    /// whether it was woken.
    ///
    /// # Safety
    /// Lock held; the waiter is linked.
    unsafe fn release(&mut self, waiter: &Waiter, woken: &mut Batch) -> bool {
        // SAFETY: by contract, which keeps the fiber inside its wait.
        let won = unsafe {
            self.remove(std::ptr::from_ref(waiter).cast_mut());
            woken.wake(waiter.control, Reason::Woken)
        };
        // Release: the waiter may be gone after this.
        waiter.linked.store(false, Ordering::Release);
        won
    }

    /// Wakes up to `count` of those who wait on `address` with a mask that meets `mask`, at most [`BATCH`] of them;
    /// how many, and whether there may be more.
    ///
    /// # Safety
    /// Lock held.
    unsafe fn take(
        &mut self,
        address: usize,
        count: usize,
        mask: u32,
        woken: &mut Batch,
    ) -> (usize, bool) {
        let (mut total, mut seen) = (0, 0);
        // SAFETY: lock held; the queue's waiters are linked, hence alive.
        unsafe {
            let mut waiter = *self.find(address);
            while let Some(candidate) = waiter.as_ref() {
                if total == count || seen == BATCH {
                    return (total, total < count);
                }
                let next = links(waiter).next;
                if candidate.mask & mask != 0 {
                    seen += 1;
                    // One that its deadline has claimed a moment ago does not count.
                    total += usize::from(self.release(candidate, woken));
                }
                waiter = next;
            }
        }
        (total, false)
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
    // SAFETY: by contract.
    unsafe { wait_for(Awaited::Lock(word as usize), word, expected, mask, deadline) }
}

/// As [`wait`]; `what` is what an onlooker is told that the fiber waits for.
///
/// # Safety
/// As for [`wait`].
#[inline]
pub(crate) unsafe fn wait_for(
    what: Awaited,
    word: *const AtomicU32,
    expected: u32,
    mask: u32,
    deadline: Deadline,
) -> Waited {
    let at_work = AtWork::begin();
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
    let matches = bucket.locked(|tree| {
        // SAFETY: readable by contract. Relaxed: the lock orders this read against wakers.
        let matches = unsafe { (*word).load(Ordering::Relaxed) } == expected;
        if matches {
            // SAFETY: lock held; pinned; released below before it goes out of scope.
            unsafe { tree.push(pointer) };
        }
        matches
    });
    if !matches {
        wait.abandon();
        return Waited::Mismatch;
    }
    let reason = wait.commit(what, deadline);
    // Acquire: `false` is the waker's last access.
    if waiter.linked.load(Ordering::Acquire) {
        bucket.locked(|tree| {
            // Relaxed: under the lock.
            if waiter.linked.load(Ordering::Relaxed) {
                // SAFETY: lock held; linked.
                unsafe { tree.remove(pointer) };
            }
        });
    }
    drop(at_work);
    match interrupt::attended(reason) {
        Reason::TimedOut => Waited::TimedOut,
        Reason::Interrupted => Waited::Interrupted,
        Reason::Woken | Reason::Closed => Waited::Woken,
    }
}

/// Wakes up to `count` fibers that wait on `address` with a mask that meets `mask`, in the
/// order of their coming; returns how many. Wakes no OS thread.
///
/// May be called from anywhere but a signal handler ([`wake_in_handler`]). The address is only a
/// name: nothing is read there.
pub fn wake(address: usize, count: usize, mask: u32) -> usize {
    let _at_work = AtWork::begin();
    let bucket = bucket(address);
    let mut total = 0;
    loop {
        let mut woken = Batch::new();
        // SAFETY: lock held.
        let (taken, more) =
            bucket.locked(|tree| unsafe { tree.take(address, count - total, mask, &mut woken) });
        woken.schedule();
        total += taken;
        if !more {
            return total;
        }
    }
}

/// As [`wake`] of one fiber, for callers who may have interrupted anything: a signal handler on
/// whatever thread. Async-signal-safe.
///
/// `false` if none was woken, or if it is not known: others of the bucket may wake then for no reason.
pub fn wake_in_handler(address: usize) -> bool {
    let _at_work = AtWork::begin();
    let bucket = bucket(address);
    let tree = bucket.tree.try_lock().or_else(|| {
        // Release: the word was changed before. The fence: see the essay.
        bucket.note.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        bucket.tree.try_lock()
    });
    let Some(tree) = tree else { return false };
    let mut woken = Batch::new();
    // SAFETY: lock held.
    let (taken, _) =
        bucket.with(tree, |tree| unsafe { tree.take(address, 1, u32::MAX, &mut woken) });
    scheduler::post(woken);
    taken == 1
}

/// Forgets every waiter: in the child of a fork(2), where the fibers that waited do not exist, and
/// where whoever held a lock of the table never lets it go.
///
/// # Safety
/// The caller is the only thread of its process.
pub unsafe fn forget_in_child() {
    if !crate::fiber::may_exist() {
        return;
    }
    for bucket in &TABLE {
        let fresh = Lock::new(Tree(null_mut()));
        // SAFETY: nobody else exists to use the lock; all of it lies in cells, so it may be written
        // through a shared reference.
        unsafe { std::ptr::from_ref(&bucket.tree).cast_mut().write(fresh) };
        // Relaxed: as above.
        bucket.note.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod handler_tests;
#[cfg(all(test, not(loom)))]
mod tests;
