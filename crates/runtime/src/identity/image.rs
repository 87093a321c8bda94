//! Static TLS as a new thread finds it, kept ready for copying.
//!
//! `_dl_allocate_tls_init` takes a lock, walks all modules and copies each one's image: about
//! 140 ns. Between two changes of the module list it does the same every time, so the first
//! result is kept and a recycled identity gets it by one copy.
//!
//! ```text
//!   floor                    low                                        tp
//!     │  surplus, not used    │ module n … libc … executable (image) │ struct pthread
//! ```
//!
//! **When the copy is right.** glibc numbers its modules; each has a slot { generation, map } in
//! the slotinfo list. Opening or closing a library with thread-locals writes a new, larger
//! generation into its slot, and a new module takes the lowest free number. So if the slots up
//! to the highest one ever used, and a few behind it, have the generations they had when the
//! image was taken, the modules are the same. One case stays: a module without a place in static TLS
//! (from dlopen) may get one later without a new generation. With such a module about no image is
//! used, and `_dl_allocate_tls_init` does the work as for any thread.
//!
//! An image is never freed, for another thread may be copying it. A program that opens and
//! closes libraries for ever gets a bounded number of them and the slow way after that.
//!
//! Sources: `elf/dl-tls.c` (`_dl_assign_tls_modid`, `_dl_add_to_slotinfo`), `elf/dl-close.c`
//! (`remove_slotinfo`).

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use super::dtv;
use super::glibc::Glibc;

/// A word that a starting thread finds changed from what the module's image says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    /// The same in every thread.
    Constant(u64),
    /// At a fixed distance from the thread pointer.
    Relative(i64),
}

impl Patch {
    /// The word's value in the identity at `tp`.
    #[inline]
    pub(super) fn value(self, tp: usize) -> u64 {
        match self {
            Patch::Constant(value) => value,
            Patch::Relative(distance) => (tp as u64).wrapping_add_signed(distance),
        }
    }
}

/// Slots behind the last used one that are watched too. One would do (a new module takes the
/// lowest free number); a library that failed to load may have held numbers for a moment.
const AHEAD: usize = 4;

/// Images that are made before the slow way is good enough.
const IMAGES: u32 = 32;

/// The value of a word of glibc's module list when an image was taken.
struct Watch {
    at: *const AtomicUsize,
    value: usize,
}

/// The modules at one time.
pub(super) struct Modules {
    watched: Vec<Watch>,
    /// Numbers of the modules that are there.
    present: Vec<usize>,
}

impl Modules {
    /// Reads the module list.
    pub fn read(glibc: &Glibc) -> Self {
        let (len, next, slots) = glibc.slotinfo_list;
        let (size, generation, map) = glibc.slotinfo_entry;
        // SAFETY: all words of the list are written atomically by glibc, and its chunks are never
        // freed; the descriptors tell where they are.
        let word = |at: usize| unsafe { &*(at as *const AtomicUsize) };
        // Relaxed throughout: `is_current` compares, and `Image::take` compares again under
        // glibc's lock's release.
        let read = |at: usize| word(at).load(Ordering::Relaxed);
        let mut generations = Vec::new();
        let mut ends = Vec::new();
        let mut used = 0;
        let mut present = Vec::new();
        let mut chunk = read(glibc.slotinfo);
        while chunk != 0 {
            for i in 0..read(chunk + len.offset) {
                let id = generations.len();
                let slot = chunk + slots.offset + i * size;
                let watch = Watch {
                    at: (slot + generation.offset) as *const AtomicUsize,
                    value: read(slot + generation.offset),
                };
                // Numbers start at 1; what lies in the first slot has no meaning.
                let here = id != 0 && read(slot + map.offset) != 0;
                if here {
                    present.push(id);
                }
                if here || (id != 0 && watch.value != 0) {
                    used = id;
                }
                generations.push(watch);
            }
            let end = chunk + next.offset;
            chunk = read(end);
            ends.push(Watch { at: end as *const AtomicUsize, value: chunk });
        }
        let mut watched = generations;
        if used + AHEAD < watched.len() {
            watched.truncate(used + AHEAD + 1);
        } else {
            // The next modules may go to a chunk that is still to come.
            watched.extend(ends.pop());
        }
        Modules { watched, present }
    }

    /// Whether the modules are still these.
    #[inline]
    fn is_current(&self) -> bool {
        // SAFETY: as in `read`. Relaxed: a library being opened at this moment is concurrent with
        // the new fiber, as it is with a new thread; one opened earlier, by whoever let
        // this fiber start, is seen through the synchronisation by which the fiber came here.
        self.watched.iter().all(|w| unsafe { (*w.at).load(Ordering::Relaxed) } == w.value)
    }
}

/// Static TLS of a new thread.
pub(super) struct Image {
    modules: Modules,
    /// The generation of a dtv that has seen all these modules.
    generation: usize,
    /// Some module's block is not in static TLS.
    dynamic: bool,
    /// The words from `tp - 8 * words.len()` up to `tp`; relative ones are 0.
    words: Box<[u64]>,
    /// Words from the thread pointer that depend on it.
    relative: Box<[(isize, i64)]>,
}

impl Image {
    /// Lets glibc initialise a block and copies it. `None`: no memory, or the modules changed
    /// meanwhile.
    pub fn take(glibc: &Glibc) -> Option<Self> {
        let below = (glibc.static_size - glibc.pthread_size).next_multiple_of(64);
        let align = glibc.static_align;
        let mut block = vec![0u8; below + glibc.pthread_size + 2 * align];
        let tp = (block.as_mut_ptr() as usize + below).next_multiple_of(align);
        let count = below / 8;
        let copy = || -> Vec<u64> {
            // SAFETY: `below` bytes under `tp` belong to `block`.
            unsafe { std::slice::from_raw_parts((tp - below) as *const u64, count) }.to_vec()
        };
        // SAFETY: as above.
        let fill = |byte| unsafe { ptr::write_bytes((tp - below) as *mut u8, byte, below) };

        // What differs between two runs over different backgrounds was not written.
        let modules = Modules::read(glibc);
        fill(0x55);
        // SAFETY: elf/dl-tls.c: zeroed space for a TCB at `tp`, static TLS below.
        if unsafe { (glibc.allocate_tls)(tp as *mut c_void) }.is_null() {
            return None;
        }
        let first = copy();
        fill(0xAA);
        // SAFETY: `tp` has a dtv now, so it can be initialised again.
        unsafe { (glibc.init_tls)(tp as *mut c_void, true) };
        let second = copy();

        // SAFETY: `tp` was initialised, and its dtv is read before it is freed.
        let (generation, dynamic, fits) = unsafe {
            let highest = modules.present.last().copied().unwrap_or(0);
            let fits = (highest..highest + (1 << 20)).contains(&dtv::room(tp));
            let range = tp - below..tp;
            let dynamic = fits
                && modules
                    .present
                    .iter()
                    .any(|&id| dtv::block(tp, id).is_none_or(|at| !range.contains(&at)));
            let generation = dtv::generation(tp);
            (glibc.deallocate_tls)(tp as *mut c_void, false);
            (generation, dynamic, fits)
        };
        if !fits || !modules.is_current() {
            return None;
        }

        let mut words: Vec<u64> = first
            .iter()
            .zip(&second)
            .map(|(a, b)| {
                let written = |i: &u32| (a ^ b) >> (8 * i) & 0xff == 0;
                (0..8).filter(written).fold(0, |word, i| word | a & (0xff << (8 * i)))
            })
            .collect();
        let untouched = first.iter().zip(&second).take_while(|(a, b)| *a ^ *b == u64::MAX).count();
        words.drain(..untouched);
        Some(Image {
            modules,
            generation,
            dynamic,
            words: words.into_boxed_slice(),
            relative: Box::default(),
        })
    }

    /// The word at `offset` from the thread pointer.
    pub fn word(&self, offset: isize) -> u64 {
        match self.index(offset) {
            Some(i) => self.words[i],
            None => 0,
        }
    }

    fn index(&self, offset: isize) -> Option<usize> {
        let below = offset.unsigned_abs() / 8;
        (offset < 0 && below <= self.words.len()).then(|| self.words.len() - below)
    }

    /// Adds what `start_thread` does to static TLS.
    pub fn patch(mut self, patches: &[(isize, Patch)]) -> Self {
        let mut relative = Vec::new();
        for &(offset, patch) in patches {
            match (self.index(offset), patch) {
                (Some(i), Patch::Constant(value)) => self.words[i] = value,
                (_, Patch::Relative(distance)) => relative.push((offset, distance)),
                // Patches are found in libc's block, which every image contains.
                (None, Patch::Constant(_)) => {}
            }
        }
        self.relative = relative.into_boxed_slice();
        self
    }

    /// Bytes of static TLS that modules use.
    pub fn len(&self) -> usize {
        self.words.len() * 8
    }

    /// Whether an image can be used at all with these modules.
    pub fn is_usable(&self) -> bool {
        !self.dynamic
    }

    /// Whether a copy of this image makes `tp` new.
    ///
    /// # Safety
    /// `tp` is an identity on which nothing runs.
    #[inline]
    unsafe fn fits(&self, tp: usize) -> bool {
        // A dtv of the same generation has seen every change up to the image's, freed what
        // belonged to modules that are gone, and no module that is there has a block outside.
        // SAFETY: the caller vouches for `tp`.
        !self.dynamic
            && self.modules.is_current()
            && unsafe { dtv::generation(tp) } == self.generation
    }

    /// Copies the image to below `tp`, but keeps libc's block as far as it is zero in the image
    /// if `keep` tells where that is.
    ///
    /// # Safety
    /// `tp` is an identity on which nothing runs.
    #[inline]
    unsafe fn write(&self, tp: usize, keep: Option<(isize, usize)>) {
        let count = self.words.len();
        let to = (tp - count * 8) as *mut u64;
        // SAFETY: the words lie in the identity's static TLS, as in the block they were copied
        // from; nothing runs on it (caller).
        unsafe {
            match keep.and_then(|(start, length)| Some((self.index(start)?, length / 8))) {
                None => ptr::copy_nonoverlapping(self.words.as_ptr(), to, count),
                Some((start, length)) => {
                    let end = start + length;
                    let from = self.words.as_ptr();
                    ptr::copy_nonoverlapping(from, to, start);
                    ptr::copy_nonoverlapping(from.add(end), to.add(end), count - end);
                    for i in (start..end).filter(|&i| self.words[i] != 0) {
                        to.add(i).write(self.words[i]);
                    }
                }
            }
            for &(offset, distance) in &self.relative {
                let word = tp.wrapping_add_signed(offset) as *mut u64;
                word.write(Patch::Relative(distance).value(tp));
            }
        }
    }
}

/// The image in use, replaced when the modules change.
pub(super) struct Images {
    current: AtomicPtr<Image>,
    made: AtomicU32,
    making: AtomicBool,
    patches: Box<[(isize, Patch)]>,
}

impl Images {
    pub fn new(first: Image, patches: Box<[(isize, Patch)]>) -> Self {
        let first = Box::into_raw(Box::new(first.patch(&patches)));
        Images {
            current: AtomicPtr::new(first),
            made: AtomicU32::new(1),
            making: AtomicBool::new(false),
            patches,
        }
    }

    pub fn current(&self) -> &Image {
        // Acquire: the image was written before it was published.
        // SAFETY: never null, never freed.
        unsafe { &*self.current.load(Ordering::Acquire) }
    }

    /// What `start_thread` does to static TLS.
    pub fn patches(&self) -> &[(isize, Patch)] {
        &self.patches
    }

    /// Makes the static TLS and the dtv of `tp` those of a new thread. With `keep`, libc's block
    /// keeps the words that are zero in the image.
    ///
    /// If it was not done by the image, [`Images::replace_if_old`] is due. Not here: that
    /// allocates, and `tp`, without malloc's words as yet, may be in force.
    ///
    /// # Safety
    /// `tp` is an identity that has a dtv and on which nothing runs.
    #[inline]
    #[must_use]
    pub unsafe fn renew(&self, glibc: &Glibc, tp: usize, keep: Option<(isize, usize)>) -> bool {
        // SAFETY: the caller vouches for `tp`.
        unsafe {
            let image = self.current();
            let fits = image.fits(tp);
            if fits {
                image.write(tp, keep);
            } else {
                self.renew_slowly(glibc, tp, keep);
            }
            fits
        }
    }

    #[cold]
    unsafe fn renew_slowly(&self, glibc: &Glibc, tp: usize, keep: Option<(isize, usize)>) {
        // SAFETY: the caller vouches for `tp`. `_dl_allocate_tls_init` accepts a block with a
        // dtv, and writes static TLS only; libc's block is put aside and back.
        unsafe {
            let kept: Vec<u64> = match keep {
                None => Vec::new(),
                Some((start, length)) => {
                    let at = tp.wrapping_add_signed(start) as *const u64;
                    std::slice::from_raw_parts(at, length / 8).to_vec()
                }
            };
            dtv::free_blocks(tp);
            (glibc.init_tls)(tp as *mut c_void, true);
            for &(offset, patch) in &self.patches {
                (tp.wrapping_add_signed(offset) as *mut u64).write(patch.value(tp));
            }
            if let Some((start, _)) = keep {
                let block = tp.wrapping_add_signed(start) as *mut u64;
                for (i, old) in kept.iter().enumerate() {
                    if block.add(i).read() == 0 {
                        block.add(i).write(*old);
                    }
                }
            }
        }
    }

    /// Takes a new image if the modules have changed, unless another thread does or enough
    /// have been made.
    #[cold]
    pub fn replace_if_old(&self, glibc: &Glibc) {
        if self.current().modules.is_current() {
            return;
        }
        // Acquire and Release: `made` and `current` have one writer at a time.
        if self.making.swap(true, Ordering::Acquire) {
            return;
        }
        // Relaxed: written under `making` only.
        let made = self.made.load(Ordering::Relaxed);
        if made < IMAGES
            && let Some(image) = Image::take(glibc)
        {
            let image = Box::into_raw(Box::new(image.patch(&self.patches)));
            // Release: see `current`. The old image stays: somebody may be copying it.
            self.current.store(image, Ordering::Release);
            self.made.store(made + 1, Ordering::Relaxed);
        }
        self.making.store(false, Ordering::Release);
    }
}
