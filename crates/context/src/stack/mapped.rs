//! A stack that is a mapping of its own: what a thread's stack is.
//!
//! ```text
//!   base            limit                                                    top
//!    ├── guard page ──┼──────────────────────────────── the stack grows down ◀ ┤
//!      PROT_NONE        read, write
//! ```
//!
//! Four system calls make and unmake it, each of its pages is touched for the first time, and it counts as two
//! of the process's mappings, of which `vm.max_map_count` allows 65,530 by default. In exchange it has
//! exactly the size that was asked for, and its memory goes back to the kernel at once. For many stacks, or for ones
//! that come and go, take a [`Slab`](super::Slab).

use super::locate::{Extent, index};
use super::registry::Entry;
use super::{COLOURS, Error, Stack, colour};
use crate::sys::{self, page_size};
use core::fmt;
use core::ptr::{NonNull, with_exposed_provenance_mut};

/// A stack in a mapping of its own with a guard page below, unmapped when dropped.
///
/// ```
/// use sleave_context::stack::{Mapped, Stack};
///
/// let stack = Mapped::new(1_000_000)?; // of any size
/// assert!(stack.size() >= 1_000_000);
/// assert_eq!(stack.top().as_ptr() as usize - stack.limit().as_ptr() as usize, stack.size() - stack.guard_len());
/// # Ok::<(), sleave_context::stack::Error>(())
/// ```
pub struct Mapped {
    base: NonNull<u8>,
    size: usize,
    /// This stack in the list of all stacks, for signal handlers.
    entry: &'static Entry,
}

// SAFETY: memory that belongs to whoever has the value, whatever thread that is.
unsafe impl Send for Mapped {}
// SAFETY: a shared one can only be asked for its numbers.
unsafe impl Sync for Mapped {}

/// The largest mapping that Rust's pointers can span.
const MAX: usize = isize::MAX as usize;

impl Mapped {
    /// Maps a stack of `size` bytes, the guard page included, rounded up to pages; at least two of them.
    ///
    /// # Errors
    ///
    /// * [`Error::Zero`] and [`Error::TooLarge`] for sizes that no stack has;
    /// * [`Error::OutOfMemory`] if the kernel has no memory or no address space for it;
    /// * [`Error::TooManyMappings`] if the process may not have another mapping.
    pub fn new(size: usize) -> Result<Mapped, Error> {
        if size == 0 {
            return Err(Error::Zero);
        }
        let page = page_size();
        if size > MAX - page {
            return Err(Error::TooLarge { requested: size, limit: MAX - page });
        }
        let size = size.next_multiple_of(page).max(2 * page);
        let base = sys::map(size, libc::PROT_NONE, libc::MAP_STACK).map_err(Error::from_kernel)?;
        Mapped::guarded(base, size).inspect_err(|_| {
            // SAFETY: mapped above, and nobody has seen it.
            unsafe { sys::unmap(base, size) };
        })
    }

    /// Makes a stack of a new mapping without access.
    fn guarded(base: usize, size: usize) -> Result<Mapped, Error> {
        let page = page_size();
        // SAFETY: our own new mapping.
        unsafe {
            // Huge pages would commit 2 MiB for the first byte. Linux 6.7 and newer take the hint from MAP_STACK;
            // a kernel built without huge pages says EINVAL: nothing to forbid.
            let _ = sys::advise(base, size, libc::MADV_NOHUGEPAGE);
            sys::protect(base + page, size - page, libc::PROT_READ | libc::PROT_WRITE)
                .map_err(Error::from_split)?;
        }
        let entry = Extent { base, len: size, table: 0 }.enter()?;
        // SAFETY: mmap(2) places nothing at address zero unless it is told to.
        let base = unsafe { NonNull::new_unchecked(with_exposed_provenance_mut(base)) };
        Ok(Mapped { base, size, entry })
    }

    /// Bytes, the guard included.
    #[inline]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes at the low end that are guard: one page.
    #[inline]
    pub fn guard_len(&self) -> usize {
        page_size()
    }
}

// SAFETY: the mapping is the value's own and readable and writable above its guard page, of at least one page. It is
// unmapped only when the value is dropped.
unsafe impl Stack for Mapped {
    #[inline]
    fn top(&self) -> NonNull<u8> {
        // SAFETY: the end of the mapping.
        unsafe { self.base.add(self.size) }
    }

    #[inline]
    fn limit(&self) -> NonNull<u8> {
        // SAFETY: within the mapping.
        unsafe { self.base.add(page_size()) }
    }

    /// Mappings of one size are laid side by side, hence as regular as slots.
    #[inline]
    fn shift(&self) -> usize {
        colour(index(self.base.addr().get()), COLOURS)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        Extent::leave(self.entry);
        // SAFETY: the mapping is the value's own, and `drop` has it exclusively.
        unsafe { sys::unmap(self.base.addr().get(), self.size) };
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("base", &self.base).field("size", &self.size).finish()
    }
}
