//! The atomics and the lock of the parts that are modelled, so that loom can model-check the code
//! that runs in production: under `--cfg loom` the very same source uses loom's types.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};

pub(crate) use std::sync::atomic::Ordering;

#[cfg(loom)]
pub(crate) use modelled::{Guard, Lock};
#[cfg(not(loom))]
pub(crate) use sleave_context::lock::{Guard, Lock};

#[cfg(loom)]
mod modelled {
    /// [`sleave_context::lock::Lock`] as loom sees it.
    pub(crate) struct Lock<T>(loom::sync::Mutex<T>);

    pub(crate) type Guard<'a, T> = loom::sync::MutexGuard<'a, T>;

    impl<T> Lock<T> {
        pub(crate) fn new(value: T) -> Lock<T> {
            Lock(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> Guard<'_, T> {
            self.0.lock().expect("nobody panics under this lock")
        }
    }
}
