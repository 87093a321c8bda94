//! The switch by `swapcontext(3)`, for comparison and for processors without an assembly backend.
//!
//! # How it works
//!
//! `getcontext` fills in a `ucontext_t`, `makecontext` turns it into one that calls a function on a
//! stack of its own, `swapcontext` saves into one and restores another. Hook and argument travel in
//! the target's context: see `portable.rs`.
//!
//! *A function of `makecontext` takes `int`s.* The one thing it must be told, the address of its
//! context, comes as two of them, upper half first, which is right on every ABI. (On those where a pointer passes
//! through as well, as the man page's notes have it for glibc from 2.8, it need not.)
//!
//! *Functions that return twice* do so only where a context is restored twice, or restored after it
//! was resumed by other means. Here every `swapcontext` returns once, as each saved context is resumed once by
//! contract; and what `getcontext` saved is never resumed, since `makecontext` replaces where it goes on. So to the
//! compiler both are ordinary calls, and neither needs C's `returns_twice`, which Rust does not have.
//!
//! *It must not move*: on x86-64, `uc_mcontext.fpregs` of a saved `ucontext_t` points into itself.
//!
//! # What it costs
//!
//! A system call a switch: POSIX makes the signal mask part of the context, so each `swapcontext` is a
//! `rt_sigprocmask(2)`, and that is nearly all of its time: 220 ns a switch where [`Native`](super::Native) took 1.0
//! (`cargo bench` in `bench`). For the same reason 0.2 µs to prepare a context, which has 1,000 bytes, and
//! 4.6 KiB on aarch64.
//!
//! # What it does differently
//!
//! * The *signal mask* belongs to the context. One that was never resumed begins with the mask of
//!   whoever prepared it; one that is resumed by another thread takes its mask along.
//! * So does the *floating-point control state*: MXCSR and the x87 environment, on aarch64 FPCR and FPSR.
//!   (The latter is what glibc does; POSIX leaves it open.)
//!
//! # What it cannot do
//!
//! * musl has no such functions; the backend is there with glibc only.
//! * Backtraces of a linked context end at its entry; they do not go on into its resumer.
//! * With shadow stacks (CET) in force, glibc's `makecontext` allocates one for each context and
//!   never frees it. Linux turns them on only for programs that are marked as wanting them, and Rust's are not.
//! * POSIX has dropped these functions (in 2008, for a prototype without arguments cannot be written
//!   in ISO C), glibc keeps them.
//!
//! Sources: makecontext(3), getcontext(3); POSIX.1-2001, `makecontext`; glibc,
//! `sysdeps/unix/sysv/linux/{x86_64,aarch64}/{swap,make}context`.

use super::{Backend, Bounds, Entry, Hook, portable};
use core::ffi::c_uint;
use core::mem::transmute;
use libc::{getcontext, makecontext, swapcontext, ucontext_t};

// glibc writes as much as its own headers declare; before 0.2.190 or so the crate lacked the shadow stack's field.
#[cfg(target_arch = "x86_64")]
const _: () =
    assert!(size_of::<ucontext_t>() == 968, "an old `libc` crate: ucontext_t is too short");

/// `getcontext`, `makecontext`, `swapcontext` of the C library.
#[derive(Clone, Copy, Debug)]
pub struct Ucontext;

/// What `swapcontext` saves, and the mail for whoever resumes. Stays where it is.
pub type Context = portable::Context<ucontext_t>;

// SAFETY: `swap` keeps the contract, see the essay above.
unsafe impl Backend for Ucontext {
    const NAME: &'static str = "ucontext";

    type Context = Context;

    #[inline]
    fn empty() -> Context {
        Context::empty()
    }

    unsafe fn prepare(context: *mut Context, bounds: Bounds, entry: Entry, data: usize) {
        let address = context as u64;
        let (high, low) = ((address >> 32) as c_uint, address as c_uint);
        // SAFETY: makecontext(3): what getcontext(3) has filled in, with a stack that is the context's own
        // and no successor, as `start` does not return; called with as many integers as it takes.
        unsafe {
            Context::start_at(context, entry, data);
            let registers = Context::registers(context);
            // It has no way to fail but an address that cannot be written to.
            let done = getcontext(registers);
            debug_assert_eq!(done, 0);
            (*registers).uc_stack.ss_sp = bounds.limit.cast();
            (*registers).uc_stack.ss_size = bounds.top as usize - bounds.limit as usize;
            (*registers).uc_link = core::ptr::null_mut();
            let start = transmute::<Start, extern "C" fn()>(start);
            makecontext(registers, start, 2, high, low);
        }
    }

    #[inline]
    unsafe fn swap(
        from: *mut Context,
        to: *const Context,
        hook: Option<Hook>,
        arg: usize,
    ) -> usize {
        // SAFETY: the caller's promises; both stay where they are. `from` is resumed once, so that
        // swapcontext(3) returns once. Nothing of the caller is read after it is saved.
        unsafe {
            Context::send(to, hook, arg);
            let done = swapcontext(Context::registers(from), Context::registers(to));
            debug_assert_eq!(done, 0);
            Context::receive(from)
        }
    }
}

/// What `makecontext` is given, in its true form.
type Start = unsafe extern "C" fn(c_uint, c_uint) -> !;

/// First function of every context, called with the halves of its address.
unsafe extern "C" fn start(high: c_uint, low: c_uint) -> ! {
    let context = (u64::from(high) << 32 | u64::from(low)) as *const Context;
    // SAFETY: the address of this very context, prepared above, which has just been resumed for the first time.
    unsafe { Context::begin(context) }
}
