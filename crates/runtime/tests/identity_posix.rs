//! What POSIX ties to a thread by its id: values of keys and their destructors, and the owners of
//! mutexes. The same as on a thread, compared with one where that can be.

mod identity_harness;

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;

use identity_harness::{Fiber, finish, kit, on_a_fiber, run, yield_now};

mod keys {
    use super::*;

    fn key(destructor: unsafe extern "C" fn(*mut c_void)) -> libc::pthread_key_t {
        let mut key = 0;
        // SAFETY: pthread_key_create(3).
        assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(destructor)) }, 0);
        key
    }

    fn set(key: libc::pthread_key_t, value: usize) {
        // SAFETY: pthread_setspecific(3).
        assert_eq!(unsafe { libc::pthread_setspecific(key, value as *const c_void) }, 0);
    }

    fn get(key: libc::pthread_key_t) -> usize {
        // SAFETY: pthread_getspecific(3).
        unsafe { libc::pthread_getspecific(key) as usize }
    }

    #[test]
    fn values_are_the_fibers_own_and_destructors_get_them() {
        static SUM: AtomicUsize = AtomicUsize::new(0);
        unsafe extern "C" fn destructor(value: *mut c_void) {
            SUM.fetch_add(value as usize, Ordering::SeqCst);
        }
        // More than one block of 32, so that blocks are allocated too.
        let keys: Vec<_> = (0..100).map(|_| key(destructor)).collect();
        let body = |i: usize, keys: Vec<libc::pthread_key_t>| {
            move || {
                assert!(keys.iter().all(|&key| get(key) == 0));
                for (j, &key) in keys.iter().enumerate() {
                    set(key, i * 1000 + j);
                }
                for _ in 0..5 {
                    yield_now();
                    assert!(keys.iter().enumerate().all(|(j, &key)| get(key) == i * 1000 + j));
                }
            }
        };
        let fibers = (1..=50).map(|i| Fiber::new(body(i, keys.clone())));
        let fibers = run(fibers.collect(), 2);
        let each: usize = (1..=50).map(|i| (0..100).map(|j| i * 1000 + j).sum::<usize>()).sum();
        assert_eq!(SUM.load(Ordering::SeqCst), each);
        let again = (1..=50).zip(fibers).map(|(i, f)| f.recycle(body(i, keys.clone())));
        run(again.collect(), 2).into_iter().for_each(Fiber::destroy);
        assert_eq!(SUM.load(Ordering::SeqCst), 2 * each);
        for key in keys {
            // SAFETY: pthread_key_delete(3).
            assert_eq!(unsafe { libc::pthread_key_delete(key) }, 0);
        }
    }

    #[test]
    fn a_destructor_that_sets_its_value_again_runs_four_times_as_on_a_thread() {
        static KEY: AtomicU32 = AtomicU32::new(0);
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        unsafe extern "C" fn destructor(value: *mut c_void) {
            CALLS.fetch_add(1, Ordering::SeqCst);
            set(KEY.load(Ordering::SeqCst), value as usize);
        }
        KEY.store(key(destructor), Ordering::SeqCst);
        let body = || {
            assert_eq!(get(KEY.load(Ordering::SeqCst)), 0);
            set(KEY.load(Ordering::SeqCst), 7);
        };
        thread::spawn(body).join().unwrap();
        let on_thread = CALLS.swap(0, Ordering::SeqCst);
        assert_eq!(on_thread, 4);
        let fiber = on_a_fiber(body);
        assert_eq!(CALLS.swap(0, Ordering::SeqCst), on_thread);
        // The value that stayed is not the next fiber's.
        finish(fiber.recycle(body)).destroy();
        assert_eq!(CALLS.load(Ordering::SeqCst), on_thread);
    }

    #[test]
    fn a_deleted_key_has_no_destructor() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        unsafe extern "C" fn destructor(_: *mut c_void) {
            CALLS.fetch_add(1, Ordering::SeqCst);
        }
        let key = key(destructor);
        on_a_fiber(move || {
            set(key, 1);
            // SAFETY: pthread_key_delete(3).
            assert_eq!(unsafe { libc::pthread_key_delete(key) }, 0);
        })
        .destroy();
        assert_eq!(CALLS.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn key_destructors_come_after_those_of_thread_locals() {
        static ORDER: Mutex<Vec<&str>> = Mutex::new(Vec::new());
        struct Local;
        impl Drop for Local {
            fn drop(&mut self) {
                ORDER.lock().unwrap().push("thread_local");
            }
        }
        thread_local!(static LOCAL: Local = const { Local });
        unsafe extern "C" fn destructor(_: *mut c_void) {
            ORDER.lock().unwrap().push("key");
        }
        let key = key(destructor);
        let body = move || {
            set(key, 1);
            LOCAL.with(|_| ());
        };
        thread::spawn(body).join().unwrap();
        let on_thread = std::mem::take(&mut *ORDER.lock().unwrap());
        on_a_fiber(body).destroy();
        assert_eq!(*ORDER.lock().unwrap(), on_thread);
        assert_eq!(on_thread, ["thread_local", "key"]);
    }
}

mod mutexes {
    use super::*;

    /// A pthread mutex that stays where it is.
    fn mutex(kind: c_int, robust: bool) -> *mut libc::pthread_mutex_t {
        let mut attributes = MaybeUninit::uninit();
        let mutex = Box::into_raw(Box::new(libc::PTHREAD_MUTEX_INITIALIZER));
        // SAFETY: pthread_mutexattr_init(3) and its like; the mutex is never moved or freed.
        unsafe {
            assert_eq!(libc::pthread_mutexattr_init(attributes.as_mut_ptr()), 0);
            assert_eq!(libc::pthread_mutexattr_settype(attributes.as_mut_ptr(), kind), 0);
            if robust {
                let robust = libc::PTHREAD_MUTEX_ROBUST;
                assert_eq!(libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), robust), 0);
            }
            assert_eq!(libc::pthread_mutex_init(mutex, attributes.as_ptr()), 0);
        }
        mutex
    }

    fn lock(mutex: usize) -> c_int {
        // SAFETY: pthread_mutex_lock(3) of a live mutex.
        unsafe { libc::pthread_mutex_lock(mutex as *mut _) }
    }

    fn try_lock(mutex: usize) -> c_int {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_trylock(mutex as *mut _) }
    }

    fn unlock(mutex: usize) -> c_int {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_unlock(mutex as *mut _) }
    }

    #[test]
    fn a_recursive_mutex_belongs_to_the_fiber_not_to_the_os_thread() {
        let m = mutex(libc::PTHREAD_MUTEX_RECURSIVE, false) as usize;
        let owner = Fiber::new(move || {
            assert_eq!(lock(m), 0);
            yield_now();
            assert_eq!(lock(m), 0);
            yield_now();
            assert_eq!(unlock(m), 0);
            assert_eq!(unlock(m), 0);
        });
        assert!(!owner.resume());
        // The same OS thread, another fiber; and the OS thread itself.
        on_a_fiber(move || assert_eq!(try_lock(m), libc::EBUSY)).destroy();
        assert_eq!(try_lock(m), libc::EBUSY);
        // The same fiber, another OS thread.
        let owner = thread::spawn(move || {
            kit().adopt_thread();
            assert!(!owner.resume());
            owner
        });
        finish(owner.join().unwrap()).destroy();
        assert_eq!((try_lock(m), unlock(m)), (0, 0));
    }

    #[test]
    fn an_error_checking_mutex_knows_its_fiber() {
        let m = mutex(libc::PTHREAD_MUTEX_ERRORCHECK, false) as usize;
        let owner = Fiber::new(move || {
            assert_eq!(lock(m), 0);
            assert_eq!(lock(m), libc::EDEADLK);
            yield_now();
            assert_eq!(lock(m), libc::EDEADLK);
            assert_eq!(unlock(m), 0);
        });
        assert!(!owner.resume());
        on_a_fiber(move || assert_eq!(unlock(m), libc::EPERM)).destroy();
        assert_eq!(unlock(m), libc::EPERM);
        finish(owner).destroy();
    }

    #[test]
    fn the_owner_of_a_mutex_is_the_fibers_tid() {
        let m = mutex(libc::PTHREAD_MUTEX_ERRORCHECK, false) as usize;
        let (tell, told) = std::sync::mpsc::channel();
        let fiber = on_a_fiber(move || {
            assert_eq!(lock(m), 0);
            // SAFETY: __pthread_mutex_s: lock, count, owner.
            tell.send(unsafe { (m as *const u32).add(2).read() }).unwrap();
            assert_eq!(unlock(m), 0);
        });
        assert_eq!(told.recv(), Ok(fiber.tid));
        fiber.destroy();
    }

    #[test]
    fn robust_mutexes_of_a_fiber_that_ended_tell_the_next_owner() {
        let held: Vec<_> =
            (0..5).map(|_| mutex(libc::PTHREAD_MUTEX_NORMAL, true) as usize).collect();
        let first = held[0];
        let (tell, told) = std::sync::mpsc::channel();
        let fiber = Fiber::new(move || {
            for &m in &held {
                assert_eq!(lock(m), 0);
            }
            assert_eq!(unlock(held[2]), 0);
            tell.send(held.clone()).unwrap();
            yield_now();
        });
        assert!(!fiber.resume());
        let held = told.recv().unwrap();
        assert_eq!(try_lock(first), libc::EBUSY);
        // This one is in the kernel when the fiber ends, or comes right after: it gets the mutex
        // in either case, and would wait for ever without the wake.
        let waiter = thread::spawn(move || {
            let answer = lock(first);
            // SAFETY: pthread_mutex_consistent(3).
            unsafe { assert_eq!(libc::pthread_mutex_consistent(first as *mut _), 0) };
            (answer, unlock(first))
        });
        // Until it has marked the lock word as waited for.
        // SAFETY: __pthread_mutex_s starts with the lock word.
        let word = unsafe { AtomicU32::from_ptr(first as *mut u32) };
        while word.load(Ordering::Acquire) & libc::FUTEX_WAITERS == 0 {
            thread::yield_now();
        }
        let fiber = finish(fiber);
        assert_eq!(waiter.join().unwrap(), (libc::EOWNERDEAD, 0));
        for (i, &m) in held.iter().enumerate().skip(1) {
            let expected = if i == 2 { 0 } else { libc::EOWNERDEAD };
            assert_eq!(try_lock(m), expected, "mutex {i}");
        }
        // The list is empty again for the next fiber.
        let m = mutex(libc::PTHREAD_MUTEX_NORMAL, true) as usize;
        finish(fiber.recycle(move || assert_eq!(lock(m), 0))).destroy();
        assert_eq!(try_lock(m), libc::EOWNERDEAD);
    }
}
