//! What the interposed C library asks first: is the caller a fiber whose calls may park it?
//!
//! Two have a say, and one word of the control block holds both, so that the question stays one
//! load and one compare with zero:
//!
//! ```text
//!   bypass:  | the program's switch: 1 is off | how many times the runtime is at work |
//!             bit 31                           bits 30 … 0
//! ```
//!
//! The runtime counts up and down in pairs, which leaves the switch as it is; the switch leaves the
//! count as it is. The word is its fiber's own: only the thread that the fiber is on touches it.

use std::cell::Cell;

use crate::fiber::current;

/// The program's switch in `Control::bypass`: its fiber's calls are to be libc's own.
const OFF: u32 = 1 << 31;

/// Whether the caller is a fiber, and its calls are to park it instead of blocking the thread.
///
/// False on plain threads; in a fiber that has switched interposition off ([`set`],
/// [`uninterposed`]); and while the runtime itself is at work for a fiber: a signal handler that
/// interrupts it then gets libc's own calls.
#[inline(always)]
pub fn active() -> bool {
    // SAFETY: the caller's own control block.
    current().is_some_and(|control| unsafe { control.as_ref() }.bypass.get() == 0)
}

/// Whether the caller is no fiber, or the runtime is at work on its stack.
pub(crate) fn is_at_work() -> bool {
    // SAFETY: the caller's own control block.
    current().is_none_or(|control| unsafe { control.as_ref() }.bypass.get() & !OFF != 0)
}

/// Switches interposition on or off for the calling fiber, and says how it was.
///
/// While it is off, the C library's calls that this fiber makes are libc's own: they block the
/// worker's OS thread, and the fiber stays on that thread. The worker's other fibers go on when
/// the runtime's monitor has noticed, some 15 ms later. Everything else is as before: `sleave`'s
/// own calls (`yield_now`, `park`, joining) still park the fiber, locks and channels of std are
/// still released across fibers and threads, and no other fiber is concerned. What the fiber
/// spawns begins with interposition on.
///
/// This is for code that must not change threads, or whose calls are so short that parking does
/// not pay. [`uninterposed`] switches back by itself. A signal handler leaves the switch as it
/// finds it.
///
/// On a thread that is no fiber the calls are libc's own in any case: this changes nothing there,
/// and answers `false`.
///
/// # Examples
///
/// ```
/// # use sleave_runtime::interpose;
/// sleave_runtime::run(|| {
/// #   if sleave_runtime::identity().is_err() { return; }
///     assert!(interpose::set(false), "a fiber begins with it on");
///     assert!(!interpose::set(true));
/// });
/// assert!(!interpose::set(true), "not on a plain thread");
/// ```
pub fn set(on: bool) -> bool {
    let Some(control) = current() else { return false };
    // SAFETY: the caller's own control block.
    switch(unsafe { &control.as_ref().bypass }, on)
}

fn switch(bypass: &Cell<u32>, on: bool) -> bool {
    let before = bypass.get();
    bypass.set(if on { before & !OFF } else { before | OFF });
    before & OFF == 0
}

/// Calls `f` with interposition off for the calling fiber, and puts the switch back to what it
/// was, also if `f` panics. See [`set`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// sleave_runtime::run(|| {
///     // Blocks the worker's thread for a microsecond instead of going through the scheduler.
///     sleave_runtime::interpose::uninterposed(|| std::thread::sleep(Duration::from_micros(1)));
/// });
/// ```
pub fn uninterposed<F, T>(f: F) -> T
where
    F: FnOnce() -> T,
{
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            set(self.0);
        }
    }
    let _restore = Restore(set(false));
    f()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn switch_and_count_leave_each_other_alone() {
        let bypass = Cell::new(0);
        assert!(switch(&bypass, false));
        // The runtime leaves and comes back, as in `scheduler::leave`.
        bypass.set(bypass.get() + 1);
        assert!(!switch(&bypass, true));
        assert_ne!(bypass.get(), 0, "the runtime is still at work");
        assert!(switch(&bypass, false));
        bypass.set(bypass.get() - 1);
        assert_ne!(bypass.get(), 0, "the program has switched it off");
        assert!(!switch(&bypass, true));
        assert_eq!(bypass.get(), 0);
    }
}
