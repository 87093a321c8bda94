//! x86-64: general registers, vectors of each width that the processor has, masks; MXCSR and the x87
//! control word.

use super::{Pair, switches};
use sleave_context::backend::Backend;
use std::arch::x86_64::{__m128i, __m256i, __m512i};
use std::arch::{asm, naked_asm};

pub fn overwrite() {
    // SAFETY: everything written is declared; the features are asked for.
    unsafe {
        if is_x86_feature_detected!("avx512bw") {
            overwrite_zmm();
        } else if is_x86_feature_detected!("avx") {
            overwrite_ymm();
        }
        asm!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "pcmpeqd xmm\\n, xmm\\n",
            ".endr",
            ".irp n, 8,9,10,11,12,13,14,15",
            "mov r\\n, -1",
            ".endr",
            "push rbx",
            "push rbp",
            "mov rbx, -1",
            "mov rbp, -1",
            "pop rbp",
            "pop rbx",
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("sysv64"),
        );
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn overwrite_zmm() {
    // SAFETY: declared by `clobber_abi`; the caller has asked for the feature.
    unsafe {
        asm!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "vpternlogd zmm\\n, zmm\\n, zmm\\n, 255",
            ".endr",
            ".irp n, 0,1,2,3,4,5,6,7",
            "kxnorq k\\n, k\\n, k\\n",
            ".endr",
            clobber_abi("sysv64"),
        );
    }
}

#[target_feature(enable = "avx")]
fn overwrite_ymm() {
    // SAFETY: as above.
    unsafe {
        asm!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "vcmpps ymm\\n, ymm\\n, ymm\\n, 15",
            ".endr",
            clobber_abi("sysv64"),
        );
    }
}

/// (The direction flag is checked by still being here.)
#[unsafe(naked)]
pub unsafe extern "C" fn differing_callee_saved<B: Backend>(pair: *mut Pair<B>) -> usize {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "push rsp", // checked below; and it aligns the stack for the call
        "mov rbx, 0x1111", "mov rbp, 0x2222", "mov r12, 0x3333",
        "mov r13, 0x4444", "mov r14, 0x5555", "mov r15, 0x6666",
        "call {switches}",
        "xor eax, eax",
        "lea rcx, [rax + 1]",
        "lea rdx, [rsp + 8]", // what `push rsp` stored
        "cmp rdx, [rsp]", "je 2f", "add rax, rcx", "2:",
        "cmp rbx, 0x1111", "je 2f", "add rax, rcx", "2:",
        "cmp rbp, 0x2222", "je 2f", "add rax, rcx", "2:",
        "cmp r12, 0x3333", "je 2f", "add rax, rcx", "2:",
        "cmp r13, 0x4444", "je 2f", "add rax, rcx", "2:",
        "cmp r14, 0x5555", "je 2f", "add rax, rcx", "2:",
        "cmp r15, 0x6666", "je 2f", "add rax, rcx", "2:",
        "add rsp, 8",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        switches = sym switches::<B>,
    )
}

keeps_over_a_switch!(keeps_integers, "sse2", reg, u64, 1,
    "mov {}, [{}]", "mov [{1}], {0}",
    a b c d e f g h i j k l m n o p);
keeps_over_a_switch!(keeps_xmm, "sse3", xmm_reg, __m128i, 2,
    "movddup {}, qword ptr [{}]", "movups [{1}], {0}",
    a b c d e f g h i j k l m n o p);
keeps_over_a_switch!(keeps_ymm, "avx2", ymm_reg, __m256i, 4,
    "vpbroadcastq {}, qword ptr [{}]", "vmovups [{1}], {0}",
    a b c d e f g h i j k l m n o p);
keeps_over_a_switch!(keeps_zmm, "avx512f,avx512bw", zmm_reg, __m512i, 8,
    "vpbroadcastq {}, qword ptr [{}]", "vmovups [{1}], {0}",
    a b c d e f g h i j k l m n o p q r s t u v w x y z aa ab ac ad ae af);
keeps_over_a_switch!(keeps_masks, "avx512f,avx512bw", kreg, u64, 1,
    "kmovq {}, qword ptr [{}]", "kmovq [{1}], {0}",
    a b c d e f g);

pub fn values_survive<B: Backend>(pair: *mut Pair<B>) {
    // SAFETY: each feature is part of every x86-64 or asked for first.
    unsafe {
        assert!(keeps_integers(pair));
        assert!(!is_x86_feature_detected!("sse3") || keeps_xmm(pair));
        assert!(!is_x86_feature_detected!("avx2") || keeps_ymm(pair));
        if is_x86_feature_detected!("avx512bw") {
            assert!(keeps_zmm(pair));
            assert!(keeps_masks(pair));
        }
    }
}

/// Rounding towards zero in both, and the flag of a division by zero in MXCSR.
pub const UNUSUAL: u64 = 0x0c7f << 32 | 0x1f80 | 3 << 13 | 1 << 2;

/// MXCSR below the x87 control word.
pub fn control() -> u64 {
    let (mut mxcsr, mut x87) = (0_u32, 0_u16);
    // SAFETY: store four and two bytes.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack));
        asm!("fnstcw word ptr [{}]", in(reg) &raw mut x87, options(nostack));
    }
    u64::from(x87) << 32 | u64::from(mxcsr)
}

pub fn set_control(words: u64) {
    let (mxcsr, x87) = (words as u32, (words >> 32) as u16);
    // SAFETY: no reserved bit of MXCSR is set; any x87 control word may be loaded.
    unsafe {
        asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack));
        asm!("fldcw word ptr [{}]", in(reg) &raw const x87, options(nostack));
    }
}
