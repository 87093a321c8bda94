//! `pthread_create` makes a fiber, if the process asks for it: the switch, the creation, the end.
//!
//! ```text
//!   pthread_create ─▶ green threads off, or attributes that only the kernel can fulfil ─▶ libc's: an OS thread
//!        └─▶ a slot, an identity; *thread = its struct pthread ─▶ a fiber of the default runtime (on a fiber: of its own)
//!
//!   on the fiber:  enter ─▶ start(argument) ─▶ the result
//!                    ▲          └─ pthread_exit ─▶ glibc unwinds: cleanup handlers, destructors of C++
//!                    └────────────── longjmp ◀─────────┘
//! ```
//!
//! `pthread_exit` is glibc's own. It unwinds the stack to the buffer that the thread registered when it began, as
//! `pthread_cleanup_push` does, and jumps there; so [`enter`] registers one. It is written in assembly since a function that
//! returns twice has no meaning in Rust, and between it and the start routine stands no frame of ours. Its frame
//! is the outermost to unwinders: an exception that nobody catches ends in `std::terminate`, as on a thread.
//!
//! The switch is process-wide: `sleave::green_threads`, or `SLEAVE_GREEN_THREADS=1` in the environment, which is what `sleave run`
//! sets. It decides what is created from then on. What only the kernel can do for a thread still makes an OS thread: a stack
//! that the program supplies, a real-time scheduling policy, a set of CPUs.
//!
//! Sources: pthread_create(3), pthread_exit(3), pthread_attr_init(3), thrd_create of ISO C11; pthread.h on
//! `pthread_cleanup_push`; glibc `nptl/unwind.c`.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use libc::{pthread_attr_t, pthread_key_t, pthread_t};
use sleave_runtime::green::{self, Attributes, Stack};
use sleave_runtime::inspect::report;
use sleave_runtime::interpose;

use crate::kernel::complain;
use crate::next;
use crate::pthread::thrd;
use crate::signal::use_fibers_signals;

/// `pthread_create` is libc's.
const OFF: u8 = 0;
/// It makes fibers.
const ON: u8 = 1;
/// The environment asked for something that there is not: no thread is made at all.
const NONSENSE: u8 = 2;

static MODE: AtomicU8 = AtomicU8::new(OFF);

/// Switches green threads on or off for the process, and says how it was: while on, `pthread_create` makes fibers, and
/// so does everything that is built on it: `std::thread::spawn`, C++'s `std::thread`, C11's `thrd_create`.
///
/// They are fibers like those of `sleave::spawn`, and threads to the C library: a `pthread_t` that can be joined, keys
/// and thread-locals, names, attributes, `pthread_exit`. Existing threads stay what they are. `docs/run.md` says what they cannot do.
///
/// Off is the default, unless `SLEAVE_GREEN_THREADS=1` is in the environment when the process starts. Where
/// fibers cannot be had (`sleave::identity`) threads stay OS threads whatever the switch says.
///
/// # Examples
///
/// ```
/// sleave_libc::green_threads(true);
/// let answer = std::thread::spawn(|| 6 * 7).join().unwrap();
/// assert_eq!(answer, 42);
/// assert!(sleave_libc::green_threads(false));
/// ```
pub fn green_threads(on: bool) -> bool {
    // Relaxed, here and below: the word is all there is.
    MODE.swap(if on { ON } else { OFF }, Ordering::Relaxed) == ON
}

/// What the environment asks for. Called before `main`.
pub(crate) fn configure() {
    // SAFETY: getenv(3) of a terminated name.
    let value = unsafe { libc::getenv(c"SLEAVE_GREEN_THREADS".as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: getenv(3): a terminated string.
    let mode = match unsafe { CStr::from_ptr(value) }.to_bytes() {
        b"" | b"0" => OFF,
        b"1" => ON,
        _ => NONSENSE,
    };
    MODE.store(mode, Ordering::Relaxed);
}

/// In the child of a fork the caller is the only thread, and the runtime has no workers. If there has been a runtime, the
/// child is one of OS threads from here on, and the caller, if it is a fiber, stays on this one: its calls are libc's own.
pub(crate) fn in_child() {
    green::forked();
    if green::may_exist() {
        MODE.store(OFF, Ordering::Relaxed);
        interpose::set(false);
    }
}

unsafe extern "C" {
    fn pthread_attr_getdetachstate(attr: *const pthread_attr_t, state: *mut c_int) -> c_int;
    fn pthread_getattr_default_np(attr: *mut pthread_attr_t) -> c_int;
}

/// What a thread starts with, in C.
type Start = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

/// The stack size of threads whose creator does not say.
fn usual_stack() -> usize {
    static SIZE: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: every caller finds the same.
    let known = SIZE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let mut attr = MaybeUninit::<pthread_attr_t>::uninit();
    let mut size = 0;
    // SAFETY: pthread_getattr_default_np(3) initialises the attributes, which are destroyed when they have been read.
    unsafe {
        if pthread_getattr_default_np(attr.as_mut_ptr()) == 0 {
            libc::pthread_attr_getstacksize(attr.as_ptr(), &raw mut size);
            libc::pthread_attr_destroy(attr.as_mut_ptr());
        }
    }
    SIZE.store(size, Ordering::Relaxed);
    size
}

/// What a fiber can have of `attr`; `None` if it needs an OS thread.
///
/// # Safety
/// `attr` is null or initialised attributes.
unsafe fn attributes(attr: *const pthread_attr_t) -> Option<Attributes> {
    const PAGE: usize = 4096;
    let usual = usual_stack();
    let mut wish = Attributes { stack: Stack::Usual(usual), detached: false, guard: PAGE };
    if attr.is_null() {
        return Some(wish);
    }
    let (mut base, mut size) = (null_mut(), 0);
    let (mut detach, mut inherit, mut policy) = (0, 0, 0);
    // SAFETY: the getters of pthread_attr_init(3)'s page, each into a variable of its type.
    let bound = unsafe {
        libc::pthread_attr_getstack(attr, &raw mut base, &raw mut size);
        pthread_attr_getdetachstate(attr, &raw mut detach);
        libc::pthread_attr_getguardsize(attr, &raw mut wish.guard);
        libc::pthread_attr_getinheritsched(attr, &raw mut inherit);
        libc::pthread_attr_getschedpolicy(attr, &raw mut policy);
        let mut cpus = MaybeUninit::<libc::cpu_set_t>::zeroed();
        let length = size_of::<libc::cpu_set_t>();
        let read = libc::pthread_attr_getaffinity_np(attr, length, cpus.as_mut_ptr());
        let bytes = std::slice::from_raw_parts(cpus.as_ptr().cast::<u8>(), length);
        // All of them are what attributes say that have none.
        read != 0 || bytes.iter().any(|&byte| byte != u8::MAX)
    };
    // Glibc keeps the end of the stack, and answers 0 less the size if there is none.
    let supplied = (base as usize).wrapping_add(size) != 0;
    let scheduled = inherit == libc::PTHREAD_EXPLICIT_SCHED && policy != libc::SCHED_OTHER;
    let reasons =
        [(supplied, "own stack"), (scheduled, "real-time policy"), (bound, "set of CPUs")];
    if let Some((_, reason)) = reasons.iter().find(|(asked, _)| *asked) {
        report::note("thread made as an OS thread", reason);
        return None;
    }
    if size != usual {
        wish.stack = Stack::Usable(size);
    }
    wish.detached = detach == libc::PTHREAD_CREATE_DETACHED;
    Some(wish)
}

/// pthread_create(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_create(
    thread: *mut pthread_t,
    attr: *const pthread_attr_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: the caller's arguments for the same function.
    let kernels = || unsafe { next::pthread_create(thread, attr, start as *mut c_void, argument) };
    match MODE.load(Ordering::Relaxed) {
        OFF => return kernels(),
        ON => {}
        _ => return libc::EINVAL,
    }
    // A fiber that has switched interposition off, or libc at work for it.
    if green::is_fiber() && !interpose::active() {
        return kernels();
    }
    // SAFETY: the caller's attributes.
    let Some(attributes) = (unsafe { attributes(attr) }) else { return kernels() };
    // SAFETY: pthread_create(3): the start routine with its argument, on the new thread.
    let body = move || unsafe { run(start, argument) };
    // SAFETY: pthread_create(3): the caller's place for the id, written before the thread can run.
    let announce = &mut |id| unsafe { thread.write(id as pthread_t) };
    // SAFETY: as a thread, it may run anywhere; what it uses is the program's care.
    match unsafe { green::create(&attributes, announce, body) } {
        Ok(()) => 0,
        Err(error) => match error.kind() {
            std::io::ErrorKind::Unsupported => kernels(),
            std::io::ErrorKind::InvalidInput => libc::EINVAL,
            _ => libc::EAGAIN,
        },
    }
}

/// thrd_create of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn thrd_create(
    thread: *mut pthread_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    if MODE.load(Ordering::Relaxed) == OFF {
        // SAFETY: the caller's arguments for the same function.
        return unsafe { next::thrd_create(thread, start as *mut c_void, argument) };
    }
    // SAFETY: the start routine returns an int; of the register that a pointer comes in, thrd_join takes that half.
    thrd(unsafe { pthread_create(thread, std::ptr::null(), start, argument) })
}

/// The buffer of `pthread_cleanup_push`, `__pthread_unwind_buf_t` of pthread.h, with room for more.
#[repr(C, align(16))]
struct Unwind {
    glibcs: [u64; 32],
    /// Not zero: the thread has ended by `pthread_exit`.
    exited: u64,
}

/// A green thread's whole life.
///
/// # Safety
/// As for a thread: on its own fiber, once.
unsafe fn run(start: Start, argument: *mut c_void) -> *mut c_void {
    let mut unwind = Unwind { glibcs: [0; 32], exited: 0 };
    // SAFETY: by contract; the buffer outlives the call.
    let value = unsafe { enter(start, argument, &raw mut unwind) };
    match unwind.exited {
        0 => value,
        // `pthread_exit` has left it there.
        _ => green::own().map_or(null_mut(), |own| own.result()),
    }
}

/// Calls `start(argument)`; returns its result, or, with `exited` set, after a `pthread_exit`.
///
/// # Safety
/// See [`run`].
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
#[unsafe(naked)]
unsafe extern "C" fn enter(
    start: Start,
    argument: *mut c_void,
    unwind: *mut Unwind,
) -> *mut c_void {
    std::arch::naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",            // Unwinders end here.
        "push rbx",
        ".cfi_adjust_cfa_offset 8",
        "push r12",
        ".cfi_adjust_cfa_offset 8",
        "push r13",                      // The stack is aligned now.
        ".cfi_adjust_cfa_offset 8",
        "mov rbx, rdx",
        "mov r12, rdi",
        "mov r13, rsi",
        "mov rdi, rbx",
        "xor esi, esi",                  // Without the signal mask.
        "call {sigsetjmp}@PLT",
        "test eax, eax",                 // The second return has the registers of the first.
        "jnz 2f",
        "mov rdi, rbx",
        "call {register}@PLT",
        "mov rdi, r13",
        "call r12",
        "mov r12, rax",
        "mov rdi, rbx",
        "call {unregister}@PLT",
        "mov rax, r12",
        "jmp 3f",
        "2:",
        "mov qword ptr [rbx + {exited}], 1",
        "xor eax, eax",
        "3:",
        "pop r13",
        ".cfi_adjust_cfa_offset -8",
        "pop r12",
        ".cfi_adjust_cfa_offset -8",
        "pop rbx",
        ".cfi_adjust_cfa_offset -8",
        "ret",
        ".cfi_endproc",
        sigsetjmp = sym glibc::__sigsetjmp,
        register = sym glibc::__pthread_register_cancel,
        unregister = sym glibc::__pthread_unregister_cancel,
        exited = const std::mem::offset_of!(Unwind, exited),
    )
}

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
mod glibc {
    use std::ffi::{c_int, c_void};

    unsafe extern "C" {
        pub(super) fn __sigsetjmp(buffer: *mut c_void, mask: c_int) -> c_int;
        pub(super) fn __pthread_register_cancel(buffer: *mut c_void);
        pub(super) fn __pthread_unregister_cancel(buffer: *mut c_void);
    }
}

/// Where there are no fibers with identities nobody comes here.
#[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
unsafe extern "C" fn enter(start: Start, argument: *mut c_void, _: *mut Unwind) -> *mut c_void {
    // SAFETY: by contract.
    unsafe { start(argument) }
}

/// libc's `pthread_exit`. It unwinds its callers, which a slot of `next` does not provide for.
fn exit_of_libc() -> unsafe extern "C-unwind" fn(*mut c_void) -> ! {
    let exit = next::resolve(c"pthread_exit");
    if exit.is_null() {
        complain(b"sleave: the C library has no function pthread_exit to pass the call on to\n");
        std::process::abort();
    }
    // SAFETY: a function of this very type.
    unsafe { std::mem::transmute(exit) }
}

/// pthread_exit(3)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_exit(value: *mut c_void) -> ! {
    let exit = exit_of_libc();
    if green::is_fiber() {
        // Nothing that is to be dropped may be alive when libc unwinds this frame.
        if !set_result(value) {
            complain(b"sleave: pthread_exit on a fiber that pthread_create has not made\n");
            std::process::abort();
        }
    } else if (MODE.load(Ordering::Relaxed) == ON || green::exist()) && is_main() {
        count_main_out();
    }
    // SAFETY: the caller's argument for the same function.
    unsafe { exit(value) }
}

/// thrd_exit of C11
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn thrd_exit(result: c_int) -> ! {
    // SAFETY: thrd_exit is pthread_exit with a number.
    unsafe { pthread_exit(result as usize as *mut c_void) }
}

fn set_result(value: *mut c_void) -> bool {
    green::own().map(|own| own.set_result(value)).is_some()
}

fn is_main() -> bool {
    // SAFETY: gettid(2), getpid(2) have no arguments.
    unsafe { libc::gettid() == libc::getpid() }
}

/// Sees to it that `main` is counted when its destructors have run: by a key whose destructor asks for one round more until
/// there is none (pthread_key_create(3): `PTHREAD_DESTRUCTOR_ITERATIONS` is 4).
fn count_main_out() {
    // Workers that sleep are told by a kick.
    use_fibers_signals();
    static KEY: AtomicUsize = AtomicUsize::new(usize::MAX);
    const ROUNDS: usize = 4;

    unsafe extern "C" fn round(value: *mut c_void) {
        let round = value as usize;
        if round < ROUNDS {
            // SAFETY: the key exists: this is its destructor.
            unsafe { set(round + 1) };
        } else {
            green::main_ends();
        }
    }
    unsafe fn set(round: usize) {
        // Relaxed: main alone comes here.
        let key = KEY.load(Ordering::Relaxed) as pthread_key_t;
        // SAFETY: pthread_setspecific(3) of a key that exists, by contract.
        unsafe { libc::pthread_setspecific(key, round as *const c_void) };
    }

    let mut key = 0;
    // SAFETY: pthread_key_create(3); the destructor is there as long as this object.
    if unsafe { libc::pthread_key_create(&raw mut key, Some(round)) } == 0 {
        KEY.store(key as usize, Ordering::Relaxed);
        // SAFETY: the key exists.
        unsafe { set(1) };
    } else {
        // No key is left: main is counted a little early.
        green::main_ends();
    }
}
