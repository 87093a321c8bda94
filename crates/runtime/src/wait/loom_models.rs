//! The wait word under loom: a fiber that parks, wakers that race for it.
//!
//! The word is the production code; what stands around it is modelled: a list with its lock, the
//! node in it, the registers. Loom reports whoever touches node or registers without having been
//! given them, so "resumed twice", "resumed half-saved" and "a waker still at work on a stack
//! that is gone" all fail, as does a fiber that nobody resumes.

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::interrupt::Attention;
use super::{PREPARING, Reason, WaitWord};

/// A list with room for one node, as a futex queue, a timer wheel and a descriptor are.
struct List {
    /// Whether the node is in the list.
    lock: Mutex<bool>,
    /// As in the real nodes: `false` last, when a waker releases it.
    linked: AtomicBool,
    /// The node's memory, on the fiber's stack.
    node: UnsafeCell<()>,
}

struct Fiber<const LISTS: usize> {
    word: WaitWord,
    attention: Attention,
    registers: UnsafeCell<usize>,
    lists: [List; LISTS],
    resumed: AtomicUsize,
}

impl List {
    fn new() -> List {
        List { lock: Mutex::new(false), linked: AtomicBool::new(false), node: UnsafeCell::new(()) }
    }

    fn link(&self) {
        let mut present = self.lock.lock().unwrap();
        self.node.with_mut(|_| ());
        self.linked.store(true, Ordering::Relaxed);
        *present = true;
    }

    /// As `Descriptor::part`, the end of `futex::wait`, `Timer::cancel`.
    fn unlink(&self) {
        if self.linked.load(Ordering::Acquire) {
            let mut present = self.lock.lock().unwrap();
            if self.linked.load(Ordering::Relaxed) {
                self.node.with_mut(|_| ());
                *present = false;
            }
        }
        // The stack frame goes.
        self.node.with_mut(|_| ());
    }
}

impl<const LISTS: usize> Fiber<LISTS> {
    fn new() -> Arc<Fiber<LISTS>> {
        Arc::new(Fiber {
            word: WaitWord::new(),
            attention: Attention::new(),
            registers: UnsafeCell::new(0),
            lists: std::array::from_fn(|_| List::new()),
            resumed: AtomicUsize::new(0),
        })
    }

    /// The fiber's own part, up to the moment at which it has left its stack.
    fn wait(&self) {
        self.word.prepare();
        self.lists.iter().for_each(List::link);
        if self.word.is_unclaimed() {
            self.registers.with_mut(|registers| {
                // SAFETY: the fiber's own, until it has parked.
                unsafe { *registers = 1 }
            });
            if !self.word.park() || (self.attention.is_called() && self.word.interrupt()) {
                self.resume();
            }
        } else {
            self.go_on();
        }
    }

    /// What a scheduler does with a fiber that it was given.
    fn resume(&self) {
        let registers = self.registers.with_mut(|registers| {
            // SAFETY: exclusive, or loom reports it.
            unsafe { std::mem::take(&mut *registers) }
        });
        assert_eq!(registers, 1, "resumed before it was saved, or twice");
        self.go_on();
    }

    /// The fiber runs again, and begins its next wait.
    fn go_on(&self) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
        self.word.end();
        self.lists.iter().for_each(List::unlink);
        self.word.prepare();
    }

    /// A waker that looks into a list once; whether it found the fiber there.
    fn wake(&self, list: &List, reason: Reason) -> bool {
        let claimed = {
            let mut present = list.lock.lock().unwrap();
            if !*present {
                return false;
            }
            *present = false;
            list.node.with_mut(|_| ());
            let claimed = self.word.claim(reason);
            list.linked.store(false, Ordering::Release);
            claimed
        };
        if claimed == Some(true) {
            self.resume();
        }
        true
    }
}

impl<const LISTS: usize> Fiber<LISTS> {
    /// As [`super::interrupt::interrupt`].
    fn interrupt(&self) {
        self.attention.call();
        if self.word.interrupt() {
            self.resume();
        }
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn loom_a_wake_is_never_lost_between_linking_and_parking() {
    check(|| {
        let fiber = Fiber::<1>::new();
        let waker = {
            let fiber = fiber.clone();
            thread::spawn(move || {
                while !fiber.wake(&fiber.lists[0], Reason::Woken) {
                    thread::yield_now();
                }
            })
        };
        fiber.wait();
        waker.join().unwrap();
        assert_eq!(fiber.resumed.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_of_two_wakers_one_resumes_and_neither_touches_the_next_wait() {
    check(|| {
        let fiber = Fiber::<2>::new();
        let other = {
            let fiber = fiber.clone();
            thread::spawn(move || {
                fiber.wake(&fiber.lists[0], Reason::Woken);
            })
        };
        let timer = {
            let fiber = fiber.clone();
            thread::spawn(move || {
                fiber.wake(&fiber.lists[1], Reason::TimedOut);
            })
        };
        fiber.wait();
        other.join().unwrap();
        timer.join().unwrap();
        // Both may have come too early to find it; then this is the wake that counts.
        if fiber.resumed.load(Ordering::Relaxed) == 0 {
            assert!(fiber.wake(&fiber.lists[1], Reason::TimedOut));
        }
        assert_eq!(fiber.resumed.load(Ordering::Relaxed), 1);
        assert_eq!(fiber.word.0.load(Ordering::Relaxed), PREPARING, "the next wait was claimed");
    });
}

#[test]
fn loom_the_reason_is_that_of_the_waker_who_won() {
    check(|| {
        let word = Arc::new(WaitWord::new());
        word.prepare();
        let wakers = [Reason::TimedOut, Reason::Closed].map(|reason| {
            let word = word.clone();
            thread::spawn(move || word.claim(reason).map(|parked| (reason, parked)))
        });
        let parked = word.park();
        let claims = wakers.map(|waker| waker.join().unwrap());
        let ([Some((reason, scheduled)), None] | [None, Some((reason, scheduled))]) = claims else {
            panic!("one waker wins: {claims:?}");
        };
        // Exactly one of waker and hook schedules the fiber.
        assert_eq!(scheduled, parked);
        assert_eq!(word.end(), reason);
    });
}

#[test]
fn loom_a_fiber_that_is_interrupted_wakes_whenever_that_happens() {
    check(|| {
        let fiber = Fiber::<1>::new();
        let other = {
            let fiber = fiber.clone();
            thread::spawn(move || fiber.interrupt())
        };
        fiber.wait();
        other.join().unwrap();
        // Once, or (it came too early) not yet: then the flag has ended the wait in the hook.
        assert_eq!(fiber.resumed.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_of_a_wake_and_an_interruption_one_resumes() {
    check(|| {
        let fiber = Fiber::<1>::new();
        let waker = {
            let fiber = fiber.clone();
            thread::spawn(move || {
                fiber.wake(&fiber.lists[0], Reason::Woken);
            })
        };
        let other = {
            let fiber = fiber.clone();
            thread::spawn(move || fiber.interrupt())
        };
        fiber.wait();
        waker.join().unwrap();
        other.join().unwrap();
        assert_eq!(fiber.resumed.load(Ordering::Relaxed), 1);
    });
}
