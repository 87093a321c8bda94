//! What a switch costs: on every backend, with one context and a thousand, coloured and not, beside
//! other crates in the same run.
//!
//! ```text
//! cargo run --release --bin switch [rounds]
//! ```
//!
//! "resume + yield" is the asymmetric round trip that corosensei offers, two switches; "ring" goes straight from one
//! context to the next, as fibers of a scheduler do. All figures are for *one* switch. The thousand are visited
//! round-robin: the worst case for every cache.

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use sleave_bench::{Comparison, Figure, backends, pool, print_table};
use sleave_context::stack::{Arena, Slot, colour};
use sleave_context::{Context, Entry, FpControl, swap};
use std::ptr::addr_of_mut;
use std::time::Duration;

const STACK: usize = 16 * 1024;
const MANY: usize = 1000;
/// How often the thousand are set up anew, in other memory: now and then a whole set is slow for as long as it lives,
/// whatever its colours.
const PLACES: usize = 9;
const SLICE: Duration = Duration::from_millis(1);

/// What stands at the top of a slot, as a fiber's control block would.
#[repr(C, align(64))]
struct Block {
    own: Context,
    /// Whom the context switches to.
    peer: *mut Context,
}

/// Contexts on slots of their own, their blocks in the slots.
struct Contexts<'a> {
    arena: &'a Arena,
    slots: Vec<Option<Slot>>,
    blocks: Vec<*mut Block>,
    /// The context of the measuring thread while one of the others runs.
    home: Box<Block>,
}

impl<'a> Contexts<'a> {
    /// `count` contexts that run `entry`, tops shifted by `shift(index)` bytes.
    fn new(
        arena: &'a Arena,
        count: usize,
        shift: impl Fn(u32) -> usize,
        entry: Entry,
    ) -> Contexts<'a> {
        let home = Box::new(Block { own: Context::empty(), peer: std::ptr::null_mut() });
        let mut all = Contexts { arena, slots: Vec::new(), blocks: Vec::new(), home };
        let peer = addr_of_mut!(all.home.own);
        for _ in 0..count {
            let slot = arena.take(STACK).expect("a stack");
            let down = shift(slot.index()) + size_of::<Block>();
            let block = slot.top().wrapping_sub(down).cast::<Block>();
            // SAFETY: within the slot, above its guard; the stack below the block is the context's own.
            unsafe {
                let own = Context::new(block.cast(), entry, block as usize);
                block.write(Block { own, peer });
            }
            all.blocks.push(block);
            all.slots.push(Some(slot));
        }
        all
    }

    /// A thousand contexts, each of which switches straight to the next, the last one to the measuring thread.
    fn ring(arena: &'a Arena, shift: impl Fn(u32) -> usize) -> Contexts<'a> {
        let all = Contexts::new(arena, MANY, shift, pass_on);
        for pair in all.blocks.windows(2) {
            // SAFETY: blocks of suspended contexts, which nobody else touches.
            unsafe { (*pair[0]).peer = addr_of_mut!((*pair[1]).own) };
        }
        all
    }

    /// Resumes each context once, `rounds` times.
    fn resume_each(&mut self, rounds: u64) {
        let home = addr_of_mut!(self.home.own);
        for _ in 0..rounds {
            for &block in &self.blocks {
                // SAFETY: suspended, and it comes back here.
                unsafe { swap(home, addr_of_mut!((*block).own), None, home as usize) };
            }
        }
    }

    /// Resumes the first context, `rounds` times; the ring comes back here.
    fn resume_first(&mut self, rounds: u64) {
        let home = addr_of_mut!(self.home.own);
        for _ in 0..rounds {
            // SAFETY: as above.
            unsafe { swap(home, addr_of_mut!((*self.blocks[0]).own), None, 0) };
        }
    }
}

impl Drop for Contexts<'_> {
    fn drop(&mut self) {
        self.arena.give_many(&mut self.slots);
    }
}

/// Switches back to whoever resumed it: that comes as the value of the switch, in a register.
unsafe extern "C" fn bounce(data: usize, mut resumer: usize) -> ! {
    let block = data as *mut Block;
    loop {
        // SAFETY: the resumer is suspended while this context runs.
        resumer = unsafe { swap(addr_of_mut!((*block).own), resumer as *const Context, None, 0) };
    }
}

/// Switches straight to the next context of the ring.
unsafe extern "C" fn pass_on(data: usize, _: usize) -> ! {
    let block = data as *mut Block;
    loop {
        // SAFETY: `peer` is suspended whenever this context runs.
        unsafe { swap(addr_of_mut!((*block).own), (*block).peer, None, 0) };
    }
}

unsafe extern "C" fn bounce_fp_always(data: usize, mut resumer: usize) -> ! {
    let block = data as *mut Block;
    loop {
        let mine = FpControl::save();
        // SAFETY: as in `bounce`.
        resumer = unsafe { swap(addr_of_mut!((*block).own), resumer as *const Context, None, 0) };
        mine.load();
    }
}

unsafe extern "C" fn bounce_fp_on_difference(data: usize, mut resumer: usize) -> ! {
    let block = data as *mut Block;
    loop {
        let mine = FpControl::save();
        // SAFETY: as in `bounce`.
        resumer = unsafe { swap(addr_of_mut!((*block).own), resumer as *const Context, None, 0) };
        mine.restore();
    }
}

unsafe extern "C" fn identity(value: usize) -> usize {
    value
}

unsafe extern "C" fn bounce_hook(data: usize, mut resumer: usize) -> ! {
    let block = data as *mut Block;
    loop {
        // SAFETY: as in `bounce`.
        resumer = unsafe {
            swap(addr_of_mut!((*block).own), resumer as *const Context, Some(identity), 0)
        };
    }
}

type Peer = Coroutine<(), (), (), DefaultStack>;

fn corosensei(count: usize) -> Vec<Peer> {
    let body = |yielder: &Yielder<(), ()>, ()| {
        loop {
            yielder.suspend(());
        }
    };
    let stack = || DefaultStack::new(STACK).expect("a stack");
    (0..count).map(|_| Coroutine::with_stack(stack(), body)).collect()
}

fn resume_peers(peers: &mut [Peer], rounds: u64) {
    for _ in 0..rounds {
        for peer in &mut *peers {
            assert!(matches!(peer.resume(()), CoroutineResult::Yield(())));
        }
    }
}

fn one_context(arena: &Arena, rounds: usize) {
    let mut plain = Contexts::new(arena, 1, |_| 0, bounce);
    let mut always = Contexts::new(arena, 1, |_| 0, bounce_fp_always);
    let mut differing = Contexts::new(arena, 1, |_| 0, bounce_fp_on_difference);
    let mut hooked = Contexts::new(arena, 1, |_| 0, bounce_hook);
    let mut peers = corosensei(1);
    let mut comparison = Comparison::new();
    comparison.add("sleave", 2, |n| plain.resume_each(n));
    comparison.add("sleave, with a hook on the way back", 2, |n| hooked.resume_each(n));
    comparison.add("corosensei", 2, |n| resume_peers(&mut peers, n));
    comparison.add("sleave + FP state saved and loaded, one side", 2, |n| always.resume_each(n));
    comparison.add("sleave + FP state loaded on a difference, one side", 2, |n| {
        differing.resume_each(n);
    });
    let figures = comparison.measure(rounds, SLICE);
    print_table("One context, resume + yield", "ns/switch", &figures, "sleave");
}

/// Measures in several places: `measure` gets an arena of its own each time.
fn in_several_places(rounds: usize, measure: impl Fn(&Arena, usize) -> Vec<Figure>) -> Vec<Figure> {
    pool((0..PLACES).map(|_| {
        let arena = Arena::reserve().expect("address space for stacks");
        measure(&arena, rounds.div_ceil(PLACES))
    }))
}

fn many_contexts(arena: &Arena, rounds: usize) -> Vec<Figure> {
    let shift = |index| colour(index, 16);
    let mut plain = Contexts::new(arena, MANY, |_| 0, bounce);
    let mut coloured = Contexts::new(arena, MANY, shift, bounce);
    let mut ring = Contexts::ring(arena, |_| 0);
    let mut coloured_ring = Contexts::ring(arena, shift);
    let mut peers = corosensei(MANY);
    let mut comparison = Comparison::new();
    let many = MANY as u64;
    comparison.add("sleave", 2 * many, |n| coloured.resume_each(n));
    comparison.add("sleave, not coloured", 2 * many, |n| plain.resume_each(n));
    comparison.add("corosensei", 2 * many, |n| resume_peers(&mut peers, n));
    comparison.add("sleave, ring", many + 1, |n| coloured_ring.resume_first(n));
    comparison.add("sleave, ring, not coloured", many + 1, |n| ring.resume_first(n));
    comparison.measure(rounds, SLICE)
}

fn colours(arena: &Arena, rounds: usize) -> Vec<Figure> {
    let mut sets = Vec::new();
    for colours in [1, 8, 16, 32, 64] {
        let shift = move |index| colour(index, colours);
        sets.push((format!("{colours}"), Contexts::ring(arena, shift)));
        if colours > 1 && colours < 64 {
            // As many colours, further apart: over the whole 4 KiB that the sets repeat after.
            let shift = move |index| colour(index, colours) * (64 / colours);
            let name = format!("{colours}, {} bytes apart", 4096 / colours);
            sets.push((name, Contexts::ring(arena, shift)));
        }
    }
    let mut comparison = Comparison::new();
    for (name, set) in &mut sets {
        comparison.add(name.clone(), MANY as u64 + 1, |n| set.resume_first(n));
    }
    comparison.measure(rounds, SLICE)
}

fn main() {
    let rounds = sleave_bench::rounds(301);
    let arena = Arena::reserve().expect("address space for stacks");
    println!("{} bytes a stack, median of {rounds} rounds by turns", STACK);
    backends::compare(rounds);
    one_context(&arena, rounds);
    let figures = in_several_places(rounds, many_contexts);
    print_table("1,000 contexts, round-robin", "ns/switch", &figures, "sleave");
    let figures = in_several_places(rounds, colours);
    print_table("Colours, 1,000 contexts in a ring", "ns/switch", &figures, "16");
}
