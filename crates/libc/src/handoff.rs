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

use std::ffi::c_int;

pub(crate) use sleave_runtime::blocking::{Call, glance, hand_off};
use sleave_runtime::signal;

use crate::signal::interruption;
use crate::{cancel, errno};

/// What calls answer that may end with `EINTR`.
pub(crate) trait Interrupted {
    /// Whether this one has, in the kernel's form or in the C library's.
    fn is_interrupted(&self) -> bool;
}

macro_rules! interrupted {
    ($($type:ty)*) => {
        $(
            impl Interrupted for $type {
                fn is_interrupted(&self) -> bool {
                    let code = -(*self as isize);
                    code == libc::EINTR as isize || code == 1 && errno::get() == libc::EINTR
                }
            }
        )*
    };
}
interrupted! { c_int isize i64 }

/// Hands off a call that waits, a cancellation point, and makes it again if nothing has ended it but the runtime's own kick.
pub(crate) fn hand_off_again<T: Interrupted>(call: impl Fn() -> T) -> T {
    cancel::point();
    signal::was_kicked();
    loop {
        let result = hand_off(Call::Waits, &call);
        if !result.is_interrupted() || !signal::was_kicked() {
            return result;
        }
        match interruption(true) {
            None => {}
            Some(cancel::CANCELLED) => cancel::act(),
            Some(_) => return result,
        }
    }
}

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
            pub unsafe extern "C-unwind" fn $name($($arg: $type),*) $(-> $ret)? {
                // SAFETY: the caller's arguments for the same function.
                let call = || unsafe { crate::next::$name($($arg),*) };
                if !sleave_runtime::interpose::active() {
                    return call();
                }
                $crate::handoff::hand_off_whole!(@ $call call)
            }
        )*
    };
    (@ Waits $function:ident) => { $crate::handoff::hand_off_again($function) };
    (@ Works $function:ident) => { $crate::handoff::hand_off($crate::handoff::Call::Works, $function) };
}
pub(crate) use hand_off_whole;
