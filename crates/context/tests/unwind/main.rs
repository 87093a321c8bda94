//! Unwind tables are right at every instruction: whoever looks at the stack, at whatever instruction, sees the
//! coroutine's frames and then its resumer's.
//!
//! What is to be seen is written as `innermost < … < outermost`, naming the functions of this file only. `test` at
//! the end stands for everything outside of the stretch that is looked at; `end` for a context that is nobody's.
//! The few instructions at which a stack pointer and a stack do not belong together are counted.
//!
//! Functions that must be visible are not inlined, and do something after each call, so that it is a call.
//! Run these optimised as well: then frames have no frame pointer, and functions are what the compiler makes of them.
#![cfg(target_arch = "x86_64")]

/// Names and addresses of functions.
macro_rules! named {
    ($($function:ident),*) => { [$((stringify!($function), $function as *const () as usize)),*] };
}

mod backtrace;
mod frames;
mod observe;

use observe::{By, Named, observe, with_known_registers};
use sleave_context::backend::{Bounds, Link, Message};
use sleave_context::stack::{Slab, Stack};
use sleave_context::{Backend, Context, Coroutine, Entry, Hook, Native, Yielder, swap};
use std::hint::black_box;
use std::ops::Range;

/// How often a context is left in the middle.
const ROUNDS: usize = 3;

const MESSAGE: Message = Message { word: 1, tag: 0 };

/// Stack pointer on the thread's stack; on those of a coroutine and of another inside of it.
const THREAD: Option<usize> = None;
const OUTER: Option<usize> = Some(0);
const INNER: Option<usize> = Some(1);

/// Any number of instructions but none.
const SOME: Option<usize> = None;

/// Exactly so many instructions.
const fn times(count: usize) -> Option<usize> {
    Some(count)
}

/// The address range of a stack.
fn range(stack: &impl Stack) -> Range<usize> {
    stack.limit().as_ptr() as usize..stack.top().as_ptr() as usize
}

fn bounds(stack: &impl Stack) -> Bounds {
    Bounds { limit: stack.limit().as_ptr(), top: stack.top().as_ptr() }
}

/// The function that begins every linked context.
fn start_linked() -> Named {
    let stack = Slab::default();
    let mut link = Link::<Native>::empty();
    // SAFETY: the stack is unused, and the context is never resumed.
    unsafe { Native::prepare_linked(&raw mut link, bounds(&stack), suspending, 0) };
    ("start_linked", link.own.instruction_pointer())
}

/// # Safety
///
/// As for [`Backend::resume`].
#[inline(never)]
unsafe extern "C" fn resumes(link: usize) {
    let link = link as *mut Link<Native>;
    // SAFETY: the caller's promise.
    black_box(unsafe { Native::resume(link, MESSAGE) });
}

/// # Safety
///
/// As for [`Backend::suspend`].
#[inline(never)]
unsafe extern "C" fn suspends(link: usize) {
    let link = link as *mut Link<Native>;
    // SAFETY: the caller's promise.
    black_box(unsafe { Native::suspend(link, MESSAGE) });
}

unsafe extern "C" fn suspending(data: usize, _first: usize) -> ! {
    let link = data as *mut Link<Native>;
    // SAFETY: `data` is the link of this context, which was resumed.
    unsafe {
        for _ in 0..ROUNDS {
            with_known_registers(suspends, data);
        }
        Native::exit(link, MESSAGE)
    }
}

/// Resumes a linked context to its end.
fn resume_to_the_end(by: By) -> observe::Sights {
    let stack = Slab::default();
    let mut link = Link::<Native>::empty();
    let link = &raw mut link;
    // SAFETY: the stack is the context's own, and both outlive it.
    unsafe { Native::prepare_linked(link, bounds(&stack), suspending, link as usize) };
    let named = [&named![resumes, suspends, suspending][..], &[start_linked()]].concat();
    observe(by, &named, &[range(&stack)], &mut || {
        for _ in 0..=ROUNDS {
            // SAFETY: it suspends itself so often, and then exits.
            unsafe { with_known_registers(resumes, link as usize) };
        }
    })
}

#[test]
fn a_linked_context_shows_its_resumer_at_every_instruction() {
    resume_to_the_end(By::UnwindTables).assert(&[
        (THREAD, "test", SOME),
        (THREAD, "resumes < test", SOME),
        // Begins on the resumer's stack, by one instruction.
        (THREAD, "start_linked < resumes < test", times(1)),
        (OUTER, "start_linked < resumes < test", SOME),
        (OUTER, "suspending < start_linked < resumes < test", SOME),
        (OUTER, "suspends < suspending < start_linked < resumes < test", SOME),
        // Stands on the resumer's stack to return, and for three instructions when it is resumed.
        (THREAD, "suspends < suspending < start_linked < resumes < test", times(4 * ROUNDS)),
        // Loads the resumer's three registers, and returns.
        (OUTER, "suspending < resumes < test", times(3)),
        (THREAD, "suspending < resumes < test", times(1)),
    ]);
}

#[test]
#[ignore = "for a program with -C force-frame-pointers=yes: see .ci/unwind"]
fn frame_pointers_lead_to_the_resumer_too() {
    resume_to_the_end(By::FramePointers).assert(&[
        // The resumer's frame pointer is still there, or already: two instructions each.
        (OUTER, "start_linked < test", times(2)),
        (OUTER, "suspends < test", times(2 * ROUNDS)),
        (OUTER, "suspending < test", times(2)),
        // Where a function begins and ends its caller is not seen.
        (OUTER, "start_linked < resumes < test", SOME),
        (OUTER, "suspending < resumes < test", SOME),
        (OUTER, "suspending < start_linked < resumes < test", SOME),
        (OUTER, "suspends < suspending < start_linked < resumes < test", SOME),
    ]);
}

/// Two contexts that switch to each other, and the hook that each sends.
struct Pair {
    here: Context,
    there: Context,
    hook: Option<Hook>,
}

/// # Safety
///
/// As for [`swap`].
#[inline(never)]
unsafe extern "C" fn enters(pair: usize) {
    let pair = pair as *mut Pair;
    // SAFETY: the caller's promise.
    black_box(unsafe { swap(&raw mut (*pair).here, &raw const (*pair).there, (*pair).hook, 1) });
}

/// # Safety
///
/// As for [`swap`].
#[inline(never)]
unsafe extern "C" fn leaves(pair: usize) {
    let pair = pair as *mut Pair;
    // SAFETY: the caller's promise.
    black_box(unsafe { swap(&raw mut (*pair).there, &raw const (*pair).here, (*pair).hook, 2) });
}

unsafe extern "C" fn swapping(data: usize, _first: usize) -> ! {
    loop {
        // SAFETY: `data` is the pair that this context belongs to.
        unsafe { with_known_registers(leaves, data) };
    }
}

unsafe extern "C" fn hook(arg: usize) -> usize {
    black_box(arg) + 1
}

/// Switches to a context and back.
fn swap_back_and_forth(entry: Entry, sent: Option<Hook>) -> observe::Sights {
    let stack = Slab::default();
    let mut pair = Pair { here: Context::empty(), there: Context::empty(), hook: sent };
    let pair = &raw mut pair;
    // SAFETY: the stack is the context's own, and both outlive it.
    let start = unsafe {
        Native::prepare(&raw mut (*pair).there, bounds(&stack), entry, pair as usize);
        (*pair).there.instruction_pointer()
    };
    let named = [&named![enters, leaves, swapping, hook][..], &[("start", start)]].concat();
    observe(By::UnwindTables, &named, &[range(&stack)], &mut || {
        for _ in 0..ROUNDS {
            // SAFETY: it comes back each time.
            unsafe { with_known_registers(enters, pair as usize) };
        }
    })
}

/// What a pair shows with and without hooks. At the jump, each way, the stack pointer is the target's already.
const SWAPS: [(Option<usize>, &str, Option<usize>); 7] = [
    (THREAD, "test", SOME),
    (THREAD, "enters < test", SOME),
    (OUTER, "enters < test", times(ROUNDS)),
    (OUTER, "start < end", SOME),
    (OUTER, "swapping < start < end", SOME),
    (OUTER, "leaves < swapping < start < end", SOME),
    (THREAD, "leaves < swapping < start < end", times(ROUNDS)),
];

#[test]
fn a_swap_shows_one_side_or_the_other_at_every_instruction() {
    swap_back_and_forth(swapping, None).assert(&SWAPS);
}

#[test]
fn a_hook_shows_whom_it_interrupts() {
    let hooks = [
        (OUTER, "hook < start < end", SOME),
        (THREAD, "hook < enters < test", SOME),
        (OUTER, "hook < leaves < swapping < start < end", SOME),
    ];
    swap_back_and_forth(swapping, Some(hook)).assert(&[&SWAPS[..], &hooks].concat());
}

type Numbers = Coroutine<usize, usize, usize>;

#[inline(never)]
fn resumes_outer(coroutine: &mut Numbers) {
    black_box(coroutine.resume(1));
}

#[inline(never)]
fn resumes_inner(coroutine: &mut Numbers) -> usize {
    black_box(coroutine.resume(2)).yielded().unwrap_or(3)
}

#[inline(never)]
fn inner(yielder: &Yielder<usize, usize>, first: usize) -> usize {
    let second = yielder.suspend(first);
    yielder.suspend(second) + 1
}

/// Resumes a coroutine of its own between suspensions.
#[inline(never)]
fn outer(yielder: &Yielder<usize, usize>, stack: Slab<'static>) -> usize {
    let mut coroutine = Numbers::with_stack(stack, inner);
    for _ in 0..2 {
        let number = resumes_inner(&mut coroutine);
        yielder.suspend(number);
    }
    resumes_inner(&mut coroutine)
}

/// Resumes the outer coroutine `times`, then drops it.
fn nest(times: usize) -> observe::Sights {
    let (first, second) = (Slab::default(), Slab::default());
    let ranges = [range(&first), range(&second)];
    let named = [&named![resumes_outer, outer, resumes_inner, inner][..], &[start_linked()]];
    let mut coroutine =
        Some(Numbers::with_stack(first, move |yielder, _| outer(yielder, second) + 1));
    observe(By::UnwindTables, &named.concat(), &ranges, &mut || {
        for _ in 0..times {
            resumes_outer(coroutine.as_mut().unwrap());
        }
        coroutine = None;
    })
}

/// Everything outside of the inner coroutine, as it is seen from there.
macro_rules! in_outer {
    ($inside:literal) => {
        concat!($inside, "resumes_inner < outer < start_linked < resumes_outer < test")
    };
}

/// What nested coroutines show while they are resumed. Functions that suspend stand on their resumer's stack when they
/// return to it and when they are resumed.
const NESTED: [(Option<usize>, &str); 15] = [
    (THREAD, "test"),
    (THREAD, "resumes_outer < test"),
    (THREAD, "start_linked < resumes_outer < test"),
    (OUTER, "start_linked < resumes_outer < test"),
    (OUTER, "outer < start_linked < resumes_outer < test"),
    (THREAD, "outer < start_linked < resumes_outer < test"),
    (OUTER, in_outer!("")),
    (OUTER, in_outer!("start_linked < ")),
    (INNER, in_outer!("start_linked < ")),
    (INNER, in_outer!("inner < start_linked < ")),
    (OUTER, in_outer!("inner < start_linked < ")),
    // The last instructions, in the function that calls the body: three and the return.
    (OUTER, "resumes_outer < test"),
    (INNER, in_outer!("")),
    // The coroutine is dropped by the test.
    (OUTER, "start_linked < test"),
    (OUTER, "test"),
];

#[test]
fn nested_coroutines_show_all_their_resumers() {
    let sights = nest(3);
    sights.assert_only(&NESTED);
    assert!(sights.count(INNER, in_outer!("inner < start_linked < ")) > 0, "{sights:?}");
    // One exit each.
    assert_eq!(sights.count(OUTER, "resumes_outer < test"), 3, "{sights:?}");
    assert_eq!(sights.count(INNER, in_outer!("")), 3, "{sights:?}");
}

#[test]
fn coroutines_that_are_dropped_show_who_drops_them() {
    let sights = nest(1);
    let unwinding = [
        (THREAD, "outer < start_linked < test"),
        (OUTER, "outer < start_linked < test"),
        (OUTER, "start_linked < outer < start_linked < test"),
        (OUTER, "inner < start_linked < outer < start_linked < test"),
        (INNER, "inner < start_linked < outer < start_linked < test"),
        (INNER, "start_linked < outer < start_linked < test"),
        (INNER, "outer < start_linked < test"),
    ];
    sights.assert_only(&[&NESTED[..], &unwinding].concat());
    assert!(sights.count(INNER, unwinding[4].1) > 0, "{sights:?}");
    assert!(sights.count(OUTER, unwinding[1].1) > 0, "{sights:?}");
}
