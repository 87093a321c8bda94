//! The token under loom: its owner parks, givers race with it and with each other.
//!
//! The word and its steps are the production code. The futex is modelled: a lock, under which the owner
//! compares the word and queues itself, and under which a giver finds it, as in `wait::futex`. A token that
//! is lost leaves the owner asleep for ever, which loom reports as a dead-lock.

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::{FIBER_WAITS, Ordering, Token};

struct Owner {
    token: Token,
    /// The bucket: whether the owner is queued.
    queued: Mutex<bool>,
    woken: Condvar,
    /// What the givers do before they give: ordered by the token alone.
    gift: [UnsafeCell<usize>; 2],
}

impl Owner {
    fn new() -> Arc<Owner> {
        Arc::new(Owner {
            token: Token::new(),
            queued: Mutex::new(false),
            woken: Condvar::new(),
            gift: std::array::from_fn(|_| UnsafeCell::new(0)),
        })
    }

    /// As `futex::wait`: `false` if the deadline comes first, which is as soon as it may if it `times_out`.
    fn sleep(&self, times_out: bool) -> bool {
        let mut queued = self.queued.lock().unwrap();
        if self.token.0.load(Ordering::Relaxed) != FIBER_WAITS {
            return true;
        }
        *queued = true;
        if times_out {
            drop(queued);
            thread::yield_now();
            // Claimed by the timer, unless a waker was faster.
            return !std::mem::take(&mut *self.queued.lock().unwrap());
        }
        while *queued {
            queued = self.woken.wait(queued).unwrap();
        }
        true
    }

    fn park(&self) {
        assert!(self.token.take(FIBER_WAITS, || self.sleep(false)));
    }

    fn park_briefly(&self) -> bool {
        self.token.take(FIBER_WAITS, || self.sleep(true))
    }

    /// As `Token::give`.
    fn give(&self) {
        if self.token.put().is_some() {
            *self.queued.lock().unwrap() = false;
            self.woken.notify_one();
        }
    }

    /// Leaves `gift` number `n`, then gives the token.
    fn send(&self, n: usize) {
        self.gift[n].with_mut(|gift| {
            // SAFETY: exclusive, or loom reports it.
            unsafe { *gift += 1 }
        });
        self.give();
    }

    fn receive(&self, n: usize) -> usize {
        self.gift[n].with(|gift| {
            // SAFETY: not written to meanwhile, or loom reports it.
            unsafe { *gift }
        })
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn loom_a_token_given_at_any_time_ends_one_park_and_brings_what_came_before() {
    check(|| {
        let owner = Owner::new();
        let giver = thread::spawn({
            let owner = owner.clone();
            move || owner.send(0)
        });
        owner.park();
        assert_eq!(owner.receive(0), 1);
        giver.join().unwrap();
        assert!(!owner.park_briefly(), "one token was taken twice");
    });
}

#[test]
fn loom_two_givers_end_one_park_or_two_and_nothing_of_either_is_unseen() {
    check(|| {
        let owner = Owner::new();
        let givers = [0, 1].map(|n| {
            let owner = owner.clone();
            thread::spawn(move || owner.send(n))
        });
        owner.park();
        givers.into_iter().for_each(|giver| giver.join().unwrap());
        // The second token is there now, or the first park took both.
        owner.park_briefly();
        assert_eq!((owner.receive(0), owner.receive(1)), (1, 1));
        assert!(!owner.park_briefly(), "three tokens out of two");
    });
}

#[test]
fn loom_a_park_that_gives_up_leaves_the_token_to_the_next() {
    check(|| {
        let owner = Owner::new();
        let giver = thread::spawn({
            let owner = owner.clone();
            move || owner.send(0)
        });
        if !owner.park_briefly() {
            // A wake that belongs to the park before may come into this one.
            owner.park();
        }
        assert_eq!(owner.receive(0), 1);
        giver.join().unwrap();
        assert!(!owner.park_briefly(), "one token was taken twice");
    });
}

#[test]
fn loom_two_who_unpark_each_other_in_turn_both_go_on() {
    check(|| {
        let (near, far) = (Owner::new(), Owner::new());
        let other = thread::spawn({
            let (near, far) = (near.clone(), far.clone());
            move || {
                far.park();
                near.give();
                far.park();
            }
        });
        far.give();
        near.park();
        far.give();
        other.join().unwrap();
    });
}
