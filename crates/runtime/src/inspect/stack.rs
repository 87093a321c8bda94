//! The backtrace of a fiber that is parked: where in the program it waits.
//!
//! The C library's unwinder walks it by the unwind tables, as for a panic, from a frame that pretends to have been called by the
//! suspended context (`sleave_context::backend::x86_64::walk`). What it finds are addresses; their names are looked up later, by
//! whoever prints them, when nobody is held up any more: [`visit`](super::visit) keeps the fiber from running on meanwhile.
//!
//! Nothing here allocates, or takes a lock of the program's or of std's: a fiber that is kept from running might hold it.
//!
//! Source: Itanium C++ ABI, Exception Handling, §1.6 on `_Unwind_Backtrace`; glibc 2.35 and later find the tables without a
//! lock (`_dl_find_object`).

use sleave_context::Context;

/// The most frames of one fiber, the innermost.
const MOST: usize = 64;

/// Return addresses of a fiber, innermost first.
pub(super) struct Frames {
    addresses: [usize; MOST],
    count: usize,
    /// What is seen now belongs to the fiber.
    inside: bool,
}

impl Frames {
    pub(super) fn addresses(&self) -> &[usize] {
        &self.addresses[..self.count]
    }
}

#[cfg(target_arch = "x86_64")]
mod unwinder {
    use std::ffi::{c_int, c_void};

    /// `_URC_NO_REASON` goes on, `_URC_END_OF_STACK` does not.
    pub(super) const GOES_ON: c_int = 0;
    pub(super) const ENOUGH: c_int = 5;

    unsafe extern "C" {
        pub(super) fn _Unwind_Backtrace(
            look: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int,
            argument: *mut c_void,
        ) -> c_int;
        pub(super) fn _Unwind_GetIP(context: *mut c_void) -> usize;
    }
}

/// The frames of a suspended context.
///
/// # Safety
/// It is suspended, and stays so during the call.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn frames(context: *const Context) -> Frames {
    use sleave_context::backend::x86_64::{is_walk, walk};
    use std::ffi::{c_int, c_void};

    unsafe extern "C" fn look(unwinder: *mut c_void, frames: *mut c_void) -> c_int {
        // SAFETY: `_Unwind_Backtrace` passes a frame and its own argument, which is `frames`'s.
        let (address, frames) =
            unsafe { (unwinder::_Unwind_GetIP(unwinder), &mut *frames.cast::<Frames>()) };
        if !frames.inside {
            frames.inside = is_walk(address);
            return unwinder::GOES_ON;
        }
        if address == 0 || frames.count == MOST {
            return unwinder::ENOUGH;
        }
        frames.addresses[frames.count] = address;
        frames.count += 1;
        unwinder::GOES_ON
    }
    unsafe extern "C" fn begin(frames: usize) {
        // SAFETY: the argument of `look`, alive in `frames`. What comes of it is of no interest: it ends where it can.
        unsafe { unwinder::_Unwind_Backtrace(look, frames as *mut c_void) };
    }
    let mut frames = Frames { addresses: [0; MOST], count: 0, inside: false };
    // SAFETY: by contract; `begin` returns.
    unsafe { walk(context, begin, &raw mut frames as usize) };
    frames
}

/// There are no fibers of this kind here.
///
/// # Safety
/// None.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn frames(_: *const Context) -> Frames {
    Frames { addresses: [0; MOST], count: 0, inside: false }
}
