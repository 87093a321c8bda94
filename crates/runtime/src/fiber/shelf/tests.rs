//! An owner and visitors of one shelf at the same time.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Shelf, clear_all};
use crate::fiber::space;

/// Slots of a size that no other test uses.
const SLOTS: usize = 8;
const STACK: usize = 20 << 20;
const VISITS: usize = 20_000;
const MOST_VISITS: usize = 100 * VISITS;
const TAKEN: usize = 1_000_000;

#[test]
fn owner_and_visitor_are_never_in_together() {
    let Ok(space) = space() else { return };
    let size = space.slot_size(Some(STACK)).unwrap();
    let slots: Vec<_> = (0..SLOTS).map(|_| space.create(size).unwrap()).collect();
    let names: HashSet<_> = slots.iter().map(|slot| slot.as_ptr() as usize).collect();
    let shelf = Shelf::new();
    // SAFETY: just made, here; nothing runs on them.
    slots.into_iter().for_each(|slot| unsafe { shelf.give(space, slot) });

    let (visited, taken) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Relaxed, both: the scope's end orders everything.
            while !visited.load(Ordering::Relaxed) {
                let held: Vec<_> = (0..4).map_while(|_| shelf.take(space, size, true)).collect();
                taken.fetch_add(held.len(), Ordering::Relaxed);
                // SAFETY: taken above; nothing runs on them.
                held.into_iter().for_each(|slot| unsafe { shelf.give(space, slot) });
            }
        });
        // Long enough for both; not for ever, should slots be lost.
        let mut visits = 0;
        while visits < VISITS || (visits < MOST_VISITS && taken.load(Ordering::Relaxed) < TAKEN) {
            clear_all(space);
            visits += 1;
        }
        visited.store(true, Ordering::Relaxed);
    });

    // Whoever had been in beside another would have lost a slot or given one out twice.
    shelf.clear(space);
    let mut found = space.take_free(size, SLOTS + 1);
    let found: Vec<_> = std::iter::from_fn(|| found.pop()).collect();
    let left: HashSet<_> = found.iter().map(|slot| slot.as_ptr() as usize).collect();
    assert_eq!(found.len(), SLOTS);
    assert_eq!(left, names);
    // All but the first of them are covered still.
    space.repay(SLOTS - 1);
    // SAFETY: taken above; nothing runs on them.
    found.into_iter().for_each(|slot| unsafe { space.discard(slot) });
}
