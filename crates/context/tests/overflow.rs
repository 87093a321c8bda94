//! Running off a stack is a fault in that stack's guard, and a signal handler can tell whose; on every backend.

mod support;

use sleave_context::stack::{Arena, GuardMethod, Options};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::backends::{Tested, bounds};
use support::{in_child, is_child};

on_every_backend! {
    a_small_stack_overflows_into_its_guard,
    a_large_stack_overflows_into_its_guard,
    a_guard_by_mprotect_holds_too,
}

static ARENA: OnceLock<Arena> = OnceLock::new();
static EXPECTED: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The child's exit status when the fault lay in the guard of the right stack.
const IN_THE_GUARD: i32 = 42;

extern "C" fn on_fault(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel fills `info` for a handler with SA_SIGINFO.
    let addr = unsafe { (*info).si_addr() } as usize;
    let location = ARENA.get().and_then(|arena| arena.locate(addr));
    let right = location.is_some_and(|location| {
        location.in_guard && location.index as usize == EXPECTED.load(Ordering::Relaxed)
    });
    // SAFETY: _exit(2) is async-signal-safe.
    unsafe { libc::_exit(if right { IN_THE_GUARD } else { 1 }) };
}

#[inline(never)]
fn descend(depth: usize) -> usize {
    let frame = std::hint::black_box([depth; 40]);
    if depth == usize::MAX {
        return 0;
    }
    descend(depth + 1) + std::hint::black_box(&frame)[depth % 40]
}

unsafe extern "C" fn entry(_data: usize, depth: usize) -> ! {
    let sum = descend(depth);
    unreachable!("the stack had no end ({sum})");
}

/// In a child process: runs off a stack of `size` bytes that has neighbours on both sides.
fn overflow<B: Tested>(name: &str, size: usize, guard: GuardMethod) {
    let name = format!("{}::{name}", B::MODULE);
    if !is_child(&name) {
        let output = in_child(&name);
        return assert_eq!(output.status.code(), Some(IN_THE_GUARD), "{output:?}");
    }
    let options = Options { reserve: Some(256 << 20), guard };
    let arena = ARENA.get_or_init(|| Arena::with_options(options).unwrap());
    let slots = [(); 3].map(|()| arena.take(size).unwrap());
    EXPECTED.store(slots[1].index() as usize, Ordering::Relaxed);
    let mut other_stack = vec![0_u8; 64 * 1024];
    // SAFETY: sigaltstack(2), sigaction(2): the stack lives as long as this process.
    unsafe {
        let stack = libc::stack_t {
            ss_sp: other_stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: other_stack.len(),
        };
        assert_eq!(libc::sigaltstack(&stack, std::ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()), 0);
    }
    let (mut here, mut there) = (B::empty(), B::empty());
    // SAFETY: the middle slot is the context's own.
    unsafe {
        B::prepare(&raw mut there, bounds(&slots[1]), entry, 0);
        B::swap(&raw mut here, &raw const there, None, 0);
    }
}

fn a_small_stack_overflows_into_its_guard<B: Tested>() {
    overflow::<B>("a_small_stack_overflows_into_its_guard", 16 * 1024, GuardMethod::Madvise);
}

fn a_large_stack_overflows_into_its_guard<B: Tested>() {
    overflow::<B>("a_large_stack_overflows_into_its_guard", 8 << 20, GuardMethod::Madvise);
}

fn a_guard_by_mprotect_holds_too<B: Tested>() {
    overflow::<B>("a_guard_by_mprotect_holds_too", 64 * 1024, GuardMethod::Mprotect);
}
