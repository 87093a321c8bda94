//! The parts of glibc that make a thread, found by name in the running process.
//!
//! glibc describes its own insides to debuggers: libthread_db reads the sizes and offsets of
//! `struct pthread`, of the dtv and of the key tables from symbols called `_thread_db_*`. They
//! are data in `libc.so.6`, so a program can read them too, and they are right for the very
//! build that runs. What they leave out, [`super::template`] and [`super::malloc`] find by
//! looking at real threads.
//!
//! Every symbol is taken from the handle of `libc.so.6` itself, which searches that library and
//! the dynamic linker that it depends on, and nothing else. The executable may define
//! `pthread_create` or `malloc` of its own; this file never sees those.
//!
//! A descriptor is three 32-bit numbers: size of an element in bits, number of elements, offset.
//!
//! Sources: `nptl_db/structs.def`, `nptl_db/db_info.c`, `elf/dl-tls.c`, dlsym(3).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use super::{Reason, Unavailable};

/// A member as libthread_db's descriptors tell it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// Size of one element in bytes.
    pub size: usize,
    /// Number of elements; 0 when the array has no fixed length.
    pub count: usize,
    /// Offset of the first element in its structure.
    pub offset: usize,
}

type StartRoutine = extern "C" fn(*mut c_void) -> *mut c_void;

/// What identity needs of the C library; all of it is glibc's own.
pub(super) struct Glibc {
    /// What `gnu_get_libc_version` says, for the report.
    pub version: String,
    /// Address of libc's link map (what dlopen gave).
    handle: usize,

    pub allocate_tls: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    pub init_tls: unsafe extern "C" fn(*mut c_void, bool) -> *mut c_void,
    pub deallocate_tls: unsafe extern "C" fn(*mut c_void, bool),
    pub call_tls_dtors: unsafe extern "C" fn(),
    pub ctype_init: unsafe extern "C" fn(),
    pub res_nclose: unsafe extern "C" fn(*mut c_void),
    pub errno_location: unsafe extern "C" fn() -> *mut c_int,
    pub dlerror: unsafe extern "C" fn() -> *mut c_char,
    pub strerror: unsafe extern "C" fn(c_int) -> *mut c_char,
    pub strsignal: unsafe extern "C" fn(c_int) -> *mut c_char,
    pub malloc: unsafe extern "C" fn(usize) -> *mut c_void,
    pub free: unsafe extern "C" fn(*mut c_void),

    pub pthread_create: unsafe extern "C" fn(
        *mut libc::pthread_t,
        *const libc::pthread_attr_t,
        StartRoutine,
        *mut c_void,
    ) -> c_int,
    pub pthread_join: unsafe extern "C" fn(libc::pthread_t, *mut *mut c_void) -> c_int,
    pub attr_init: unsafe extern "C" fn(*mut libc::pthread_attr_t) -> c_int,
    pub attr_setstack: unsafe extern "C" fn(*mut libc::pthread_attr_t, *mut c_void, usize) -> c_int,
    pub attr_destroy: unsafe extern "C" fn(*mut libc::pthread_attr_t) -> c_int,

    /// Size of `struct pthread`, which lies at the thread pointer.
    pub pthread_size: usize,
    /// Static TLS, surplus and `struct pthread` together.
    pub static_size: usize,
    /// Alignment of a thread pointer: a power of two, at least 64.
    pub static_align: usize,
    /// `pthread.tid`.
    pub tid: Field,
    /// `pthread.list`, a `list_t`.
    pub list: Field,
    /// `pthread.start_routine`.
    pub start_routine: Field,
    /// The rseq area, from the thread pointer (its size is at least [`RSEQ_SIZE`]).
    pub rseq: Option<isize>,

    /// `pthread.specific`: pointers to blocks of key values.
    pub specific: Field,
    /// Key values per block.
    pub key_block: usize,
    /// `struct pthread_key_data`: its size, `seq` and `data`.
    pub key_data: (usize, Field, Field),
    /// Address of `__pthread_keys`, its number of entries.
    pub keys: (usize, usize),
    /// `struct pthread_key_struct`: its size, `seq` and `destr`.
    pub key_struct: (usize, Field, Field),

    /// Address of the word that points to the first `struct dtv_slotinfo_list`.
    pub slotinfo: usize,
    /// `dtv_slotinfo_list`: `len`, `next`, `slotinfo`.
    pub slotinfo_list: (Field, Field, Field),
    /// `dtv_slotinfo`: its size, `gen` and `map`.
    pub slotinfo_entry: (usize, Field, Field),

    /// libc's own block of static TLS: first byte from the thread pointer, length.
    pub libc_tls: (isize, usize),
    /// Address of `__libc_single_threaded`.
    single_threaded: usize,
}

/// Bytes of `struct rseq` that the kernel writes (rseq(2), original layout).
pub(super) const RSEQ_SIZE: usize = 32;

/// `AT_HWCAP2` bit by which the kernel allows `wrfsbase` (arch/x86/include/uapi/asm/hwcap2.h).
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Whether the kernel lets a program write its thread pointer.
pub(super) fn has_fsgsbase() -> bool {
    // SAFETY: getauxval(3) reads the auxiliary vector; every argument is allowed.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}

struct Handle(*mut c_void);

impl Handle {
    fn symbol(&self, name: &'static CStr) -> Option<usize> {
        // SAFETY: dlsym(3): a live handle and a terminated name.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) } as usize;
        (address != 0).then_some(address)
    }

    fn need(&self, name: &'static CStr) -> Result<usize, Unavailable> {
        self.symbol(name).ok_or_else(|| Reason::MissingSymbol(name).into())
    }

    /// The function called `name`.
    ///
    /// # Safety
    /// `F` is the function pointer type of that symbol.
    unsafe fn function<F: Copy>(&self, name: &'static CStr) -> Result<F, Unavailable> {
        const { assert!(size_of::<F>() == size_of::<usize>()) };
        let address = self.need(name)?;
        // SAFETY: a function pointer is an address here, and the caller vouches for its type.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }

    /// A `_thread_db_*` descriptor of a member.
    fn field(&self, name: &'static CStr) -> Result<Field, Unavailable> {
        let at = self.need(name)? as *const [u32; 3];
        // SAFETY: nptl_db/db_info.c: such a symbol is an array of three uint32_t.
        let [bits, count, offset] = unsafe { at.read() };
        Ok(Field {
            // libthread_db marks a signed member by a negative number of bits.
            size: bits.cast_signed().unsigned_abs() as usize / 8,
            count: count as usize,
            offset: offset as usize,
        })
    }

    /// A `_thread_db_sizeof_*` number.
    fn size(&self, name: &'static CStr) -> Result<usize, Unavailable> {
        let at = self.need(name)? as *const u32;
        // SAFETY: nptl_db/db_info.c: such a symbol is one uint32_t.
        Ok(unsafe { at.read() } as usize)
    }
}

impl Glibc {
    /// Finds everything, or says what is missing.
    pub fn find() -> Result<Self, Unavailable> {
        // SAFETY: dlopen(3) with RTLD_NOLOAD only looks for a library that is already there.
        let handle =
            unsafe { libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        if handle.is_null() {
            return Err(Reason::NotGlibc.into());
        }
        let lib = Handle(handle);
        let Some(version) = lib.symbol(c"gnu_get_libc_version") else {
            return Err(Reason::NotGlibc.into());
        };
        // SAFETY: gnu_get_libc_version(3): no arguments, a static terminated string.
        let version = unsafe {
            let call: extern "C" fn() -> *const c_char = std::mem::transmute(version);
            CStr::from_ptr(call()).to_string_lossy().into_owned()
        };

        let (mut static_size, mut static_align) = (0usize, 0usize);
        // SAFETY: elf/dl-tls.c: fills the two size_t that it is given.
        unsafe {
            let info: unsafe extern "C" fn(*mut usize, *mut usize) =
                lib.function(c"_dl_get_tls_static_info")?;
            info(&mut static_size, &mut static_align);
        }
        let pthread_size = lib.size(c"_thread_db_sizeof_pthread")?;
        if pthread_size % 8 != 0 || static_size < pthread_size || !static_align.is_power_of_two() {
            return Err(Reason::Shape(format!(
                "static TLS of {static_size} bytes aligned to {static_align}, struct pthread of \
                 {pthread_size}"
            ))
            .into());
        }

        // `__nptl_rtld_global` holds the address of ld.so's state; its members are told by
        // descriptors with the structure's name as a prefix.
        let rtld_global = lib.need(c"__nptl_rtld_global")? as *const usize;
        let slotinfo_list = lib.field(c"_thread_db_rtld_global__dl_tls_dtv_slotinfo_list")?;
        // SAFETY: db_info.c declares the symbol as a pointer to `_rtld_global`.
        let slotinfo = unsafe { rtld_global.read() } + slotinfo_list.offset;

        let key_data_size = lib.size(c"_thread_db_sizeof_pthread_key_data")?;
        let key_block_size = lib.size(c"_thread_db_sizeof_pthread_key_data_level2")?;
        let keys = lib.field(c"_thread_db___pthread_keys")?;
        // The descriptor takes the array of pointers as one member.
        let specific = lib.field(c"_thread_db_pthread_specific")?;
        let specific = Field { size: 8, count: specific.size * specific.count / 8, ..specific };
        let libc_tls = libc_tls(&lib)?;

        // SAFETY: each type is the one that glibc 2.34 and later give the function: public ones
        // by their man pages, the private ones by elf/dl-tls.c, stdlib/cxa_thread_atexit_impl.c,
        // ctype/ctype-info.c. (`_dl_allocate_tls_init` of older ones ignores the second argument.)
        let glibc = unsafe {
            Glibc {
                version,
                handle: handle as usize,
                allocate_tls: lib.function(c"_dl_allocate_tls")?,
                init_tls: lib.function(c"_dl_allocate_tls_init")?,
                deallocate_tls: lib.function(c"_dl_deallocate_tls")?,
                call_tls_dtors: lib.function(c"__call_tls_dtors")?,
                ctype_init: lib.function(c"__ctype_init")?,
                res_nclose: lib.function(c"__res_nclose")?,
                errno_location: lib.function(c"__errno_location")?,
                dlerror: lib.function(c"dlerror")?,
                strerror: lib.function(c"strerror")?,
                strsignal: lib.function(c"strsignal")?,
                malloc: lib.function(c"malloc")?,
                free: lib.function(c"free")?,
                pthread_create: lib.function(c"pthread_create")?,
                pthread_join: lib.function(c"pthread_join")?,
                attr_init: lib.function(c"pthread_attr_init")?,
                attr_setstack: lib.function(c"pthread_attr_setstack")?,
                attr_destroy: lib.function(c"pthread_attr_destroy")?,
                pthread_size,
                static_size,
                // The control block below the identity wants a cache line of its own.
                static_align: static_align.max(64),
                tid: lib.field(c"_thread_db_pthread_tid")?,
                list: lib.field(c"_thread_db_pthread_list")?,
                start_routine: lib.field(c"_thread_db_pthread_start_routine")?,
                rseq: lib.symbol(c"__rseq_offset").map(|at| (at as *const isize).read()),
                specific,
                key_block: key_block_size / key_data_size.max(1),
                key_data: (
                    key_data_size,
                    lib.field(c"_thread_db_pthread_key_data_seq")?,
                    lib.field(c"_thread_db_pthread_key_data_data")?,
                ),
                keys: (lib.need(c"__pthread_keys")?, keys.count),
                key_struct: (
                    lib.size(c"_thread_db_sizeof_pthread_key_struct")?,
                    lib.field(c"_thread_db_pthread_key_struct_seq")?,
                    lib.field(c"_thread_db_pthread_key_struct_destr")?,
                ),
                slotinfo,
                slotinfo_list: (
                    lib.field(c"_thread_db_dtv_slotinfo_list_len")?,
                    lib.field(c"_thread_db_dtv_slotinfo_list_next")?,
                    lib.field(c"_thread_db_dtv_slotinfo_list_slotinfo")?,
                ),
                slotinfo_entry: (
                    lib.size(c"_thread_db_sizeof_dtv_slotinfo")?,
                    lib.field(c"_thread_db_dtv_slotinfo_gen")?,
                    lib.field(c"_thread_db_dtv_slotinfo_map")?,
                ),
                libc_tls,
                single_threaded: lib.need(c"__libc_single_threaded")?,
            }
        };
        glibc.check(&lib)?;
        Ok(glibc)
    }

    /// What the rest of this module takes for granted about the descriptors.
    fn check(&self, lib: &Handle) -> Result<(), Unavailable> {
        let wrong = |what: String| Err(Reason::Shape(what).into());
        let dtv = lib.field(c"_thread_db_dtv_dtv")?;
        let value = lib.field(c"_thread_db_dtv_t_pointer_val")?;
        let dtvp = lib.field(c"_thread_db_pthread_dtvp")?;
        // An element of the dtv is the pair { val, to_free } (elf/dl-tls.c since 2.25): sixteen
        // bytes of which the first eight are the value leave eight for the other.
        if (dtv.size, value.size, value.offset, dtvp.offset) != (16, 8, 0, super::dtv::DTV) {
            return wrong(format!("a dtv of {dtv:?} with {value:?} at {dtvp:?}"));
        }
        let inside = |field: &Field, size: usize| {
            field.size == size
                && field.offset.is_multiple_of(size.min(8))
                && field.offset + size * field.count.max(1) <= self.pthread_size
        };
        if !inside(&self.tid, 4) || !inside(&self.list, 16) || !inside(&self.specific, 8) {
            return wrong(format!(
                "tid {:?}, list {:?}, specific {:?} in {} bytes",
                self.tid, self.list, self.specific, self.pthread_size
            ));
        }
        if self.key_block == 0 || self.specific.count * self.key_block < self.keys.1 {
            return wrong(format!(
                "{} blocks of {} values for {} keys",
                self.specific.count, self.key_block, self.keys.1
            ));
        }
        if self.slotinfo_entry.0 == 0 || self.slotinfo_entry.1.size != 8 {
            return wrong(format!("slotinfo entries of {:?}", self.slotinfo_entry));
        }
        Ok(())
    }

    /// `__libc_single_threaded`: while it is set, locks of glibc and of C++ are not taken.
    pub fn is_single_threaded(&self) -> bool {
        // SAFETY: <sys/single_threaded.h> declares it as a char; glibc itself writes it.
        unsafe { ptr::read_volatile(self.single_threaded as *const u8) != 0 }
    }

    /// Whether the program allocates with glibc's malloc.
    pub fn malloc_is_the_programs(&self) -> bool {
        // SAFETY: dlsym(3): the default search order and a terminated name.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"malloc".as_ptr()) };
        found as usize == self.malloc as usize
    }

    /// The handle of `libc.so.6`, for a look-up that is meant to fail.
    pub fn handle(&self) -> *mut c_void {
        self.handle as *mut c_void
    }
}

/// Where libc's own thread-locals lie: the link map tells the offset below the thread pointer,
/// the program headers tell the length, and errno, which must be inside, proves both.
fn libc_tls(lib: &Handle) -> Result<(isize, usize), Unavailable> {
    struct Search {
        base: usize,
        length: usize,
    }
    unsafe extern "C" fn visit(
        info: *mut libc::dl_phdr_info,
        _: usize,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: dl_iterate_phdr(3): `info` describes one object, `data` is what was passed.
        let (info, search) = unsafe { (&*info, &mut *data.cast::<Search>()) };
        if info.dlpi_addr as usize != search.base {
            return 0;
        }
        for i in 0..info.dlpi_phnum as usize {
            // SAFETY: dl_iterate_phdr(3): `dlpi_phdr` is an array of `dlpi_phnum` headers.
            let header = unsafe { &*info.dlpi_phdr.add(i) };
            if header.p_type == libc::PT_TLS {
                search.length = header.p_memsz as usize;
            }
        }
        1
    }

    let offset = lib.field(c"_thread_db_link_map_l_tls_offset")?;
    // SAFETY: dlopen's handle is the link map (elf/dl-open.c), which starts with l_addr (link.h);
    // the descriptor tells where l_tls_offset lies in it.
    let (base, below) = unsafe {
        let map = lib.0.cast::<u8>();
        (map.cast::<usize>().read(), map.add(offset.offset).cast::<usize>().read())
    };
    let mut search = Search { base, length: 0 };
    // SAFETY: dl_iterate_phdr(3): the callback gets the pointer to `search`, alive for the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };

    // SAFETY: errno(3): the address of the caller's errno.
    let errno = unsafe { libc::__errno_location() } as usize;
    let block = super::thread_pointer().wrapping_sub(below);
    let end = block.wrapping_add(search.length);
    if search.length == 0 || block % 8 != 0 || !(block..end).contains(&errno) {
        return Err(Reason::Shape(format!(
            "libc's thread-locals {below} below the thread pointer, {} bytes, without errno",
            search.length
        ))
        .into());
    }
    Ok((-(below as isize), search.length.next_multiple_of(8)))
}
