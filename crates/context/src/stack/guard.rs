//! Guards: what makes running off a stack a fault and not a corruption.
//!
//! Two ways to make the lowest pages of a slot inaccessible:
//!
//! * `MADV_GUARD_INSTALL` (Linux 6.13, madvise(2)) marks the page-table entries. No mapping is split, so
//!   a million guards need no mapping of their own; the marks survive `MADV_DONTNEED` and fork.
//! * `mprotect(PROT_NONE)` splits the mapping: two mappings per slot, and `vm.max_map_count` (65,530 by
//!   default) ends it at some 32,000 slots.
//!
//! A slot gets its guard when it is first handed out, one call each: about 0.36 µs for a 16 KiB slot, 0.58 µs for
//! 256 KiB (Linux 6.18, page tables included), once in the slot's life, where the first touch of each of its pages
//! costs 1.7 µs. Batches of 16 by `process_madvise` on oneself took 30 % off that; not enough for a second
//! path that only newer kernels still could go.
//!
//! Which one is in force is found out by the first guard: a kernel that does not know the advice says
//! EINVAL, as does one that refuses it for locked memory (mlockall(2)). From the first EINVAL on the
//! arena uses mprotect; guards set before stay as good as they were.
//!
//! An emulator may take all advice for hints that need not be heeded, and say that it is done: qemu does that
//! for the programs of other processors. So the first advice of all is nonsense, which a kernel refuses.

use super::Error;
use crate::sys;
use core::sync::atomic::{AtomicU8, Ordering};
use syscalls::Errno;

/// How an arena guards its stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GuardMethod {
    /// `MADV_GUARD_INSTALL`; where the kernel refuses, [`Mprotect`](GuardMethod::Mprotect) from then on.
    #[default]
    Madvise,
    /// `mprotect(PROT_NONE)`: two kernel mappings per stack.
    Mprotect,
}

/// To be guarded by advice, if the kernel is one.
const UNTRIED: u8 = 0;
/// Guarded by advice, as long as the kernel takes it.
const ADVISED: u8 = 1;
/// Guarded by mprotect.
const PROTECTED: u8 = 2;

/// An advice that there is not: `madvise(2)` answers EINVAL.
const NONSENSE: i32 = -1;

/// The method in force, shared by all of an arena's classes.
pub(super) struct Guards {
    state: AtomicU8,
}

impl Guards {
    pub(super) const fn new(method: GuardMethod) -> Guards {
        let state = match method {
            GuardMethod::Madvise => UNTRIED,
            GuardMethod::Mprotect => PROTECTED,
        };
        Guards { state: AtomicU8::new(state) }
    }

    pub(super) fn method(&self) -> GuardMethod {
        // Relaxed: the state stands for itself; who sees it late asks the kernel once more.
        match self.state.load(Ordering::Relaxed) {
            PROTECTED => GuardMethod::Mprotect,
            _ => GuardMethod::Madvise,
        }
    }

    /// Guards `len` bytes from `addr`.
    ///
    /// # Safety
    ///
    /// The range lies in the arena's reservation, in a slot that nobody has used yet.
    pub(super) unsafe fn install(&self, addr: usize, len: usize) -> Result<(), Error> {
        // Relaxed, here and below: see `method`.
        if self.state.load(Ordering::Relaxed) == UNTRIED {
            // SAFETY: nobody uses the range; and nothing is done to it.
            let refused = unsafe { sys::advise(addr, len, NONSENSE) }.is_err();
            self.state.store(if refused { ADVISED } else { PROTECTED }, Ordering::Relaxed);
        }
        if self.method() == GuardMethod::Madvise {
            // SAFETY: the caller's promise.
            match unsafe { sys::advise(addr, len, sys::MADV_GUARD_INSTALL) } {
                Err(Errno::EINVAL) => self.state.store(PROTECTED, Ordering::Relaxed),
                done => return done.map_err(Error::from_kernel),
            }
        }
        // SAFETY: the caller's promise.
        unsafe { sys::protect(addr, len, libc::PROT_NONE) }.map_err(Error::from_split)
    }
}
