//! `sleave dump`: a process that was started to answer does, idle or not, and the others are left alone.

#[allow(dead_code, reason = "each test binary uses its part of the helpers")]
mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use common::{Running, run, sleave};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `sleave dump` of a process.
fn dump(process: u32) -> Output {
    run(sleave(&["dump", &process.to_string()]))
}

/// Asserts that `sleave dump` refuses with these words.
fn assert_refused(process: u32, words: &str) {
    let done = dump(process);
    assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr));
    assert!(text(&done.stderr).contains(words), "{}", text(&done.stderr));
}

/// Whether fibers can be had here; says why not.
fn can_run() -> bool {
    let can = sleave::identity();
    can.inspect_err(|why| println!("skipped: {why}")).is_ok()
}

#[test]
fn idle_server_says_what_its_fibers_wait_for() {
    if !can_run() {
        return;
    }
    let mut command = sleave(&["echo", "--listen", "127.0.0.1:0", "--workers", "1"]);
    let server = Running::start(command.env("SLEAVE_DUMP", "SIGUSR1"));
    assert!(server.line().starts_with("listening on "));
    let expected = "fibers: 1 (0 running, 0 runnable, 1 waiting)";
    // It listens before it makes its runtime, and that before its fiber waits.
    loop {
        assert_eq!(dump(server.id()).status.code(), Some(0));
        if server.complaint("sleave dump").contains("of process") {
            let count = server.complaint("fibers: ");
            server.complaint("end of the dump");
            if count.starts_with(expected) {
                break;
            }
        }
    }
    // Again and again: it goes on afterwards.
    for _ in 0..3 {
        let done = dump(server.id());
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        assert!(text(&done.stdout).contains("was asked by SIGUSR1"), "{}", text(&done.stdout));
        server.complaint(&format!("sleave dump of process {}", server.id()));
        server.complaint(expected);
        server.complaint("waits to read descriptor ");
        server.complaint("end of the dump");
    }
    server.signal(libc::SIGTERM);
    let (status, ..) = server.finish();
    assert!(status.success(), "{status}");
}

#[test]
fn program_as_it_is_says_what_its_threads_wait_for() {
    if !can_run() {
        return;
    }
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: this machine has no python3");
        return;
    }
    let script = "import threading\n\
        lock = threading.Lock()\n\
        lock.acquire()\n\
        threads = [threading.Thread(target=lock.acquire, daemon=True) for _ in range(5)]\n\
        [thread.start() for thread in threads]\n\
        print('there', flush=True)\n\
        input()\n";
    let mut command = sleave(&["run", "--", "python3", "-c", script]);
    let program = Running::start_with_input(command.env("SLEAVE_DUMP", "QUIT"));
    assert_eq!(program.line(), "there");
    // They may not have come to their lock yet.
    loop {
        assert_eq!(dump(program.id()).status.code(), Some(0));
        let count = program.complaint("fibers: ");
        let waiting = (0..5).filter(|_| program.complaint("  waits").contains("the lock at 0x"));
        if count.starts_with("fibers: 5 (0 running, 0 runnable, 5 waiting)") {
            assert_eq!(waiting.count(), 5);
            break;
        }
        program.complaint("end of the dump");
    }
}

#[test]
fn program_as_it_is_is_found_dead_locked() {
    if !can_run() {
        return;
    }
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: this machine has no python3");
        return;
    }
    let script = "import threading\n\
        a, b, both = threading.Lock(), threading.Lock(), threading.Barrier(2)\n\
        def cross(first, second):\n    \
            with first:\n        \
                both.wait()\n        \
                second.acquire()\n\
        threads = [threading.Thread(target=cross, args=pair) for pair in [(a, b), (b, a)]]\n\
        [thread.start() for thread in threads]\n\
        [thread.join() for thread in threads]\n";
    let mut command = sleave(&["run", "--workers", "2", "--", "python3", "-c", script]);
    let done = run(command.env("SLEAVE_DEADLOCK", "abort"));
    let said = text(&done.stderr);
    assert_eq!(done.status.signal(), Some(libc::SIGABRT), "{said}");
    assert!(said.contains("fibers: 2 (0 running, 0 runnable, 2 waiting)"), "{said}");
    assert_eq!(said.matches("waits for the lock at 0x").count(), 2, "{said}");
}

#[test]
fn process_that_does_not_answer_is_left_alone() {
    let silent = Running::start(sleave(&["echo", "--listen", "127.0.0.1:0"]));
    assert!(silent.line().starts_with("listening on "));
    assert_refused(silent.id(), "was started without SLEAVE_DUMP");
    // It has the variable and no handler: it is no program of sleave's.
    let mut command = Command::new("sleep");
    let stranger = Running::start(command.arg("1000").env("SLEAVE_DUMP", "SIGQUIT"));
    // Before execve(2) has replaced it, the child has this test's environment.
    loop {
        let words = text(&dump(stranger.id()).stderr);
        if words.contains("does not answer to SIGQUIT") {
            break;
        }
        assert!(words.contains("was started without SLEAVE_DUMP"), "{words}");
    }
    assert_refused(i32::MAX as u32, "there is no process");
    silent.signal(libc::SIGTERM);
    assert!(silent.finish().0.success());
    assert_eq!(run(sleave(&["dump", "nobody"])).status.code(), Some(2));
    assert_eq!(run(sleave(&["dump", "0"])).status.code(), Some(2));
}

#[test]
fn signal_that_is_none_is_an_error_of_whoever_asks() {
    if !can_run() {
        return;
    }
    for nonsense in ["SIGKILL", "11", "quit"] {
        let mut command = sleave(&["echo", "--listen", "127.0.0.1:0"]);
        let done = run(command.env("SLEAVE_DUMP", nonsense));
        assert!(!done.status.success());
        let words = format!("SLEAVE_DUMP={nonsense:?}: a signal was expected, such as SIGQUIT");
        assert!(text(&done.stderr).contains(&words), "{}", text(&done.stderr));
    }
}
