//! The bare switch: two flows of control that say something by turns.
//!
//! No coroutine, no allocation, no scheduler: a stack, two contexts, and `swap`, which saves the caller in the
//! one and goes on with the other. What is handed over arrives as the result of the other side's own last `swap`.

use sleave_context::stack::{Slab, Stack};
use sleave_context::{Context, swap};

/// What both sides share. Where each is suspended, and what they have said.
struct Talk {
    here: Context,
    there: Context,
    lines: Vec<String>,
}

/// The other side. It begins with what the first swap to it hands over.
unsafe extern "C" fn answers(talk: usize, mut number: usize) -> ! {
    let talk = talk as *mut Talk;
    loop {
        // SAFETY: the talk outlives us, and who swapped to us does not touch it until we swap back.
        number = unsafe {
            (*talk).lines.push(format!("      there: got {number}, send {}", number * 10));
            swap(&raw mut (*talk).there, &raw const (*talk).here, None, number * 10)
        };
    }
}

/// What there is to say, line by line.
pub fn story() -> Vec<String> {
    let stack = Slab::default();
    let talk = Talk { here: Context::empty(), there: Context::empty(), lines: Vec::new() };
    let talk = Box::into_raw(Box::new(talk));
    // SAFETY: the stack is the other side's own, and it is never resumed after this block.
    unsafe {
        (*talk).there = Context::new(stack.top().as_ptr(), answers, talk as usize);
        for number in 1..=3 {
            (*talk).lines.push(format!("here: send {number}"));
            let answer = swap(&raw mut (*talk).here, &raw const (*talk).there, None, number);
            (*talk).lines.push(format!("here: got {answer}"));
        }
        // The other side waits for ever. Nothing on its stack needs to be dropped.
        Box::from_raw(talk).lines
    }
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
