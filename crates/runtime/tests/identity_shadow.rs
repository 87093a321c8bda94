//! The executable may define functions of the C library itself, as a program with sleave-libc
//! does. Identity must neither call them nor take them for glibc's.

mod identity_harness;

use std::ffi::{c_int, c_long, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use identity_harness::{Fiber, alone, finish, kit, on_a_fiber};

/// Calls of the functions below while they are watched.
static CALLS: AtomicUsize = AtomicUsize::new(0);
static WATCH: AtomicBool = AtomicBool::new(false);

fn called() {
    // SAFETY: getpid(2), gettid(2). Two system calls, not libc's functions: they cannot fail.
    let [process, thread] = unsafe {
        [syscalls::Sysno::getpid, syscalls::Sysno::gettid].map(|number| syscalls::syscall!(number))
    };
    // The main thread is the test harness's, and waits for the test.
    if WATCH.load(Ordering::SeqCst) && process != thread {
        CALLS.fetch_add(1, Ordering::SeqCst);
    }
}

fn next(name: &std::ffi::CStr) -> *mut c_void {
    // SAFETY: dlsym(3): the definition behind this one.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    start: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> c_int {
    called();
    // SAFETY: pthread_create(3), with the caller's arguments.
    unsafe {
        let next: unsafe extern "C" fn(
            *mut libc::pthread_t,
            *const libc::pthread_attr_t,
            extern "C" fn(*mut c_void) -> *mut c_void,
            *mut c_void,
        ) -> c_int = std::mem::transmute(next(c"pthread_create"));
        next(thread, attributes, start, argument)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_join(thread: libc::pthread_t, result: *mut *mut c_void) -> c_int {
    called();
    // SAFETY: pthread_join(3), with the caller's arguments.
    unsafe {
        let next: unsafe extern "C" fn(libc::pthread_t, *mut *mut c_void) -> c_int =
            std::mem::transmute(next(c"pthread_join"));
        next(thread, result)
    }
}

/// What the kernel says, in libc's way.
fn answer(result: Result<usize, syscalls::Errno>) -> isize {
    match result {
        Ok(value) => value.cast_signed(),
        Err(error) => {
            // SAFETY: errno(3).
            unsafe { *libc::__errno_location() = error.into_raw() };
            -1
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    called();
    let number = syscalls::Sysno::from(number as u32);
    // SAFETY: syscall(2), with the caller's arguments.
    answer(unsafe { syscalls::syscall!(number, a, b, c, d, e, f) }) as c_long
}

macro_rules! shadowed {
    ($($name:ident($($argument:ident),*);)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: usize),*) -> isize {
            called();
            // SAFETY: the system call of that name, with the caller's arguments.
            answer(unsafe { syscalls::syscall!(syscalls::Sysno::$name $(, $argument)*) })
        }
    )*};
}

shadowed! {
    read(fd, buffer, count);
    write(fd, buffer, count);
    close(fd);
    pipe2(ends, flags);
    mmap(address, length, access, flags, fd, offset);
    munmap(address, length);
    sched_yield();
}

#[test]
fn functions_of_the_executable_are_not_taken_for_glibcs() {
    alone("functions_of_the_executable_are_not_taken_for_glibcs", &[], || {
        // SAFETY: gettid(2).
        let here = unsafe { libc::gettid() } as u32;
        assert_ne!(here, std::process::id(), "the test runs on the main thread");
        WATCH.store(true, Ordering::SeqCst);
        kit();
        assert_eq!(CALLS.load(Ordering::SeqCst), 0, "while the kit was made");
        let report = kit().report();
        assert!(report.malloc.is_ok(), "{report}");
        WATCH.store(false, Ordering::SeqCst);
        let fiber = Fiber::new(|| ());
        WATCH.store(true, Ordering::SeqCst);
        let fiber = finish(finish(fiber).recycle(|| ()));
        assert_eq!(CALLS.load(Ordering::SeqCst), 0, "in the life of a fiber");
        // The functions are seen by others: std makes threads with them.
        std::thread::spawn(|| ()).join().unwrap();
        assert!(CALLS.load(Ordering::SeqCst) > 0);
        WATCH.store(false, Ordering::SeqCst);
        fiber.destroy();
    });
}

#[test]
fn fibers_live_beside_such_functions() {
    thread_local!(static OWN: std::cell::Cell<u32> = const { std::cell::Cell::new(1) });
    let fiber = on_a_fiber(|| assert_eq!(OWN.replace(2), 1));
    finish(fiber.recycle(|| assert_eq!(OWN.replace(2), 1))).destroy();
}
