//! Registers survive a switch to somebody who overwrites every one of them, on every backend; the floating-point
//! control state does where that is asked for, or where the backend sees to it.
//!
//! What the compiler keeps in registers it does so when it optimises: run these with `--release` as well.
//!
//! A file for each processor has the assembly, under the same names:
//!
//! * `overwrite()` overwrites every register that the ABI and the compiler let us name;
//! * `differing_callee_saved(pair)` calls [`switches`] with a pattern in every callee-saved register, and
//!   returns the number of those that differ after it;
//! * `values_survive(pair)` asserts that of values of every kind;
//! * `control()` and `set_control(words)` read and write both words of floating-point control state,
//!   and `UNUSUAL` is one that no thread starts with.

#[path = "../support/mod.rs"]
mod support;

/// A function that keeps as many values of a kind alive over a switch as there are registers, each loaded by an
/// instruction that the compiler cannot repeat, and says whether all are still what they were, up to
/// the last of their `$lanes` words.
macro_rules! keeps_over_a_switch {
    ($name:ident, $features:literal, $class:ident, $type:ty, $lanes:literal, $load:literal, $store:literal, $($value:ident)*) => {
        #[target_feature(enable = $features)]
        fn $name<B: Backend>(pair: *mut Pair<B>) -> bool {
            let mut number = 0_u64;
            // SAFETY: loads a word; stores `$lanes` words; the pair is as in `switches`.
            unsafe {
                $(
                    number += 1;
                    let $value: $type;
                    asm!($load, out($class) $value, in(reg) &raw const number, options(nostack, preserves_flags));
                )*
                B::swap(&raw mut (*pair).here, &raw const (*pair).there, None, 0);
                let mut number = 0_u64;
                let mut same = true;
                $(
                    number += 1;
                    let mut words = [0_u64; $lanes];
                    asm!($store, in($class) $value, in(reg) &raw mut words, options(nostack, preserves_flags));
                    same &= words == [number; $lanes];
                )*
                same
            }
        }
    };
}

#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
mod processor;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod processor;

use sleave_context::FpControl;
use sleave_context::backend::{Backend, Entry};
use support::arena;
use support::backends::{Pair, Tested, bounds, enter, leave};

on_every_backend! {
    callee_saved_registers_survive,
    values_in_every_kind_of_register_survive,
    floating_point_control_is_kept_where_it_is_asked_for,
    floating_point_control_is_the_threads_or_the_contexts,
}

/// An ordinary function with a switch in it, as the ABI sees it.
unsafe extern "C" fn switches<B: Backend>(pair: *mut Pair<B>) {
    // SAFETY: from `with_other_side`.
    unsafe { enter(pair, 0) };
}

/// Runs `test` with a pair whose other side is `entry`.
fn with_other_side<B: Backend>(entry: Entry, test: impl FnOnce(*mut Pair<B>)) {
    let arena = arena(64 << 20);
    let slot = arena.take(64 * 1024).unwrap();
    let mut pair = Pair::<B>::new();
    let pair = &raw mut pair;
    // SAFETY: the stack is this context's own, and both outlive it.
    unsafe { B::prepare(&raw mut (*pair).there, bounds(&slot), entry, pair as usize) };
    test(pair);
    arena.give(slot);
}

/// Overwrites every register each time it is resumed.
unsafe extern "C" fn overwrites<B: Backend>(data: usize, _first: usize) -> ! {
    loop {
        processor::overwrite();
        // SAFETY: the test's pair, which outlives this context.
        unsafe { leave(data as *mut Pair<B>, 0) };
    }
}

fn callee_saved_registers_survive<B: Tested>() {
    with_other_side::<B>(overwrites::<B>, |pair| {
        for _ in 0..100 {
            // SAFETY: from `with_other_side`.
            assert_eq!(unsafe { processor::differing_callee_saved(pair) }, 0);
        }
    });
}

fn values_in_every_kind_of_register_survive<B: Tested>() {
    with_other_side::<B>(overwrites::<B>, |pair| {
        for _ in 0..100 {
            processor::values_survive(pair);
        }
    });
}

/// Changes the floating-point control state, and keeps it over its switches; tells what it found.
unsafe extern "C" fn keeps_control<B: Backend>(data: usize, _first: usize) -> ! {
    processor::set_control(processor::UNUSUAL);
    loop {
        let mine = FpControl::save();
        let found = processor::control() as usize;
        // SAFETY: as above.
        unsafe { leave(data as *mut Pair<B>, found) };
        mine.restore();
    }
}

fn floating_point_control_is_kept_where_it_is_asked_for<B: Tested>() {
    let before = FpControl::save();
    let usual = processor::control();
    with_other_side::<B>(keeps_control::<B>, |pair| {
        for _ in 0..3 {
            // SAFETY: from `with_other_side`.
            let theirs = unsafe { enter(pair, 0) };
            assert_eq!(theirs as u64, processor::UNUSUAL, "theirs survived our restore");
            before.restore();
            assert_eq!(processor::control(), usual);
        }
    });
    // Restoring what is in force, and loading, leave it in force.
    before.restore();
    assert_eq!(FpControl::save(), before);
    FpControl::DEFAULT.load();
    assert_eq!(FpControl::save(), FpControl::DEFAULT);
    before.load();
    assert_eq!((FpControl::save(), processor::control()), (before, usual));
}

/// Changes the floating-point control state once; tells what it finds whenever it is resumed.
unsafe extern "C" fn changes_control<B: Backend>(data: usize, _first: usize) -> ! {
    processor::set_control(processor::UNUSUAL);
    loop {
        // SAFETY: as above.
        unsafe { leave(data as *mut Pair<B>, processor::control() as usize) };
    }
}

fn floating_point_control_is_the_threads_or_the_contexts<B: Tested>() {
    let before = FpControl::save();
    let usual = processor::control();
    let (ours, theirs) = match B::SWITCHES_CONTROL_STATE {
        true => (usual, processor::UNUSUAL),
        false => (processor::UNUSUAL, usual),
    };
    with_other_side::<B>(changes_control::<B>, |pair| {
        // SAFETY: from `with_other_side`.
        unsafe { enter(pair, 0) };
        assert_eq!(processor::control(), ours, "after it was changed over there");
        before.restore();
        // SAFETY: as above.
        let found = unsafe { enter(pair, 0) };
        assert_eq!(found as u64, theirs, "over there, after it was restored here");
    });
    before.restore();
}
