//! Stacks: sizes, guards, recycling, trimming, limits. Each test has an arena of its own.

mod support;

use sleave_context::stack::{
    Arena, Error, GuardMethod, MAX_SLOT, MIN_SLOT, Options, Slot, guard_len, slot_size,
};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use support::{
    Probe, arena, assert_resident, assert_success, emulator_lacks, in_child, is_child, mappings,
};

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// Writes the first and last word that a user of the slot may write.
fn write_ends(slot: &Slot, value: usize) {
    // SAFETY: both words are the slot's, above its guard.
    unsafe {
        slot.base().add(slot.guard_len()).cast::<usize>().write_volatile(value);
        slot.top().cast::<usize>().sub(1).write_volatile(value);
    }
}

fn read_ends(slot: &Slot) -> (usize, usize) {
    // SAFETY: as above.
    unsafe {
        (
            slot.base().add(slot.guard_len()).cast::<usize>().read_volatile(),
            slot.top().cast::<usize>().sub(1).read_volatile(),
        )
    }
}

#[test]
fn sizes_are_rounded_up_to_aligned_powers_of_two() {
    let arena = arena(8 * GIB);
    let sizes = [
        (1, MIN_SLOT),
        (MIN_SLOT, MIN_SLOT),
        (MIN_SLOT + 1, 2 * MIN_SLOT),
        (100_000, 128 * 1024),
        (2 * MIB, 2 * MIB),
        (64 * MIB, 64 * MIB),
        (65 * MIB, 128 * MIB),
        (MAX_SLOT - 5, MAX_SLOT),
        (MAX_SLOT, MAX_SLOT),
    ];
    let mut numbers = HashSet::new();
    for (asked, size) in sizes {
        assert_eq!(slot_size(asked), Ok(size));
        let slot = arena.take(asked).unwrap();
        assert_eq!(slot.size(), size);
        assert_eq!(slot.base() as usize % size, 0, "{slot:?}");
        assert_eq!(slot.top() as usize, slot.base() as usize + size);
        assert_eq!(Ok(slot.guard_len()), guard_len(asked));
        assert!(slot.fresh());
        assert_eq!(read_ends(&slot), (0, 0));
        write_ends(&slot, 7);
        assert!(numbers.insert(slot.index()), "numbers are unique over all classes");
        drop(slot); // not given back: it stays taken
    }
    assert_eq!(arena.stats().live(), sizes.len());
    let (count, _) = mappings(&arena);
    let guards = match arena.guard_method() {
        GuardMethod::Madvise => 0,
        GuardMethod::Mprotect => 2 * sizes.len(),
    };
    assert!(count <= 8 + guards, "{count} mappings");
}

#[test]
fn impossible_sizes_are_errors_with_a_reason() {
    let arena = arena(128 * MIB);
    assert_eq!(arena.take(0).unwrap_err(), Error::Zero);
    for size in [MAX_SLOT + 1, usize::MAX / 2 + 2, usize::MAX] {
        let error = arena.take(size).unwrap_err();
        assert_eq!(error, Error::TooLarge { requested: size, limit: MAX_SLOT });
        assert!(error.to_string().contains(&size.to_string()));
    }
    for reserve in [0, 1, 64 * MIB + 4096, 8 << 40] {
        let options = Options { reserve: Some(reserve), ..Options::default() };
        let error = Arena::with_options(options).unwrap_err();
        assert_eq!(error, Error::BadReservation { requested: reserve });
    }
    assert!(arena.take_many(0, &mut [None]).is_err());
    assert_eq!(arena.stats().live(), 0);
}

#[test]
fn a_full_reservation_says_so_and_works_again_after_a_return() {
    let arena = arena(128 * MIB);
    let mut slots: Vec<_> = (0..8).map(|_| arena.take(16 * MIB).unwrap()).collect();
    assert_eq!(arena.take(16 * MIB).unwrap_err(), Error::Exhausted { size: 16 * MIB });
    assert_eq!(arena.take(16 * 1024).unwrap_err(), Error::Exhausted { size: 16 * 1024 });
    assert_eq!(arena.take(128 * MIB).unwrap_err(), Error::Exhausted { size: 128 * MIB });
    let last = slots.pop().unwrap();
    let number = last.index();
    arena.give(last);
    assert_eq!(arena.take(16 * MIB).unwrap().index(), number);

    // Some are taken, not all that were asked for: that is no error.
    slots.drain(..5).for_each(|slot| arena.give(slot));
    let mut many = [const { None }; 7];
    assert_eq!(arena.take_many(16 * MIB, &mut many), Ok(5));
    assert_eq!(many.iter().flatten().count(), 5);
}

#[test]
fn large_slots_fill_the_reservation_without_waste() {
    let arena = arena(4 * GIB);
    // Large and small ones by turns: small from below, large from above, aligned gaps reused.
    let mut bytes = 0;
    let mut last = None;
    for size in [128 * MIB, GIB, 256 * MIB, 512 * MIB, 128 * MIB, 64 * MIB, 1024, 512 * MIB] {
        let slot = arena.take(size).unwrap();
        write_ends(&slot, 1);
        bytes += slot.size().max(64 * MIB);
        last = Some(slot);
    }
    assert_eq!(arena.stats().accessible, bytes);
    assert!(last.is_some());
    // The rest, chunk by chunk, up to the last one.
    for _ in 0..(4 * GIB - bytes) / (64 * MIB) {
        let _ = arena.take(64 * MIB).unwrap();
    }
    assert_eq!(arena.take(64 * MIB).unwrap_err(), Error::Exhausted { size: 64 * MIB });
    assert_eq!(arena.stats().accessible, 4 * GIB);
}

#[test]
fn the_warmest_stack_goes_out_first_as_it_was_left() {
    let arena = arena(128 * MIB);
    let slots: Vec<_> = (0..20).map(|_| arena.take(32 * 1024).unwrap()).collect();
    let numbers: Vec<_> = slots.iter().map(Slot::index).collect();
    for slot in slots {
        write_ends(&slot, slot.index() as usize + 1);
        arena.give(slot);
    }
    for number in numbers.iter().rev() {
        let slot = arena.take(32 * 1024).unwrap();
        assert_eq!(slot.index(), *number);
        assert!(!slot.fresh());
        assert_eq!(read_ends(&slot), (*number as usize + 1, *number as usize + 1));
    }
}

#[test]
fn many_at_once_keep_the_order() {
    let arena = arena(256 * MIB);
    let mut cache: [Option<Slot>; 8] = [const { None }; 8];
    cache[3] = Some(arena.take(16 * 1024).unwrap());
    let kept = cache[3].as_ref().unwrap().index();
    assert_eq!(arena.take_many(16 * 1024, &mut cache), Ok(7));
    assert_eq!(cache[3].as_ref().unwrap().index(), kept, "what is there stays");
    let numbers: Vec<_> = cache.iter().flatten().map(Slot::index).collect();
    arena.give_many(&mut cache);
    assert!(cache.iter().all(Option::is_none));
    assert_eq!(arena.take_many(16 * 1024, &mut cache), Ok(8));
    let again: Vec<_> = cache.iter().flatten().map(Slot::index).collect();
    assert_eq!(again, numbers);

    // Sizes mixed.
    cache[0] = Some(arena.take(64 * 1024).unwrap());
    cache[5] = Some(arena.take(MIB).unwrap());
    arena.give_many(&mut cache);
    let stats = arena.stats();
    assert_eq!(stats.live(), 2, "the two replaced above were dropped, hence lost: {stats:?}");
    assert_eq!(stats.free(), 8);
}

#[test]
#[should_panic(expected = "not from")]
fn another_arenas_stack_is_refused() {
    let (mine, theirs) = (arena(64 * MIB), arena(64 * MIB));
    theirs.give(mine.take(16 * 1024).unwrap());
}

#[test]
fn an_address_is_located_in_its_slot() {
    let arena = arena(GIB);
    assert_eq!(arena.locate(arena.base()), None, "no stack was ever there");
    for size in [16 * 1024, 256 * 1024, 128 * MIB] {
        let slot = arena.take(size).unwrap();
        let base = slot.base() as usize;
        let guard = slot.guard_len();
        for (offset, in_guard) in
            [(0, true), (guard - 1, true), (guard, false), (size / 2, false), (size - 1, false)]
        {
            let location = arena.locate(base + offset).unwrap();
            assert_eq!(location.base, base);
            assert_eq!(location.size, size);
            assert_eq!(location.in_guard, in_guard, "offset {offset}");
            assert_eq!(location.index, slot.index());
        }
    }
    for outside in [0, arena.base() - 1, arena.base() + arena.len(), usize::MAX] {
        assert!(!arena.contains(outside));
        assert_eq!(arena.locate(outside), None);
    }
    assert!(arena.contains(arena.base()) && arena.contains(arena.base() + arena.len() - 1));
}

/// Guards of either method: in place for every slot, still there after a trim, nothing else touched.
fn guards_hold(method: GuardMethod) {
    let options = Options { reserve: Some(512 * MIB), guard: method };
    let arena = Arena::with_options(options).unwrap();
    let probe = Probe::new();
    for size in [16 * 1024, 64 * 1024, MIB] {
        let slots: Vec<_> = (0..100).map(|_| arena.take(size).unwrap()).collect();
        let check = |slot: &Slot| {
            let base = slot.base() as usize;
            let guard = slot.guard_len();
            assert!(!probe.readable(base) && !probe.readable(base + guard - 1), "{slot:?}");
            assert!(probe.readable(base + guard) && probe.readable(base + size - 1), "{slot:?}");
        };
        for slot in &slots {
            check(slot);
            write_ends(slot, usize::MAX);
        }
        slots.into_iter().for_each(|slot| arena.give(slot));
        assert_eq!(arena.trim(0), 100);
        for _ in 0..100 {
            let slot = arena.take(size).unwrap();
            assert!(slot.fresh());
            assert_eq!(read_ends(&slot), (0, 0), "trimmed means zero");
            check(&slot);
            drop(slot); // not given back: it stays taken
        }
    }
    assert_eq!(arena.guard_method(), method);
    let (count, _) = mappings(&arena);
    match method {
        GuardMethod::Madvise => assert!(count <= 4, "{count} mappings"),
        GuardMethod::Mprotect => assert!(count >= 600, "{count} mappings"),
    }
}

/// Does this kernel know `MADV_GUARD_INSTALL`? What [`GuardMethod::Madvise`] becomes otherwise is tested apart.
fn kernel_has_guards() -> bool {
    let arena = arena(64 * MIB);
    let _ = arena.take(16 * 1024).unwrap();
    arena.guard_method() == GuardMethod::Madvise
}

#[test]
fn guards_without_a_mapping_hold_and_survive_a_trim() {
    if kernel_has_guards() {
        guards_hold(GuardMethod::Madvise);
    } else {
        println!("this kernel has no MADV_GUARD_INSTALL (Linux 6.13)");
    }
}

#[test]
fn guards_with_mappings_hold_and_survive_a_trim() {
    guards_hold(GuardMethod::Mprotect);
}

#[test]
fn a_kernel_without_guard_advice_is_noticed_once() {
    const NAME: &str = "a_kernel_without_guard_advice_is_noticed_once";
    if !is_child(NAME) {
        return assert_success(&in_child(NAME));
    }
    if !emulator_lacks(
        "seccomp filters; nor has it guard advice, so it stands in for an old kernel",
    ) {
        refuse_guard_advice();
    }
    let arena = arena(128 * MIB);
    assert_eq!(arena.guard_method(), GuardMethod::Madvise, "nobody has asked yet");
    let probe = Probe::new();
    for _ in 0..50 {
        let slot = arena.take(16 * 1024).unwrap();
        assert_eq!(arena.guard_method(), GuardMethod::Mprotect);
        assert!(!probe.readable(slot.base() as usize));
        assert!(probe.readable(slot.base() as usize + slot.guard_len()));
        write_ends(&slot, 1);
        drop(slot); // not given back: it stays taken
    }
    let (count, _) = mappings(&arena);
    assert!(count >= 100, "{count} mappings");
}

/// Makes this process's kernel an old one: `madvise(_, _, 102)` answers EINVAL, by a seccomp filter.
fn refuse_guard_advice() {
    const ADVICE: u32 = 32; // offset of the third argument's low half in struct seccomp_data
    let statement =
        |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        statement(load, 0, 0, 0), // the call's number
        statement(equal, 0, 3, libc::SYS_madvise as u32),
        statement(load, 0, 0, ADVICE),
        statement(equal, 0, 1, 102),
        statement(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
        statement(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: prctl(2): the filter is read during the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let installed = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program);
        assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
    }
}

#[test]
fn guards_are_inherited_by_a_forked_child() {
    let arena = arena(64 * MIB);
    let slot = arena.take(16 * 1024).unwrap();
    let probe = Probe::new();
    // SAFETY: fork(2); the child only makes system calls on its own copy and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let guarded = !probe.readable(slot.base() as usize);
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(if guarded { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waitpid(2) on our own child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
}

#[test]
fn two_hundred_thousand_guarded_stacks_live_together() {
    if !kernel_has_guards() {
        return println!("this kernel has no MADV_GUARD_INSTALL (Linux 6.13)");
    }
    const COUNT: usize = 200_000;
    let arena = Arena::reserve().unwrap();
    let probe = Probe::new();
    let slots: Vec<_> = (0..COUNT).map(|_| arena.take(256 * 1024).unwrap()).collect();
    let numbers: HashSet<_> = slots.iter().map(Slot::index).collect();
    assert_eq!(numbers.len(), COUNT);
    for slot in &slots {
        assert!(!probe.readable(slot.base() as usize + slot.guard_len() - 1));
    }
    for slot in slots.iter().step_by(20) {
        write_ends(slot, slot.index() as usize);
    }
    for slot in slots.iter().step_by(20) {
        assert_eq!(read_ends(slot), (slot.index() as usize, slot.index() as usize));
    }
    let all = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let limit: usize =
        std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    println!("{COUNT} guarded stacks, {all} mappings in the process, limit {limit}");
    assert!(all < 200 && all < limit / 100, "{all} mappings");
    assert_eq!(arena.stats().live(), COUNT);
    assert!(arena.stats().reserved >= COUNT * 256 * 1024);
}

#[test]
fn trimming_gives_the_memory_back_and_the_books_stay_right() {
    const COUNT: usize = 128;
    const SIZE: usize = 128 * 1024;
    let arena = arena(128 * MIB);
    let slots: Vec<_> = (0..COUNT).map(|_| arena.take(SIZE).unwrap()).collect();
    let usable = SIZE - guard_len(SIZE).unwrap();
    for slot in &slots {
        // SAFETY: everything above the guard is the slot's.
        unsafe { slot.base().add(slot.guard_len()).write_bytes(0xa5, usable) };
    }
    assert_resident(&arena, COUNT * usable);
    assert_eq!(arena.trim(0), 0, "what is in use is not trimmed");
    slots.into_iter().for_each(|slot| arena.give(slot));

    assert_eq!(arena.trim(100), 28);
    assert_resident(&arena, 100 * usable);
    assert_eq!(arena.trim(100), 0, "trimmed once");
    let class = |arena: &Arena| *arena.stats().classes.iter().find(|c| c.size == SIZE).unwrap();
    let stats = class(&arena);
    assert_eq!((stats.live, stats.free, stats.trimmed), (0, COUNT, 28));
    assert_eq!(stats.live + stats.free + stats.fresh, stats.slots);

    // The warm ones first, then the trimmed ones.
    for nth in 0..COUNT {
        let slot = arena.take(SIZE).unwrap();
        assert_eq!(slot.fresh(), nth >= 100, "stack {nth}");
        assert_eq!(read_ends(&slot).0 == 0, nth >= 100);
        drop(slot); // not given back: it stays taken
    }
    let stats = class(&arena);
    assert_eq!((stats.live, stats.free, stats.trimmed), (COUNT, 0, 0));
}

#[test]
fn a_released_stack_has_no_memory_and_goes_out_last() {
    const SIZE: usize = 128 * 1024;
    let arena = arena(128 * MIB);
    let usable = SIZE - guard_len(SIZE).unwrap();
    let fill = |slot: &Slot| {
        // SAFETY: everything above the guard is the slot's.
        unsafe { slot.base().add(slot.guard_len()).write_bytes(0xa5, usable) };
    };
    let mut slots: Vec<_> = (0..6).map(|_| arena.take(SIZE).unwrap()).collect();
    slots.iter().for_each(fill);
    // Kept and released by turns, so that each kind comes while the other is there.
    let released: Vec<_> = slots.iter().map(Slot::index).skip(1).step_by(2).collect();
    for (nth, slot) in slots.drain(..).enumerate() {
        match nth % 2 {
            0 => arena.give(slot),
            _ => assert!(arena.release(slot)),
        }
    }
    assert_resident(&arena, 3 * usable);
    let class = |arena: &Arena| *arena.stats().classes.iter().find(|c| c.size == SIZE).unwrap();
    assert_eq!((class(&arena).live, class(&arena).free, class(&arena).trimmed), (0, 6, 3));
    for nth in 0..6 {
        let slot = arena.take(SIZE).unwrap();
        assert_eq!(slot.fresh(), nth >= 3, "stack {nth}");
        assert_eq!(released.contains(&slot.index()), slot.fresh());
        assert_eq!(read_ends(&slot).0 == 0, slot.fresh());
        slots.push(slot); // stays taken
    }
    assert_eq!((class(&arena).live, class(&arena).trimmed), (6, 0));
}

#[test]
fn a_shrunk_stack_keeps_its_top() {
    const SIZE: usize = 128 * 1024;
    let arena = arena(128 * MIB);
    let slot = arena.take(SIZE).unwrap();
    let usable = SIZE - slot.guard_len();
    // SAFETY: everything above the guard is the slot's, here and below.
    unsafe { slot.base().add(slot.guard_len()).write_bytes(0xa5, usable) };
    for (keep, left) in [(usable, usable), (SIZE, usable), (65_537, 69_632), (32_768, 32_768)] {
        // SAFETY: nobody needs what was written.
        unsafe { slot.shrink(keep) };
        assert_resident(&arena, left);
        // SAFETY: the highest bytes, which have been kept.
        let top = unsafe { std::slice::from_raw_parts(slot.top().sub(left), left) };
        assert!(top.iter().all(|&byte| byte == 0xa5), "the top {left} bytes are as they were");
    }
    assert_eq!(read_ends(&slot).0, 0);
    // SAFETY: as above.
    unsafe { slot.shrink(0) };
    assert_resident(&arena, 0);
    arena.give(slot);
}

/// Counts its owner as finished, however it ends.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[test]
fn four_threads_never_own_the_same_stack() {
    const SIZES: [usize; 3] = [16 * 1024, 64 * 1024, 512 * 1024];
    let arena = arena(4 * GIB);
    let owned: Vec<AtomicBool> =
        (0..arena.len() / MIN_SLOT).map(|_| AtomicBool::new(false)).collect();
    let finished = AtomicUsize::new(0);
    let claim = |slot: &Slot, id: usize| {
        // AcqRel orders nothing that matters here: it keeps the test itself from hiding a bug.
        assert!(!owned[slot.index() as usize].swap(true, Ordering::AcqRel), "{slot:?} twice");
        if slot.fresh() {
            assert_eq!(read_ends(slot), (0, 0), "{slot:?}");
        }
        write_ends(slot, id);
    };
    let release = |slot: &Slot, id: usize| {
        assert_eq!(read_ends(slot), (id, id), "{slot:?}");
        assert!(owned[slot.index() as usize].swap(false, Ordering::AcqRel));
    };
    std::thread::scope(|scope| {
        for id in 1..=4_usize {
            let (arena, finished) = (&arena, &finished);
            scope.spawn(move || {
                // Counted on a panic too, or the trimming thread would wait for ever.
                let _counted = Counted(finished);
                let mut random = (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut held = Vec::new();
                for _ in 0..30_000 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let size = SIZES[(random >> 20) as usize % SIZES.len()];
                    match random % 8 {
                        0..3 => {
                            let slot = arena.take(size).unwrap();
                            claim(&slot, id);
                            held.push(slot);
                        }
                        3 => {
                            let mut many = [const { None }; 5];
                            assert_eq!(arena.take_many(size, &mut many), Ok(5));
                            for slot in many.into_iter().flatten() {
                                claim(&slot, id);
                                held.push(slot);
                            }
                        }
                        4 if held.len() > 4 => {
                            let at = random as usize / 8 % (held.len() - 3);
                            let mut many = [const { None }; 4];
                            for (place, slot) in many.iter_mut().zip(held.drain(at..at + 4)) {
                                release(&slot, id);
                                *place = Some(slot);
                            }
                            arena.give_many(&mut many);
                        }
                        _ if !held.is_empty() => {
                            let slot = held.swap_remove(random as usize / 8 % held.len());
                            release(&slot, id);
                            arena.give(slot);
                        }
                        _ => {}
                    }
                }
                for slot in held {
                    release(&slot, id);
                    arena.give(slot);
                }
            });
        }
        while finished.load(Ordering::Acquire) < 4 {
            arena.trim(3);
            std::thread::yield_now();
        }
    });
    let stats = arena.stats();
    assert_eq!(stats.live(), 0);
    for class in stats.classes {
        assert_eq!(class.live + class.free + class.fresh, class.slots, "{class:?}");
        assert!(class.trimmed <= class.free);
    }
    arena.trim(0);
    assert_resident(&arena, 0);
}

#[test]
fn the_reservation_halves_until_it_is_granted() {
    const NAME: &str = "the_reservation_halves_until_it_is_granted";
    if !is_child(NAME) {
        return assert_success(&in_child(NAME));
    }
    if emulator_lacks("limit of address space: setrlimit(RLIMIT_AS) is accepted and ignored") {
        return;
    }
    let limit = |bytes: usize| {
        let limit = libc::rlimit { rlim_cur: bytes as u64, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: setrlimit(2) reads the structure.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    };
    limit(40 * GIB);
    let arena = Arena::reserve().unwrap();
    assert_eq!(arena.len(), 16 * GIB, "half of it is the program's");
    write_ends(&arena.take(MIB).unwrap(), 1);
    drop(arena);
    limit(GIB);
    match Arena::reserve().unwrap_err() {
        Error::NoAddressSpace { tried, errno } => {
            assert_eq!((tried, errno), (GIB, libc::ENOMEM));
        }
        other => panic!("{other}"),
    }
    limit(libc::RLIM_INFINITY as usize);
    assert!(Arena::reserve().unwrap().len() >= 32 * GIB);
}

#[test]
fn a_dropped_arena_leaves_no_mapping() {
    // In a process of its own: elsewhere another test may map the same addresses in the meantime.
    const NAME: &str = "a_dropped_arena_leaves_no_mapping";
    if !is_child(NAME) {
        return assert_success(&in_child(NAME));
    }
    let arena = arena(256 * MIB);
    let base = arena.base();
    write_ends(&arena.take(16 * 1024).unwrap(), 1);
    drop(arena);
    assert!(!Probe::new().readable(base + 16 * 1024 - 8));
}
