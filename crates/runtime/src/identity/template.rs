//! What a new thread's `struct pthread` contains, learnt from three of them.
//!
//! `struct pthread` changes with every glibc, and most of its members have no public offset. But
//! whatever a starting thread finds in it must come from somewhere, and there are few places:
//! three real threads on stacks of known place and size copy theirs, and every word that is
//! not zero must be of one of these kinds, in all three:
//!
//! | kind | how it is told | in a fiber |
//! |---|---|---|
//! | constant | equal in all | the same |
//! | relative | same distance from the thread pointer | same distance from the fiber's |
//! | tid | the kernel's id of that thread (its place is known) | the fiber's |
//! | dtv | second word of the TCB (ABI) | what `_dl_allocate_tls` put there |
//! | list | its place is known | a loop of itself |
//! | rseq | its place is known | unregistered: the kernel writes the worker's |
//! | stack base, stack size | equal to the stack that we made | the fiber's |
//! | frame | points into the thread's frames (cleanup buffers) | null |
//! | start | the start routine and its argument, as we passed them | null |
//!
//! A word that is none of these means a glibc that we do not know. Then there is no identity, and
//! [`super::Unavailable`] names the offset. The same comparison, against what
//! `_dl_allocate_tls` writes, tells what a starting thread changes in libc's own thread-locals (the
//! resolver's state, the tables of ctype).
//!
//! This file is pure: it judges samples; [`super::sample`] takes them.

use std::fmt;
use std::ops::Range;

use super::glibc::{Glibc, RSEQ_SIZE};
use super::image::{Image, Patch};
use super::{Reason, Unavailable, dtv};

/// The kind of a word of `struct pthread`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The same value in every thread.
    Constant(u64),
    /// At this distance from the thread pointer.
    Relative(i64),
    /// The thread's id, in one half of the word.
    Tid,
    /// The address of the dtv.
    Dtv,
    /// A link of the list of threads.
    List,
    /// Part of the area that the kernel writes (rseq(2)).
    Rseq,
    /// The lowest address of the stack.
    StackBase,
    /// The size of the stack.
    StackSize,
    /// An address in the thread's frames.
    Frame,
    /// The start routine or its argument.
    Start,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Constant(value) => write!(f, "constant {value:#x}"),
            Word::Relative(distance) => write!(f, "relative {distance:+}"),
            Word::Tid => f.write_str("tid"),
            Word::Dtv => f.write_str("dtv"),
            Word::List => f.write_str("list"),
            Word::Rseq => f.write_str("rseq"),
            Word::StackBase => f.write_str("stack base"),
            Word::StackSize => f.write_str("stack size"),
            Word::Frame => f.write_str("frame"),
            Word::Start => f.write_str("start"),
        }
    }
}

/// What one real thread found when it started.
pub(super) struct Sample {
    /// Its thread pointer.
    pub tp: usize,
    /// Its id in the kernel.
    pub tid: u32,
    /// The stack that it was given.
    pub stack: Range<usize>,
    /// The argument of its start routine.
    pub argument: usize,
    /// The head of its robust list, as the kernel knows it; 0 if it knows none.
    pub robust: usize,
    /// Its `struct pthread`.
    pub pthread: Vec<u64>,
    /// libc's own block of static TLS.
    pub libc_tls: Vec<u64>,
}

/// Number of threads that are compared. Two would tell constant from relative; the third shows
/// that neither was chance.
pub(super) const SAMPLES: usize = 3;

/// `struct pthread` of a new fiber.
pub(super) struct Template {
    /// Every word that is not zero, by offset.
    pub kinds: Vec<(usize, Word)>,
    /// Constants in place, everything else 0.
    words: Box<[u64]>,
    /// Words at a distance from the thread pointer: offset, distance.
    relative: Box<[(usize, i64)]>,
    /// Offsets of the stack's base and size.
    stack: [Option<usize>; 2],
    tid: usize,
    rseq: Option<isize>,
    /// Offset of the robust list's head, if there is one.
    pub robust: Option<usize>,
}

/// `rseq.cpu_id` of a thread whose registration failed (linux/rseq.h): readers such as
/// sched_getcpu(3) ask the kernel instead.
const RSEQ_UNREGISTERED: i32 = -2;

/// Offset of `cpu_id` in `struct rseq` (linux/rseq.h).
const RSEQ_CPU_ID: isize = 4;

impl Template {
    /// Compares the samples; `floor_offset` is the extent of static TLS below a thread pointer.
    pub fn learn(
        glibc: &Glibc,
        samples: &[Sample; SAMPLES],
        floor_offset: usize,
    ) -> Result<Self, Unavailable> {
        let count = glibc.pthread_size / 8;
        let mut template = Template {
            kinds: Vec::new(),
            words: vec![0; count].into_boxed_slice(),
            relative: Box::default(),
            stack: [None; 2],
            tid: glibc.tid.offset,
            rseq: glibc.rseq,
            robust: robust(samples)?,
        };
        let mut relative = Vec::new();
        for i in 0..count {
            let offset = i * 8;
            let values = samples.each_ref().map(|s| s.pthread[i]);
            let Some(kind) = classify(glibc, samples, floor_offset, offset, values)? else {
                continue;
            };
            match kind {
                Word::Constant(value) => template.words[i] = value,
                Word::Relative(distance) => relative.push((offset, distance)),
                Word::StackBase if template.stack[0].is_none() => template.stack[0] = Some(offset),
                Word::StackSize if template.stack[1].is_none() => template.stack[1] = Some(offset),
                Word::StackBase | Word::StackSize => {
                    return Err(unknown("struct pthread", offset as isize, values));
                }
                // The rest of the word that holds the tid.
                Word::Tid => template.words[i] = values[0] & !tid_mask(glibc),
                // A loop of itself: both links point at the node.
                Word::List => relative.push((offset, glibc.list.offset as i64)),
                Word::Dtv | Word::Rseq | Word::Frame | Word::Start => {}
            }
            template.kinds.push((offset, kind));
        }
        template.relative = relative.into_boxed_slice();
        Ok(template)
    }

    /// Makes the `struct pthread` at `tp` that of a new thread; its dtv stays.
    ///
    /// # Safety
    /// `tp` is an identity's, and nothing runs on it.
    #[inline]
    pub unsafe fn write(&self, tp: usize, tid: u32) {
        // SAFETY: every offset was found within `struct pthread` (or, for rseq, within the
        // identity), which the caller owns.
        unsafe {
            let words = tp as *mut u64;
            const AFTER_DTV: usize = dtv::DTV / 8 + 1;
            // From 2,048 bytes on memcpy(3) uses `rep movsb`, which takes longer to begin than this takes in pieces.
            const PIECE: usize = 1536 / 8;
            for (i, piece) in self.words[AFTER_DTV..].chunks(PIECE).enumerate() {
                let to = words.add(AFTER_DTV + i * PIECE);
                std::ptr::copy_nonoverlapping(piece.as_ptr(), to, piece.len());
            }
            for &(offset, distance) in &self.relative {
                let value = Patch::Relative(distance).value(tp);
                ((tp + offset) as *mut u64).write(value);
            }
            ((tp + self.tid) as *mut u32).write(tid);
            if let Some(rseq) = self.rseq {
                let area = tp.wrapping_add_signed(rseq) as *mut u8;
                area.write_bytes(0, RSEQ_SIZE);
                area.offset(RSEQ_CPU_ID).cast::<i32>().write(RSEQ_UNREGISTERED);
            }
        }
    }

    /// Writes the range that is reported as the stack.
    ///
    /// # Safety
    /// As for [`Template::write`].
    #[inline]
    pub unsafe fn write_stack(&self, tp: usize, stack: &Range<usize>) {
        for (offset, value) in self.stack.iter().zip([stack.start, stack.len()]) {
            if let Some(offset) = offset {
                // SAFETY: the offset lies within `struct pthread`, which the caller owns.
                unsafe { ((tp + offset) as *mut usize).write(value) };
            }
        }
    }

    /// The range that `write_stack` wrote.
    ///
    /// # Safety
    /// As for [`Template::write`].
    #[inline]
    pub unsafe fn stack(&self, tp: usize) -> Range<usize> {
        let [base, size] = self.stack.map(|offset| match offset {
            // SAFETY: as in `write_stack`.
            Some(offset) => unsafe { ((tp + offset) as *const usize).read() },
            None => 0,
        });
        base..base + size
    }
}

/// What a starting thread has changed in libc's block since `_dl_allocate_tls`.
pub(super) fn patches(
    glibc: &Glibc,
    samples: &[Sample; SAMPLES],
    image: &Image,
) -> Result<Box<[(isize, Patch)]>, Unavailable> {
    let (start, length) = glibc.libc_tls;
    let mut patches = Vec::new();
    for i in 0..length / 8 {
        let offset = start + (i * 8) as isize;
        let values = samples.each_ref().map(|s| s.libc_tls[i]);
        if values == [image.word(offset); SAMPLES] {
            continue;
        }
        let patch = if same(values) {
            Patch::Constant(values[0])
        } else {
            match distance(samples, values) {
                Some(distance) => Patch::Relative(distance),
                None => return Err(unknown("libc's thread-locals", offset, values)),
            }
        };
        patches.push((offset, patch));
    }
    Ok(patches.into_boxed_slice())
}

fn classify(
    glibc: &Glibc,
    samples: &[Sample; SAMPLES],
    floor_offset: usize,
    offset: usize,
    mut values: [u64; SAMPLES],
) -> Result<Option<Word>, Unavailable> {
    let found = values;
    let within = |field: Range<isize>| field.contains(&(offset as isize));
    let list = glibc.list.offset as isize;
    if offset == dtv::DTV {
        return Ok(Some(Word::Dtv));
    }
    if within(list..list + 16) {
        return Ok(Some(Word::List));
    }
    if glibc.rseq.is_some_and(|at| within(at..at + RSEQ_SIZE as isize)) {
        return Ok(Some(Word::Rseq));
    }
    if offset == glibc.tid.offset / 8 * 8 {
        let shift = glibc.tid.offset % 8 * 8;
        let own = |(value, sample): (&u64, &Sample)| (value >> shift) as u32 == sample.tid;
        values.iter_mut().for_each(|value| *value &= !tid_mask(glibc));
        return match found.iter().zip(samples).all(own) && same(values) {
            true => Ok(Some(Word::Tid)),
            false => Err(unknown("struct pthread", offset as isize, found)),
        };
    }
    let all =
        |is: &dyn Fn(u64, &Sample) -> bool| values.iter().zip(samples).all(|(v, s)| is(*v, s));
    let in_frames = |value: u64, sample: &Sample| {
        (sample.stack.start..sample.tp - floor_offset).contains(&(value as usize))
    };
    Ok(Some(if values == [0; SAMPLES] {
        return Ok(None);
    } else if all(&|v, s| v as usize == s.stack.start) {
        Word::StackBase
    } else if all(&|v, s| v as usize == s.stack.len()) {
        Word::StackSize
    } else if offset == glibc.start_routine.offset || all(&|v, s| v as usize == s.argument) {
        Word::Start
    } else if same(values) {
        Word::Constant(values[0])
    } else if all(&in_frames) {
        Word::Frame
    } else if let Some(distance) = distance(samples, values) {
        Word::Relative(distance)
    } else {
        return Err(unknown("struct pthread", offset as isize, values));
    }))
}

fn tid_mask(glibc: &Glibc) -> u64 {
    0xffff_ffff << (glibc.tid.offset % 8 * 8)
}

fn same(values: [u64; SAMPLES]) -> bool {
    values == [values[0]; SAMPLES]
}

/// The distance from the thread pointer, if it is the same in all.
fn distance(samples: &[Sample; SAMPLES], values: [u64; SAMPLES]) -> Option<i64> {
    let mut distances =
        values.iter().zip(samples).map(|(v, s)| v.wrapping_sub(s.tp as u64).cast_signed());
    let first = distances.next()?;
    distances.all(|d| d == first).then_some(first)
}

/// Where the robust list's head lies in `struct pthread`.
fn robust(samples: &[Sample; SAMPLES]) -> Result<Option<usize>, Unavailable> {
    let heads = samples.each_ref().map(|s| s.robust as u64);
    if heads == [0; SAMPLES] {
        return Ok(None);
    }
    match distance(samples, heads) {
        Some(d) if (0..(samples[0].pthread.len() * 8) as i64).contains(&d) => Ok(Some(d as usize)),
        _ => Err(unknown("the robust lists", 0, heads)),
    }
}

fn unknown(place: &'static str, offset: isize, values: [u64; SAMPLES]) -> Unavailable {
    Reason::UnknownWord { place, offset, values }.into()
}
