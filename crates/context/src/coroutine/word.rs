//! A value of any type as one word: itself if it fits, else where it is.
//!
//! The sender keeps the value, in a [`ManuallyDrop`], until the receiver has taken it out, which is the receiver's first
//! act: the sender is suspended until then.

use core::arch::asm;
use core::mem::{ManuallyDrop, MaybeUninit};

/// Does a `T` travel in the word itself?
const fn fits<T>() -> bool {
    size_of::<T>() <= size_of::<usize>()
}

/// The word for `value`, which belongs to whoever decodes it.
#[inline(always)]
pub(super) fn encode<T>(value: &ManuallyDrop<T>) -> usize {
    if !fits::<T>() {
        return core::ptr::from_ref(value) as usize;
    }
    let mut word = MaybeUninit::<usize>::uninit();
    // SAFETY: `T` has at most the word's size; a copy of a value that its sender will not use again.
    unsafe {
        word.as_mut_ptr().cast::<T>().write_unaligned(core::ptr::from_ref(value).cast::<T>().read())
    };
    let fixed: usize;
    // Padding has no value until it has gone through a register that the compiler cannot see into.
    // SAFETY: no instruction at all.
    unsafe {
        asm!("/* {} */", inlateout(reg) word => fixed, options(pure, nomem, nostack, preserves_flags))
    };
    fixed
}

/// The value that `word` was made from.
///
/// # Safety
///
/// `word` is from [`encode`] for the same type, decoded once, and the sender still has the value.
#[inline(always)]
pub(super) unsafe fn decode<T>(word: usize) -> T {
    if fits::<T>() {
        // SAFETY: the word begins with the bytes of a `T`.
        unsafe { (&raw const word).cast::<T>().read_unaligned() }
    } else {
        // SAFETY: the word is where the sender keeps it.
        unsafe { (word as *const T).read() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Debug;

    fn returns<T: PartialEq + Debug + Clone>(value: T) {
        let sent = ManuallyDrop::new(value.clone());
        let word = encode(&sent);
        // SAFETY: encoded just above.
        assert_eq!(unsafe { decode::<T>(word) }, value);
    }

    #[test]
    fn values_of_all_sizes_return() {
        returns(());
        returns(1_u8);
        returns((1_u8, 2_u32)); // with padding
        returns([1_u8; 7]);
        returns(u64::MAX);
        returns(1.5_f64);
        returns(Some(&5));
        returns((1_u64, 2_u8));
        returns([7_u64; 100]);
        returns("text");
    }

    #[repr(align(64))]
    #[derive(PartialEq, Debug, Clone)]
    struct Aligned(u8);

    #[test]
    fn alignment_of_any_size_is_kept() {
        returns(Aligned(3));
        #[derive(PartialEq, Debug, Clone)]
        #[repr(align(64))]
        struct Nothing;
        returns(Nothing);
    }
}
