//! A coroutine within a coroutine, that computes: something to look at with gdb and perf (`docs/debugging.md`).
//!
//! The length of the longest walk of the Collatz problem up to a limit, 100,000 unless an argument says otherwise:
//! one coroutine makes the walks' lengths, another passes on those that are longer than all before.

use sleave_context::{Coroutine, Yielder};

/// How many steps from `number` to 1, halving what is even, else times three plus one.
#[inline(never)]
fn steps(mut number: u64) -> u32 {
    let mut steps = 0;
    while number != 1 {
        number = if number.is_multiple_of(2) { number / 2 } else { 3 * number + 1 };
        steps += 1;
    }
    steps
}

#[inline(never)]
fn walks(yielder: &Yielder<u64, u32>, limit: u64) {
    for number in 1..=limit {
        yielder.suspend(steps(number));
    }
}

#[inline(never)]
fn records(yielder: &Yielder<u64, u32>, limit: u64) {
    let mut record = 0;
    let mut walks = Coroutine::new(walks);
    while let Some(length) = walks.resume(limit).yielded() {
        if length > record {
            record = length;
            yielder.suspend(record);
        }
    }
}

#[inline(never)]
fn longest(limit: u64) -> u32 {
    let mut longest = 0;
    let mut records = Coroutine::new(records);
    while let Some(record) = records.resume(limit).yielded() {
        longest = record;
    }
    longest
}

fn main() {
    let limit = std::env::args().nth(1).map_or(100_000, |limit| limit.parse().expect("a number"));
    println!("{}", longest(limit));
}
