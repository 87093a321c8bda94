//! The two sides of the comparison behind one face.
//!
//! [`Host`] is what a test body sees of the thread library: `spawn`, `scope` and `yield_now`.
//! Everything else a body does, it does with `std` and with crates, unmodified; that is the
//! point. A host is a small `Copy` value, so bodies hand it to what they spawn.

use std::fmt;
use std::io;
use std::thread;
use std::time::Duration;

use super::watchdog::Watchdog;

/// Where a body runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// On threads of the kernel: the reference.
    Threads,
    /// On fibers of a runtime of its own.
    Fibers {
        /// How many OS threads the runtime runs them on.
        workers: usize,
    },
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Threads => f.write_str("OS threads"),
            Host::Fibers { workers: 1 } => f.write_str("fibers on 1 worker"),
            Host::Fibers { workers } => write!(f, "fibers on {workers} workers"),
        }
    }
}

impl Host {
    /// Runs `body` here to its end and hands its result back; a panic passes through.
    pub fn run<T, F>(self, patience: Duration, body: &F) -> T
    where
        T: Send,
        F: Fn(Host) -> T + Sync,
    {
        let _watchdog = Watchdog::over(self, patience);
        match self {
            Host::Threads => thread::scope(|s| {
                let body = s.spawn(move || body(self));
                body.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }),
            Host::Fibers { workers } => {
                let runtime =
                    sleave::Runtime::builder().workers(workers).build().expect("a runtime");
                let result = runtime.run(move || body(self));
                runtime.stop();
                result
            }
        }
    }

    /// Whether this is the side under test.
    pub fn is_fibers(self) -> bool {
        self != Host::Threads
    }

    /// Workers of its runtime; none where there are threads.
    pub fn workers(self) -> usize {
        match self {
            Host::Threads => 0,
            Host::Fibers { workers } => workers,
        }
    }

    /// Whether fibers can move: there are at least two workers.
    pub fn moves(self) -> bool {
        matches!(self, Host::Fibers { workers } if workers > 1)
    }

    /// As `std::thread::spawn`.
    pub fn spawn<T, F>(self, f: F) -> Task<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        match self {
            Host::Threads => Task::Thread(thread::spawn(f)),
            Host::Fibers { .. } => Task::Fiber(sleave::spawn(f)),
        }
    }

    /// Spawns with a stack of at least `stack_size` bytes, named `name`.
    pub fn spawn_with<T, F>(self, name: &str, stack_size: usize, f: F) -> io::Result<Task<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        Ok(match self {
            Host::Threads => {
                let builder = thread::Builder::new().name(name.to_owned()).stack_size(stack_size);
                Task::Thread(builder.spawn(f)?)
            }
            Host::Fibers { .. } => {
                let builder = sleave::Builder::new().name(name).stack_size(stack_size);
                Task::Fiber(builder.spawn(f)?)
            }
        })
    }

    /// Spawns one task per number below `n` and joins them all, results in order.
    pub fn spawn_many<T, F>(self, n: usize, f: F) -> Vec<T>
    where
        T: Send + 'static,
        F: Fn(usize) -> T + Send + Clone + 'static,
    {
        let tasks: Vec<_> = (0..n)
            .map(|i| {
                let f = f.clone();
                self.spawn(move || f(i))
            })
            .collect();
        tasks.into_iter().map(Task::value).collect()
    }

    /// As `std::thread::yield_now`.
    pub fn yield_now(self) {
        match self {
            Host::Threads => thread::yield_now(),
            Host::Fibers { .. } => sleave::yield_now(),
        }
    }

    /// As `std::thread::scope`.
    pub fn scope<'env, T, F>(self, f: F) -> T
    where
        F: for<'scope> FnOnce(Scope<'scope, 'env>) -> T,
    {
        match self {
            Host::Threads => thread::scope(|scope| f(Scope::Threads(scope))),
            Host::Fibers { .. } => sleave::scope(|scope| f(Scope::Fibers(scope))),
        }
    }
}

/// A spawned thread or fiber.
#[derive(Debug)]
pub enum Task<T> {
    /// A thread of the kernel.
    Thread(thread::JoinHandle<T>),
    /// A fiber.
    Fiber(sleave::JoinHandle<T>),
}

impl<T> Task<T> {
    /// As `JoinHandle::join`.
    pub fn join(self) -> thread::Result<T> {
        match self {
            Task::Thread(handle) => handle.join(),
            Task::Fiber(handle) => handle.join(),
        }
    }

    /// Joins; a panic of the task becomes the caller's.
    pub fn value(self) -> T {
        self.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// As `JoinHandle::is_finished`.
    pub fn is_finished(&self) -> bool {
        match self {
            Task::Thread(handle) => handle.is_finished(),
            Task::Fiber(handle) => handle.is_finished(),
        }
    }
}

/// A scope of either side.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'scope, 'env: 'scope> {
    /// Of threads.
    Threads(&'scope thread::Scope<'scope, 'env>),
    /// Of fibers.
    Fibers(&'scope sleave::Scope<'scope, 'env>),
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// As `std::thread::Scope::spawn`.
    pub fn spawn<T, F>(self, f: F) -> ScopedTask<'scope, T>
    where
        T: Send + 'scope,
        F: FnOnce() -> T + Send + 'scope,
    {
        match self {
            Scope::Threads(scope) => ScopedTask::Thread(scope.spawn(f)),
            Scope::Fibers(scope) => ScopedTask::Fiber(scope.spawn(f)),
        }
    }
}

/// A task of a scope.
#[derive(Debug)]
pub enum ScopedTask<'scope, T> {
    /// A thread of the kernel.
    Thread(thread::ScopedJoinHandle<'scope, T>),
    /// A fiber.
    Fiber(sleave::ScopedJoinHandle<'scope, T>),
}

impl<T> ScopedTask<'_, T> {
    /// As `ScopedJoinHandle::join`.
    pub fn join(self) -> thread::Result<T> {
        match self {
            ScopedTask::Thread(handle) => handle.join(),
            ScopedTask::Fiber(handle) => handle.join(),
        }
    }

    /// Joins; a panic of the task becomes the caller's.
    pub fn value(self) -> T {
        self.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
