//! `wait`, `waitpid`, `waitid`, `wait3`, `wait4`, `system`, `popen` and `pclose`.
#![allow(clippy::zombie_processes, reason = "children are waited for by their numbers")]

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;
use std::time::Duration;

use sleave::Runtime;

use crate::support::timing::eventually;
use crate::support::{
    Company, Host, LONG_PATIENCE, everywhere, everywhere_alone, watchdog::Watchdog,
};
use crate::{MANY, all_wait, outcome};

/// A shell that runs `script`, in a group of its own.
fn shell(script: &str) -> Child {
    Command::new("sh").arg("-c").arg(script).process_group(0).spawn().expect("sh(1)")
}

fn pid(child: &Child) -> libc::pid_t {
    child.id() as libc::pid_t
}

/// `waitpid`: the child, or the error, and the status.
fn waitpid(pid: libc::pid_t, options: i32) -> (Result<i64, i32>, i32) {
    let mut status = -1;
    // SAFETY: waitpid(2) with a status of our own.
    (outcome(unsafe { libc::waitpid(pid, &mut status, options) }), status)
}

/// `waitid`: the result, and of what it tells the child's number, code and status.
fn waitid(kind: libc::idtype_t, id: u32, options: i32) -> (Result<i64, i32>, u32, i32, i32) {
    // SAFETY: zeroes are a siginfo_t; waitid(2) with one of our own, and its fields for a child.
    unsafe {
        let mut info = std::mem::zeroed::<libc::siginfo_t>();
        let result = outcome(libc::waitid(kind, id, &mut info, options));
        (result, info.si_pid() as u32, info.si_code, info.si_status())
    }
}

#[test]
fn the_end_of_a_child_is_told_once_whenever_it_comes() {
    everywhere(|_| {
        [("exit 3", false), ("sleep 0.05; exit 4", false), ("kill -9 $$", false), ("exit 5", true)]
            .map(|(script, late)| {
                let child = shell(script);
                if late {
                    // It has ended when it is asked about: nothing to wait for.
                    assert_eq!(
                        waitid(libc::P_PID, child.id(), libc::WEXITED | libc::WNOWAIT).0,
                        Ok(0)
                    );
                }
                let (first, status) = waitpid(pid(&child), 0);
                assert_eq!(first, Ok(i64::from(pid(&child))));
                (status, waitpid(pid(&child), 0))
            })
    });
}

#[test]
fn waitid_tells_more_and_leaves_the_child_if_asked() {
    everywhere(|_| {
        let child = shell("sleep 0.05; exit 6");
        let none = waitid(libc::P_PID, child.id(), libc::WEXITED | libc::WNOHANG);
        let left = waitid(libc::P_PID, child.id(), libc::WEXITED | libc::WNOWAIT);
        let taken = waitid(libc::P_PID, child.id(), libc::WEXITED);
        let gone = waitid(libc::P_PID, child.id(), libc::WEXITED);
        assert_eq!((left.1, taken.1), (child.id(), child.id()));
        // Without anywhere to tell it, and by a group.
        let silent = shell("sleep 0.05");
        // SAFETY: waitid(2) without an info.
        let silent =
            outcome(unsafe { libc::waitid(libc::P_PID, silent.id(), null_mut(), libc::WEXITED) });
        let group = shell("sleep 0.05; exit 7");
        let group = waitid(libc::P_PGID, group.id(), libc::WEXITED);
        let nonsense = waitid(libc::P_PID, 1, 0);
        let told = |(result, _, code, status)| (result, code, status);
        assert_eq!(told(taken), (Ok(0), libc::CLD_EXITED, 6));
        (none, told(left), told(taken), gone, silent, told(group), nonsense)
    });
}

#[test]
fn a_pidfd_is_waited_for_and_its_own_nonblocking_respected() {
    everywhere(|_| {
        let open = |child: &Child, flags: u32| {
            // SAFETY: pidfd_open(2) takes two numbers.
            unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), flags) as libc::c_int }
        };
        let child = shell("sleep 0.05; exit 8");
        let (fd, hasty) = (open(&child, 0), open(&child, libc::PIDFD_NONBLOCK));
        let early = waitid(libc::P_PIDFD, hasty as u32, libc::WEXITED).0;
        let (result, _, code, status) = waitid(libc::P_PIDFD, fd as u32, libc::WEXITED);
        for fd in [fd, hasty] {
            // SAFETY: close(2) of descriptors of our own.
            assert_eq!(unsafe { libc::close(fd) }, 0);
        }
        (early, result, code, status, waitid(libc::P_PIDFD, fd as u32, libc::WEXITED).0)
    });
}

#[test]
fn stops_and_continuations_are_told() {
    everywhere(|_| {
        let child = shell("kill -STOP $$; exit 9");
        let stopped = waitpid(pid(&child), libc::WUNTRACED).1;
        // SAFETY: kill(2) of a child of our own.
        assert_eq!(unsafe { libc::kill(pid(&child), libc::SIGCONT) }, 0);
        let ended = waitpid(pid(&child), 0).1;
        (libc::WIFSTOPPED(stopped), libc::WSTOPSIG(stopped), libc::WEXITSTATUS(ended))
    });
}

#[test]
fn any_child_is_waited_for_and_then_there_is_none() {
    everywhere_alone(|_| {
        let children: Vec<_> =
            [0.01, 0.1, 0.05].iter().map(|s| shell(&format!("sleep {s}; exit 2"))).collect();
        let mut waited: Vec<i64> = [0, 1, 2]
            .map(|way| {
                let mut status = -1;
                // SAFETY: wait(2) and its siblings with a status and usage of our own.
                let child = unsafe {
                    let mut usage = std::mem::zeroed::<libc::rusage>();
                    match way {
                        0 => libc::wait(&mut status),
                        1 => libc::wait4(-1, &mut status, 0, &mut usage),
                        _ => wait3(&mut status, 0, &mut usage),
                    }
                };
                assert_eq!(libc::WEXITSTATUS(status), 2);
                i64::from(child)
            })
            .to_vec();
        let mut children: Vec<_> = children.iter().map(|child| i64::from(child.id())).collect();
        waited.sort_unstable();
        children.sort_unstable();
        assert_eq!(waited, children);
        // SAFETY: wait(2) without a status.
        outcome(unsafe { libc::wait(null_mut()) })
    });
}

unsafe extern "C" {
    fn wait3(status: *mut i32, options: i32, usage: *mut libc::rusage) -> libc::pid_t;
    fn popen(command: *const libc::c_char, kind: *const libc::c_char) -> *mut libc::FILE;
    fn pclose(stream: *mut libc::FILE) -> i32;
}

#[test]
fn shells_are_run_and_closed() {
    everywhere(|_| {
        // SAFETY: system(3), popen(3), fgets(3) and pclose(3) of strings, a buffer and a stream of our own.
        unsafe {
            let status = libc::system(c"sleep 0.05; exit 3".as_ptr());
            let shell = libc::system(std::ptr::null()) != 0;
            let stream = popen(c"echo said; sleep 0.05; exit 4".as_ptr(), c"r".as_ptr());
            let mut line = [0; 16];
            assert!(!libc::fgets(line.as_mut_ptr(), 16, stream).is_null());
            let said = std::ffi::CStr::from_ptr(line.as_ptr()).to_owned();
            (status, shell, said, pclose(stream))
        }
    });
}

#[test]
fn std_waits_for_children() {
    everywhere(|host| {
        host.spawn_many(8, |i| {
            let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            let early = child.try_wait().unwrap();
            drop(child.stdin.take());
            let ended = child.wait().unwrap();
            let script = format!("echo {i}; exit {i}");
            let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
            let killed = Command::new("sh").arg("-c").arg("kill -TERM $$").status().unwrap();
            (early, ended, output, killed.signal())
        })
    });
}

/// A pidfd takes no thread.
#[test]
fn many_children_are_waited_for_on_one_worker_by_parked_fibers() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let runtime = Runtime::builder().workers(1).build().unwrap();
        let mut inputs = Vec::new();
        let waits: Vec<_> = (0..MANY)
            .map(|_| {
                let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
                inputs.push(child.stdin.take());
                runtime.spawn(move || waitpid(pid(&child), 0).1)
            })
            .collect();
        eventually("all wait", || runtime.statistics().waiting == MANY);
        assert_eq!(runtime.statistics().blocked, 0);
        drop(inputs);
        assert!(waits.into_iter().all(|wait| wait.join().unwrap() == 0));
        runtime.stop();
    });
}

/// A group has no pidfd.
#[test]
fn many_groups_are_waited_for_on_one_worker_at_once() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let mut inputs = Vec::new();
        let children: std::sync::Arc<Vec<_>> = std::sync::Arc::new(
            (0..MANY)
                .map(|_| {
                    let mut cat = Command::new("cat");
                    let mut child = cat.stdin(Stdio::piped()).process_group(0).spawn().unwrap();
                    inputs.push(child.stdin.take());
                    pid(&child)
                })
                .collect(),
        );
        let waits = all_wait(MANY, move |i| waitpid(-children[i], 0).1, || drop(inputs));
        assert_eq!(waits, [0; MANY]);
    });
}

#[test]
fn sleeping_children_overlap() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let each = Duration::from_millis(500);
        let runtime = Runtime::builder().workers(1).build().unwrap();
        let start = std::time::Instant::now();
        let waits: Vec<_> = (0..MANY)
            .map(|_| runtime.spawn(|| Command::new("sleep").arg("0.5").status().unwrap().success()))
            .collect();
        assert!(waits.into_iter().all(|wait| wait.join().unwrap()));
        let took = start.elapsed();
        runtime.stop();
        println!("{MANY} children of {each:?}: {took:?}");
        assert!(took < each * MANY as u32 / 2, "took {took:?}");
    });
}
