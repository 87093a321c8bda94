//! The switch, on every backend: values, hooks, unwinding, and a context that another thread resumes at once.

mod support;

use sleave_context::backend::{Backend, Entry, Hook};
use sleave_context::stack::{Arena, Slot};
use std::backtrace::Backtrace;
use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use support::backends::{Pair, Tested, bounds, enter, leave};
use support::{arena, in_child, is_child};

const MIB: usize = 1 << 20;

on_every_backend! {
    values_pass_both_ways,
    any_alignment_of_the_top_will_do,
    a_hook_runs_on_the_targets_stack_and_its_result_arrives,
    a_context_may_swap_to_itself,
    a_context_frees_its_own_stack,
    another_thread_resumes_while_the_hook_still_runs,
    a_million_hand_overs_between_threads_corrupt_nothing,
    a_backtrace_ends_at_the_entry,
    a_panic_unwinds_within_its_context,
    a_panic_that_leaves_an_entry_aborts,
    a_panic_that_leaves_a_hook_aborts,
}

unsafe extern "C" fn doubles<B: Backend>(data: usize, mut value: usize) -> ! {
    loop {
        // SAFETY: `data` is the test's pair, which outlives this context.
        value = unsafe { leave(data as *mut Pair<B>, value * 2) };
    }
}

fn values_pass_both_ways<B: Tested>() {
    let arena = arena(64 * MIB);
    let slot = arena.take(16 * 1024).unwrap();
    let mut pair = Pair::<B>::new();
    let pair = &raw mut pair;
    // SAFETY: the stack is this context's own, and both outlive it.
    unsafe {
        B::prepare(&raw mut (*pair).there, bounds(&slot), doubles::<B>, pair as usize);
        for value in 0..10_000 {
            assert_eq!(enter(pair, value), value * 2);
        }
    }
    arena.give(slot);
}

/// How far from a multiple of 16 the stack is that it is called on.
#[inline(never)]
fn misalignment() -> usize {
    #[repr(align(16))]
    struct Aligned(#[allow(dead_code, reason = "only its place matters")] [u8; 16]);
    // Where the compiler believes that the stack is aligned, it does not align this by itself.
    let aligned = std::hint::black_box(Aligned([1; 16]));
    &raw const aligned as usize % 16
}

fn any_alignment_of_the_top_will_do<B: Tested>() {
    unsafe extern "C" fn entry<B: Backend>(data: usize, first: usize) -> ! {
        loop {
            // SAFETY: as in `doubles`.
            unsafe { leave(data as *mut Pair<B>, first + misalignment()) };
        }
    }
    unsafe extern "C" fn hook(_: usize) -> usize {
        misalignment() << 8
    }
    let arena = arena(64 * MIB);
    let slot = arena.take(16 * 1024).unwrap();
    for down in 0..64 {
        let mut pair = Pair::<B>::new();
        let pair = &raw mut pair;
        let mut stack = bounds(&slot);
        stack.top = stack.top.wrapping_sub(down);
        // SAFETY: as above; the last context on this stack is never resumed again.
        unsafe {
            B::prepare(&raw mut (*pair).there, stack, entry::<B>, pair as usize);
            let (here, there) = (&raw mut (*pair).here, &raw const (*pair).there);
            assert_eq!(B::swap(here, there, Some(hook), 0), 0);
        }
    }
    arena.give(slot);
}

/// Writes where it ran to where its argument points. Returns 42.
unsafe extern "C" fn where_am_i(place: usize) -> usize {
    let mark = 0_u8;
    // SAFETY: the tests pass a place of theirs.
    unsafe { (place as *mut usize).write(std::hint::black_box(&raw const mark) as usize) };
    42
}

fn a_hook_runs_on_the_targets_stack_and_its_result_arrives<B: Tested>() {
    unsafe extern "C" fn entry<B: Backend>(data: usize, first: usize) -> ! {
        let pair = data as *mut Pair<B>;
        let mut value = first;
        loop {
            // A hook for the way back: its result is what the test's swap returns.
            // SAFETY: as in `doubles`.
            unsafe {
                let (there, here) = (&raw mut (*pair).there, &raw const (*pair).here);
                value = B::swap(there, here, Some(plus_one), value);
            }
        }
    }
    unsafe extern "C" fn plus_one(value: usize) -> usize {
        value + 1
    }
    let arena = arena(64 * MIB);
    let slot = arena.take(16 * 1024).unwrap();
    let mut pair = Pair::<B>::new();
    let pair = &raw mut pair;
    // SAFETY: as above.
    unsafe {
        B::prepare(&raw mut (*pair).there, bounds(&slot), entry::<B>, pair as usize);
        // The first time, before the entry, and every later time.
        for _ in 0..3 {
            let (here, there) = (&raw mut (*pair).here, &raw const (*pair).there);
            let mut ran_at = 0_usize;
            let value = B::swap(here, there, Some(where_am_i), &raw mut ran_at as usize);
            assert_eq!(value, 43, "through both hooks");
            assert!((slot.base() as usize..slot.top() as usize).contains(&ran_at));
        }
    }
    arena.give(slot);
}

fn a_context_may_swap_to_itself<B: Tested>() {
    let mut own = B::empty();
    let own = &raw mut own;
    for value in 0..3 {
        let mut ran_at = 0_usize;
        // SAFETY: saved before it is read, by the contract.
        unsafe {
            assert_eq!(B::swap(own, own, None, value), value);
            assert_eq!(B::swap(own, own, Some(where_am_i), &raw mut ran_at as usize), 42);
        }
        // (Frames of some KiB lie between: a `ucontext_t` has 4.5 KiB on 64-bit Arm.)
        assert!(ran_at.abs_diff(&raw const ran_at as usize) < 16 << 10, "the hook ran right here");
    }
}

/// A context that carries its own stack, and frees it when it ends.
struct SelfFreeing<'a, B: Backend> {
    arena: &'a Arena,
    slot: Option<Slot>,
    home: B::Context,
    own: B::Context,
}

fn a_context_frees_its_own_stack<B: Tested>() {
    unsafe extern "C" fn entry<B: Backend>(data: usize, first: usize) -> ! {
        let this = data as *mut SelfFreeing<B>;
        let text = format!("{first}"); // something on the stack that a destructor frees
        assert_eq!(text.parse(), Ok(first));
        drop(text);
        // SAFETY: never resumed: the hook frees this stack, while standing on the test's.
        unsafe {
            let (own, home) = (&raw mut (*this).own, &raw const (*this).home);
            B::swap(own, home, Some(free_stack::<B>), data);
        }
        unreachable!("resumed after its end");
    }
    unsafe extern "C" fn free_stack<B: Backend>(data: usize) -> usize {
        // SAFETY: the test's own structure, which nobody else uses now.
        let this = unsafe { &mut *(data as *mut SelfFreeing<B>) };
        let slot = this.slot.take().unwrap();
        // To prove that nobody stands on it any more.
        let usable = slot.size() - slot.guard_len();
        // SAFETY: all of the slot above the guard.
        unsafe { slot.base().add(slot.guard_len()).write_bytes(0xcc, usable) };
        let index = slot.index();
        this.arena.give(slot);
        index as usize
    }
    let arena = arena(64 * MIB);
    let mut seen = None;
    for round in 0..20_000 {
        let slot = arena.take(16 * 1024).unwrap();
        let index = slot.index() as usize;
        assert_eq!(*seen.get_or_insert(index), index, "the same warm stack each time");
        let stack = bounds(&slot);
        let (home, own) = (B::empty(), B::empty());
        let mut this = SelfFreeing::<B> { arena: &arena, slot: Some(slot), home, own };
        let this = &raw mut this;
        // SAFETY: the stack is the context's own until its hook gives it back.
        unsafe {
            B::prepare(&raw mut (*this).own, stack, entry::<B>, this as usize);
            let (home, own) = (&raw mut (*this).home, &raw const (*this).own);
            assert_eq!(B::swap(home, own, None, round), index);
        }
        assert_eq!(arena.stats().live(), 0);
    }
}

/// A context that wanders between threads, by way of a mailbox.
struct Wanderer<B: Backend> {
    own: B::Context,
    /// Where a suspended wanderer lies, for any thread to take.
    mailbox: *const AtomicPtr<Wanderer<B>>,
    /// How often it has been resumed.
    steps: AtomicUsize,
    /// Resumptions to go.
    total: usize,
    /// The hook waits until somebody has resumed the wanderer. (Or does not, and races.)
    handshake: bool,
}

/// A wanderer is started with, and handed on every resumption, the context of the thread that runs it.
unsafe extern "C" fn wander<B: Backend>(data: usize, mut home: usize) -> ! {
    let this = data as *mut Wanderer<B>;
    let context = |address| address as *const B::Context;
    // Kept in registers and on the stack, to be corrupted if ever two threads ran here.
    let mut sum = 0_usize;
    let mut xor = data;
    for step in 0.. {
        sum = sum.wrapping_add(step);
        xor = xor.rotate_left(7) ^ step;
        // SAFETY: only the thread that runs the wanderer is here; `steps` is shared and atomic.
        let (steps, total) = unsafe { (&(*this).steps, (*this).total) };
        // Release: pairs with the acquire in `publish`, which waits for this very step.
        let before = steps.fetch_add(1, Ordering::Release);
        assert_eq!(before, step, "resumed twice");
        if step == total {
            break;
        }
        // SAFETY: `home` is the context of the thread we are on, which waits in its swap to us.
        home = unsafe { B::swap(&raw mut (*this).own, context(home), Some(publish::<B>), data) };
    }
    let mut check = data;
    (0..=sum_end(sum)).for_each(|step| check = check.rotate_left(7) ^ step);
    assert_eq!(check, xor);
    // SAFETY: as above; never published, so never resumed.
    unsafe { B::swap(&raw mut (*this).own, context(home), None, 1) };
    unreachable!("resumed after its end");
}

/// The `n` of which `sum` is 0 + 1 + … + n.
fn sum_end(sum: usize) -> usize {
    let n = ((((8 * sum + 1) as f64).sqrt() - 1.0) / 2.0).round() as usize;
    assert_eq!(n * (n + 1) / 2, sum);
    n
}

/// The hook: now, and not before, another thread may resume the wanderer; it does so while we are here.
unsafe extern "C" fn publish<B: Backend>(data: usize) -> usize {
    let this = data as *const Wanderer<B>;
    // SAFETY: the wanderer lives until its last step, which cannot come before it is published.
    let (mailbox, steps, handshake) =
        unsafe { (&*(*this).mailbox, &(*this).steps, (*this).handshake) };
    let before = steps.load(Ordering::Acquire);
    // Release: the registers saved by the swap are seen by whoever takes the wanderer (acquire).
    mailbox.store(data as *mut Wanderer<B>, Ordering::Release);
    while handshake && steps.load(Ordering::Acquire) == before {
        std::thread::yield_now();
    }
    0
}

fn wander_between_threads<B: Backend>(total: usize, handshake: bool, threads: usize) {
    let arena = arena(64 * MIB);
    let slot = arena.take(16 * 1024).unwrap();
    let mailbox = AtomicPtr::new(null_mut());
    let mut wanderer = Wanderer::<B> {
        own: B::empty(),
        mailbox: &raw const mailbox,
        steps: AtomicUsize::new(0),
        total,
        handshake,
    };
    let this = &raw mut wanderer;
    // SAFETY: stack, mailbox and wanderer outlive the scope below.
    unsafe { B::prepare(&raw mut (*this).own, bounds(&slot), wander::<B>, this as usize) };
    mailbox.store(this, Ordering::Release);
    let ended = AtomicUsize::new(0);
    let runs = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut home = B::empty();
                let home = &raw mut home;
                let mut count = 0_usize;
                while ended.load(Ordering::Acquire) == 0 {
                    // Acquire: pairs with the release in `publish`.
                    let taken = mailbox.swap(null_mut(), Ordering::Acquire);
                    if taken.is_null() {
                        std::thread::yield_now();
                        continue;
                    }
                    count += 1;
                    // SAFETY: taken out of the mailbox, hence suspended and ours alone.
                    let end =
                        unsafe { B::swap(home, &raw const (*taken).own, None, home as usize) };
                    // Or, so that a thread coming out of its hook late cannot take the end back.
                    ended.fetch_or(end, Ordering::Release);
                }
                runs.lock().unwrap().push(count);
            });
        }
    });
    let runs = runs.into_inner().unwrap();
    println!("{total} switches, resumed by each thread: {runs:?}");
    assert_eq!(runs.iter().sum::<usize>(), total + 1);
    if handshake {
        // Each resumption was made by another thread than the one still in the hook.
        let most = *runs.iter().max().unwrap();
        assert!(most <= total.div_ceil(2) + 1, "{runs:?}");
    }
    arena.give(slot);
}

fn another_thread_resumes_while_the_hook_still_runs<B: Tested>() {
    wander_between_threads::<B>(1_000_000, true, 2);
}

fn a_million_hand_overs_between_threads_corrupt_nothing<B: Tested>() {
    wander_between_threads::<B>(1_000_000, false, 3);
}

/// A pair, and the backtraces that its context leaves.
#[repr(C)]
struct Traced<B: Backend> {
    pair: Pair<B>,
    traces: Vec<String>,
}

#[inline(never)]
fn leaf_of_the_context(traces: &mut Vec<String>) {
    traces.push(Backtrace::force_capture().to_string());
}

unsafe extern "C" fn entry_of_the_context<B: Backend>(data: usize, _first: usize) -> ! {
    let traced = data as *mut Traced<B>;
    loop {
        // SAFETY: as in `doubles`; the test is suspended while this context runs.
        unsafe {
            leaf_of_the_context(&mut (*traced).traces);
            leave(&raw mut (*traced).pair, 0);
        }
    }
}

unsafe extern "C" fn hook_of_the_context<B: Backend>(data: usize) -> usize {
    // SAFETY: as in the entry.
    leaf_of_the_context(unsafe { &mut (*(data as *mut Traced<B>)).traces });
    0
}

#[inline(never)]
fn who_switches_to_the_context<B: Backend>(traced: *mut Traced<B>) {
    // SAFETY: the test's pair, its context suspended; the hook only takes a backtrace.
    unsafe {
        let (here, there) = (&raw mut (*traced).pair.here, &raw const (*traced).pair.there);
        B::swap(here, there, Some(hook_of_the_context::<B>), traced as usize);
    }
}

fn a_backtrace_ends_at_the_entry<B: Tested>() {
    let arena = arena(64 * MIB);
    let slot = arena.take(MIB).unwrap();
    let mut traced = Traced { pair: Pair::<B>::new(), traces: Vec::new() };
    let this = &raw mut traced;
    let (entry, data) = (entry_of_the_context::<B>, this as usize);
    // Above the stack, what a walker that does not stop would take for return addresses.
    let (mut stack, outside) = (bounds(&slot), who_switches_to_the_context::<B>);
    stack.top = stack.top.wrapping_sub(size_of::<[usize; 8]>());
    // SAFETY: as above; the uppermost words of the slot are left to the test.
    unsafe {
        stack.top.cast::<[usize; 8]>().write([outside as *const () as usize + 1; 8]);
        B::prepare(&raw mut (*this).pair.there, stack, entry, data);
    }
    who_switches_to_the_context(this); // for the first time: the hook runs before the entry
    who_switches_to_the_context(this); // and again: the hook runs in the entry's last swap
    let outermost = [
        "hook_of_the_context",
        "entry_of_the_context",
        "entry_of_the_context",
        "entry_of_the_context",
    ];
    assert_eq!(traced.traces.len(), outermost.len());
    for (trace, outermost) in traced.traces.iter().zip(outermost) {
        // Lines with a number name a function; the others say where it is.
        let numbered = |line: &&str| line.trim().starts_with(|c: char| c.is_ascii_digit());
        let frames: Vec<_> = trace.lines().filter(numbered).collect();
        let place = |name| frames.iter().position(|frame| frame.contains(name));
        let last = place(outermost).unwrap_or_else(|| panic!("no {outermost} in {frames:#?}"));
        assert!(place("leaf_of_the_context").is_some_and(|leaf| leaf < last), "{frames:#?}");
        let beyond = frames.len() - last - 1;
        assert!(beyond <= B::FIRST_FRAMES, "beyond the first frame: {frames:#?}");
        assert_eq!(place("who_switches_to_the_context"), None, "{frames:#?}");
    }
    arena.give(slot);
}

fn a_panic_unwinds_within_its_context<B: Tested>() {
    struct Counts<B: Backend>(*mut Pair<B>);
    impl<B: Backend> Drop for Counts<B> {
        fn drop(&mut self) {
            // SAFETY: the test's pair.
            unsafe { (*self.0).data += 1 };
        }
    }
    unsafe extern "C" fn entry<B: Backend>(data: usize, first: usize) -> ! {
        let pair = data as *mut Pair<B>;
        let mut value = first;
        loop {
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let _counts = Counts(pair);
                // A switch in the frame that is unwound through, so that its tables are put to use.
                // SAFETY: as in `doubles`.
                let value = unsafe { leave(pair, value) };
                // As a panic, without its message.
                std::panic::resume_unwind(Box::new(value));
            }));
            value = *result.unwrap_err().downcast::<usize>().unwrap() + 1;
        }
    }
    let arena = arena(64 * MIB);
    let slot = arena.take(256 * 1024).unwrap();
    let mut pair = Pair::<B>::new();
    let pair = &raw mut pair;
    // SAFETY: as above.
    unsafe {
        B::prepare(&raw mut (*pair).there, bounds(&slot), entry::<B>, pair as usize);
        assert_eq!(enter(pair, 7), 7);
        for round in 0..50 {
            assert_eq!(enter(pair, round), round + 1);
            assert_eq!((*pair).data, round + 1, "destructors ran");
        }
    }
    arena.give(slot);
}

/// In a child process: what panics on a context's stack, and nowhere catches it, ends the process.
fn aborts<B: Tested>(name: &str, entry: Entry, hook: Option<Hook>) {
    let name = format!("{}::{name}", B::MODULE);
    if !is_child(&name) {
        let output = in_child(&name);
        return assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    }
    let arena = arena(64 * MIB);
    let slot = arena.take(256 * 1024).unwrap();
    let mut pair = Pair::<B>::new();
    let pair = &raw mut pair;
    // SAFETY: as above.
    unsafe {
        B::prepare(&raw mut (*pair).there, bounds(&slot), entry, pair as usize);
        B::swap(&raw mut (*pair).here, &raw const (*pair).there, hook, 0);
    }
}

fn a_panic_that_leaves_an_entry_aborts<B: Tested>() {
    unsafe extern "C" fn panics(_data: usize, _first: usize) -> ! {
        panic!("in an entry");
    }
    aborts::<B>("a_panic_that_leaves_an_entry_aborts", panics, None);
}

fn a_panic_that_leaves_a_hook_aborts<B: Tested>() {
    unsafe extern "C" fn panics(_: usize) -> usize {
        panic!("in a hook");
    }
    aborts::<B>("a_panic_that_leaves_a_hook_aborts", doubles::<B>, Some(panics));
}
