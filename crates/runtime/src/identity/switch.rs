//! The thread pointer: read it, and make another identity the one in force.
//!
//! On x86-64 the thread pointer is the base of the FS segment. Linux 5.9 lets programs write it
//! with `wrfsbase` (FSGSBASE), a few nanoseconds; without it `arch_prctl(2)` costs a system call
//! per switch, which is not worth having. The first word of the thread control block is its own
//! address (x86-64 TLS ABI), so reading it is one load.
//!
//! [`Kit::enter`] is called with the identity of one stack in force and leaves that of another.
//! What malloc keeps per thread goes along, from the outgoing identity to the incoming one:
//!
//! ```text
//!   OS thread A    enter(f)    fiber f     enter(g)    fiber g    enter(A)    OS thread A
//!   tcache: T  ──────────────▶  T  ──────────────────▶  T  ──────────────────▶  T
//! ```
//!
//! Invariant: the words of the identity in force on an OS thread are that OS thread's cache, and
//! the words of an identity that is not in force are never read.
//!
//! An identity that is in force on the same OS thread as the last time has its words already: [`Kit::enter_again`]
//! copies nothing, and touches no memory of either. An OS thread's cache is its own from [`Kit::adopt_thread`] to its end. The
//! arena may change, when malloc finds one exhausted; an identity that still has the old one goes on with that, as a
//! thread might: arenas are locked, and never go.
//!
//! This matters since stack and identity lie on two pages, and of a thousand fibers that switch in turn, two pages each
//! do not fit into the processor's table of pages (2,048 entries where it was measured: 40 ns a yield instead of 22).
//!
//! Sources: Drepper, *ELF Handling For Thread-Local Storage*; Documentation/arch/x86/x86_64/fsgs.rst.

use std::arch::asm;

use super::Kit;

/// The calling stack's thread pointer: the address of its `struct pthread`.
///
/// A fiber's thread pointer is its own for life, wherever it runs. The compiler may merge two
/// reads, but not over a switch: `readonly` makes every switch, which clobbers memory, a barrier.
#[inline(always)]
pub fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: x86-64 TLS ABI: the word at fs:0 is the thread pointer, on every thread. AAPCS64: it
    // is in a register that any program may read.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov {}, fs:0", out(reg) pointer, options(pure, readonly, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("mrs {}, tpidr_el0", out(reg) pointer, options(pure, readonly, nostack, preserves_flags));
    }
    pointer
}

/// As [`thread_pointer`], and no memory is touched: for who may otherwise need nothing of its identity. Takes 2.4 ns, where
/// a load from the cache takes 0.3.
///
/// # Safety
/// FSGSBASE was probed: there is a [`Kit`].
#[inline(always)]
pub(crate) unsafe fn thread_pointer_in_register() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let pointer;
        // SAFETY: by contract. `readonly` as above.
        unsafe {
            asm!("rdfsbase {}", out(reg) pointer, options(pure, readonly, nostack, preserves_flags));
        }
        pointer
    }
    #[cfg(target_arch = "aarch64")]
    thread_pointer()
}

impl Kit {
    /// Makes `to` the calling OS thread's identity, and hands it malloc's cache.
    ///
    /// # Safety
    /// `to` is an identity that [`Kit::create`] made, or an OS thread's own; no other OS thread
    /// has it in force. Until the stack that belongs to `to` runs, the caller uses no
    /// thread-local (a compiler may have kept its address).
    #[inline(always)]
    pub unsafe fn enter(&self, to: usize) {
        if self.malloc.follow {
            let from = thread_pointer();
            // SAFETY: both are identities; the words lie in libc's block of static TLS, found by
            // `malloc::probe`. Nobody else reads or writes them: `from` is in force here, and
            // `to` is in force nowhere (caller).
            unsafe {
                let word = |tp: usize, offset: isize| tp.wrapping_add_signed(offset) as *mut usize;
                let (cache, arena) = (self.malloc.cache, self.malloc.arena);
                word(to, cache).write(word(from, cache).read());
                word(to, arena).write(word(from, arena).read());
            }
        }
        // SAFETY: by contract.
        unsafe { self.enter_again(to) };
    }

    /// As [`Kit::enter`] of an identity whose words are those of the calling OS thread.
    ///
    /// # Safety
    /// As there; and `to` was last entered on this OS thread, or is its own.
    #[inline(always)]
    pub(crate) unsafe fn enter_again(&self, to: usize) {
        // SAFETY: FSGSBASE was probed (and 64-bit Arm has no need of it), and the caller vouches for `to`. The
        // assembly is taken to read and write all memory: whatever depends on the thread pointer stays on its side.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            asm!("wrfsbase {}", in(reg) to, options(nostack, preserves_flags));
            #[cfg(target_arch = "aarch64")]
            asm!("msr tpidr_el0, {}", in(reg) to, options(nostack, preserves_flags));
        }
    }
}
