//! The atomics of the lock-free parts, so that loom can model-check the code that runs in
//! production: under `--cfg loom` the very same source uses loom's types.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};

pub(crate) use std::sync::atomic::Ordering;
