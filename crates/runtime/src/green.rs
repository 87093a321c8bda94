//! Green threads: fibers that a C program knows by a `pthread_t`.
//!
//! `pthread_create` promises more than `spawn` does. It gives an id at once, and to glibc and to the program that id
//! is an address, that of `struct pthread`. So such a fiber has its slot from its creation, not from its first run.
//! And the id is good until somebody has joined the thread, long after it has ended. So its slot is free when two
//! things have happened, whichever comes last:
//!
//! ```text
//!   fiber:    runs ──▶ ends: joiners may go on ──▶ LEFT its stack ──┐
//!                                                                   ├──▶ the slot is free
//!   program:  joins, detaches, or created it detached ──▶ RELEASED ─┘
//! ```
//!
//! What is kept of it beside the task is a [`Green`], which the slot's control block points to. An id may be stale, its slot in
//! other hands, or no id at all: [`find`] goes by the address alone, under a lock that also covers the end of a
//! `Green`. Memory of slots is never unmapped, so whatever the id is, looking is safe.
//!
//! The process ends when the last thread has: after `pthread_exit` in `main` that is the last of these
//! fibers. `main` counts as one of them ([`main_ends`]).
//!
//! Sources: pthread_create(3), pthread_join(3), pthread_detach(3), pthread_exit(3).

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use sleave_context::lock::Lock;

use crate::fiber::{
    self, AtWork, Control, Task, TaskRef, current, in_fiber, in_slots, known_space, space,
};
use crate::runtime::{CoreRef, here, setting};
use crate::scheduler::{self, Core};
use crate::signal;
use crate::spawn::Builder;
use crate::wait::Deadline;

/// The fiber has left its stack for good.
const LEFT: u32 = 1;
/// Nobody will join it, or somebody has.
const RELEASED: u32 = 2;
/// It was detached, which is one way to be released.
const DETACHED: u32 = 4;

/// It has been asked to end.
pub const CANCEL_REQUESTED: u32 = 1;
/// It does not want to be.
pub const CANCEL_DISABLED: u32 = 2;
/// It may be ended anywhere, not at cancellation points only.
pub const CANCEL_ASYNCHRONOUS: u32 = 4;

/// Bytes of a thread's name with its NUL: the kernel's `TASK_COMM_LEN`.
pub const NAME: usize = 16;

/// What is kept of a green thread until it has ended and nobody can join it any more.
pub struct Green {
    control: NonNull<Control>,
    task: TaskRef,
    state: AtomicU32,
    /// The id of whoever joins it; 0 if nobody does.
    joiner: AtomicUsize,
    /// `CANCEL_` bits.
    cancel: AtomicU32,
    result: AtomicPtr<c_void>,
    /// Bytes of stack that were asked for; 0 if none were.
    wish: usize,
    guard: usize,
    name: Lock<[u8; NAME]>,
}

// SAFETY: the control block is that of a slot, which is there for ever; what is read of it here does not change while
// a `Green` refers to it.
unsafe impl Send for Green {}
// SAFETY: as above; everything else is made to be shared.
unsafe impl Sync for Green {}

/// How much stack a green thread gets.
#[derive(Clone, Copy, Debug)]
pub enum Stack {
    /// At least so many usable bytes.
    Usable(usize),
    /// What `SLEAVE_STACK` says, else so many bytes altogether, as threads of the C library have.
    Usual(usize),
}

/// How a green thread begins.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// Its stack.
    pub stack: Stack,
    /// Nobody will join it.
    pub detached: bool,
    /// Bytes of guard that were asked for, which it is said to have. A slot's guard is what it is.
    pub guard: usize,
}

/// Why a thread cannot be joined or detached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There is none with this id: `ESRCH`.
    NoSuchThread,
    /// It is detached, or joined by somebody else: `EINVAL`.
    NotJoinable,
    /// It is the caller, or waits for the caller: `EDEADLK`.
    Deadlock,
    /// It has not ended in time: `ETIMEDOUT`, or `EBUSY` if there was none.
    TimedOut,
    /// The caller has been cancelled.
    Cancelled,
}

/// Bytes of a page.
const PAGE: usize = 4096;

/// Guards the way from an id to its `Green`, by the id.
static LOCKS: [Lock<()>; 64] = [const { Lock::new(()) }; 64];

fn lock(id: usize) -> &'static Lock<()> {
    &LOCKS[(id >> 12) % LOCKS.len()]
}

/// Threads of the process that are fibers, and `main`. The last to end ends the process.
static LIVING: AtomicUsize = AtomicUsize::new(1);

/// Makes a green thread that runs `body`. `announce` is told its id before it can run.
///
/// # Errors
/// `Unsupported` where fibers are OS threads; else as [`Builder::spawn`].
///
/// # Safety
/// As `pthread_create(3)`: `body` may be run by another OS thread, and what it refers to is there as long as it runs.
pub unsafe fn create<F>(
    attributes: &Attributes,
    announce: &mut dyn FnMut(usize),
    body: F,
) -> io::Result<()>
where
    F: FnOnce() -> *mut c_void,
{
    let space = match space() {
        Ok(space) => space,
        Err(why) => return Err(io::Error::new(io::ErrorKind::Unsupported, why.to_string())),
    };
    let CoreRef(core) = here()?;
    let size = match attributes.stack {
        Stack::Usable(bytes) => space.slot_size(Some(bytes))?,
        Stack::Usual(bytes) => match usual_stack()? {
            Some(_) => core.slot_size(),
            None => space.whole_slot(bytes)?,
        },
    };
    core.has_memory(size)?;
    Builder::admit(core)?;
    let slot = ready(core).and_then(|()| take(size)).inspect_err(|_| core.fiber_ends())?;
    let body = move || {
        let value = body();
        if let Some(own) = own() {
            // Relaxed: whoever joins has seen the task's end.
            own.result.store(value, Ordering::Relaxed);
        }
    };
    // SAFETY: by contract.
    let (task, runner) = unsafe { Task::new(core, None, size, core.timeouts(), None, body) };
    let green = Arc::new(Green {
        control: slot,
        task: task.task().clone(),
        state: AtomicU32::new(if attributes.detached { RELEASED | DETACHED } else { 0 }),
        joiner: AtomicUsize::new(0),
        cancel: AtomicU32::new(0),
        result: AtomicPtr::new(null_mut()),
        wish: match attributes.stack {
            Stack::Usable(bytes) => bytes,
            Stack::Usual(_) => 0,
        },
        guard: attributes.guard,
        name: Lock::new(own().map_or([0; NAME], |own| *own.name.lock())),
    });
    // Nobody takes the result this way.
    drop(task);
    // SAFETY: the slot is ours, and the runner's reference goes with it.
    let control = unsafe {
        scheduler::begin(slot, runner.into_raw());
        slot.as_ref()
    };
    let mask = signal::mask().unwrap_or_else(crate::kernel::signal_mask);
    signal::note_mask(mask, core.usual_mask());
    control.mask.set(mask);
    // Relaxed: whoever creates is one of them.
    LIVING.fetch_add(1, Ordering::Relaxed);
    let id = control.thread_pointer;
    {
        let _covered = lock(id).lock();
        // Release publishes what the `Green` holds; under the lock.
        control.green.store(Arc::into_raw(green).cast_mut(), Ordering::Release);
    }
    announce(id);
    // SAFETY: prepared above.
    unsafe { scheduler::start(slot) };
    Ok(())
}

/// Sees to it that somebody will run what is spawned.
fn ready(core: &'static Core) -> io::Result<()> {
    if in_fiber() { Ok(()) } else { core.ensure_worker() }
}

/// A slot, from the processor's own if there is one.
fn take(size: usize) -> io::Result<NonNull<Control>> {
    let _at_work = AtWork::begin();
    let space = space().expect("asked before");
    let near =
        scheduler::current_processor().and_then(|processor| processor.free_slot(space, size));
    near.map_or_else(|| space.take(size), Ok)
}

/// What `SLEAVE_STACK` said when it was first looked at.
fn usual_stack() -> io::Result<Option<usize>> {
    const UNKNOWN: usize = usize::MAX;
    static SAID: AtomicUsize = AtomicUsize::new(UNKNOWN);
    // Relaxed, both: the word is all there is.
    let said = match SAID.load(Ordering::Relaxed) {
        UNKNOWN => {
            let said = setting("SLEAVE_STACK", 1)?.unwrap_or(0);
            SAID.store(said, Ordering::Relaxed);
            said
        }
        said => said,
    };
    Ok((said != 0).then_some(said))
}

/// The `Green` that a control block points to, counted.
///
/// # Safety
/// The lock of its id is held, or the caller is the fiber itself.
unsafe fn of(control: &Control) -> Option<Arc<Green>> {
    // Acquire pairs with `create`.
    let green = control.green.load(Ordering::Acquire);
    if green.is_null() {
        return None;
    }
    // SAFETY: the control block holds a reference, which goes only under the lock and not before the fiber has left.
    unsafe {
        Arc::increment_strong_count(green);
        Some(Arc::from_raw(green))
    }
}

/// The name of the green thread in this slot, if it is one that has a name.
pub(crate) fn name_of(control: &Control) -> Option<String> {
    let _covered = lock(control.thread_pointer).lock();
    // Acquire pairs with `create`. SAFETY: null, or there as long as the lock is held.
    let green = unsafe { control.green.load(Ordering::Acquire).as_ref() }?;
    let name = green.name();
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(NAME);
    (end > 0).then(|| String::from_utf8_lossy(&name[..end]).into_owned())
}

/// The calling green thread; `None` on an OS thread and on a fiber that was not made by [`create`].
pub fn own() -> Option<Arc<Green>> {
    // SAFETY: the caller's own control block.
    current().and_then(|control| unsafe { of(control.as_ref()) })
}

/// The calling green thread, for as long as it calls.
fn myself<'a>() -> Option<&'a Green> {
    // SAFETY: the caller's own control block, whose `Green` is there until it has ended. Acquire: with `create`.
    unsafe { current()?.as_ref().green.load(Ordering::Acquire).as_ref() }
}

/// The `CANCEL_` bits of the calling green thread; `None` if it is none.
pub fn cancellation() -> Option<u32> {
    // Acquire: with `cancel`.
    myself().map(|green| green.cancel.load(Ordering::Acquire))
}

fn is_cancelled() -> bool {
    cancellation()
        .is_some_and(|bits| bits & (CANCEL_REQUESTED | CANCEL_DISABLED) == CANCEL_REQUESTED)
}

/// Clears and sets `CANCEL_` bits of the calling green thread.
pub fn change_cancellation(clear: u32, set: u32) {
    if let Some(green) = myself() {
        // Relaxed: the bits are all there is.
        green.cancel.fetch_and(!clear, Ordering::Relaxed);
        green.cancel.fetch_or(set, Ordering::Relaxed);
    }
}

/// Asks the green thread with this id to end, and says what the id means.
pub fn cancel(id: usize) -> Life {
    with(id, |green| {
        // Release: it sees what was done before.
        green.cancel.fetch_or(CANCEL_REQUESTED, Ordering::Release);
        signal::tell(green.task.core(), green.control);
    })
}

/// Whether the caller is a fiber of any kind.
pub fn is_fiber() -> bool {
    in_fiber()
}

/// The bytes of stack that the calling fiber has, lowest address and length, in whole pages; `None` on an OS thread.
pub fn stack_of_caller() -> Option<(usize, usize)> {
    // SAFETY: the caller's own control block.
    current().map(|control| stack_below(unsafe { control.as_ref() }))
}

/// The pages from the guard to the one that the stack begins in.
fn stack_below(control: &Control) -> (usize, usize) {
    let base = control.slot.base() as usize + control.slot.guard_len();
    (base, (std::ptr::from_ref(control) as usize - base).next_multiple_of(PAGE))
}

/// What an id of a thread means.
pub enum Found {
    /// Not a fiber's: the C library's.
    Foreign,
    /// A fiber that was spawned by Rust, or was.
    Fiber,
    /// A green thread.
    Green(Arc<Green>),
}

/// Looks an id up. Any number will do.
pub fn find(id: usize) -> Found {
    let Some(space) = known_space() else { return Found::Foreign };
    if !in_slots(id) {
        return Found::Foreign;
    }
    let _covered = lock(id).lock();
    // SAFETY: the lock is held.
    match space.control_at(id).and_then(|control| unsafe { of(control) }) {
        Some(green) if !green.is_over() => Found::Green(green),
        _ => Found::Fiber,
    }
}

/// What becomes of whom an id means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Not a fiber's: the C library knows.
    Foreign,
    /// No green thread, or none any more.
    Nobody,
    /// A green thread that has not ended, as far as can be said.
    Runs,
    /// A green thread that has ended, and can be joined.
    Ended,
}

/// As [`find`], for signal handlers: nothing is waited for, nothing freed.
pub fn life(id: usize) -> Life {
    with(id, |_| ())
}

/// Calls `f` if there is a green thread with this id that has not ended, and says what the id means.
fn with(id: usize, f: impl FnOnce(&Green)) -> Life {
    /// How often the lock is tried: it is held for a few instructions.
    const TRIES: usize = 1000;
    let Some(space) = known_space() else { return Life::Foreign };
    if !in_slots(id) {
        return Life::Foreign;
    }
    let Some(control) = space.control_at(id) else { return Life::Nobody };
    // If it cannot be had, the caller is a handler that has interrupted whoever holds it, who goes on only afterwards: it is
    // as good as held.
    let _covered = (0..TRIES).find_map(|_| lock(id).try_lock());
    // Acquire pairs with `create`.
    let green = control.green.load(Ordering::Acquire);
    // SAFETY: null, or what the control block refers to, which stays while the lock is held.
    match unsafe { green.as_ref() } {
        Some(green) if !green.is_over() => match green.is_ended() {
            true => Life::Ended,
            false => {
                f(green);
                Life::Runs
            }
        },
        _ => Life::Nobody,
    }
}

/// Sends `signal` to the green thread with this id, and says what the id means. Async-signal-safe.
pub fn send(id: usize, signal: c_int) -> Life {
    with(id, |green| signal::send(green.task.core(), green.control, signal))
}

/// As [`send`], with a value; also whether there was room for it.
pub fn send_value(id: usize, signal: c_int, value: usize) -> (Life, bool) {
    let mut sent = true;
    let life = with(id, |green| {
        sent = signal::send_value(green.task.core(), green.control, signal, value);
    });
    (life, sent)
}

/// Tells the green thread with this id to look at what is wanted of it. Async-signal-safe.
pub fn tell(id: usize) -> Life {
    with(id, |green| signal::tell(green.task.core(), green.control))
}

impl Green {
    /// Its id: its `pthread_t`.
    pub fn id(&self) -> usize {
        self.control().thread_pointer
    }

    fn control(&self) -> &Control {
        // SAFETY: control blocks of slots in use are there; this one is in use while a `Green` refers to it, and
        // its fields that are read here do not change before the slot is given back.
        unsafe { self.control.as_ref() }
    }

    /// Whether it has ended, destructors included.
    pub fn is_ended(&self) -> bool {
        self.task.is_done()
    }

    /// Whether it has ended, and its id means nothing any more.
    fn is_over(&self) -> bool {
        // Relaxed: a question.
        self.is_ended() && self.state.load(Ordering::Relaxed) & RELEASED != 0
    }

    /// Whether nobody can join it.
    pub fn is_detached(&self) -> bool {
        // Relaxed: a question.
        self.state.load(Ordering::Relaxed) & DETACHED != 0
    }

    /// What `pthread_exit` was given, or the start routine has returned.
    pub fn set_result(&self, value: *mut c_void) {
        // Relaxed: whoever joins has seen the task's end.
        self.result.store(value, Ordering::Relaxed);
    }

    /// See [`Green::set_result`].
    pub fn result(&self) -> *mut c_void {
        // Relaxed: as above.
        self.result.load(Ordering::Relaxed)
    }

    /// The bytes of stack that it is said to have, lowest address and length: as many as were asked for, from the
    /// beginning of a page on, where programs put guards of their own. The last bytes may be the control block's.
    pub fn stack(&self) -> (usize, usize) {
        let (base, all) = stack_below(self.control());
        match self.wish {
            0 => (base, all),
            wish => ((base + all - wish.min(all)).next_multiple_of(PAGE), wish),
        }
    }

    /// The bytes of guard that were asked for.
    pub fn guard(&self) -> usize {
        self.guard
    }

    /// Its name, NUL at the end; empty if neither it nor its creator was given one.
    pub fn name(&self) -> [u8; NAME] {
        *self.name.lock()
    }

    /// Gives it a name. The last byte is taken for the NUL.
    pub fn set_name(&self, mut name: [u8; NAME]) {
        name[NAME - 1] = 0;
        *self.name.lock() = name;
    }

    /// Waits until `deadline` for its end, takes its result, and gives the id back.
    ///
    /// # Errors
    /// See [`Refusal`]. After `TimedOut` it can be joined again.
    pub fn join(&self, deadline: Deadline) -> Result<*mut c_void, Refusal> {
        let caller = crate::identity::thread_pointer();
        // Acquire: the flags stand for themselves; what the fiber did is seen by its task's end.
        if self.state.load(Ordering::Acquire) & RELEASED != 0 {
            return Err(Refusal::NotJoinable);
        }
        if self.id() == caller {
            return Err(Refusal::Deadlock);
        }
        // SeqCst, all three: of two that join each other one, or both, see the other's.
        if self.joiner.compare_exchange(0, caller, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return Err(Refusal::NotJoinable);
        }
        if own().is_some_and(|own| own.joiner.load(Ordering::SeqCst) == self.id()) {
            self.joiner.store(0, Ordering::SeqCst);
            return Err(Refusal::Deadlock);
        }
        if !self.task.wait_until(deadline, is_cancelled) {
            // Relaxed: who may join is decided by the exchange.
            self.joiner.store(0, Ordering::Relaxed);
            return Err(if is_cancelled() { Refusal::Cancelled } else { Refusal::TimedOut });
        }
        let result = self.result();
        self.release(0);
        Ok(result)
    }

    /// Says that nobody will join it.
    ///
    /// # Errors
    /// `NotJoinable` if that has been said before.
    pub fn detach(&self) -> Result<(), Refusal> {
        // Relaxed: as in `join`. Who is being joined is given back by the joiner.
        if self.joiner.load(Ordering::Relaxed) != 0 {
            return Ok(());
        }
        if self.release(DETACHED) { Ok(()) } else { Err(Refusal::NotJoinable) }
    }

    /// The program's half of the end; whether it was the first to say so.
    fn release(&self, how: u32) -> bool {
        // AcqRel: whoever comes second sees all that the first did to the slot.
        let before = self.state.fetch_or(RELEASED | how, Ordering::AcqRel);
        if before & (LEFT | RELEASED) == LEFT {
            let core = self.task.core();
            forget(self.control());
            let _at_work = AtWork::begin();
            if let Some(space) = known_space() {
                // SAFETY: the fiber has left for good, and nobody else comes second.
                unsafe { space.give(self.control) };
            }
            core.stack_returns();
        }
        before & RELEASED == 0
    }
}

/// The way from its id to a `Green` ends.
fn forget(control: &Control) {
    let green = {
        let _covered = lock(control.thread_pointer).lock();
        control.green.swap(null_mut(), Ordering::AcqRel)
    };
    if !green.is_null() {
        // SAFETY: the control block's reference, taken back once.
        drop(unsafe { Arc::from_raw(green) });
    }
}

/// A fiber's destructors have run: if it is a green thread and the last of the process, that ends.
#[inline]
pub(crate) fn ends(control: &Control) {
    // Relaxed: the fiber's own.
    if !control.green.load(Ordering::Relaxed).is_null() {
        one_less();
    }
}

/// Whether there are green threads beside `main`.
pub fn exist() -> bool {
    // Relaxed: a question.
    LIVING.load(Ordering::Relaxed) > 1
}

/// Whether `main` has called `pthread_exit`.
pub(crate) fn is_main_gone() -> bool {
    // Relaxed: see `main_ends`.
    MAIN_IS_GONE.load(Ordering::Relaxed)
}

static MAIN_IS_GONE: AtomicBool = AtomicBool::new(false);

/// Counts `main` out, which has called `pthread_exit` and run its destructors. If there is no other thread the
/// process ends, and this does not return.
pub fn main_ends() {
    // Relaxed: workers look at it before they sleep.
    MAIN_IS_GONE.store(true, Ordering::Relaxed);
    scheduler::kick_all();
    one_less();
}

/// Whether there may have been a fiber in this process.
#[inline(always)]
pub fn may_exist() -> bool {
    fiber::may_exist()
}

/// In the child of a fork the caller is the only thread. Called by that thread, before anything else runs there.
pub fn forked() {
    // Relaxed: nobody else is there.
    LIVING.store(1, Ordering::Relaxed);
    crate::inspect::forked();
}

#[inline]
fn one_less() {
    // AcqRel: whoever is last has seen what the others did.
    if LIVING.fetch_sub(1, Ordering::AcqRel) == 1 {
        // SAFETY: exit(3), as glibc's last thread calls it.
        unsafe { libc::exit(0) };
    }
}

/// The fiber has left its stack; whether its slot is free. Of a hook: nothing else touches the slot then.
#[inline]
pub(crate) fn leaves(control: &Control) -> bool {
    // Relaxed: written by the fiber's creator, and by whoever comes second.
    let green = control.green.load(Ordering::Relaxed);
    if green.is_null() {
        return true;
    }
    // SAFETY: the control block's reference stays until both halves have happened, and this is one. AcqRel: as
    // in `release`.
    if unsafe { &(*green).state }.fetch_or(LEFT, Ordering::AcqRel) & RELEASED == 0 {
        return false;
    }
    forget(control);
    true
}
