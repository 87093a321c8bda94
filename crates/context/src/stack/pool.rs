//! The slots of one size class: those given back, and those never used.
//!
//! Free slots stand in an array, in the order in which they came back, the warmest last:
//!
//! ```text
//!   free:  [ z z z z | d d d d d d ] ◀ push, pop
//!            0    zeroed         len        z: trimmed, reads as zero   d: as its last user left it
//!   fresh:  next ──▶ end                    slots of the current chunk, by address: never used, no guard yet
//! ```
//!
//! So a warm slot goes out before a trimmed one, and that before one never used. Trimming starts at the
//! cold end, and "is it zero?" is one comparison with `zeroed`.
//!
//! The array holds slot numbers, lives outside of the slots (which stay untouched while free), and is backed
//! for as many slots as the class has: giving back cannot fail.

use super::Error;
use super::class::Class;
use super::guard::Guards;
use crate::sys;

/// A slot as the pool hands it out.
pub(super) struct Taken {
    pub(super) base: usize,
    pub(super) fresh: bool,
}

/// The slots of one class. Protected by the arena's lock of that class.
pub(super) struct Pool {
    /// The array of free slot numbers.
    free: *mut u32,
    len: usize,
    zeroed: usize,
    /// Bytes of the array that are backed by memory.
    backed: usize,
    next: usize,
    end: usize,
    /// Slots in chunks of this class, used or not.
    slots: usize,
    /// Slots never handed out, the rest of the current chunk.
    unused: usize,
}

// SAFETY: `free` points to memory that this pool alone uses.
unsafe impl Send for Pool {}

impl Pool {
    /// An empty pool with its array at `free`: inaccessible address space, room for every slot that the
    /// reservation could hold.
    pub(super) const fn new(free: usize) -> Pool {
        Pool {
            free: free as *mut u32,
            len: 0,
            zeroed: 0,
            backed: 0,
            next: 0,
            end: 0,
            slots: 0,
            unused: 0,
        }
    }

    /// The most recently returned slot, as a slot number.
    pub(super) fn pop(&mut self) -> Option<(u32, bool)> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: below the old `len`, hence backed and written.
        let number = unsafe { self.free.add(self.len).read() };
        let fresh = self.len < self.zeroed;
        self.zeroed = self.zeroed.min(self.len);
        Some((number, fresh))
    }

    /// Takes a slot back.
    pub(super) fn push(&mut self, number: u32) {
        assert!(self.len < self.slots, "more stacks given back than there are");
        // SAFETY: there are at most `slots` free slots, and the array is backed for that many.
        unsafe { self.free.add(self.len).write(number) };
        self.len += 1;
    }

    /// Takes back a slot that reads as zero: it joins the zeroed ones, which go out last. The coldest of the others
    /// makes room and counts as the warmest now.
    pub(super) fn push_zeroed(&mut self, number: u32) {
        self.push(number);
        // SAFETY: both below `len`, hence backed and written.
        unsafe { self.free.add(self.len - 1).swap(self.free.add(self.zeroed)) };
        self.zeroed += 1;
    }

    /// A slot that was never used, its guard now in place; `None` if the current chunk has no more. A guard that
    /// cannot be had costs no slot: the next call tries the same one.
    pub(super) fn unused(&mut self, class: Class, guards: &Guards) -> Result<Option<Taken>, Error> {
        if self.next == self.end {
            return Ok(None);
        }
        // SAFETY: the slot is in a chunk of ours and was never handed out.
        unsafe { guards.install(self.next, class.guard()) }?;
        let base = self.next;
        self.next += class.size();
        self.unused -= 1;
        Ok(Some(Taken { base, fresh: true }))
    }

    /// Gives the pool new slots: `len` bytes from `addr`, accessible, all of them unused. The last chunk
    /// must be used up.
    pub(super) fn grow(&mut self, class: Class, addr: usize, len: usize) {
        debug_assert_eq!(self.next, self.end);
        (self.next, self.end) = (addr, addr + len);
        self.slots += len / class.size();
        self.unused = len / class.size();
    }

    /// Backs the array for `more` slots, so that giving them back cannot fail.
    pub(super) fn back(&mut self, more: usize) -> Result<(), Error> {
        let needed = ((self.slots + more) * size_of::<u32>()).next_multiple_of(BACKED_AT_A_TIME);
        if needed > self.backed {
            // SAFETY: the array's own address space, which has room for every slot of the reservation.
            unsafe { sys::protect(self.free as usize, needed, libc::PROT_READ | libc::PROT_WRITE) }
                .map_err(Error::from_kernel)?;
            self.backed = needed;
        }
        Ok(())
    }

    /// Empties up to `batch` of the coldest free slots, but not the `keep` warmest. Returns how many;
    /// fewer than `batch`: there are no more.
    pub(super) fn trim(
        &mut self,
        keep: usize,
        batch: usize,
        mut empty: impl FnMut(u32) -> bool,
    ) -> usize {
        let mut done = 0;
        while done < batch && self.zeroed + keep < self.len {
            // SAFETY: below `len`, hence backed and written.
            let number = unsafe { self.free.add(self.zeroed).read() };
            if !empty(number) {
                break;
            }
            self.zeroed += 1;
            done += 1;
        }
        done
    }

    pub(super) fn free(&self) -> usize {
        self.len
    }

    pub(super) fn trimmed(&self) -> usize {
        self.zeroed
    }

    pub(super) fn never_used(&self) -> usize {
        self.unused
    }

    /// Where the slots lie that were never handed out.
    pub(super) fn never_taken(&self) -> core::ops::Range<usize> {
        self.next..self.end
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }
}

/// The array of a class grows in steps of this size, the largest page there is; also the alignment of its address
/// space, so that one step never reaches into another class's.
pub(super) const BACKED_AT_A_TIME: usize = 64 << 10;
