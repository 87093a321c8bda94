//! The runtime as a program sees it: a set of workers that fibers are spawned on.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use sleave_context::lock::Lock;

use crate::fiber::{Fiber, NoFibers, Watcher, current, space, watch};
use crate::inspect::{self, Deadlock};
use crate::pool;
use crate::scheduler::{Alarm, Caller, Core, Options, Statistics, enter_as_worker, setxid};
use crate::spawn::{Builder, JoinHandle};
use crate::trace;
use crate::wait::{Deadline, Timeouts, Wishes};

/// A set of workers, and the fibers spawned on it.
///
/// Most programs need none: [`run`] and [`spawn`](crate::spawn) use a default runtime, which
/// starts when it is first used. Several may exist side by side; their fibers may share
/// everything that threads may.
///
/// A runtime that is dropped goes on until its last fiber has ended; [`Runtime::stop`] waits for
/// that.
///
/// # Workers and their numbers
///
/// Workers are OS threads of the runtime's own, which start when there is work. While a thread is inside
/// [`Runtime::run`] it is one of them, and one of the others rests. With [`RuntimeBuilder::use_caller`]
/// the first worker is always the thread that is inside [`Runtime::run`] or [`Runtime::stop`], and with one worker the
/// whole runtime is confined to it.
///
/// They are numbered from 0; a fiber can be [pinned](Builder::pin) to one of them.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// use sleave_runtime::Runtime;
///
/// let runtime = Runtime::builder().workers(2).build()?;
/// let answer = runtime.spawn(|| 6 * 7);
/// assert_eq!(answer.join().unwrap(), 42);
/// runtime.stop();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Runtime {
    core: CoreRef,
}

/// A core in use by a runtime.
#[derive(Clone, Copy)]
pub(crate) struct CoreRef(pub(crate) &'static Core);

impl std::fmt::Debug for CoreRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.statistics().fmt(f)
    }
}

/// Chooses how a [`Runtime`] is made.
///
/// What is not chosen comes from the environment, then from the machine: `SLEAVE_WORKERS` (else
/// the number of CPUs the process may use), `SLEAVE_STACK` (else 256 KiB; suffixes `K` and `M`). The [pool]
/// of the process takes its limit from `SLEAVE_POOL` when the first runtime is made.
#[derive(Clone, Debug, Default)]
pub struct RuntimeBuilder {
    workers: Option<usize>,
    stack: Option<usize>,
    timeouts: Wishes,
    name: Option<String>,
    use_caller: bool,
    deadlock: Option<Deadlock>,
    most: Option<usize>,
}

impl RuntimeBuilder {
    /// How many workers run fibers at the same time, the thread in [`Runtime::run`] among them.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> RuntimeBuilder {
        self.workers = Some(workers);
        self
    }

    /// Usable bytes of the stack of a fiber whose [`Builder`] does not say otherwise.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> RuntimeBuilder {
        self.stack = Some(bytes);
        self
    }

    /// Limits how long calls wait for a descriptor that state no time of their own, on fibers whose
    /// [`Builder`] does not say otherwise; see [`set_wait_timeout`](crate::set_wait_timeout). For
    /// ever if nothing is said.
    ///
    /// Accepting connections is such a wait, too.
    #[must_use]
    pub fn wait_timeout(mut self, timeout: Duration) -> RuntimeBuilder {
        self.timeouts.wait(Some(timeout));
        self
    }

    /// Limits how long `connect` may take, on fibers whose [`Builder`] does not say otherwise; see
    /// [`set_connect_timeout`](crate::set_connect_timeout). As long as the kernel tries if nothing is
    /// said.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> RuntimeBuilder {
        self.timeouts.connect(Some(timeout));
        self
    }

    /// How many fibers there may be at once that have not ended; what `SLEAVE_MAX_FIBERS` says if nothing is said here, else as many as
    /// memory allows. One more is an error of [`Builder::spawn`](crate::Builder::spawn), of kind `QuotaExceeded`, and a panic of [`spawn`](crate::spawn), as with
    /// threads; when one has ended there is room again.
    ///
    /// # Examples
    ///
    /// ```
    /// # if sleave_runtime::identity().is_err() { return Ok(()); }
    /// use sleave_runtime::{Builder, Runtime, park};
    ///
    /// let runtime = Runtime::builder().max_fibers(1).build()?;
    /// let one = Builder::new().spawn_on(&runtime, park)?;
    /// assert!(Builder::new().spawn_on(&runtime, park).is_err());
    /// one.fiber().unpark();
    /// one.join().unwrap();
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn max_fibers(mut self, most: usize) -> RuntimeBuilder {
        self.most = Some(most);
        self
    }

    /// What is done when no fiber of the process can ever run again; what `SLEAVE_DEADLOCK` says if nothing is said here, else
    /// [`Deadlock::Report`]. Where several runtimes have fibers, the severest of their wishes counts.
    ///
    /// A second after everything has come to rest the runtime looks whether each fiber waits for a lock, a join or an
    /// `unpark`, without a deadline, and no thread of the process, timer, event or descriptor could wake one. Threads that are anywhere but in
    /// such a wait themselves might; while there is one, nothing is done. A signal handler might as well, of which nothing can be
    /// known: a program whose fibers wait for one had better choose [`Deadlock::Ignore`].
    #[must_use]
    pub fn deadlock(mut self, action: Deadlock) -> RuntimeBuilder {
        self.deadlock = Some(action);
        self
    }

    /// What the names of its worker threads begin with; `sleave` if nothing is said.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> RuntimeBuilder {
        self.name = Some(name.into());
        self
    }

    /// One of the workers, number 0, is whichever thread is inside [`Runtime::run`] or [`Runtime::stop`]; the runtime has
    /// one thread less of its own. With one worker it has none: it is confined to its caller.
    ///
    /// While no thread is inside, that worker is missing. A confined runtime's fibers then wait, its
    /// timers and descriptors as well, and whoever joins one of them on a plain thread waits until another
    /// thread calls. One thread at a time is the caller; others that call meanwhile wait for their turn, or for the end
    /// of what they run. A runtime that is dropped, or stopped on a fiber, cannot expect a caller any more, and gets threads of
    /// its own for what is left.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use std::thread;
    ///
    /// let runtime = sleave_runtime::Runtime::builder().workers(1).use_caller().build()?;
    /// let early = runtime.spawn(|| thread::current().id());  // Waits for a caller.
    /// let both = runtime.run(|| early.join().unwrap());      // Here it is.
    /// # let _ = both;
    /// runtime.spawn(|| println!("not before the next line"));
    /// runtime.stop();                                        // Runs what is left.
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn use_caller(mut self) -> RuntimeBuilder {
        self.use_caller = true;
        self
    }

    /// Makes the runtime. Its threads start when there is work for them.
    ///
    /// # Errors
    /// `InvalidInput` for 0 workers, for more than 256, for 0 fibers at most, for a stack that no slot can hold, for a
    /// timeout of zero, and for an environment variable that is not what it should be;
    /// `Unsupported` for a timeout where fibers are OS threads; else what epoll_create1(2),
    /// eventfd(2) and timerfd_create(2) say.
    pub fn build(self) -> io::Result<Runtime> {
        trace::configure()?;
        inspect::configure()?;
        let workers = match self.workers {
            Some(workers) => workers,
            None => match setting("SLEAVE_WORKERS", 1)? {
                Some(workers) => workers,
                None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            },
        };
        if !(1..=256).contains(&workers) {
            return Err(invalid(format!("a runtime has 1 to 256 workers, not {workers}")));
        }
        let stack = match self.stack {
            Some(stack) => Some(stack),
            None => setting("SLEAVE_STACK", 1)?,
        };
        pool::limit_from_environment()?;
        let slot = match space() {
            Ok(space) => {
                watch();
                setxid::wrap();
                space.slot_size(stack)?
            }
            // Fibers are OS threads: std's default unless one was asked for.
            Err(_) => stack.unwrap_or(0),
        };
        let timeouts = self.timeouts.or(Timeouts::NONE)?;
        let name = self.name.unwrap_or_else(|| "sleave".into());
        let use_caller = self.use_caller;
        let deadlock = self.deadlock.map_or_else(Deadlock::from_environment, Ok)?;
        let most = match self.most {
            Some(0) => return Err(invalid("a runtime of at most 0 fibers runs nothing".into())),
            Some(most) => most,
            None => setting("SLEAVE_MAX_FIBERS", 1)?.unwrap_or(usize::MAX),
        };
        let core =
            Core::new(Options { workers, use_caller, slot, timeouts, deadlock, most, name })?;
        Ok(Runtime { core: CoreRef(core) })
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// A number from the environment, `least` or more, with an optional suffix `K` or `M`.
pub(crate) fn setting(variable: &str, least: usize) -> io::Result<Option<usize>> {
    let Some(value) = std::env::var_os(variable) else { return Ok(None) };
    let number = || {
        let text = value.to_str()?;
        let (digits, unit) = match text.as_bytes().last()? {
            b'k' | b'K' => (&text[..text.len() - 1], 1 << 10),
            b'm' | b'M' => (&text[..text.len() - 1], 1 << 20),
            _ => (text, 1),
        };
        digits.parse::<usize>().ok()?.checked_mul(unit).filter(|&n| n >= least)
    };
    match number() {
        Some(number) => Ok(Some(number)),
        None => {
            let what = if least == 0 { "a number" } else { "a positive number" };
            Err(invalid(format!("{variable}={value:?}: {what} was expected")))
        }
    }
}

impl Runtime {
    /// Chooses how a runtime is made.
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder::default()
    }

    pub(crate) fn core(&self) -> CoreRef {
        self.core
    }

    /// Runs `f` on a fiber of this runtime and returns its result. The calling thread becomes one
    /// of the workers until then; other fibers may go on running afterwards.
    ///
    /// Called on a fiber, it spawns a fiber here and waits for it.
    ///
    /// # Panics
    /// If `f` panics, with the same payload; if not even one fiber can be made; and if the runtime has been
    /// stopped.
    pub fn run<F, T>(&self, f: F) -> T
    where
        F: FnOnce() -> T + Send,
        T: Send,
    {
        run_on(self.core(), f)
    }

    /// Spawns a fiber on this runtime. See [`spawn`](crate::spawn).
    ///
    /// # Panics
    /// If no fiber can be made, or the runtime has been stopped; [`Builder::spawn_on`] returns that as an error.
    pub fn spawn<F, T>(&self, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Builder::new().spawn_on(self, f).expect("failed to spawn fiber")
    }

    /// Takes no more from outside, waits until every fiber of this runtime has ended, then until its threads have.
    ///
    /// In this order: from now on a spawn from outside is refused; the fibers that exist go on, may spawn others, and all of
    /// these end; then pending timers are dropped, the workers leave, and their threads are joined. Nothing is cut short: a
    /// fiber that never ends keeps `stop` waiting for ever, [`Runtime::stop_timeout`] not.
    ///
    /// It may be called again, and by several threads at once: each returns when all is over. A fiber of this very
    /// runtime cannot wait for its own end: there the call only asks, and returns at once. A fiber of another
    /// runtime parks.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use sleave_runtime::{Builder, Runtime};
    ///
    /// let runtime = Runtime::builder().workers(2).build()?;
    /// let last = runtime.spawn(|| sleave_runtime::spawn(|| "spawned by one that was there").join());
    /// runtime.stop();
    /// assert!(last.is_finished());
    /// assert!(Builder::new().spawn_on(&runtime, || "too late").is_err());
    /// runtime.stop();
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop(&self) {
        self.stop_until(Deadline::NEVER);
    }

    /// As [`Runtime::stop`], but waits for the fibers' end for `timeout` at most; whether all is over. `false` is never
    /// early.
    ///
    /// After `false` the runtime is still stopping: it takes nothing from outside, its fibers go on, and
    /// [`Runtime::statistics`] counts them. Call it again, end them by means of your own, or let the process end.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use std::time::Duration;
    ///
    /// let runtime = sleave_runtime::Runtime::builder().workers(1).build()?;
    /// let stubborn = runtime.spawn(sleave_runtime::park);
    /// assert!(!runtime.stop_timeout(Duration::from_millis(10)));
    /// assert_eq!(runtime.statistics().fibers, 1);
    /// stubborn.fiber().unpark();
    /// assert!(runtime.stop_timeout(Duration::MAX));
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop_timeout(&self, timeout: Duration) -> bool {
        self.stop_until(Deadline::in_time(timeout))
    }

    /// Stops the runtime as [`Runtime::stop`] does; what has not ended when `drain` is over is
    /// [cancelled](crate::Fiber::cancel), fibers that are spawned later included, and has for `grace` time to end. Whether all have.
    ///
    /// If not, those that are left go on being cancelled, and a later `stop` waits for them.
    ///
    /// # Examples
    ///
    /// ```
    /// # if sleave_runtime::identity().is_err() { return; }
    /// use std::time::Duration;
    ///
    /// let runtime = sleave_runtime::Runtime::builder().workers(1).build().unwrap();
    /// runtime.spawn(sleave_runtime::park);
    /// assert!(runtime.shutdown(Duration::from_millis(10), Duration::from_secs(60)));
    /// ```
    pub fn shutdown(&self, drain: Duration, grace: Duration) -> bool {
        if self.stop_timeout(drain) {
            return true;
        }
        self.core.0.cancel_all();
        self.stop_timeout(grace)
    }

    fn stop_until(&self, deadline: Deadline) -> bool {
        let CoreRef(core) = self.core;
        core.release();
        if core.is_callers() {
            return false;
        }
        if core.uses_caller() && space().is_ok() {
            match current() {
                Some(_) => core.expects_no_caller(),
                None => drain(core, deadline),
            }
        }
        core.join(deadline)
    }

    /// What the runtime is doing at this moment.
    pub fn statistics(&self) -> Statistics {
        self.core().0.statistics()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.core.0.abandon();
    }
}

/// The runtime of whoever does not choose one.
///
/// # Errors
/// See [`RuntimeBuilder::build`].
pub(crate) fn default() -> io::Result<CoreRef> {
    static DEFAULT: AtomicPtr<Core> = AtomicPtr::new(std::ptr::null_mut());
    static STARTING: Lock<()> = Lock::new(());
    // Acquire pairs with the Release below.
    let mut core = DEFAULT.load(Ordering::Acquire);
    if core.is_null() {
        // Made outside of the lock, for what it calls may wait; one of several is kept.
        let new = Runtime::builder().build()?;
        let _starting = STARTING.lock();
        // Relaxed: under the lock.
        core = DEFAULT.load(Ordering::Relaxed);
        if core.is_null() {
            core = std::ptr::from_ref(new.core().0).cast_mut();
            std::mem::forget(new);
            // Release publishes the core.
            DEFAULT.store(core, Ordering::Release);
        } else {
            drop(_starting);
            new.stop();
        }
    }
    // SAFETY: cores live for ever.
    Ok(CoreRef(unsafe { &*core }))
}

/// The runtime that the caller is on, as a fiber; else the default one.
pub(crate) fn here() -> io::Result<CoreRef> {
    match current() {
        // SAFETY: the caller's own control block.
        Some(control) => Ok(CoreRef(unsafe { control.as_ref() }.processor().core())),
        // An OS thread may stand for a fiber.
        None => crate::current().map_or_else(default, |Fiber(own)| Ok(CoreRef(own.core()))),
    }
}

/// Runs `f` on a fiber and returns its result; the calling thread is one of the default
/// runtime's workers until then.
///
/// This is how a `main` becomes a fiber. Fibers that are still running when it returns go on, until
/// the process ends, as threads would.
///
/// # Panics
/// If `f` panics, with the same payload; and if not even one fiber can be made.
///
/// # Examples
///
/// ```
/// let sum = sleave_runtime::run(|| {
///     let halves = [0..50, 50..101].map(|half| sleave_runtime::spawn(|| half.sum::<u32>()));
///     halves.into_iter().map(|half| half.join().unwrap()).sum::<u32>()
/// });
/// assert_eq!(sum, 5050);
/// ```
pub fn run<F, T>(f: F) -> T
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    run_on(here().expect("failed to start the default runtime"), f)
}

fn run_on<F, T>(core: CoreRef, f: F) -> T
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    let CoreRef(core) = core;
    let caller = (current().is_none() && space().is_ok()).then(|| Arc::new(Caller::new(core)));
    // Before the spawn, which would start a worker if there were none.
    let entered = caller.is_some() && core.caller_enters();
    let watcher = caller.clone().map(|caller| caller as Arc<dyn Watcher>);
    // SAFETY: the task has ended, and its result been taken, before this function returns.
    let spawned = match unsafe { Builder::new().spawn_unchecked(CoreRef(core), watcher, f) } {
        Ok(spawned) => spawned,
        Err(e) => {
            if entered {
                core.caller_turns_back();
            }
            panic!("failed to spawn fiber: {e}")
        }
    };
    if let Some(caller) = &caller {
        let task = spawned.task();
        call(core, caller, entered, &|| task.is_done(), Deadline::NEVER);
    }
    spawned.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

/// Has the calling thread be a worker until `over`, at `deadline` at the latest, whenever it may be one; returns
/// early if others can do without it. `entered`: it has been counted as one. Who makes `over` true rings the
/// caller's bell.
fn call(
    core: &'static Core,
    caller: &Caller,
    mut entered: bool,
    over: &dyn Fn() -> bool,
    deadline: Deadline,
) {
    loop {
        let turn = core.turn();
        if entered {
            enter_as_worker(core, caller, over);
        } else if core.uses_caller() {
            core.await_turn(turn, deadline);
        } else {
            return;
        }
        if over() {
            return;
        }
        entered = core.caller_enters();
    }
}

/// Has the calling thread run what is left of a runtime that uses its caller, until `deadline` at the latest.
fn drain(core: &'static Core, deadline: Deadline) {
    let caller = Arc::new(Caller::new(core));
    let _alarm = (deadline != Deadline::NEVER).then(|| Alarm::set(core, deadline, caller.clone()));
    let over = || core.has_ended() || deadline.passed();
    if !over() {
        call(core, &caller, core.caller_enters(), &over, deadline);
    }
}

/// Whether fibers are what they should be here: `Ok`, each has an identity of its own on a stack of
/// ours; or why that cannot be had, so that each fiber is an OS thread (as safe, as large).
///
/// # Errors
/// See [`NoFibers`]. `SLEAVE_IDENTITY=threads` in the environment asks for it.
pub fn identity() -> Result<(), &'static NoFibers> {
    space().map(drop)
}
