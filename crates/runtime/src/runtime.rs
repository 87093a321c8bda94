//! The runtime as a program sees it: a set of workers that fibers are spawned on.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use sleave_context::lock::Lock;

use crate::fiber::{NoFibers, current, space, watch};
use crate::scheduler::{Bell, Core, Options, Statistics, enter_as_worker, setxid};
use crate::spawn::{Builder, JoinHandle};

/// A set of workers, and the fibers spawned on it.
///
/// Most programs need none: [`run`] and [`spawn`](crate::spawn) use a default runtime, which
/// starts when it is first used. Several may exist side by side; their fibers may share
/// everything that threads may.
///
/// A runtime that is dropped goes on until its last fiber has ended; [`Runtime::stop`] waits for
/// that.
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
    core: Option<CoreRef>,
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
/// the number of CPUs the process may use), `SLEAVE_STACK` (else 256 KiB; suffixes `K` and `M`).
#[derive(Clone, Debug, Default)]
pub struct RuntimeBuilder {
    workers: Option<usize>,
    stack: Option<usize>,
    name: Option<String>,
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

    /// What the names of its worker threads begin with; `sleave` if nothing is said.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> RuntimeBuilder {
        self.name = Some(name.into());
        self
    }

    /// Makes the runtime. Its threads start when there is work for them.
    ///
    /// # Errors
    /// `InvalidInput` for 0 workers, for more than 256, for a stack that no slot can hold, and
    /// for an environment variable that is not what it should be; else what epoll_create1(2),
    /// eventfd(2) and timerfd_create(2) say.
    pub fn build(self) -> io::Result<Runtime> {
        let workers = match self.workers {
            Some(workers) => workers,
            None => match setting("SLEAVE_WORKERS")? {
                Some(workers) => workers,
                None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            },
        };
        if !(1..=256).contains(&workers) {
            return Err(invalid(format!("a runtime has 1 to 256 workers, not {workers}")));
        }
        let stack = match self.stack {
            Some(stack) => Some(stack),
            None => setting("SLEAVE_STACK")?,
        };
        let slot = match space() {
            Ok(space) => {
                watch();
                setxid::wrap();
                space.slot_size(stack)?
            }
            // Fibers are OS threads: std's default unless one was asked for.
            Err(_) => stack.unwrap_or(0),
        };
        let name = self.name.unwrap_or_else(|| "sleave".into());
        let core = Core::new(Options { workers, slot, name })?;
        Ok(Runtime { core: Some(CoreRef(core)) })
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// A positive number from the environment, with an optional suffix `K` or `M`.
fn setting(variable: &str) -> io::Result<Option<usize>> {
    let Some(value) = std::env::var_os(variable) else { return Ok(None) };
    let number = || {
        let text = value.to_str()?;
        let (digits, unit) = match text.as_bytes().last()? {
            b'k' | b'K' => (&text[..text.len() - 1], 1 << 10),
            b'm' | b'M' => (&text[..text.len() - 1], 1 << 20),
            _ => (text, 1),
        };
        digits.parse::<usize>().ok()?.checked_mul(unit).filter(|&n| n > 0)
    };
    match number() {
        Some(number) => Ok(Some(number)),
        None => Err(invalid(format!("{variable}={value:?}: a positive number was expected"))),
    }
}

impl Runtime {
    /// Chooses how a runtime is made.
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder::default()
    }

    pub(crate) fn core(&self) -> CoreRef {
        self.core.expect("a runtime has its core until it is stopped or dropped")
    }

    /// Runs `f` on a fiber of this runtime and returns its result. The calling thread becomes one
    /// of the workers until then; other fibers may go on running afterwards.
    ///
    /// Called on a fiber, it spawns a fiber here and waits for it.
    ///
    /// # Panics
    /// If `f` panics, with the same payload; and if not even one fiber can be made.
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
    /// If no fiber can be made; [`Builder::spawn_on`] returns that as an error.
    pub fn spawn<F, T>(&self, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Builder::new().spawn_on(self, f).expect("failed to spawn fiber")
    }

    /// Waits until every fiber of this runtime has ended, then until its threads have.
    ///
    /// Fibers that are running may spawn others meanwhile: those are waited for as well.
    ///
    /// # Panics
    /// On a fiber of this very runtime: it would wait for itself.
    pub fn stop(mut self) {
        let CoreRef(core) = self.core();
        if let Some(control) = current() {
            // SAFETY: the caller's own control block.
            let own = unsafe { control.as_ref() }.processor().core();
            assert!(!std::ptr::eq(own, core), "a fiber cannot stop the runtime that it runs on");
        }
        self.core = None;
        core.release();
        core.join();
    }

    /// What the runtime is doing at this moment.
    pub fn statistics(&self) -> Statistics {
        self.core().0.statistics()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(CoreRef(core)) = self.core.take() {
            core.abandon();
        }
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
        None => default(),
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
    let result = if current().is_none() && space().is_ok() && core.0.caller_enters() {
        let bell = Arc::new(Bell::new(core.0));
        // SAFETY: the task has ended, and its result been taken, before this function returns.
        match unsafe { Builder::new().spawn_unchecked(core, Some(bell.clone()), f) } {
            Ok(spawned) => {
                enter_as_worker(core.0, spawned.task(), &bell);
                spawned.join()
            }
            Err(e) => panic!("failed to spawn fiber: {e}"),
        }
    } else {
        // SAFETY: as above.
        let spawned = unsafe { Builder::new().spawn_unchecked(core, None, f) };
        spawned.unwrap_or_else(|e| panic!("failed to spawn fiber: {e}")).join()
    };
    result.unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

/// Whether fibers are what they should be here: `Ok`, each has an identity of its own on a stack of
/// ours; or why that cannot be had, so that each fiber is an OS thread (as safe, as large).
///
/// # Errors
/// See [`NoFibers`]. `SLEAVE_IDENTITY=threads` in the environment asks for it.
pub fn identity() -> Result<(), &'static NoFibers> {
    space().map(drop)
}
