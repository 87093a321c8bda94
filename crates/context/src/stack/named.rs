//! A stack with a name, for the report of its overflow.
//!
//! ```text
//!   limit                                                       top()   of the stack inside
//!     ├─────────────────────────────────── grows down ◀ ──────────┤ name, 64 bytes ┤
//! ```
//!
//! The name lies on the stack itself, above what runs there: no allocation, and it lives as long as the stack. A
//! list of the process leads from a stack's limit to its name.

use super::registry::{Entry, Registry};
use super::{Error, MIN_STACK, Stack};
use core::fmt;
use core::ptr::{NonNull, with_exposed_provenance};

/// The most bytes of a name that are kept; a line of the cache, so that colours stay what they are.
const NAME_MAX: usize = 64;

/// The stack's limit, the name's address and its length.
static NAMES: Registry = Registry::new();

/// A stack with a name, which the [report of its overflow](crate::overflow) shows.
///
/// ```
/// use sleave_context::Coroutine;
/// use sleave_context::stack::{Named, Slab};
///
/// let stack = Named::new(Slab::default(), "parser")?;
/// assert_eq!(stack.name(), "parser");
/// let parser: Coroutine<u8, (), u8, _> = Coroutine::with_stack(stack, |_, first| first);
/// # Ok::<(), sleave_context::stack::Error>(())
/// ```
pub struct Named<S: Stack + 'static> {
    stack: S,
    /// Of the name.
    len: usize,
    entry: &'static Entry,
}

impl<S: Stack + 'static> Named<S> {
    /// Gives `stack` a name, of which 64 bytes are kept. They are taken from the stack's top.
    ///
    /// # Errors
    ///
    /// * [`Error::TooSmall`] if the stack has no room for a name;
    /// * [`Error::OutOfMemory`] if there is no memory to remember where it is.
    pub fn new(stack: S, name: &str) -> Result<Named<S>, Error> {
        let (limit, top) = (stack.limit().as_ptr(), stack.top().as_ptr());
        let (bytes, least) = (top as usize - limit as usize, MIN_STACK + NAME_MAX);
        if bytes < least {
            return Err(Error::TooSmall { supplied: bytes, least });
        }
        let mut len = name.len().min(NAME_MAX);
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        // SAFETY: the uppermost bytes of a stack that nothing runs on yet, and that is ours.
        let place = unsafe {
            let place = top.sub(NAME_MAX);
            place.copy_from_nonoverlapping(name.as_ptr(), len);
            place
        };
        let entry = NAMES.enter([limit as usize, place.expose_provenance(), len])?;
        Ok(Named { stack, len, entry })
    }

    /// The name, as far as it is kept.
    pub fn name(&self) -> &str {
        // SAFETY: written by `new`, up to a boundary between characters; nobody else uses these bytes.
        unsafe {
            let bytes = core::slice::from_raw_parts(self.top().as_ptr(), self.len);
            core::str::from_utf8_unchecked(bytes)
        }
    }

    /// The stack inside.
    pub fn get_ref(&self) -> &S {
        &self.stack
    }
}

/// Shows `look` the name of the stack whose lowest usable byte is at `limit`. Async-signal-safe.
///
/// # Safety
///
/// The stack is in use, and stays so.
pub(crate) unsafe fn name_of<R>(limit: usize, look: impl FnOnce(&str) -> R) -> Option<R> {
    let (place, len) = NAMES.find(|[at, place, len]| (at == limit).then_some((place, len)))?;
    // SAFETY: entered by `new` and not yet taken out, so the name is there as long as the stack is: an owner takes it
    // out first. A leaked one stays, and its memory as well.
    let bytes = unsafe { core::slice::from_raw_parts(with_exposed_provenance(place), len) };
    // SAFETY: as in `name`.
    Some(look(unsafe { core::str::from_utf8_unchecked(bytes) }))
}

// SAFETY: the stack inside keeps the contract; less its uppermost bytes it still has the least size, which `new` has
// checked.
unsafe impl<S: Stack + 'static> Stack for Named<S> {
    #[inline]
    fn top(&self) -> NonNull<u8> {
        // SAFETY: `new` has checked that there are so many bytes.
        unsafe { self.stack.top().sub(NAME_MAX) }
    }

    #[inline]
    fn limit(&self) -> NonNull<u8> {
        self.stack.limit()
    }

    #[inline]
    fn shift(&self) -> usize {
        self.stack.shift()
    }
}

impl<S: Stack + 'static> Drop for Named<S> {
    fn drop(&mut self) {
        // Before the stack inside is dropped, which comes next.
        NAMES.leave(self.entry);
    }
}

impl<S: Stack + fmt::Debug> fmt::Debug for Named<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Named").field("name", &self.name()).field("stack", &self.stack).finish()
    }
}
