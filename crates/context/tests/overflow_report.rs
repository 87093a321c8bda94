//! A stack that is too small ends the process with a report; every other fault takes its usual course.
//!
//! A process that ends cannot check anything, so each test runs itself as a child and reads what became of it.

mod support;

use sleave_context::Coroutine;
use sleave_context::backend::{Backend, Bounds, Native};
use sleave_context::overflow::{self, Describer, Line};
use sleave_context::stack::{
    Arena, GuardMethod, Location, Mapped, Named, Options, Slab, Stack, locate,
};
use std::fmt::Write;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::ptr::null_mut;
use support::{in_child, is_child};

const KIB: usize = 1 << 10;

/// The child's exit status when it was a handler of the program's own that ended it.
const BY_HANDLER: i32 = 42;

/// Never returns: a frame of its own for every call, none of which the compiler may drop.
#[expect(unconditional_recursion, reason = "what this file is about")]
#[inline(never)]
fn dive(depth: usize) -> usize {
    let frame = black_box([depth; 40]);
    dive(depth + 1) + black_box(&frame)[depth % 40]
}

/// A pointer that nothing good comes of.
fn touch_wild_pointer() -> usize {
    let wild = std::ptr::without_provenance_mut::<u8>(black_box(64));
    // SAFETY: none, on purpose: the first page is never mapped (mmap_min_addr), so this faults, in a child
    // that exists only to die of it.
    unsafe { wild.write_volatile(1) };
    0
}

/// Switches to the stack, to do there what does not end well.
fn on(stack: &dyn Stack, deed: fn() -> usize) {
    unsafe extern "C" fn entry(data: usize, _first: usize) -> ! {
        // SAFETY: `data` is the function below.
        let deed = unsafe { std::mem::transmute::<usize, fn() -> usize>(data) };
        unreachable!("the deed came back with {}", deed());
    }
    let top = stack.top().as_ptr().wrapping_sub(stack.shift());
    let bounds = Bounds { limit: stack.limit().as_ptr(), top };
    let (mut here, mut there) = (Native::empty(), Native::empty());
    // SAFETY: the stack is the context's own; nobody comes back.
    unsafe {
        Native::prepare(&raw mut there, bounds, entry, deed as *const () as usize);
        Native::swap(&raw mut here, &raw const there, None, 0);
    }
}

/// A deed of [`on`]: runs off the stack.
fn overflow_here() -> usize {
    dive(0)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// In the child: does what ends it. In the parent: expects a report of exactly these words, and SIGABRT.
fn expect_report(test: &str, who: &str, size: &str, deed: impl FnOnce()) {
    if is_child(test) {
        overflow::install();
        let _alternate = overflow::prepare_thread().unwrap();
        return deed();
    }
    check_report(&in_child(test), who, size);
}

fn check_report(output: &Output, who: &str, size: &str) {
    let said = said(output);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {said}", output.status);
    let expected = format!("\n{who} has overflowed its stack of {size}\nhelp: ");
    assert!(said.contains(&expected), "{said}");
}

/// As above; expects this signal, and that nobody calls it an overflow.
fn expect_signal(test: &str, signal: i32, deed: impl FnOnce()) {
    if is_child(test) {
        return deed();
    }
    let output = in_child(test);
    let said = said(&output);
    assert_eq!(output.status.signal(), Some(signal), "{}: {said}", output.status);
    assert!(!said.contains("overflow"), "{said}");
}

/// As above; expects that a handler of the program's own has the last word.
fn expect_handler(test: &str, deed: impl FnOnce()) {
    if is_child(test) {
        return deed();
    }
    let output = in_child(test);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(BY_HANDLER), "{}: {said}", output.status);
    assert!(!said.contains("overflow"), "{said}");
}

/// What happens on a signal. sigaction(2).
fn action(signal: i32) -> usize {
    // SAFETY: only asks, into a structure of our own.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        assert_eq!(libc::sigaction(signal, std::ptr::null(), &mut now), 0);
        now.sa_sigaction
    }
}

/// Sets what happens on a signal. sigaction(2).
fn set_action(signal: i32, action: usize, flags: i32) {
    // SAFETY: an all-zero sigaction is a valid one; the handlers of this file are async-signal-safe.
    unsafe {
        let mut new: libc::sigaction = std::mem::zeroed();
        (new.sa_sigaction, new.sa_flags) = (action, flags);
        assert_eq!(libc::sigaction(signal, &new, null_mut()), 0);
    }
}

/// The calling thread's alternate signal stack. sigaltstack(2).
fn alternate_stack() -> (usize, usize, i32) {
    // SAFETY: only asks, into a structure of our own.
    unsafe {
        let mut now: libc::stack_t = std::mem::zeroed();
        assert_eq!(libc::sigaltstack(std::ptr::null(), &mut now), 0);
        (now.ss_sp as usize, now.ss_size, now.ss_flags)
    }
}

/// What the kernel needs of a signal stack to save registers, if it says so (Linux 5.14).
fn registers() -> usize {
    // SAFETY: getauxval(3) only asks.
    unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) as usize }
}

#[test]
fn an_overflow_of_a_slab_says_whose_stack_it_was_and_aborts() {
    let test = "an_overflow_of_a_slab_says_whose_stack_it_was_and_aborts";
    expect_report(test, "coroutine 'deep diver'", "64 KiB", || {
        // Neighbours on both sides, which are not to blame.
        let before = Named::new(Slab::new(64 * KIB).unwrap(), "before").unwrap();
        let stack = Named::new(Slab::new(64 * KIB).unwrap(), "deep diver").unwrap();
        let after = Named::new(Slab::new(64 * KIB).unwrap(), "after").unwrap();
        on(&stack, overflow_here);
        drop((before, after));
    });
}

#[test]
fn an_overflow_of_a_mapped_stack_says_whose_stack_it_was_and_aborts() {
    let test = "an_overflow_of_a_mapped_stack_says_whose_stack_it_was_and_aborts";
    expect_report(test, "coroutine 'mapped'", "100 KiB", || {
        let stacks = [(); 3].map(|()| Mapped::new(100 * KIB).unwrap());
        let [_before, stack, _after] = stacks;
        on(&Named::new(stack, "mapped").unwrap(), overflow_here);
    });
}

#[test]
fn an_overflow_of_a_stack_of_a_borrowed_arena_is_reported() {
    let test = "an_overflow_of_a_stack_of_a_borrowed_arena_is_reported";
    expect_report(test, "coroutine '<unnamed>'", "1024 KiB", || {
        let options = Options { reserve: Some(256 << 20), guard: GuardMethod::Mprotect };
        let arena = Arena::with_options(options).unwrap();
        on(&Slab::from_arena(&arena, 1 << 20).unwrap(), overflow_here);
    });
}

#[test]
fn a_coroutine_is_reported_by_the_name_of_its_stack() {
    let test = "a_coroutine_is_reported_by_the_name_of_its_stack";
    expect_report(test, "coroutine 'parser'", "256 KiB", || {
        let stack = Named::new(Slab::default(), "parser").unwrap();
        Coroutine::<(), (), usize, _>::with_stack(stack, |_, ()| dive(0)).resume(());
    });
}

#[test]
fn a_name_ends_with_its_stack() {
    let test = "a_name_ends_with_its_stack";
    expect_report(test, "coroutine '<unnamed>'", "16 KiB", || {
        let first = Named::new(Slab::new(16 * KIB).unwrap(), "first").unwrap();
        let limit = first.limit();
        drop(first);
        let again = Slab::new(16 * KIB).unwrap();
        assert_eq!(again.limit(), limit, "the warm stack goes out first");
        on(&again, overflow_here);
    });
}

#[test]
fn an_overflow_is_found_among_thousands_of_stacks() {
    let test = "an_overflow_is_found_among_thousands_of_stacks";
    expect_report(test, "coroutine 'number 2999'", "20 KiB", || {
        let named = |i| Named::new(Mapped::new(20 * KIB).unwrap(), &format!("number {i}")).unwrap();
        let stacks: Vec<_> = (0..3000).map(named).collect();
        on(&stacks[2999], overflow_here);
    });
}

/// A thread as C programs make them: without an alternate stack, as std knows nothing about it.
fn on_foreign_thread(body: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void) {
    // SAFETY: pthread_create(3) and pthread_join(3) with a function that needs no argument.
    unsafe {
        let mut thread = 0;
        assert_eq!(libc::pthread_create(&mut thread, std::ptr::null(), body, null_mut()), 0);
        libc::pthread_join(thread, null_mut());
    }
}

extern "C" fn overflow_prepared(_: *mut libc::c_void) -> *mut libc::c_void {
    assert_ne!(alternate_stack().2 & libc::SS_DISABLE, 0, "none so far");
    let _alternate = overflow::prepare_thread().unwrap();
    on(&Slab::new(64 * KIB).unwrap(), overflow_here);
    null_mut()
}

#[test]
fn a_thread_made_later_reports_too() {
    let test = "a_thread_made_later_reports_too";
    expect_report(test, "coroutine '<unnamed>'", "64 KiB", || {
        on_foreign_thread(overflow_prepared);
    });
}

#[test]
fn the_alternate_stack_of_a_std_thread_is_enough_for_a_report() {
    let test = "the_alternate_stack_of_a_std_thread_is_enough_for_a_report";
    expect_report(test, "coroutine '<unnamed>'", "64 KiB", || {
        let unprepared = std::thread::spawn(|| {
            assert!(alternate_stack().1 < 64 * KIB + registers(), "not ours");
            on(&Slab::new(64 * KIB).unwrap(), overflow_here);
        });
        unprepared.join().unwrap();
    });
}

#[test]
fn an_alternate_stack_is_there_until_it_is_dropped() {
    let before = alternate_stack();
    let first = overflow::prepare_thread().unwrap();
    let ours = alternate_stack();
    assert_ne!(ours.0, before.0);
    assert!(ours.1 >= 64 * KIB + registers(), "{} bytes", ours.1);
    let second = overflow::prepare_thread().unwrap();
    assert_eq!(alternate_stack(), ours, "large enough already");
    drop(second);
    assert_eq!(alternate_stack(), ours, "and not the second one's to take away");
    drop(first);
    assert_eq!(alternate_stack(), before);
}

#[test]
fn an_alternate_stack_of_somebody_else_is_left_alone() {
    let mut theirs = vec![0_u8; 512 * KIB];
    let before = alternate_stack();
    let ours = overflow::prepare_thread().unwrap();
    let set = |sp: usize, size, flags| {
        let new = libc::stack_t { ss_sp: sp as *mut _, ss_flags: flags, ss_size: size };
        // SAFETY: sigaltstack(2); memory that lives until the stack is replaced below.
        assert_eq!(unsafe { libc::sigaltstack(&new, null_mut()) }, 0);
    };
    set(theirs.as_mut_ptr() as usize, theirs.len(), 0);
    let now = alternate_stack();
    drop(ours);
    assert_eq!(alternate_stack(), now);
    drop(overflow::prepare_thread().unwrap());
    assert_eq!(alternate_stack(), now);
    set(before.0, before.1, before.2);
}

#[test]
fn a_wild_pointer_is_no_overflow() {
    expect_signal("a_wild_pointer_is_no_overflow", libc::SIGSEGV, || {
        overflow::install();
        let _alternate = overflow::prepare_thread().unwrap();
        on(&Slab::new(64 * KIB).unwrap(), touch_wild_pointer);
    });
}

#[test]
fn a_fault_above_the_guard_is_no_overflow() {
    expect_signal("a_fault_above_the_guard_is_no_overflow", libc::SIGSEGV, || {
        overflow::install();
        let stack = Mapped::new(64 * KIB).unwrap();
        let limit = stack.limit().as_ptr();
        // SAFETY: mprotect(2) of a stack that nothing runs on; the write faults, in a child that exists to die of it.
        unsafe {
            assert_eq!(libc::mprotect(limit.cast(), 4 * KIB, libc::PROT_READ), 0);
            limit.write_volatile(1);
        }
    });
}

#[test]
fn a_signal_that_was_sent_is_no_fault() {
    expect_signal("a_signal_that_was_sent_is_no_fault", libc::SIGSEGV, || {
        set_action(libc::SIGSEGV, libc::SIG_DFL, 0);
        overflow::install();
        // SAFETY: raise(3): to this thread, so it comes before the call returns, and ends this process.
        unsafe { libc::raise(libc::SIGSEGV) };
    });
}

#[test]
fn a_signal_that_was_ignored_stays_so() {
    const TEST: &str = "a_signal_that_was_ignored_stays_so";
    if !is_child(TEST) {
        return support::assert_success(&in_child(TEST));
    }
    set_action(libc::SIGBUS, libc::SIG_IGN, 0);
    overflow::install();
    let ours = action(libc::SIGBUS);
    assert_ne!(ours, libc::SIG_IGN);
    // SAFETY: raise(3) of a signal that nobody wants.
    assert_eq!(unsafe { libc::raise(libc::SIGBUS) }, 0);
    assert_eq!(action(libc::SIGBUS), ours, "overflows are still reported");
}

extern "C" fn ends_with_information(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel fills `info` for a handler with SA_SIGINFO; _exit(2) is async-signal-safe.
    unsafe {
        let right = signal == libc::SIGSEGV && (*info).si_addr() as usize == 64;
        libc::_exit(if right { BY_HANDLER } else { 1 });
    }
}

extern "C" fn ends(signal: i32) {
    // SAFETY: as above.
    unsafe { libc::_exit(if signal == libc::SIGSEGV { BY_HANDLER } else { 1 }) };
}

#[test]
fn a_handler_that_was_there_before_gets_all_other_faults() {
    expect_handler("a_handler_that_was_there_before_gets_all_other_faults", || {
        let handler = ends_with_information as *const () as usize;
        set_action(libc::SIGSEGV, handler, libc::SA_SIGINFO | libc::SA_ONSTACK);
        // Twice: a handler that took itself for its predecessor would call itself for ever.
        overflow::install();
        overflow::install();
        on(&Slab::new(64 * KIB).unwrap(), touch_wild_pointer);
    });
}

#[test]
fn a_handler_of_one_argument_is_called_as_such() {
    expect_handler("a_handler_of_one_argument_is_called_as_such", || {
        set_action(libc::SIGSEGV, ends as *const () as usize, libc::SA_ONSTACK);
        overflow::install();
        touch_wild_pointer();
    });
}

#[test]
fn a_handler_that_was_there_before_does_not_get_overflows() {
    const TEST: &str = "a_handler_that_was_there_before_does_not_get_overflows";
    if is_child(TEST) {
        set_action(libc::SIGSEGV, ends as *const () as usize, libc::SA_ONSTACK);
        overflow::install();
        return on(&Slab::new(64 * KIB).unwrap(), overflow_here);
    }
    check_report(&in_child(TEST), "coroutine '<unnamed>'", "64 KiB");
}

#[test]
fn an_overflow_of_a_plain_thread_stays_stds_business() {
    const TEST: &str = "an_overflow_of_a_plain_thread_stays_stds_business";
    if is_child(TEST) {
        overflow::install();
        let thread = std::thread::Builder::new().name("plain thread".into()).stack_size(64 * KIB);
        let prepared = || {
            let _alternate = overflow::prepare_thread().unwrap();
            dive(0)
        };
        thread.spawn(prepared).unwrap().join().unwrap();
        return;
    }
    let output = in_child(TEST);
    let said = said(&output);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {said}", output.status);
    assert!(said.contains("plain thread"), "std's own report is lost: {said}");
    assert!(!said.contains("coroutine"), "{said}");
}

#[test]
fn the_describer_that_knows_the_stack_is_asked_before_all_others() {
    fn oldest(_: &Location, who: &mut Line) -> Option<&'static str> {
        who.write_str("nobody").unwrap();
        Some("no help")
    }
    fn knows(stack: &Location, who: &mut Line) -> Option<&'static str> {
        assert_eq!(locate(stack.base), Some(Location { in_guard: true, ..*stack }));
        write!(who, "task {}", 7).unwrap();
        Some("none")
    }
    fn knows_nothing(_: &Location, _: &mut Line) -> Option<&'static str> {
        None
    }
    static DESCRIBERS: [Describer; 3] =
        [Describer::new(oldest), Describer::new(knows), Describer::new(knows_nothing)];
    let test = "the_describer_that_knows_the_stack_is_asked_before_all_others";
    expect_report(test, "task 7", "64 KiB", || {
        DESCRIBERS.iter().for_each(overflow::describe);
        // Known already: its turn does not change, and no circle comes of it.
        DESCRIBERS.iter().for_each(overflow::describe);
        on(&Named::new(Slab::new(64 * KIB).unwrap(), "unasked").unwrap(), overflow_here);
    });
}

#[test]
fn a_long_description_leaves_room_for_the_rest() {
    fn talks(_: &Location, who: &mut Line) -> Option<&'static str> {
        while who.write_str("bla").is_ok() {}
        Some("be brief")
    }
    static TALKS: Describer = Describer::new(talks);
    const TEST: &str = "a_long_description_leaves_room_for_the_rest";
    if is_child(TEST) {
        overflow::install();
        overflow::describe(&TALKS);
        return on(&Slab::new(64 * KIB).unwrap(), overflow_here);
    }
    let output = in_child(TEST);
    let said = said(&output);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {said}", output.status);
    assert!(said.contains("blabla") && said.contains("64 KiB\nhelp: be brief\n"), "{said}");
}
