//! A stack in memory that the program supplies: a static, a heap block, a piece of a larger one.
//!
//! There is no guard, and nobody to report an overflow: what runs off the low end corrupts whatever lies there.
//! So this is for code whose need of stack is known, and where there is no memory management unit to ask.

use super::{Error, MIN_STACK, Stack};
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

/// A stack in borrowed memory, without a guard.
///
/// ```
/// use core::mem::MaybeUninit;
/// use sleave_context::stack::{Stack, Supplied};
///
/// let mut memory = vec![MaybeUninit::uninit(); 32 * 1024];
/// // SAFETY: what is going to run there needs far less than 32 KiB.
/// let stack = unsafe { Supplied::new(&mut memory) }?;
/// assert_eq!(stack.top().as_ptr() as usize - stack.limit().as_ptr() as usize, 32 * 1024);
/// # Ok::<(), sleave_context::stack::Error>(())
/// ```
///
/// Memory that is never freed (`Box::leak`, a static) makes a `Supplied<'static>`.
#[derive(Debug)]
pub struct Supplied<'a> {
    memory: NonNull<[u8]>,
    borrow: PhantomData<&'a mut [MaybeUninit<u8>]>,
}

// SAFETY: an exclusive borrow of plain bytes, which may be sent.
unsafe impl Send for Supplied<'_> {}
// SAFETY: a shared one can only be asked for its numbers.
unsafe impl Sync for Supplied<'_> {}

impl<'a> Supplied<'a> {
    /// A stack that takes all of `memory`.
    ///
    /// # Errors
    ///
    /// [`Error::TooSmall`] if `memory` has less than [`MIN_STACK`] bytes.
    ///
    /// # Safety
    ///
    /// Nothing that runs on the stack, signal handlers included, ever needs more than there is: no guard is there
    /// to stop it.
    pub unsafe fn new(memory: &'a mut [MaybeUninit<u8>]) -> Result<Supplied<'a>, Error> {
        if memory.len() < MIN_STACK {
            return Err(Error::TooSmall { supplied: memory.len(), least: MIN_STACK });
        }
        let memory = NonNull::from(memory);
        let memory = NonNull::slice_from_raw_parts(memory.cast(), memory.len());
        Ok(Supplied { memory, borrow: PhantomData })
    }
}

// SAFETY: the memory is borrowed exclusively for the life of the type, leaked or not; that nothing runs off it
// is the promise made to `new`, and so is its least size checked.
unsafe impl Stack for Supplied<'_> {
    #[inline]
    fn top(&self) -> NonNull<u8> {
        // SAFETY: the end of the memory.
        unsafe { self.limit().add(self.memory.len()) }
    }

    #[inline]
    fn limit(&self) -> NonNull<u8> {
        self.memory.cast()
    }
}
