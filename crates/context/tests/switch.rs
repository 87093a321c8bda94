//! The switch: values, hooks, unwinding, and a context that another thread resumes at once.

mod support;

use sleave_context::stack::{Arena, Slot};
use sleave_context::{Context, FpControl, swap};
use std::backtrace::Backtrace;
use std::ptr::{addr_of_mut, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use support::arena;

const MIB: usize = 1 << 20;

/// Two contexts that switch to each other, and a word for the test's use.
struct Pair {
    here: Context,
    there: Context,
    data: usize,
}

impl Pair {
    fn new() -> Pair {
        Pair { here: Context::empty(), there: Context::empty(), data: 0 }
    }
}

/// From the test to the context under test.
///
/// # Safety
///
/// As for `swap`.
unsafe fn enter(pair: *mut Pair, value: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { swap(addr_of_mut!((*pair).here), addr_of_mut!((*pair).there), None, value) }
}

/// From the context under test back to the test.
///
/// # Safety
///
/// As for `swap`.
unsafe fn leave(pair: *mut Pair, value: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { swap(addr_of_mut!((*pair).there), addr_of_mut!((*pair).here), None, value) }
}

unsafe extern "C" fn doubles(data: usize, mut value: usize) -> ! {
    loop {
        // SAFETY: `data` is the test's pair, which outlives this context.
        value = unsafe { leave(data as *mut Pair, value * 2) };
    }
}

#[test]
fn values_pass_both_ways() {
    let arena = arena(64 * MIB);
    let slot = arena.take(16 * 1024).unwrap();
    let mut pair = Pair::new();
    let pair = &raw mut pair;
    // SAFETY: the stack is this context's own, and both outlive it.
    unsafe {
        (*pair).there = Context::new(slot.top(), doubles, pair as usize);
        for value in 0..10_000 {
            assert_eq!(enter(pair, value), value * 2);
        }
    }
    arena.give(slot);
}

#[test]
fn any_alignment_of_the_top_will_do() {
    unsafe extern "C" fn entry(data: usize, _first: usize) -> ! {
        let aligned = std::hint::black_box(Aligned([1; 16]));
        let misaligned = &raw const aligned as usize % 16;
        loop {
            // SAFETY: as in `doubles`.
            unsafe { leave(data as *mut Pair, misaligned) };
        }
    }
    #[repr(align(16))]
    struct Aligned(#[allow(dead_code, reason = "only its place matters")] [u8; 16]);

    let arena = arena(64 * MIB);
    let slot = arena.take(16 * 1024).unwrap();
    for down in 0..64 {
        let mut pair = Pair::new();
        let pair = &raw mut pair;
        // SAFETY: as above; the last context on this stack is never resumed again.
        unsafe {
            (*pair).there = Context::new(slot.top().sub(down), entry, pair as usize);
            assert_eq!((*pair).there.stack_pointer() % 16, 0);
            assert_eq!(enter(pair, 0), 0);
        }
    }
    arena.give(slot);
}

/// Returns where it ran, leaving its argument in `data`.
unsafe extern "C" fn where_am_i(pair: usize) -> usize {
    let mark = 0_u8;
    // SAFETY: the test passes its pair.
    unsafe { (*(pair as *mut Pair)).data += 1 };
    std::hint::black_box(&raw const mark) as usize
}

#[test]
fn a_hook_runs_on_the_targets_stack_and_its_result_arrives() {
    unsafe extern "C" fn entry(data: usize, first: usize) -> ! {
        let pair = data as *mut Pair;
        let mut value = first;
        loop {
            // Hands on where the hook that came with the switch here ran, with a hook for the way back.
            // SAFETY: as in `doubles`.
            unsafe {
                (*pair).data = value;
                let (there, here) = (addr_of_mut!((*pair).there), addr_of_mut!((*pair).here));
                value = swap(there, here, Some(plus_one), 41);
            }
        }
    }
    unsafe extern "C" fn plus_one(value: usize) -> usize {
        value + 1
    }
    let arena = arena(64 * MIB);
    let slot = arena.take(16 * 1024).unwrap();
    let mut pair = Pair::new();
    let pair = &raw mut pair;
    // SAFETY: as above.
    unsafe {
        (*pair).there = Context::new(slot.top(), entry, pair as usize);
        // The first time, before the entry, and every later time.
        for _ in 0..3 {
            let (here, there) = (addr_of_mut!((*pair).here), addr_of_mut!((*pair).there));
            assert_eq!(swap(here, there, Some(where_am_i), pair as usize), 42);
            let ran_at = (*pair).data;
            assert!((slot.base() as usize..slot.top() as usize).contains(&ran_at));
        }
    }
    arena.give(slot);
}

#[test]
fn a_context_may_swap_to_itself() {
    let mut pair = Pair::new();
    let pair = &raw mut pair;
    // SAFETY: saved before it is read, by the contract.
    unsafe {
        let own = addr_of_mut!((*pair).here);
        assert_eq!(swap(own, own, None, 5), 5);
        let at = swap(own, own, Some(where_am_i), pair as usize);
        let near = &raw const at as usize;
        assert!(at.abs_diff(near) < 4096, "the hook ran right here");
        assert_eq!((*pair).data, 1);
    }
}

/// A context that carries its own stack, and frees it when it ends.
struct SelfFreeing<'a> {
    arena: &'a Arena,
    slot: Option<Slot>,
    home: Context,
    own: Context,
}

#[test]
fn a_context_frees_its_own_stack() {
    unsafe extern "C" fn entry(data: usize, first: usize) -> ! {
        let this = data as *mut SelfFreeing;
        let text = format!("{first}"); // something on the stack that a destructor frees
        assert_eq!(text.parse(), Ok(first));
        drop(text);
        // SAFETY: never resumed: the hook frees this stack, while standing on the test's.
        unsafe {
            let (own, home) = (addr_of_mut!((*this).own), addr_of_mut!((*this).home));
            swap(own, home, Some(free_stack), data);
        }
        unreachable!("resumed after its end");
    }
    unsafe extern "C" fn free_stack(data: usize) -> usize {
        // SAFETY: the test's own structure, which nobody else uses now.
        let this = unsafe { &mut *(data as *mut SelfFreeing) };
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
        let top = slot.top();
        let (home, own) = (Context::empty(), Context::empty());
        let mut this = SelfFreeing { arena: &arena, slot: Some(slot), home, own };
        let this = &raw mut this;
        // SAFETY: the stack is the context's own until its hook gives it back.
        unsafe {
            (*this).own = Context::new(top, entry, this as usize);
            let (home, own) = (addr_of_mut!((*this).home), addr_of_mut!((*this).own));
            assert_eq!(swap(home, own, None, round), index);
        }
        assert_eq!(arena.stats().live(), 0);
    }
}

/// A context that wanders between threads, by way of a mailbox.
struct Wanderer {
    own: Context,
    /// Where a suspended wanderer lies, for any thread to take.
    mailbox: *const AtomicPtr<Wanderer>,
    /// How often it has been resumed.
    steps: AtomicUsize,
    /// Resumptions to go.
    total: usize,
    /// The hook waits until somebody has resumed the wanderer. (Or does not, and races.)
    handshake: bool,
}

/// A wanderer is started with, and handed on every resumption, the context of the thread that runs it.
unsafe extern "C" fn wander(data: usize, mut home: usize) -> ! {
    let this = data as *mut Wanderer;
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
        home =
            unsafe { swap(addr_of_mut!((*this).own), home as *const Context, Some(publish), data) };
    }
    let mut check = data;
    (0..=sum_end(sum)).for_each(|step| check = check.rotate_left(7) ^ step);
    assert_eq!(check, xor);
    // SAFETY: as above; never published, so never resumed.
    unsafe { swap(addr_of_mut!((*this).own), home as *const Context, None, 1) };
    unreachable!("resumed after its end");
}

/// The `n` of which `sum` is 0 + 1 + … + n.
fn sum_end(sum: usize) -> usize {
    let n = ((((8 * sum + 1) as f64).sqrt() - 1.0) / 2.0).round() as usize;
    assert_eq!(n * (n + 1) / 2, sum);
    n
}

/// The hook: now, and not before, another thread may resume the wanderer; it does so while we are here.
unsafe extern "C" fn publish(data: usize) -> usize {
    let this = data as *const Wanderer;
    // SAFETY: the wanderer lives until its last step, which cannot come before it is published.
    let (mailbox, steps, handshake) =
        unsafe { (&*(*this).mailbox, &(*this).steps, (*this).handshake) };
    let before = steps.load(Ordering::Acquire);
    // Release: the registers saved by the swap are seen by whoever takes the wanderer (acquire).
    mailbox.store(data as *mut Wanderer, Ordering::Release);
    while handshake && steps.load(Ordering::Acquire) == before {
        std::thread::yield_now();
    }
    0
}

fn wander_between_threads(total: usize, handshake: bool, threads: usize) {
    let arena = arena(64 * MIB);
    let slot = arena.take(16 * 1024).unwrap();
    let mailbox = AtomicPtr::new(null_mut());
    let mut wanderer = Wanderer {
        own: Context::empty(),
        mailbox: &raw const mailbox,
        steps: AtomicUsize::new(0),
        total,
        handshake,
    };
    let this = &raw mut wanderer;
    // SAFETY: stack, mailbox and wanderer outlive the scope below.
    unsafe { (*this).own = Context::new(slot.top(), wander, this as usize) };
    mailbox.store(this, Ordering::Release);
    let ended = AtomicUsize::new(0);
    let runs = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut home = Context::empty();
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
                        unsafe { swap(home, addr_of_mut!((*taken).own), None, home as usize) };
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

#[test]
fn another_thread_resumes_while_the_hook_still_runs() {
    wander_between_threads(1_000_000, true, 2);
}

#[test]
fn a_million_hand_overs_between_threads_corrupt_nothing() {
    wander_between_threads(1_000_000, false, 3);
}

#[test]
fn floating_point_control_is_kept_where_it_is_asked_for() {
    const TOWARDS_ZERO: u32 = 3 << 13;
    unsafe extern "C" fn changes_it(data: usize, _first: usize) -> ! {
        set_mxcsr(mxcsr() | TOWARDS_ZERO);
        set_x87(0x0c7f);
        loop {
            let mine = FpControl::save();
            // SAFETY: as in `doubles`.
            unsafe { leave(data as *mut Pair, mxcsr() as usize) };
            mine.restore();
        }
    }
    let before = FpControl::save();
    let arena = arena(64 * MIB);
    let slot = arena.take(16 * 1024).unwrap();
    let mut pair = Pair::new();
    let pair = &raw mut pair;
    // SAFETY: as above.
    unsafe {
        (*pair).there = Context::new(slot.top(), changes_it, pair as usize);
        for _ in 0..3 {
            let theirs = enter(pair, 0) as u32;
            assert_eq!(theirs & TOWARDS_ZERO, TOWARDS_ZERO, "theirs survived our restore");
            assert_eq!(mxcsr(), theirs, "the switch alone keeps nothing");
            assert_eq!(x87(), 0x0c7f);
            before.restore();
            assert_eq!((mxcsr() & TOWARDS_ZERO, x87()), (0, 0x037f));
        }
    }
    // Restoring what is in force, and loading, leave it in force.
    before.restore();
    assert_eq!(FpControl::save(), before);
    FpControl::DEFAULT.load();
    assert_eq!(FpControl::save(), FpControl::DEFAULT);
    before.load();
    assert_eq!(FpControl::save(), before);
    arena.give(slot);
}

fn mxcsr() -> u32 {
    let mut value = 0_u32;
    // SAFETY: stores four bytes.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack)) };
    value
}

fn set_mxcsr(value: u32) {
    // SAFETY: a value read from MXCSR, other bits of its rounding mode.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack)) };
}

fn x87() -> u16 {
    let mut value = 0_u16;
    // SAFETY: stores two bytes.
    unsafe { std::arch::asm!("fnstcw word ptr [{}]", in(reg) &raw mut value, options(nostack)) };
    value
}

fn set_x87(value: u16) {
    // SAFETY: any control word may be loaded.
    unsafe { std::arch::asm!("fldcw word ptr [{}]", in(reg) &raw const value, options(nostack)) };
}

/// Where contexts leave their backtraces.
static TRACES: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[inline(never)]
fn leaf_of_the_context() {
    TRACES.lock().unwrap().push(Backtrace::force_capture().to_string());
}

unsafe extern "C" fn entry_of_the_context(data: usize, _first: usize) -> ! {
    loop {
        leaf_of_the_context();
        // SAFETY: as in `doubles`.
        unsafe { leave(data as *mut Pair, 0) };
    }
}

unsafe extern "C" fn hook_of_the_context(_: usize) -> usize {
    leaf_of_the_context();
    0
}

#[inline(never)]
fn who_switches_to_the_context(pair: *mut Pair) {
    // SAFETY: the test's pair, its context suspended; the hook only takes a backtrace.
    unsafe {
        let (here, there) = (addr_of_mut!((*pair).here), addr_of_mut!((*pair).there));
        swap(here, there, Some(hook_of_the_context), 0);
    }
}

#[test]
fn a_backtrace_ends_at_the_entry() {
    let arena = arena(64 * MIB);
    let slot = arena.take(MIB).unwrap();
    let mut pair = Pair::new();
    let pair = &raw mut pair;
    // SAFETY: as above.
    unsafe { (*pair).there = Context::new(slot.top(), entry_of_the_context, pair as usize) };
    who_switches_to_the_context(pair); // for the first time: the hook runs before the entry
    who_switches_to_the_context(pair); // and again: the hook runs in the entry's last swap
    let traces = TRACES.lock().unwrap();
    let outermost = [
        "hook_of_the_context",
        "entry_of_the_context",
        "entry_of_the_context",
        "entry_of_the_context",
    ];
    assert_eq!(traces.len(), outermost.len());
    for (trace, outermost) in traces.iter().zip(outermost) {
        // Lines with a number name a function; the others say where it is.
        let numbered = |line: &&str| line.trim().starts_with(|c: char| c.is_ascii_digit());
        let frames: Vec<_> = trace.lines().filter(numbered).collect();
        let place = |name| frames.iter().position(|frame| frame.contains(name));
        let last = place(outermost).unwrap_or_else(|| panic!("no {outermost} in {frames:#?}"));
        assert!(place("leaf_of_the_context").is_some_and(|leaf| leaf < last), "{frames:#?}");
        assert!(frames.len() - last <= 2, "beyond the first frame: {frames:#?}");
        assert_eq!(place("who_switches_to_the_context"), None, "{frames:#?}");
    }
    drop(traces);
    arena.give(slot);
}

#[test]
fn a_panic_unwinds_within_its_context() {
    struct Counts(*mut Pair);
    impl Drop for Counts {
        fn drop(&mut self) {
            // SAFETY: the test's pair.
            unsafe { (*self.0).data += 1 };
        }
    }
    unsafe extern "C" fn entry(data: usize, first: usize) -> ! {
        let pair = data as *mut Pair;
        let mut value = first;
        loop {
            let result = std::panic::catch_unwind(|| {
                let _counts = Counts(pair);
                // A switch in the frame that is unwound through, so that its tables are put to use.
                // SAFETY: as in `doubles`.
                let value = unsafe { leave(pair, value) };
                // As a panic, without its message.
                std::panic::resume_unwind(Box::new(value));
            });
            value = *result.unwrap_err().downcast::<usize>().unwrap() + 1;
        }
    }
    let arena = arena(64 * MIB);
    let slot = arena.take(256 * 1024).unwrap();
    let mut pair = Pair::new();
    let pair = &raw mut pair;
    // SAFETY: as above.
    unsafe {
        (*pair).there = Context::new(slot.top(), entry, pair as usize);
        assert_eq!(enter(pair, 7), 7);
        for round in 0..50 {
            assert_eq!(enter(pair, round), round + 1);
            assert_eq!((*pair).data, round + 1, "destructors ran");
        }
    }
    arena.give(slot);
}
