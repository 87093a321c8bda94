//! A stop against those who spawn from outside at that moment: each spawn either runs to its end or is refused.
//!
//! The seed is printed; `SLEAVE_STRESS_SEED` runs it again.

use std::env;
use std::sync::Arc;
use std::thread;

use super::*;
use crate::support::Count;
use crate::support::kernel::{block_thread, say};
use crate::support::load::{Census, work};
use crate::support::random::fresh_seed;

const ROUNDS: usize = if cfg!(debug_assertions) { 20 } else { 100 };
const SPAWNERS: usize = 3;
/// Of each spawner, if nobody refuses them earlier.
const MOST: usize = 2000;

fn seed() -> u64 {
    match env::var("SLEAVE_STRESS_SEED") {
        Ok(seed) => seed.parse().expect("SLEAVE_STRESS_SEED is a number"),
        Err(_) => fresh_seed(),
    }
}

/// Spawns until it is refused; whether it was.
fn spawn_until_refused(runtime: &Runtime, census: &Arc<Census>, random: &mut Random) -> bool {
    for _ in 0..MOST {
        let (guest, kind, numbers) = (census.guest(), random.within(0..64), random.split());
        let body = move || {
            // Mostly short, so that there are many; now and then something of everything.
            if kind < 50 { guest.begins() } else { work(kind, guest, numbers) }
        };
        let own = Arc::clone(census);
        match Builder::new().spawn_on(runtime, body) {
            Ok(handle) => drop(handle),
            Err(e) => {
                assert_eq!(e.to_string(), "the runtime has been stopped");
                own.refused();
                return true;
            }
        }
        if random.within(0..8) == 0 {
            block_thread(Duration::from_micros(random.next() % 50));
        }
    }
    false
}

#[test]
fn each_spawn_from_outside_runs_to_its_end_or_is_refused() {
    let seed = seed();
    say(&format!("stop against spawns: SLEAVE_STRESS_SEED={seed}\n"));
    let refused = Count::new();
    each(|_| {
        let mut random = Random::new(seed);
        for round in 0..ROUNDS {
            let builder = Runtime::builder().workers(1 + round % 4).name(NAME);
            let builder = if random.within(0..2) == 0 { builder.use_caller() } else { builder };
            let runtime = Arc::new(builder.build().unwrap());
            let census = Census::new();
            thread::scope(|threads| {
                for _ in 0..SPAWNERS {
                    let (runtime, census, refused) = (&runtime, &census, &refused);
                    let mut random = random.split();
                    threads.spawn(move || {
                        if spawn_until_refused(runtime, census, &mut random) {
                            refused.up();
                        }
                    });
                }
                let (moment, way) = (random.next() % 3000, random.within(0..4));
                block_thread(Duration::from_micros(moment));
                let stopper = Arc::clone(&runtime);
                match way {
                    0 => runtime.stop(),
                    // Asked by a fiber; or it is refused, if a thread was faster.
                    1 => drop(Builder::new().spawn_on(&runtime, move || stopper.stop())),
                    2 => while !runtime.stop_timeout(Duration::from_micros(moment)) {},
                    _ => {
                        threads.spawn(move || stopper.stop());
                        runtime.stop();
                    }
                }
            });
            runtime.stop();
            census.assert_complete();
            assert_over(&runtime);
        }
    });
    assert!(refused.get() > 0, "nobody was ever too late");
}
