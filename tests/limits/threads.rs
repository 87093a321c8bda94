//! No thread is to be had: who needs one is told, and who does not goes on.

use std::thread;
use std::time::Duration;

use syscalls::{Sysno, syscall};

use super::child;
use crate::support::timing::eventually;
use crate::support::{Host, Watchdog};

/// From now on the kernel makes no thread for the calling one. The superuser has no such limit, so this is
/// somebody else then; but it alone: the bare call changes one thread's.
fn without_threads() {
    const NOBODY: usize = 65534;
    // SAFETY: geteuid(2) and setresuid(2) take numbers.
    unsafe {
        if libc::geteuid() == 0 {
            syscall!(Sysno::setresuid, NOBODY, NOBODY, NOBODY).unwrap();
        }
    }
    child::limit(libc::RLIMIT_NPROC, 0);
    let error = thread::Builder::new().spawn(|| ()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
}

#[test]
fn without_a_thread_a_spawn_from_outside_is_refused_and_a_caller_works_alone() {
    child::run(
        "threads::without_a_thread_a_spawn_from_outside_is_refused_and_a_caller_works_alone",
        &child::fibers(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        let Host::Fibers { workers } = host else { unreachable!() };
        let _watchdog = Watchdog::over(host, Duration::from_secs(60));
        sleave::identity().unwrap();
        let runtime = sleave::Runtime::builder().workers(workers).build().unwrap();
        without_threads();
        for _ in 0..10 {
            let spawned = sleave::Builder::new().spawn_on(&runtime, || ());
            assert_eq!(spawned.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        }
        // The calling thread is a worker, the only one.
        let sum: usize = runtime.run(|| {
            let parts = (0..100).map(|i| {
                host.spawn(move || {
                    thread::sleep(Duration::from_millis(1));
                    i
                })
            });
            parts.collect::<Vec<_>>().into_iter().map(|part| part.value()).sum()
        });
        assert_eq!(sum, (0..100).sum());
        // A pin may need another.
        match runtime.run(|| sleave::Builder::new().pin(0).spawn(|| ())) {
            Ok(pinned) => pinned.join().unwrap(),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EAGAIN)),
        }
        // One that has been joined counts for a moment longer.
        eventually("none is counted, the refused ones least of all", || {
            runtime.statistics().fibers == 0
        });
        child::limit(libc::RLIMIT_NPROC, u64::MAX);
        assert_eq!(runtime.spawn(|| 7).join().unwrap(), 7);
        runtime.stop();
    }
}

#[test]
fn without_a_thread_there_are_no_identities_and_all_calls_say_so() {
    child::run(
        "threads::without_a_thread_there_are_no_identities_and_all_calls_say_so",
        &child::fibers()[..1],
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        let _watchdog = Watchdog::over(host, Duration::from_secs(60));
        without_threads();
        assert!(sleave::identity().is_err());
        let runtime = sleave::Runtime::builder().workers(1).build().unwrap();
        let spawned = sleave::Builder::new().spawn_on(&runtime, || ());
        assert_eq!(spawned.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        // Then fibers are threads, when there are some.
        child::limit(libc::RLIMIT_NPROC, u64::MAX);
        assert_eq!(runtime.spawn(|| 7).join().unwrap(), 7);
        runtime.stop();
    }
}
