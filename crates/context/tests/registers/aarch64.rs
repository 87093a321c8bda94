//! 64-bit Arm: general registers, vectors, SVE's vectors and predicates where the processor has them; FPCR and
//! FPSR.

use super::{Pair, overwrites, switches, with_other_side};
use sleave_context::Context;
use sleave_context::backend::{Backend, Bounds, Link, Message, Native};
use std::arch::aarch64::uint64x2_t;
use std::arch::{asm, is_aarch64_feature_detected, naked_asm};

pub fn overwrite() {
    // SAFETY: everything written is declared or put back; SVE is asked for.
    unsafe {
        if is_aarch64_feature_detected!("sve") {
            overwrite_sve();
        }
        asm!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "movi v\\n\\().16b, #0xff",
            ".endr",
            "stp x19, x29, [sp, #-16]!",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
            "mov x\\n, #-1",
            ".endr",
            "ldp x19, x29, [sp], #16",
            out("x20") _, out("x21") _, out("x22") _, out("x23") _, out("x24") _,
            out("x25") _, out("x26") _, out("x27") _, out("x28") _,
            clobber_abi("C"),
        );
    }
}

/// # Safety
///
/// The processor has SVE.
unsafe fn overwrite_sve() {
    // SAFETY: declared by `clobber_abi`; the caller has asked for the feature.
    unsafe {
        asm!(
            ".arch_extension sve",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "mov z\\n\\().b, #-1",
            ".endr",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "ptrue p\\n\\().b",
            ".endr",
            "setffr",
            clobber_abi("C"),
        );
    }
}

/// FPCR is callee-saved too, except from those that are called to change it: `overwrite` does not.
#[unsafe(naked)]
pub unsafe extern "C" fn differing_callee_saved<B: Backend>(pair: *mut Pair<B>) -> usize {
    naked_asm!(
        "stp x29, x30, [sp, #-176]!",
        "stp x19, x20, [sp, #16]", "stp x21, x22, [sp, #32]", "stp x23, x24, [sp, #48]",
        "stp x25, x26, [sp, #64]", "stp x27, x28, [sp, #80]",
        "stp d8, d9, [sp, #96]", "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]", "stp d14, d15, [sp, #144]",
        "mov x9, sp", "str x9, [sp, #160]",
        ".irp n, 19,20,21,22,23,24,25,26,27,28,29",
        "mov x\\n, #(0x1100 + \\n)",
        ".endr",
        ".irp n, 8,9,10,11,12,13,14,15",
        "mov x9, #(0x2200 + \\n)", "fmov d\\n, x9",
        ".endr",
        "bl {switches}",
        "ldr x9, [sp, #160]", "mov x10, sp", "cmp x9, x10", "cset x0, ne",
        ".irp n, 19,20,21,22,23,24,25,26,27,28,29",
        "mov x9, #(0x1100 + \\n)", "cmp x9, x\\n", "cinc x0, x0, ne",
        ".endr",
        ".irp n, 8,9,10,11,12,13,14,15",
        "mov x9, #(0x2200 + \\n)", "fmov x10, d\\n", "cmp x9, x10", "cinc x0, x0, ne",
        ".endr",
        "ldp d14, d15, [sp, #144]", "ldp d12, d13, [sp, #128]",
        "ldp d10, d11, [sp, #112]", "ldp d8, d9, [sp, #96]",
        "ldp x27, x28, [sp, #80]", "ldp x25, x26, [sp, #64]",
        "ldp x23, x24, [sp, #48]", "ldp x21, x22, [sp, #32]", "ldp x19, x20, [sp, #16]",
        "ldp x29, x30, [sp], #176",
        "ret",
        switches = sym switches::<B>,
    )
}

keeps_over_a_switch!(keeps_integers, "neon", reg, u64, 1,
    "ldr {}, [{}]", "str {0}, [{1}]",
    a b c d e f g h i j k l m n o p q r s t u v w x y z aa ab ac ad ae);
// The compiler may keep these where a call preserves them, in the lower halves of v8 to v15.
keeps_over_a_switch!(keeps_doubles, "neon", vreg, f64, 1,
    "ldr {:d}, [{}]", "str {0:d}, [{1}]",
    a b c d e f g h i j k l m n o p q r s t u v w x y z aa ab ac ad ae af);
keeps_over_a_switch!(keeps_vectors, "neon", vreg, uint64x2_t, 2,
    "ld1r {{{:v}.2d}}, [{}]", "st1 {{{0:v}.2d}}, [{1}]",
    a b c d e f g h i j k l m n o p q r s t u v w x y z aa ab ac ad ae af);

pub fn values_survive<B: Backend>(pair: *mut Pair<B>) {
    // SAFETY: vectors are part of every 64-bit Arm that Linux has programs with floating point for.
    unsafe {
        assert!(keeps_integers(pair));
        assert!(keeps_doubles(pair));
        assert!(keeps_vectors(pair));
    }
}

/// Rounding towards zero, and the flag of a division by zero.
pub const UNUSUAL: u64 = (1 << 1) << 32 | 3 << 22;

/// FPCR below FPSR.
pub fn control() -> u64 {
    let (fpcr, fpsr): (u64, u64);
    // SAFETY: both may be read by any program.
    unsafe { asm!("mrs {}, fpcr", "mrs {}, fpsr", out(reg) fpcr, out(reg) fpsr, options(nostack)) };
    fpsr << 32 | fpcr
}

pub fn set_control(words: u64) {
    let (fpcr, fpsr) = (words & 0xffff_ffff, words >> 32);
    // SAFETY: no reserved bit is set.
    unsafe { asm!("msr fpcr, {}", "msr fpsr, {}", in(reg) fpcr, in(reg) fpsr, options(nostack)) };
}

/// Processors that check branch targets (BTI) fault where a jump or a call lands on anything else.
#[test]
fn every_place_that_a_switch_goes_to_is_a_branch_target() {
    const BTI_C: u32 = 0xd503_245f;
    /// Suspends once.
    unsafe extern "C" fn suspends(data: usize, _first: usize) -> ! {
        // SAFETY: the test's link, whose context this is.
        unsafe {
            Native::suspend(data as *mut Link<Native>, Message { word: 0, tag: 0 });
        }
        unreachable!("resumed a second time");
    }
    let is_target = |context: &Context| {
        // SAFETY: an instruction of this program.
        unsafe { (context.instruction_pointer() as *const u32).read() == BTI_C }
    };
    with_other_side::<Native>(overwrites::<Native>, |pair| {
        // SAFETY: from `with_other_side`; both are looked at while nobody switches.
        unsafe {
            assert!(is_target(&(*pair).there), "before the first switch");
            switches(pair);
            assert!(is_target(&(*pair).there), "suspended");
            assert!(is_target(&(*pair).here), "who has switched");
        }
    });
    let mut stack = vec![0_u128; 1024];
    let ends = stack.as_mut_ptr_range();
    let bounds = Bounds { limit: ends.start.cast(), top: ends.end.cast() };
    let mut link = Link::empty();
    let link = &raw mut link;
    // SAFETY: the stack is the context's own, and outlives it; it has 16 KiB.
    unsafe {
        Native::prepare_linked(link, bounds, suspends, link as usize);
        assert!(is_target(&(*link).own), "before the first resumption");
        Native::resume(link, Message { word: 0, tag: 0 });
        assert!(is_target(&(*link).own), "suspended");
    }
}
