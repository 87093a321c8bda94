//! Frames of every shape survive a switch, and are walked over at every instruction of it: large ones, and those whose
//! locals need more alignment than a call gives.
//!
//! The latter find their locals by one register and their caller's frame by another, `rbp`, which no clobber can
//! take from them. So do their unwind tables: a wrong `rbp` in the middle of a switch, harmless to functions without a
//! frame pointer, is found here.

use super::observe::{By, observe};
use super::{MESSAGE, OUTER, ROUNDS, SOME, THREAD, bounds, range, start_linked, times};
use sleave_context::backend::Link;
use sleave_context::stack::Slab;
use sleave_context::{Backend, Native};
use std::hint::black_box;
use std::mem::MaybeUninit;

/// A local of this type is as aligned as it can be without wasting a stack.
#[repr(align(4096))]
struct Page(u64);

/// Runs `$switch` in the middle of the life of a large and an over-aligned local, which must keep their values. The
/// large one is not filled: every instruction counts here.
macro_rules! with_locals {
    ($value:literal, $switch:expr) => {
        let page = Page($value);
        let mut large = MaybeUninit::<[u64; 5000]>::uninit();
        let last = large.as_mut_ptr().cast::<u64>().wrapping_add(4999);
        // SAFETY: the last of its words.
        unsafe { last.write($value) };
        black_box((&page, &large));
        $switch;
        let page = black_box(&page);
        assert_eq!(page as *const Page as usize % 4096, 0);
        // SAFETY: written above.
        assert!(page.0 == $value && unsafe { last.read() } == $value);
    };
}

/// # Safety
///
/// As for [`Backend::resume`].
#[inline(never)]
unsafe fn resumes_aligned(link: *mut Link<Native>) {
    // SAFETY: the caller's promise.
    with_locals!(1, unsafe { Native::resume(link, MESSAGE) });
}

/// # Safety
///
/// As for [`Backend::suspend`].
#[inline(never)]
unsafe fn suspends_aligned(link: *mut Link<Native>) {
    // SAFETY: the caller's promise.
    with_locals!(2, unsafe { Native::suspend(link, MESSAGE) });
}

unsafe extern "C" fn aligned(data: usize, _first: usize) -> ! {
    let link = data as *mut Link<Native>;
    // SAFETY: `data` is the link of this context, which was resumed.
    with_locals!(3, (0..ROUNDS).for_each(|_| unsafe { suspends_aligned(link) }));
    // SAFETY: likewise.
    unsafe { Native::exit(link, MESSAGE) }
}

#[test]
fn over_aligned_frames_survive_and_show_at_every_instruction() {
    let stack = Slab::new(512 * 1024).unwrap();
    let mut link = Link::<Native>::empty();
    let link = &raw mut link;
    // SAFETY: the stack is the context's own, and both outlive it.
    unsafe { Native::prepare_linked(link, bounds(&stack), aligned, link as usize) };
    let named = [&named![resumes_aligned, suspends_aligned, aligned][..], &[start_linked()]];
    let sights = observe(By::UnwindTables, &named.concat(), &[range(&stack)], &mut || {
        for _ in 0..=ROUNDS {
            // SAFETY: it suspends itself so often, and then exits.
            unsafe { resumes_aligned(link) };
        }
    });
    let suspended = "suspends_aligned < aligned < start_linked < resumes_aligned < test";
    // As `a_linked_context_shows_its_resumer_at_every_instruction`.
    sights.assert(&[
        (THREAD, "test", SOME),
        (THREAD, "resumes_aligned < test", SOME),
        (THREAD, "start_linked < resumes_aligned < test", times(1)),
        (OUTER, "start_linked < resumes_aligned < test", SOME),
        (OUTER, "aligned < start_linked < resumes_aligned < test", SOME),
        (OUTER, suspended, SOME),
        (THREAD, suspended, times(4 * ROUNDS)),
        (OUTER, "aligned < resumes_aligned < test", times(3)),
        (THREAD, "aligned < resumes_aligned < test", times(1)),
    ]);
}
