//! A fiber is a thread for Rust and for the C library: what is per thread is its own, on
//! whichever OS thread it runs, and new again for the next fiber of the same identity.

mod identity_harness;

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ffi::{c_int, c_void};

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::{panic, ptr, thread};

use identity_harness::{Fiber, alone, finish, kit, on_a_fiber, run, run_counting, yield_now};
use sleave_runtime::identity::{self, Word};

#[test]
fn thread_locals_are_the_fibers_own_over_moves_and_end_once() {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    struct Counted(RefCell<Vec<usize>>);
    impl Drop for Counted {
        fn drop(&mut self) {
            assert_eq!(self.0.borrow().len(), 20);
            ENDED.fetch_add(1, Ordering::SeqCst);
        }
    }
    thread_local! {
        static OWN: Counted = const { Counted(RefCell::new(Vec::new())) };
    }
    let fibers = (0..2_000).map(|i| {
        Fiber::new(move || {
            for round in 1..=20 {
                OWN.with(|own| own.0.borrow_mut().push(i));
                yield_now();
                OWN.with(|own| {
                    let own = own.0.borrow();
                    assert!(own.len() == round && own.iter().all(|&it| it == i));
                });
            }
        })
    });
    let (fibers, moves) = run_counting(fibers.collect(), 2);
    assert_eq!(ENDED.load(Ordering::SeqCst), 2_000);
    assert!(moves > 0, "nothing has moved: nothing was shown");
    fibers.into_iter().for_each(Fiber::destroy);
}

#[test]
fn errno_stays_over_moves() {
    #[inline(never)]
    fn errno() -> *mut c_int {
        // SAFETY: errno(3).
        unsafe { libc::__errno_location() }
    }
    let fibers = (1..=500).map(|i| {
        Fiber::new(move || {
            // SAFETY: the fiber's own errno.
            unsafe {
                assert_eq!(errno().read(), 0);
                let place = errno();
                for round in 0..20 {
                    place.write(i * 100 + round);
                    yield_now();
                    // The address that was taken before the move is still right: fibers need this,
                    // for compilers keep such addresses.
                    assert_eq!(place.read(), i * 100 + round);
                    assert_eq!(errno(), place);
                }
            }
        })
    });
    run(fibers.collect(), 2).into_iter().for_each(Fiber::destroy);
}

#[test]
fn std_thread_ids_are_distinct_and_stay_over_moves() {
    let seen = Arc::new(Mutex::new(HashSet::new()));
    seen.lock().unwrap().insert(thread::current().id());
    let fibers = (0..200).map(|_| {
        let seen = seen.clone();
        Fiber::new(move || {
            let id = thread::current().id();
            for _ in 0..10 {
                yield_now();
                assert_eq!(thread::current().id(), id);
            }
            assert!(seen.lock().unwrap().insert(id));
        })
    });
    let fibers = run(fibers.collect(), 2);
    // A used identity is a new thread as well.
    let again = fibers.into_iter().map(|fiber| {
        let seen = seen.clone();
        fiber.recycle(move || assert!(seen.lock().unwrap().insert(thread::current().id())))
    });
    run(again.collect(), 2).into_iter().for_each(Fiber::destroy);
    assert_eq!(seen.lock().unwrap().len(), 401);
}

#[test]
fn pthread_self_is_the_thread_pointer() {
    let outside = identity::thread_pointer();
    // SAFETY: pthread_self(3).
    assert_eq!(unsafe { libc::pthread_self() } as usize, outside);
    let (tell, told) = std::sync::mpsc::channel();
    let fiber = on_a_fiber(move || {
        // SAFETY: pthread_self(3), pthread_equal(3).
        unsafe {
            let own = libc::pthread_self();
            assert_eq!(own as usize, identity::thread_pointer());
            yield_now();
            assert_ne!(libc::pthread_equal(own, libc::pthread_self()), 0);
            assert_eq!(libc::pthread_equal(own, outside as _), 0);
            tell.send(own as usize).unwrap();
        }
    });
    assert_eq!(told.recv(), Ok(fiber.tp));
    assert_eq!(identity::thread_pointer(), outside);
    fiber.destroy();
}

#[test]
fn process_and_kernel_thread_are_the_carriers() {
    let process = std::process::id();
    on_a_fiber(move || {
        assert_eq!(std::process::id(), process);
        // SAFETY: getpid(2), gettid(2).
        unsafe {
            assert_eq!(libc::getpid() as u32, process);
            let kernel = libc::syscall(libc::SYS_gettid);
            assert!(kernel > 0 && kernel <= 1 << 22);
        }
    })
    .destroy();
}

#[test]
fn the_processor_is_the_one_that_the_carrier_runs_on() {
    let fiber = Fiber::new(|| {
        // SAFETY: sched_getaffinity(2), sched_setaffinity(2) of the calling OS thread, which is
        // this test's; CPU_ISSET(3) and its like on sets of ours.
        unsafe {
            let size = size_of::<libc::cpu_set_t>();
            let mut allowed: libc::cpu_set_t = std::mem::zeroed();
            assert_eq!(libc::sched_getaffinity(0, size, &mut allowed), 0);
            for cpu in (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &allowed))
            {
                let mut one: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(cpu, &mut one);
                assert_eq!(libc::sched_setaffinity(0, size, &one), 0);
                // glibc reads a number that the kernel keeps in the worker's struct pthread, or,
                // where that is marked as unregistered, asks.
                assert_eq!(libc::sched_getcpu(), cpu as c_int);
            }
            assert_eq!(libc::sched_setaffinity(0, size, &allowed), 0);
        }
    });
    finish(fiber).destroy();
}

#[test]
fn a_locale_is_the_fibers_own_and_gone_after_it() {
    fn own() -> usize {
        // SAFETY: uselocale(3): null asks.
        unsafe { libc::uselocale(ptr::null_mut()) as usize }
    }
    let global = own();
    let fiber = on_a_fiber(move || {
        assert_eq!(own(), global);
        // SAFETY: newlocale(3), uselocale(3): "C" is always there.
        let locale = unsafe { libc::newlocale(libc::LC_ALL_MASK, c"C".as_ptr(), ptr::null_mut()) };
        assert!(!locale.is_null());
        // SAFETY: as above.
        unsafe { libc::uselocale(locale) };
        yield_now();
        assert_ne!(own(), global);
        // SAFETY: ctype works by tables that follow the locale.
        assert_ne!(unsafe { libc::isalpha(c_int::from(b'a')) }, 0);
    });
    assert_eq!(own(), global);
    finish(fiber.recycle(move || {
        assert_eq!(own(), global);
        // SAFETY: as above.
        assert_ne!(unsafe { libc::isalpha(c_int::from(b'a')) }, 0);
    }))
    .destroy();
}

#[test]
fn the_resolvers_state_is_the_fibers_own() {
    unsafe extern "C" {
        fn __res_state() -> *mut c_void;
    }
    // SAFETY: <resolv.h>: the calling thread's state.
    let outside = unsafe { __res_state() } as usize;
    let fiber = on_a_fiber(move || {
        // SAFETY: as above.
        let own = unsafe { __res_state() } as usize;
        assert_ne!(own, outside);
        let pthread = identity::thread_pointer()..;
        assert!(pthread.contains(&own), "in the fiber's struct pthread");
    });
    fiber.destroy();
}

#[test]
fn a_recycled_identity_equals_a_new_one() {
    thread_local! {
        static COUNT: Cell<u64> = const { Cell::new(42) };
        static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
    }
    fn program() {
        assert_eq!(COUNT.replace(7), 42);
        TEXT.with_borrow_mut(|text| {
            assert!(text.is_empty());
            text.push_str("something");
        });
        let mut old = 0;
        // SAFETY: errno(3), pthread_setcancelstate(3), strerror(3), dlsym(3): nothing special.
        unsafe {
            *libc::__errno_location() = libc::EINVAL;
            pthread_setcanceltype(1, &mut old);
            libc::strerror(123_456);
            libc::dlsym(libc::RTLD_DEFAULT, c"no such symbol".as_ptr());
        }
        drop(vec![0u8; 100]);
        let _ = thread::current();
    }
    unsafe extern "C" {
        fn pthread_setcanceltype(kind: c_int, old: *mut c_int) -> c_int;
    }
    kit().adopt_thread();
    let fiber = Fiber::new(program);
    let new = fiber.bytes();
    let fiber = finish(fiber);
    assert_ne!(fiber.bytes(), new, "the program has left no traces: nothing is shown");
    let mut fiber = fiber.recycle(program);
    // What differs rightly: the id, and malloc's words, which belong to the OS thread.
    let report = kit().report();
    let floor = kit().floor_offset() as isize;
    let malloc = report.malloc.map_or([0; 2], |(cache, arena)| [cache, arena]);
    let tid = report.pthread.iter().find(|(_, word)| *word == Word::Tid).unwrap().0 as isize;
    let compare = |fiber: &Fiber| {
        for (i, (a, b)) in new.iter().zip(fiber.bytes()).enumerate() {
            let offset = i as isize * 8 - floor;
            if !malloc.contains(&offset) && offset != tid {
                assert_eq!(*a, b, "the word at {offset:+}");
            }
        }
    };
    compare(&fiber);
    for _ in 0..3 {
        fiber = finish(fiber).recycle(program);
        compare(&fiber);
    }
    finish(fiber).destroy();
}

#[test]
fn a_panic_is_caught_on_the_fiber_and_goes_no_further() {
    let fibers = (0..20).map(|i| {
        Fiber::new(move || {
            let result = panic::catch_unwind(|| {
                yield_now();
                assert!(!thread::panicking());
                panic::resume_unwind(Box::new(i));
            });
            yield_now();
            assert_eq!(*result.unwrap_err().downcast::<i32>().unwrap(), i);
        })
    });
    run(fibers.collect(), 2).into_iter().for_each(Fiber::destroy);
}

#[test]
fn a_fiber_that_panics_while_another_runs_does_not_disturb_it() {
    struct Yields;
    impl Drop for Yields {
        fn drop(&mut self) {
            // In the middle of unwinding.
            yield_now();
            assert!(thread::panicking());
        }
    }
    kit().adopt_thread();
    let panics = Fiber::new(|| {
        let result = panic::catch_unwind(|| {
            let _guard = Yields;
            panic::resume_unwind(Box::new(()));
        });
        assert!(result.is_err() && !thread::panicking());
    });
    assert!(!panics.resume());
    assert!(!thread::panicking());
    on_a_fiber(|| assert!(!thread::panicking())).destroy();
    finish(panics).destroy();
}

#[test]
fn a_backtrace_ends_at_the_fibers_entry() {
    static TEXT: Mutex<String> = Mutex::new(String::new());
    #[inline(never)]
    fn a_function_on_a_fiber() {
        *TEXT.lock().unwrap() = Backtrace::force_capture().to_string();
    }
    on_a_fiber(a_function_on_a_fiber).destroy();
    let text = TEXT.lock().unwrap();
    assert!(text.contains("a_function_on_a_fiber"), "{text}");
    assert!(text.contains("where_fibers_begin"), "{text}");
    assert!(!text.contains("libtest") && !text.contains("run_test"), "{text}");
}

#[test]
fn a_real_thread_can_be_made_and_joined_on_a_fiber() {
    on_a_fiber(|| {
        let own = thread::current().id();
        let other = thread::spawn(|| thread::current().id()).join().unwrap();
        assert_ne!(own, other);
    })
    .destroy();
}

#[test]
fn malloc_serves_fibers_that_move() {
    static SENT: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
    let fibers = (0..64usize).map(|i| {
        Fiber::new(move || {
            let mut held: Vec<Vec<u8>> = Vec::new();
            let mut random = i * 2_654_435_761 + 1;
            for round in 0..200 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let size = random % [64, 1_000, 40_000][round % 3] + 1;
                held.push(vec![i as u8; size]);
                if held.len() > 8 {
                    let old = held.swap_remove(random % 8);
                    assert!(old.iter().all(|&byte| byte == i as u8));
                }
                // One block at a time goes to another fiber, which frees it.
                let mine = Box::into_raw(Box::new(i as u8));
                let theirs = SENT.swap(mine, Ordering::AcqRel);
                if !theirs.is_null() {
                    // SAFETY: swapped in by one fiber, out by another.
                    drop(unsafe { Box::from_raw(theirs) });
                }
                yield_now();
            }
        })
    });
    run(fibers.collect(), 2).into_iter().for_each(Fiber::destroy);
}

#[test]
fn mallocs_words_are_those_of_the_os_thread() {
    let Ok((cache, arena)) = kit().report().malloc else {
        panic!("the words of this malloc were not found: {}", kit().report());
    };
    #[inline(never)]
    fn words(tp: usize, cache: isize, arena: isize) -> [usize; 2] {
        // SAFETY: words of libc's block of an identity in force, or of one that carries it.
        [cache, arena]
            .map(|at| unsafe { (tp.wrapping_add_signed(at) as *const usize).read_volatile() })
    }
    let own = move || words(identity::thread_pointer(), cache, arena);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let fiber = {
        let seen = seen.clone();
        Fiber::new(move || {
            for _ in 0..2 {
                let on_fiber = own();
                seen.lock().unwrap().push(on_fiber);
                yield_now();
            }
        })
    };
    let carry = move |fiber: Fiber| {
        kit().adopt_thread();
        let before = own();
        assert!(before.iter().all(|word| *word != 0));
        fiber.resume();
        assert_eq!(own(), before);
        (fiber, before)
    };
    let (fiber, first) = carry(fiber);
    let (fiber, second) = thread::spawn(move || carry(fiber)).join().unwrap();
    assert_ne!(first[0], second[0], "two OS threads with one cache");
    assert_eq!(*seen.lock().unwrap(), [first, second]);
    finish(fiber).destroy();
}

#[test]
fn a_fiber_may_fork_and_the_child_may_make_threads() {
    alone("a_fiber_may_fork_and_the_child_may_make_threads", &[], || {
        // Others that the child must not stumble over.
        let parked: Vec<_> = (0..10).map(|_| Fiber::new(yield_now)).collect();
        parked.iter().for_each(|fiber| assert!(!fiber.resume()));
        on_a_fiber(|| {
            // SAFETY: fork(2), _exit(2), waitpid(2).
            unsafe {
                let child = libc::fork();
                assert!(child >= 0);
                if child == 0 {
                    let ok =
                        thread::spawn(|| vec![1; 1_000].len()).join().is_ok_and(|n| n == 1_000);
                    libc::_exit(if ok { 17 } else { 1 });
                }
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                assert_eq!(libc::WEXITSTATUS(status), 17, "status {status:#x}");
            }
        })
        .destroy();
        for fiber in parked {
            finish(fiber).destroy();
        }
    });
}

#[test]
fn glibc_takes_the_process_for_multi_threaded() {
    kit();
    unsafe extern "C" {
        static __libc_single_threaded: u8;
    }
    // SAFETY: <sys/single_threaded.h>.
    assert_eq!(unsafe { ptr::read_volatile(&raw const __libc_single_threaded) }, 0);
}

#[test]
fn first_calls_at_once_get_one_kit() {
    alone("first_calls_at_once_get_one_kit", &[], || {
        let barrier = std::sync::Barrier::new(8);
        let kits: HashSet<usize> = thread::scope(|scope| {
            let calls: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        ptr::from_ref(identity::kit().unwrap()) as usize
                    })
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        assert_eq!(kits.len(), 1);
    });
}

#[test]
fn the_environment_can_forbid_identities() {
    let name = "the_environment_can_forbid_identities";
    alone(name, &[("SLEAVE_IDENTITY", "threads")], || {
        let why = identity::kit().err().expect("no identities").to_string();
        assert!(why.contains("SLEAVE_IDENTITY=threads"), "{why}");
    });
}

#[test]
fn a_setting_that_means_nothing_is_said() {
    alone("a_setting_that_means_nothing_is_said", &[("SLEAVE_IDENTITY", "yes")], || {
        let why = identity::kit().err().expect("no identities").to_string();
        assert!(why.contains("SLEAVE_IDENTITY=yes"), "{why}");
    });
}

#[test]
fn the_template_of_glibc_2_36_is_the_known_one() {
    let report = kit().report();
    if report.version != "2.36" {
        println!("not compared: this is glibc {}", report.version);
        return;
    }
    assert_eq!(report.pthread_size, 2368);
    let at =
        |offset: usize| report.pthread.iter().find(|(at, _)| *at == offset).map(|(_, word)| *word);
    // Offsets as debug symbols give them for Debian's build.
    for (offset, word) in [
        (0, Some(Word::Relative(0))),               // tcb
        (8, Some(Word::Dtv)),                       // dtv
        (0x10, Some(Word::Relative(0))),            // self
        (0x18, Some(Word::Constant(1))),            // multiple_threads
        (704, Some(Word::List)),                    // list.next
        (712, Some(Word::List)),                    // list.prev
        (720, Some(Word::Tid)),                     // tid
        (728, Some(Word::Relative(736))),           // robust_prev
        (736, Some(Word::Relative(736))),           // robust_head.list
        (744, Some(Word::Constant(-32i64 as u64))), // robust_head.futex_offset
        (760, None),                                // cleanup
        (768, Some(Word::Frame)),                   // cleanup_jmp_buf
        (1296, Some(Word::Relative(784))),          // specific[0]
        (1304, None),                               // specific[1]
        (1680, Some(Word::StackBase)),              // stackblock
        (1688, Some(Word::StackSize)),              // stackblock_size
        (1696, None),                               // guardsize
        (1720, None),                               // res
        (2336, Some(Word::Rseq)),                   // rseq_area
    ] {
        assert_eq!(at(offset), word, "offset {offset}");
    }
    let constant = |offset| match at(offset) {
        Some(Word::Constant(value)) => value,
        None => 0,
        other => panic!("offset {offset}: {other:?}"),
    };
    assert_eq!(constant(776) as u32, 0, "cancelhandling");
    assert_eq!(constant(1552) >> 16 & 0xff, 1, "user_stack at 1554");
    assert_eq!((constant(1560) >> 32) as u32, 0, "setxid_futex at 1564");
    // The canary and the pointer guard are every thread's.
    let own = |offset: usize| {
        // SAFETY: x86-64 TLS ABI: words of the calling thread's TCB.
        unsafe { ((identity::thread_pointer() + offset) as *const u64).read() }
    };
    assert_eq!([constant(0x28), constant(0x30)], [own(0x28), own(0x30)]);
    assert_eq!(constant(0x48), own(0x48), "feature_1");
    // And in libc's thread-locals: the resolver's state, three tables of ctype.
    let patches = report.libc_tls.iter().map(|(_, patch)| patch);
    let relative: Vec<_> =
        patches.filter(|patch| matches!(patch, identity::Patch::Relative(_))).collect();
    assert_eq!(relative, [&identity::Patch::Relative(1720)]);
}

#[test]
fn a_report_reads_as_text() {
    let text = kit().report().to_string();
    assert!(text.contains("struct pthread") && text.contains("malloc: cache"), "{text}");
}
