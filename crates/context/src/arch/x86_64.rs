//! The switch on x86-64, System V ABI.
//!
//! # Four words
//!
//! A suspended context is four words: stack pointer, frame pointer, `rbx` and the address to go on
//! at. Everything else is declared *clobbered* to the compiler, which therefore spills exactly what
//! is alive at this place; most often that is nothing. (`rbp` and `rbx` cannot be declared: LLVM keeps
//! them for frame and base pointers.) Vector and mask registers, all 32 and 8 of them, are
//! clobbered likewise: by the ABI no call preserves any.
//!
//! ```text
//!            Context (32 bytes, half a cache line)        stack of a context that never ran
//!           ┌────────┬────────┬────────┬────────┐        ├───────────────┤ ◀ top, aligned down to 16
//!           │   sp   │   bp   │   bx   │   ip   │        │       0       │   "return address": none
//!           └────────┴────────┴────────┴────────┘        │     entry     │ ◀ sp
//!             0        8        16       24              └───────────────┘
//! ```
//!
//! The resume address is stored in the context, not pushed on the stack: the stack pointer never
//! differs from what the unwind tables say about the surrounding function, so they describe a
//! suspended context, the hook it runs and everything after without a word of our own.
//! (For the three instructions between the first load from `to` and the jump they do not: an
//! asynchronous sampler that hits those sees one odd stack.)
//!
//! # Why a jump
//!
//! `ret` to another stack's address is mispredicted each time, since the processor predicts returns
//! from the calls it saw. An indirect jump has a predictor entry at each place that it is inlined at.
//! Measured: 1.3 to 1.5 ns a switch between two contexts (`bench`, program `switch`).
//!
//! # What the ABI says about the rest
//!
//! * *Red zone*: an `asm!` block without `nostack` promises that nothing lives below the stack pointer.
//! * *Direction flag*: clear at every `asm!` boundary, hence on both sides.
//! * *Dirty upper halves*: a vector register's upper half left non-zero slows legacy SSE code down, and
//!   after a switch that would be somebody else's code. Code built for AVX clears them here.
//! * *MXCSR, x87 control word*: callee-saved by the ABI, and per thread. `swap` does not touch them,
//!   [`FpControl`] does; see there for why and for the price.
//! * *Shadow stacks* (CET) are not supported: Linux turns them on only for programs that are marked
//!   as wanting them, and Rust's are not.
//!
//! Sources: System V ABI, AMD64 supplement, §3.2.1–3.2.3; Intel optimisation manual, "Mixing
//! AVX code with SSE code"; the Rust reference, "Inline assembly".

mod fp_control;

use super::{Entry, Hook};
use core::arch::{asm, naked_asm};

pub use fp_control::FpControl;

/// The saved registers of a suspended context.
///
/// Plain words: it may be moved while nobody swaps from or to it, and is as shareable as what it
/// describes. It owns nothing.
#[repr(C, align(32))]
#[derive(Debug)]
pub struct Context {
    /// Stack pointer.
    sp: usize,
    /// Frame pointer.
    bp: usize,
    /// `rbx`, which LLVM reserves and so cannot be a clobber.
    bx: usize,
    /// Where to go on.
    ip: usize,
}

const _: () = assert!(size_of::<Context>() == 32, "the assembly below knows the offsets");

impl Context {
    /// A context to be saved into. Must not be switched to before that.
    pub const fn empty() -> Context {
        Context { sp: 0, bp: 0, bx: 0, ip: 0 }
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
        Context { sp: sp as usize, bp: 0, bx: data, ip: start as *const () as usize }
    }

    /// The stack pointer that the context was suspended with, for a debugger's or dumper's eyes.
    pub fn stack_pointer(&self) -> usize {
        self.sp
    }

    /// The frame pointer that the context was suspended with.
    pub fn frame_pointer(&self) -> usize {
        self.bp
    }

    /// The `rbx` that the context was suspended with: unwind tables may ask for it.
    pub fn base_register(&self) -> usize {
        self.bx
    }

    /// Where the context goes on.
    pub fn instruction_pointer(&self) -> usize {
        self.ip
    }
}

/// First instructions of every context. In: `rbx` data, `[rsp]` entry, `rsp` aligned to 16, and as
/// from every swap `rdx` hook (or 0), `rcx` argument.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        ".cfi_startproc",
        // The caller of this frame is nobody: unwinding ends here.
        ".cfi_undefined rip",
        // The hook first, on this stack, as every resumed context does.
        "test rdx, rdx",
        "jz 2f",
        "mov rdi, rcx",
        "call rdx",
        "mov rcx, rax",
        "2:",
        "mov rdi, rbx", // data
        "mov rsi, rcx", // first
        // A call, so that the entry finds its stack aligned as after any call, and its
        // "return address" in this frame, where unwinders stop.
        "call qword ptr [rsp]",
        "ud2", // `-> !`
        ".cfi_endproc",
    )
}

/// Suspends the caller into `*from` and resumes `*to`; on `to`'s stack `hook(arg)` runs first.
/// Returns when somebody switches to `*from`, with what their hook returned, or their `arg`
/// if they gave none.
///
/// `from` and `to` may be the same: then the hook runs right here, and its result is returned.
///
/// # Safety
///
/// * `from` is valid for writes and nobody else uses it until the hook runs; from then on it
///   describes the caller, and may be switched to **once**, from any thread.
/// * `to` is valid for reads and describes a suspended context (from [`Context::new`] or a `swap`)
///   that nobody else switches to. What the other side wrote to `*to` must be visible here: whoever
///   publishes a context to another thread does so with release, and the taker acquires.
/// * `hook` must be sound to call with `arg`, on `to`'s stack.
/// * If `from` is resumed on another thread, what the caller and every frame above it hold must bear that.
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
        asm!(
            #[cfg(target_feature = "avx")]
            "vzeroupper",
            "lea rax, [rip + 2f]",
            "mov [rdi + 24], rax",
            "mov [rdi], rsp",
            "mov [rdi + 8], rbp",
            "mov [rdi + 16], rbx",
            // From here on `from` is complete.
            "mov rbp, [rsi + 8]",
            "mov rbx, [rsi + 16]",
            "mov rsp, [rsi]",
            "jmp qword ptr [rsi + 24]",
            // Resumed, perhaps on another thread: rdx and rcx are the resumer's.
            "2:",
            in("rdi") from,
            in("rsi") to,
            inlateout("rdx") sent_hook => hook,
            inlateout("rcx") arg => value,
            lateout("rax") _,
            lateout("r12") _,
            lateout("r13") _,
            lateout("r14") _,
            lateout("r15") _,
            clobber_abi("sysv64"),
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
