//! Whatever a coroutine may run on: where it begins and ends, what lies below, and what becomes of it.

mod support;

use proptest::collection::vec;
use proptest::prelude::*;
use sleave_context::backend::{Backend, Bounds, Native};
use sleave_context::stack::{
    Arena, COLOURS, Error, GuardMethod, MAX_SLOT, MIN_STACK, Mapped, Named, Options, Slab, Stack,
    Supplied, colour, locate, slot_size,
};
use std::mem::MaybeUninit;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{Probe, arena, assert_success, in_child, is_child};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
const PAGE: usize = 4096;

/// From the lowest usable byte to one past the highest.
fn bounds(stack: &(impl Stack + ?Sized)) -> (usize, usize) {
    (stack.limit().as_ptr() as usize, stack.top().as_ptr() as usize)
}

type Context = <Native as Backend>::Context;

/// What a body that runs on a stack is told, and tells.
struct Body {
    here: Context,
    there: Context,
    ran_at: usize,
}

unsafe extern "C" fn body(data: usize, first: usize) -> ! {
    let this = data as *mut Body;
    let mut value = first;
    loop {
        let local = std::hint::black_box([value; 64]);
        // SAFETY: the test waits in its swap to us; its structure is ours for now.
        value = unsafe {
            (*this).ran_at = &raw const local as usize;
            let (own, home) = (&raw mut (*this).there, &raw const (*this).here);
            Native::swap(own, home, None, local.iter().sum())
        };
    }
}

/// Runs a body on the stack, twice, and checks that it was this stack that it ran on.
fn run_on(stack: &(impl Stack + ?Sized)) {
    let (limit, top) = bounds(stack);
    let shifted = stack.top().as_ptr().wrapping_sub(stack.shift());
    let mut this = Body { here: Native::empty(), there: Native::empty(), ran_at: 0 };
    let this = &raw mut this;
    // SAFETY: nobody else uses the stack, and the body is never resumed after this.
    unsafe {
        let bounds = Bounds { limit: stack.limit().as_ptr(), top: shifted };
        Native::prepare(&raw mut (*this).there, bounds, body, this as usize);
        for value in [1, 2] {
            let (home, own) = (&raw mut (*this).here, &raw const (*this).there);
            assert_eq!(Native::swap(home, own, None, value), 64 * value);
            assert!((limit..top).contains(&(*this).ran_at));
        }
    }
}

/// What every stack with a guard promises.
fn check_guarded(stack: &(impl Stack + ?Sized), guard_len: usize) {
    let probe = Probe::new();
    let (limit, top) = bounds(stack);
    assert!(top - limit >= MIN_STACK);
    assert!(limit.is_multiple_of(PAGE) && top.is_multiple_of(16));
    assert!(probe.readable(limit) && probe.readable(top - 1));
    for below in [1, 8, PAGE, guard_len] {
        assert!(!probe.readable(limit - below), "{below} bytes below the limit");
    }
    assert!(stack.shift().is_multiple_of(64) && stack.shift() < 64 * COLOURS);
    run_on(stack);
    // The ends can be written, too.
    // SAFETY: the first and the last byte of a stack that nothing runs on.
    unsafe {
        stack.limit().as_ptr().write_volatile(1);
        stack.top().as_ptr().sub(1).write_volatile(1);
    }
}

#[test]
fn a_slab_is_a_slot_of_the_size_asked_for_with_its_guard_just_below() {
    for size in [1, 16 * KIB, 17 * KIB, 64 * KIB, 256 * KIB, 3 * MIB, 128 * MIB] {
        let slab = Slab::new(size).unwrap();
        assert_eq!(Ok(slab.size()), slot_size(size));
        assert_eq!(bounds(&slab).1 - bounds(&slab).0, slab.size() - slab.guard_len());
        assert_eq!(bounds(&slab).1, slab.top().as_ptr() as usize);
        assert_eq!(slab.shift(), colour(slab.index(), COLOURS));
        check_guarded(&slab, slab.guard_len());
    }
    let slab = Slab::default();
    assert_eq!(slab.size(), Slab::DEFAULT_SIZE);
    assert!(Arena::global().unwrap().contains(slab.limit().as_ptr() as usize));
}

#[test]
fn a_first_use_by_several_threads_at_once_makes_one_arena() {
    const NAME: &str = "a_first_use_by_several_threads_at_once_makes_one_arena";
    if !is_child(NAME) {
        // There is one first use in a process; not in each one do the threads meet.
        return (0..20).for_each(|_| assert_success(&in_child(NAME)));
    }
    const THREADS: usize = 2;
    let waiting = AtomicUsize::new(0);
    let slabs: Vec<_> = std::thread::scope(|scope| {
        let take = || {
            waiting.fetch_add(1, Ordering::Relaxed);
            while waiting.load(Ordering::Relaxed) < THREADS {
                std::hint::spin_loop();
            }
            Slab::new(64 * KIB).unwrap()
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let arena = Arena::global().unwrap();
    assert!(slabs.iter().all(|slab| arena.contains(bounds(slab).0)));
    assert_eq!(arena.stats().live(), slabs.len());
}

#[test]
fn a_mapped_stack_has_the_size_asked_for_in_pages_with_its_guard_just_below() {
    for (asked, size) in [
        (1, 2 * PAGE),
        (2 * PAGE, 2 * PAGE),
        (2 * PAGE + 1, 3 * PAGE),
        (100_000, 25 * PAGE),
        (MIB, MIB),
        (2 << 30, 2 << 30), // larger than any slot
    ] {
        let stack = Mapped::new(asked).unwrap();
        assert_eq!(stack.size(), size);
        assert_eq!(stack.guard_len(), PAGE);
        assert_eq!(bounds(&stack).1 - bounds(&stack).0, size - PAGE);
        check_guarded(&stack, PAGE);
    }
}

#[test]
fn impossible_sizes_are_errors() {
    assert_eq!(Slab::new(0).unwrap_err(), Error::Zero);
    assert_eq!(Mapped::new(0).unwrap_err(), Error::Zero);
    let too_large = |requested, limit| Error::TooLarge { requested, limit };
    assert_eq!(Slab::new(MAX_SLOT + 1).unwrap_err(), too_large(MAX_SLOT + 1, MAX_SLOT));
    let limit = isize::MAX as usize - PAGE;
    for size in [limit + 1, usize::MAX] {
        assert_eq!(Mapped::new(size).unwrap_err(), too_large(size, limit));
    }
    // More than there is address space.
    assert_eq!(Mapped::new(limit).unwrap_err(), Error::OutOfMemory);
}

#[test]
fn supplied_memory_is_used_from_end_to_end() {
    let mut memory = [MaybeUninit::<u8>::uninit(); 16 * KIB + 3];
    for from in [0, 1, 2] {
        let piece = &mut memory[from..];
        let expected = (piece.as_ptr() as usize, piece.as_ptr_range().end as usize);
        // SAFETY: the body below needs less than two KiB.
        let stack = unsafe { Supplied::new(piece) }.unwrap();
        assert_eq!(bounds(&stack), expected);
        assert_eq!(stack.shift(), 0);
        run_on(&stack);
        assert_eq!(locate(expected.0), None, "nothing is known about it");
    }
    let least = MIN_STACK;
    for supplied in [0, 1, least - 1] {
        // SAFETY: nothing is run on it.
        let error = unsafe { Supplied::new(&mut memory[..supplied]) }.unwrap_err();
        assert_eq!(error, Error::TooSmall { supplied, least });
        assert!(error.to_string().contains(&least.to_string()));
    }
    // SAFETY: nothing is run on it.
    assert!(unsafe { Supplied::new(&mut memory[..least]) }.is_ok());
}

#[test]
fn a_lent_or_boxed_stack_is_the_stack_itself() {
    let mut slab = Slab::new(64 * KIB).unwrap();
    let itself = (bounds(&slab), slab.shift());
    let lent = &mut slab;
    assert_eq!((bounds(&lent), Stack::shift(&lent)), itself);
    run_on(&lent);
    let boxed: [Box<dyn Stack>; 2] = [Box::new(slab), Box::new(Mapped::new(64 * KIB).unwrap())];
    assert_eq!((bounds(&boxed[0]), boxed[0].shift()), itself, "a move moves no memory");
    boxed.iter().for_each(run_on);
}

#[test]
fn a_dropped_slab_goes_back_to_its_arena_warm() {
    let arena = arena(64 * MIB);
    let first = Slab::from_arena(&arena, 32 * KIB).unwrap();
    let itself = bounds(&first);
    assert!(first.fresh());
    assert_eq!(arena.stats().live(), 1);
    drop(first);
    assert_eq!((arena.stats().live(), arena.stats().free()), (0, 1));
    let second = Slab::from_arena(&arena, 32 * KIB).unwrap();
    assert_eq!(bounds(&second), itself);
    assert!(!second.fresh());
}

#[test]
fn a_slab_that_is_leaked_stays_taken() {
    let arena = arena(64 * MIB);
    let leaked = Slab::from_arena(&arena, 32 * KIB).unwrap();
    let itself = bounds(&leaked);
    std::mem::forget(leaked);
    assert_eq!(arena.stats().live(), 1);
    assert_ne!(bounds(&Slab::from_arena(&arena, 32 * KIB).unwrap()), itself);
}

#[test]
fn a_full_arena_is_an_error_and_a_drop_makes_room() {
    let arena = arena(64 * MIB);
    let slabs: Vec<_> = (0..4).map(|_| Slab::from_arena(&arena, 16 * MIB).unwrap()).collect();
    let full = Slab::from_arena(&arena, 16 * MIB).unwrap_err();
    assert_eq!(full, Error::Exhausted { size: 16 * MIB });
    drop(slabs);
    assert!(Slab::from_arena(&arena, 16 * MIB).is_ok());
}

#[test]
fn a_dropped_mapped_stack_is_unmapped_and_forgotten() {
    // In a process of its own: elsewhere another test may map the same addresses in the meantime.
    const NAME: &str = "a_dropped_mapped_stack_is_unmapped_and_forgotten";
    if !is_child(NAME) {
        return assert_success(&in_child(NAME));
    }
    let stack = Mapped::new(64 * KIB).unwrap();
    let (limit, top) = bounds(&stack);
    run_on(&stack);
    assert!(locate(limit).is_some());
    drop(stack);
    let probe = Probe::new();
    assert!(!probe.readable(limit) && !probe.readable(top - 1));
    assert_eq!(locate(limit), None);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(&format!("{:x}-", limit - PAGE)), "{maps}");
}

#[test]
fn too_many_mappings_are_an_error_that_says_so() {
    const NAME: &str = "too_many_mappings_are_an_error_that_says_so";
    if !is_child(NAME) {
        return assert_success(&in_child(NAME));
    }
    let read = |path| std::fs::read_to_string(path).unwrap();
    let limit: usize = read("/proc/sys/vm/max_map_count").trim().parse().unwrap();
    if limit > 1 << 18 {
        return println!("this kernel allows {limit} mappings: too many to make them all");
    }
    let mut stacks = Vec::new();
    let error = loop {
        match Mapped::new(2 * PAGE) {
            Ok(stack) => stacks.push(stack),
            Err(error) => break error,
        }
    };
    // The last one fails at its guard, or at the mapping itself.
    assert!(matches!(error, Error::TooManyMappings | Error::OutOfMemory), "{error}");
    assert!(stacks.len() > limit / 2 - 1000, "{} stacks", stacks.len());
    assert!(stacks.iter().step_by(1000).all(|stack| locate(bounds(stack).0).is_some()));
    stacks.clear();
    assert!(Mapped::new(2 * PAGE).is_ok(), "and there is room again");
}

#[test]
fn neighbouring_stacks_of_either_kind_differ_in_colour() {
    let colours = |stacks: &[Box<dyn Stack>]| {
        let mut shifts: Vec<_> = stacks.iter().map(|stack| stack.shift()).collect();
        shifts.sort_unstable();
        shifts.dedup();
        shifts.len()
    };
    let slab = || Box::new(Slab::new(64 * KIB).unwrap()) as Box<dyn Stack>;
    let mapped = || Box::new(Mapped::new(64 * KIB).unwrap()) as Box<dyn Stack>;
    for make in [slab, mapped] {
        let stacks: Vec<_> = (0..128).map(|_| make()).collect();
        assert!(colours(&stacks) >= COLOURS / 2, "{}", colours(&stacks));
    }
}

#[test]
fn a_name_is_kept_above_what_runs() {
    let named = Named::new(Mapped::new(16 * KIB).unwrap(), "émile").unwrap();
    let (whole, rest) = (bounds(named.get_ref()), bounds(&named));
    assert_eq!(rest, (whole.0, whole.1 - 64));
    assert_eq!(named.shift(), named.get_ref().shift());
    run_on(&named);
    // SAFETY: all of what the stack may use.
    unsafe { named.limit().as_ptr().write_bytes(0xff, rest.1 - rest.0) };
    assert_eq!(named.name(), "émile");

    let long = "ü".repeat(40);
    let cut = Named::new(Slab::new(16 * KIB).unwrap(), &long[..]).unwrap();
    assert_eq!(cut.name(), "ü".repeat(32));
    let uneven = Named::new(Slab::new(16 * KIB).unwrap(), &format!("x{long}")).unwrap();
    assert_eq!(uneven.name(), format!("x{}", "ü".repeat(31)), "no half characters");

    let smallest = Mapped::new(1).unwrap();
    let error = Named::new(smallest, "no room").unwrap_err();
    assert_eq!(error, Error::TooSmall { supplied: MIN_STACK, least: MIN_STACK + 64 });
}

#[test]
fn an_address_leads_to_the_stack_whatever_its_kind() {
    let arena = arena(64 * MIB);
    let slabs = [Slab::new(64 * KIB).unwrap(), Slab::from_arena(&arena, 64 * KIB).unwrap()];
    let mapped = [(); 5].map(|()| Mapped::new(80 * KIB).unwrap());
    let slabs_in_list = slabs.iter().map(|s| (s as &dyn Stack, 64 * KIB, s.guard_len()));
    let mapped_in_list = mapped.iter().map(|s| (s as &dyn Stack, 80 * KIB, PAGE));
    for (stack, size, guard_len) in slabs_in_list.chain(mapped_in_list) {
        let (limit, top) = bounds(stack);
        for (addr, in_guard) in [
            (limit - guard_len, true),
            (limit - 1, true),
            (limit, false),
            (limit + PAGE, false),
            (top - 1, false),
        ] {
            let location = locate(addr).unwrap();
            assert_eq!((location.limit(), location.top()), (limit, top));
            assert_eq!((location.size, location.guard_len), (size, guard_len));
            assert_eq!(location.in_guard, in_guard);
            assert_eq!(colour(location.index, COLOURS), stack.shift());
        }
    }
    let local = 0;
    for elsewhere in [0, usize::MAX, &raw const local as usize, locate as *const () as usize] {
        assert_eq!(locate(elsewhere), None);
    }
    let base = arena.base();
    drop(slabs);
    assert!(locate(base).is_some(), "a slot that is free is still one");
    drop(arena);
    // Another test may have mapped something there; but not this arena.
    assert_ne!(locate(base).map(|location| location.size), Some(64 * KIB));
}

#[test]
fn ten_thousand_stacks_go_in_and_out_on_several_threads() {
    const THREADS: usize = 4;
    let arena = arena(256 * MIB);
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for id in 0..THREADS {
            let (arena, start) = (&arena, &start);
            scope.spawn(move || {
                start.wait();
                let mut held: Vec<(Box<dyn Stack + '_>, usize)> = Vec::new();
                for round in 0..10_000 / THREADS {
                    let size = [16, 32, 64, 100][round % 4] * KIB;
                    let stack: Box<dyn Stack> = match (round + id) % 3 {
                        0 => Box::new(Mapped::new(size).unwrap()),
                        1 => Box::new(Slab::new(size).unwrap()),
                        _ => Box::new(Slab::from_arena(arena, size).unwrap()),
                    };
                    run_on(&*stack);
                    // A mark that nobody else may overwrite, and an address that must lead back.
                    let mark = id * 100_000 + round;
                    // SAFETY: the first word of our own stack.
                    unsafe { stack.limit().cast::<usize>().as_ptr().write_volatile(mark) };
                    held.push((stack, mark));
                    if held.len() > 50 {
                        let (stack, mark) = held.swap_remove(round * 7 % held.len());
                        // SAFETY: as above.
                        let found =
                            unsafe { stack.limit().cast::<usize>().as_ptr().read_volatile() };
                        assert_eq!(found, mark, "somebody else wrote here");
                        let location = locate(bounds(&*stack).0).unwrap();
                        assert_eq!((location.limit(), location.top()), bounds(&*stack));
                    }
                }
            });
        }
    });
    assert_eq!(arena.stats().live(), 0);
}

/// A step of the property test below.
#[derive(Clone, Debug)]
enum Step {
    Take { mapped: bool, size: usize },
    Give(prop::sample::Index),
    Trim(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![1..=64 * KIB, 1..=2 * MIB, (14_u32..=22).prop_map(|shift| 1 << shift)];
    prop_oneof![
        4 => (any::<bool>(), size).prop_map(|(mapped, size)| Step::Take { mapped, size }),
        3 => any::<prop::sample::Index>().prop_map(Step::Give),
        1 => (0_usize..8).prop_map(Step::Trim),
    ]
}

/// A stack in use, as the model sees it.
enum Live<'a> {
    Slab(Slab<'a>),
    Mapped(Mapped),
}

impl Live<'_> {
    fn stack(&self) -> &dyn Stack {
        match self {
            Live::Slab(slab) => slab,
            Live::Mapped(mapped) => mapped,
        }
    }

    fn guard_len(&self) -> usize {
        match self {
            Live::Slab(slab) => slab.guard_len(),
            Live::Mapped(mapped) => mapped.guard_len(),
        }
    }
}

/// Bytes from the first one of the guard to one past the last one of the stack.
fn extent(live: &Live) -> (usize, usize) {
    let (limit, top) = bounds(live.stack());
    (limit - live.guard_len(), top)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The model is the list of what was taken and not yet given back.
    #[test]
    fn stacks_taken_and_given_in_any_order_never_overlap(
        steps in vec(step(), 1..60),
        guard in prop_oneof![Just(GuardMethod::Madvise), Just(GuardMethod::Mprotect)],
    ) {
        let arena = Arena::with_options(Options { reserve: Some(GIB), guard }).unwrap();
        let mut model: Vec<(Live, usize)> = Vec::new();
        for (mark, step) in steps.into_iter().enumerate() {
            match step {
                Step::Take { mapped, size } => {
                    let live = match mapped {
                        true => Live::Mapped(Mapped::new(size).unwrap()),
                        false => Live::Slab(Slab::from_arena(&arena, size).unwrap()),
                    };
                    let (base, top) = extent(&live);
                    let expected = match mapped {
                        true => size.next_multiple_of(PAGE).max(2 * PAGE),
                        false => slot_size(size).unwrap(),
                    };
                    prop_assert_eq!(top - base, expected);
                    for (other, _) in &model {
                        let other = extent(other);
                        prop_assert!(top <= other.0 || other.1 <= base, "{other:x?} and {base:x}");
                    }
                    for end in [live.stack().limit().as_ptr(), (top - 8) as *mut u8] {
                        // SAFETY: both ends are the stack's own.
                        unsafe { end.cast::<usize>().write_volatile(mark) };
                    }
                    model.push((live, mark));
                }
                Step::Give(_) if model.is_empty() => {}
                Step::Give(which) => {
                    let (live, mark) = model.swap_remove(which.index(model.len()));
                    let top = extent(&live).1;
                    for end in [live.stack().limit().as_ptr(), (top - 8) as *mut u8] {
                        // SAFETY: both ends are the stack's own.
                        prop_assert_eq!(unsafe { end.cast::<usize>().read_volatile() }, mark);
                    }
                }
                Step::Trim(keep) => {
                    let before = arena.stats();
                    let trimmed = arena.trim(keep);
                    let surplus = before.classes.iter();
                    let surplus = surplus.map(|c| (c.free - c.trimmed).saturating_sub(keep));
                    prop_assert_eq!(trimmed, surplus.sum::<usize>());
                }
            }
            let stats = arena.stats();
            for class in stats.classes {
                let same = |live: &&(Live, usize)| {
                    matches!(&live.0, Live::Slab(slab) if slab.size() == class.size)
                };
                prop_assert_eq!(class.live, model.iter().filter(same).count());
                prop_assert_eq!(class.live + class.free + class.fresh, class.slots);
                prop_assert!(class.trimmed <= class.free);
            }
            for (live, _) in &model {
                let (base, top) = extent(live);
                let expected = Some((base, top));
                let found = locate(base).map(|location| (location.base, location.top()));
                prop_assert_eq!(found, expected);
            }
        }
    }
}
