//! The floating-point control state of a context: MXCSR and the x87 control word.
//!
//! The System V ABI (§3.2.1) makes the control bits of both callee-saved, and `fenv(3)` makes them,
//! with MXCSR's exception flags, a property of the *thread*. A context that is to look like a thread must
//! keep its own. Hardly any program ever changes them, though, and loading them is slower than reading them.
//! So: read, compare, load only
//! on a difference.
//!
//! Measured around one side of a resume-and-yield round trip that takes 3.0 ns (`bench`, program `switch`): saved and
//! loaded always, 7.4 ns; saved, and loaded only on a difference, 5.4 ns. So 2.4 ns for a context that keeps its
//! own, 4.4 ns had it been done blindly.
//!
//! This is a type beside [`swap`](super::swap) and not a part of it, because not every switch needs it: a worker that goes
//! from its own stack to a fiber and back may leave it out, a generator that computes with its caller's rounding mode must.
//!
//! ```text
//!   let mine = FpControl::save();
//!   let value = swap(…);            // others run, perhaps with another rounding mode
//!   mine.restore();                 // two reads and two compares; loads only what differs
//! ```
//!
//! The x87 *status* word (sticky exceptions of `long double` arithmetic) is not kept: it can be
//! loaded only with the whole environment, which took 69 ns where it was measured, some forty switches.

use core::arch::asm;

/// MXCSR (rounding, denormals, masks and exception flags of SSE/AVX) and the x87 control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FpControl {
    mxcsr: u32,
    x87: u16,
}

impl FpControl {
    /// What every thread starts with by the ABI: all exceptions masked, round to nearest, x87 in
    /// extended precision.
    pub const DEFAULT: FpControl = FpControl { mxcsr: 0x1f80, x87: 0x037f };

    /// The state now in force.
    #[inline(always)]
    pub fn save() -> FpControl {
        let mut state = FpControl { mxcsr: 0, x87: 0 };
        // SAFETY: both instructions store to the address given (4 and 2 bytes), no more. `fnstcw`
        // does not wait for, nor change, pending x87 exceptions.
        unsafe {
            asm!(
                "stmxcsr dword ptr [{mxcsr}]",
                "fnstcw word ptr [{x87}]",
                mxcsr = in(reg) &raw mut state.mxcsr,
                x87 = in(reg) &raw mut state.x87,
                options(nostack, preserves_flags),
            );
        }
        state
    }

    /// Puts the state in force, touching only what differs from what already is.
    #[inline(always)]
    pub fn restore(self) {
        let now = FpControl::save();
        if now.mxcsr != self.mxcsr {
            // SAFETY: the value was read from MXCSR, or is `DEFAULT`: no reserved bit is set.
            unsafe {
                asm!("ldmxcsr dword ptr [{}]", in(reg) &raw const self.mxcsr, options(nostack, readonly, preserves_flags));
            }
        }
        if now.x87 != self.x87 {
            // SAFETY: any control word may be loaded.
            unsafe {
                asm!("fldcw word ptr [{}]", in(reg) &raw const self.x87, options(nostack, readonly, preserves_flags));
            }
        }
    }

    /// Puts the state in force without looking first. Slower than [`restore`](Self::restore) unless
    /// a difference is the rule.
    #[inline(always)]
    pub fn load(self) {
        // SAFETY: as in `restore`.
        unsafe {
            asm!(
                "ldmxcsr dword ptr [{mxcsr}]",
                "fldcw word ptr [{x87}]",
                mxcsr = in(reg) &raw const self.mxcsr,
                x87 = in(reg) &raw const self.x87,
                options(nostack, readonly, preserves_flags),
            );
        }
    }
}
