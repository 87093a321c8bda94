//! The same tests on every backend.

use sleave_context::backend::{Backend, Bounds, Native};
use sleave_context::stack::Slot;

/// A backend, and what tests must know about it.
pub trait Tested: Backend {
    /// The module that [`on_every_backend!`] puts its tests into.
    const MODULE: &'static str;

    /// A context keeps its own signal mask and floating-point control state.
    const SWITCHES_CONTROL_STATE: bool;

    /// At most so many frames of the backend's own lie between the end of a backtrace and the
    /// entry, or the first hook.
    const FIRST_FRAMES: usize;
}

impl Tested for Native {
    const MODULE: &'static str = "native";
    const SWITCHES_CONTROL_STATE: bool = false;
    const FIRST_FRAMES: usize = 1;
}

#[cfg(all(feature = "ucontext", target_env = "gnu"))]
impl Tested for sleave_context::backend::Ucontext {
    const MODULE: &'static str = "ucontext";
    const SWITCHES_CONTROL_STATE: bool = true;
    const FIRST_FRAMES: usize = 4;
}

#[cfg(feature = "sigjmp")]
impl Tested for sleave_context::backend::Sigjmp {
    const MODULE: &'static str = "sigjmp";
    const SWITCHES_CONTROL_STATE: bool = false;
    const FIRST_FRAMES: usize = 3;
}

/// Makes of each generic function `fn test<B: Tested>()` one test a backend: `native::test` …
#[macro_export]
macro_rules! on_every_backend {
    ($($test:ident,)*) => {
        on_every_backend!(@ native, sleave_context::backend::Native, $($test)*);
        #[cfg(all(feature = "ucontext", target_env = "gnu"))]
        on_every_backend!(@ ucontext, sleave_context::backend::Ucontext, $($test)*);
        #[cfg(feature = "sigjmp")]
        on_every_backend!(@ sigjmp, sleave_context::backend::Sigjmp, $($test)*);
    };
    (@ $module:ident, $backend:ty, $($test:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    super::$test::<$backend>();
                }
            )*
        }
    };
}

/// All of a slot above its guard.
pub fn bounds(slot: &Slot) -> Bounds {
    let limit = slot.base().wrapping_add(slot.guard_len());
    Bounds { limit, top: slot.top() }
}

/// Two contexts that switch to each other, and a word for the test's use.
pub struct Pair<B: Backend> {
    pub here: B::Context,
    pub there: B::Context,
    pub data: usize,
}

impl<B: Backend> Pair<B> {
    pub fn new() -> Pair<B> {
        Pair { here: B::empty(), there: B::empty(), data: 0 }
    }
}

/// From the test to the context under test.
///
/// # Safety
///
/// As for [`Backend::swap`].
pub unsafe fn enter<B: Backend>(pair: *mut Pair<B>, value: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { B::swap(&raw mut (*pair).here, &raw const (*pair).there, None, value) }
}

/// From the context under test back to the test.
///
/// # Safety
///
/// As for [`Backend::swap`].
pub unsafe fn leave<B: Backend>(pair: *mut Pair<B>, value: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { B::swap(&raw mut (*pair).there, &raw const (*pair).here, None, value) }
}
