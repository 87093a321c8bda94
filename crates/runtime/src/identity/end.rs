//! The end of a thread, by hand: what `start_thread` does after the start routine has returned.
//!
//! In glibc's order: destructors of C++ and Rust thread-locals (`__call_tls_dtors`), destructors
//! of pthread keys, the buffers that libc itself keeps per thread, and last what the kernel does
//! for a thread: mutexes on the robust list get a dead owner, and one waiter of each is woken.
//!
//! libc frees its buffers by `__libc_thread_freeres`, which has no public name and would shut
//! malloc's cache down too, and that is the worker's. So they are found ([`Leftovers`]) like malloc's
//! words, by what they do on a real thread, and freed one by one: the strings of strerror(3) and
//! strsignal(3), the message of dlerror(3), the sockets of the resolver.
//!
//! Sources: `nptl/pthread_create.c` (`start_thread`), `nptl/nptl_deallocate_tsd.c`,
//! pthread_key_create(3), get_robust_list(2), Documentation/locking/robust-futex-ABI.rst.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use syscalls::{Sysno, syscall};

use super::{Kit, thread_pointer};

/// Rounds of key destructors: `PTHREAD_DESTRUCTOR_ITERATIONS` of limits.h, fixed by the ABI.
const ROUNDS: usize = 4;

/// Entries of a robust list that are looked at: the kernel's `ROBUST_LIST_LIMIT`.
const ROBUST_LIMIT: usize = 2048;

/// Words of libc's block and of `struct pthread` that own memory of one thread, from the thread
/// pointer. (Which of the two has them changes with the version.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Leftovers {
    /// The strings of strerror and strsignal: free(3) them.
    pub strings: [Option<isize>; 2],
    /// dlerror's message: asking twice frees it.
    pub dlerror: Option<isize>,
}

impl Leftovers {
    /// Finds the words of the calling thread, a real one.
    pub fn probe(glibc: &super::glibc::Glibc) -> Self {
        // Neither an error nor a signal: libc formats a message for it, in a buffer per thread.
        const NONSENSE: c_int = 0x7654_3210;
        let (start, length) = glibc.libc_tls;
        let block = move || (0..length).step_by(8).map(move |at| start + at as isize);
        let pthread = (0..glibc.pthread_size).step_by(8).map(|at| at as isize);
        // SAFETY: the word is the calling thread's. Volatile: libc changes it.
        let read = |word: isize| unsafe {
            ptr::read_volatile(thread_pointer().wrapping_add_signed(word) as *const usize)
        };
        let only = |is: &dyn Fn(isize) -> bool| {
            let mut found = block().chain(pthread.clone()).filter(|&word| is(word));
            found.next().filter(|_| found.next().is_none())
        };

        // SAFETY: strerror(3), strsignal(3): any number is allowed.
        let strings = unsafe { [(glibc.strerror)(NONSENSE), (glibc.strsignal)(NONSENSE)] };
        let strings = strings.map(|string| only(&|word| read(word) == string as usize));

        // The word of libc's block that is null without an error, not null with one, and null
        // again after two questions.
        const ROOM: usize = 128;
        let mut null = [[false; ROOM]; 3];
        for (time, null) in null.iter_mut().enumerate() {
            // SAFETY: dlerror(3), dlsym(3): a live handle, a name that libc does not have.
            unsafe {
                if time == 1 {
                    libc::dlsym(glibc.handle(), c"sleave: no symbol has this name".as_ptr());
                } else {
                    (glibc.dlerror)();
                    (glibc.dlerror)();
                }
            }
            block().zip(null).for_each(|(word, null)| *null = read(word) == 0);
        }
        let mut held = block()
            .take(ROOM)
            .enumerate()
            .filter_map(|(i, word)| (null[0][i] && !null[1][i] && null[2][i]).then_some(word));
        let dlerror = held.next().filter(|_| held.next().is_none());
        Leftovers { strings, dlerror }
    }

    /// What two threads agree on.
    pub fn agreed(&self, other: &Self) -> Self {
        let both = |a: Option<isize>, b: Option<isize>| a.filter(|_| a == b);
        Leftovers {
            strings: [
                both(self.strings[0], other.strings[0]),
                both(self.strings[1], other.strings[1]),
            ],
            dlerror: both(self.dlerror, other.dlerror),
        }
    }
}

/// `struct __res_state` as <resolv.h> declares it, up to the options.
#[repr(C)]
struct ResState {
    retrans: c_int,
    retry: c_int,
    options: libc::c_ulong,
}

impl Kit {
    /// A fiber's first act: what `start_thread` does before the start routine.
    ///
    /// # Safety
    /// Runs on the fiber, its identity in force.
    pub unsafe fn start(&self) {
        // The rest of it (resolver state, robust list) lies in the images already. The tables of
        // ctype depend on the locale, which may have changed since.
        // SAFETY: ctype/ctype-info.c: sets three thread-locals from the current locale.
        unsafe { (self.glibc.ctype_init)() };
    }

    /// A fiber's last act: destructors, then what libc and the kernel do for a thread that ends.
    /// The destructors may do whatever a fiber may.
    ///
    /// # Safety
    /// Runs on the fiber, its identity in force; the fiber runs no code of the program afterwards.
    pub unsafe fn finish(&self) {
        // SAFETY: the caller's promise. futex(2): wakes one waiter of a word, whether it is
        // shared with other processes or not, as the kernel does.
        unsafe {
            self.finish_with(|word| {
                let _ = syscall!(Sysno::futex, word, libc::FUTEX_WAKE, 1);
            });
        }
    }

    /// [`Kit::finish`] with another way to wake one waiter of a robust mutex.
    ///
    /// # Safety
    /// As for [`Kit::finish`].
    pub unsafe fn finish_with(&self, wake: impl FnMut(*mut u32)) {
        // SAFETY: the caller's promise; stdlib/cxa_thread_atexit_impl.c.
        unsafe {
            (self.glibc.call_tls_dtors)();
            self.end_keys();
            self.end_buffers();
            self.end_robust(wake);
        }
    }

    /// The destructors of pthread keys, in rounds while there are values.
    ///
    /// # Safety
    /// As for [`Kit::finish`].
    unsafe fn end_keys(&self) {
        let glibc = &self.glibc;
        let (data_size, data_seq, data) = glibc.key_data;
        let (key_size, key_seq, key_destructor) = glibc.key_struct;
        let (keys, key_count) = glibc.keys;
        let tp = thread_pointer();
        let blocks = (tp + glibc.specific.offset) as *mut usize;
        // SAFETY: the caller's promise.
        if unsafe { self.has_no_keys(tp) } {
            return;
        }
        // SAFETY: the descriptors tell the layout: `blocks[i]` is null or an array of
        // `key_block` values; `keys` is the table of all keys, whose words glibc writes atomically
        // in another thread's pthread_key_create. A destructor gets the value that was set for
        // its key (pthread_key_create(3)).
        unsafe {
            for _ in 0..ROUNDS {
                let mut any = false;
                for first in 0..glibc.specific.count {
                    let block = blocks.add(first).read();
                    if block == 0 {
                        continue;
                    }
                    for second in 0..glibc.key_block {
                        let slot = block + second * data_size;
                        let value =
                            ((slot + data.offset) as *mut *mut c_void).replace(ptr::null_mut());
                        let number = first * glibc.key_block + second;
                        if value.is_null() || number >= key_count {
                            continue;
                        }
                        any = true;
                        let key = keys + number * key_size;
                        let seq = ((slot + data_seq.offset) as *const usize).read();
                        // A key that was deleted, or made anew, has another sequence number: its
                        // destructor is not for this value.
                        if ((key + key_seq.offset) as *const usize).read_volatile() == seq {
                            let destructor = ((key + key_destructor.offset)
                                as *const Option<unsafe extern "C" fn(*mut c_void)>)
                                .read_volatile();
                            if let Some(destructor) = destructor {
                                destructor(value);
                            }
                        }
                    }
                }
                if !any {
                    break;
                }
            }
            // The first block is part of `struct pthread`; the others were allocated.
            let own = tp..tp + glibc.pthread_size;
            for first in 0..glibc.specific.count {
                let block = blocks.add(first).read();
                if block != 0 && !own.contains(&block) {
                    blocks.add(first).write(0);
                    libc::free(block as *mut c_void);
                }
            }
        }
    }

    /// Whether no key has a value and no block was allocated: that of most fibers, and found by reading only.
    ///
    /// # Safety
    /// As for [`Kit::finish`].
    unsafe fn has_no_keys(&self, tp: usize) -> bool {
        let glibc = &self.glibc;
        // SAFETY: as in `end_keys`. No other thread writes these words: only the thread itself sets its values.
        let blocks = unsafe {
            let first = (tp + glibc.specific.offset) as *const usize;
            std::slice::from_raw_parts(first, glibc.specific.count)
        };
        let [first, others @ ..] = blocks else { return true };
        // Without a branch each: there are dozens.
        if others.iter().fold(0, |any, block| any | block) != 0 {
            return false;
        }
        if *first == 0 {
            return true;
        }
        let (data_size, _, data) = glibc.key_data;
        let value = |second| {
            // SAFETY: as in `end_keys`.
            unsafe { ((first + second * data_size + data.offset) as *const usize).read() }
        };
        (tp..tp + glibc.pthread_size).contains(first)
            && (0..glibc.key_block).fold(0, |any, second| any | value(second)) == 0
    }

    /// Memory and sockets that libc keeps for the thread.
    ///
    /// # Safety
    /// As for [`Kit::finish`].
    unsafe fn end_buffers(&self) {
        let tp = thread_pointer();
        let word = |at: isize| tp.wrapping_add_signed(at) as *mut *mut c_void;
        // SAFETY: the words were found by `Leftovers::probe` and lie in this identity's libc
        // block; the strings came from malloc, and nobody else has them.
        unsafe {
            for at in self.leftovers.strings.into_iter().flatten() {
                let string = word(at).replace(ptr::null_mut());
                if !string.is_null() {
                    libc::free(string);
                }
            }
            if self.leftovers.dlerror.is_some_and(|at| !word(at).read().is_null()) {
                (self.glibc.dlerror)();
                (self.glibc.dlerror)();
            }
            // `__resp` points at the state in `struct pthread`, unless the program has put its
            // own there. Options are set when it has been used.
            if let Some(offset) = self.resolver {
                let state = (tp + offset) as *mut ResState;
                if (*state).options != 0 {
                    (self.glibc.res_nclose)(state.cast());
                    (*state).options = 0;
                }
            }
        }
    }

    /// Gives the robust mutexes that the fiber holds a dead owner.
    ///
    /// ```text
    ///   head: │ next ─┼─▶ node ─▶ node ─▶ head     bit 0 of a link: a mutex with priority inheritance
    ///         │ futex offset   │                  lock word = node + offset
    ///         │ pending        │                  a node that is being locked or unlocked
    /// ```
    ///
    /// # Safety
    /// As for [`Kit::finish`].
    unsafe fn end_robust(&self, mut wake: impl FnMut(*mut u32)) {
        let Some(offset) = self.template.robust else { return };
        let tp = thread_pointer();
        let head = tp + offset;
        // SAFETY: the ABI above; the list's nodes are mutexes that this fiber has locked, and a
        // mutex must not go while it is locked (pthread_mutex_destroy(3)).
        unsafe {
            let [first, futex, pending] = (head as *const [usize; 3]).read();
            if first & !1 == head && pending == 0 {
                return;
            }
            let tid = ((tp + self.glibc.tid.offset) as *const u32).read();
            let mut end = |node: usize, pending: bool| {
                let inherits = node & 1 != 0;
                let lock = ((node & !1).wrapping_add(futex)) as *mut u32;
                let word = AtomicU32::from_ptr(lock);
                // Acquire and Release as for unlocking: the next owner sees what this one wrote.
                let mut value = word.load(Ordering::Acquire);
                if pending && !inherits && value == 0 {
                    // It was unlocked, and the fiber ended before it could wake anybody.
                    wake(lock);
                    return;
                }
                while value & libc::FUTEX_TID_MASK == tid {
                    let dead = value & libc::FUTEX_WAITERS | libc::FUTEX_OWNER_DIED;
                    match word.compare_exchange(value, dead, Ordering::AcqRel, Ordering::Acquire) {
                        Ok(_) => {
                            if !inherits && value & libc::FUTEX_WAITERS != 0 {
                                wake(lock);
                            }
                            break;
                        }
                        Err(now) => value = now,
                    }
                }
            };
            let mut node = first;
            for _ in 0..ROBUST_LIMIT {
                if node & !1 == head {
                    break;
                }
                // The successor first: a mutex with a dead owner may be gone.
                let next = ((node & !1) as *const usize).read();
                if node & !1 != pending & !1 {
                    end(node, false);
                }
                node = next;
            }
            if pending != 0 {
                end(pending, true);
            }
            (head as *mut usize).write(head);
            ((head + 2 * size_of::<usize>()) as *mut usize).write(0);
        }
    }
}
