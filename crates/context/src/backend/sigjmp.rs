//! The switch by `sigsetjmp(3)` and `siglongjmp(3)`: saved and restored by the C library, without the kernel.
//!
//! # How it works
//!
//! `sigsetjmp(buffer, 0)` saves the registers that a call preserves, and not the signal mask;
//! `siglongjmp` restores them, whereupon `sigsetjmp` returns a second time. Two things stand between these functions
//! and a switch, and a dozen lines of assembly (`exchange` and `plant`) for each processor deal with both.
//!
//! *Rust cannot call a function that returns twice.* C compilers know `setjmp` by name and spill
//! around it; Rust has no attribute that says so, and would keep in a register, or reuse a spill slot of,
//! what the second return needs. So it never sees one: `exchange` calls both functions from the same frame.
//! To its caller it is a call that takes a while, preserves what every call preserves and returns once.
//!
//! ```text
//!      stack of A                                stack of B
//!   ┌──────────────────┐                      ┌──────────────────┐
//!   │ swap(A, B, …)    │                      │ swap(B, …)       │
//!   ├──────────────────┤                      ├──────────────────┤
//!   │ exchange:        │                      │ exchange:        │
//!   │  sigsetjmp → A ──┼── 0                  │  sigsetjmp → B   │ suspended: its frame is alive
//!   │  siglongjmp ← B  │ ───────────────────▶ │            └──── │ 1: return to swap
//!   └──────────────────┘                      └──────────────────┘
//! ```
//!
//! A jump leaves no frame behind for good and enters none that has returned: what the C standard forbids, and
//! what Rust's destructors could not bear, does not occur.
//!
//! *A buffer for a stack that nobody has run on.* One cannot write it by hand: glibc encrypts the
//! program counter and stack pointer in it ("pointer mangling"). The classical way in C, which cannot name the
//! stack pointer, is to take a signal on the new stack (`sigaltstack`, `SA_ONSTACK`), call `sigsetjmp` in the handler
//! and return from it (Engelschall, 2000). It takes a signal from the whole process for a moment, half a dozen system
//! calls, 3 KiB of the stack for the kernel's frame, and fails on a signal stack. But who has to write `exchange`
//! in assembly can name the stack pointer: `plant` sets it, calls `sigsetjmp`, and sets it back. Long after that
//! `plant` is returned to a second time, and needs no frame then: the buffer has the stack pointer and, in a
//! callee-saved register, the address of the context.
//!
//! # What it costs
//!
//! No system call: 11 ns a switch where [`Native`](super::Native) took 1.0 and `swapcontext` 220 (`cargo bench`
//! in `bench`). That is two calls into a shared library, every callee-saved register, and glibc's search for
//! clean-up handlers that the jump would leave. (With a `ret` at the end of `exchange`, mispredicted at
//! each switch, it was 21 ns.) 6 ns to prepare a context, which has 352 bytes.
//!
//! # What it cannot do
//!
//! * Leave a C function that calls back with a clean-up handler pushed (`pthread_cleanup_push`): glibc's
//!   `siglongjmp` takes it that frames are being unwound, and runs their handlers. Seen: `pthread_once(3)`, whose
//!   initialiser switches away, forgets that it has begun, and would begin another. So this is not for fibers,
//!   which switch anywhere.
//! * Backtraces of a linked context end at its entry; they do not go on into its resumer.
//! * The *floating-point control state* is not switched, as with [`Native`](super::Native).
//! * The C standard and POSIX leave `longjmp` to another thread's `setjmp` undefined. With glibc and musl it works: a
//!   buffer holds registers and nothing of the thread, and glibc's key of the pointers is one per process.
//! * glibc's `____longjmp_chk` (what `_FORTIFY_SOURCE` makes of `longjmp`) refuses to jump down a stack. That is a
//!   choice of C's headers; the symbol called here does not check.
//! * Shadow stacks (CET) are not supported, as in [`Native`](super::Native).
//!
//! Sources: setjmp(3), POSIX.1-2024 `sigsetjmp`; Ralf S. Engelschall, "Portable Multithreading: The Signal
//! Stack Trick for User-Space Thread Creation", USENIX 2000; rust-lang/rfcs#2625 and
//! rust-lang/unsafe-code-guidelines#404 on `setjmp` and Rust; glibc, `setjmp/longjmp.c`, `sysdeps/nptl/jmp-unwind.c`.

use super::{Backend, Bounds, Entry, Hook, portable};
use core::arch::naked_asm;
use core::ffi::c_int;

/// `sigsetjmp` and `siglongjmp` of the C library.
#[derive(Clone, Copy, Debug)]
pub struct Sigjmp;

/// What `sigsetjmp` saves, and the mail for whoever resumes. Stays where it is.
pub type Context = portable::Context<Buffer>;

/// C's `sigjmp_buf`: at most 312 bytes (glibc and musl on aarch64; 200 on x86-64).
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Buffer([u64; 40]);

unsafe extern "C" {
    /// What the macro `sigsetjmp` of C's headers calls. Returns twice: not to be called from Rust.
    fn __sigsetjmp(buffer: *mut Buffer, save_mask: c_int) -> c_int;
    fn siglongjmp(buffer: *const Buffer, value: c_int) -> !;
}

// SAFETY: `swap` keeps the contract, see the essay above.
unsafe impl Backend for Sigjmp {
    const NAME: &'static str = "sigjmp";

    type Context = Context;

    #[inline]
    fn empty() -> Context {
        Context::empty()
    }

    unsafe fn prepare(context: *mut Context, bounds: Bounds, entry: Entry, data: usize) {
        let misaligned = bounds.top as usize % 16;
        // SAFETY: the caller's promises: the stack is the context's own.
        unsafe {
            Context::start_at(context, entry, data);
            plant(Context::registers(context), bounds.top.sub(misaligned), context);
        }
    }

    #[inline]
    unsafe fn swap(
        from: *mut Context,
        to: *const Context,
        hook: Option<Hook>,
        arg: usize,
    ) -> usize {
        // SAFETY: the caller's promises; both stay where they are, and `from` is resumed once.
        unsafe {
            Context::send(to, hook, arg);
            exchange(Context::registers(from), Context::registers(to));
            Context::receive(from)
        }
    }
}

/// Saves the caller in `*from` and restores `*to`. Returns when `*from` is restored.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn exchange(from: *mut Buffer, to: *const Buffer) {
    naked_asm!(
        ".cfi_startproc",
        "push rsi", // for after the call; and it aligns the stack
        ".cfi_adjust_cfa_offset 8",
        "xor esi, esi", // no signal mask
        "call {sigsetjmp}",
        "test eax, eax",
        "jnz 2f",
        "mov rdi, [rsp]",
        "mov esi, 1",
        "call {siglongjmp}",
        "ud2", // `-> !`
        "2:",  // resumed, perhaps on another thread; the frame is what it was
        "pop rsi",
        ".cfi_adjust_cfa_offset -8",
        // Not `ret`, which is mispredicted after a switch: the processor expects the other side's returns.
        "pop rcx",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_register rip, rcx",
        "jmp rcx",
        ".cfi_endproc",
        sigsetjmp = sym __sigsetjmp,
        siglongjmp = sym siglongjmp,
    )
}

/// Makes `*buffer` restore to the empty stack below `top`, there to begin `context`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn plant(buffer: *mut Buffer, top: *mut u8, context: *const Context) {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbp, 0",
        "push rbx",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbx, 0",
        "push r12",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r12, 0",
        "mov r12, rsp",
        ".cfi_def_cfa_register r12",
        "mov rbx, rdx", // the second return finds it: callee-saved, hence in the buffer
        "mov rsp, rsi",
        // On this stack, and so on both returns of the one call, there is no caller: unwinding ends here.
        ".cfi_remember_state",
        ".cfi_def_cfa rsp, 8",
        ".cfi_undefined rip",
        ".cfi_same_value rbp",
        ".cfi_same_value rbx",
        ".cfi_same_value r12",
        "xor ebp, ebp", // and so do walkers of frame pointers
        "xor esi, esi", // no signal mask
        "call {sigsetjmp}",
        "test eax, eax",
        "jz 2f",
        "mov rdi, rbx",
        "call {begin}",
        "ud2", // `-> !`
        "2:",  // the first return: back to the caller
        "mov rsp, r12",
        ".cfi_restore_state",
        ".cfi_def_cfa_register rsp",
        "pop r12",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_restore r12",
        "pop rbx",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_restore rbx",
        "pop rbp",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_restore rbp",
        "ret",
        ".cfi_endproc",
        sigsetjmp = sym __sigsetjmp,
        begin = sym Context::begin,
    )
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn exchange(from: *mut Buffer, to: *const Buffer) {
    naked_asm!(
        ".cfi_startproc",
        "stp x29, x30, [sp, #-32]!",
        ".cfi_def_cfa_offset 32",
        ".cfi_offset x29, -32",
        ".cfi_offset x30, -24",
        "mov x29, sp",
        "str x1, [sp, #16]", // for after the call
        "mov w1, wzr",       // no signal mask
        "bl {sigsetjmp}",
        "hint #36", // `bti j`: the second return is an indirect jump to here
        "cbnz w0, 2f",
        "ldr x0, [sp, #16]",
        "mov w1, #1",
        "bl {siglongjmp}",
        "brk #1", // `-> !`
        "2:",     // resumed, perhaps on another thread; the frame is what it was
        "ldp x29, x30, [sp], #32",
        ".cfi_def_cfa_offset 0",
        ".cfi_restore x29",
        ".cfi_restore x30",
        "ret",
        ".cfi_endproc",
        sigsetjmp = sym __sigsetjmp,
        siglongjmp = sym siglongjmp,
    )
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn plant(buffer: *mut Buffer, top: *mut u8, context: *const Context) {
    naked_asm!(
        ".cfi_startproc",
        "stp x29, x30, [sp, #-32]!",
        ".cfi_def_cfa_offset 32",
        ".cfi_offset x29, -32",
        ".cfi_offset x30, -24",
        "stp x19, x20, [sp, #16]",
        ".cfi_offset x19, -16",
        ".cfi_offset x20, -8",
        "mov x20, sp",
        ".cfi_def_cfa_register x20",
        "mov x19, x2", // the second return finds it: callee-saved, hence in the buffer
        "mov sp, x1",
        // On this stack, and so on both returns of the one call, there is no caller: unwinding ends here.
        ".cfi_remember_state",
        ".cfi_def_cfa sp, 0",
        ".cfi_undefined x30",
        ".cfi_same_value x29",
        ".cfi_same_value x19",
        ".cfi_same_value x20",
        "mov x29, xzr", // and so do walkers of frame pointers
        "mov w1, wzr",  // no signal mask
        "bl {sigsetjmp}",
        "hint #36", // `bti j`, as above
        "cbz w0, 2f",
        "mov x0, x19",
        "bl {begin}",
        "brk #1", // `-> !`
        "2:",     // the first return: back to the caller
        "mov sp, x20",
        ".cfi_restore_state",
        ".cfi_def_cfa_register sp",
        "ldp x19, x20, [sp, #16]",
        ".cfi_restore x19",
        ".cfi_restore x20",
        "ldp x29, x30, [sp], #32",
        ".cfi_def_cfa_offset 0",
        ".cfi_restore x29",
        ".cfi_restore x30",
        "ret",
        ".cfi_endproc",
        sigsetjmp = sym __sigsetjmp,
        begin = sym Context::begin,
    )
}
