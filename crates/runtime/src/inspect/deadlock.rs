//! Dead-locks: no fiber can ever run again.
//!
//! The monitor looks when every worker has slept for a second. If only a thread stands against it, it looks again after twice the
//! time, and so on for half an hour; else not before a fiber has run again. So it costs an idle process one wake-up, or
//! eleven. What it finds is a dead-lock if all this holds:
//!
//! * no fiber runs or could, none is in a call that blocks its thread, and none has not begun;
//! * each waits for another: for a lock, a fiber's end, a token, and without a deadline;
//! * no timer is pending, and no callback waits for a descriptor: each counts as a fiber that cannot be seen waiting;
//! * every other thread of the process is asleep for good, too: a worker, or one in a futex(2) that is private to the process and
//!   has no timeout, which is where `run`, `join`, `Mutex::lock` sleep.
//!
//! ```text
//!   all asleep for 1 s ─▶ fibers? ─▶ threads? ─▶ both, once more; has anybody run? ─▶ report, abort
//!                            │           └──────────────────┴─ somebody could wake somebody: 2 s, 4 s, …
//!                            └─ one waits for the world outside: nothing is said
//! ```
//!
//! Such a state is stable: if it was so at one moment it stays so. The looks are made one after the other, hence the second round.
//!
//! # What cannot be known
//!
//! * A thread that is elsewhere (in a system call of any other kind, or runs) might wake a fiber, whatever it is there for. While there is
//!   one, nothing is reported.
//! * A fiber that waits for a descriptor is taken to wait for the world outside, even if the other end of its pipe is in this
//!   process.
//! * A signal handler may wake a fiber, by `sem_post`. Nobody can know that it will: such a process is reported if it has
//!   nothing else to wait for.
//!
//! Sources: futex(2), proc(5), glibc's `nptl` for where its threads sleep.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::dump::dump_as_configured;
use super::visit::{Doing, visit};
use super::wants::Awaited;
use crate::kernel::{self, task};
use crate::scheduler::{Core, watched, witness};
use syscalls::Sysno;

/// Nanoseconds for which every worker has slept before anybody looks.
const SUSPICIOUS: u64 = 1_000_000_000;
/// The longest time after which it is looked at again.
const LAST: u64 = SUSPICIOUS << 10;

/// What is done when no fiber of the process can ever run again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Deadlock {
    /// Nothing.
    Ignore,
    /// Every fiber and what it waits for is written to standard error, once in a process.
    #[default]
    Report,
    /// The same, then the process aborts.
    Abort,
}

impl Deadlock {
    /// What `SLEAVE_DEADLOCK` says.
    ///
    /// # Errors
    /// `InvalidInput` for a value that is none of `ignore`, `report`, `abort`.
    pub(crate) fn from_environment() -> io::Result<Deadlock> {
        let Some(value) = std::env::var_os("SLEAVE_DEADLOCK") else {
            return Ok(Deadlock::default());
        };
        match value.to_str() {
            Some("ignore") => Ok(Deadlock::Ignore),
            Some("report" | "") => Ok(Deadlock::Report),
            Some("abort") => Ok(Deadlock::Abort),
            _ => {
                let message =
                    format!("SLEAVE_DEADLOCK={value:?}: ignore, report or abort was expected");
                Err(io::Error::new(io::ErrorKind::InvalidInput, message))
            }
        }
    }

    pub(crate) fn from_number(number: u8) -> Deadlock {
        match number {
            0 => Deadlock::Ignore,
            1 => Deadlock::Report,
            _ => Deadlock::Abort,
        }
    }
}

/// The monitor's view of it.
#[derive(Default)]
pub(crate) struct Suspicion {
    /// Switches of all runtimes when it began; nobody has run since if they are the same.
    switches: Option<u64>,
    /// When to look.
    at: Option<u64>,
    /// How long after that to look again.
    delay: u64,
}

impl Suspicion {
    /// When to look, in nanoseconds, if there is any need: nobody works, somebody waits, and no deadline is
    /// set. The monitor asks right before it sleeps.
    pub(crate) fn when(&mut self) -> Option<u64> {
        let cores = watched();
        let suspicious = cores.iter().any(|core| core.fibers() > 0)
            && cores.iter().all(|core| may_be_stuck(core));
        if !suspicious {
            return None;
        }
        let switches = switches(&cores);
        if self.switches.replace(switches) != Some(switches) {
            self.delay = SUSPICIOUS;
            self.at = Some(kernel::now() + self.delay);
        }
        self.at
    }

    /// Looks into it: nobody has got up since [`Suspicion::when`].
    pub(crate) fn examine(&mut self) {
        self.at = None;
        let cores = watched();
        if !fibers_wait_for_each_other(&cores) {
            return;
        }
        let stuck = threads_sleep_for_good(&cores)
            && cores.iter().all(|core| may_be_stuck(core))
            && fibers_wait_for_each_other(&cores)
            && threads_sleep_for_good(&cores)
            && Some(switches(&cores)) == self.switches;
        if stuck {
            act(&cores);
        } else if self.delay < LAST {
            self.delay *= 2;
            self.at = Some(kernel::now() + self.delay);
        }
    }
}

fn switches(cores: &[&'static Core]) -> u64 {
    cores.iter().map(|core| core.tally().switches).sum()
}

/// Whether nothing but a wake from elsewhere could make a fiber of `core` run.
fn may_be_stuck(core: &Core) -> bool {
    let statistics = core.statistics();
    core.is_idle()
        && statistics.blocked == 0
        && statistics.running + statistics.runnable == 0
        && core.next_due() == u64::MAX
}

/// Whether every fiber has begun and waits, without a deadline, for what another fiber or a thread would have to do.
fn fibers_wait_for_each_other(cores: &[&'static Core]) -> bool {
    let (mut count, mut all) = (0, true);
    let seen = visit(false, &mut |fiber| {
        count += 1;
        all = match fiber.doing {
            Doing::Waits(wait) => {
                wait.until().is_none()
                    && matches!(
                        wait.what(),
                        Some(
                            Awaited::Lock(_)
                                | Awaited::Fiber(_)
                                | Awaited::Scope
                                | Awaited::Token
                                | Awaited::Runtime
                        )
                    )
            }
            _ => false,
        };
        all
    });
    // What is a fiber by number only is a callback that waits for a descriptor.
    seen && all && count == cores.iter().map(|core| core.fibers()).sum::<usize>()
}

/// Whether every thread of the process but the caller and its witness is a worker, or in a futex that only this process
/// can wake.
fn threads_sleep_for_good(cores: &[&'static Core]) -> bool {
    let mut known = vec![kernel::gettid()];
    for core in cores {
        known.extend(core.processors().iter().map(|processor| processor.thread()));
    }
    witness::look(move || {
        known.push(kernel::gettid());
        let threads = task::threads().unwrap_or_default();
        !threads.is_empty()
            && threads
                .into_iter()
                .all(|thread| known.contains(&thread) || sleeps_for_good(thread) || is_gone(thread))
    })
}

fn sleeps_for_good(thread: u32) -> bool {
    let Some(task::Standing { call: Some((number, arguments)), .. }) = task::standing(thread)
    else {
        return false;
    };
    let [_, operation, _, timeout, ..] = arguments;
    let operation = operation as i32;
    let waits = [
        libc::FUTEX_WAIT,
        libc::FUTEX_WAIT_BITSET,
        libc::FUTEX_LOCK_PI,
        libc::FUTEX_WAIT_REQUEUE_PI,
    ];
    number == Sysno::futex as usize
        && timeout == 0
        && operation & libc::FUTEX_PRIVATE_FLAG != 0
        && waits.contains(&(operation & libc::FUTEX_CMD_MASK))
}

/// Whether the thread has ended. The first one of a process remains as a zombie, after `pthread_exit` in `main`.
fn is_gone(thread: u32) -> bool {
    matches!(task::state(thread), None | Some(b'Z' | b'X'))
}

fn act(cores: &[&'static Core]) {
    static REPORTED: AtomicBool = AtomicBool::new(false);
    let stuck = cores.iter().filter(|core| core.fibers() > 0);
    let what = stuck.map(|core| core.deadlock()).max().unwrap_or_default();
    // Relaxed: the monitor alone comes here.
    if what == Deadlock::Ignore || REPORTED.swap(true, Ordering::Relaxed) {
        return;
    }
    let text = format!(
        "sleave: dead-lock: every fiber waits for another, and nothing else could wake one\n{}",
        dump_as_configured()
    );
    kernel::complain(text.as_bytes());
    if what == Deadlock::Abort {
        std::process::abort();
    }
}
