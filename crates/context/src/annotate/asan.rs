//! AddressSanitizer: the fiber functions of its run-time library.
//!
//! The sanitizer keeps for each thread the bounds of its stack and, if it looks for uses after return, a **fake
//! stack** on which it puts locals whose address is taken. Both belong to the flow, not to the thread:
//!
//! ```text
//!    __sanitizer_start_switch_fiber(&mut fake, bottom, size)    puts the fake stack away, names the next stack
//!         the switch                                            in between, addresses tell on which of both we are
//!    __sanitizer_finish_switch_fiber(fake, &mut bottom, &mut size)   takes the fake stack, tells the last stack
//! ```
//!
//! At the end of a flow its fake stack is to be destroyed. Starting a switch without a place to put it does
//! that, but at once, when the locals of the caller may still be on it; and a flow that is abandoned never
//! comes that far. So it is done from outside: somebody else poses as the flow for the length of two calls.
//!
//! LeakSanitizer, which is part of it, finds blocks through the stacks of threads; a suspended flow's stack has
//! to be named to it. It does not look into the fake stack of a suspended flow, nor, where a process ends inside
//! a coroutine, at the stack of the thread that has resumed it.
//!
//! The functions are looked for by **weak** references: a program that is built with the feature and without
//! the sanitizer links, and nobody is told anything. (Features add up over a whole program.)
//!
//! Sources: `sanitizer/common_interface_defs.h`, `asan_interface.h` and `lsan_interface.h` of LLVM.

use crate::backend::Bounds;
use core::arch::asm;
use core::ffi::c_void;
use core::ptr::{null, null_mut};

type StartSwitch = unsafe extern "C" fn(*mut *mut c_void, *const c_void, usize);
type FinishSwitch = unsafe extern "C" fn(*mut c_void, *mut *const c_void, *mut usize);
type Region = unsafe extern "C" fn(*const c_void, usize);

/// A function of the run-time library, by name; `None` in a program without it.
macro_rules! function {
    ($name:literal as $type:ty) => {{
        let address: usize;
        // SAFETY: reads the entry of the global offset table that the linker makes for the name, zero if nobody
        // defines it.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                concat!(".weak ", $name),
                concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                out(reg) address,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!(
                concat!(".weak ", $name),
                concat!("adrp {0}, :got:", $name),
                concat!("ldr {0}, [{0}, :got_lo12:", $name, "]"),
                out(reg) address,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        // SAFETY: zero is `None`, and whoever defines one of these names is the run-time library.
        unsafe { core::mem::transmute::<usize, Option<$type>>(address) }
    }};
}

/// A flow of control, its stack and its fake stack.
#[derive(Debug)]
pub(super) struct Flow {
    /// The stack that it is suspended on: its own, or that of a coroutine that it has resumed and that
    /// suspended it.
    limit: *const c_void,
    size: usize,
    /// The fake stack, while the flow is away: null if it has none (yet).
    fake: *mut c_void,
    /// Is it suspended, or has it been switched to and not said so yet?
    away: bool,
    /// Its own stack, which LeakSanitizer knows through us; nothing for a stack elsewhere.
    registered: Option<(*const c_void, usize)>,
}

impl Flow {
    pub(super) fn of(bounds: Bounds) -> Flow {
        let limit = bounds.limit.cast_const().cast();
        let size = bounds.top as usize - bounds.limit as usize;
        if let Some(register) = function!("__lsan_register_root_region" as Region) {
            // SAFETY: only remembers the region; of what is not mapped nothing is read.
            unsafe { register(limit, size) };
        }
        Flow { limit, size, fake: null_mut(), away: true, registered: Some((limit, size)) }
    }

    pub(super) const fn elsewhere() -> Flow {
        Flow { limit: null(), size: 0, fake: null_mut(), away: false, registered: None }
    }

    /// # Safety
    ///
    /// As for [`Annotation::leave`](super::Annotation::leave).
    pub(super) unsafe fn leave(&mut self, to: &Flow) {
        self.away = true;
        // SAFETY: the caller's promises.
        unsafe { start(&raw mut self.fake, to.limit, to.size) };
    }

    /// # Safety
    ///
    /// As for [`Annotation::arrive`](super::Annotation::arrive).
    pub(super) unsafe fn arrive(&mut self, from: Option<&mut Flow>) {
        if !self.away {
            return;
        }
        self.away = false;
        let fake = core::mem::replace(&mut self.fake, null_mut());
        let (limit, size) = match from {
            Some(from) => (&raw mut from.limit, &raw mut from.size),
            None => (null_mut(), null_mut()),
        };
        // SAFETY: the switch was started in `leave`, and the fake stack is what was put away there (or none, at
        // first).
        unsafe { finish(fake, limit, size) };
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if !self.fake.is_null() {
            let (mut mine, mut limit, mut size) = (null_mut(), null(), 0);
            // SAFETY: no switch is under way (see the protocol): this thread poses as the flow, which nobody
            // will resume, ends it, and is itself again.
            unsafe {
                start(&raw mut mine, self.limit, self.size);
                finish(self.fake, &raw mut limit, &raw mut size);
                start(null_mut(), limit, size);
                finish(mine, null_mut(), null_mut());
            }
        }
        let Some((limit, size)) = self.registered else { return };
        if let Some(unregister) = function!("__lsan_unregister_root_region" as Region) {
            // SAFETY: registered in `of`.
            unsafe { unregister(limit, size) };
        }
        if let Some(unpoison) = function!("__asan_unpoison_memory_region" as Region) {
            // SAFETY: nobody runs on this stack any more, so its red zones protect nothing.
            unsafe { unpoison(limit, size) };
        }
    }
}

/// # Safety
///
/// No switch is under way on this thread. A null `fake` destroys the current fake stack.
unsafe fn start(fake: *mut *mut c_void, limit: *const c_void, size: usize) {
    if let Some(start) = function!("__sanitizer_start_switch_fiber" as StartSwitch) {
        debug_assert!(!limit.is_null(), "nobody has arrived from there yet");
        // SAFETY: the caller's promises.
        unsafe { start(fake, limit, size) };
    }
}

/// # Safety
///
/// A switch is under way on this thread, and `fake` is what the flow that it leads to has put away.
unsafe fn finish(fake: *mut c_void, limit: *mut *const c_void, size: *mut usize) {
    if let Some(finish) = function!("__sanitizer_finish_switch_fiber" as FinishSwitch) {
        // SAFETY: the caller's promises.
        unsafe { finish(fake, limit, size) };
    }
}

/// Nothing to say: what memory holds is no concern of the sanitizer's.
pub(super) fn zeroed(_addr: usize, _len: usize) {}
