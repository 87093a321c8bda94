//! The switch on x86-64, System V ABI.
//!
//! # Four words
//!
//! A suspended context is four words: frame pointer, where to go on, stack pointer, and `rbx`.
//! Everything else is declared *clobbered* to the compiler, which therefore spills exactly what
//! is alive at this place; most often that is nothing. (`rbp` and `rbx` cannot be declared: LLVM keeps
//! them for frame and base pointers.) Vector and mask registers, all 32 and 8 of them, are
//! clobbered likewise: by the ABI no call preserves any.
//!
//! ```text
//!            Context (32 bytes, half a cache line)        stack of a context that never ran
//!           ┌────────┬────────┬────────┬────────┐        ├───────────────┤ ◀ top, aligned down to 16
//!           │   bp   │   ip   │   sp   │   bx   │        │       0       │   "return address": none
//!           └────────┴────────┴────────┴────────┘        │     entry     │ ◀ sp
//!             0        8        16       24              └───────────────┘
//! ```
//!
//! The first two are laid out as a frame record is, so that a walker by frame pointers can go over
//! a suspended context as over any frame. The resume address is stored in the context, not pushed on the stack: the
//! stack pointer never differs from what the unwind tables say about the surrounding function, so they describe a
//! suspended context, the hook it runs and everything after without a word of our own.
//!
//! While the registers of the target are loaded one by one, though, no register says where we are, except
//! the one that points at the context just saved. So there the assembly changes the unwind tables: for these
//! few instructions every register is where the context says. Whatever
//! samples the program at any instruction sees a stack that exists (`tests/unwind` looks at each of them).
//! In these the function that switches shows twice: where it is, and where it will go on.
//!
//! # Why a jump
//!
//! `ret` to another stack's address is mispredicted each time, since the processor predicts returns
//! from the calls it saw. An indirect jump has a predictor entry at each place that it is inlined at.
//! Measured: 1.3 to 1.5 ns a switch between two contexts (`bench`, program `switch`).
//!
//! # Call and return
//!
//! Between a resumer and what it resumes the predictor of returns can be made right, though: [`X86_64::resume`]
//! *calls* the context, whose first instruction after that leaves the resumer's stack for its own;
//! [`X86_64::suspend`] loads the resumer's stack pointer, which stands at the return address, and *returns*. Both
//! contexts of a [`Link`] lie in one cache line.
//!
//! # What the ABI says about the rest
//!
//! * *Red zone*: an `asm!` block without `nostack` promises that nothing lives below the stack pointer.
//! * *Direction flag*: clear at every `asm!` boundary, hence on both sides.
//! * *Dirty upper halves*: a vector register's upper half left non-zero slows legacy SSE code down, and
//!   after a switch that would be somebody else's code. Code built for AVX clears them here.
//! * *MXCSR, x87 control word*: callee-saved by the ABI, and per thread. `swap` does not touch them,
//!   [`FpControl`] does; see there for why and for the price.
//! * *x87 and MMX*: every `st` and `mm` register is declared clobbered, hence the x87 stack is empty on both sides.
//! * *Shadow stacks* (CET) are not supported: Linux turns them on only for programs that are marked
//!   as wanting them, and Rust's are not. *Indirect branch tracking*, which would want an `endbr64` at each
//!   place that is jumped to or called here, Linux does not offer to programs at all.
//! * *APX* is not supported: code compiled for it (`-C target-cpu=diamondrapids`, say) keeps values in `r16` to
//!   `r31`, and Rust 1.95 neither lets an `asm!` block declare these nor tells the source that they are in use.
//!
//! Sources: System V ABI, AMD64 supplement, §3.2.1–3.2.3; Intel optimisation manual, "Mixing
//! AVX code with SSE code"; the Rust reference, "Inline assembly".

mod fp_control;
mod walk;

use super::{Backend, Bounds, Entry, Hook, Link, Message};
use core::arch::{asm, naked_asm};

pub use fp_control::FpControl;
pub use walk::{is_walk, walk};

/// Unwind tables that find the frame pointer, the return address, the stack pointer and `rbx` in a
/// context that a register points at: a suspended one, or one that has called ([`X86_64::resume`]) and
/// whose stack pointer therefore stands at the return address, eight bytes lower.
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
    (suspended own of rsi) => {
        cfi!(@ "0x0f, 3, 0x74, 48, 0x06", "0x74", "32", "40", "56")
    };
    (suspended rdi) => {
        cfi!(@ "0x0f, 3, 0x75, 16, 0x06", "0x75", "0", "8", "24")
    };
    (called resumer of rsi) => {
        cfi!(@ "0x0f, 5, 0x74, 16, 0x06, 0x23, 8", "0x74", "0", "8", "24")
    };
    (called resumer of rbp) => {
        cfi!(@ "0x0f, 5, 0x76, 16, 0x06, 0x23, 8", "0x76", "0", "8", "24")
    };
    // DW_CFA_def_cfa_expression: DW_OP_breg, DW_OP_deref, perhaps DW_OP_plus_uconst;
    // DW_CFA_expression for rbp, rip and rbx: DW_OP_breg.
    (@ $cfa:literal, $register:literal, $bp:literal, $ip:literal, $bx:literal) => {
        tables!(
            ".cfi_escape ", $cfa, "\n",
            ".cfi_escape 0x10, 6, 2, ", $register, ", ", $bp, "\n",
            ".cfi_escape 0x10, 16, 2, ", $register, ", ", $ip, "\n",
            ".cfi_escape 0x10, 3, 2, ", $register, ", ", $bx,
        )
    };
}

/// x86-64, System V ABI, in inline assembly.
#[derive(Clone, Copy, Debug)]
pub struct X86_64;

// SAFETY: `swap` keeps the contract, see the essay above.
unsafe impl Backend for X86_64 {
    const NAME: &'static str = "x86_64";

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
            own.ip = start_linked as *const () as usize;
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
            asm!(
                #[cfg(target_feature = "avx")]
                "vzeroupper",
                "lea rax, [rip + 2f]",
                "lea rcx, [rsp - 8]",
                "mov [rsi], rbp",
                "mov [rsi + 8], rax",
                "mov [rsi + 16], rcx", // where the call puts its return address
                "mov [rsi + 24], rbx",
                "call qword ptr [rsi + 40]",
                "2:",
                inlateout("rdi") message.word => word,
                inlateout("rdx") message.tag => tag,
                in("rsi") link,
                lateout("r12") _,
                lateout("r13") _,
                lateout("r14") _,
                lateout("r15") _,
                clobber_abi("sysv64"),
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
            asm!(
                #[cfg(target_feature = "avx")]
                "vzeroupper",
                "lea rax, [rip + 2f]",
                "mov [rsi + 32], rbp",
                "mov [rsi + 40], rax",
                "mov [rsi + 48], rsp",
                "mov [rsi + 56], rbx",
                cfi!(remember),
                cfi!(suspended own of rsi),
                "mov rbp, [rsi]",
                "mov rbx, [rsi + 24]",
                "mov rsp, [rsi + 16]",
                "ret",
                cfi!(restore),
                // Unwinders look at the instruction before a return address.
                "int3",
                // Called by `resume`; rdi and rdx hold its message, rsi the link, the rest is its own. What the
                // link says of us is right still.
                "2:",
                cfi!(remember),
                cfi!(suspended own of rsi),
                "mov rbp, [rsi + 32]",
                "mov rbx, [rsi + 56]",
                "mov rsp, [rsi + 48]",
                cfi!(restore),
                inlateout("rdi") message.word => word,
                inlateout("rdx") message.tag => tag,
                in("rsi") link,
                lateout("r12") _,
                lateout("r13") _,
                lateout("r14") _,
                lateout("r15") _,
                clobber_abi("sysv64"),
            );
        }
        Message { word, tag }
    }

    #[inline(always)]
    unsafe fn exit(link: *mut Link<Self>, message: Message) -> ! {
        // SAFETY: as in `suspend`, without anybody to come back to.
        unsafe {
            asm!(
                #[cfg(target_feature = "avx")]
                "vzeroupper",
                cfi!(remember),
                cfi!(called resumer of rsi),
                "mov rbp, [rsi]",
                "mov rbx, [rsi + 24]",
                "mov rsp, [rsi + 16]",
                "ret",
                cfi!(restore),
                in("rdi") message.word,
                in("rdx") message.tag,
                in("rsi") link,
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
    /// Frame pointer.
    bp: usize,
    /// Where to go on.
    ip: usize,
    /// Stack pointer.
    sp: usize,
    /// `rbx`, which LLVM reserves and so cannot be a clobber.
    bx: usize,
}

const _: () = assert!(size_of::<Context>() == 32, "the assembly below knows the offsets");

impl Context {
    /// A context to be saved into. Must not be switched to before that.
    pub const fn empty() -> Context {
        Context { bp: 0, ip: 0, sp: 0, bx: 0 }
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
        Context { bp: 0, ip: start as *const () as usize, sp: sp as usize, bx: data }
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

/// First instructions of a linked context, called by [`X86_64::resume`]. In: `rsi` the link, `rdi` the
/// word of the message; in the link's `own`: `bx` data, `sp` the stack, `[sp]` entry.
///
/// This frame's caller is the resumer: whoever walks by unwind tables finds its registers in the link, and
/// whoever walks by frame pointers as well, for a context begins as a frame record. It is marked as a signal's frame
/// because debuggers take a caller whose frame lies deeper than its callee's for a broken stack otherwise. (gdb names such a frame
/// `<signal handler called>`, and makes but one other exception: functions called `__morestack`, which needs a symbol.)
#[unsafe(naked)]
unsafe extern "C" fn start_linked() -> ! {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_signal_frame",
        cfi!(called resumer of rsi),
        "mov rsp, [rsi + 48]",
        "mov rbx, [rsi + 56]", // data
        "mov rbp, rsi",
        cfi!(called resumer of rbp),
        "mov rsi, rdi", // first
        "mov rdi, rbx",
        // The entry is not called but jumped to, with a return address in this frame: one call more than
        // returns would make the processor mispredict the return to the resumer.
        "mov rax, [rsp]",
        "lea rcx, [rip + 2f]",
        "push rcx",
        "jmp rax",
        "2:",
        "ud2", // `-> !`
        ".cfi_endproc",
    )
}

/// [`Backend::swap`] on x86-64: see there for what it does.
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
        asm!(
            #[cfg(target_feature = "avx")]
            "vzeroupper",
            "lea rax, [rip + 2f]",
            "mov [rdi], rbp",
            "mov [rdi + 8], rax",
            "mov [rdi + 16], rsp",
            "mov [rdi + 24], rbx",
            // From here on `from` is complete, and what describes us.
            cfi!(remember),
            cfi!(suspended rdi),
            "mov rbp, [rsi]",
            "mov rbx, [rsi + 24]",
            "mov rsp, [rsi + 16]",
            "jmp qword ptr [rsi + 8]",
            cfi!(restore),
            // Unwinders look at the instruction before a return address.
            "int3",
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
