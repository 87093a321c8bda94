//! Dead-locks of all fibers are reported with what each waits for; what only looks like one is not.
//!
//! Each case is a process of its own: this test binary again, one test, told by the environment to be the child. A child's
//! fibers come to rest; then either the runtime says so, or, where something from outside will wake them, the child lives until
//! its parent closes the pipe that is its standard input.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use sleave::{Builder, Deadlock, Runtime, Timer, event};

use super::can;
use super::support::{Company, WORKERS};

const CHILD: &str = "SLEAVE_TEST_DEADLOCK_WORKERS";

/// A second is what the runtime waits before it looks: this is long enough to say something wrong.
const LONG: Duration = Duration::from_millis(2500);

/// In the child, its runtime.
fn child() -> Option<Runtime> {
    let workers = env::var(CHILD).ok()?.parse().expect("set by the parent");
    Some(Runtime::builder().workers(workers).build().expect("a runtime"))
}

/// The test `name` of this file as a child that does `action` about a dead-lock.
fn start(name: &str, workers: usize, action: &str) -> Child {
    let module = module_path!().split_once("::").expect("a module of the test crate").1;
    Command::new(env::current_exe().expect("the path of this test binary"))
        .args([&format!("{module}::{name}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, workers.to_string())
        .env("SLEAVE_DEADLOCK", action)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the child starts")
}

/// What the child says until its end.
fn end(mut child: Child) -> (ExitStatus, String) {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).expect("text");
    (child.wait().unwrap(), said)
}

/// Asserts that the child `name` is found dead-locked on runtimes of each size, aborts and has said all `lines`.
fn dead_locks(name: &str, lines: &[&str]) {
    if !can() {
        return;
    }
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let (status, said) = end(start(name, workers, "abort"));
            assert_eq!(status.signal(), Some(libc::SIGABRT), "{workers} workers: {said}");
            assert_eq!(said.matches("sleave: dead-lock").count(), 1, "{said}");
            for line in lines {
                assert!(said.contains(line), "{workers} workers: no `{line}` in:\n{said}");
            }
        }
    });
}

/// Asserts that the child `name` is not found dead-locked, and ends well when its standard input does.
fn lives(name: &str) {
    if !can() {
        return;
    }
    Company::Shared.keep(|| {
        let children = WORKERS.map(|workers| (workers, start(name, workers, "abort")));
        // They have nothing to do for so long.
        thread::sleep(LONG);
        for (workers, mut child) in children {
            drop(child.stdin.take());
            let (status, said) = end(child);
            assert!(status.success(), "{workers} workers: {status}\n{said}");
            assert!(!said.contains("dead-lock"), "{workers} workers:\n{said}");
        }
    });
}

fn spawn<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> sleave::JoinHandle<T> {
    Builder::new().name(name).spawn(f).expect("a fiber")
}

/// Returns when the parent has closed the pipe.
fn await_parent() {
    std::io::stdin().read_to_end(&mut Vec::new()).expect("a pipe");
}

#[test]
fn a_cycle_of_mutexes() {
    let Some(runtime) = child() else {
        let lines = ["left ", "right ", "waits for the lock at 0x", "waits for the end of fiber"];
        return dead_locks("a_cycle_of_mutexes", &lines);
    };
    runtime.run(|| {
        let mutexes = Arc::new([Mutex::new(()), Mutex::new(())]);
        let both = Arc::new(std::sync::Barrier::new(2));
        let fibers = [("left", 0, 1), ("right", 1, 0)].map(|(name, first, second)| {
            let (mutexes, both) = (mutexes.clone(), both.clone());
            spawn(name, move || {
                let _first = mutexes[first].lock().unwrap();
                both.wait();
                drop(mutexes[second].lock().unwrap());
            })
        });
        fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
    });
}

#[test]
fn a_cycle_of_joins() {
    let Some(runtime) = child() else {
        let lines = ["waits for the end of fiber 3", "waits for the end of fiber 2"];
        return dead_locks("a_cycle_of_joins", &lines);
    };
    runtime.run(|| {
        let (sender, receiver) = mpsc::channel::<sleave::JoinHandle<()>>();
        let first = spawn("first", move || receiver.recv().unwrap().join().unwrap());
        let (handle, own) = mpsc::channel::<sleave::JoinHandle<()>>();
        let second = spawn("second", move || own.recv().unwrap().join().unwrap());
        sender.send(second).unwrap();
        handle.send(first).unwrap();
        sleave::park();
    });
}

#[test]
fn a_channel_into_which_nobody_sends() {
    let Some(runtime) = child() else {
        let lines = ["receiver ", "waits to be unparked"];
        return dead_locks("a_channel_into_which_nobody_sends", &lines);
    };
    let (sender, receiver) = mpsc::channel::<()>();
    runtime.run(|| {
        drop(spawn("receiver", move || receiver.recv().unwrap()));
        sleave::park();
    });
    drop(sender);
}

#[test]
fn a_thread_that_joins_a_fiber_is_stuck_with_it() {
    let Some(runtime) = child() else {
        return dead_locks("a_thread_that_joins_a_fiber_is_stuck_with_it", &["parked "]);
    };
    let parked = Builder::new().name("parked").spawn_on(&runtime, sleave::park).unwrap();
    parked.join().unwrap();
}

#[test]
fn a_thread_that_comes_to_rest_later_makes_it_one() {
    let Some(runtime) = child() else {
        return dead_locks("a_thread_that_comes_to_rest_later_makes_it_one", &["parked "]);
    };
    let parked = Builder::new().name("parked").spawn_on(&runtime, sleave::park).unwrap();
    // It might unpark the fiber. It is only at the second look that it does not.
    thread::sleep(Duration::from_millis(1500));
    parked.join().unwrap();
}

#[test]
fn the_report_alone_leaves_the_process_alive() {
    if let Some(runtime) = child() {
        return runtime.run(|| spawn("forgotten", sleave::park).join().unwrap());
    }
    if !can() {
        return;
    }
    Company::Shared.keep(|| {
        let mut child = start("the_report_alone_leaves_the_process_alive", 2, "report");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.starts_with("sleave: dead-lock: every fiber waits")));
        assert!(lines.any(|line| line.contains("forgotten") && line.contains("to be unparked")));
        assert!(child.try_wait().unwrap().is_none(), "it is still there");
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn nothing_is_said_if_nothing_is_wanted() {
    if let Some(runtime) = child() {
        runtime.stop();
        let runtime = Runtime::builder().deadlock(Deadlock::Ignore).build().unwrap();
        return runtime.run(sleave::park);
    }
    if !can() {
        return;
    }
    Company::Shared.keep(|| {
        // The builder's word counts, not that of the environment.
        let mut child = start("nothing_is_said_if_nothing_is_wanted", 2, "abort");
        thread::sleep(LONG);
        assert!(child.try_wait().unwrap().is_none(), "it is still there");
        child.kill().unwrap();
        let (_, said) = end(child);
        assert!(!said.contains("dead-lock"), "{said}");
    });
}

#[test]
fn a_wish_that_makes_no_sense_is_an_error() {
    if env::var_os(CHILD).is_some() {
        let refused = Runtime::builder().build().map(drop).unwrap_err();
        eprintln!("{refused}");
        return;
    }
    Company::Shared.keep(|| {
        let (status, said) = end(start("a_wish_that_makes_no_sense_is_an_error", 1, "perhaps"));
        assert!(status.success(), "{said}");
        let words = "SLEAVE_DEADLOCK=\"perhaps\": ignore, report or abort was expected";
        assert!(said.contains(words), "{said}");
    });
}

#[test]
fn a_sleeping_fiber_is_no_dead_lock() {
    let Some(runtime) = child() else { return lives("a_sleeping_fiber_is_no_dead_lock") };
    runtime.run(|| {
        let sleeper = spawn("sleeper", || thread::sleep(LONG));
        let patient = spawn("patient", move || sleeper.join().unwrap());
        patient.join().unwrap();
    });
}

#[test]
fn a_wait_for_a_descriptor_is_no_dead_lock() {
    let Some(runtime) = child() else { return lives("a_wait_for_a_descriptor_is_no_dead_lock") };
    runtime.run(|| spawn("reader", await_parent).join().unwrap());
}

#[test]
fn a_thread_that_will_unlock_is_no_dead_lock() {
    let Some(runtime) = child() else { return lives("a_thread_that_will_unlock_is_no_dead_lock") };
    let mutex = Arc::new(Mutex::new(()));
    let (locked, is_locked) = mpsc::channel();
    let thread = thread::spawn({
        let mutex = mutex.clone();
        move || {
            let _guard = mutex.lock().unwrap();
            locked.send(()).unwrap();
            await_parent();
        }
    });
    is_locked.recv().unwrap();
    runtime.run(|| drop(mutex.lock().unwrap()));
    thread.join().unwrap();
}

#[test]
fn a_pending_timer_is_no_dead_lock() {
    let Some(runtime) = child() else { return lives("a_pending_timer_is_no_dead_lock") };
    runtime.run(|| {
        let me = sleave::current().unwrap();
        let _timer = Timer::after(LONG, move || me.unpark());
        sleave::park();
    });
}

#[test]
fn a_registered_event_is_no_dead_lock() {
    let Some(runtime) = child() else { return lives("a_registered_event_is_no_dead_lock") };
    runtime.run(|| {
        let me = sleave::current().unwrap();
        let told = event::once(std::io::stdin(), event::Direction::Read, move |_| me.unpark());
        let _registration = told.unwrap();
        sleave::park();
    });
}

#[test]
fn a_call_that_blocks_its_thread_is_no_dead_lock() {
    let Some(runtime) = child() else {
        return lives("a_call_that_blocks_its_thread_is_no_dead_lock");
    };
    runtime.run(|| spawn("blocks", || sleave::blocking(await_parent)).join().unwrap());
}
