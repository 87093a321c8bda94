//! Valgrind: client requests.
//!
//! A program speaks to Valgrind by a sequence of instructions that does nothing on a processor (a register is
//! rotated once around) and that no compiler emits. Valgrind, which translates the program, sees it and takes
//! the address of six words (the request, five arguments) from one register, leaving the answer in another.
//!
//! Valgrind notices a switch by itself, as a change of the stack pointer from one *registered* stack into
//! another; so there is nothing to say when leaving or arriving.
//!
//! Source: Valgrind's manual, "The Client Request mechanism" and "Memcheck: client requests", and the protocol
//! in `valgrind.h`.

use crate::backend::Bounds;
use core::arch::asm;

/// `VALGRIND_STACK_REGISTER(lowest, highest byte)`: gives the stack's number.
const STACK_REGISTER: usize = 0x1501;
/// `VALGRIND_STACK_DEREGISTER(number)`.
const STACK_DEREGISTER: usize = 0x1502;
/// Requests to Memcheck, which other tools ignore, begin with these two letters.
const MEMCHECK: usize = (b'M' as usize) << 24 | (b'C' as usize) << 16;
/// `VALGRIND_MAKE_MEM_UNDEFINED(address, length)`.
const MAKE_MEM_UNDEFINED: usize = MEMCHECK + 1;
/// `VALGRIND_MAKE_MEM_DEFINED(address, length)`.
const MAKE_MEM_DEFINED: usize = MEMCHECK + 2;

/// A flow of control on a stack that Valgrind knows by a number.
#[derive(Debug)]
pub(super) struct Flow {
    /// What was registered; nothing for a stack elsewhere.
    registered: Option<(Bounds, usize)>,
}

impl Flow {
    pub(super) fn of(bounds: Bounds) -> Flow {
        let (limit, top) = (bounds.limit as usize, bounds.top as usize);
        Flow { registered: Some((bounds, request(STACK_REGISTER, [limit, top - 1]))) }
    }

    pub(super) const fn elsewhere() -> Flow {
        Flow { registered: None }
    }

    #[inline(always)]
    pub(super) unsafe fn leave(&mut self, _to: &Flow) {}

    #[inline(always)]
    pub(super) unsafe fn arrive(&mut self, _from: Option<&mut Flow>) {}
}

impl Drop for Flow {
    fn drop(&mut self) {
        if let Some((bounds, number)) = self.registered {
            request(STACK_DEREGISTER, [number, 0]);
            // What lay below the last stack pointer counts as inaccessible.
            let (limit, top) = (bounds.limit as usize, bounds.top as usize);
            request(MAKE_MEM_UNDEFINED, [limit, top - limit]);
        }
    }
}

/// The memory reads as zero now.
pub(super) fn zeroed(addr: usize, len: usize) {
    request(MAKE_MEM_DEFINED, [addr, len]);
}

/// Asks Valgrind; without Valgrind the answer is zero.
#[inline(always)]
fn request(code: usize, arguments: [usize; 2]) -> usize {
    let words = [code, arguments[0], arguments[1], 0, 0, 0];
    let mut answer = 0_usize;
    // SAFETY: to a processor, rotations that add up to a whole turn and a move of a register to itself.
    // Valgrind reads the six words and writes the answer.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") &raw const words,
            inout("rdx") answer,
            options(nostack),
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "ror x12, x12, 3",
            "ror x12, x12, 13",
            "ror x12, x12, 51",
            "ror x12, x12, 61",
            "orr x10, x10, x10",
            in("x4") &raw const words,
            inout("x3") answer,
            options(nostack),
        );
    }
    answer
}
