//! What stacks cost here: time to have one, memory to keep ten thousand. `docs/stacks.md` explains the numbers.
//!
//! ```text
//! cargo run --release -p sleave-context --example stacks
//! ```

use sleave_context::stack::{Arena, Mapped, Slab, Stack};
use std::hint::black_box;
use std::time::Instant;

/// The median of some rounds of `work`, in nanoseconds for each of `count` times.
fn nanoseconds(count: u32, mut work: impl FnMut()) -> f64 {
    let mut rounds: Vec<_> = (0..15)
        .map(|_| {
            let start = Instant::now();
            (0..count).for_each(|_| work());
            start.elapsed().as_nanos() as f64 / f64::from(count)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

/// Writes to the page at the top, as anything that runs there does.
fn touch(stack: &impl Stack) {
    // SAFETY: the highest word of a stack that nothing runs on.
    unsafe { stack.top().cast::<usize>().sub(1).write_volatile(1) };
}

/// A line of /proc/self/status, in KiB.
fn status(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find(|line| line.starts_with(key)).expect("the kernel knows it");
    let number = line.split_whitespace().nth(1).expect("a number follows");
    number.parse().expect("in digits")
}

fn main() {
    println!("time to take a stack, touch its top and give it back");
    for kib in [16, 64, 256] {
        let slab = nanoseconds(100_000, || touch(&Slab::new(black_box(kib << 10)).unwrap()));
        let mapped = nanoseconds(2_000, || touch(&Mapped::new(black_box(kib << 10)).unwrap()));
        println!("  {kib:4} KiB   slab {slab:7.1} ns   mapped {mapped:7.1} ns");
    }

    println!("memory of 10,000 slabs, the top page of each touched");
    for kib in [16, 64, 256, 1024] {
        let before = (status("VmRSS"), status("VmPTE"));
        let slabs: Vec<_> = (0..10_000).map(|_| Slab::new(kib << 10).unwrap()).collect();
        slabs.iter().for_each(touch);
        let (pages, tables) = (status("VmRSS") - before.0, status("VmPTE") - before.1);
        let each = |kib: usize| kib as f64 / slabs.len() as f64;
        println!(
            "  {kib:4} KiB   pages {:5.2} KiB   page tables {:5.2} KiB each",
            each(pages),
            each(tables)
        );
        drop(slabs);
        Arena::global().unwrap().trim(0);
    }

    let mappings =
        std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted").lines().count();
    println!("the process has {mappings} mappings");
}
