//! A chain of contexts, each of which frees its own stack when it ends. There is no scheduler that could do it.
//!
//! ```text
//!   main ── swap ──▶ link 1 ── swap ──▶ link 2 ── swap ──▶ … ── swap ──▶ main
//!                              hook: frees 1       hook: frees 2
//! ```
//!
//! Nobody can free the stack that he stands on: the next call would use what is somebody else's by then. But a
//! switch can have a **hook**. It runs when everything of the old side is saved, on the new side's stack, and what it
//! returns is what the new side receives. So it may free the old stack, and a chain of any length needs no more
//! than two.

use sleave_context::stack::{Arena, Slot};
use sleave_context::{Context, swap};

const LINKS: usize = 5;
const STACK: usize = 16 << 10;

/// What all links share. It lies on none of their stacks.
struct Chain {
    arena: Arena,
    /// Where `main` is suspended.
    home: Context,
    /// The link that will be entered next, and its stack.
    next: Context,
    stack: Option<Slot>,
    /// The stack that the hook is to free.
    left: Option<Slot>,
    lines: Vec<String>,
}

impl Chain {
    /// Makes the next link.
    fn forge(&mut self, chain: *mut Chain) {
        let stack = self.arena.take(STACK).expect("a stack");
        // SAFETY: the stack is the new context's own, until the hook of its last swap.
        self.next = unsafe { Context::new(stack.top(), link, chain as usize) };
        self.stack = Some(stack);
    }

    fn say(&mut self, text: &str) {
        let stacks = self.arena.stats();
        self.lines.push(format!(
            "{text}; stacks: {} in use, {} free",
            stacks.live(),
            stacks.free()
        ));
    }
}

/// A link, from its beginning to its end.
unsafe extern "C" fn link(chain: usize, number: usize) -> ! {
    let chain = chain as *mut Chain;
    // SAFETY: the chain outlives its links, one of which runs at a time. Its own stack is freed by the hook.
    unsafe {
        let own = (*chain).stack.take();
        (*chain).say(&format!("link {number} runs"));
        let target = if number < LINKS {
            (*chain).forge(chain);
            &raw const (*chain).next
        } else {
            &raw const (*chain).home
        };
        (*chain).left = own;
        let mut nobody = Context::empty(); // will resume this link
        swap(&raw mut nobody, target, Some(free), chain as usize);
    }
    unreachable!("a link that has ended was resumed")
}

/// The hook: the link has been left for good, and this runs on the stack of whoever comes next.
unsafe extern "C" fn free(chain: usize) -> usize {
    // SAFETY: as in `link`; nothing on the stack that is freed is used any more.
    let chain = unsafe { &mut *(chain as *mut Chain) };
    let stack = chain.left.take().expect("a link leaves a stack behind");
    let here = (&raw const stack).addr();
    assert!(!(stack.base().addr()..stack.top().addr()).contains(&here), "not on the old stack");
    chain.arena.give(stack);
    chain.say("      its stack is free");
    chain.lines.len() / 2 + 1 // the number of the next link
}

/// What there is to say, line by line.
pub fn story() -> Vec<String> {
    let arena = Arena::reserve().expect("room for stacks");
    let (home, next) = (Context::empty(), Context::empty());
    let mut chain = Chain { arena, home, next, stack: None, left: None, lines: Vec::new() };
    let shared = &raw mut chain;
    // SAFETY: the chain stays where it is until the last link has come home.
    let after = unsafe {
        (*shared).forge(shared);
        swap(&raw mut (*shared).home, &raw const (*shared).next, None, 1)
    };
    chain.say(&format!("main is back, after {} links", after - 1));
    chain.lines
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
