//! Spawning: `std::thread`'s face, with fibers behind it.
//!
//! Where fibers cannot have identities of their own, each is an OS thread, made by std. That is the
//! honest fallback: whatever was said about safety stays true, only the scale is the kernel's.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::cancel;
use crate::fiber::{self, Fiber, Task, TaskRef, Watcher, space};
use crate::runtime::{CoreRef, Runtime, here};
use crate::scheduler::{self, Core};
use crate::wait::{Deadline, Timeouts, Wishes};

/// A fiber factory: name and stack size, as [`std::thread::Builder`], and the worker that it is pinned to.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let fiber = sleave_runtime::Builder::new()
///     .name("reader")
///     .stack_size(1 << 20)
///     .spawn(|| sleave_runtime::current().unwrap().name().map(str::to_owned))?;
/// assert_eq!(fiber.join().unwrap().as_deref(), Some("reader"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until it spawns"]
pub struct Builder {
    name: Option<String>,
    stack: Option<usize>,
    worker: Option<usize>,
    timeouts: Wishes,
}

/// What spawning gives.
pub(crate) enum Spawned<T> {
    Fiber(Task<T>),
    Thread(Task<T>, thread::JoinHandle<()>),
}

impl<T> Spawned<T> {
    pub(crate) fn join(self) -> thread::Result<T> {
        match self {
            Spawned::Fiber(task) => task.join(),
            Spawned::Thread(task, thread) => {
                // The result is there when the thread's locals are gone, as for a fiber.
                thread.join().expect("the thread of a fiber does not panic itself");
                task.join()
            }
        }
    }

    pub(crate) fn task(&self) -> &TaskRef {
        match self {
            Spawned::Fiber(task) | Spawned::Thread(task, _) => task.task(),
        }
    }

    pub(crate) fn fiber(&self) -> &Fiber {
        match self {
            Spawned::Fiber(task) | Spawned::Thread(task, _) => task.fiber(),
        }
    }
}

thread_local! {
    /// What an OS thread that stands for a fiber runs.
    static STANDS_FOR: RefCell<Option<TaskRef>> = const { RefCell::new(None) };
}

impl Builder {
    /// A builder of fibers without a name, with the runtime's usual stack.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// The fiber's name, which reports of panics in the runtime and of overflows show.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = Some(name.into());
        self
    }

    /// At least so many usable bytes of stack. Memory is committed as it is touched; the address
    /// space is a power of two that also holds guard and identity.
    pub fn stack_size(mut self, bytes: usize) -> Builder {
        self.stack = Some(bytes);
        self
    }

    /// Only the worker numbered `worker` runs the fiber: always the same OS thread, whatever that is stuck in.
    /// Workers are numbered from 0 on; in a runtime that [uses its caller](crate::RuntimeBuilder::use_caller)
    /// number 0 is the thread inside [`Runtime::run`] or [`Runtime::stop`]. See also [`pin`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use sleave_runtime::{Builder, Runtime, worker};
    ///
    /// let runtime = Runtime::builder().workers(2).build()?;
    /// let pinned = Builder::new().pin(1).spawn_on(&runtime, worker)?;
    /// # if sleave_runtime::identity().is_ok() {
    /// assert_eq!(pinned.join().unwrap(), Some(1));
    /// # }
    /// assert!(Builder::new().pin(2).spawn_on(&runtime, || ()).is_err(), "there are two");
    /// # Ok(())
    /// # }
    /// ```
    pub fn pin(mut self, worker: usize) -> Builder {
        self.worker = Some(worker);
        self
    }

    /// Limits how long the fiber's calls wait for a descriptor that state no time of their own; with
    /// `None` not at all, whatever its runtime's [limit](crate::RuntimeBuilder::wait_timeout). See
    /// [`set_wait_timeout`](crate::set_wait_timeout).
    pub fn wait_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Builder {
        self.timeouts.wait(timeout.into());
        self
    }

    /// Limits how long the fiber's `connect`s may take; with `None` not at all, whatever its runtime's
    /// [limit](crate::RuntimeBuilder::connect_timeout). See
    /// [`set_connect_timeout`](crate::set_connect_timeout).
    pub fn connect_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Builder {
        self.timeouts.connect(timeout.into());
        self
    }

    /// Spawns a fiber on the runtime of the calling fiber, or on the default one.
    ///
    /// # Errors
    /// `InvalidInput` for a stack that is too large, for a worker that does not exist, and for a timeout of zero;
    /// `Unsupported` for a timeout where fibers are OS threads; what pthread_create(3) says if a worker is needed
    /// and none can be started; `OutOfMemory` while fibers that were spawned before find no memory for their
    /// stacks; `QuotaExceeded` if the runtime has as many fibers as it [may](crate::RuntimeBuilder::max_fibers); and as [`RuntimeBuilder::build`](crate::RuntimeBuilder::build)
    /// if this starts the default runtime.
    pub fn spawn<F, T>(self, f: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        // SAFETY: closure and result are Send and 'static.
        Ok(JoinHandle::new(unsafe { self.spawn_unchecked(here()?, None, f) }?))
    }

    /// Spawns a fiber on `runtime`.
    ///
    /// # Errors
    /// As [`Builder::spawn`]; and if `runtime` has been [stopped](Runtime::stop), unless the caller is one of
    /// its fibers.
    pub fn spawn_on<F, T>(self, runtime: &Runtime, f: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        // SAFETY: closure and result are Send and 'static.
        Ok(JoinHandle::new(unsafe { self.spawn_unchecked(runtime.core(), None, f) }?))
    }

    /// # Safety
    /// As [`Task::new`].
    pub(crate) unsafe fn spawn_unchecked<F, T>(
        self,
        core: CoreRef,
        watcher: Option<Arc<dyn Watcher>>,
        f: F,
    ) -> io::Result<Spawned<T>>
    where
        F: FnOnce() -> T,
    {
        let CoreRef(core) = core;
        let timeouts = self.timeouts.or(core.timeouts())?;
        let Ok(space) = space() else {
            // Each fiber is alone on its thread here; what it is pinned to must exist all the same.
            self.worker.map(|worker| core.seat(worker)).transpose()?;
            Self::admit(core)?;
            // SAFETY: by contract.
            return unsafe { self.spawn_thread(core, watcher, f) };
        };
        let stack = match self.stack {
            None => core.slot_size(),
            wish => space.slot_size(wish)?,
        };
        core.has_memory(stack)?;
        Self::admit(core)?;
        let seat = self.worker.map(|worker| core.bind(worker)).transpose();
        let ready = seat.and_then(|seat| match fiber::in_fiber() {
            true => Ok(seat),
            false => core.ensure_worker().map(|()| seat),
        });
        let seat = ready.inspect_err(|_| core.fiber_ends())?;
        // SAFETY: by contract.
        let (task, runner) = unsafe { Task::new(core, self.name, stack, timeouts, watcher, f) };
        runner.pin(seat);
        scheduler::spawn(runner);
        Ok(Spawned::Fiber(task))
    }

    /// Counts the fiber that is to be spawned.
    ///
    /// # Errors
    /// As [`Core::admit`].
    pub(crate) fn admit(core: &Core) -> io::Result<()> {
        if !core.is_callers() {
            return core.admit();
        }
        core.admit_from_inside()
    }

    /// The fallback: an OS thread that stands for the fiber, which has been counted.
    ///
    /// # Safety
    /// As [`Task::new`].
    pub(crate) unsafe fn spawn_thread<F, T>(
        self,
        core: &'static Core,
        watcher: Option<Arc<dyn Watcher>>,
        f: F,
    ) -> io::Result<Spawned<T>>
    where
        F: FnOnce() -> T,
    {
        let mut builder = thread::Builder::new();
        if let Some(name) = &self.name {
            builder = builder.name(name.clone());
        }
        match (self.stack, core.slot_size()) {
            (Some(stack), _) => builder = builder.stack_size(stack),
            (None, 0) => {}
            (None, stack) => builder = builder.stack_size(stack),
        }
        // SAFETY: by contract.
        let (task, runner) = unsafe { Task::new(core, self.name, 0, Timeouts::NONE, watcher, f) };
        let thread = builder.spawn(move || {
            STANDS_FOR.set(Some(runner.clone()));
            // SAFETY: once, by the thread that was started for it.
            unsafe { runner.run() };
            runner.finish();
            core.fiber_ends();
            runner.tell();
        });
        match thread {
            Ok(thread) => Ok(Spawned::Thread(task, thread)),
            Err(e) => {
                core.fiber_ends();
                Err(e)
            }
        }
    }
}

/// An owned permission to join a fiber: to wait for its end and take its result. Dropped, it
/// leaves the fiber running by itself. As [`std::thread::JoinHandle`].
pub struct JoinHandle<T> {
    spawned: Spawned<T>,
}

// SAFETY: the handle gives access to the result only, once and to its owner: `T: Send` was asked
// for when the fiber was spawned.
unsafe impl<T> Send for JoinHandle<T> {}
// SAFETY: a shared handle gives access to name, number and state only.
unsafe impl<T> Sync for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    pub(crate) fn new(spawned: Spawned<T>) -> JoinHandle<T> {
        JoinHandle { spawned }
    }

    /// Waits for the fiber to end, its thread-locals destroyed, and returns its result, or the payload of its panic.
    /// Called on a fiber, it parks that fiber; on a thread, it blocks the thread.
    ///
    /// # Errors
    /// The payload of the panic that ended the fiber.
    pub fn join(self) -> thread::Result<T> {
        self.spawned.join()
    }

    /// Whether the fiber has ended, so that [`JoinHandle::join`] would not wait.
    pub fn is_finished(&self) -> bool {
        self.spawned.task().is_done()
    }

    /// Wants the fiber to stop: [`Fiber::cancel`].
    pub fn cancel(&self) {
        self.fiber().cancel();
    }

    /// As [`JoinHandle::join`], for `limit` at most.
    ///
    /// # Errors
    /// The handle, if the fiber has not ended by then.
    ///
    /// # Examples
    ///
    /// ```
    /// # if sleave_runtime::identity().is_err() { return; }
    /// use std::time::Duration;
    ///
    /// let fiber = sleave_runtime::spawn(sleave_runtime::park);
    /// let fiber = fiber.join_timeout(Duration::from_millis(1)).unwrap_err();
    /// fiber.fiber().unpark();
    /// assert!(fiber.join_timeout(Duration::from_secs(60)).unwrap().is_ok());
    /// ```
    pub fn join_timeout(self, limit: Duration) -> Result<thread::Result<T>, JoinHandle<T>> {
        let deadline = Deadline::in_time(limit);
        while !self.spawned.task().wait_until(deadline, cancel::is_due) {
            cancel::checkpoint();
            if deadline.passed() {
                return Err(self);
            }
        }
        Ok(self.spawned.join())
    }

    /// The fiber's name and number.
    pub fn fiber(&self) -> &Fiber {
        self.spawned.fiber()
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("fiber", self.fiber()).finish_non_exhaustive()
    }
}

/// Spawns a fiber, on the runtime of the calling fiber or on the default one. As
/// [`std::thread::spawn`]: the same bounds, the same safety, the same handling of panics.
///
/// # Panics
/// If no fiber can be made; [`Builder::spawn`] returns that as an error.
///
/// # Examples
///
/// ```
/// let fiber = sleave_runtime::spawn(|| 6 * 7);
/// assert_eq!(fiber.join().unwrap(), 42);
/// ```
pub fn spawn<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Builder::new().spawn(f).expect("failed to spawn fiber")
}

/// The calling fiber; `None` on a thread that is none.
pub fn current() -> Option<Fiber> {
    let task = match fiber::current() {
        // SAFETY: the caller's own control block; a running fiber holds a reference to its
        // task, of which this makes another.
        Some(control) => unsafe {
            let own = std::mem::ManuallyDrop::new(TaskRef::from_raw(control.as_ref().task.get()?));
            Some(TaskRef::clone(&own))
        },
        None => STANDS_FOR.try_with(|task| task.borrow().clone()).ok().flatten(),
    };
    task.map(Fiber)
}

/// The number of the worker that runs the calling fiber; `None` on a thread that is no fiber, and where fibers are OS
/// threads.
///
/// The workers that can be [pinned](Builder::pin) to have the numbers below [`RuntimeBuilder::workers`]. A thread
/// in [`run`](crate::run) and one that stands in for a stuck worker have larger ones.
///
/// [`RuntimeBuilder::workers`]: crate::RuntimeBuilder::workers
pub fn worker() -> Option<usize> {
    // SAFETY: the caller's own control block.
    fiber::current().map(|control| unsafe { control.as_ref() }.processor().number())
}

/// Moves the calling fiber to the worker numbered `worker`, where it is when this returns, and keeps it there until it
/// is [unpinned](unpin). As if it had been spawned with [`Builder::pin`].
///
/// # Errors
/// `InvalidInput` if there is no such worker, and on a thread that is no fiber; what pthread_create(3) says if the
/// worker has no thread yet and none can be started.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let runtime = sleave_runtime::Runtime::builder().workers(2).build()?;
/// runtime.run(|| {
///     for worker in [0, 1, 0] {
///         sleave_runtime::pin(worker).unwrap();
/// #       if sleave_runtime::identity().is_err() { continue; }
///         assert_eq!(sleave_runtime::worker(), Some(worker));
///     }
///     sleave_runtime::unpin();
///     assert!(sleave_runtime::pin(2).is_err(), "there are two");
/// });
/// # Ok(())
/// # }
/// ```
pub fn pin(worker: usize) -> io::Result<()> {
    match (fiber::current(), current()) {
        // SAFETY: the caller's own control block.
        (Some(control), _) => scheduler::pin(unsafe { control.as_ref() }, Some(worker)),
        (None, Some(Fiber(task))) => task.core().seat(worker).map(drop),
        (None, None) => {
            let message = "only a fiber can be pinned to a worker";
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}

/// Lets the calling fiber run on any worker again. Does nothing if it is not pinned, or no fiber.
pub fn unpin() {
    if let Some(control) = fiber::current() {
        // SAFETY: the caller's own control block.
        let _ = scheduler::pin(unsafe { control.as_ref() }, None);
    }
}

/// Parks the calling fiber until somebody calls [`Fiber::unpark`]; returns at once if that has happened since
/// its last `park`. As [`std::thread::park`], but never without a token.
///
/// Its worker runs other fibers meanwhile. The token is the fiber's own: what it has for
/// `std::thread::park`, which works on fibers too, is another.
///
/// # Panics
/// On a thread that is no fiber: there is no handle by which it could be unparked.
///
/// # Examples
///
/// ```
/// let sleeper = sleave_runtime::spawn(|| {
///     sleave_runtime::park();
///     "unparked"
/// });
/// sleeper.fiber().unpark(); // Before it parks or after, all the same.
/// assert_eq!(sleeper.join().unwrap(), "unparked");
/// ```
pub fn park() {
    park_until(Deadline::NEVER);
}

/// As [`park`], for `timeout` at most; whether the fiber was unparked. `false` is never early.
///
/// # Panics
/// As [`park`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// sleave_runtime::run(|| {
///     assert!(!sleave_runtime::park_timeout(Duration::from_millis(1)));
///     sleave_runtime::current().unwrap().unpark();
///     assert!(sleave_runtime::park_timeout(Duration::MAX));
/// });
/// ```
pub fn park_timeout(timeout: Duration) -> bool {
    park_until(Deadline::in_time(timeout))
}

/// As [`park`], until `deadline` at the latest; whether the fiber was unparked. `false` is never
/// early; a deadline that has passed asks whether the token is there, and takes it.
///
/// # Panics
/// As [`park`].
pub fn park_deadline(deadline: Instant) -> bool {
    park_timeout(deadline.saturating_duration_since(Instant::now()))
}

fn park_until(deadline: Deadline) -> bool {
    let Some(Fiber(task)) = current() else {
        panic!("only a fiber parks here: nobody has a handle to unpark a plain thread")
    };
    cancel::checkpoint();
    let given = if fiber::in_fiber() {
        task.token().take_as_fiber(deadline)
    } else {
        task.token().take_as_thread(deadline)
    };
    if !given {
        cancel::checkpoint();
    }
    given
}
