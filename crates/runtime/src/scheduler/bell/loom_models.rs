//! A thread that is called by its bell overlooks nothing, and takes exactly the ringings that are its own.

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::Bell;

/// A seat and the driver's bell, as one who sleeps there knows them.
struct House {
    bell: Bell,
    pinned: Mutex<u32>,
    /// Ringings of the driver's bell that nobody has taken.
    ringings: Mutex<u32>,
    rung: Condvar,
}

impl House {
    fn new() -> Arc<House> {
        Arc::new(House {
            bell: Bell::new(),
            pinned: Mutex::new(0),
            ringings: Mutex::new(0),
            rung: Condvar::new(),
        })
    }

    /// As `Seat::give`.
    fn give(&self) {
        *self.pinned.lock().unwrap() += 1;
        if self.bell.ring() {
            *self.ringings.lock().unwrap() += 1;
            self.rung.notify_one();
        }
    }

    fn await_ringing(&self, take: bool) {
        let mut ringings = self.ringings.lock().unwrap();
        while *ringings == 0 {
            ringings = self.rung.wait(ringings).unwrap();
        }
        *ringings -= u32::from(take);
    }

    /// As a worker's loop: takes what is pinned until `count` have come, and sleeps meanwhile.
    fn serve(&self, count: u32) {
        let mut served = 0;
        while served < count {
            let pinned = std::mem::take(&mut *self.pinned.lock().unwrap());
            served += pinned;
            if pinned == 0 && self.bell.lies_down() {
                self.await_ringing(false);
                if self.bell.gets_up() {
                    self.await_ringing(true);
                }
            }
        }
        assert_eq!(served, count);
    }
}

#[test]
fn loom_two_givers_wake_the_holder_of_a_seat() {
    loom::model(|| {
        let house = House::new();
        let givers = [(); 2].map(|()| {
            let house = house.clone();
            thread::spawn(move || house.give())
        });
        house.serve(2);
        givers.into_iter().for_each(|giver| giver.join().unwrap());
        assert_eq!(
            *house.ringings.lock().unwrap(),
            0,
            "a ringing that nobody takes wakes all for ever"
        );
    });
}

#[test]
fn loom_a_thread_that_lies_down_for_another_reason_gets_up_without_the_bell() {
    loom::model(|| {
        let house = House::new();
        let giver = {
            let house = house.clone();
            thread::spawn(move || house.give())
        };
        // An event of the driver ends this sleep at once.
        if house.bell.lies_down() && house.bell.gets_up() {
            house.await_ringing(true);
        }
        house.serve(1);
        giver.join().unwrap();
        assert_eq!(*house.ringings.lock().unwrap(), 0);
    });
}
