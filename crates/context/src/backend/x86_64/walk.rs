//! Unwinding a suspended context from outside.
//!
//! An unwinder begins where it is called. [`walk`] calls a function from a frame whose caller, as the unwind tables of this frame have it,
//! is a context that somebody suspended: its registers are where the context keeps them. So whoever unwinds in that function
//! comes through this frame into the context's own.
//!
//! ```text
//!   f ─▶ walk ─ ─ ─▶ what the context was in when it was suspended ─▶ … ─▶ its entry
//!          └ really called by the walker, to whom it returns
//! ```

use super::Context;
use core::arch::naked_asm;

/// Calls `f(argument)` in such a way that unwinders called there see the frames of `context` above it.
///
/// # Safety
///
/// The context is suspended, and nobody switches to it before this returns. `f` returns: it does not unwind, for that would go
/// into the wrong stack.
#[unsafe(naked)]
pub unsafe extern "C" fn walk(
    context: *const Context,
    f: unsafe extern "C" fn(usize),
    argument: usize,
) {
    naked_asm!(
        ".cfi_startproc",
        "push rbx", // The stack is aligned now.
        "mov rbx, rdi",
        "mov rdi, rdx",
        // As `cfi!(suspended …)`, of rbx: the stack pointer; rbp, rip and rbx.
        ".cfi_escape 0x0f, 3, 0x73, 16, 0x06",
        ".cfi_escape 0x10, 6, 2, 0x73, 0",
        ".cfi_escape 0x10, 16, 2, 0x73, 8",
        ".cfi_escape 0x10, 3, 2, 0x73, 24",
        "call rsi",
        "pop rbx",
        "ret",
        ".cfi_endproc",
    )
}

/// Whether a return address lies in [`walk`]: what comes after it is the context's.
pub fn is_walk(address: usize) -> bool {
    /// More than its instructions have, less than the next function is away in a way that matters.
    const LENGTH: usize = 16;
    let start = walk as *const () as usize;
    (start..start + LENGTH).contains(&address)
}
