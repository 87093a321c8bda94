//! Coroutines in a program without the standard library, and (without the feature `alloc`) without an
//! allocator; or, with the feature `std`, in one that aborts on panic nevertheless.
//!
//! The C library starts it and prints for it; `.ci/no_std` checks that the crate itself asks nothing of that.
//! Were the standard library linked by any crate, there would be two panic handlers, and no program.

#![cfg_attr(not(feature = "std"), no_std)]
#![no_main]

use core::ffi::{c_char, c_int};
use core::fmt::{self, Write};
use core::mem::MaybeUninit;
use sleave_context::stack::{Mapped, Slab, Supplied};
use sleave_context::{Coroutine, CoroutineState::*};

/// Standard output.
struct Output;

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: write(2) of bytes that are there.
        let written = unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
        if written == text.len() as isize { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(not(feature = "std"))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let _ = writeln!(Output, "panicked: {}", info.message());
    // SAFETY: abort(3) has no preconditions.
    unsafe { libc::abort() }
}

/// What the unoptimised `core`, which is built for unwinding, names and nobody calls.
#[cfg(not(feature = "std"))]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

fn pooled() {
    let fibonacci = Coroutine::new(|yielder, ()| {
        let (mut a, mut b) = (0_u32, 1);
        loop {
            yielder.suspend(a);
            (a, b) = (b, a + b);
        }
    });
    let sum: u32 = fibonacci.take(10).sum();
    let _ = writeln!(Output, "pooled: {sum}");
}

fn mapped() {
    let stack = Mapped::new(64 * 1024).unwrap();
    let mut adds: Coroutine<u32, (), u32, _> = Coroutine::with_stack(stack, |yielder, first| {
        let second = yielder.suspend(());
        first + second
    });
    assert_eq!(adds.resume(30), Yielded(()));
    let _ = writeln!(Output, "mapped: {:?}", adds.resume(12));
}

fn supplied() {
    static mut MEMORY: [MaybeUninit<u8>; 32 * 1024] = [MaybeUninit::uninit(); 32 * 1024];
    let memory = &raw mut MEMORY;
    // SAFETY: borrowed once; what runs below needs a fraction of it.
    let stack = unsafe { Supplied::new(&mut *memory) }.unwrap();
    let mut echo: Coroutine<u32, u32, (), _> =
        Coroutine::with_stack(stack, |yielder, mut value| {
            loop {
                value = yielder.suspend(value + 1);
            }
        });
    let answer = echo.resume(1);
    let _ = writeln!(Output, "supplied: {answer:?}, then {:?}", echo.resume(5));
}

/// A suspended coroutine cannot be unwound here: dropping it leaks its stack, and the program goes on.
fn dropped() {
    struct Says;
    impl Drop for Says {
        fn drop(&mut self) {
            let _ = writeln!(Output, "dropped: unwound, where nothing can be");
        }
    }
    let mut waits = Coroutine::<(), (), ()>::with_stack(Slab::default(), |yielder, ()| {
        let _says = Says;
        yielder.suspend(());
    });
    assert_eq!(waits.resume(()), Yielded(()));
    drop(waits);
    let _ = writeln!(Output, "dropped: leaked");
}

fn panics() {
    let mut coroutine = Coroutine::<(), (), ()>::new(|_, ()| panic!("out of a coroutine"));
    coroutine.resume(());
}

fn ended() {
    let mut waits = Coroutine::<(), (), ()>::new(|yielder, ()| yielder.suspend(()));
    waits.resume(());
    waits.end();
}

#[cfg(feature = "alloc")]
mod symmetric {
    use super::{Output, Write};
    use core::alloc::{GlobalAlloc, Layout};
    use sleave_context::symmetric::{Exit, Group};

    /// The C library's allocator.
    struct Malloc;

    // SAFETY: aligned_alloc(3), free(3); every size that is a multiple of its alignment will do.
    unsafe impl GlobalAlloc for Malloc {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let layout = layout.align_to(16).unwrap().pad_to_align();
            // SAFETY: the size is a multiple of the alignment.
            unsafe { libc::aligned_alloc(layout.align(), layout.size()) }.cast()
        }

        unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
            // SAFETY: from `alloc`.
            unsafe { libc::free(block.cast()) }
        }
    }

    #[global_allocator]
    static MALLOC: Malloc = Malloc;

    pub fn transfers() {
        let mut group = Group::new();
        let doubles = group.add(|member, (mut number, mut partner)| {
            loop {
                (number, partner) = member.transfer(partner, (2 * number, member.id())).unwrap();
            }
        });
        let counts = group.add(move |member, (number, _)| {
            let (doubled, _) = member.transfer(doubles, (number + 1, member.id())).unwrap();
            Exit::Leave((doubled, member.id()))
        });
        let answer = group.enter(counts, (20, counts)).unwrap().0;
        let _ = writeln!(Output, "symmetric: {answer}");
    }
}

#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    if count > 1 {
        // SAFETY: argv has `count` strings of at least the terminating byte.
        match unsafe { **arguments.add(1) } as u8 {
            b'p' => panics(),
            b'e' => ended(),
            _ => return 2,
        }
        return 1;
    }
    pooled();
    mapped();
    supplied();
    dropped();
    #[cfg(feature = "alloc")]
    symmetric::transfers();
    0
}
