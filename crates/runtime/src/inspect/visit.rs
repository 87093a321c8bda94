//! Looking at every started fiber while it runs, parks, ends.
//!
//! Slots are never unmapped, and an arena knows which of them were ever taken. So there is no list of fibers to keep: who
//! wants to see them walks the slots. Whatever is read of a control block is an atomic word. Two things need care.
//!
//! **The task** (the fiber's number and name) is memory that goes when the last reference does, and the fiber's own may be
//! that. So who looks keeps fibers from their very end, and only while it looks at them:
//!
//! ```text
//!   fiber's end:  task := none   (compiler's fence)   LOOKERS?   not 0: passes through LOOK      drop(task)
//!   visitor:      LOOKERS += 1   membarrier           LOOK { task?  none: no fiber   else it is there }  …
//! ```
//!
//! The membarrier makes every other thread pass a full fence at some point of its program: before the fiber's question, then it
//! sees LOOKERS; after, then the visitor sees that there is no task. So a fiber's end costs a load of a word that hardly ever
//! changes. Where the kernel refuses the call, nobody looks.
//!
//! **The stack** of a fiber that waits is read only where a backtrace is wanted, and must not change meanwhile. The same way keeps
//! the fiber: who is about to run one asks for LOOKERS, too, and passes through LOOK. If the visitor, holding LOOK, finds it
//! PARKED, then whoever runs it next has yet to ask. (Had he asked before the barrier, the claim that made him run it came before that
//! as well, and the visitor would see it, or a later wait.)
//!
//! **The state** is read twice, see `wants`. What is reported of one fiber was so at one moment; of two fibers it is not the
//! same moment, unless nothing moves.
//!
//! A slot that is made anew is written under LOOK: the one time that a control block is not written word by word.
//!
//! Source: membarrier(2), "asymmetric" use, as in `fiber/shelf.rs`.

use std::sync::atomic::{AtomicUsize, Ordering, compiler_fence};

use sleave_context::lock::Lock;

use super::stack;
use super::wants::Seen;
use crate::fiber::{AtWork, Control, FiberId, known_space};
use crate::green;
use crate::kernel;
use crate::scheduler::Core;
use crate::wait::Phase;

/// How many look around.
static LOOKERS: AtomicUsize = AtomicUsize::new(0);

/// Held while one fiber is looked at.
static LOOK: Lock<()> = Lock::new(());

/// How often the state of a fiber is read that changes all the time.
const TRIES: usize = 8;

/// A fiber as it has been seen.
pub(super) struct Onlooked {
    pub(super) id: FiberId,
    pub(super) name: Option<String>,
    pub(super) core: &'static Core,
    /// The number of the worker that runs it, or ran it last.
    pub(super) worker: Option<usize>,
    pub(super) pinned: Option<u8>,
    pub(super) doing: Doing,
    /// Where it waits, if that is wanted and it does.
    pub(super) frames: Vec<usize>,
}

/// What a fiber was doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doing {
    Runs {
        /// In a call that blocks its worker.
        blocked: bool,
    },
    /// It could run, or changes from one state to another faster than it can be read.
    Ready,
    Waits(Seen),
}

/// To be called by a fiber that ends, between having no task any more and letting go of it.
#[inline(always)]
pub(crate) fn about_to_go() {
    compiler_fence(Ordering::SeqCst);
    // Relaxed: see the essay.
    if LOOKERS.load(Ordering::Relaxed) != 0 {
        wait_for_lookers();
    }
}

#[cold]
fn wait_for_lookers() {
    drop(LOOK.lock());
}

/// To be called by a worker between having decided to run a fiber and running it.
#[inline(always)]
pub(crate) fn about_to_run() {
    about_to_go();
}

/// In the child of a fork nobody looks, whoever did in the parent.
pub(crate) fn forked() {
    // Relaxed: the caller is the only thread.
    LOOKERS.store(0, Ordering::Relaxed);
}

/// Runs `write`, which writes a control block that is no fiber's, while nobody looks at it.
pub(crate) fn unseen<T>(write: impl FnOnce() -> T) -> T {
    let _look = LOOK.lock();
    write()
}

/// Calls `see` with every started fiber of the process, and if wanted its `frames`, until it answers `false`; whether fibers can
/// be looked at here.
///
/// `see` runs without a lock. Must not be called in a signal handler.
pub(super) fn visit(frames: bool, see: &mut dyn FnMut(Onlooked) -> bool) -> bool {
    let Some(space) = known_space() else { return true };
    // What allocates under the lock may not park there.
    let _at_work = AtWork::begin();
    // SeqCst: before the barrier, which is one for this thread as well.
    LOOKERS.fetch_add(1, Ordering::SeqCst);
    let can = kernel::membarrier();
    if can {
        let mut goes_on = true;
        space.visit(&mut |control| {
            if goes_on && let Some(seen) = look(control, frames) {
                goes_on = see(seen);
            }
        });
    }
    // Relaxed: who still sees the old count passes through the lock in vain.
    LOOKERS.fetch_sub(1, Ordering::Relaxed);
    can
}

/// The number and name of the fiber in a slot, if there is one.
pub(super) fn look_at(control: &Control) -> Option<(FiberId, Option<String>)> {
    let _at_work = AtWork::begin();
    // SeqCst, and Relaxed below: as in `visit`.
    LOOKERS.fetch_add(1, Ordering::SeqCst);
    let seen = kernel::membarrier().then(|| look(control, false)).flatten();
    LOOKERS.fetch_sub(1, Ordering::Relaxed);
    seen.map(|seen| (seen.id, seen.name))
}

fn look(control: &Control, frames: bool) -> Option<Onlooked> {
    let held = LOOK.lock();
    let task = control.task.peek()?;
    // SAFETY: the fiber has not passed through the lock that is held here, so its reference to the task is there.
    let header = unsafe { task.as_ref() };
    let (id, name) = header.who();
    let name = name.map(str::to_owned).or_else(|| green::name_of(control));
    let worker = control.runner().map(|processor| processor.number());
    let pinned = control.link.seat.get();
    let (core, doing) = (header.core, doing(control));
    let frames = match doing {
        // SAFETY: it is parked, so its registers are saved, and whoever runs it next waits for the lock that is held.
        Doing::Waits(_) if frames => Some(unsafe { stack::frames(control.context.get()) }),
        _ => None,
    };
    drop(held);
    let frames = frames.map_or(Vec::new(), |frames| frames.addresses().to_vec());
    Some(Onlooked { id, name, core, worker, pinned, doing, frames })
}

fn doing(control: &Control) -> Doing {
    for _ in 0..TRIES {
        if control.wait.look() == Phase::Parked {
            let seen = control.wants.read();
            if control.wait.look() == Phase::Parked && control.wants.read() == seen {
                return Doing::Waits(seen);
            }
            continue;
        }
        let this = std::ptr::from_ref(control);
        return match control.runner() {
            // Relaxed: a momentary view.
            Some(runner) if std::ptr::eq(runner.running.load(Ordering::Relaxed), this) => {
                Doing::Runs { blocked: runner.is_blocked() }
            }
            _ => Doing::Ready,
        };
    }
    Doing::Ready
}
