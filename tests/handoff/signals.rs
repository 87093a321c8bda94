//! Waiting for signals: `sigwait`, `sigwaitinfo`, `sigtimedwait`, `sigsuspend` and `pause`.
//!
//! A signal that was sent to a thread is that thread's, so these bodies send to the one they are on, and do not park in between.

use std::mem::zeroed;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::outcome;
use crate::support::kernel::{block_thread, tid};
use crate::support::{Company, Host, LONG_PATIENCE, everywhere, watchdog::Watchdog};

/// Sends `signal` to the OS thread `thread` of this process.
fn send(thread: usize, signal: i32) {
    // SAFETY: tgkill(2) takes three numbers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, signal) };
    assert_eq!(sent, 0);
}

/// The same, a little later, by another thread. (It is not joined: a join is a wait of its own.)
fn send_soon(thread: usize, signal: i32) {
    thread::spawn(move || {
        block_thread(Duration::from_millis(50));
        send(thread, signal);
    });
}

fn set_of(signal: i32) -> libc::sigset_t {
    // SAFETY: sigemptyset(3) makes a set of what zeroes are, sigaddset(3) adds to it.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        set
    }
}

/// Runs `f` with `signal` blocked on this thread.
fn with_blocked<T>(signal: i32, f: impl FnOnce(&libc::sigset_t) -> T) -> T {
    let set = set_of(signal);
    // SAFETY: pthread_sigmask(3) reads and writes sets of our own.
    unsafe {
        let mut old = zeroed();
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut old), 0);
        let value = f(&set);
        assert_eq!(libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut()), 0);
        value
    }
}

#[test]
fn a_signal_is_waited_for() {
    everywhere(|_| {
        with_blocked(libc::SIGUSR1, |set| {
            // SAFETY: sigwait(3) and its siblings with a set and variables of our own.
            unsafe {
                let (mut signal, mut info) = (0, zeroed::<libc::siginfo_t>());
                send(tid(), libc::SIGUSR1);
                let pending = (libc::sigwait(set, &mut signal), signal);
                send_soon(tid(), libc::SIGUSR1);
                let soon = (libc::sigwait(set, &mut signal), signal);
                send_soon(tid(), libc::SIGUSR1);
                let told = (outcome(libc::sigwaitinfo(set, &mut info)), info.si_signo);
                let (short, long) = ((0, 1_000_000), (20, 0));
                let timed = [short, long].map(|(tv_sec, tv_nsec)| {
                    let timeout = libc::timespec { tv_sec, tv_nsec };
                    if tv_sec > 0 {
                        send_soon(tid(), libc::SIGUSR1);
                    }
                    outcome(libc::sigtimedwait(set, &mut info, &timeout))
                });
                (pending, soon, told, timed)
            }
        })
    });
}

/// Whether this thread blocks `signal`.
fn blocks(signal: i32) -> bool {
    // SAFETY: pthread_sigmask(3) without a new set writes the old one.
    unsafe {
        let mut set = zeroed();
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut set), 0);
        libc::sigismember(&set, signal) == 1
    }
}

#[test]
fn a_worker_that_stands_in_blocks_what_the_runtimes_maker_blocked() {
    let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
    let runtime =
        with_blocked(libc::SIGUSR2, |_| sleave::Runtime::builder().workers(1).build().unwrap());
    let (say, thread) = std::sync::mpsc::channel();
    let waits = runtime.spawn(move || {
        with_blocked(libc::SIGUSR1, |set| {
            say.send(tid()).unwrap();
            let mut signal = 0;
            // SAFETY: sigwait(3) with a set and a number of our own.
            (unsafe { libc::sigwait(set, &mut signal) }, signal, blocks(libc::SIGUSR2))
        })
    });
    let thread = thread.recv().unwrap();
    crate::support::timing::eventually("it waits", || runtime.statistics().blocked == 1);
    let stands_in = runtime.spawn(|| (tid(), blocks(libc::SIGUSR1), blocks(libc::SIGUSR2)));
    let (other, usr1, usr2) = stands_in.join().unwrap();
    assert_ne!(other, thread);
    assert_eq!((usr1, usr2), (false, true));
    send(thread, libc::SIGUSR1);
    assert_eq!(waits.join().unwrap(), (0, libc::SIGUSR1, true));
    runtime.stop();
}

static HANDLED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handle(_: i32) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn a_handler_ends_a_suspension() {
    Company::Alone.keep(|| {
        // SAFETY: sigaction(2) of a function that adds to an atomic.
        unsafe {
            let mut action = zeroed::<libc::sigaction>();
            action.sa_sigaction = handle as *const () as usize;
            assert_eq!(libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()), 0);
        }
        let body = |_| {
            with_blocked(libc::SIGUSR2, |_| {
                let before = HANDLED.load(Ordering::SeqCst);
                send_soon(tid(), libc::SIGUSR2);
                // SAFETY: sigsuspend(2) reads a set: of another signal, so that this one comes through.
                let ended = outcome(unsafe { libc::sigsuspend(&set_of(libc::SIGUSR1)) });
                (ended, HANDLED.load(Ordering::SeqCst) - before)
            })
        };
        let hosts = [Host::Threads, Host::Fibers { workers: 1 }, Host::Fibers { workers: 2 }];
        let results = hosts.map(|host| host.run(LONG_PATIENCE, &body));
        assert_eq!(results, [(Err(libc::EINTR), 1); 3]);
    });
}

#[test]
fn a_pause_holds_nobody_else() {
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        // SAFETY: as above.
        unsafe {
            let mut action = zeroed::<libc::sigaction>();
            action.sa_sigaction = handle as *const () as usize;
            assert_eq!(libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()), 0);
        }
        let runtime = sleave::Runtime::builder().workers(1).build().unwrap();
        let (say, thread) = std::sync::mpsc::channel();
        let pauses = runtime.spawn(move || {
            say.send(tid()).unwrap();
            // SAFETY: pause(2) takes nothing.
            outcome(unsafe { libc::pause() })
        });
        let thread = thread.recv().unwrap();
        crate::support::timing::eventually("it pauses", || runtime.statistics().blocked == 1);
        assert_eq!(runtime.spawn(|| 7).join().unwrap(), 7);
        // Again if it came before the pause had begun in the kernel.
        while !pauses.is_finished() {
            send(thread, libc::SIGUSR2);
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(pauses.join().unwrap(), Err(libc::EINTR));
        runtime.stop();
    });
}
