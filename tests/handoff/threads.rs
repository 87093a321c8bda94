//! Joining OS threads from fibers.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::support::{Company, Gate, Host, LONG_PATIENCE, everywhere, watchdog::Watchdog};
use crate::{MANY, all_wait};

#[test]
fn a_thread_is_joined_with_its_value_or_panic() {
    everywhere(|host| {
        host.spawn_many(10, |i| {
            let value = thread::spawn(move || {
                thread::sleep(Duration::from_millis(i as u64));
                i
            });
            let panic = thread::spawn(move || -> () {
                thread::sleep(Duration::from_millis(5));
                std::panic::resume_unwind(Box::new(i))
            });
            let ended = thread::spawn(|| ());
            while !ended.is_finished() {
                thread::yield_now();
            }
            let panic = panic.join().unwrap_err().downcast::<usize>().unwrap();
            (value.join().unwrap(), *panic, ended.join().unwrap())
        })
    });
}

extern "C" fn naps(argument: *mut libc::c_void) -> *mut libc::c_void {
    thread::sleep(Duration::from_millis(300));
    argument
}

unsafe extern "C" {
    fn pthread_tryjoin_np(thread: libc::pthread_t, value: *mut *mut libc::c_void) -> i32;
    fn pthread_timedjoin_np(
        thread: libc::pthread_t,
        value: *mut *mut libc::c_void,
        at: *const libc::timespec,
    ) -> i32;
}

#[test]
fn a_join_with_a_deadline_gives_up_and_one_without_waits() {
    everywhere(|_| {
        let mut value = std::ptr::null_mut();
        // SAFETY: pthread_create(3) of a function of this type; the thread is joined once, below.
        unsafe {
            let mut thread = 0;
            let argument = std::ptr::without_provenance_mut(7);
            assert_eq!(libc::pthread_create(&mut thread, std::ptr::null(), naps, argument), 0);
            let long_ago = libc::timespec { tv_sec: 1, tv_nsec: 0 };
            let codes = [
                pthread_tryjoin_np(thread, &mut value),
                pthread_timedjoin_np(thread, &mut value, &long_ago),
                libc::pthread_join(thread, &mut value),
            ];
            (codes, value.addr())
        }
    });
}

#[test]
fn many_threads_are_joined_at_once_on_one_worker() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let gate = Arc::new(Gate::default());
        let opened = Arc::clone(&gate);
        let join = move |i| {
            let gate = Arc::clone(&gate);
            let waits = move || {
                gate.pass();
                i
            };
            thread::Builder::new().stack_size(64 << 10).spawn(waits).unwrap().join().unwrap()
        };
        let joined = all_wait(MANY, join, || opened.open());
        assert!(joined.into_iter().eq(0..MANY));
    });
}
