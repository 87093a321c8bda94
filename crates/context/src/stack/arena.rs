//! The arena: one reservation, from which slots of every class are taken and to which they return.
//!
//! # Invariants
//!
//! * A chunk, once given to a class, stays with it: an address never changes its class, so
//!   [`Arena::locate`] needs no lock and may run in a signal handler while another thread allocates.
//! * A slot's number is its distance from the base in units of the smallest slot: unique over all
//!   classes, and below 2^28 for the largest reservation.
//! * Small classes take chunks from the bottom up, classes larger than a chunk aligned runs from the top
//!   down: accessible memory is a handful of mappings, however many slots there are.
//! * Locks are ordered: a class's, then the chunk table's. Neither is held over anything but memory calls.
//!
//! ```text
//!  take ──▶ class lock ──▶ free array? ──▶ warm or trimmed slot
//!                 │  empty
//!                 ├──▶ current chunk? ──▶ guard the next slot, hand it out
//!                 │  used up
//!                 └──▶ chunk lock: first free chunk, mprotect(read, write), enter it in the table
//! ```

use super::class::{CHUNK, CHUNK_SHIFT, CLASSES, Class, MIN_SHIFT, MIN_SLOT};
use super::guard::Guards;
use super::locate::{Extent, Location};
use super::pool::{BACKED_AT_A_TIME, Pool, Taken};
use super::registry::Entry;
use super::stats::{ClassStats, Stats};
use super::{Error, GuardMethod};
use crate::annotate;
use crate::lock::Lock;
use crate::sys;
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

/// What a reservation starts at: 4 TiB, a million stacks of the size Rust gives its threads, twice.
const RESERVE_MAX: usize = 1 << 42;
/// The smallest reservation that halving goes down to.
const RESERVE_MIN: usize = 1 << 30;
/// How many slots are trimmed before the lock is let go for others.
const TRIM_BATCH: usize = 16;

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// How to set up an arena, for those who do not want the defaults of [`Arena::reserve`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Bytes to reserve: a multiple of 64 MiB, at most 4 TiB. `None`: as much as can be had, from 4 TiB
    /// down by halves to 1 GiB; where address space is limited (`RLIMIT_AS`), half of the limit at most, or 1 GiB.
    pub reserve: Option<usize>,
    /// How to guard stacks.
    pub guard: GuardMethod,
}

/// A reservation of address space, and the stacks in it. Safe to use from any number of threads.
///
/// Dropping it unmaps everything: stacks still in use included, which is why whoever *uses* a slot's
/// memory (unsafe code) must keep the arena alive.
pub struct Arena {
    base: usize,
    len: usize,
    /// What was mapped, a chunk more than `len`: only then is there an aligned `base` in it.
    mapping: (usize, usize),
    /// The chunk table and the pools' arrays.
    records: (usize, usize),
    /// This arena in the list of all stacks, for signal handlers.
    entry: &'static Entry,
    guards: Guards,
    chunks: Lock<Chunks>,
    classes: [ClassLock; CLASSES],
}

/// A class's lock on a line pair of its own: workers of different classes do not disturb each other.
#[repr(align(128))]
struct ClassLock(Lock<Pool>);

/// Which chunks are unused. Chunks never return, so both ends only ever advance.
struct Chunks {
    /// No chunk below this one is unused.
    low: usize,
    /// Per class of large slots: no run of unused chunks begins at or above this one.
    high: [usize; CLASSES],
    accessible: usize,
}

/// A stack: `size()` bytes from `base()`, the lowest `guard_len()` of them inaccessible.
///
/// It is a token, not a borrow: whoever has it may use that memory, and hands both back with [`Arena::give`].
/// Dropping it instead only loses the slot.
#[must_use = "a slot that is dropped is lost: give it back to its arena"]
pub struct Slot {
    base: *mut u8,
    shift: u8,
    fresh: bool,
    index: u32,
}

// SAFETY: a slot is memory that belongs to whoever has the token, whatever thread that is.
unsafe impl Send for Slot {}
// SAFETY: a shared slot can only be asked for its numbers.
unsafe impl Sync for Slot {}

impl Slot {
    /// Lowest address, the guard's.
    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// One past the highest address; aligned to the slot's size.
    #[inline]
    pub fn top(&self) -> *mut u8 {
        self.base.wrapping_add(self.size())
    }

    /// Bytes, the guard included: a power of two.
    #[inline]
    pub fn size(&self) -> usize {
        1 << self.shift
    }

    /// Bytes at the low end that are guard.
    #[inline]
    pub fn guard_len(&self) -> usize {
        self.class().guard()
    }

    /// Does everything above the guard read as zero? True for a slot never used or trimmed, as it was
    /// handed out; it does not notice later writes.
    #[inline]
    pub fn fresh(&self) -> bool {
        self.fresh
    }

    /// The slot's number: unique in its arena, below 2^28, and the same each time it is handed out.
    #[inline]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Returns the memory of the low end to the kernel, all but the `keep` highest bytes (rounded up to whole
    /// pages): where stacks grow down, what is deeper than that. It reads as zero afterwards. Whether something was
    /// there is not known; locked memory (mlockall(2)) stays as it is. madvise(2)
    ///
    /// # Safety
    ///
    /// The caller has the slot, and nobody needs what is thrown away.
    pub unsafe fn shrink(&self, keep: usize) {
        let room = self.size() - self.guard_len();
        let len = room.saturating_sub(keep) & !(sys::page_size() - 1);
        // SAFETY: the caller's promise; pages of the slot, above its guard.
        unsafe { empty(self.base as usize + self.guard_len(), len) };
    }

    /// The code of its class.
    #[inline]
    pub(super) fn code(&self) -> u8 {
        self.shift
    }

    #[inline]
    fn class(&self) -> Class {
        Class::from_code(self.shift).expect("a slot has a class")
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("index", &self.index)
            .field("base", &self.base)
            .field("size", &self.size())
            .field("fresh", &self.fresh)
            .finish()
    }
}

impl Arena {
    /// Reserves address space: 4 TiB, or less down to 1 GiB where there is a limit. It costs nothing but a mapping
    /// until slots are taken.
    pub fn reserve() -> Result<Arena, Error> {
        Arena::with_options(Options::default())
    }

    /// As [`reserve`](Arena::reserve), with a size or a way to guard of one's own.
    pub fn with_options(options: Options) -> Result<Arena, Error> {
        let (mapping, len) = match options.reserve {
            Some(len) if len == 0 || len % CHUNK != 0 || len > RESERVE_MAX => {
                return Err(Error::BadReservation { requested: len });
            }
            Some(len) => (map_reservation(len)?, len),
            None => {
                // The program needs what a limit leaves: half of it, if that is enough for us.
                let half = sys::address_space_limit().map_or(RESERVE_MAX, |limit| limit / 2);
                let mut len = RESERVE_MAX;
                while len > half && len > RESERVE_MIN {
                    len /= 2;
                }
                loop {
                    match map_reservation(len) {
                        Ok(mapping) => break (mapping, len),
                        Err(error) if len == RESERVE_MIN => return Err(error),
                        Err(_) => len /= 2,
                    }
                }
            }
        };
        let base = mapping.next_multiple_of(CHUNK);
        let mapping = (mapping, len + CHUNK);
        // Huge pages would commit 2 MiB for the first byte of a stack. One call marks the reservation for
        // good, while it still is one mapping. A kernel built without them says EINVAL: nothing to forbid.
        // SAFETY: our own reservation, which nobody uses yet.
        let _ = unsafe { sys::advise(mapping.0, mapping.1, libc::MADV_NOHUGEPAGE) };

        let records = Records::map(len).inspect_err(|_| {
            // SAFETY: mapped above, and nobody has seen it.
            unsafe { sys::unmap(mapping.0, mapping.1) };
        })?;
        let entry = Extent { base, len, table: records.addr }.enter().inspect_err(|_| {
            // SAFETY: as above.
            unsafe {
                sys::unmap(mapping.0, mapping.1);
                sys::unmap(records.addr, records.len);
            }
        })?;
        let chunks = len / CHUNK;
        Ok(Arena {
            base,
            len,
            mapping,
            records: (records.addr, records.len),
            entry,
            guards: Guards::new(options.guard),
            chunks: Lock::new(Chunks { low: 0, high: [chunks; CLASSES], accessible: 0 }),
            classes: core::array::from_fn(|position| {
                ClassLock(Lock::new(Pool::new(records.array(position, len))))
            }),
        })
    }

    /// Lowest address of the reservation.
    #[inline]
    pub fn base(&self) -> usize {
        self.base
    }

    /// Bytes of the reservation.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: a reservation has bytes.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Is the address in the reservation?
    #[inline]
    pub fn contains(&self, addr: usize) -> bool {
        addr.wrapping_sub(self.base) < self.len
    }

    /// How stacks are guarded; [`GuardMethod::Madvise`] may still turn into the other one when the
    /// kernel refuses it.
    pub fn guard_method(&self) -> GuardMethod {
        self.guards.method()
    }

    /// A stack of at least `size` bytes, the guard included: the warmest of its class, or else a new one.
    pub fn take(&self, size: usize) -> Result<Slot, Error> {
        let class = Class::of_size(size)?;
        let mut pool = self.pool(class).lock();
        self.take_from(&mut pool, class)
    }

    /// Fills every `None` of `slots` from its first one on, under one lock. Returns how many stacks were
    /// taken; an error only if not even one could be had. The last one is the warmest.
    pub fn take_many(&self, size: usize, slots: &mut [Option<Slot>]) -> Result<usize, Error> {
        let class = Class::of_size(size)?;
        let mut taken = 0;
        let mut pool = self.pool(class).lock();
        // Backwards, since the pool hands out the warmest first.
        for slot in slots.iter_mut().rev().filter(|slot| slot.is_none()) {
            match self.take_from(&mut pool, class) {
                Ok(one) => *slot = Some(one),
                Err(error) if taken == 0 => return Err(error),
                Err(_) => break,
            }
            taken += 1;
        }
        Ok(taken)
    }

    /// Takes a stack back. Nobody may use its memory any more, except to leave it: the next user may be another
    /// thread, at once. (This is why a context frees its own stack from a hook, on its successor's.)
    ///
    /// # Panics
    ///
    /// If the slot is another arena's.
    pub fn give(&self, slot: Slot) {
        self.check(&slot);
        self.pool(slot.class()).lock().push(slot.index);
    }

    /// As [`give`](Arena::give), and returns the stack's memory to the kernel at once: it is fresh (zero) for its next
    /// user. Returns whether that was possible; locked memory (mlockall(2)) stays.
    ///
    /// # Panics
    ///
    /// If the slot is another arena's.
    pub fn release(&self, slot: Slot) -> bool {
        self.check(&slot);
        let guard = slot.guard_len();
        // SAFETY: nobody uses the slot, says the token, and nobody else can take it yet.
        let emptied = unsafe { empty(slot.base as usize + guard, slot.size() - guard) };
        let mut pool = self.pool(slot.class()).lock();
        if emptied {
            pool.push_zeroed(slot.index);
        } else {
            pool.push(slot.index);
        }
        emptied
    }

    /// Takes back every `Some` of `slots`, leaving `None`; the last one is taken for the warmest. One lock
    /// for each run of equal size.
    ///
    /// # Panics
    ///
    /// If one of the slots is another arena's; none has been taken back then.
    pub fn give_many(&self, slots: &mut [Option<Slot>]) {
        slots.iter().flatten().for_each(|slot| self.check(slot));
        let mut slots = slots.iter_mut().filter_map(Option::take).peekable();
        while let Some(first) = slots.next() {
            let mut pool = self.pool(first.class()).lock();
            pool.push(first.index);
            while let Some(slot) = slots.next_if(|slot| slot.shift == first.shift) {
                pool.push(slot.index);
            }
        }
    }

    /// Returns the memory of free stacks to the kernel, except, in each class, that of the `keep` most recently
    /// used. The stacks stay guarded and free, and are fresh (zero) for their next user. Returns how many stacks
    /// were emptied. Locked memory (mlockall(2)) is left as it is.
    pub fn trim(&self, keep: usize) -> usize {
        let mut trimmed = 0;
        for (position, class_lock) in self.classes.iter().enumerate() {
            let class = Class::at(position);
            loop {
                let done = class_lock.0.lock().trim(keep, TRIM_BATCH, |number| {
                    let addr = self.address(number) + class.guard();
                    // SAFETY: a free slot of ours, which cannot be taken while we hold its class's lock.
                    unsafe { empty(addr, class.size() - class.guard()) }
                });
                trimmed += done;
                if done < TRIM_BATCH {
                    break;
                }
            }
        }
        trimmed
    }

    /// The slot that an address lies in, or `None` if it lies outside, or where no stack has ever been.
    ///
    /// Async-signal-safe: it takes no lock and touches no stack. (A handler for SIGSEGV that knows no arena
    /// asks [`locate`](super::locate).)
    pub fn locate(&self, addr: usize) -> Option<Location> {
        self.extent().locate(addr)
    }

    /// Calls `visit` with every slot that has ever been taken, free or not: for who looks what stands in them. No lock
    /// is held meanwhile; what is taken for the first time by then may be left out.
    pub fn visit(&self, visit: &mut dyn FnMut(Location)) {
        let mut chunk = 0;
        while chunk < self.len / CHUNK {
            // Relaxed: see `Extent::locate`. A chunk that is entered later has no slot that was taken before.
            let code = self.chunk(chunk).load(Ordering::Relaxed);
            let start = self.base + (chunk << CHUNK_SHIFT);
            let Some(class) = Class::from_code(code) else {
                chunk += 1;
                continue;
            };
            let unused = self.pool(class).lock().never_taken();
            (start..start + class.unit())
                .step_by(class.size())
                .filter(|base| !unused.contains(base))
                .filter_map(|base| self.locate(base))
                .for_each(&mut *visit);
            chunk += class.unit() / CHUNK;
        }
    }

    /// How many slots there are, and what they are doing.
    pub fn stats(&self) -> Stats {
        let accessible = self.chunks.lock().accessible;
        let classes = core::array::from_fn(|position| {
            let pool = self.classes[position].0.lock();
            ClassStats {
                size: Class::at(position).size(),
                live: pool.slots() - pool.free() - pool.never_used(),
                free: pool.free(),
                trimmed: pool.trimmed(),
                fresh: pool.never_used(),
                slots: pool.slots(),
            }
        });
        Stats { reserved: self.len, accessible, classes }
    }

    fn take_from(&self, pool: &mut Pool, class: Class) -> Result<Slot, Error> {
        if let Some((number, fresh)) = pool.pop() {
            return Ok(self.slot(Taken { base: self.address(number), fresh }, class));
        }
        loop {
            if let Some(taken) = pool.unused(class, &self.guards)? {
                return Ok(self.slot(taken, class));
            }
            pool.back(class.unit() / class.size())?;
            let addr = self.grow(class)?;
            pool.grow(class, addr, class.unit());
        }
    }

    /// Makes a unit (a chunk, or a slot of several) accessible for `class`. Returns its address.
    fn grow(&self, class: Class) -> Result<usize, Error> {
        let mut chunks = self.chunks.lock();
        let chunk = match class.unit() {
            CHUNK => self.lowest_unused(&mut chunks),
            _ => self.highest_run(&mut chunks, class),
        };
        let chunk = chunk.ok_or(Error::Exhausted { size: class.size() })?;
        let addr = self.base + (chunk << CHUNK_SHIFT);
        // SAFETY: unused chunks of our reservation.
        unsafe { sys::protect(addr, class.unit(), READ_WRITE) }.map_err(Error::from_kernel)?;
        for chunk in chunk..chunk + class.unit() / CHUNK {
            // Relaxed: readers need no order, see `locate`; writers hold the lock.
            self.chunk(chunk).store(class.code(), Ordering::Relaxed);
        }
        chunks.accessible += class.unit();
        Ok(addr)
    }

    fn lowest_unused(&self, chunks: &mut Chunks) -> Option<usize> {
        while chunks.low < self.len / CHUNK {
            if self.is_unused(chunks.low) {
                return Some(chunks.low);
            }
            chunks.low += 1;
        }
        None
    }

    /// The highest run of unused chunks that is aligned, by address, to the class's size.
    fn highest_run(&self, chunks: &mut Chunks, class: Class) -> Option<usize> {
        let high = &mut chunks.high[class.position()];
        let count = class.size() / CHUNK;
        loop {
            let end = self.base + (*high << CHUNK_SHIFT);
            let start = (end & !(class.size() - 1)).checked_sub(class.size())?;
            if start < self.base {
                return None;
            }
            let first = self.chunk_of(start);
            if (first..first + count).all(|chunk| self.is_unused(chunk)) {
                return Some(first);
            }
            // What is in use stays so: this run need never be looked at again.
            *high = first;
        }
    }

    fn is_unused(&self, chunk: usize) -> bool {
        // Relaxed: written under the lock that the caller holds.
        self.chunk(chunk).load(Ordering::Relaxed) == 0
    }

    fn extent(&self) -> Extent {
        Extent { base: self.base, len: self.len, table: self.records.0 }
    }

    fn pool(&self, class: Class) -> &Lock<Pool> {
        &self.classes[class.position()].0
    }

    /// The slot that a [`Slab`](super::Slab) has kept as its base and the code of its class.
    #[inline]
    pub(super) fn slot_at(&self, base: *mut u8, code: u8, fresh: bool) -> Slot {
        Slot { base, shift: code, fresh, index: self.number(base.addr()) }
    }

    fn slot(&self, taken: Taken, class: Class) -> Slot {
        Slot {
            base: core::ptr::with_exposed_provenance_mut(taken.base),
            shift: class.code(),
            fresh: taken.fresh,
            index: self.number(taken.base),
        }
    }

    #[inline]
    fn number(&self, base: usize) -> u32 {
        ((base - self.base) >> MIN_SHIFT) as u32
    }

    fn address(&self, number: u32) -> usize {
        self.base + ((number as usize) << MIN_SHIFT)
    }

    fn chunk_of(&self, addr: usize) -> usize {
        (addr - self.base) >> CHUNK_SHIFT
    }

    /// The table's entry of a chunk: its class's code, or zero.
    fn chunk(&self, chunk: usize) -> &AtomicU8 {
        debug_assert!(chunk < self.len / CHUNK);
        // SAFETY: the table stands at the start of the records, with a byte for every chunk; it lives as
        // long as the arena and is only ever used through atomics.
        unsafe { &*core::ptr::with_exposed_provenance::<AtomicU8>(self.records.0 + chunk) }
    }

    #[track_caller]
    fn check(&self, slot: &Slot) {
        let addr = slot.base as usize;
        let own = self.contains(addr) && self.address(slot.index) == addr;
        assert!(own, "a stack was given back to an arena that it is not from");
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        Extent::leave(self.entry);
        // SAFETY: both mappings are the arena's own, and `drop` has it exclusively.
        unsafe {
            sys::unmap(self.mapping.0, self.mapping.1);
            sys::unmap(self.records.0, self.records.1);
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("base", &format_args!("{:#x}", self.base))
            .field("len", &self.len)
            .field("guard", &self.guard_method())
            .finish_non_exhaustive()
    }
}

/// Returns the memory of a range to the kernel; whether it did. It reads as zero then.
///
/// # Safety
///
/// The range is an arena's, and nobody needs what is in it.
unsafe fn empty(addr: usize, len: usize) -> bool {
    // SAFETY: the caller's promise.
    let done = unsafe { sys::advise(addr, len, libc::MADV_DONTNEED) }.is_ok();
    if done {
        annotate::zeroed(addr, len);
    }
    done
}

fn map_reservation(len: usize) -> Result<usize, Error> {
    sys::map(len + CHUNK, libc::PROT_NONE, 0)
        .map_err(|errno| Error::NoAddressSpace { tried: len, errno: errno.into_raw() })
}

/// The address space for what the arena remembers: the chunk table, then each class's array of free slots,
/// as long as the reservation could ever need.
struct Records {
    addr: usize,
    len: usize,
    table: usize,
}

impl Records {
    fn map(reservation: usize) -> Result<Records, Error> {
        let table = (reservation / CHUNK).next_multiple_of(BACKED_AT_A_TIME);
        let len = table + (0..CLASSES).map(|class| array_len(class, reservation)).sum::<usize>();
        let addr = sys::map(len, libc::PROT_NONE, 0).map_err(Error::from_kernel)?;
        // SAFETY: our own new mapping.
        if let Err(errno) = unsafe { sys::protect(addr, table, READ_WRITE) } {
            // SAFETY: as above, and nobody has seen it.
            unsafe { sys::unmap(addr, len) };
            return Err(Error::from_kernel(errno));
        }
        Ok(Records { addr, len, table })
    }

    fn array(&self, position: usize, reservation: usize) -> usize {
        let before = (0..position).map(|class| array_len(class, reservation)).sum::<usize>();
        self.addr + self.table + before
    }
}

fn array_len(position: usize, reservation: usize) -> usize {
    let slots = reservation / Class::at(position).size();
    (slots * size_of::<u32>()).next_multiple_of(BACKED_AT_A_TIME)
}

const _: () = assert!(RESERVE_MAX / MIN_SLOT <= 1 << 28, "slot numbers stay below 2^28");
