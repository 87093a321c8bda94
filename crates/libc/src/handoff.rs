//! Calls that are handed off whole: what blocks has no readiness, and nothing can be tried first.
//!
//! ```text
//!   getaddrinfo ─▶ on a fiber: declare ─▶ the C library's own, on this thread ─▶ the fiber goes on
//!                                └─▶ another thread runs the other fibers meanwhile
//! ```
//!
//! While such a call is on, interposition is off for its fiber: a resolver's plug-in that calls `poll` waits with its thread,
//! which has been replaced already. Families with something to try first (`lock`, `process`, `file`) use the same
//! [`hand_off`] for what is left.

pub(crate) use sleave_runtime::blocking::{Call, glance, hand_off};

/// Defines functions of the C library that are handed off whole: how they end, then their signatures.
macro_rules! hand_off_whole {
    ($(
        $(#[$doc:meta])*
        $call:ident $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)?;
    )*) => {
        $(
            $(#[$doc])*
            #[allow(clippy::too_many_arguments, reason = "the C library's own")]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the caller's arguments for the same function.
                let call = || unsafe { crate::next::$name($($arg),*) };
                if !sleave_runtime::interpose::active() {
                    return call();
                }
                $crate::handoff::hand_off($crate::handoff::Call::$call, call)
            }
        )*
    };
}
pub(crate) use hand_off_whole;
