//! What the hook is for, on every backend: a context is another thread's, and a stack is free, only when the switch is
//! complete.
//!
//! Two threads hand contexts, or the stack of one that ends, to and fro. Each takes over as fast as it can, hence while
//! the other one still is in the middle of the switch or just behind it.
//!
//! ```text
//!   thread 0                     thread 1
//!   resume ◀───────── inbox 0 ◀── hook       the hook stands on the thread's own stack: so does
//!   … context runs …                resume   whoever gives the context, or its stack, away
//!   hook ──▶ inbox 1 ───────────▶ … runs …
//! ```

mod support;

use sleave_context::backend::{Backend, Bounds};
use sleave_context::stack::{Arena, Slot};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use support::arena;
use support::backends::{Tested, bounds};

const MIB: usize = 1 << 20;
const STACK: usize = 16 * 1024;
const HAND_OVERS: usize = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };

on_every_backend! {
    a_context_is_resumed_elsewhere_as_soon_as_the_hook_says_that_it_is_suspended,
    a_stack_that_a_context_has_freed_by_its_hook_is_used_elsewhere_at_once,
}

/// Waits a little: on a core of its own for a moment, then by letting others run.
fn wait(turns: &mut u32) {
    *turns += 1;
    match *turns % 20 {
        0 => std::thread::yield_now(),
        _ => std::hint::spin_loop(),
    }
}

/// Where a thread suspends itself to run a context, which gets it on every resumption.
struct Home<B: Backend> {
    context: B::Context,
    thread: usize,
}

/// A context that each of the two threads resumes by turns.
struct Walker<B: Backend> {
    own: B::Context,
    /// Where the threads look for it.
    inboxes: [AtomicPtr<Walker<B>>; 2],
    /// Who may have it next.
    next: usize,
    /// How often it has been resumed.
    steps: AtomicUsize,
}

unsafe extern "C" fn walk<B: Backend>(walker: usize, home: usize) -> ! {
    let walker = walker as *mut Walker<B>;
    let mut home = home as *mut Home<B>;
    for step in 0..HAND_OVERS {
        // SAFETY: the test's walker, which outlives this context; `home` is the thread we are on.
        unsafe {
            // Relaxed: pairs with the hook's load, which only waits.
            let before = (*walker).steps.fetch_add(1, Ordering::Relaxed);
            assert_eq!(before, step, "resumed where it was suspended before");
            let left = (*home).thread;
            home = suspend(walker, home, step, step % 5);
            assert_ne!((*home).thread, left, "the other thread has taken over");
        }
    }
    // SAFETY: as above. Not published, so never resumed.
    unsafe { B::swap(&raw mut (*walker).own, &raw const (*home).context, None, 1) };
    unreachable!("resumed after its end")
}

/// Suspends the walker under `depth` frames: whoever resumed it as it had been suspended the last time, before this one
/// is complete, would find other frames than it expects.
///
/// # Safety
///
/// As for [`Backend::swap`].
#[inline(never)]
unsafe fn suspend<B: Backend>(
    walker: *mut Walker<B>,
    home: *mut Home<B>,
    step: usize,
    depth: usize,
) -> *mut Home<B> {
    let frame = std::hint::black_box([walker as usize ^ step ^ depth; 16]);
    // SAFETY: the caller's promise.
    let home = unsafe {
        if depth > 0 {
            suspend(walker, home, step, depth - 1)
        } else {
            (*walker).next = 1 - (*home).thread;
            let (own, to) = (&raw mut (*walker).own, &raw const (*home).context);
            B::swap(own, to, Some(publish::<B>), walker as usize) as *mut Home<B>
        }
    };
    assert_eq!(std::hint::black_box(frame), [walker as usize ^ step ^ depth; 16]);
    home
}

/// The hook: the walker is suspended.
unsafe extern "C" fn publish<B: Backend>(walker: usize) -> usize {
    let walker = walker as *mut Walker<B>;
    // SAFETY: nobody else has it yet, and it outlives the threads.
    let (inbox, steps) = unsafe { (&(&(*walker).inboxes)[(*walker).next], &(*walker).steps) };
    let before = steps.load(Ordering::Relaxed);
    // Release: what the swap has saved is seen by whoever takes the walker (acquire).
    inbox.store(walker, Ordering::Release);
    // By turns the other thread races with the rest of this hook, and surely is on the context before its end.
    let mut turns = 0;
    while before % 2 == 1 && steps.load(Ordering::Relaxed) == before {
        wait(&mut turns);
    }
    0
}

fn a_context_is_resumed_elsewhere_as_soon_as_the_hook_says_that_it_is_suspended<B: Tested>() {
    let arena = arena(64 * MIB);
    let slot = arena.take(STACK).unwrap();
    let mut walker = Walker::<B> {
        own: B::empty(),
        inboxes: [const { AtomicPtr::new(null_mut()) }; 2],
        next: 0,
        steps: AtomicUsize::new(0),
    };
    let address = &raw mut walker as usize;
    // SAFETY: the stack is the context's own, and outlives it.
    unsafe {
        B::prepare(&raw mut walker.own, bounds(&slot), walk::<B>, address);
        publish::<B>(address);
    }
    let ended = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let ended = &ended;
            scope.spawn(move || {
                let walker = address as *mut Walker<B>;
                // SAFETY: it lives as long as this scope.
                let inbox = unsafe { &(&(*walker).inboxes)[thread] };
                let mut home = Home::<B> { context: B::empty(), thread };
                let home = &raw mut home;
                let mut turns = 0;
                // Relaxed: only that it has ended counts.
                while ended.load(Ordering::Relaxed) == 0 {
                    // Acquire: pairs with the release in `publish`.
                    if inbox.swap(null_mut(), Ordering::Acquire).is_null() {
                        wait(&mut turns);
                        continue;
                    }
                    // SAFETY: it was in our inbox, hence suspended and ours alone.
                    let end = unsafe {
                        let (from, to) = (&raw mut (*home).context, &raw const (*walker).own);
                        B::swap(from, to, None, home as usize)
                    };
                    ended.fetch_add(end, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(walker.steps.load(Ordering::Relaxed), HAND_OVERS);
    arena.give(slot);
}

/// A context that frees its stack when it ends.
struct Mortal<'a, B: Backend> {
    own: B::Context,
    home: B::Context,
    arena: &'a Arena,
    slot: Option<Slot>,
    ticket: usize,
    /// Whose turn it is to take the stack, and to use it: tickets.
    turns: &'a Turns,
}

#[derive(Default)]
struct Turns {
    free: AtomicUsize,
    begun: AtomicUsize,
}

unsafe extern "C" fn live<B: Backend>(mortal: usize, ticket: usize) -> ! {
    let mortal = mortal as *mut Mortal<B>;
    fill(ticket, ticket % 5);
    // SAFETY: the test's, on the stack of the thread that we are on.
    // Relaxed: pairs with the hook's load, which only waits.
    unsafe { (*mortal).turns.begun.store(ticket + 1, Ordering::Relaxed) };
    // SAFETY: it waits in its swap for this one. Never resumed.
    unsafe {
        let (own, home) = (&raw mut (*mortal).own, &raw const (*mortal).home);
        B::swap(own, home, Some(free::<B>), mortal as usize);
    }
    unreachable!("resumed after its end")
}

/// Uses the stack, `depth` frames of it: anybody else on it would show.
#[inline(never)]
fn fill(ticket: usize, depth: usize) {
    let frame = std::hint::black_box([ticket ^ depth; 16]);
    if depth > 0 {
        fill(ticket, depth - 1);
    }
    assert_eq!(std::hint::black_box(frame), [ticket ^ depth; 16]);
}

/// The hook: nobody stands on the stack any more.
unsafe extern "C" fn free<B: Backend>(mortal: usize) -> usize {
    // SAFETY: the hook stands on the stack where it lies.
    let mortal = unsafe { &mut *(mortal as *mut Mortal<B>) };
    let (ticket, turns) = (mortal.ticket, mortal.turns);
    mortal.arena.give(mortal.slot.take().unwrap());
    // Release: after this, another thread is on it.
    turns.free.store(ticket + 1, Ordering::Release);
    // By turns that races with the rest of this hook, and surely comes before its end.
    let mut waited = 0;
    let next = ticket + 1;
    while next % 2 == 1 && next < HAND_OVERS && turns.begun.load(Ordering::Relaxed) == next {
        wait(&mut waited);
    }
    ticket
}

fn a_stack_that_a_context_has_freed_by_its_hook_is_used_elsewhere_at_once<B: Tested>() {
    let arena = &arena(64 * MIB);
    let turns = &Turns::default();
    let only = arena.take(STACK).unwrap();
    let index = only.index();
    arena.give(only);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                let mut waited = 0;
                for ticket in (thread..HAND_OVERS).step_by(2) {
                    // Acquire: pairs with the release in `free`.
                    while turns.free.load(Ordering::Acquire) != ticket {
                        wait(&mut waited);
                    }
                    let slot = arena.take(STACK).unwrap();
                    assert_eq!(slot.index(), index, "the stack that was freed a moment ago");
                    let bounds: Bounds = bounds(&slot);
                    let (own, home) = (B::empty(), B::empty());
                    let mut mortal =
                        Mortal::<B> { own, home, arena, slot: Some(slot), ticket, turns };
                    let mortal = &raw mut mortal;
                    // SAFETY: the stack is the context's own until its hook frees it.
                    let died = unsafe {
                        B::prepare(&raw mut (*mortal).own, bounds, live::<B>, mortal as usize);
                        let (home, own) = (&raw mut (*mortal).home, &raw const (*mortal).own);
                        B::swap(home, own, None, ticket)
                    };
                    assert_eq!(died, ticket);
                }
            });
        }
    });
    assert_eq!((arena.stats().live(), arena.stats().free()), (0, 1));
}
