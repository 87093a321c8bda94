//! What the members of a group share, and how control goes from one to the other.
//!
//! ```text
//!   Hub { enterer, mailbox, seats ─▶ [ Seat { flow, stack } … ] }
//!                                            │
//!           top of the member's stack        ▼
//!                                      Top { flow: { context, annotation }, hub, id, body }
//! ```
//!
//! A member's context and body lie at the top of its stack, like an asymmetric coroutine's. The value under way lies in the
//! hub's mailbox, so that it does not go with a stack that is freed. Only one flow of control ever is in a group, on
//! one thread: that is why nothing here is locked.

use super::super::place;
use super::super::unwind::{self, Unwinding};
use super::{Exit, Id, Member};
use crate::annotate::Annotation;
use crate::backend::Backend;
use crate::stack::Stack;
use alloc::vec::Vec;
use core::cell::{Cell, UnsafeCell};
use core::mem::MaybeUninit;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicU32, Ordering};

// What a swap brings to the one who is switched to.
/// A value, in the mailbox.
pub(super) const VALUE: usize = 0;
/// The group is being dropped.
const UNWIND: usize = 1;
/// For whoever entered: the member has ended by a panic, whose payload lies in the hub.
const PANICKED: usize = 2;
/// For whoever entered: a member wanted to end with a transfer to one that has ended before.
pub(super) const NOWHERE: usize = 3;

/// What all members of a group share.
pub(super) struct Hub<T, S, B: Backend> {
    /// Whoever has entered, or drops, the group.
    pub(super) enterer: UnsafeCell<Flow<B>>,
    /// Who left for the one that runs; null if that has ended.
    left: Cell<*mut Flow<B>>,
    /// The value under way: full between the two sides of a swap that brings [`VALUE`].
    mailbox: UnsafeCell<MaybeUninit<T>>,
    /// Where the member that ends goes.
    to: Cell<*mut Flow<B>>,
    /// The stack of the member that ends, for the hook to drop.
    dead: Cell<Option<S>>,
    /// What the hook returns: the tag under way.
    tag: Cell<usize>,
    pub(super) payload: Cell<Option<unwind::Payload>>,
    seats: UnsafeCell<Vec<Seat<S, B>>>,
    /// Indices of seats without a member.
    free: UnsafeCell<Vec<u32>>,
    number: u32,
    /// The group is being dropped: who ends goes back to the dropper.
    dropping: Cell<bool>,
    /// Somebody has entered the group, or drops it. Then it is borrowed, but that does not keep it from being dropped:
    /// exit(3) destroys the thread's `thread_local!`s under whoever calls it.
    pub(super) busy: Cell<bool>,
}

/// A place for a member, one after the other.
struct Seat<S, B: Backend> {
    generation: u32,
    /// Of the member that sits here, at the top of its stack.
    flow: *mut Flow<B>,
    /// Drops its body, if that has not begun.
    discard: Option<unsafe fn(*mut Flow<B>)>,
    stack: Option<S>,
}

/// A flow of control that takes part, and what the tools are told of it; see [`annotate`](crate::annotate).
#[repr(C)]
pub(super) struct Flow<B: Backend> {
    context: B::Context,
    annotation: Annotation,
}

/// What lies at the top of a member's stack.
#[repr(C)]
struct Top<F, T, S: Stack, B: Backend> {
    flow: Flow<B>,
    hub: NonNull<Hub<T, S, B>>,
    id: Id,
    body: MaybeUninit<F>,
}

impl<T, S: Stack, B: Backend> Hub<T, S, B> {
    pub(super) fn new() -> Hub<T, S, B> {
        /// Numbers of groups, so that a name of one group means nobody in another.
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let enterer = Flow { context: B::empty(), annotation: Annotation::elsewhere() };
        Hub {
            enterer: UnsafeCell::new(enterer),
            left: Cell::new(null_mut()),
            mailbox: UnsafeCell::new(MaybeUninit::uninit()),
            to: Cell::new(null_mut()),
            dead: Cell::new(None),
            tag: Cell::new(VALUE),
            payload: Cell::new(None),
            seats: UnsafeCell::new(Vec::new()),
            free: UnsafeCell::new(Vec::new()),
            // Relaxed: only that they differ counts.
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            dropping: Cell::new(false),
            busy: Cell::new(false),
        }
    }

    /// How many members there are.
    pub(super) fn members(&self) -> usize {
        // SAFETY: as in `find`.
        unsafe { (*self.seats.get()).iter().filter(|seat| seat.stack.is_some()).count() }
    }

    /// The flow of a member.
    #[inline]
    pub(super) fn find(&self, id: Id) -> Option<*mut Flow<B>> {
        // SAFETY: on one thread, and nothing that this borrow is alive over touches the seats.
        let seats = unsafe { &*self.seats.get() };
        let seat = seats.get(id.index as usize)?;
        let there = seat.generation == id.generation && id.group == self.number;
        (there && seat.stack.is_some()).then_some(seat.flow)
    }

    /// Seats a new member.
    pub(super) fn add<F>(this: NonNull<Self>, stack: S, body: F) -> Id
    where
        F: FnOnce(&Member<T, S, B>, T) -> Exit<T> + 'static,
    {
        let (top, bounds) = place::<Top<F, T, S, B>>(&stack);
        // SAFETY: the hub lives as long as its group and members; on one thread, and nothing below
        // calls out while the borrows live.
        let (hub, seats, free) = unsafe {
            let hub = this.as_ref();
            (hub, &mut *hub.seats.get(), &mut *hub.free.get())
        };
        let index = free.pop().unwrap_or_else(|| {
            let index = u32::try_from(seats.len()).expect("fewer than 2^32 members");
            seats.push(Seat { generation: 0, flow: null_mut(), discard: None, stack: None });
            index
        });
        let seat = &mut seats[index as usize];
        let id = Id { group: hub.number, index, generation: seat.generation };
        // SAFETY: `place` found room for a `Top` in the stack, which nobody else uses.
        let flow = unsafe {
            (&raw mut (*top).hub).write(this);
            (&raw mut (*top).id).write(id);
            (*top).body.write(body);
            let flow = &raw mut (*top).flow;
            flow.write(Flow { context: B::empty(), annotation: Annotation::of(bounds) });
            B::prepare(&raw mut (*flow).context, bounds, start::<F, T, S, B>, top as usize);
            flow
        };
        seat.flow = flow;
        seat.discard = Some(discard::<F, T, S, B>);
        seat.stack = Some(stack);
        id
    }

    /// Takes the member out of its seat; its name means nobody from now on. Returns its stack.
    fn unseat(&self, index: u32) -> Option<S> {
        // SAFETY: as in `find`.
        let (seats, free) = unsafe { (&mut *self.seats.get(), &mut *self.free.get()) };
        let seat = &mut seats[index as usize];
        let stack = seat.stack.take();
        // A seat whose generations are used up stays empty, and so does one that the dropper has come by.
        if let Some(next) = seat.generation.checked_add(1) {
            seat.generation = next;
            if !self.dropping.get() {
                free.push(index);
            }
        }
        stack
    }

    /// Switches from `from` to `to` and returns the tag that the next switch back brings.
    ///
    /// # Safety
    ///
    /// `from` is the caller's flow, `to` another one, which is suspended. With [`VALUE`] the mailbox is full.
    #[inline]
    unsafe fn switch(&self, from: *mut Flow<B>, to: *mut Flow<B>, tag: usize) -> usize {
        self.left.set(from);
        // SAFETY: the caller's promises.
        unsafe {
            (*from).annotation.leave(&(*to).annotation);
            let tag = B::swap(&raw mut (*from).context, &raw const (*to).context, None, tag);
            self.arrive(from);
            tag
        }
    }

    /// What is done first after a switch to `flow`, on its stack.
    ///
    /// # Safety
    ///
    /// The caller's flow, which has been switched to just now.
    #[inline]
    unsafe fn arrive(&self, flow: *mut Flow<B>) {
        // SAFETY: who left waits, and is another one; the caller's promise.
        unsafe {
            let left = self.left.get();
            let left = if left.is_null() { None } else { Some(&mut (*left).annotation) };
            (*flow).annotation.arrive(left);
        }
    }

    /// Switches from `from` to `to`, with `value`.
    ///
    /// # Safety
    ///
    /// As for [`switch`](Hub::switch).
    #[inline]
    pub(super) unsafe fn send(&self, from: *mut Flow<B>, to: *mut Flow<B>, value: T) -> usize {
        // SAFETY: the mailbox is empty: whoever was sent the last value has taken it out.
        unsafe {
            (*self.mailbox.get()).write(value);
            self.switch(from, to, VALUE)
        }
    }

    /// Takes the value out of the mailbox.
    ///
    /// # Safety
    ///
    /// Once for each switch that brought [`VALUE`].
    #[inline]
    pub(super) unsafe fn receive(&self) -> T {
        // SAFETY: the sender has written it.
        unsafe { (*self.mailbox.get()).assume_init_read() }
    }

    /// Ends every member. Returns the first of what they panicked with, other than their unwinding; or `None` if
    /// not all could be ended, because nothing unwinds in this program.
    ///
    /// Nobody else may use the hub any more.
    pub(super) fn end_all(&self) -> Option<Option<unwind::Payload>> {
        self.dropping.set(true);
        // Whoever is added from now on sits down behind those that have ended already.
        // SAFETY: as in `find`.
        unsafe { (*self.free.get()).clear() };
        let mut panic = None;
        let mut index = 0;
        // Destructors may add members even now.
        // SAFETY: as in `find`.
        while index < unsafe { (*self.seats.get()).len() } {
            panic = panic.or(self.end(index)?);
            index += 1;
        }
        Some(panic)
    }

    /// Ends the member in a seat, if there is one. Returns as [`end_all`](Hub::end_all).
    fn end(&self, index: usize) -> Option<Option<unwind::Payload>> {
        // SAFETY: as in `find`.
        let seat = unsafe { &mut (&mut *self.seats.get())[index] };
        if seat.stack.is_none() {
            return Some(None);
        }
        let flow = seat.flow;
        if let Some(discard) = seat.discard.take() {
            // SAFETY: its body has not begun, and is dropped once.
            let outcome = unwind::catch(|| unsafe { discard(flow) });
            // SAFETY: nobody runs there, and nobody will.
            unsafe { flow.drop_in_place() };
            drop(self.unseat(index as u32));
            return Some(outcome.err());
        }
        if !unwind::POSSIBLE {
            return None;
        }
        // SAFETY: it is suspended. As the group is being dropped it comes back here when it has ended.
        unsafe { self.switch(self.enterer.get(), flow, UNWIND) };
        Some(self.payload.take().filter(|payload| !unwind::is_unwinding(payload, flow as usize)))
    }
}

/// Where every member begins.
unsafe extern "C" fn start<F, T, S, B>(data: usize, tag: usize) -> !
where
    F: FnOnce(&Member<T, S, B>, T) -> Exit<T>,
    S: Stack,
    B: Backend,
{
    debug_assert_eq!(tag, VALUE, "a body that has not begun is not unwound");
    let top = data as *mut Top<F, T, S, B>;
    // SAFETY: `add` made it. The body is moved out once: from now on it has begun.
    let (flow, shared, id, body) =
        unsafe { (&raw mut (*top).flow, (*top).hub, (*top).id, (*top).body.assume_init_read()) };
    // SAFETY: the hub lives as long as its members.
    let hub = unsafe { shared.as_ref() };
    // SAFETY: as in `Hub::find`.
    unsafe { (&mut *hub.seats.get())[id.index as usize].discard = None };
    let outcome = {
        let member = Member { hub: shared, id, flow, unwinding: Unwinding::new() };
        // SAFETY: the switch here brought a value.
        let value = unsafe {
            hub.arrive(flow);
            hub.receive()
        };
        // What nobody wants is dropped inside, since that may panic.
        unwind::catch(|| match body(&member, value) {
            _unwanted if hub.dropping.get() => None,
            Exit::Leave(value) => Some((hub.enterer.get(), value)),
            Exit::To(next, _) if next == id => None,
            Exit::To(next, value) => hub.find(next).map(|flow| (flow, value)),
        })
    };
    hub.dead.set(hub.unseat(id.index));
    let enterer = hub.enterer.get();
    let (target, tag) = match outcome {
        Ok(Some((target, value))) => {
            // SAFETY: the mailbox is empty.
            unsafe { (*hub.mailbox.get()).write(value) };
            (target, VALUE)
        }
        // Whoever drops the group does not look at the tag.
        Ok(None) => (enterer, NOWHERE),
        Err(payload) => {
            hub.payload.set(Some(payload));
            (enterer, PANICKED)
        }
    };
    hub.tag.set(tag);
    hub.left.set(flow);
    hub.to.set(target);
    // SAFETY: the target is suspended. Nobody will switch to the context saved here; the hook drops the stack that it
    // is on, which nothing uses any more: everything that this function owned has been moved out.
    unsafe {
        (*flow).annotation.leave(&(*target).annotation);
        let (from, to) = (&raw mut (*flow).context, &raw const (*target).context);
        B::swap(from, to, Some(bury::<T, S, B>), shared.as_ptr() as usize);
    }
    unreachable!("a member that has ended was switched to")
}

/// The hook of a member's last swap, on the target's stack: drops the stack of the member.
unsafe extern "C" fn bury<T, S: Stack, B: Backend>(hub: usize) -> usize {
    // SAFETY: the hook's own argument.
    let hub = unsafe { &*(hub as *const Hub<T, S, B>) };
    // SAFETY: we run on the target; the member has left for good, and its stack is still there.
    unsafe {
        hub.arrive(hub.to.get());
        hub.left.replace(null_mut()).drop_in_place();
    }
    drop(hub.dead.take());
    hub.tag.get()
}

/// Drops the body of a member that has not begun.
unsafe fn discard<F, T, S: Stack, B: Backend>(flow: *mut Flow<B>) {
    // SAFETY: the flow is the first field of its `Top`; the caller's promise.
    unsafe { (*flow.cast::<Top<F, T, S, B>>()).body.assume_init_drop() };
}
