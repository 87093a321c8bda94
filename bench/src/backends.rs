//! One switch on every backend, beside other crates and a hand-over between two threads.
//!
//! Each candidate goes to and fro between the measuring thread and one other flow of control that
//! does nothing but come back; half of that is "a switch".

use crate::{Comparison, print_table};
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};
use generator::{Generator, Gn};
use sleave_context::backend::{Backend, Bounds, Link, Message, Native, Sigjmp, Ucontext};
use sleave_context::stack::{Arena, Slot};
use std::mem::{size_of, size_of_val, zeroed};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

const STACK: usize = 16 * 1024;
const SLICE: Duration = Duration::from_millis(1);

/// Measures `rounds` rounds by turns, and prints a table.
pub fn compare(rounds: usize) {
    let arena = Arena::reserve().expect("address space for stacks");
    let native = Other::<Native>::swapping(&arena);
    let ucontext = Other::<Ucontext>::swapping(&arena);
    let sigjmp = Other::<Sigjmp>::swapping(&arena);
    let linked = Other::<Native>::linked(&arena);
    let mut corosensei = corosensei();
    let mut generator = generator();
    let parked = Parked::start();
    let neighbour = on_one_processor(Parked::start);
    let channels = Channels::start();

    let swap = |backend: &str| format!("sleave: swap, {backend}");
    let reference = swap(Native::NAME);
    let mut comparison = Comparison::new();
    comparison.add(&reference, 2, |n| native.swap(n));
    comparison.add(swap(Sigjmp::NAME), 2, |n| sigjmp.swap(n));
    comparison.add(swap(Ucontext::NAME), 2, |n| ucontext.swap(n));
    comparison.add(format!("sleave: resume, {}", Native::NAME), 2, |n| linked.resume(n));
    comparison.add("corosensei: resume", 2, |n| {
        for _ in 0..n {
            assert!(matches!(corosensei.resume(()), CoroutineResult::Yield(())));
        }
    });
    comparison.add("generator: resume", 2, |n| {
        for _ in 0..n {
            assert_eq!(generator.resume(), Some(()));
        }
    });
    comparison.add("two threads on one processor: unpark, park", 2, |n| {
        on_one_processor(|| neighbour.hand_over(n));
    });
    comparison.add("two threads: unpark, park", 2, |n| parked.hand_over(n));
    comparison.add("two threads: rendezvous channels", 2, |n| channels.hand_over(n));
    let figures = comparison.measure(rounds, SLICE);
    print_table("Backends: to one other and back", "ns/switch", &figures, &reference);
}

/// A context on a stack of its own, with the link to it above that stack.
struct Other<'a, B: Backend> {
    arena: &'a Arena,
    slot: Option<Slot>,
    link: *mut Link<B>,
}

impl<'a, B: Backend> Other<'a, B> {
    /// For [`swap`](Other::swap).
    fn swapping(arena: &'a Arena) -> Other<'a, B> {
        unsafe extern "C" fn comes_back<B: Backend>(link: usize, _: usize) -> ! {
            let link = link as *mut Link<B>;
            loop {
                // SAFETY: the measuring thread is suspended in `resumer` while this context runs.
                unsafe { B::swap(&raw mut (*link).own, &raw const (*link).resumer, None, 0) };
            }
        }
        let (other, stack) = Other::new(arena);
        let data = other.link as usize;
        // SAFETY: the stack is the context's own, and the link lies outside of it.
        unsafe { B::prepare(&raw mut (*other.link).own, stack, comes_back::<B>, data) };
        other
    }

    /// For [`resume`](Other::resume).
    fn linked(arena: &'a Arena) -> Other<'a, B> {
        unsafe extern "C" fn comes_back<B: Backend>(link: usize, _: usize) -> ! {
            loop {
                // SAFETY: the context runs on this link, resumed by the measuring thread.
                unsafe { B::suspend(link as *mut Link<B>, Message { word: 0, tag: 0 }) };
            }
        }
        let (other, stack) = Other::new(arena);
        // SAFETY: as above.
        unsafe { B::prepare_linked(other.link, stack, comes_back::<B>, other.link as usize) };
        other
    }

    fn new(arena: &'a Arena) -> (Other<'a, B>, Bounds) {
        let slot = arena.take(STACK).expect("a stack");
        let limit = slot.base().wrapping_add(slot.guard_len());
        let link = slot.top().wrapping_sub(size_of::<Link<B>>()).cast::<Link<B>>();
        // SAFETY: within the slot and above its guard; a slot's top and a link's size are multiples of 64.
        unsafe { link.write(Link::empty()) };
        (Other { arena, slot: Some(slot), link }, Bounds { limit, top: link.cast() })
    }

    fn swap(&self, n: u64) {
        for _ in 0..n {
            let link = self.link;
            // SAFETY: the context is suspended, and comes back here.
            unsafe { B::swap(&raw mut (*link).resumer, &raw const (*link).own, None, 0) };
        }
    }

    fn resume(&self, n: u64) {
        for _ in 0..n {
            // SAFETY: as above.
            unsafe { B::resume(self.link, Message { word: 0, tag: 0 }) };
        }
    }
}

impl<B: Backend> Drop for Other<'_, B> {
    fn drop(&mut self) {
        // The context is never resumed again, and holds nothing.
        self.slot.take().into_iter().for_each(|slot| self.arena.give(slot));
    }
}

fn corosensei() -> Coroutine<(), (), (), DefaultStack> {
    let stack = DefaultStack::new(STACK).expect("a stack");
    Coroutine::with_stack(stack, |yielder, ()| {
        loop {
            yielder.suspend(());
        }
    })
}

fn generator() -> Generator<'static, (), ()> {
    let words = STACK / size_of::<usize>();
    Gn::new_scoped_opt(words, |mut scope| {
        loop {
            scope.yield_(());
        }
    })
}

// Whose turn it is of two threads.
const MINE: u8 = 0;
const PEERS: u8 = 1;
/// The peer ends.
const NOBODYS: u8 = 2;

/// A thread that is handed a turn, and hands it back, by `park` and `unpark`.
struct Parked {
    turn: Arc<AtomicU8>,
    peer: Option<thread::JoinHandle<()>>,
}

impl Parked {
    /// For hand-overs with the thread that calls this.
    fn start() -> Parked {
        let turn = Arc::new(AtomicU8::new(MINE));
        let (shared, measuring) = (turn.clone(), thread::current());
        let peer = thread::spawn(move || {
            loop {
                while shared.load(Ordering::Acquire) == MINE {
                    thread::park();
                }
                if shared.load(Ordering::Acquire) == NOBODYS {
                    break;
                }
                shared.store(MINE, Ordering::Release);
                measuring.unpark();
            }
        });
        Parked { turn, peer: Some(peer) }
    }

    fn give_turn(&self, to: u8) {
        self.turn.store(to, Ordering::Release);
        self.peer.as_ref().expect("it runs").thread().unpark();
    }

    fn hand_over(&self, n: u64) {
        for _ in 0..n {
            self.give_turn(PEERS);
            while self.turn.load(Ordering::Acquire) != MINE {
                thread::park();
            }
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.give_turn(NOBODYS);
        let ended = self.peer.take().expect("it runs").join();
        ended.expect("it cannot panic");
    }
}

/// A thread that is handed something, and hands it back, by channels without a buffer.
struct Channels {
    there: SyncSender<()>,
    back: Receiver<()>,
}

impl Channels {
    fn start() -> Channels {
        let (there, arrives) = sync_channel(0);
        let (returns, back) = sync_channel(0);
        // It ends when the other ends of its channels are dropped.
        thread::spawn(move || while arrives.recv().is_ok_and(|()| returns.send(()).is_ok()) {});
        Channels { there, back }
    }

    fn hand_over(&self, n: u64) {
        for _ in 0..n {
            self.there.send(()).expect("the peer waits for it");
            self.back.recv().expect("the peer answers");
        }
    }
}

/// Runs `work` with this thread, and those that it starts, on the first processor that it may use: the
/// kernel's best case, as nobody on another one must be woken.
fn on_one_processor<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: sched_setaffinity(2) and its counterpart, for this thread, with sets of our own and their size;
    // a set is an array of integers, and the search stays within it.
    unsafe {
        let (mut allowed, mut one): (libc::cpu_set_t, libc::cpu_set_t) = (zeroed(), zeroed());
        let size = size_of_val(&allowed);
        assert_eq!(libc::sched_getaffinity(0, size, &mut allowed), 0);
        let mut all = 0..libc::CPU_SETSIZE as usize;
        let first = all.find(|&processor| libc::CPU_ISSET(processor, &allowed));
        libc::CPU_SET(first.expect("this thread runs somewhere"), &mut one);
        assert_eq!(libc::sched_setaffinity(0, size, &one), 0);
        let result = work();
        assert_eq!(libc::sched_setaffinity(0, size, &allowed), 0);
        result
    }
}
