//! Bodies in processes of their own.

use std::env;
use std::process::{Command, Output};
use std::sync::Barrier;
use std::thread;

use crate::support::{Company, Host, WORKERS};

const CHILD: &str = "SLEAVE_TEST_CHILD_WORKERS";

/// Seconds that a child may live: a hang is a failure.
const LIFE: u32 = 120;

/// The hosts on fibers.
pub fn fibers() -> Vec<Host> {
    WORKERS.map(|workers| Host::Fibers { workers }).to_vec()
}

/// All hosts, the reference first.
pub fn all() -> Vec<Host> {
    [vec![Host::Threads], fibers()].concat()
}

/// In the child, the host that it is to run on.
fn in_child() -> Option<Host> {
    let workers: usize = env::var(CHILD).ok()?.parse().expect("set by the parent");
    Some(if workers == 0 { Host::Threads } else { Host::Fibers { workers } })
}

/// Runs `body` of the test `name` (with its module) in a process for each of `hosts`; what becomes of each
/// process is for `check` to judge.
pub fn run(name: &str, hosts: &[Host], body: fn(Host), check: fn(Host, &Output)) {
    if let Some(host) = in_child() {
        // SAFETY: alarm(2) takes a number; nobody handles SIGALRM.
        unsafe { libc::alarm(LIFE) };
        return body(host);
    }
    Company::Shared.keep(|| {
        for &host in hosts {
            let workers = match host {
                Host::Threads => 0,
                Host::Fibers { workers } => workers,
            };
            let output = Command::new(env::current_exe().expect("the path of this test binary"))
                .args([name, "--exact", "--nocapture", "--test-threads=1"])
                .env(CHILD, workers.to_string())
                .output()
                .expect("the child starts");
            check(host, &output);
        }
    });
}

/// Has malloc look in a file how many CPUs there are, as it does once in a process, when many threads
/// allocate. For bodies to which the lowest free number matters.
pub fn settle() {
    let all = Barrier::new(32);
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                drop(std::hint::black_box(vec![0u8; 100]));
                all.wait();
            });
        }
    });
}

/// The child has come to its end, and all was right.
pub fn succeeds(host: Host, output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{host}: {}: {errors}", output.status);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{host}: the child has run no test: {said}");
}

/// Sets the soft limit of `resource`, or the hard one if that is less.
pub fn limit(resource: libc::__rlimit_resource_t, to: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes, setrlimit(2) reads the struct.
    unsafe {
        assert_eq!(libc::getrlimit(resource, &mut limit), 0);
        limit.rlim_cur = to.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(resource, &limit), 0);
    }
}
