//! The floating-point control state of a context: FPCR, and the exception flags in FPSR.
//!
//! AAPCS64 (§6.1.2) has a call preserve FPCR, and `fenv(3)` makes it, with FPSR's exception
//! flags, a property of the *thread*. A context that is to look like a thread must
//! keep its own. Hardly any program ever changes FPCR, though, and writing it is slower than reading it.
//! So: read, compare, write only
//! on a difference.
//!
//! This is a type beside [`swap`](super::swap) and not a part of it, because not every switch needs it: a worker
//! that goes from its own stack to a fiber and back may leave it out, a generator that computes with its caller's
//! rounding mode must.
//!
//! ```text
//!   let mine = FpControl::save();
//!   let value = swap(…);            // others run, perhaps with another rounding mode
//!   mine.restore();                 // two reads and two compares; writes only what differs
//! ```
//!
//! SME's mode that replaces FPCR for streaming code (FPMR) is not kept: by its ABI no call preserves it.

use core::arch::asm;

/// FPCR (rounding, denormals, default NaN, traps) and FPSR (exception flags, saturation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FpControl {
    fpcr: u64,
    fpsr: u64,
}

impl FpControl {
    /// What every thread starts with on Linux: no traps, round to nearest, denormals computed, no
    /// exception seen.
    pub const DEFAULT: FpControl = FpControl { fpcr: 0, fpsr: 0 };

    /// The state now in force.
    #[inline(always)]
    pub fn save() -> FpControl {
        let (fpcr, fpsr);
        // SAFETY: both may be read by any program. Not `pure`: what was computed before matters.
        unsafe {
            asm!(
                "mrs {fpcr}, fpcr",
                "mrs {fpsr}, fpsr",
                fpcr = lateout(reg) fpcr,
                fpsr = lateout(reg) fpsr,
                options(nostack, preserves_flags),
            );
        }
        FpControl { fpcr, fpsr }
    }

    /// Puts the state in force, touching only what differs from what already is.
    #[inline(always)]
    pub fn restore(self) {
        let now = FpControl::save();
        if now.fpcr != self.fpcr {
            // SAFETY: the value was read from FPCR, or is `DEFAULT`: no reserved bit is set.
            unsafe { asm!("msr fpcr, {}", in(reg) self.fpcr, options(nostack, preserves_flags)) };
        }
        if now.fpsr != self.fpsr {
            // SAFETY: as above, from FPSR, which counts as flags to the compiler.
            unsafe { asm!("msr fpsr, {}", in(reg) self.fpsr, options(nostack)) };
        }
    }

    /// Puts the state in force without looking first. Slower than [`restore`](Self::restore) unless
    /// a difference is the rule.
    #[inline(always)]
    pub fn load(self) {
        // SAFETY: as in `restore`.
        unsafe {
            asm!(
                "msr fpcr, {fpcr}",
                "msr fpsr, {fpsr}",
                fpcr = in(reg) self.fpcr,
                fpsr = in(reg) self.fpsr,
                options(nostack),
            );
        }
    }
}
