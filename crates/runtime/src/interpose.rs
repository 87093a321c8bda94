//! What the interposed C library asks first: is the caller a fiber whose calls may park it?

use crate::fiber::current;

/// Whether the caller is a fiber, and its calls are to park it instead of blocking the thread.
///
/// False on plain threads, and while the runtime itself is at work for a fiber: a signal
/// handler that interrupts it then gets libc's own calls.
#[inline(always)]
pub fn active() -> bool {
    // SAFETY: the caller's own control block.
    current().is_some_and(|control| unsafe { control.as_ref() }.bypass.get() == 0)
}
