//! The switch on 64-bit Arm, AAPCS64 as Linux uses it.
//!
//! # Four words
//!
//! A suspended context is four words: frame pointer, where to go on, stack pointer, and `x19`.
//! Everything else is declared *clobbered* to the compiler, which therefore spills exactly what
//! is alive at this place; most often that is nothing. (`x29` and `x19` cannot be declared: LLVM keeps
//! them for frame and base pointers.) That goes for `v8` to `v15` as well, whose lower halves a call preserves.
//!
//! ```text
//!            Context (32 bytes, half a cache line)        stack of a context that never ran
//!           ┌────────┬────────┬────────┬────────┐        ├───────────────┤ ◀ top, aligned down to 16
//!           │   fp   │   pc   │   sp   │  x19   │        │       0       │   keeps `sp` aligned
//!           └────────┴────────┴────────┴────────┘        │     entry     │ ◀ sp
//!             0        8        16       24              └───────────────┘
//! ```
//!
//! The first two are a frame record, as AAPCS64 has it on the stack, so that a walker by frame pointers can go
//! over a suspended context as over any frame. The resume address is stored in the context, not pushed on the
//! stack: the stack pointer never differs from what the unwind tables say about the surrounding function, so they
//! describe a suspended context, the hook it runs and everything after without a word of our own.
//!
//! While the registers of the target are loaded two by two, though, no register says where we are, except
//! the one that points at the context just saved. So there the assembly changes the unwind tables: for these
//! few instructions every register is where the context says. Whatever
//! samples the program at any instruction sees a stack that exists.
//!
//! # Why a jump
//!
//! `ret` to another stack's address is mispredicted each time, since the processor predicts returns
//! from the calls it saw. An indirect jump has a predictor entry at each place that it is inlined at.
//!
//! # Call and return
//!
//! Between a resumer and what it resumes the predictor of returns can be made right, though: [`Aarch64::resume`]
//! *calls* the context (`blr`), whose first instructions after that leave the resumer's stack for its own;
//! [`Aarch64::suspend`] loads the resumer's registers, the return address among them, and *returns* (`ret`). Both
//! contexts of a [`Link`] lie in one cache line.
//!
//! # What the ABI says about the rest
//!
//! * *Red zone*: there is none on Linux.
//! * *`x18`*, the platform register, is an ordinary scratch register on Linux. Code for a shadow call stack
//!   in `x18` (`-Zsanitizer=shadow-call-stack`) needs one for each context, and is not supported.
//! * *SVE*: by the base standard a call preserves no predicate, nor `FFR`, nor anything of a vector register beyond the
//!   lower 64 bits of `v8` to `v15`. To the compiler a clobbered `v` register is a clobbered `z` register. (`FFR`
//!   cannot be declared: LLVM keeps nothing in it.)
//! * *SME*: switch outside of streaming mode and with `ZA` off. A `ZA` that is *dormant* (`TPIDR2_EL0` not
//!   zero) belongs to the thread and would be restored into the wrong context: code that has `ZA` state
//!   calls `__arm_za_disable` first, as before any other non-local jump.
//! * *FPCR*, and FPSR's exception flags, belong to the thread. `swap` does not touch them,
//!   [`FpControl`] does; see there.
//! * *Branch targets* (BTI): calls, and jumps through `x16` or `x17`, may land on a `bti c`. So we jump
//!   through these, and there is one wherever we land. It is a no-op to processors and pages that do not check.
//! * *Signed return addresses* (PAC): they lie in frames, signed with the frame's own stack pointer, and we
//!   move neither. The addresses in a context are not signed.
//! * *Guarded control stacks* (GCS) are not supported: Linux turns them on only for programs that are marked
//!   as wanting them, and Rust's are not.
//!
//! Sources: Procedure Call Standard for the Arm 64-bit Architecture, §6.1 and §6.4.6; DWARF for the Arm 64-bit
//! Architecture, §4.1; Arm Architecture Reference Manual, "BTI"; the Rust reference, "Inline assembly".

mod fp_control;

use super::{Backend, Bounds, Entry, Hook, Link, Message};
use core::arch::{asm, naked_asm};

pub use fp_control::FpControl;

/// Unwind tables that find the frame pointer, the return address, the stack pointer and `x19` in the
/// [`Context`] at an offset from a register.
///
/// DWARF 5, §6.4.2: an expression for the CFA, which is the stack pointer; then, for each register, one
/// that gives the address where it is saved.
macro_rules! cfi {
    (remember) => {
        tables!(".cfi_remember_state")
    };
    (restore) => {
        tables!(".cfi_restore_state")
    };
    (x0) => {
        cfi!(@ "0x70", "0", "8", "16", "24")
    };
    (x0 + 32) => {
        cfi!(@ "0x70", "32", "40", "48", "56")
    };
    (x29) => {
        cfi!(@ "0x8d", "0", "8", "16", "24")
    };
    // DW_CFA_def_cfa_expression: DW_OP_breg, DW_OP_deref;
    // DW_CFA_expression for x29, x30 and x19: DW_OP_breg.
    (@ $register:literal, $fp:literal, $pc:literal, $sp:literal, $x19:literal) => {
        tables!(
            ".cfi_escape 0x0f, 3, ", $register, ", ", $sp, ", 0x06\n",
            ".cfi_escape 0x10, 29, 2, ", $register, ", ", $fp, "\n",
            ".cfi_escape 0x10, 30, 2, ", $register, ", ", $pc, "\n",
            ".cfi_escape 0x10, 19, 2, ", $register, ", ", $x19,
        )
    };
}

/// `asm!` with every register declared clobbered that can be, except `x0` to `x3`: the operands say what becomes of these.
///
/// As `clobber_abi("C")` and the callee-saved ones, less `FFR`, which in code built for SVE brings a
/// warning to each user: LLVM reserves it.
macro_rules! asm_switch {
    ($($code:tt)*) => {
        asm!(
            $($code)*
            lateout("x4") _, lateout("x5") _, lateout("x6") _, lateout("x7") _,
            lateout("x8") _, lateout("x9") _, lateout("x10") _, lateout("x11") _,
            lateout("x12") _, lateout("x13") _, lateout("x14") _, lateout("x15") _,
            lateout("x16") _, lateout("x17") _, lateout("x18") _, lateout("x20") _,
            lateout("x21") _, lateout("x22") _, lateout("x23") _, lateout("x24") _,
            lateout("x25") _, lateout("x26") _, lateout("x27") _, lateout("x28") _,
            lateout("x30") _,
            lateout("v0") _, lateout("v1") _, lateout("v2") _, lateout("v3") _,
            lateout("v4") _, lateout("v5") _, lateout("v6") _, lateout("v7") _,
            lateout("v8") _, lateout("v9") _, lateout("v10") _, lateout("v11") _,
            lateout("v12") _, lateout("v13") _, lateout("v14") _, lateout("v15") _,
            lateout("v16") _, lateout("v17") _, lateout("v18") _, lateout("v19") _,
            lateout("v20") _, lateout("v21") _, lateout("v22") _, lateout("v23") _,
            lateout("v24") _, lateout("v25") _, lateout("v26") _, lateout("v27") _,
            lateout("v28") _, lateout("v29") _, lateout("v30") _, lateout("v31") _,
            lateout("p0") _, lateout("p1") _, lateout("p2") _, lateout("p3") _,
            lateout("p4") _, lateout("p5") _, lateout("p6") _, lateout("p7") _,
            lateout("p8") _, lateout("p9") _, lateout("p10") _, lateout("p11") _,
            lateout("p12") _, lateout("p13") _, lateout("p14") _, lateout("p15") _,
        )
    };
}

/// 64-bit Arm, AAPCS64, in inline assembly.
#[derive(Clone, Copy, Debug)]
pub struct Aarch64;

// SAFETY: `swap` keeps the contract, see the essay above.
unsafe impl Backend for Aarch64 {
    const NAME: &'static str = "aarch64";

    type Context = Context;

    #[inline]
    fn empty() -> Context {
        Context::empty()
    }

    #[inline]
    unsafe fn prepare(context: *mut Context, bounds: Bounds, entry: Entry, data: usize) {
        // SAFETY: the caller's promises.
        unsafe { context.write(Context::new(bounds.top, entry, data)) }
    }

    #[inline(always)]
    unsafe fn swap(
        from: *mut Context,
        to: *const Context,
        hook: Option<Hook>,
        arg: usize,
    ) -> usize {
        // SAFETY: the caller's promises.
        unsafe { swap(from, to, hook, arg) }
    }

    #[inline]
    unsafe fn prepare_linked(link: *mut Link<Self>, bounds: Bounds, entry: Entry, data: usize) {
        // SAFETY: the caller's promises.
        unsafe {
            let mut own = Context::new(bounds.top, entry, data);
            own.pc = start_linked as *const () as usize;
            (*link).own = own;
        }
    }

    #[inline(always)]
    unsafe fn resume(link: *mut Link<Self>, message: Message) -> Message {
        let word: usize;
        let tag: usize;
        // SAFETY: the caller's promises. Whatever may live across the block is saved in the link or
        // declared clobbered.
        unsafe {
            asm_switch!(
                "adr x16, 2f", // what the call makes the return address
                "mov x17, sp",
                "stp x29, x16, [x0]",
                "stp x17, x19, [x0, #16]",
                "ldr x16, [x0, #40]",
                "blr x16",
                "2:",
                inlateout("x0") link => _,
                inlateout("x1") message.word => word,
                inlateout("x2") message.tag => tag,
                lateout("x3") _,
            );
        }
        Message { word, tag }
    }

    #[inline(always)]
    unsafe fn suspend(link: *mut Link<Self>, message: Message) -> Message {
        let word: usize;
        let tag: usize;
        // SAFETY: as in `resume`, for the other side.
        unsafe {
            asm_switch!(
                "adr x16, 2f",
                "mov x17, sp",
                "stp x29, x16, [x0, #32]",
                "stp x17, x19, [x0, #48]",
                cfi!(remember),
                cfi!(x0 + 32),
                "ldp x29, x30, [x0]",
                "ldp x17, x19, [x0, #16]",
                "mov sp, x17",
                "ret",
                cfi!(restore),
                // Unwinders look at the instruction before a return address.
                "brk #1",
                // Called by `resume`; x1 and x2 hold its message, x0 the link, the rest is its own.
                "2:",
                cfi!(remember),
                cfi!(x0 + 32),
                "hint #34", // bti c
                "ldr x29, [x0, #32]",
                "ldp x17, x19, [x0, #48]",
                "mov sp, x17",
                cfi!(restore),
                inlateout("x0") link => _,
                inlateout("x1") message.word => word,
                inlateout("x2") message.tag => tag,
                lateout("x3") _,
            );
        }
        Message { word, tag }
    }

    #[inline(always)]
    unsafe fn exit(link: *mut Link<Self>, message: Message) -> ! {
        // SAFETY: as in `suspend`, without anybody to come back to.
        unsafe {
            asm!(
                cfi!(remember),
                cfi!(x0),
                "ldp x29, x30, [x0]",
                "ldp x17, x19, [x0, #16]",
                "mov sp, x17",
                "ret",
                cfi!(restore),
                in("x0") link,
                in("x1") message.word,
                in("x2") message.tag,
                options(noreturn),
            )
        }
    }
}

/// The saved registers of a suspended context.
///
/// Plain words: it may be moved while nobody swaps from or to it, and is as shareable as what it
/// describes. It owns nothing.
#[repr(C, align(32))]
#[derive(Debug)]
pub struct Context {
    /// Frame pointer, `x29`.
    fp: usize,
    /// Where to go on.
    pc: usize,
    /// Stack pointer.
    sp: usize,
    /// `x19`, which LLVM reserves and so cannot be a clobber.
    x19: usize,
}

const _: () = assert!(size_of::<Context>() == 32, "the assembly below knows the offsets");

impl Context {
    /// A context to be saved into. Must not be switched to before that.
    pub const fn empty() -> Context {
        Context { fp: 0, pc: 0, sp: 0, x19: 0 }
    }

    /// A context that, switched to for the first time, calls `entry(data, value)` on the stack that
    /// ends below `top` (any alignment). Sixteen to 31 bytes below `top` are used by the context itself.
    ///
    /// # Safety
    ///
    /// The memory below `top` must be writable, and a stack of this context's own from the first
    /// switch until nobody will switch to it any more.
    pub unsafe fn new(top: *mut u8, entry: Entry, data: usize) -> Context {
        let misaligned = top as usize % 16;
        // SAFETY: within the stack that the caller gives us.
        let sp = unsafe { top.sub(misaligned).cast::<usize>().sub(2) };
        // SAFETY: as above; aligned to 16 bytes by the line before.
        unsafe {
            sp.write(entry as *const () as usize);
            sp.add(1).write(0);
        }
        // A zero frame pointer is where walkers of frame pointers stop.
        Context { fp: 0, pc: start as *const () as usize, sp: sp as usize, x19: data }
    }

    /// The stack pointer that the context was suspended with, for a debugger's or dumper's eyes.
    pub fn stack_pointer(&self) -> usize {
        self.sp
    }

    /// The frame pointer that the context was suspended with.
    pub fn frame_pointer(&self) -> usize {
        self.fp
    }

    /// The `x19` that the context was suspended with: unwind tables may ask for it.
    pub fn base_register(&self) -> usize {
        self.x19
    }

    /// Where the context goes on.
    pub fn instruction_pointer(&self) -> usize {
        self.pc
    }
}

/// First instructions of every context. In: `x19` data, `[sp]` entry, `sp` aligned to 16, and as
/// from every swap `x2` hook (or 0), `x3` argument.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        ".cfi_startproc",
        // The caller of this frame is nobody: unwinding ends here.
        ".cfi_undefined x30",
        "hint #34", // bti c
        // The hook first, on this stack, as every resumed context does.
        "cbz x2, 2f",
        "mov x0, x3",
        "blr x2",
        "mov x3, x0",
        "2:",
        "mov x0, x19", // data
        "mov x1, x3",  // first
        "ldr x16, [sp]",
        // A call, so that the entry's frame record leads here, where unwinders stop.
        "blr x16",
        "brk #1", // `-> !`
        ".cfi_endproc",
    )
}

/// First instructions of a linked context, called by [`Aarch64::resume`]. In: `x0` the link, `x1` the
/// word of the message; in the link's `own`: `x19` data, `sp` the stack, `[sp]` entry.
///
/// This frame's caller is the resumer: whoever walks by unwind tables finds its registers in the link, and
/// whoever walks by frame pointers as well, for a context begins as a frame record. It is marked as a signal's
/// frame because debuggers take a caller whose frame lies deeper than its callee's for a broken stack otherwise.
#[unsafe(naked)]
unsafe extern "C" fn start_linked() -> ! {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_signal_frame",
        cfi!(x0),
        "hint #34", // bti c
        "ldp x17, x19, [x0, #48]",
        "mov sp, x17",
        "mov x29, x0",
        cfi!(x29),
        "mov x0, x19", // data; the word is in x1
        // The entry is not called but jumped to, with a return address in this frame: one call more than
        // returns would make the processor mispredict the return to the resumer.
        "ldr x16, [sp]",
        "adr x30, 2f",
        "br x16",
        "2:",
        "brk #1", // `-> !`
        ".cfi_endproc",
    )
}

/// [`Backend::swap`] on 64-bit Arm: see there for what it does.
///
/// # Safety
///
/// As there.
#[inline(always)]
pub unsafe fn swap(
    from: *mut Context,
    to: *const Context,
    hook: Option<Hook>,
    arg: usize,
) -> usize {
    let sent_hook = hook.map_or(0, |hook| hook as *const () as usize);
    let hook: usize;
    let value: usize;
    // SAFETY: the caller's promises. Whatever may live across the block is saved in `*from` or
    // declared clobbered; memory is clobbered by default, and so are the flags.
    unsafe {
        asm_switch!(
            "adr x17, 2f",
            "mov x16, sp",
            "stp x29, x17, [x0]",
            "stp x16, x19, [x0, #16]",
            // From here on `from` is complete, and what describes us.
            cfi!(remember),
            cfi!(x0),
            "ldp x29, x17, [x1]",
            "ldp x16, x19, [x1, #16]",
            "mov sp, x16",
            "br x17",
            cfi!(restore),
            // Unwinders look at the instruction before a return address.
            "brk #1",
            // Resumed, perhaps on another thread: x2 and x3 are the resumer's.
            "2:",
            "hint #34", // bti c
            inlateout("x0") from => _,
            inlateout("x1") to => _,
            inlateout("x2") sent_hook => hook,
            inlateout("x3") arg => value,
        );
    }
    if hook == 0 {
        return value;
    }
    // SAFETY: a non-zero word here came from an `Option<Hook>` (above, on the resumer's side).
    let hook = unsafe { core::mem::transmute::<usize, Hook>(hook) };
    // SAFETY: the resumer promised that its hook may be called with its argument, on this stack.
    unsafe { hook(value) }
}
