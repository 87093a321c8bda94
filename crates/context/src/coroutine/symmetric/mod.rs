//! Symmetric coroutines: each may transfer control to any other.
//!
//! An asymmetric coroutine goes back to whoever resumed it. Here there is no such order: the members of a [`Group`]
//! pass control, and a value with it, among themselves, until one of them leaves to whoever entered the group.
//!
//! ```text
//!   enter(a) ──▶ a ── transfer ──▶ b ── transfer ──▶ c
//!                ▲                                   │ transfer
//!                └───────────────────────────────────┘
//!   enter returns ◀── leave, or the end of a member, or a panic
//! ```
//!
//! ```
//! use sleave_context::symmetric::{Exit, Group};
//!
//! let mut group = Group::new();
//! let doubles = group.add(|member, (mut number, mut partner)| loop {
//!     (number, partner) = member.transfer(partner, (2 * number, member.id())).unwrap();
//! });
//! let counts = group.add(move |member, (number, _)| {
//!     let (doubled, _) = member.transfer(doubles, (number + 1, member.id())).unwrap();
//!     Exit::Leave((doubled, member.id()))
//! });
//! assert_eq!(group.enter(counts, (20, counts)).unwrap().0, 42);
//! ```
//!
//! # A member frees its own stack
//!
//! When a member's body returns, its last swap has a *hook* that runs on the target's stack and drops the stack that
//! the member stood on a moment ago. No scheduler cleans up behind it.

mod hub;

use super::unwind::{self, Unwinding};
use crate::backend::{Backend, Native};
use crate::stack::{Slab, Stack};
use alloc::boxed::Box;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use hub::{Flow, Hub, NOWHERE, VALUE};

/// Names a member of a group. Names of members that have ended are never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id {
    group: u32,
    index: u32,
    generation: u32,
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({}.{}.{})", self.group, self.index, self.generation)
    }
}

/// There is no such member: it has ended, or was another group's. With the value that was to be transferred.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ended<T>(pub T);

/// Without the value, so that any result can be unwrapped.
impl<T> fmt::Debug for Ended<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ended(..)")
    }
}

impl<T> fmt::Display for Ended<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the member of the group that was to be transferred to has ended")
    }
}

impl<T> core::error::Error for Ended<T> {}

/// Where control goes when a member's body returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit<T> {
    /// To another member. (If that has ended, or is this very one, [`Group::enter`] panics.)
    To(Id, T),
    /// To whoever entered the group.
    Leave(T),
}

/// Symmetric coroutines that transfer control, and values of type `T`, to each other. See the [module](self).
///
/// Like a [`Coroutine`](super::Coroutine), a group stays on its thread:
///
/// ```compile_fail,E0277
/// let group = sleave_context::symmetric::Group::<()>::new();
/// std::thread::spawn(move || drop(group));
/// ```
pub struct Group<T, S: Stack = Slab<'static>, B: Backend = Native> {
    hub: NonNull<Hub<T, S, B>>,
    /// It owns values and stacks.
    owns: PhantomData<(T, S)>,
}

/// The inside of a group: what a member's body transfers with.
pub struct Member<T, S: Stack = Slab<'static>, B: Backend = Native> {
    hub: NonNull<Hub<T, S, B>>,
    id: Id,
    flow: *mut Flow<B>,
    unwinding: Unwinding,
}

impl<T, S: Stack, B: Backend> Member<T, S, B> {
    /// This member's name.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Suspends this member and transfers control and `value` to another. Returns the value that control comes back with,
    /// from whomever. A transfer to oneself returns at once.
    ///
    /// If the group is dropped meanwhile this unwinds, as [`Yielder::suspend`](super::Yielder::suspend) does.
    ///
    /// # Errors
    ///
    /// [`Ended`] if there is no such member (any more).
    #[inline]
    pub fn transfer(&self, to: Id, value: T) -> Result<T, Ended<T>> {
        // SAFETY: the hub lives as long as its members.
        match unsafe { self.hub.as_ref() }.find(to) {
            Some(to) => Ok(self.go(to, value)),
            None => Err(Ended(value)),
        }
    }

    /// Suspends this member and goes, with `value`, back to whoever entered the group. Returns the value that
    /// control comes back with.
    ///
    /// If the group is dropped meanwhile this unwinds, as [`Yielder::suspend`](super::Yielder::suspend) does.
    #[inline]
    pub fn leave(&self, value: T) -> T {
        // SAFETY: the hub lives as long as its members.
        self.go(unsafe { self.hub.as_ref() }.enterer.get(), value)
    }

    #[inline]
    fn go(&self, to: *mut Flow<B>, value: T) -> T {
        if self.unwinding.has_begun() {
            self.unwinding.go(self.flow as usize);
        }
        if to == self.flow {
            return value;
        }
        // SAFETY: who has a reference to the member runs on it; every other member and the enterer are
        // suspended.
        unsafe {
            let hub = self.hub.as_ref();
            if hub.send(self.flow, to, value) == VALUE {
                return hub.receive();
            }
        }
        self.unwinding.go(self.flow as usize)
    }

    /// Adds a member on a stack of your choice. See [`Group::add_on`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn add_on<F>(&self, stack: S, body: F) -> Id
    where
        F: FnOnce(&Member<T, S, B>, T) -> Exit<T> + 'static,
    {
        Hub::add(self.hub, stack, body)
    }
}

impl<T> Member<T> {
    /// Adds a member on a pooled stack of the usual size. See [`Group::add`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn add<F>(&self, body: F) -> Id
    where
        F: FnOnce(&Member<T>, T) -> Exit<T> + 'static,
    {
        self.add_on(Slab::default(), body)
    }
}

impl<T, S: Stack, B: Backend> fmt::Debug for Member<T, S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<T: 'static> Group<T> {
    /// A group without members, whose stacks are pooled ones.
    pub fn new() -> Group<T> {
        Group::with_stacks()
    }

    /// Adds a member on a pooled stack of the [usual size](Slab::DEFAULT_SIZE). Its body begins when control is first
    /// transferred to it, with that value.
    ///
    /// # Panics
    ///
    /// If there is no memory for a stack. [`Slab::new`] with [`Group::add_on`] returns that as an error.
    pub fn add<F>(&mut self, body: F) -> Id
    where
        F: FnOnce(&Member<T>, T) -> Exit<T> + 'static,
    {
        self.add_on(Slab::default(), body)
    }
}

impl<T: 'static> Default for Group<T> {
    fn default() -> Group<T> {
        Group::new()
    }
}

impl<T, S: Stack, B: Backend> Group<T, S, B> {
    /// A group without members, with a kind of stacks and a [`Backend`] of your choice.
    pub fn with_stacks() -> Group<T, S, B>
    where
        T: 'static,
        S: 'static,
    {
        Group { hub: NonNull::from(Box::leak(Box::new(Hub::new()))), owns: PhantomData }
    }

    fn hub(&self) -> &Hub<T, S, B> {
        // SAFETY: freed only when the group is dropped.
        unsafe { self.hub.as_ref() }
    }

    /// Adds a member on a stack of your choice; the stack is dropped when the member ends.
    ///
    /// # Panics
    ///
    /// As [`Coroutine::with_stack`](super::Coroutine::with_stack), if `body` does not fit the stack.
    pub fn add_on<F>(&mut self, stack: S, body: F) -> Id
    where
        F: FnOnce(&Member<T, S, B>, T) -> Exit<T> + 'static,
    {
        Hub::add(self.hub, stack, body)
    }

    /// How many members there are that have not ended.
    pub fn len(&self) -> usize {
        self.hub().members()
    }

    /// Is there no member (any more)?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Transfers control, and `value`, to a member. Returns when some member leaves, with its value: by
    /// [`Member::leave`] or [`Exit::Leave`].
    ///
    /// # Errors
    ///
    /// [`Ended`] if there is no such member (any more).
    ///
    /// # Panics
    ///
    /// If a member panics, with its payload, or ends with a transfer to a member that has ended. That member has
    /// ended then; the others stay as they are.
    pub fn enter(&mut self, member: Id, value: T) -> Result<T, Ended<T>> {
        let hub = self.hub();
        let Some(flow) = hub.find(member) else { return Err(Ended(value)) };
        hub.busy.set(true);
        // SAFETY: nobody is in the group, which we have exclusively: all members are suspended.
        let tag = unsafe { hub.send(hub.enterer.get(), flow, value) };
        hub.busy.set(false);
        match tag {
            // SAFETY: just so.
            VALUE => Ok(unsafe { hub.receive() }),
            NOWHERE => panic!("a member ended with a transfer to a member that has ended"),
            _ => unwind::resume(hub.payload.take().expect("a member that panicked left a payload")),
        }
    }
}

impl<T, S: Stack, B: Backend> Drop for Group<T, S, B> {
    /// Ends every member: bodies that have not begun are dropped, suspended ones unwound. Where nothing can
    /// unwind (`panic = "abort"`, or without the feature `std`), everything is leaked instead; and so it is when the
    /// process exits while somebody is in the group.
    ///
    /// # Panics
    ///
    /// With what a body panics with while it is dropped or unwinds (the first, if several do), after all have ended.
    fn drop(&mut self) {
        if self.hub().busy.replace(true) {
            return;
        }
        let Some(panic) = self.hub().end_all() else { return };
        // SAFETY: from `with_stacks`; no member is left that could use it.
        drop(unsafe { Box::from_raw(self.hub.as_ptr()) });
        if let Some(payload) = panic {
            unwind::resume(payload);
        }
    }
}

impl<T, S: Stack, B: Backend> fmt::Debug for Group<T, S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("backend", &B::NAME)
            .field("members", &self.len())
            .finish_non_exhaustive()
    }
}
