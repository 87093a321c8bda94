//! The pool returns the deep part of free stacks, and never a piece of an identity, however large that is.
//!
//! One test, in a process of its own: its thread-locals make every identity of the process large.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use sleave_runtime::{Runtime, pool, spawn, yield_now};

/// More than what a free slot of an ordinary program keeps of its top.
const LARGE: usize = 100_000;
const FIBERS: usize = 10;
/// Far beyond the seconds between two rounds.
const PATIENCE: Duration = Duration::from_secs(60);

thread_local! {
    static BLOCK: Cell<[u8; LARGE]> = const { Cell::new([7; LARGE]) };
}

/// Writes to 60,000 bytes of stack; returns an address near their low end.
#[inline(never)]
fn dig() -> usize {
    let mut frame = [0xa5_u8; 60_000];
    black_box(&mut frame).as_ptr() as usize + 4096
}

fn is_resident(address: usize) -> bool {
    let mut answer = 0_u8;
    // SAFETY: mincore(2) writes one byte for one page, and reads nothing there.
    let result = unsafe { libc::mincore((address & !4095) as *mut _, 4096, &raw mut answer) };
    assert_eq!(result, 0, "the address is mapped");
    answer & 1 != 0
}

/// The bytes of the caller's block. In place: a copy would be deep in the stack.
fn bytes() -> &'static [Cell<u8>] {
    // SAFETY: the block lives as long as the caller, who keeps no reference longer; `Cell<[u8]>` and `[Cell<u8>]`
    // are laid out alike.
    BLOCK.with(|block| unsafe { std::slice::from_raw_parts(block.as_ptr().cast(), LARGE) })
}

/// Whether all of the caller's block is `value`.
fn block_is(value: u8) -> bool {
    bytes().iter().all(|byte| byte.get() == value)
}

#[test]
fn a_large_identity_stays_whole_when_the_stack_below_is_returned() {
    if sleave_runtime::identity().is_err() {
        return;
    }
    let runtime = Runtime::builder().workers(1).stack_size(256 << 10).build().unwrap();
    let live = || {
        let fibers: Vec<_> = (0..FIBERS)
            .map(|_| {
                spawn(|| {
                    assert!(block_is(7), "each fiber begins with what was written in the program");
                    bytes().iter().for_each(|byte| byte.set(9));
                    yield_now();
                    assert!(block_is(9));
                    dig()
                })
            })
            .collect();
        fibers.into_iter().map(|fiber| fiber.join().unwrap()).collect::<Vec<_>>()
    };
    let deep = runtime.spawn(live).join().unwrap();
    let start = Instant::now();
    while deep.iter().any(|&address| is_resident(address)) {
        assert!(start.elapsed() < PATIENCE, "the deep part is still there after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = pool::statistics();
    runtime.spawn(live).join().unwrap();
    let after = pool::statistics();
    assert_eq!(after.made, before.made, "the slots were warm");
    assert_eq!(after.reused - before.reused, FIBERS as u64 + 1);
    runtime.stop();
}
