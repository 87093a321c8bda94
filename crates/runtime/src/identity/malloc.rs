//! malloc's two words per thread, found by what they do.
//!
//! glibc's malloc keeps a cache (`tcache`) and an attachment to an arena (`thread_arena`) per
//! thread. A thread has its processor to itself for milliseconds, a fiber for microseconds: with
//! a cache and an arena each, fibers would cost 76 KiB a piece after little use. So the two
//! words follow the OS thread ([`super::switch`]). That is sound because malloc reaches no
//! switch: whoever enters it leaves it on the same OS thread with the same identity in force.
//!
//! Neither word has a public name, and their places change with the build. They are found by
//! meaning, on real threads, in libc's block of thread-locals:
//!
//! - *cache*: the word that points to a block which holds `p` after `free(p)`, no longer holds it
//!   after `malloc` has given `p` out again, and holds it once more after the next `free(p)`;
//! - *arena*: the word that points to a block with a word that equals the end of the chunk just
//!   carved off the arena's top, and moves to the end of the next one.
//!
//! ```text
//!  libc's block          tcache                         arena
//!  ├ tcache ───────────▶ │ counts … │ entries ─┼─▶ p    │ … │ top ─┼──▶ first byte behind the
//!  ├ thread_arena ───────┼──────────┴──────────┼──────▶ │   │      │    newest large chunk
//! ```
//!
//! A candidate is any word that could be an address; it is looked at through a pipe, where the
//! kernel says `EFAULT` and does not kill us. If a thread finds nothing, or threads disagree,
//! fibers keep caches of their own: right, but large. The report says so.
//!
//! Sources: `malloc/malloc.c`, `malloc/arena.c` (the terms), write(2), pipe(7).

use std::ffi::c_void;
use std::ptr;

use syscalls::{Sysno, syscall};

use super::glibc::Glibc;

/// Where malloc's words are, from the thread pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Words {
    pub cache: isize,
    pub arena: isize,
}

/// Why the words were not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// The kernel gave no pipe to look through.
    Blind,
    /// No word behaved like the cache, or several did.
    Cache,
    /// No word behaved like the arena, or several did.
    Arena,
}

/// Words of a candidate that are looked at. The arena's `top` and the cache's small bins lie in
/// the first few hundred bytes.
const WINDOW: usize = 256;

/// Candidates that are kept between two steps; libc's block holds fewer pointers.
const CANDIDATES: usize = 64;

/// A word that looked right: `word` points at `target`, whose word at `slot` had the value.
#[derive(Clone, Copy)]
struct Candidate {
    word: isize,
    target: usize,
    slot: usize,
}

struct Candidates {
    list: [Candidate; CANDIDATES],
    count: usize,
}

impl Candidates {
    fn none() -> Self {
        Candidates { list: [Candidate { word: 0, target: 0, slot: 0 }; CANDIDATES], count: 0 }
    }

    fn add(&mut self, candidate: Candidate) {
        if self.count < CANDIDATES {
            self.list[self.count] = candidate;
            self.count += 1;
        }
    }

    /// Keeps those for which `test` holds.
    fn retain(&mut self, test: impl Fn(&Candidate) -> bool) {
        let mut kept = 0;
        for i in 0..self.count {
            if test(&self.list[i]) {
                self.list[kept] = self.list[i];
                kept += 1;
            }
        }
        self.count = kept;
    }

    /// The word whose target owns the slot. The window of one object reaches into the next one;
    /// objects do not overlap, so the owner is the one that starts closest below the slot.
    fn owner(&self) -> Option<isize> {
        let found = &self.list[..self.count];
        let slot = found.first()?.slot;
        if found.iter().any(|c| c.slot != slot) {
            return None;
        }
        let target = found.iter().map(|c| c.target).max()?;
        let mut owners = found.iter().filter(|c| c.target == target);
        let owner = owners.next()?;
        owners.next().is_none().then_some(owner.word)
    }
}

/// Looks at memory that may not be there.
struct Peephole {
    read: i32,
    write: i32,
}

impl Peephole {
    fn open() -> Option<Self> {
        let mut ends = [0i32; 2];
        // SAFETY: pipe2(2) writes two descriptors.
        unsafe { syscall!(Sysno::pipe2, ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) }
            .ok()?;
        Some(Peephole { read: ends[0], write: ends[1] })
    }

    /// Copies words from `address` on; returns how many could be read.
    fn look(&self, address: usize, words: &mut [usize; WINDOW]) -> usize {
        // A page at a time, so that what can be read before a hole is read.
        let mut got = 0;
        while got < WINDOW {
            let at = address + got * 8;
            let length = ((WINDOW - got) * 8).min(4096 - at % 4096);
            // SAFETY: write(2) reads `length` bytes at `at` or fails with EFAULT.
            let Ok(written) = (unsafe { syscall!(Sysno::write, self.write, at, length) }) else {
                break;
            };
            let to = words[got..].as_mut_ptr();
            // SAFETY: read(2): the pipe holds `written` bytes, and `words` has that much room.
            if unsafe { syscall!(Sysno::read, self.read, to, written) } != Ok(written)
                || written != length
            {
                break;
            }
            got += length / 8;
        }
        got
    }
}

impl Drop for Peephole {
    fn drop(&mut self) {
        for end in [self.read, self.write] {
            // SAFETY: close(2) of a descriptor that is ours alone.
            let _ = unsafe { syscall!(Sysno::close, end) };
        }
    }
}

/// Finds the words of the calling thread, a real one that has not allocated yet.
///
/// It must not allocate by itself: whatever it takes from malloc moves the things it looks for.
pub(super) fn probe(glibc: &Glibc) -> Result<Words, Unknown> {
    let peephole = Peephole::open().ok_or(Unknown::Blind)?;
    let cache = cache(glibc, &peephole).ok_or(Unknown::Cache)?;
    let arena = arena(glibc, &peephole).ok_or(Unknown::Arena)?;
    if cache == arena {
        return Err(Unknown::Arena);
    }
    Ok(Words { cache, arena })
}

/// Every (word of libc's block, place in what it points to) where `value` lies.
fn search(glibc: &Glibc, peephole: &Peephole, value: usize) -> Candidates {
    let mut found = Candidates::none();
    let mut window = [0; WINDOW];
    let (start, length) = glibc.libc_tls;
    for word in (0..length).step_by(8).map(|at| start + at as isize) {
        let target = peek(super::thread_pointer().wrapping_add_signed(word));
        if target < 4096 || !target.is_multiple_of(8) {
            continue;
        }
        let readable = peephole.look(target, &mut window);
        for (i, _) in window[..readable].iter().enumerate().filter(|(_, v)| **v == value) {
            found.add(Candidate { word, target, slot: target + i * 8 });
        }
    }
    found
}

fn peek(address: usize) -> usize {
    // SAFETY: the caller names a word of its own thread's TLS, or one that it has just read
    // through the peephole and that belongs to live malloc state. Volatile, for malloc changes it
    // behind the compiler's back.
    unsafe { ptr::read_volatile(address as *const usize) }
}

fn cache(glibc: &Glibc, peephole: &Peephole) -> Option<isize> {
    const SMALL: usize = 24;
    // SAFETY: malloc(3), free(3): `p` is given back once for each time it was given out.
    unsafe {
        let p = (glibc.malloc)(SMALL);
        if p.is_null() {
            return None;
        }
        (glibc.free)(p);
        let mut candidates = search(glibc, peephole, p as usize);
        let again = (glibc.malloc)(SMALL);
        candidates.retain(|c| peek(c.slot) != p as usize);
        (glibc.free)(again);
        if again != p {
            return None;
        }
        candidates.retain(|c| peek(c.slot) == p as usize);
        candidates.owner()
    }
}

fn arena(glibc: &Glibc, peephole: &Peephole) -> Option<isize> {
    // Too large for the cache, too small for a mapping of their own; different, so that a match
    // is none by chance. Several, because an arena that was in use may hold free chunks that fit.
    const LARGE: [usize; 6] = [40_000, 36_000, 44_000, 38_000, 46_000, 42_000];
    let mut chunks = [ptr::null_mut::<c_void>(); LARGE.len()];
    let mut before = Candidates::none();
    let mut found = None;
    for (chunk, size) in chunks.iter_mut().zip(LARGE) {
        // SAFETY: malloc(3).
        *chunk = unsafe { (glibc.malloc)(size) };
        if chunk.is_null() {
            break;
        }
        // A chunk's size, with three flag bits, is the word below it (malloc.c, "chunk" diagram);
        // the second flag marks a mapping.
        let header = peek(*chunk as usize - 8);
        if header & 2 != 0 {
            continue;
        }
        let end = *chunk as usize - 16 + (header & !7);
        let now = search(glibc, peephole, end);
        before.retain(|old| now.list[..now.count].iter().any(|new| new.slot == old.slot));
        found = before.owner();
        if found.is_some() {
            break;
        }
        before = now;
    }
    for chunk in chunks {
        // SAFETY: free(3): each was given out above, or is null.
        unsafe { (glibc.free)(chunk) };
    }
    found
}
