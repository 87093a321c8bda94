//! No memory for another stack: spawns are refused, who runs goes on, and all that was accepted ends.

use std::io::ErrorKind;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::child;
use crate::support::timing::eventually;
use crate::support::{Count, Flag, Gate, Host, PATIENCE};

/// Spawns fibers that stay until one is refused, then lets them go; `least` are accepted before.
fn fill_and_empty(host: Host, least: usize) {
    host.run(PATIENCE, &|host: Host| {
        for round in 0..3 {
            let (gate, began) = (Arc::new(Gate::default()), Arc::new(Count::new()));
            // One that was there before is not held up by those who wait for memory.
            let (stop, beats) = (Arc::new(Flag::new()), Arc::new(Count::new()));
            let heart = host.spawn({
                let (stop, beats) = (Arc::clone(&stop), Arc::clone(&beats));
                move || {
                    while !stop.is_up() {
                        beats.up();
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            });
            let mut fibers = Vec::new();
            let error = loop {
                let (gate, began) = (Arc::clone(&gate), Arc::clone(&began));
                let spawned = sleave::Builder::new().spawn(move || {
                    began.up();
                    gate.pass();
                });
                match spawned {
                    Ok(fiber) => fibers.push(fiber),
                    Err(error) => break error,
                }
                if fibers.len().is_multiple_of(64) {
                    sleave::yield_now();
                }
            };
            assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
            let accepted = fibers.len();
            assert!(began.get() >= least, "{} have begun of {accepted}", began.get());
            assert!(began.get() < accepted, "refused without need");
            let before = beats.get();
            eventually("the heart beats", || beats.get() > before + 20);
            gate.open();
            fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
            assert_eq!(began.get(), accepted, "round {round}");
            stop.raise();
            heart.value();
        }
    });
}

#[test]
fn when_the_address_space_is_used_up_spawns_are_refused_until_stacks_are_free() {
    child::run(
        "memory::when_the_address_space_is_used_up_spawns_are_refused_until_stacks_are_free",
        &child::fibers(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        // Leaves 1 GiB for stacks, 4,096 of the usual size.
        child::limit(libc::RLIMIT_AS, 3 << 30);
        fill_and_empty(host, 4_000);
    }
}

#[test]
fn when_memory_is_refused_spawns_are_until_stacks_are_free() {
    child::run(
        "memory::when_memory_is_refused_spawns_are_until_stacks_are_free",
        &child::fibers(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        // Stacks become the process's data 64 MiB at a time.
        child::limit(libc::RLIMIT_DATA, 512 << 20);
        fill_and_empty(host, 1_000);
    }
}

#[test]
fn a_stack_that_can_never_be_had_is_refused() {
    child::run(
        "memory::a_stack_that_can_never_be_had_is_refused",
        &child::fibers(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        child::limit(libc::RLIMIT_AS, 3 << 30);
        host.run(PATIENCE, &|_| {
            let spawned = sleave::Builder::new().stack_size(3 << 29).spawn(|| ());
            assert_eq!(spawned.unwrap_err().kind(), ErrorKind::InvalidInput);
            sleave::spawn(|| ()).join().unwrap();
        });
    }
}

#[test]
fn one_who_waits_for_a_large_stack_does_not_keep_others_from_small_ones() {
    child::run(
        "memory::one_who_waits_for_a_large_stack_does_not_keep_others_from_small_ones",
        &child::fibers(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        child::limit(libc::RLIMIT_AS, 3 << 30);
        host.run(PATIENCE, &|host: Host| {
            let gate = Arc::new(Gate::default());
            let large = |gate: &Arc<Gate>| {
                let gate = Arc::clone(gate);
                sleave::Builder::new().stack_size(400 << 20).spawn(move || gate.pass())
            };
            let mut waiting = vec![large(&gate).unwrap()];
            eventually("a large stack is refused", || match large(&gate) {
                Ok(fiber) => {
                    waiting.push(fiber);
                    false
                }
                Err(error) => error.kind() == ErrorKind::OutOfMemory,
            });
            for i in 0..100 {
                assert_eq!(host.spawn(move || i).value(), i);
            }
            gate.open();
            waiting.into_iter().for_each(|fiber| fiber.join().unwrap());
        });
    }
}

#[test]
fn without_address_space_for_stacks_fibers_are_threads() {
    child::run(
        "memory::without_address_space_for_stacks_fibers_are_threads",
        &child::fibers()[..1],
        body,
        child::succeeds,
    );
    fn body(_: Host) {
        child::limit(libc::RLIMIT_AS, 1 << 30);
        let why = sleave::identity().unwrap_err().to_string();
        assert!(why.contains("RLIMIT_AS"), "{why}");
        assert_eq!(sleave::run(|| sleave::spawn(|| 7).join().unwrap()), 7);
    }
}
