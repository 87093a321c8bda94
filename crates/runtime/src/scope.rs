//! Scoped fibers: they may borrow what outlives the scope. As [`std::thread::scope`].

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use sleave_context::lock::Lock;

use crate::fiber::{AtWork, Fiber, Watcher, in_fiber};
use crate::inspect::Awaited;
use crate::kernel;
use crate::runtime::here;
use crate::spawn::{Builder, Spawned};
use crate::trace::{self, Why};
use crate::wait::{Deadline, futex};

/// A scope in which fibers are spawned; see [`scope`].
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    count: Arc<Count>,
    /// Invariant, as in std: the scope's lifetime must neither shrink nor grow.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

/// How many fibers of a scope have not ended.
#[derive(Debug, Default)]
struct Count {
    /// Twice their number, plus 1 when the scope's owner waits for 0; a futex.
    running: AtomicU32,
    /// One of them has panicked and nobody has joined it.
    panicked: AtomicBool,
    /// Where they cancel each other: those that may not have ended yet.
    siblings: Option<Lock<Siblings>>,
}

/// The fibers of a scope in which they cancel each other.
#[derive(Debug, Default)]
struct Siblings {
    fibers: Vec<Fiber>,
    /// How many there may be until those that have ended are left out.
    room: usize,
    /// All are cancelled, and whoever comes.
    cancelled: bool,
}

impl Count {
    /// Of a scope in which fibers cancel each other.
    fn cancelling() -> Count {
        Count { siblings: Some(Lock::default()), ..Count::default() }
    }

    fn knows(&self, fiber: &Fiber) {
        let Some(siblings) = &self.siblings else { return };
        let cancelled = {
            // What allocates under the lock may not park there.
            let _at_work = AtWork::begin();
            let mut siblings = siblings.lock();
            if siblings.fibers.len() >= siblings.room {
                siblings.fibers.retain(|fiber| !fiber.0.is_done());
                siblings.room = 2 * siblings.fibers.len() + 16;
            }
            siblings.fibers.push(fiber.clone());
            siblings.cancelled
        };
        if cancelled {
            fiber.cancel();
        }
    }

    fn cancel(&self) {
        let Some(siblings) = &self.siblings else { return };
        let all = {
            let mut siblings = siblings.lock();
            siblings.cancelled = true;
            std::mem::take(&mut siblings.fibers)
        };
        all.iter().for_each(Fiber::cancel);
    }

    fn begin(&self) {
        // Relaxed: the owner is not waiting yet, or a counted fiber spawns. The count cannot
        // overflow: 2^31 fibers do not fit into memory.
        self.running.fetch_add(2, Ordering::Relaxed);
    }

    fn wait(&self) {
        loop {
            // Acquire pairs with the Release of the last that ends.
            let seen = self.running.fetch_or(1, Ordering::Acquire) | 1;
            if seen == 1 {
                return;
            }
            if in_fiber() {
                let _why = trace::because(Why::Join);
                // SAFETY: the word lives as long as `self`; the caller is a fiber.
                unsafe {
                    let word = &self.running;
                    futex::wait_for(Awaited::Scope, word, seen, u32::MAX, Deadline::NEVER)
                };
            } else {
                kernel::futex_wait(&self.running, seen, None);
            }
        }
    }
}

impl Watcher for Count {
    fn ended(&self) {
        // Release: the fiber's accesses to what it borrowed come before the owner's next.
        if self.running.fetch_sub(2, Ordering::Release) == 3 {
            let address = self.running.as_ptr() as usize;
            if futex::wake(address, usize::MAX, u32::MAX) == 0 {
                kernel::futex_wake(address, i32::MAX);
            }
        }
    }

    fn panicked(&self) {
        self.cancel();
    }

    fn unclaimed_panic(&self) {
        // Relaxed: read after the count has become 0.
        self.panicked.store(true, Ordering::Relaxed);
    }
}

/// Calls `f` with a scope in which fibers can be spawned that borrow from outside of it; returns
/// when `f` has and all of them have ended. As [`std::thread::scope`].
///
/// # Panics
/// If `f` panics, with the same payload; and if a fiber that nobody joined has panicked.
///
/// # Examples
///
/// ```
/// let numbers = vec![1, 2, 3];
/// let (mut sum, mut product) = (0, 0);
/// sleave_runtime::scope(|s| {
///     s.spawn(|| sum = numbers.iter().sum());
///     s.spawn(|| product = numbers.iter().product());
/// });
/// assert_eq!((sum, product), (6, 6));
/// ```
pub fn scope<'env, F, T>(f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    scope_of(Count::default(), f)
}

/// As [`scope`], in which all end when one fails: if `f` or one of the fibers panics, every other is
/// [cancelled](Fiber::cancel). That counts for no panic of its own.
///
/// # Panics
/// As [`scope`].
///
/// # Examples
///
/// ```
/// # if sleave_runtime::identity().is_err() { return; }
/// use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
///
/// let failed = catch_unwind(AssertUnwindSafe(|| {
///     sleave_runtime::cancelling_scope(|s| {
///         s.spawn(sleave_runtime::park); // Would wait for ever.
///         s.spawn(|| resume_unwind(Box::new("no use")));
///     });
/// }));
/// assert!(failed.is_err());
/// ```
pub fn cancelling_scope<'env, F, T>(f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    scope_of(Count::cancelling(), f)
}

fn scope_of<'env, F, T>(count: Count, f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    let scope = Scope { count: Arc::new(count), scope: PhantomData, env: PhantomData };
    let result = catch_unwind(AssertUnwindSafe(|| f(&scope)));
    if result.is_err() {
        scope.count.cancel();
    }
    scope.count.wait();
    match result {
        Err(payload) => resume_unwind(payload),
        // Relaxed: ordered by the count.
        Ok(_) if scope.count.panicked.load(Ordering::Relaxed) => {
            panic!("a scoped thread panicked")
        }
        Ok(result) => result,
    }
}

impl<'scope> Scope<'scope, '_> {
    /// Cancels every fiber of this scope, those as well that are spawned in it from now on. Does nothing in a [`scope`] that is
    /// not a [`cancelling_scope`].
    pub fn cancel(&self) {
        self.count.cancel();
    }

    /// Spawns a fiber in this scope.
    ///
    /// # Panics
    /// If no fiber can be made; [`Builder::spawn_scoped`] returns that as an error.
    pub fn spawn<F, T>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        Builder::new().spawn_scoped(self, f).expect("failed to spawn fiber")
    }
}

impl Builder {
    /// Spawns a fiber in `scope`.
    ///
    /// # Errors
    /// As [`Builder::spawn`].
    pub fn spawn_scoped<'scope, F, T>(
        self,
        scope: &'scope Scope<'scope, '_>,
        f: F,
    ) -> io::Result<ScopedJoinHandle<'scope, T>>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        let core = here()?;
        scope.count.begin();
        // SAFETY: `scope` returns only when the count is 0, which it becomes when the fiber has
        // ended: its closure and an unclaimed result are gone then.
        match unsafe { self.spawn_unchecked(core, Some(scope.count.clone()), f) } {
            Ok(spawned) => {
                scope.count.knows(spawned.fiber());
                Ok(ScopedJoinHandle { spawned, scope: PhantomData })
            }
            Err(e) => {
                scope.count.ended();
                Err(e)
            }
        }
    }
}

/// An owned permission to join a scoped fiber. As [`std::thread::ScopedJoinHandle`].
pub struct ScopedJoinHandle<'scope, T> {
    spawned: Spawned<T>,
    scope: PhantomData<&'scope ()>,
}

// SAFETY: as for `JoinHandle`.
unsafe impl<T> Send for ScopedJoinHandle<'_, T> {}
// SAFETY: as for `JoinHandle`.
unsafe impl<T> Sync for ScopedJoinHandle<'_, T> {}

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for the fiber to end and returns its result.
    ///
    /// # Errors
    /// The payload of the panic that ended the fiber.
    pub fn join(self) -> thread::Result<T> {
        self.spawned.join()
    }

    /// Wants the fiber to stop: [`Fiber::cancel`].
    pub fn cancel(&self) {
        self.fiber().cancel();
    }

    /// Whether the fiber has ended.
    pub fn is_finished(&self) -> bool {
        self.spawned.task().is_done()
    }

    /// The fiber's name and number.
    pub fn fiber(&self) -> &Fiber {
        self.spawned.fiber()
    }
}

impl<T> fmt::Debug for ScopedJoinHandle<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedJoinHandle").field("fiber", self.fiber()).finish_non_exhaustive()
    }
}
