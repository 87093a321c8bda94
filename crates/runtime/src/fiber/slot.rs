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

use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};

use sleave_context::Context;
use sleave_context::lock::Lock;
use sleave_context::stack::{Arena, Error, Location, colour, guard_len, slot_size};

use super::control::{Control, open_gate};
use super::{Kind, Runnable};
use crate::identity::{self, Kit, Unavailable};
use crate::trace::OfFiber;
use crate::wait::{Timeouts, WaitWord};

/// By how many different offsets the tops of slots are shifted, each a cache line: equal
/// offsets in equal slots would compete for the same few cache sets. 16 lines are what fits
/// without a third page for a parked fiber.
const COLOURS: usize = 16;

/// Thread ids of fibers begin above the kernel's largest (`PID_MAX_LIMIT`, 2^22).
const FIRST_TID: u32 = (1 << 22) + 1;

/// How many emptied slots of a size keep their memory.
const WARM: usize = 64;

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
    free: [Lock<Free>; usize::BITS as usize],
}

/// A list of free slots, the warmest first, linked through their control blocks.
struct Free {
    first: *mut Runnable,
    count: usize,
    /// The least `count` since the last trim: so many were not needed.
    least: usize,
}

// SAFETY: a free slot belongs to the list it is in.
unsafe impl Send for Free {}

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
        let free = [const { Lock::new(Free { first: null_mut(), count: 0, least: 0 }) };
            usize::BITS as usize];
        Ok(Space { arena, kit, offset, free })
    }

    /// What the top of a slot holds beside the stack.
    fn overhead(&self) -> usize {
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
        slot_size(wanted).map_err(|_| too_large())
    }

    /// A slot of exactly `size` bytes with an identity that is fresh or to be recycled.
    ///
    /// # Errors
    /// `OutOfMemory` and what mmap(2) says.
    pub(crate) fn take(&self, size: usize) -> io::Result<NonNull<Control>> {
        let mut free = self.free[size.trailing_zeros() as usize].lock();
        match NonNull::new(free.first) {
            Some(first) => {
                // SAFETY: free slots keep their control blocks. Relaxed: under the lock.
                free.first = unsafe { first.as_ref() }.next.load(Ordering::Relaxed);
                free.count -= 1;
                free.least = free.least.min(free.count);
                Ok(first.cast())
            }
            None => {
                drop(free);
                self.create(size)
            }
        }
    }

    /// Takes back slots of one size, `first` to `last`, linked through themselves.
    ///
    /// # Safety
    /// Nothing runs on them any more and nobody else has them.
    pub(crate) unsafe fn give(
        &self,
        first: NonNull<Control>,
        last: NonNull<Control>,
        count: usize,
    ) {
        // SAFETY: the slots are the caller's to give. Relaxed: under the lock.
        unsafe {
            let mut free = self.free[first.as_ref().slot.size().trailing_zeros() as usize].lock();
            last.as_ref().link.next.store(free.first, Ordering::Relaxed);
            free.first = first.as_ptr().cast();
            free.count += count;
        }
    }

    fn create(&self, size: usize) -> io::Result<NonNull<Control>> {
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
                control.cast::<u8>().write_bytes(0, above);
            }
            self.kit.create(thread_pointer, stack, FIRST_TID + slot.index())
        };
        if created.is_err() {
            self.arena.give(slot);
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // SAFETY: as above; aligned, since thread pointers and `offset` are multiples of 64.
        unsafe {
            control.write(Control {
                link: Runnable::new(Kind::Started),
                context: UnsafeCell::new(Context::empty()),
                thread_pointer,
                processor: Cell::new(None),
                wait: WaitWord::new(),
                bypass: Cell::new(1),
                timeouts: Cell::new(Timeouts::NONE),
                task: Cell::new(None),
                used: Cell::new(false),
                trace: OfFiber::new(),
                slot,
            });
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

    /// Returns memory that has not been needed since the last call. For whoever comes by once
    /// in a while.
    pub(crate) fn trim(&self) {
        for free in &self.free {
            // Half of what was never needed, slot by slot, so that the lock is never held long.
            let surplus = {
                let mut free = free.lock();
                let surplus = free.least / 2;
                free.least = free.count;
                surplus
            };
            for _ in 0..surplus {
                let taken = {
                    let mut free = free.lock();
                    let Some(first) = NonNull::new(free.first) else { break };
                    // SAFETY: as in `take`.
                    free.first = unsafe { first.as_ref() }.next.load(Ordering::Relaxed);
                    free.count -= 1;
                    free.least = free.least.min(free.count);
                    first.cast::<Control>()
                };
                // SAFETY: taken from the free list, so it is ours; the identity is not used again
                // before `create` has made it anew on zeroed memory.
                unsafe {
                    self.kit.destroy(taken.as_ref().thread_pointer);
                    self.arena.give(taken.read().slot);
                }
            }
        }
        self.arena.trim(WARM);
    }

    /// Which slot an address lies in. Async-signal-safe.
    pub(crate) fn locate(&self, address: usize) -> Option<(Location, &Control)> {
        let location = self.arena.locate(address)?;
        let top = location.base + location.size - colour(location.index, COLOURS);
        let control = self.kit.thread_pointer_below(top) - self.offset;
        // SAFETY: an address that a program touched lies in a slot that is in use or was; its
        // control block is there from `create` on, and reads as zero before.
        Some((location, unsafe { &*(control as *const Control) }))
    }
}
