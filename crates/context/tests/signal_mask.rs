//! The signal mask is the thread's, whoever runs on it; or the context's, where the backend sees to it.

mod support;

use sleave_context::backend::Backend;
use std::mem::zeroed;
use std::ptr::{null, null_mut};
use support::arena;
use support::backends::{Pair, Tested, bounds, enter, leave};

on_every_backend! {
    the_signal_mask_is_the_threads_or_the_contexts,
}

/// Blocks or unblocks SIGUSR1 for this thread.
fn set_blocked(blocked: bool) {
    let how = if blocked { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // SAFETY: sigemptyset(3), sigaddset(3), pthread_sigmask(3), on a set of our own.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGUSR1);
        assert_eq!(libc::pthread_sigmask(how, &set, null_mut()), 0);
    }
}

fn is_blocked() -> bool {
    // SAFETY: as above; without a new set the mask is only read.
    unsafe {
        let mut set = zeroed();
        assert_eq!(libc::pthread_sigmask(libc::SIG_SETMASK, null(), &mut set), 0);
        libc::sigismember(&set, libc::SIGUSR1) == 1
    }
}

fn the_signal_mask_is_the_threads_or_the_contexts<B: Tested>() {
    unsafe extern "C" fn toggles<B: Backend>(data: usize, _first: usize) -> ! {
        loop {
            let found = is_blocked();
            set_blocked(!found);
            // SAFETY: `data` is the test's pair, which outlives this context.
            unsafe { leave(data as *mut Pair<B>, usize::from(found)) };
        }
    }
    let arena = arena(64 << 20);
    let slot = arena.take(16 * 1024).unwrap();
    let mut pair = Pair::<B>::new();
    let pair = &raw mut pair;
    // SAFETY: the stack is this context's own, and both outlive it.
    unsafe { B::prepare(&raw mut (*pair).there, bounds(&slot), toggles::<B>, pair as usize) };
    for round in 0..4 {
        // SAFETY: the pair's context is suspended.
        let found = unsafe { enter(pair, 0) };
        // Nobody else changes the mask: either way the context finds what it left.
        assert_eq!(found, round % 2, "round {round}");
        let expected = !B::SWITCHES_CONTROL_STATE && round % 2 == 0;
        assert_eq!(is_blocked(), expected, "round {round}");
    }
    arena.give(slot);
}
