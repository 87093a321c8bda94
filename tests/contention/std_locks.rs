//! `std::sync`'s locks, conditions, barriers and onces.

use std::collections::VecDeque;
use std::sync::{Arc, Barrier, Condvar, LazyLock, Mutex, Once, OnceLock, RwLock};
use std::thread;
use std::time::Duration;

use crate::crowd::{Traffic, fibers, gather, members};
use crate::support::{Count, Host, on_fibers_alone};

#[test]
fn a_mutex_excludes_ten_thousand() {
    on_fibers_alone(|host| {
        let number = Arc::new(Mutex::new(0));
        let shared = Arc::clone(&number);
        let done: usize = gather(host, move |member| {
            for round in member.rounds(5, 100) {
                let mut number = shared.lock().unwrap();
                let before = *number;
                member.dawdle(round);
                *number = before + 1;
            }
            member.rounds(5, 100).len()
        })
        .into_iter()
        .sum();
        assert_eq!(*number.lock().unwrap(), done);
    });
}

#[test]
fn a_rwlock_shows_ten_thousand_readers_no_half_written_pair() {
    on_fibers_alone(|host| {
        let pair = Arc::new(RwLock::new((0, 0)));
        let shared = Arc::clone(&pair);
        let written: usize = gather(host, move |member| {
            let mut written = 0;
            for round in member.rounds(5, 100) {
                if (member.number + round) % 8 == 0 {
                    let mut pair = shared.write().unwrap();
                    pair.0 += 1;
                    member.dawdle(round);
                    pair.1 += 1;
                    written += 1;
                } else {
                    let pair = shared.read().unwrap();
                    let before = *pair;
                    member.dawdle(round);
                    assert_eq!(*pair, before, "written while it was read");
                    assert_eq!(pair.0, pair.1, "half written");
                }
            }
            written
        })
        .into_iter()
        .sum();
        assert_eq!(*pair.read().unwrap(), (written, written));
    });
}

/// A bounded queue of a mutex and two conditions.
struct Buffer {
    /// The values, and how many are still to be taken out.
    state: Mutex<(VecDeque<usize>, usize)>,
    filled: Condvar,
    emptied: Condvar,
}

impl Buffer {
    const ROOM: usize = 16;

    fn put(&self, value: usize) {
        let state = self.state.lock().unwrap();
        let mut state =
            self.emptied.wait_while(state, |state| state.0.len() == Self::ROOM).unwrap();
        state.0.push_back(value);
        self.filled.notify_one();
    }

    fn take(&self) -> Option<usize> {
        let state = self.state.lock().unwrap();
        let wait = |state: &mut (VecDeque<usize>, usize)| state.0.is_empty() && state.1 > 0;
        let mut state = self.filled.wait_while(state, wait).unwrap();
        let value = state.0.pop_front()?;
        state.1 -= 1;
        if state.1 == 0 {
            self.filled.notify_all();
        }
        self.emptied.notify_one();
        Some(value)
    }
}

#[test]
fn two_condvars_hand_over_every_value_once() {
    on_fibers_alone(|host| {
        let traffic = Traffic { each: 5 };
        let buffer = Arc::new(Buffer {
            state: Mutex::new((VecDeque::new(), traffic.total())),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        });
        let receiver = Arc::clone(&buffer);
        traffic.run(host, (buffer, |b, v| b.put(v)), (receiver, |b| b.take()));
    });
}

#[test]
fn each_notify_all_reaches_ten_thousand() {
    on_fibers_alone(|host| {
        // All wait for the next of five acts; the last to come begins it.
        let stage = Arc::new((Mutex::new((0, 0)), Condvar::new()));
        let shared = Arc::clone(&stage);
        gather(host, move |_| {
            for act in 0..5 {
                let mut state = shared.0.lock().unwrap();
                assert_eq!(state.0, act, "an act ahead of the others");
                state.1 += 1;
                if state.1 == members() {
                    *state = (act + 1, 0);
                    shared.1.notify_all();
                } else {
                    drop(shared.1.wait_while(state, |state| state.0 == act).unwrap());
                }
            }
        });
        assert_eq!(*stage.0.lock().unwrap(), (5, 0));
    });
}

#[test]
fn a_barrier_of_ten_thousand_names_one_leader_each_time() {
    on_fibers_alone(|host| {
        const TIMES: usize = 5;
        let shared = Arc::new((Barrier::new(members()), Count::new()));
        let leaders: usize = gather(host, move |_| {
            (0..TIMES).fold(0, |leaders, time| {
                shared.1.up();
                let leads = shared.0.wait().is_leader();
                let here = shared.1.get();
                let may = (time + 1) * members()..=(time + 2) * members();
                assert!(may.contains(&here), "{here} came to the barrier by time {time}");
                leaders + usize::from(leads)
            })
        })
        .into_iter()
        .sum();
        assert_eq!(leaders, TIMES);
    });
}

#[test]
fn ten_thousand_race_for_each_initialisation() {
    struct Firsts {
        once: Once,
        set: OnceLock<usize>,
        lazy: LazyLock<usize, Box<dyn FnOnce() -> usize + Send>>,
        late: OnceLock<usize>,
        calls: Arc<Count>,
    }
    let with = |host: Host, setter: usize| {
        let slow = |calls: &Count, result: usize| {
            thread::sleep(Duration::from_millis(2));
            calls.up();
            result
        };
        let calls = Arc::new(Count::new());
        let lazily = Arc::clone(&calls);
        let firsts = Arc::new(Firsts {
            once: Once::new(),
            set: OnceLock::new(),
            lazy: LazyLock::new(Box::new(move || slow(&lazily, 3))),
            late: OnceLock::new(),
            calls: Arc::clone(&calls),
        });
        let shared = Arc::clone(&firsts);
        let seen = gather(host, move |member| {
            if member.number == setter {
                shared.late.set(slow(&shared.calls, 4)).expect("set once");
            }
            shared.once.call_once(|| _ = slow(&shared.calls, 1));
            assert!(shared.once.is_completed());
            let set = *shared.set.get_or_init(|| slow(&shared.calls, 2));
            (set, *shared.lazy, *shared.late.wait())
        });
        assert!(seen.into_iter().all(|seen| seen == (2, 3, 4)));
        assert_eq!(calls.get(), 4, "initialisers that ran");
    };
    on_fibers_alone(|host| {
        // Set by a fiber in the middle; by a plain thread.
        with(host, fibers() / 2);
        with(host, members() - 1);
    });
}
