//! Stacks behind pointers: borrowed for a while, or boxed.
//!
//! `&mut S` lends a stack: the borrow keeps its owner from dropping it or using it for anything else, and ends by
//! itself when whatever runs there is over. `Box<dyn Stack>` is for stacks of different kinds in one place. A shared
//! reference is no stack, as two could be made of it.

use super::Stack;
#[cfg(feature = "alloc")]
use alloc::boxed::Box;
use core::ptr::NonNull;

macro_rules! forward {
    () => {
        #[inline]
        fn top(&self) -> NonNull<u8> {
            (**self).top()
        }

        #[inline]
        fn limit(&self) -> NonNull<u8> {
            (**self).limit()
        }

        #[inline]
        fn shift(&self) -> usize {
            (**self).shift()
        }
    };
}

// SAFETY: for the life of the type, leaked or not, nobody else can reach the stack; `S` keeps the rest of the contract.
unsafe impl<S: Stack + ?Sized> Stack for &mut S {
    forward!();
}

// SAFETY: the box owns the stack, and `S` keeps the contract; a leaked box leaks its stack.
#[cfg(feature = "alloc")]
unsafe impl<S: Stack + ?Sized> Stack for Box<S> {
    forward!();
}
