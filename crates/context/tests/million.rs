//! A million coroutines at once, and what they cost.
//!
//! Each is suspended with a value, resumed with another, and dropped while it is suspended. All that one keeps in memory is
//! the page at the top of its stack, where everything lies that it needs while it waits.
#![cfg(feature = "std")]

mod support;

use sleave_context::stack::{Arena, GuardMethod, MIN_SLOT, Options, Slab};
use sleave_context::{Coroutine, CoroutineState::Yielded};
use std::time::Instant;
use support::{emulator_lacks, mappings};

/// How many at once. A tenth in an unoptimised build, whose unwinding takes three times as long, and most of the time.
const COUNT: usize = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };

#[test]
fn a_million_coroutines_are_alive_at_once() {
    let reserve = Some(COUNT.next_power_of_two() * MIN_SLOT * 2);
    let arena = Arena::with_options(Options { reserve, ..Options::default() }).unwrap();
    // Never taken down: what a coroutine owns must be valid for ever.
    let arena: &'static Arena = Box::leak(Box::new(arena));
    // What guards them is found out by the first one.
    arena.give(arena.take(MIN_SLOT).unwrap());
    // Without guards inside of mappings each stack takes two of them, of the 65,530 that there are.
    let count = if arena.guard_method() == GuardMethod::Madvise { COUNT } else { 30_000 };

    let start = Instant::now();
    let mut coroutines: Vec<Coroutine<u64, u64, u64, Slab>> = (0..count)
        .map(|_| {
            let stack = Slab::from_arena(arena, MIN_SLOT).unwrap();
            Coroutine::with_stack(stack, |yielder, mut input| {
                let mut sum = 0;
                loop {
                    sum += input;
                    input = yielder.suspend(sum);
                }
            })
        })
        .collect();
    for (n, coroutine) in coroutines.iter_mut().enumerate() {
        assert_eq!(coroutine.resume(n as u64), Yielded(n as u64));
    }
    let made = start.elapsed();

    let stats = arena.stats();
    assert_eq!(stats.live(), count);
    let (kernel_mappings, resident) = mappings(arena);
    match arena.guard_method() {
        GuardMethod::Madvise => assert!(kernel_mappings <= 4, "{kernel_mappings} mappings"),
        GuardMethod::Mprotect => assert!(kernel_mappings <= 2 * count + 4),
    }
    // SAFETY: sysconf(3).
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    println!(
        "{count} coroutines: {kernel_mappings} mappings, {} bytes of stack each",
        resident / count
    );
    if !emulator_lacks("Rss in /proc/self/smaps: it is always 0") {
        assert!(resident >= count * page, "each has run on a stack of its own");
        assert!(resident <= count * page + (1 << 20), "{resident} bytes are more than a page each");
    }

    let start = Instant::now();
    let mut total = 0;
    for coroutine in &mut coroutines {
        total += coroutine.resume(1).yielded().unwrap();
    }
    let resumed = start.elapsed();
    let last = count as u64 - 1;
    assert_eq!(total, last * (last + 1) / 2 + count as u64);

    let start = Instant::now();
    drop(coroutines);
    println!("made in {made:.1?}, resumed in {resumed:.1?}, unwound in {:.1?}", start.elapsed());
    let stats = arena.stats();
    assert_eq!((stats.live(), stats.free()), (0, count));
    assert_eq!(arena.trim(0), count);
    let (_, resident) = mappings(arena);
    assert!(resident <= 1 << 20, "{resident} bytes stay");
}
