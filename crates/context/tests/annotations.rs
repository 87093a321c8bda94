//! Programs that are right, and that Valgrind or AddressSanitizer would say are wrong if nobody told them about
//! stacks and switches.
//!
//! By themselves these tests only show that the calls do no harm. `.ci/annotations` runs each in a process of
//! its own under each tool, with the feature and without: what is silent with it must be complained about
//! without.

mod support;

use sleave_context::annotate::Annotation;
use sleave_context::backend::{Backend, Bounds, Link, Message, Native};
use sleave_context::stack::{Arena, Slot};
use sleave_context::{Context, swap};
use std::hint::black_box;
use std::panic::{catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock};
use support::{arena, assert_success, in_child, is_child};

const MIB: usize = 1 << 20;
const STACK: usize = 64 * 1024;

/// A coroutine with the least that one needs: the protocol of `annotate`, as it is written there.
struct Coroutine {
    link: Link<Native>,
    own: Annotation,
    resumer: Annotation,
    body: fn(*mut Coroutine),
}

impl Coroutine {
    fn new(slot: &Slot, body: fn(*mut Coroutine)) -> Box<Coroutine> {
        let bounds = bounds(slot);
        let link = Link::empty();
        let (own, resumer) = (Annotation::of(bounds), Annotation::elsewhere());
        let mut this = Box::new(Coroutine { link, own, resumer, body });
        let data = &raw mut *this;
        // SAFETY: the slot is this coroutine's alone, as each test sees to.
        unsafe { Native::prepare_linked(&raw mut (*data).link, bounds, entry, data as usize) };
        this
    }

    /// Lets it run until it suspends or ends; false in the latter case.
    fn resume(self: &mut Box<Coroutine>) -> bool {
        let this = &raw mut **self;
        // SAFETY: the coroutine is suspended; no test resumes one that has ended.
        unsafe {
            (*this).resumer.leave(&(*this).own);
            let answer = Native::resume(&raw mut (*this).link, Message { word: 0, tag: 0 });
            (*this).resumer.arrive(Some(&mut (*this).own));
            answer.word == 0
        }
    }
}

unsafe extern "C" fn entry(data: usize, _first: usize) -> ! {
    let this = data as *mut Coroutine;
    // SAFETY: `this` is the coroutine that runs here.
    unsafe {
        (*this).own.arrive(Some(&mut (*this).resumer));
        ((*this).body)(this);
        (*this).own.leave(&(*this).resumer);
        Native::exit(&raw mut (*this).link, Message { word: 1, tag: 0 })
    }
}

/// Back to the resumer of the coroutine that runs.
fn suspend(this: *mut Coroutine) {
    // SAFETY: a body is handed the coroutine that it runs on.
    unsafe {
        (*this).own.leave(&(*this).resumer);
        Native::suspend(&raw mut (*this).link, Message { word: 0, tag: 0 });
        (*this).own.arrive(Some(&mut (*this).resumer));
    }
}

fn bounds(slot: &Slot) -> Bounds {
    Bounds { limit: slot.base().wrapping_add(slot.guard_len()), top: slot.top() }
}

/// All that the owner of a free stack may write to.
fn memory(slot: &mut Slot) -> &mut [u8] {
    let len = slot.size() - slot.guard_len();
    // SAFETY: above the guard, of a slot that nobody runs on.
    unsafe { std::slice::from_raw_parts_mut(bounds(slot).limit, len) }
}

/// Descends with small arrays, between red zones, in each frame, and calls `last` at the end.
#[inline(never)]
fn descend(depth: usize, last: &mut dyn FnMut()) -> usize {
    let before = black_box([depth; 3]);
    if depth == 0 {
        last();
    } else {
        descend(depth - 1, last);
    }
    let after = black_box([depth; 5]);
    black_box(&before)[depth % 3] + black_box(&after)[depth % 5]
}

/// Has the standard library, which is not built for any tool, fill a buffer on the stack: its frames have no
/// red zones, nor do they clear away those of others.
#[inline(never)]
fn use_the_stack() {
    assert!(!Path::new(&"x".repeat(300)).exists());
}

fn panic_below(depth: usize) {
    let panicked = catch_unwind(|| descend(depth, &mut || resume_unwind(Box::new(7_u8))));
    assert_eq!(*panicked.unwrap_err().downcast::<u8>().unwrap(), 7);
}

#[test]
fn a_panic_is_caught_and_the_stack_used_again() {
    let arena = arena(64 * MIB);
    let slot = arena.take(STACK).unwrap();
    let mut coroutine = Coroutine::new(&slot, |this| {
        for _ in 0..3 {
            panic_below(50);
            use_the_stack();
            suspend(this);
        }
    });
    while coroutine.resume() {
        panic_below(50);
        use_the_stack();
    }
    drop(coroutine);
    arena.give(slot);
}

#[test]
fn the_stack_of_an_abandoned_coroutine_is_plain_memory() {
    let arena = arena(64 * MIB);
    let mut slot = arena.take(STACK).unwrap();
    let mut coroutine = Coroutine::new(&slot, |this| {
        descend(50, &mut || suspend(this));
    });
    assert!(coroutine.resume());
    drop(coroutine);
    memory(&mut slot).fill(1);
    assert!(memory(&mut slot).iter().all(|byte| *byte == 1));
    arena.give(slot);
}

/// Has a local whose address is known, and which is to be the same after `meanwhile`.
#[inline(never)]
fn keeps_a_local(value: u64, meanwhile: &mut dyn FnMut()) {
    let mut local = black_box([value; 8]);
    let kept = black_box(&raw mut local);
    meanwhile();
    // SAFETY: `local` is alive.
    let kept = unsafe { &mut *kept };
    assert_eq!(*kept, [value; 8]);
    kept.fill(0);
}

#[test]
fn locals_of_a_coroutine_outlive_the_thread_that_started_it() {
    let arena = arena(64 * MIB);
    let slot = arena.take(STACK).unwrap();
    let mut coroutine = Coroutine::new(&slot, |this| {
        keeps_a_local(1, &mut || suspend(this));
    });
    let moved = &raw mut coroutine as usize;
    // SAFETY: the coroutine is this thread's again when the other one has been joined.
    let start = move || unsafe { (*(moved as *mut Box<Coroutine>)).resume() };
    assert!(std::thread::spawn(start).join().unwrap());
    assert!(!coroutine.resume());
    drop(coroutine);
    arena.give(slot);
}

#[test]
fn a_coroutine_resumes_the_one_beside_it() {
    static SLOTS: Mutex<Vec<Slot>> = Mutex::new(Vec::new());
    let arena = arena(64 * MIB);
    SLOTS.lock().unwrap().extend([(); 2].map(|()| arena.take(STACK).unwrap()));
    let slot = arena.take(STACK).unwrap();
    fn nest(this: *mut Coroutine) {
        let slot = SLOTS.lock().unwrap().pop();
        if let Some(slot) = slot {
            let mut inner = Coroutine::new(&slot, nest);
            while inner.resume() {
                descend(10, &mut || suspend(this));
                panic_below(10);
            }
        }
        for depth in 0..5 {
            descend(depth * 5, &mut || suspend(this));
        }
    }
    let mut outer = Coroutine::new(&slot, nest);
    let mut times = 0;
    while outer.resume() {
        times += 1;
    }
    assert_eq!(times, 3 * 5);
    drop(outer);
    arena.give(slot);
}

#[test]
fn a_coroutine_is_suspended_by_the_one_that_it_has_resumed() {
    static SLOT: Mutex<Option<Slot>> = Mutex::new(None);
    static OUTER: AtomicPtr<Coroutine> = AtomicPtr::new(std::ptr::null_mut());
    let arena = arena(64 * MIB);
    let slot = arena.take(STACK).unwrap();
    *SLOT.lock().unwrap() = Some(arena.take(STACK).unwrap());
    let mut outer = Coroutine::new(&slot, |this| {
        OUTER.store(this, Ordering::Relaxed);
        let slot = SLOT.lock().unwrap().take().unwrap();
        let mut inner = Coroutine::new(&slot, |_| {
            suspend(OUTER.load(Ordering::Relaxed));
            panic_below(50);
            use_the_stack();
        });
        assert!(!inner.resume());
        panic_below(50);
        use_the_stack();
    });
    assert!(outer.resume());
    assert!(!outer.resume());
    drop(outer);
    arena.give(slot);
}

#[test]
fn abandoned_coroutines_leave_nothing_mapped() {
    // Alone in its process, since what others map would count.
    let name = "abandoned_coroutines_leave_nothing_mapped";
    if !is_child(name) {
        return assert_success(&in_child(name));
    }
    let arena = arena(64 * MIB);
    let slot = arena.take(STACK).unwrap();
    let abandon = || {
        let mut coroutine = Coroutine::new(&slot, |this| {
            keeps_a_local(1, &mut || suspend(this));
        });
        assert!(coroutine.resume());
    };
    let mapped = || {
        let sizes = std::fs::read_to_string("/proc/self/statm").unwrap();
        sizes.split(' ').next().unwrap().parse::<usize>().unwrap() * 4096
    };
    abandon();
    let before = mapped();
    (0..100).for_each(|_| abandon());
    let growth = mapped().saturating_sub(before);
    assert!(growth < 100 * STACK, "{growth} bytes more");
    arena.give(slot);
}

#[test]
fn what_a_suspended_coroutine_holds_is_not_lost() {
    // Alive when the process ends, like a thread that nobody joins.
    static ARENA: OnceLock<Arena> = OnceLock::new();
    let slot = ARENA.get_or_init(|| arena(64 * MIB)).take(STACK).unwrap();
    let mut coroutine = Coroutine::new(&slot, |this| {
        let block = black_box(Box::new([7_u8; 100]));
        suspend(this);
        unreachable!("{block:?} was asked for");
    });
    assert!(coroutine.resume());
    std::mem::forget(coroutine);
}

#[test]
fn a_trimmed_stack_reads_as_zero() {
    let arena = arena(64 * MIB);
    let slot = arena.take(STACK).unwrap();
    let mut coroutine = Coroutine::new(&slot, |_| use_the_stack());
    assert!(!coroutine.resume());
    drop(coroutine);
    arena.give(slot);
    assert_eq!(arena.trim(0), 1);
    let mut slot = arena.take(STACK).unwrap();
    assert!(slot.fresh() && memory(&mut slot).iter().all(|byte| *byte == 0));
    arena.give(slot);
}

/// One of several flows that switch to each other by `swap`.
struct Flow<'a> {
    context: Context,
    annotation: Annotation,
    stack: Option<(&'a Arena, Slot)>,
    next: *mut Flow<'a>,
}

/// From one flow to another; a flow without a stack of its own is told by whoever arrives from it.
///
/// # Safety
///
/// The caller runs on `from`, and `to` is suspended.
unsafe fn transfer(from: *mut Flow, to: *mut Flow) {
    // SAFETY: the caller's promises.
    unsafe {
        (*from).annotation.leave(&(*to).annotation);
        let left = swap(&raw mut (*from).context, &raw const (*to).context, None, from as usize);
        (*from).annotation.arrive(Some(&mut (*(left as *mut Flow)).annotation));
    }
}

unsafe extern "C" fn transfers(data: usize, left: usize) -> ! {
    let this = data as *mut Flow;
    // SAFETY: `this` is the flow that runs here; `next` outlives it.
    unsafe {
        (*this).annotation.arrive(Some(&mut (*(left as *mut Flow)).annotation));
        for _ in 0..3 {
            panic_below(20);
            descend(20, &mut || transfer(this, (*this).next));
            use_the_stack();
        }
        let next = (*this).next;
        (*this).annotation.leave(&(*next).annotation);
        swap(&raw mut (*this).context, &raw const (*next).context, Some(free), data);
    }
    unreachable!("resumed after its end");
}

/// The hook of the last switch: frees the stack, and the annotation with it, and says that it was that flow.
unsafe extern "C" fn free(data: usize) -> usize {
    // SAFETY: the flow has left for `next`, on whose stack this is.
    unsafe {
        let this = &mut *(data as *mut Flow);
        (*this.next).annotation.arrive(Some(&mut this.annotation));
        drop(std::mem::replace(&mut this.annotation, Annotation::elsewhere()));
        let (arena, mut slot) = this.stack.take().unwrap();
        memory(&mut slot).fill(0xcc);
        arena.give(slot);
    }
    data
}

#[test]
fn flows_transfer_in_a_ring_and_free_their_own_stacks() {
    let arena = arena(64 * MIB);
    for _ in 0..3 {
        let mut thread = Flow {
            context: Context::empty(),
            annotation: Annotation::elsewhere(),
            stack: None,
            next: std::ptr::null_mut(),
        };
        let thread = &raw mut thread;
        let mut ring = Vec::new();
        for _ in 0..3 {
            let slot = arena.take(STACK).unwrap();
            let annotation = Annotation::of(bounds(&slot));
            let (context, top) = (Context::empty(), slot.top());
            let stack = Some((&arena, slot));
            let flow = Box::new(Flow { context, annotation, stack, next: thread });
            ring.push((Box::into_raw(flow), top));
        }
        // SAFETY: each flow has its stack until its hook frees it, and is resumed as long as it has one.
        unsafe {
            for pair in 0..ring.len() {
                let (flow, top) = ring[pair];
                (*flow).context = Context::new(top, transfers, flow as usize);
                (*flow).next = ring.get(pair + 1).map_or(thread, |(flow, _)| *flow);
            }
            while (*ring[0].0).stack.is_some() {
                panic_below(20);
                transfer(thread, ring[0].0);
                use_the_stack();
            }
            ring.into_iter().for_each(|(flow, _)| drop(Box::from_raw(flow)));
        }
        assert_eq!(arena.stats().live(), 0);
    }
}
