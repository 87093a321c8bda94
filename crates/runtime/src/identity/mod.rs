//! Identity: what makes a stack of ours a thread for the C library and the language.
//!
//! A thread is, to glibc, an address: the thread pointer. At it lies `struct pthread`, below it
//! static TLS, and everything that is "per thread" is found from there: errno, `thread_local!`,
//! `pthread_self()`, keys, the locale, the owner of a mutex. An identity is such a block of memory at
//! the top of a fiber's slot; with it in force, code that runs on the fiber *is* on that
//! thread, on whatever OS thread it runs at the moment.
//!
//! ```text
//!  low                                                                        high
//!  │ guard │ stack ↓ … │ control block │ static TLS + surplus │ struct pthread │ ≤ align │
//!                      ▲               ▲                      ▲                          ▲
//!                      │             floor                thread pointer                top
//!                      the fiber's, right below the floor
//!
//!  from floor to thread pointer: `floor_offset`; from top down to floor at most: `size`
//! ```
//!
//! Life of an identity: [`Kit::create`] once, then for each fiber that uses it [`Kit::start`] and
//! [`Kit::finish`] on the fiber, [`Kit::recycle`] between two of them, [`Kit::destroy`] at
//! the end. [`Kit::enter`] puts one in force.
//!
//! Nothing here knows a glibc by its version. Sizes and places come from the running library
//! (`glibc`), from three real threads that are compared (`sample`, `template`), and from
//! what malloc does (`malloc`). If anything is not as it must be, [`kit`] says what, and the
//! runtime runs fibers without identities. The environment can ask for that too:
//! `SLEAVE_IDENTITY=threads` (the default is `fibers`).
//!
//! What an identity does not change is what the kernel knows: gettid(2) is the worker's, and so is
//! the registered rseq area and the robust list that the kernel reads at the end of a process.
//!
//! In reading order: `glibc`, `sample`, `template`, `malloc`, `image`, `dtv`, `switch`, `end`,
//! `report`.

mod dtv;
mod end;
mod glibc;
mod image;
mod malloc;
mod report;
mod sample;
mod switch;
mod template;
#[cfg(test)]
mod tests;

use std::ffi::{CStr, c_void};
use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use syscalls::{Sysno, syscall};

use self::end::Leftovers;
use self::glibc::Glibc;
use self::image::{Image, Images};
use self::template::Template;

pub use self::image::Patch;
pub use self::report::Report;
pub use self::switch::thread_pointer;
pub(crate) use self::switch::thread_pointer_in_register;
pub use self::template::Word;

/// Everything that making and switching identities needs. There is one, from [`kit`].
pub struct Kit {
    glibc: Glibc,
    template: Template,
    images: Images,
    malloc: MallocWords,
    leftovers: Leftovers,
    /// Offset of the resolver's state in `struct pthread`.
    resolver: Option<usize>,
    floor_offset: usize,
}

/// malloc's words, laid out for [`Kit::enter`].
struct MallocWords {
    follow: bool,
    cache: isize,
    arena: isize,
    found: Result<malloc::Words, malloc::Unknown>,
}

// SAFETY: what it points to is glibc's, is there for the whole process, and is read and written by
// glibc's own rules; `Images` is synchronised by itself. The rest never changes after `probe`.
unsafe impl Send for Kit {}
// SAFETY: as above.
unsafe impl Sync for Kit {}

/// Why fibers cannot have identities here.
#[derive(Debug)]
pub struct Unavailable(Reason);

#[derive(Debug)]
enum Reason {
    Forced,
    Setting(String),
    Architecture,
    NoFsGsBase,
    NotGlibc,
    MissingSymbol(&'static CStr),
    Shape(String),
    UnknownWord { place: &'static str, offset: isize, values: [u64; template::SAMPLES] },
    NoThreads(i32),
    NoImage,
    SingleThreaded,
}

impl From<Reason> for Unavailable {
    fn from(reason: Reason) -> Self {
        Unavailable(reason)
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::Forced => {
                f.write_str("SLEAVE_IDENTITY=threads in the environment forbids them")
            }
            Reason::Setting(value) => {
                write!(f, "SLEAVE_IDENTITY={value} is neither \"fibers\" nor \"threads\"")
            }
            Reason::Architecture => f.write_str(
                "on this processor static TLS lies above the thread pointer, which is not provided for",
            ),
            Reason::NoFsGsBase => f.write_str(
                "the kernel or the processor does not let programs write the thread pointer \
                 (FSGSBASE, Linux 5.9, AT_HWCAP2 bit 1)",
            ),
            Reason::NotGlibc => f.write_str("the C library is not a shared glibc (libc.so.6)"),
            Reason::MissingSymbol(name) => {
                write!(f, "this glibc has no symbol {}", name.to_string_lossy())
            }
            Reason::Shape(what) => write!(f, "this glibc is laid out in an unknown way: {what}"),
            Reason::UnknownWord { place, offset, values } => write!(
                f,
                "unknown glibc: in {place}, the word at offset {offset} is {:#x}, {:#x} and \
                 {:#x} in three new threads",
                values[0], values[1], values[2]
            ),
            Reason::NoThreads(error) => write!(
                f,
                "the threads to learn from could not be made: {}",
                std::io::Error::from_raw_os_error(*error)
            ),
            Reason::NoImage => f.write_str("glibc gave no static TLS to copy"),
            Reason::SingleThreaded => {
                f.write_str("glibc still takes the process for single-threaded")
            }
        }
    }
}

impl std::error::Error for Unavailable {}

/// glibc had no memory for a dtv.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory for the thread-locals of a fiber")
    }
}

impl std::error::Error for OutOfMemory {}

/// The answer of [`kit`], once there is one.
static ANSWER: AtomicPtr<Result<Kit, Unavailable>> = AtomicPtr::new(ptr::null_mut());

/// Who looks for the answer: 0 nobody, 1 somebody, 2 somebody while others wait. A futex, and no
/// lock of std, which would wait by a `syscall` that the program may have replaced.
static LOOKING: AtomicU32 = AtomicU32::new(0);

/// What fibers need to be threads, found on the first call.
///
/// The first call makes three threads and takes about a millisecond; it is not for a fiber.
pub fn kit() -> Result<&'static Kit, &'static Unavailable> {
    // Acquire: the answer was written before it was published. It is never freed.
    let mut answer = ANSWER.load(Ordering::Acquire);
    if answer.is_null() {
        answer = first_kit();
    }
    // SAFETY: not null, published by `first_kit`, never freed.
    unsafe { &*answer }.as_ref()
}

#[cold]
fn first_kit() -> *mut Result<Kit, Unavailable> {
    // Acquire with the swap that ends the search: the answer is there for those who waited.
    if LOOKING.compare_exchange(0, 1, Ordering::Acquire, Ordering::Acquire).is_err() {
        while LOOKING.swap(2, Ordering::Acquire) != 0 {
            // SAFETY: futex(2): waits while the word is 2; the word is static.
            unsafe {
                let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
                let _ = syscall!(Sysno::futex, LOOKING.as_ptr(), op, 2, ptr::null_mut::<u8>());
            }
        }
    }
    // Relaxed: written by whoever held the lock before.
    let mut answer = ANSWER.load(Ordering::Relaxed);
    if answer.is_null() {
        answer = Box::into_raw(Box::new(Kit::probe()));
        ANSWER.store(answer, Ordering::Release);
    }
    // Release: see above.
    if LOOKING.swap(0, Ordering::Release) == 2 {
        // SAFETY: futex(2): wakes one, who will wake the next.
        unsafe {
            let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
            let _ = syscall!(Sysno::futex, LOOKING.as_ptr(), op, 1);
        }
    }
    answer
}

/// What the environment asks for.
fn setting() -> Result<(), Unavailable> {
    // SAFETY: getenv(3): a terminated name; std's reader takes a lock that this file must not.
    let value = unsafe {
        let value = libc::getenv(c"SLEAVE_IDENTITY".as_ptr());
        if value.is_null() {
            return Ok(());
        }
        CStr::from_ptr(value).to_string_lossy()
    };
    match &*value {
        "" | "fibers" => Ok(()),
        "threads" => Err(Reason::Forced.into()),
        other => Err(Reason::Setting(other.to_owned()).into()),
    }
}

impl Kit {
    fn probe() -> Result<Self, Unavailable> {
        setting()?;
        // The layout of an identity is TLS variant II (Drepper), see the picture above.
        if !cfg!(target_arch = "x86_64") {
            return Err(Reason::Architecture.into());
        }
        if !glibc::has_fsgsbase() {
            return Err(Reason::NoFsGsBase.into());
        }
        let glibc = Glibc::find()?;
        let floor_offset = (glibc.static_size - glibc.pthread_size).next_multiple_of(64);
        // A program with an allocator of its own has never called glibc's, whose first call is not for several
        // threads at once: each would take the main arena for its own.
        // SAFETY: malloc(3), free(3).
        unsafe { (glibc.free)((glibc.malloc)(1)) };
        let findings = sample::take(&glibc)?;
        let samples = &findings.samples;
        for sample in samples {
            // The layout of a slot is glibc's own: where it put its struct pthread, we put ours.
            let ours = thread_pointer_below(&glibc, sample.stack.end);
            if sample.tp != ours {
                return Err(Reason::Shape(format!(
                    "struct pthread at {:#x} of a stack that ends at {:#x}",
                    sample.tp, sample.stack.end
                ))
                .into());
            }
        }
        if glibc.is_single_threaded() {
            return Err(Reason::SingleThreaded.into());
        }
        let template = Template::learn(&glibc, samples, floor_offset)?;
        let image = Image::take(&glibc).ok_or(Reason::NoImage)?;
        let patches = template::patches(&glibc, samples, &image)?;
        let resolver = resolver(&glibc, &patches);
        let found = findings.malloc;
        let words = found.unwrap_or(malloc::Words { cache: 0, arena: 0 });
        Ok(Kit {
            template,
            images: Images::new(image, patches),
            malloc: MallocWords {
                follow: found.is_ok(),
                cache: words.cache,
                arena: words.arena,
                found,
            },
            leftovers: findings.leftovers,
            resolver,
            floor_offset,
            glibc,
        })
    }

    /// Bytes that an identity takes below the top of its slot, wherever that is.
    pub fn size(&self) -> usize {
        self.floor_offset + self.glibc.pthread_size + self.glibc.static_align - 1
    }

    /// The thread pointer of the identity that ends at `top`. It lies in
    /// `[top - size(), top)` altogether.
    #[inline]
    pub fn thread_pointer_below(&self, top: usize) -> usize {
        thread_pointer_below(&self.glibc, top)
    }

    /// The lowest address of the identity at `tp`: a multiple of 64.
    #[inline]
    pub fn floor(&self, tp: usize) -> usize {
        tp - self.floor_offset
    }

    /// Distance from an identity's floor to its thread pointer.
    #[inline]
    pub fn floor_offset(&self) -> usize {
        self.floor_offset
    }

    /// Makes an identity of the zeroed memory around `tp`.
    ///
    /// `stack` is what the thread's stack is said to be; `tid` names the owner of locks.
    ///
    /// # Safety
    /// `tp` came from [`Kit::thread_pointer_below`]; the memory is zeroed, writable, and the
    /// identity's until [`Kit::destroy`]. `tid` is unique among identities and no id that the
    /// kernel gives (greater than 2²², less than 2³⁰).
    pub unsafe fn create(
        &self,
        tp: usize,
        stack: Range<usize>,
        tid: u32,
    ) -> Result<(), OutOfMemory> {
        // SAFETY: the caller's promise; elf/dl-tls.c: initialises static TLS below `tp` and
        // allocates a dtv.
        unsafe {
            if (self.glibc.allocate_tls)(tp as *mut c_void).is_null() {
                return Err(OutOfMemory);
            }
            for &(offset, patch) in self.images.patches() {
                (tp.wrapping_add_signed(offset) as *mut u64).write(patch.value(tp));
            }
            self.template.write(tp, tid);
            self.template.write_stack(tp, &stack);
        }
        Ok(())
    }

    /// Makes a used identity as good as new, for a fiber with the same stack.
    ///
    /// # Safety
    /// The last fiber on `tp` has [`Kit::finish`]ed and nothing else runs on it; `tid` as in
    /// [`Kit::create`].
    #[inline]
    pub unsafe fn recycle(&self, tp: usize, tid: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            // The template has no stack in it.
            let stack = self.template.stack(tp);
            let by_image = if self.malloc.follow {
                // `tp` may be in force itself; then these are its own. (Elsewhere `enter` will
                // write them again.)
                let from = thread_pointer();
                let word = |tp: usize, at: isize| tp.wrapping_add_signed(at) as *mut usize;
                let (cache, arena) = (self.malloc.cache, self.malloc.arena);
                let words = (word(from, cache).read(), word(from, arena).read());
                let by_image = self.images.renew(&self.glibc, tp, None);
                word(tp, cache).write(words.0);
                word(tp, arena).write(words.1);
                by_image
            } else {
                // Somewhere in libc's block are a cache and an arena that belong to the block:
                // what is zero in a new thread stays as it is, but for errno.
                let by_image = self.images.renew(&self.glibc, tp, Some(self.glibc.libc_tls));
                *self.errno(tp) = 0;
                by_image
            };
            if !by_image {
                self.images.replace_if_old(&self.glibc);
            }
            self.template.write(tp, tid);
            self.template.write_stack(tp, &stack);
        }
    }

    /// Gives back what an identity has allocated (its dtv, blocks of libraries opened later). The
    /// memory is the caller's again, and is not zeroed.
    ///
    /// # Safety
    /// As for [`Kit::recycle`]; nobody has `tp` as a `pthread_t` any more.
    pub unsafe fn destroy(&self, tp: usize) {
        // SAFETY: the caller's promise; elf/dl-tls.c: frees the dtv and what it owns, and leaves
        // the block.
        unsafe { (self.glibc.deallocate_tls)(tp as *mut c_void, false) };
    }

    /// To be called once on each OS thread that will carry fibers, before it enters any: malloc's
    /// cache exists then, in the thread's own words.
    pub fn adopt_thread(&self) {
        // SAFETY: malloc(3), free(3).
        unsafe { (self.glibc.free)((self.glibc.malloc)(1)) };
    }

    /// The errno of the identity at `tp`.
    fn errno(&self, tp: usize) -> *mut i32 {
        // SAFETY: errno(3): the address of the caller's errno, at the same distance from every
        // thread pointer.
        let own = unsafe { (self.glibc.errno_location)() } as usize;
        (own.wrapping_sub(thread_pointer()).wrapping_add(tp)) as *mut i32
    }
}

fn thread_pointer_below(glibc: &Glibc, top: usize) -> usize {
    (top - glibc.pthread_size) & !(glibc.static_align - 1)
}

/// Where `__resp` points in a new thread: the state that `start_thread` gives it, in `struct
/// pthread`. It is the one relative word that a starting thread has in libc's block.
fn resolver(glibc: &Glibc, patches: &[(isize, Patch)]) -> Option<usize> {
    let mut inside = patches.iter().filter_map(|(_, patch)| match patch {
        Patch::Relative(distance) => {
            usize::try_from(*distance).ok().filter(|at| *at < glibc.pthread_size)
        }
        Patch::Constant(_) => None,
    });
    inside.next().filter(|_| inside.next().is_none())
}
