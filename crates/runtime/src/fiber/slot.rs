//! Slots: memory, identity and control block of one fiber, made once and used again and again.
//!
//! Making one costs microseconds (page faults, mostly); using one again costs what it takes to
//! give the next fiber a fresh identity. So slots that their fibers have left are kept, the
//! warmest first: each processor keeps a handful for itself ([`Processor`]), the rest stands
//! here, one list for each size.
//!
//! An identity that has once been somebody's `pthread_t` is never unmapped: C code may look at
//! a stale one.
//!
//! [`Processor`]: crate::scheduler::Processor

use std::fmt;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};

use sleave_context::lock::Lock;
use sleave_context::stack::{Arena, Error, Location, colour, guard_len, slot_size};

use super::control::{Control, open_gate};
use super::stock::{Counters, Free};
use crate::identity::{self, Kit, Unavailable};
use crate::inspect::unseen;

/// By how many different offsets the tops of slots are shifted, each a cache line: equal
/// offsets in equal slots would compete for the same few cache sets. 16 lines are what fits
/// without a third page for a parked fiber.
const COLOURS: usize = 16;

/// Thread ids of fibers begin above the kernel's largest (`PID_MAX_LIMIT`, 2^22).
const FIRST_TID: u32 = (1 << 22) + 1;

/// What a slot must have below its identity for a program to get anywhere.
const LEAST_STACK: usize = 8 << 10;

/// The slot of a fiber whose spawner did not say. Memory is committed as it is touched.
const DEFAULT_SLOT: usize = 256 << 10;

/// The place where fibers live: one reservation for the whole process.
pub(crate) struct Space {
    arena: Arena,
    pub(crate) kit: &'static Kit,
    /// From the thread pointer down to the control block.
    offset: usize,
    /// Slots with identities, free, by the logarithm of their size.
    pub(super) free: [Lock<Free>; usize::BITS as usize],
    pub(super) counters: Counters,
}

/// Why this process cannot have fibers of its own kind, so that each is an OS thread instead.
#[derive(Debug)]
pub enum NoFibers {
    /// Identities cannot be had here.
    Identity(&'static Unavailable),
    /// No address space for stacks.
    Memory(Error),
}

impl fmt::Display for NoFibers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoFibers::Identity(why) => why.fmt(f),
            NoFibers::Memory(why) => write!(f, "no address space for stacks: {why}"),
        }
    }
}

impl std::error::Error for NoFibers {}

/// The process's space, or why there is none.
///
/// # Errors
/// See [`NoFibers`]; the answer stays the same while the process lives.
#[inline(always)]
pub(crate) fn space() -> Result<&'static Space, &'static NoFibers> {
    // Acquire pairs with the Release in `find`.
    let answer = ANSWER.load(Ordering::Acquire);
    // SAFETY: null or a leaked box that is never written again.
    match unsafe { answer.as_ref() } {
        Some(answer) => answer.as_ref(),
        None => find(),
    }
}

/// The process's space, if it is there already.
pub(crate) fn known_space() -> Option<&'static Space> {
    // Acquire, and SAFETY: as in `space`.
    unsafe { ANSWER.load(Ordering::Acquire).as_ref() }?.as_ref().ok()
}

static ANSWER: AtomicPtr<Result<Space, NoFibers>> = AtomicPtr::new(null_mut());

/// The first call. On its own, for it needs pages of stack, and every switch asks for the space.
#[cold]
#[inline(never)]
fn find() -> Result<&'static Space, &'static NoFibers> {
    static FINDING: Lock<()> = Lock::new(());
    // Outside of our lock: this starts threads and waits for them.
    let kit = identity::kit();
    let _finding = FINDING.lock();
    // Relaxed: stored under the lock.
    let mut answer = ANSWER.load(Ordering::Relaxed);
    if answer.is_null() {
        let found = match kit {
            Ok(kit) => Space::open(kit),
            Err(why) => Err(NoFibers::Identity(why)),
        };
        answer = Box::into_raw(Box::new(found));
        // Release publishes what the box holds.
        ANSWER.store(answer, Ordering::Release);
    }
    // SAFETY: leaked above, never written again.
    unsafe { &*answer }.as_ref()
}

impl Space {
    fn open(kit: &'static Kit) -> Result<Space, NoFibers> {
        let arena = Arena::reserve().map_err(NoFibers::Memory)?;
        let offset = (kit.floor_offset() + size_of::<Control>()).next_multiple_of(64);
        open_gate(arena.base(), arena.len(), offset);
        let free = [const { Lock::new(Free::new()) }; usize::BITS as usize];
        Ok(Space { arena, kit, offset, free, counters: Counters::new() })
    }

    /// What the top of a slot holds beside the stack.
    pub(super) fn overhead(&self) -> usize {
        self.kit.size() + size_of::<Control>() + 64 * (COLOURS + 1)
    }

    /// The size of the slot whose stack has at least `stack` usable bytes; without a wish, the
    /// default slot.
    ///
    /// # Errors
    /// `InvalidInput` if no slot is that large.
    pub(crate) fn slot_size(&self, stack: Option<usize>) -> io::Result<usize> {
        let too_large = || {
            let n = stack.unwrap_or(DEFAULT_SLOT);
            let message = format!("a fiber's stack cannot have {n} bytes: no slot is that large");
            io::Error::new(io::ErrorKind::InvalidInput, message)
        };
        let wanted = match stack {
            Some(stack) => stack.max(LEAST_STACK).checked_add(self.overhead()),
            None => Some(DEFAULT_SLOT.max(self.overhead() + LEAST_STACK)),
        };
        let mut wanted = wanted.ok_or_else(too_large)?;
        if stack.is_some() {
            // The guard is part of the slot and grows with it.
            let guard = guard_len(wanted).map_err(|_| too_large())?;
            wanted = wanted.checked_add(guard).ok_or_else(too_large)?;
        }
        let size = slot_size(wanted).map_err(|_| too_large())?;
        if size > self.arena.len() { Err(too_large()) } else { Ok(size) }
    }

    /// The slot of `bytes` altogether, guard and identity included: at least the default one.
    ///
    /// # Errors
    /// As [`Space::slot_size`].
    pub(crate) fn whole_slot(&self, bytes: usize) -> io::Result<usize> {
        match slot_size(bytes) {
            Ok(size) if size <= self.arena.len() => Ok(size.max(self.slot_size(None)?)),
            _ => self.slot_size(Some(bytes)),
        }
    }

    /// The control block that belongs to `thread_pointer`, if a fiber has ever had it. Its memory stays readable.
    pub(crate) fn control_at(&self, thread_pointer: usize) -> Option<&Control> {
        let (_, control) = self.locate(thread_pointer)?;
        (control.thread_pointer == thread_pointer).then_some(control)
    }

    /// The free slots of `size` bytes.
    pub(super) fn free(&self, size: usize) -> &Lock<Free> {
        &self.free[size.trailing_zeros() as usize]
    }

    /// A new slot of exactly `size` bytes, its identity one that nobody has had.
    ///
    /// # Errors
    /// As [`Space::take`].
    pub(super) fn create(&self, size: usize) -> io::Result<NonNull<Control>> {
        let memory = |e: Error| match e.errno() {
            libc::ENOMEM => io::Error::new(io::ErrorKind::OutOfMemory, format!("stack: {e}")),
            code => io::Error::from_raw_os_error(code),
        };
        let slot = self.arena.take(size).map_err(memory)?;
        let top = slot.top() as usize - colour(slot.index(), COLOURS);
        let thread_pointer = self.kit.thread_pointer_below(top);
        let control = (thread_pointer - self.offset) as *mut Control;
        let stack = slot.base() as usize + slot.guard_len()..control as usize;
        // SAFETY: the slot is ours, and `overhead` saw to it that all this fits above its guard.
        let created = unsafe {
            if !slot.fresh() {
                let above = slot.top() as usize - control as usize;
                unseen(|| control.cast::<u8>().write_bytes(0, above));
            }
            self.kit.create(thread_pointer, stack, FIRST_TID + slot.index())
        };
        if created.is_err() {
            self.arena.give(slot);
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // SAFETY: as above; aligned, since thread pointers and `offset` are multiples of 64.
        unsafe {
            // Relaxed: counts only.
            self.counters.made.fetch_add(1, Ordering::Relaxed);
            unseen(|| control.write(Control::new(thread_pointer, slot)));
            Ok(NonNull::new_unchecked(control))
        }
    }

    /// Makes the slot's identity that of a fiber that has not existed before.
    ///
    /// # Safety
    /// The slot is the caller's. Its fiber, if it had one, has finished.
    pub(crate) unsafe fn refresh(&self, control: &Control) {
        if control.used.replace(true) {
            let tid = FIRST_TID + control.slot.index();
            // SAFETY: by contract.
            unsafe { self.kit.recycle(control.thread_pointer, tid) };
        }
    }

    /// Returns the slot's memory to the kernel and its address space to the arena.
    ///
    /// # Safety
    /// The slot is the caller's, and nothing runs on it.
    pub(super) unsafe fn discard(&self, control: NonNull<Control>) {
        // Relaxed: counts only. Before the memory goes: what is on the way is not in use.
        self.counters.trimmed.fetch_add(1, Ordering::Relaxed);
        // SAFETY: by contract; the identity is not used again before `create` has made it anew on zeroed
        // memory, and the slot's name is read before that is gone.
        unsafe {
            self.kit.destroy(control.as_ref().thread_pointer);
            // Locked memory stays, and is zeroed by `create`.
            self.arena.release(control.read().slot);
        }
    }

    /// How many slots of any size the arena has to give that have been used before.
    pub(super) fn arena_free(&self) -> usize {
        self.arena.stats().free()
    }

    /// Which slot an address lies in. Async-signal-safe.
    pub(crate) fn locate(&self, address: usize) -> Option<(Location, &Control)> {
        let location = self.arena.locate(address)?;
        // SAFETY: an address that a program touched lies in a slot that is in use or was.
        Some((location, unsafe { self.control_in(&location) }))
    }

    /// The control block of a slot.
    ///
    /// # Safety
    /// The slot is in use or was: its control block is there from `create` on, and reads as zero before.
    unsafe fn control_in(&self, location: &Location) -> &Control {
        let top = location.base + location.size - colour(location.index, COLOURS);
        let control = self.kit.thread_pointer_below(top) - self.offset;
        // SAFETY: by contract.
        unsafe { &*(control as *const Control) }
    }

    /// Calls `see` with the control block of every slot that ever was in use.
    pub(crate) fn visit(&self, see: &mut dyn FnMut(&Control)) {
        // SAFETY: the arena names those that were.
        self.arena.visit(&mut |location| see(unsafe { self.control_in(&location) }));
    }
}
