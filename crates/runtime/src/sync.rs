//! The atomics, the lock and the cell of the parts that are modelled, so that loom can model-check the
//! code that runs in production: under `--cfg loom` the very same source uses loom's types.

#[cfg(loom)]
pub(crate) use loom::cell::UnsafeCell;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64};

pub(crate) use std::sync::atomic::Ordering;

#[cfg(not(loom))]
pub(crate) use bare::UnsafeCell;
#[cfg(loom)]
pub(crate) use modelled::{Guard, Lock};
#[cfg(not(loom))]
pub(crate) use sleave_context::lock::{Guard, Lock};

#[cfg(not(loom))]
mod bare {
    /// [`std::cell::UnsafeCell`] with loom's methods, by which loom sees when an access begins and ends.
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> UnsafeCell<T> {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

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
