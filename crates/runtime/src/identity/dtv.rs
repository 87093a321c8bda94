//! The dtv: a thread's table of its TLS blocks, one entry per module that has thread-locals.
//!
//! ```text
//!   tp + 8 ──▶ dtv        [-1].counter   entries that there is room for
//!                         [0].counter    generation: how much of the module list it has seen
//!                         [1..]          { val, to_free }: the block; what to free, or null
//! ```
//!
//! Blocks of modules that were there at start-up lie in the identity itself (`to_free` is null).
//! Those of libraries opened later are allocated on first use and belong to the identity that
//! used them. The table itself comes from `_dl_allocate_tls` and goes with `_dl_deallocate_tls`;
//! glibc brings it up to date lazily, so a recycled identity may keep it. What it must not keep is
//! the last fiber's blocks.
//!
//! Sources: `sysdeps/generic/dl-dtv.h`, `elf/dl-tls.c`.

use std::ffi::c_void;

/// Offset of the dtv's address from the thread pointer (x86-64 TLS ABI).
pub(super) const DTV: usize = 8;

/// An element of the table; the first two are counters.
#[repr(C)]
struct Element {
    val: usize,
    to_free: *mut c_void,
}

/// The generation that the table of `tp` has seen.
///
/// # Safety
/// `tp` is an identity, and in force nowhere else.
#[inline]
pub(super) unsafe fn generation(tp: usize) -> usize {
    // SAFETY: layout above; the caller vouches for `tp`.
    unsafe { (**((tp + DTV) as *const *const Element)).val }
}

/// The number of modules that the table of `tp` has room for.
///
/// # Safety
/// As for [`generation`].
pub(super) unsafe fn room(tp: usize) -> usize {
    // SAFETY: layout above; the caller vouches for `tp`.
    unsafe { (*(*((tp + DTV) as *const *const Element)).sub(1)).val }
}

/// The block of module `id`: `None` if it has none yet.
///
/// # Safety
/// As for [`generation`].
pub(super) unsafe fn block(tp: usize, id: usize) -> Option<usize> {
    // SAFETY: layout above; the caller vouches for `tp`; `id` is checked against the room.
    unsafe {
        if id == 0 || id > room(tp) {
            return None;
        }
        let value = (*(*((tp + DTV) as *const *const Element)).add(id)).val;
        // TLS_DTV_UNALLOCATED is -1; an entry that no module had is zero.
        (value != usize::MAX && value != 0).then_some(value)
    }
}

/// Frees the blocks that were allocated for the identity's last user. Afterwards
/// `_dl_allocate_tls_init` must mark their entries as unallocated.
///
/// # Safety
/// As for [`generation`]; nothing runs on the identity.
pub(super) unsafe fn free_blocks(tp: usize) {
    // SAFETY: layout above. `to_free` came from the program's malloc (elf/dl-minimal.c: once
    // libc is relocated ld.so allocates with it), which is what `libc::free` names.
    unsafe {
        let table = *((tp + DTV) as *const *mut Element);
        for id in 1..=room(tp) {
            let element = &mut *table.add(id);
            if !element.to_free.is_null() {
                libc::free(element.to_free);
                element.to_free = std::ptr::null_mut();
                element.val = usize::MAX;
            }
        }
    }
}
