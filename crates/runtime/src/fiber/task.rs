//! The task: a spawned closure, its result, and everyone who waits for it.
//!
//! One allocation per spawn holds the header, the closure and, in its place later, the result.
//!
//! ```text
//!   Header { link, vtable, references, state, id, name, … } | closure F  →  result T
//! ```
//!
//! `state` decides two races with one atomic word:
//!
//! * **Who drops the result?** The fiber sets `STORED` when it has put it there, the handle sets
//!   `DETACHED` when it goes before that. Whoever comes second drops it: as with
//!   `std::thread`, the result of a detached fiber dies on the fiber, that of a finished one
//!   with its handle.
//! * **When may a joiner go on?** After `DONE`, which comes when the fiber's thread-locals have
//!   been destroyed, as `pthread_join` has it. A joiner announces itself by `FIBER_WAITS` or
//!   `THREAD_WAITS`, so an unwatched end costs no wake-up.
//!
//! The memory goes with the last reference; handles to a fiber's name and id are such references.

use std::cell::UnsafeCell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use super::{Control, Kind, Runnable};
use crate::cancel::{self, Cancelled};
use crate::inspect::Awaited;
use crate::scheduler::Core;
use crate::trace::{self, Why};
use crate::wait::park::Token;
use crate::wait::{Deadline, Timeouts, futex};

/// The closure has returned and its result lies in the task.
const STORED: u32 = 1;
/// The handle is gone: nobody will take the result.
const DETACHED: u32 = 2;
/// The fiber has ended, destructors of thread-locals included.
const DONE: u32 = 4;
/// A fiber waits for `DONE`.
const FIBER_WAITS: u32 = 8;
/// An OS thread waits for `DONE`.
const THREAD_WAITS: u32 = 16;
/// Somebody wants the fiber to stop.
const CANCELLED: u32 = 32;

/// A unique number of a fiber in this process, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FiberId(u64);

static NEXT: AtomicU64 = AtomicU64::new(1);

impl FiberId {
    fn next() -> FiberId {
        // Relaxed: only uniqueness matters.
        FiberId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// How many there have been.
    pub(crate) fn count() -> u64 {
        // Relaxed: a momentary view.
        NEXT.load(Ordering::Relaxed) - 1
    }

    /// The fiber whose number somebody has kept.
    pub(crate) fn known(number: u64) -> FiberId {
        FiberId(number)
    }

    /// The number itself, from 1 on.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for FiberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FiberId({})", self.0)
    }
}

impl fmt::Display for FiberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The part of a task that does not depend on the closure's type.
#[repr(C)]
pub(crate) struct Header {
    /// First, so that a queue's pointer is the task's.
    pub(crate) link: Runnable,
    vtable: &'static VTable,
    references: AtomicUsize,
    state: AtomicU32,
    /// The slot of the fiber that runs it, once there is one.
    fiber: AtomicPtr<Control>,
    /// What `park` waits for.
    token: Token,
    /// Bytes of the slot that the fiber wants.
    pub(crate) stack: usize,
    id: FiberId,
    name: Option<Box<str>>,
    pub(crate) core: &'static Core,
    /// What the fiber begins with.
    pub(crate) timeouts: Timeouts,
    watcher: Option<Arc<dyn Watcher>>,
}

impl Header {
    /// The fiber begins, in this slot.
    pub(crate) fn runs_on(&self, slot: NonNull<Control>) {
        // Release: whoever finds the slot finds it prepared. See `nudge` for what comes after.
        self.fiber.store(slot.as_ptr(), Ordering::Release);
    }

    /// The fiber's number and name.
    pub(crate) fn who(&self) -> (FiberId, Option<&str>) {
        (self.id, self.name.as_deref())
    }
}

/// Somebody beside the joiner who wants to know of the end: a scope, a thread in `run`.
pub(crate) trait Watcher: Send + Sync {
    /// The fiber has ended; joiners have been told, and it does not count as one any more.
    fn ended(&self);
    /// The fiber has panicked.
    fn panicked(&self) {}
    /// The fiber panicked, and nobody took the payload.
    fn unclaimed_panic(&self) {}
}

struct VTable {
    run: unsafe fn(NonNull<Header>),
    drop_result: unsafe fn(NonNull<Header>),
    free: unsafe fn(NonNull<Header>),
}

enum Stage<F, T> {
    Waiting(F),
    Ended(thread::Result<T>),
    Empty,
}

#[repr(C)]
struct Cell<F, T> {
    header: Header,
    stage: UnsafeCell<Stage<F, T>>,
}

/// One counted reference to a task of unknown type.
pub(crate) struct TaskRef(NonNull<Header>);

// SAFETY: the header's fields are atomics or immutable after creation; the stage is touched
// only by whom the state word names (see the module's essay), and `Task::new` asks for closures
// and results that may cross threads.
unsafe impl Send for TaskRef {}
// SAFETY: as for Send.
unsafe impl Sync for TaskRef {}

impl Clone for TaskRef {
    fn clone(&self) -> Self {
        // Relaxed: a new reference is made from an existing one, which keeps the task alive.
        self.header().references.fetch_add(1, Ordering::Relaxed);
        TaskRef(self.0)
    }
}

impl Drop for TaskRef {
    fn drop(&mut self) {
        let references = &self.header().references;
        // Release publishes this holder's accesses, Acquire sees those of all others before the memory goes. The only
        // holder need not count itself out: nobody is left who could make another reference.
        if references.load(Ordering::Acquire) == 1
            || references.fetch_sub(1, Ordering::Release) == 1
        {
            std::sync::atomic::fence(Ordering::Acquire);
            // SAFETY: that was the last reference.
            unsafe { (self.header().vtable.free)(self.0) }
        }
    }
}

impl TaskRef {
    fn header(&self) -> &Header {
        // SAFETY: a counted reference keeps the task alive.
        unsafe { self.0.as_ref() }
    }

    /// Gives the reference away as the pointer that a queue or a control block holds.
    pub(crate) fn into_raw(self) -> NonNull<Header> {
        ManuallyDrop::new(self).0
    }

    /// # Safety
    /// `task` came from [`TaskRef::into_raw`] and is taken back once.
    pub(crate) unsafe fn from_raw(task: NonNull<Header>) -> TaskRef {
        TaskRef(task)
    }

    pub(crate) fn core(&self) -> &'static Core {
        self.header().core
    }

    /// Pins a task that has not been scheduled yet.
    pub(crate) fn pin(&self, seat: Option<u8>) {
        self.header().link.seat.set(seat);
    }

    pub(crate) fn id(&self) -> FiberId {
        self.header().id
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.header().name.as_deref()
    }

    pub(crate) fn token(&self) -> &Token {
        &self.header().token
    }

    /// Runs the closure, keeps its result and, if the handle has gone, drops the result.
    ///
    /// # Safety
    /// Called once, by the fiber (or thread) that this task was started on.
    pub(crate) unsafe fn run(&self) {
        // SAFETY: once, by contract.
        unsafe { (self.header().vtable.run)(self.0) };
        // Release gives the result to the handle's side, Acquire sees the handle's last act.
        if self.header().state.fetch_or(STORED, Ordering::AcqRel) & DETACHED != 0 {
            // SAFETY: STORED came second, so the result is this side's.
            unsafe { (self.header().vtable.drop_result)(self.0) };
        }
    }

    /// Wants the fiber to stop: it ends at its next wait, or never begins.
    pub(crate) fn cancel(&self) {
        // Release: it sees what was done before.
        if self.header().state.fetch_or(CANCELLED, Ordering::Release) & DONE == 0 {
            self.nudge();
        }
    }

    /// Whether it has been cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        // Acquire: with `cancel`.
        self.header().state.load(Ordering::Acquire) & CANCELLED != 0
    }

    /// Has the fiber look at its next wait, or in the one that it is in, whether it is to stop.
    pub(crate) fn nudge(&self) {
        // Acquire, both: with `runs_on`.
        let slot = || NonNull::new(self.header().fiber.load(Ordering::Acquire));
        // Either the fiber, which begins at this moment, sees the mark, or this sees its slot: it says where it is and looks
        // for marks afterwards; here a mark was set before, and the barrier makes that so on its side, too.
        let slot = slot().or_else(|| crate::kernel::membarrier().then(slot).flatten());
        if let Some(slot) = slot {
            crate::cancel::nudge(slot);
        }
    }

    /// Lets joiners go on. The fiber's destructors have run.
    pub(crate) fn finish(&self) {
        let state = &self.header().state;
        // Release: whoever sees DONE sees everything that the fiber did.
        let before = state.fetch_or(DONE, Ordering::Release);
        let address = state.as_ptr() as usize;
        if before & FIBER_WAITS != 0 {
            crate::wait::futex::wake(address, usize::MAX, u32::MAX);
        }
        if before & THREAD_WAITS != 0 {
            crate::kernel::futex_wake(address, i32::MAX);
        }
    }

    /// Tells the watcher, last of all.
    pub(crate) fn tell(&self) {
        if let Some(watcher) = &self.header().watcher {
            watcher.ended();
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        // Acquire pairs with `finish`.
        self.header().state.load(Ordering::Acquire) & DONE != 0
    }

    /// Waits for [`TaskRef::finish`], as a fiber or as an OS thread, until `deadline` at most, or until the caller is interrupted and `gives_up`; whether it is done.
    pub(crate) fn wait_until(&self, deadline: Deadline, gives_up: impl Fn() -> bool) -> bool {
        let state = &self.header().state;
        let waits = if super::in_fiber() { FIBER_WAITS } else { THREAD_WAITS };
        let _why = trace::because(Why::Join);
        let what = Awaited::Fiber(self.id());
        loop {
            // Acquire pairs with `finish`, here and in the failed exchange below.
            let seen = state.load(Ordering::Acquire);
            if seen & DONE != 0 {
                return true;
            }
            if deadline.passed() || gives_up() {
                return false;
            }
            if seen & waits == 0
                && state
                    .compare_exchange(seen, seen | waits, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            if waits == FIBER_WAITS {
                // SAFETY: the word lives as long as this reference; the caller is a fiber.
                unsafe { futex::wait_for(what, state, seen | waits, u32::MAX, deadline) };
            } else {
                crate::kernel::futex_wait(state, seen | waits, deadline.until());
            }
        }
    }
}

impl<F, T> Cell<F, T>
where
    F: FnOnce() -> T,
{
    const VTABLE: VTable =
        VTable { run: Self::run, drop_result: Self::drop_result, free: Self::free };

    /// # Safety
    /// `task` is a `Cell<F, T>` and nobody else touches its stage now.
    unsafe fn stage<'a>(task: NonNull<Header>) -> &'a mut Stage<F, T> {
        // SAFETY: by contract; repr(C) puts the header first.
        unsafe { &mut *task.cast::<Self>().as_ref().stage.get() }
    }

    unsafe fn run(task: NonNull<Header>) {
        // SAFETY: before STORED the stage is the fiber's alone.
        let stage = unsafe { Self::stage(task) };
        if let Stage::Waiting(f) = std::mem::replace(stage, Stage::Empty) {
            // SAFETY: the runner's reference keeps the header alive.
            let header = unsafe { task.as_ref() };
            // Acquire: with `cancel`.
            let result = if header.state.load(Ordering::Acquire) & CANCELLED != 0 {
                // It never begins. What its closure holds goes, and whatever that does is nobody's business.
                let dropped = catch_unwind(AssertUnwindSafe(|| drop(f)));
                dropped.and_then(|()| Err(Cancelled::payload()))
            } else {
                catch_unwind(AssertUnwindSafe(f))
            };
            if let (Err(payload), Some(watcher)) = (&result, &header.watcher)
                && !payload.is::<Cancelled>()
            {
                watcher.panicked();
            }
            // SAFETY: as above; taken anew because the closure ran in between.
            *unsafe { Self::stage(task) } = Stage::Ended(result);
        }
    }

    unsafe fn drop_result(task: NonNull<Header>) {
        // SAFETY: the state word has made the result the caller's.
        let stage = unsafe { Self::stage(task) };
        // SAFETY: this side's reference keeps the header alive.
        let watcher = unsafe { &task.as_ref().watcher };
        if let (Stage::Ended(Err(payload)), Some(watcher)) = (&*stage, watcher)
            && !payload.is::<Cancelled>()
        {
            watcher.unclaimed_panic();
        }
        let dropped = catch_unwind(AssertUnwindSafe(|| *stage = Stage::Empty));
        if dropped.is_err() {
            // As std::thread: there is nobody left whom the panic could reach.
            crate::kernel::complain(b"sleave: fiber result panicked on drop\n");
            std::process::abort();
        }
    }

    unsafe fn free(task: NonNull<Header>) {
        // SAFETY: the last reference is gone; the box was leaked by `Task::new`.
        drop(unsafe { Box::from_raw(task.cast::<Self>().as_ptr()) });
    }
}

/// The handle's side of a task whose result is a `T`.
pub(crate) struct Task<T> {
    fiber: Fiber,
    /// Takes the result out of the cell, whose full type it knows.
    take: Take<T>,
}

type Take<T> = unsafe fn(NonNull<Header>) -> Option<thread::Result<T>>;

impl<T> Task<T> {
    /// A task that runs `f` on `core`, and its two references: the handle's and the runner's.
    ///
    /// # Safety
    /// `f` and its result may be sent to another thread and outlive the task's run: the caller
    /// asks for `Send + 'static`, or (scopes) sees to it that the task ends in time.
    pub(crate) unsafe fn new<F>(
        core: &'static Core,
        name: Option<String>,
        stack: usize,
        timeouts: Timeouts,
        watcher: Option<Arc<dyn Watcher>>,
        f: F,
    ) -> (Task<T>, TaskRef)
    where
        F: FnOnce() -> T,
    {
        unsafe fn take<F: FnOnce() -> T, T>(task: NonNull<Header>) -> Option<thread::Result<T>> {
            // SAFETY: after DONE and before DETACHED the result is the handle's.
            match std::mem::replace(unsafe { Cell::<F, T>::stage(task) }, Stage::Empty) {
                Stage::Ended(result) => Some(result),
                _ => None,
            }
        }
        let cell = Box::new(Cell::<F, T> {
            header: Header {
                link: Runnable::new(Kind::Fresh),
                vtable: const { &Cell::<F, T>::VTABLE },
                references: AtomicUsize::new(2),
                state: AtomicU32::new(0),
                fiber: AtomicPtr::new(null_mut()),
                token: Token::new(),
                stack,
                id: FiberId::next(),
                name: name.map(String::into_boxed_str),
                core,
                timeouts,
                watcher,
            },
            stage: UnsafeCell::new(Stage::Waiting(f)),
        });
        let task = NonNull::from(Box::leak(cell)).cast::<Header>();
        (Task { fiber: Fiber(TaskRef(task)), take: take::<F, T> }, TaskRef(task))
    }

    pub(crate) fn task(&self) -> &TaskRef {
        &self.fiber.0
    }

    pub(crate) fn fiber(&self) -> &Fiber {
        &self.fiber
    }

    /// Waits for the end and takes the result.
    pub(crate) fn join(self) -> thread::Result<T> {
        while !self.task().wait_until(Deadline::NEVER, cancel::is_due) {
            cancel::checkpoint();
        }
        // SAFETY: DONE was seen; `self` is consumed, so the result is taken once.
        let result = unsafe { (self.take)(self.task().0) };
        result.expect("a task that is done has its result until its only handle takes it")
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        let header = self.task().header();
        // Acquire sees the result, Release orders this side's acts before the fiber's drop. A result that is stored
        // already was stored without DETACHED: then the fiber does not look again, and need not be told.
        if header.state.load(Ordering::Acquire) & STORED != 0
            || header.state.fetch_or(DETACHED, Ordering::AcqRel) & STORED != 0
        {
            // SAFETY: DETACHED came second or not at all, so the result (if not yet taken) is this side's.
            unsafe { (header.vtable.drop_result)(self.task().0) };
        }
    }
}

/// A handle to a fiber: its name and number. Cheap to clone; keeps nothing running.
///
/// The counterpart of [`std::thread::Thread`].
#[derive(Clone)]
pub struct Fiber(pub(crate) TaskRef);

impl Fiber {
    /// The fiber's number, unique in this process.
    pub fn id(&self) -> FiberId {
        self.0.id()
    }

    /// The name given by [`Builder::name`](crate::Builder::name), if any.
    pub fn name(&self) -> Option<&str> {
        self.0.name()
    }

    /// Wants the fiber to stop. It unwinds from the next of sleave's own waits, or the one that it is in (`join`, `park`, `yield_now`,
    /// …); calls of the C library's that wait for descriptors fail with `ECANCELED`, sleeps are over, and a fiber that has not begun
    /// never does. [`cancel`](crate::cancel) has all of it. Its joiner gets [`Cancelled`](crate::Cancelled) as the payload, unless it
    /// returns all the same.
    ///
    /// Anybody may call this, any number of times. When the fiber has ended, it does nothing.
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Gives the fiber its token: a [`park`](crate::park) that it is in returns, else its next one does at once.
    /// Several tokens that are given before it parks are one. As [`std::thread::Thread::unpark`].
    ///
    /// Anybody may call this: threads, fibers of any runtime, the fiber itself. When the fiber has ended,
    /// it does nothing. What the caller did before is seen by the fiber after its `park`.
    pub fn unpark(&self) {
        self.0.token().give();
    }
}

impl fmt::Debug for Fiber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fiber")
            .field("id", &self.id())
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
