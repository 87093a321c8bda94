//! Walks the stack before each single instruction of a stretch of code.
//!
//! The trap flag makes the processor trap after every instruction. The handler of that signal, on a stack of its
//! own, asks libgcc's unwinder for the frames from the interrupted instruction outwards, and sorts what it sees into
//! [`Sight`]s: which of the test's functions are on the stack, in which order, how the walk ends, and on whose
//! stack the stack pointer is.
//!
//! ```text
//!    handler ─ signal frame ─ interrupted instruction ─ … ─ observe ─ the test ─ … ─ thread's start
//!                             └──────── sorted ────────────────────┘ └── must be as it was ──────┘
//! ```
//!
//! The frames outside of [`observe`] stay what they are while it runs, so everything that the unwinder finds out
//! about them, registers included, must be the same at each instruction; and what [`with_known_registers`] calls
//! leaves it with the registers that it had. This finds what names of functions cannot show: a register
//! restored from the wrong place.
//!
//! Sources: Intel's manual, volume 3, "Single-Step Exception Condition"; sigaction(2); LSB Core, "Interfaces for
//! libgcc_s" (`_Unwind_Backtrace` and the rest).

use std::arch::{asm, naked_asm};
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::zeroed;
use std::ops::Range;
use std::ptr::null_mut;

#[repr(C)]
struct UnwindContext([u8; 0]);

unsafe extern "C" {
    fn _Unwind_Backtrace(
        step: extern "C" fn(*mut UnwindContext, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIPInfo(context: *mut UnwindContext, exact: *mut c_int) -> usize;
    fn _Unwind_GetCFA(context: *mut UnwindContext) -> usize;
    fn _Unwind_GetGR(context: *mut UnwindContext, register: c_int) -> usize;
    fn _Unwind_FindEnclosingFunction(address: *mut c_void) -> *mut c_void;
}

/// `_URC_NO_REASON` and `_URC_NORMAL_STOP`.
const GO_ON: c_int = 0;
const STOP: c_int = 4;

/// DWARF numbers of the registers that a call preserves: rbx, rbp, r12 to r15.
const PRESERVED: [c_int; 6] = [3, 6, 12, 13, 14, 15];

/// EFLAGS: trap after the next instruction.
const TRAP_FLAG: i64 = 0x100;

const MAX_FRAMES: usize = 120;
const MAX_NAMES: usize = 12;
const MAX_SIGHTS: usize = 100;

/// What a walk knows about one frame.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Frame {
    ip: usize,
    /// Where the function begins, or 0 if no unwind table has heard of it.
    function: usize,
    /// The frame's own stack pointer.
    sp: usize,
    preserved: [usize; 6],
}

/// Frames from the interrupted instruction outwards.
struct Walk {
    frames: [Frame; MAX_FRAMES],
    len: usize,
    /// The handler's own frames are over.
    begun: bool,
}

impl Walk {
    fn new() -> Walk {
        let none = Frame { ip: 0, function: 0, sp: 0, preserved: [0; 6] };
        Walk { frames: [none; MAX_FRAMES], len: 0, begun: false }
    }

    fn frames(&self) -> &[Frame] {
        &self.frames[..self.len]
    }
}

extern "C" fn take_frame(context: *mut UnwindContext, walk: *mut c_void) -> c_int {
    // SAFETY: `_Unwind_Backtrace` hands on what `trapped` passed, and a valid context.
    unsafe {
        let walk = &mut *walk.cast::<Walk>();
        let mut exact = 0;
        let ip = _Unwind_GetIPInfo(context, &mut exact);
        // The first frame with an exact address is the one that the signal has interrupted.
        walk.begun |= exact != 0;
        if !walk.begun {
            return GO_ON;
        }
        if walk.len == MAX_FRAMES {
            return STOP;
        }
        walk.frames[walk.len] = Frame {
            ip,
            function: enclosing_function(ip, exact != 0),
            sp: _Unwind_GetCFA(context),
            preserved: PRESERVED.map(|register| _Unwind_GetGR(context, register)),
        };
        walk.len += 1;
        GO_ON
    }
}

/// Where the function begins that `ip` is in: exactly there, or behind a call.
fn enclosing_function(ip: usize, exact: bool) -> usize {
    if ip == 0 {
        return 0;
    }
    // SAFETY: only looks the address up, less one.
    unsafe { _Unwind_FindEnclosingFunction((ip + usize::from(exact)) as *mut c_void) as usize }
}

/// Is there an instruction of this program's functions? Those of shared libraries are not ours to answer for
/// (libgcc's own way into a landing pad has no unwind tables for some), nor are the linker's jumps to them.
fn in_program(ip: usize) -> bool {
    unsafe extern "C" {
        /// First byte of the program's image. Defined by the linker.
        static __executable_start: u8;
        /// One past its last instruction. Defined by the linker; see end(3).
        static etext: u8;
    }
    (&raw const __executable_start as usize..&raw const etext as usize).contains(&ip)
        && enclosing_function(ip, true) != 0
}

/// How a walk ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// In [`observe`], and outside of that everything is as it was.
    Observer,
    /// Before that, at a frame that says to be the outermost.
    Outermost,
    /// At an address that belongs to no function, or in an [`observe`] outside of which something has changed; or
    /// it came through [`with_known_registers`] with wrong ones.
    Lost,
}

/// What was seen at one or more instructions.
#[derive(Clone, Copy)]
pub struct Sight {
    /// Indices of the named functions on the stack, innermost first, neighbours different.
    names: [u8; MAX_NAMES],
    len: usize,
    end: End,
    /// Number of the stack that the stack pointer is on; none for the thread's.
    stack: Option<usize>,
    /// At how many instructions.
    count: usize,
    /// The first of them.
    ip: usize,
}

/// A function that shows in sights, by name and address.
pub type Named = (&'static str, usize);

/// Everything that was seen; see [`observe`].
pub struct Sights {
    named: Vec<Named>,
    stacks: Vec<Range<usize>>,
    seen: Vec<Sight>,
    /// Frames outside of the observer, as at the first instruction.
    outside: Vec<Frame>,
    by: By,
    over: bool,
}

impl Sights {
    /// The named functions of a sight, and how it ends.
    fn chain(&self, sight: &Sight) -> String {
        let names = &sight.names[..sight.len];
        let names = names.iter().map(|&index| self.named[index as usize].0).collect::<Vec<_>>();
        let end = match sight.end {
            End::Observer => "test",
            End::Outermost => "end",
            End::Lost => "lost",
        };
        [names.as_slice(), &[end]].concat().join(" < ")
    }

    /// At how many instructions was exactly `chain` seen with the stack pointer on `stack`?
    pub fn count(&self, stack: Option<usize>, chain: &str) -> usize {
        let fitting = |sight: &&Sight| sight.stack == stack && self.chain(sight) == chain;
        self.seen.iter().filter(fitting).map(|sight| sight.count).sum()
    }

    /// Panics unless exactly these were seen, each as often as it says, or at all where that is `None`.
    #[track_caller]
    pub fn assert(&self, expected: &[(Option<usize>, &str, Option<usize>)]) {
        for (stack, chain, count) in expected {
            let seen = self.count(*stack, chain);
            assert!(
                count.map_or(seen > 0, |count| seen == count),
                "{chain}, stack pointer on {stack:?}: at {seen} instructions, not {count:?}\n{self:?}"
            );
        }
        self.assert_only(&expected.iter().map(|row| (row.0, row.1)).collect::<Vec<_>>());
    }

    /// Panics if anything else was seen.
    #[track_caller]
    pub fn assert_only(&self, allowed: &[(Option<usize>, &str)]) {
        for sight in &self.seen {
            let chain = self.chain(sight);
            let known = allowed.contains(&(sight.stack, &chain));
            assert!(known, "{chain}, stack pointer on {:?}\n{self:?}", sight.stack);
        }
    }
}

impl fmt::Debug for Sights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "instructions, stack, named functions inside out, first instruction:")?;
        for sight in &self.seen {
            let function = enclosing_function(sight.ip, true);
            let name = self.named.iter().find(|named| named.1 == function).map_or("?", |n| n.0);
            let offset = sight.ip - function;
            let (count, stack) = (sight.count, sight.stack);
            writeln!(f, "{count:7} {stack:?} {}  ({name}+{offset:#x})", self.chain(sight))?;
        }
        Ok(())
    }
}

thread_local! {
    /// What this thread is observing.
    static OBSERVED: Cell<*mut Sights> = const { Cell::new(null_mut()) };
}

/// The handler of SIGTRAP.
extern "C" fn trapped(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: sigaction(2): with SA_SIGINFO this is the interrupted context.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    // SAFETY: set by `observe`, whose own the sights are, and which is interrupted.
    let sights = unsafe { &mut *OBSERVED.get() };
    if sights.over {
        registers[libc::REG_EFL as usize] &= !TRAP_FLAG;
        return;
    }
    let [ip, sp, bp] =
        [libc::REG_RIP, libc::REG_RSP, libc::REG_RBP].map(|r| registers[r as usize] as usize);
    if !in_program(ip) {
        return;
    }
    let stack = sights.stacks.iter().position(|stack| stack.contains(&sp));
    if sights.by == By::FramePointers && stack.is_none() {
        return;
    }
    let mut walk = Walk::new();
    if sights.by == By::FramePointers {
        // SAFETY: the program is compiled with frame pointers, so `bp` is one; what it is not is seen.
        unsafe { walk_frame_pointers(&mut walk, ip, bp) };
    } else {
        // SAFETY: the callback takes what it is given.
        unsafe { _Unwind_Backtrace(take_frame, (&raw mut walk).cast()) };
    }
    sights.see(walk.frames(), ip, stack);
}

/// Fills `walk` by following frame records, {outer record, return address}, up to the observer.
///
/// # Safety
///
/// `bp` points at a frame record, and so on up to the observer's.
unsafe fn walk_frame_pointers(walk: &mut Walk, ip: usize, mut bp: usize) {
    let nothing = Frame { ip: 0, function: 0, sp: 0, preserved: [0; 6] };
    walk.frames[0] = Frame { ip, function: enclosing_function(ip, true), ..nothing };
    walk.len = 1;
    while walk.frames[walk.len - 1].function != observe as *const () as usize {
        // SAFETY: the caller's promise.
        let [outer, ip] = unsafe { *(bp as *const [usize; 2]) };
        walk.frames[walk.len] = Frame { ip, function: enclosing_function(ip, false), ..nothing };
        walk.len += 1;
        bp = outer;
    }
}

impl Sights {
    /// Sorts a walk in. Runs in the signal handler: allocates nothing.
    fn see(&mut self, frames: &[Frame], ip: usize, stack: Option<usize>) {
        let observer = observe as *const () as usize;
        let inside = frames.iter().position(|frame| frame.function == observer);
        let end = match inside.map(|inside| &frames[inside + 1..]) {
            // The first instruction, which is the observer's own.
            Some(outside) if self.seen.is_empty() => {
                self.outside.extend_from_slice(outside);
                End::Observer
            }
            _ if self.by == By::UnwindTables && frames.array_windows().any(has_wrong_registers) => {
                End::Lost
            }
            Some(outside) if outside == self.outside => End::Observer,
            None if frames.last().is_some_and(|frame| frame.ip == 0) => End::Outermost,
            _ => End::Lost,
        };
        let mut sight = Sight { names: [0; MAX_NAMES], len: 0, end, stack, count: 1, ip };
        for frame in &frames[..inside.unwrap_or(frames.len())] {
            let name = self.named.iter().position(|named| named.1 == frame.function);
            if let Some(name) = name.map(|name| name as u8)
                && sight.names[..sight.len].last() != Some(&name)
            {
                sight.names[sight.len] = name;
                sight.len += 1;
            }
        }
        let key = |sight: &Sight| (sight.names, sight.len, sight.end, sight.stack);
        if let Some(seen) = self.seen.iter_mut().find(|seen| key(seen) == key(&sight)) {
            seen.count += 1;
        } else {
            assert!(self.seen.len() < MAX_SIGHTS, "more kinds of sights than a test should have");
            self.seen.push(sight);
        }
    }
}

/// Calls `f(data)` with the address of `f` in every register that calls preserve (but rbp, which has its frame).
/// Whoever walks over this frame must find that, whatever `f` and those whom it resumes do.
///
/// # Safety
///
/// As for `f`.
#[unsafe(naked)]
pub unsafe extern "C" fn with_known_registers(f: unsafe extern "C" fn(usize), data: usize) {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "push rbx",
        ".cfi_offset rbx, -24",
        "push r12",
        ".cfi_offset r12, -32",
        "push r13",
        ".cfi_offset r13, -40",
        "push r14",
        ".cfi_offset r14, -48",
        "push r15",
        ".cfi_offset r15, -56",
        "sub rsp, 8", // a call's alignment
        "mov rbx, rdi",
        "mov r12, rdi",
        "mov r13, rdi",
        "mov r14, rdi",
        "mov r15, rdi",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "mov rbx, [rbp - 8]",
        ".cfi_restore rbx",
        "mov r12, [rbp - 16]",
        ".cfi_restore r12",
        "mov r13, [rbp - 24]",
        ".cfi_restore r13",
        "mov r14, [rbp - 32]",
        ".cfi_restore r14",
        "mov r15, [rbp - 40]",
        ".cfi_restore r15",
        "leave",
        ".cfi_restore rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
    )
}

/// Does a frame of [`with_known_registers`] have anything but its callee in its registers?
fn has_wrong_registers([callee, frame]: &[Frame; 2]) -> bool {
    let [rbx, _, r12, r13, r14, r15] = frame.preserved;
    frame.function == with_known_registers as *const () as usize
        && [rbx, r12, r13, r14, r15] != [callee.function; 5]
}

/// Whose word is taken for the frames.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// libgcc's unwinder's.
    UnwindTables,
    /// That of `rbp`, in a program compiled with `-C force-frame-pointers=yes`: up to the observer, and while the
    /// stack pointer is on one of the stacks.
    FramePointers,
}

/// Runs `stretch` and looks at the stack before each of its instructions, as `by` tells it. `named` functions
/// show; `stacks` get their index as number.
#[inline(never)]
pub fn observe(
    by: By,
    named: &[Named],
    stacks: &[Range<usize>],
    stretch: &mut dyn FnMut(),
) -> Sights {
    let mut sights = Sights {
        named: named.to_vec(),
        stacks: stacks.to_vec(),
        seen: Vec::with_capacity(MAX_SIGHTS),
        outside: Vec::with_capacity(MAX_FRAMES),
        by,
        over: false,
    };
    let _stack = SignalStack::install();
    // SAFETY: sigaction(2): the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = trapped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &action, null_mut()), 0);
    }
    let over = &raw mut sights.over;
    OBSERVED.set(&raw mut sights);
    // SAFETY: sets the trap flag, which changes nothing that the compiler knows of.
    unsafe { asm!("pushfq", "or qword ptr [rsp], {}", "popfq", const TRAP_FLAG) };
    stretch();
    // SAFETY: our own; the handler reads it after this instruction, and takes the trap flag away.
    unsafe { over.write_volatile(true) };
    sights
}

/// A signal stack with room for the unwinder, in place of the thread's while it lives.
struct SignalStack {
    _memory: Vec<u8>,
    before: libc::stack_t,
}

impl SignalStack {
    fn install() -> SignalStack {
        let mut memory = vec![0_u8; 256 * 1024];
        // SAFETY: sigaltstack(2): the memory stays ours until `drop` has put the former one back.
        let before = unsafe {
            let mut before = zeroed();
            let stack = libc::stack_t {
                ss_sp: memory.as_mut_ptr().cast(),
                ss_flags: 0,
                ss_size: memory.len(),
            };
            assert_eq!(libc::sigaltstack(&stack, &mut before), 0);
            before
        };
        SignalStack { _memory: memory, before }
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        // SAFETY: sigaltstack(2): what it was.
        unsafe { libc::sigaltstack(&self.before, null_mut()) };
    }
}
