//! Registers survive a switch to somebody who overwrites every one of them.
//!
//! What the compiler keeps in registers it does so when it optimises: run these with `--release` as well.

mod support;

use sleave_context::{Context, swap};
use std::arch::x86_64::{__m128i, __m256i, __m512i};
use std::arch::{asm, naked_asm};
use std::ptr::addr_of_mut;
use support::arena;

struct Pair {
    here: Context,
    there: Context,
}

/// Overwrites every register that the ABI and the compiler let us name, each time it is resumed.
unsafe extern "C" fn overwrites(data: usize, _first: usize) -> ! {
    let pair = data as *mut Pair;
    let avx512 = is_x86_feature_detected!("avx512bw");
    let avx = is_x86_feature_detected!("avx");
    loop {
        // SAFETY: everything written is declared; the features were asked for.
        unsafe {
            if avx512 {
                overwrite_zmm();
            } else if avx {
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
            swap(addr_of_mut!((*pair).there), addr_of_mut!((*pair).here), None, 0);
        }
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

/// Runs `test` with a pair whose other side overwrites registers.
fn with_overwriter(test: impl FnOnce(*mut Pair)) {
    let arena = arena(64 << 20);
    let slot = arena.take(64 * 1024).unwrap();
    let mut pair = Pair { here: Context::empty(), there: Context::empty() };
    let pair = &raw mut pair;
    // SAFETY: the stack is this context's own, and both outlive it.
    unsafe { (*pair).there = Context::new(slot.top(), overwrites, pair as usize) };
    test(pair);
    arena.give(slot);
}

/// An ordinary function with a switch in it, as the ABI sees it.
unsafe extern "C" fn switches(pair: *mut Pair) {
    // SAFETY: from `with_overwriter`.
    unsafe { swap(addr_of_mut!((*pair).here), addr_of_mut!((*pair).there), None, 0) };
}

/// Calls [`switches`] with a pattern in every callee-saved register. Returns the number of those that differ
/// after it. (`cld` state and stack pointer are checked by still being here.)
#[unsafe(naked)]
unsafe extern "C" fn differing_callee_saved(pair: *mut Pair) -> usize {
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
        switches = sym switches,
    )
}

#[test]
fn callee_saved_registers_survive() {
    with_overwriter(|pair| {
        for _ in 0..100 {
            // SAFETY: from `with_overwriter`.
            assert_eq!(unsafe { differing_callee_saved(pair) }, 0);
        }
    });
}

/// A function that keeps as many values of a kind alive over a switch as there are registers, each loaded by an
/// instruction that the compiler cannot repeat, and says whether all are still what they were, up to
/// the last of their `$lanes` words.
macro_rules! keeps_over_a_switch {
    ($name:ident, $features:literal, $class:ident, $type:ty, $lanes:literal, $load:literal, $store:literal, $($value:ident)*) => {
        #[target_feature(enable = $features)]
        fn $name(pair: *mut Pair) -> bool {
            let mut number = 0_u64;
            // SAFETY: loads a word; stores `$lanes` words; `swap` as in `switches`.
            unsafe {
                $(
                    number += 1;
                    let $value: $type;
                    asm!($load, out($class) $value, in(reg) &raw const number, options(nostack, preserves_flags));
                )*
                swap(addr_of_mut!((*pair).here), addr_of_mut!((*pair).there), None, 0);
                let mut number = 0_u64;
                let mut same = true;
                $(
                    number += 1;
                    let mut words = [0_u64; $lanes];
                    asm!($store, in($class) $value, in(reg) &raw mut words, options(nostack, preserves_flags));
                    same &= words == [number; $lanes];
                )*
                same
            }
        }
    };
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

#[test]
fn values_in_every_kind_of_register_survive() {
    with_overwriter(|pair| {
        for _ in 0..100 {
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
    });
}
