//! What identities cost in memory, and that nothing of it is lost: malloc's caches do not multiply,
//! and what a fiber leaves behind (blocks of libraries opened later, libc's buffers) is freed.
//!
//! Each test is alone in its process, for it measures the process.

mod identity_harness;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, ptr};

use identity_harness::{Fiber, alone, finish, kit, on_a_fiber, run};

/// Bytes that malloc has given out, with mappings.
fn in_use() -> usize {
    // SAFETY: mallinfo2(3).
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

/// What the test harness may allocate meanwhile. One block lost per fiber would be 32,000 bytes
/// and more in a thousand of them.
const NOISE: usize = 8 * 1024;

/// Resident memory of the process.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn work_with_malloc() {
    let mut held: Vec<Vec<u8>> = (1..60).map(|i| vec![1; i * 16]).collect();
    held.retain(|block| block.len() % 32 == 0);
    held.push(vec![2; 20_000]);
    drop(held);
}

#[test]
fn identities_that_use_malloc_take_a_few_pages_each() {
    alone("identities_that_use_malloc_take_a_few_pages_each", &[], || {
        const IDENTITIES: usize = 10_000;
        const LIVES: usize = 10;
        kit().adopt_thread();
        on_a_fiber(work_with_malloc).destroy();
        let before = resident();
        let mut fibers: Vec<_> = (0..IDENTITIES).map(|_| Fiber::new(work_with_malloc)).collect();
        for life in 0..LIVES {
            fibers = run(fibers, 2);
            if life + 1 < LIVES {
                fibers = fibers.into_iter().map(|f| f.recycle(work_with_malloc)).collect();
            }
        }
        let each = resident().saturating_sub(before) / IDENTITIES;
        println!("{} lives on {IDENTITIES} identities: {each} bytes each", IDENTITIES * LIVES);
        // One page or two for the identity, one or two of stack (a debug build's frames), the
        // dtv. A cache of its own would add 60 KiB and more.
        assert!(each < 24 * 1024, "{each} bytes each");
        fibers.into_iter().for_each(Fiber::destroy);
    });
}

#[test]
fn creating_and_destroying_loses_nothing() {
    alone("creating_and_destroying_loses_nothing", &[], || {
        let cycle = || (0..1_000).for_each(|_| on_a_fiber(work_with_malloc).destroy());
        cycle();
        let before = in_use();
        cycle();
        let grown = in_use().saturating_sub(before);
        assert!(grown < NOISE, "{grown} bytes lost in a thousand lives");
    });
}

#[test]
fn buffers_of_libc_are_freed_at_a_fibers_end() {
    alone("buffers_of_libc_are_freed_at_a_fibers_end", &[], || {
        fn program() {
            // SAFETY: strerror(3), strsignal(3), dlsym(3): buffers of the calling thread.
            unsafe {
                assert!(!libc::strerror(123_456).is_null());
                assert!(!libc::strsignal(123_456).is_null());
                let none = libc::dlsym(libc::RTLD_DEFAULT, c"no such symbol".as_ptr());
                assert!(none.is_null());
            }
        }
        let mut fiber = on_a_fiber(program);
        let before = in_use();
        for _ in 0..1_000 {
            fiber = finish(fiber.recycle(program));
        }
        let grown = in_use().saturating_sub(before);
        assert!(grown < NOISE, "{grown} bytes lost in a thousand lives");
        fiber.destroy();
    });
}

#[test]
fn sockets_of_the_resolver_are_closed_at_a_fibers_end() {
    unsafe extern "C" {
        fn __res_state() -> *mut c_void;
        fn __res_init() -> c_int;
    }
    alone("sockets_of_the_resolver_are_closed_at_a_fibers_end", &[], || {
        fn program() {
            // SAFETY: resolver(3): the calling thread's state; its options are the third member
            // after two ints.
            unsafe {
                let options = __res_state().cast::<u64>().add(1);
                assert_eq!(options.read(), 0, "the state of the fiber before");
                assert_eq!(__res_init(), 0);
                assert_ne!(options.read(), 0);
            }
        }
        let mut fiber = on_a_fiber(program);
        let before = in_use();
        for _ in 0..1_000 {
            fiber = finish(fiber.recycle(program));
        }
        let grown = in_use().saturating_sub(before);
        assert!(grown < NOISE, "{grown} bytes lost in a thousand lives");
        fiber.destroy();
    });
}

/// A library with thread-locals, built here.
struct Library {
    directory: PathBuf,
    path: CString,
    handle: *mut c_void,
}

const MEBIBYTE: usize = 1 << 20;

impl Library {
    /// `None` if there is no C compiler.
    fn build(name: &str, source: &str, flags: &[&str]) -> Option<Self> {
        if Command::new("cc").arg("--version").output().is_err() {
            println!("skipped: this machine has no C compiler");
            return None;
        }
        let directory = env::temp_dir().join(format!("sleave-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = |end: &str| directory.join(format!("{name}.{end}"));
        fs::write(file("c"), source).unwrap();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([file("so"), file("c")])
            .args(flags)
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let path = CString::new(Path::to_str(&file("so")).unwrap()).unwrap();
        Some(Library { directory, path, handle: ptr::null_mut() })
    }

    fn open(&mut self) {
        // SAFETY: dlopen(3): the library has no constructors.
        self.handle = unsafe { libc::dlopen(self.path.as_ptr(), libc::RTLD_NOW) };
        // SAFETY: dlerror(3) after a failure.
        assert!(!self.handle.is_null(), "{:?}", unsafe { CStr::from_ptr(libc::dlerror()) });
    }

    /// A function of the library that counts.
    fn function(&self, name: &CStr) -> extern "C" fn() -> c_int {
        // SAFETY: dlsym(3); all functions of these libraries have this type.
        unsafe {
            let function = libc::dlsym(self.handle, name.as_ptr());
            assert!(!function.is_null());
            std::mem::transmute(function)
        }
    }

    fn close(&mut self) {
        // SAFETY: dlclose(3): nothing of it is used any more.
        assert_eq!(unsafe { libc::dlclose(self.handle) }, 0);
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A mebibyte per thread, and a counter that starts at 42.
const LARGE: &str = "
    static __thread char block[1 << 20];
    static __thread int counter = 42;
    int count(void) { block[sizeof block - 1]++; return block[sizeof block - 1] == counter - 41 ? counter++ : -1; }
";

#[test]
fn blocks_of_a_library_opened_later_are_freed_and_new_for_the_next_fiber() {
    alone("blocks_of_a_library_opened_later_are_freed_and_new_for_the_next_fiber", &[], || {
        let before_library = Fiber::new(|| ());
        let Some(mut library) = Library::build("large", LARGE, &[]) else { return };
        library.open();
        let count = library.function(c"count");
        let program = move || assert_eq!([count(), count(), count()], [42, 43, 44]);
        // Identities from before and after the library.
        let mut fibers = vec![finish(before_library).recycle(program), Fiber::new(program)];
        fibers = run(fibers, 2);
        let before = in_use();
        for _ in 0..200 {
            fibers = run(fibers.into_iter().map(|fiber| fiber.recycle(program)).collect(), 1);
        }
        let grown = in_use().saturating_sub(before);
        assert!(grown < MEBIBYTE, "{grown} bytes more after 400 lives with a mebibyte each");

        // A fiber's block outlives neither recycling nor destruction, even when the
        // library has gone first.
        library.close();
        assert!(in_use() > before - MEBIBYTE);
        let fibers: Vec<_> = fibers.into_iter().map(|fiber| fiber.recycle(|| ())).collect();
        assert!(in_use() < before - MEBIBYTE, "two blocks are gone");
        assert!(kit().report().fast_recycle, "the library is gone, the image is good again");
        run(fibers, 1).into_iter().for_each(Fiber::destroy);
    });
}

#[test]
fn libraries_may_come_and_go_for_ever() {
    alone("libraries_may_come_and_go_for_ever", &[], || {
        let Some(mut library) = Library::build("small", LARGE, &[]) else { return };
        thread_local!(static OWN: std::cell::Cell<u32> = const { std::cell::Cell::new(5) });
        let own = || assert_eq!(OWN.replace(6), 5);
        let mut fiber = on_a_fiber(own);
        let mut cycle = |count: usize| {
            for _ in 0..count {
                library.open();
                let function = library.function(c"count");
                let kept =
                    finish(std::mem::replace(&mut fiber, Fiber::new(|| ())).recycle(move || {
                        assert_eq!(OWN.replace(6), 5);
                        assert_eq!([function(), function()], [42, 43]);
                    }));
                finish(std::mem::replace(&mut fiber, kept)).destroy();
                library.close();
                fiber = finish(std::mem::replace(&mut fiber, Fiber::new(|| ())).recycle(own));
            }
        };
        // Enough for all images that are ever made.
        cycle(100);
        let before = in_use();
        cycle(100);
        let grown = in_use().saturating_sub(before);
        assert!(grown < 64 * 1024, "{grown} bytes in a hundred rounds");
    });
}

/// Thread-locals in the surplus of static TLS.
const INITIAL_EXEC: &str = "
    static __thread int counter = 42;
    int count(void) { return counter++; }
";

#[test]
fn a_library_in_the_surplus_of_static_tls_is_new_for_new_and_recycled_fibers() {
    let name = "a_library_in_the_surplus_of_static_tls_is_new_for_new_and_recycled_fibers";
    alone(name, &[], || {
        let flags = ["-ftls-model=initial-exec"];
        let Some(mut library) = Library::build("initial", INITIAL_EXEC, &flags) else { return };
        let old = on_a_fiber(|| ());
        library.open();
        let count = library.function(c"count");
        let program = move || assert_eq!([count(), count(), count()], [42, 43, 44]);
        let mut fiber = finish(old.recycle(program));
        assert!(kit().report().fast_recycle, "its block is in static TLS: an image will do");
        for _ in 0..3 {
            fiber = finish(fiber.recycle(program));
        }
        fiber.destroy();
        on_a_fiber(program).destroy();
    });
}

#[test]
fn a_library_may_free_what_a_fibers_thread_locals_hold() {
    // A destructor that a C++ library registers by the same door as Rust's thread-locals.
    unsafe extern "C" {
        fn __cxa_thread_atexit_impl(
            destructor: unsafe extern "C" fn(*mut c_void),
            object: *mut c_void,
            dso: *const c_char,
        ) -> c_int;
        static __dso_handle: c_char;
    }
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C" fn destructor(object: *mut c_void) {
        // SAFETY: allocated in `program`.
        unsafe { libc::free(object) };
        CALLS.fetch_add(1, Ordering::SeqCst);
    }
    fn program() {
        // SAFETY: Itanium C++ ABI: registered once, called at the thread's end.
        unsafe {
            let object = libc::malloc(100);
            let dso = &raw const __dso_handle;
            assert_eq!(__cxa_thread_atexit_impl(destructor, object, dso), 0);
        }
    }
    on_a_fiber(program).destroy();
    assert_eq!(CALLS.load(Ordering::SeqCst), 1);
}
