//! Regular files: reading what is not in memory, and `fsync fdatasync sync syncfs sync_file_range msync`.
//!
//! A regular file is never "not ready": epoll refuses it. But `RWF_NOWAIT` answers whether what is to be read
//! lies in the page cache:
//!
//! ```text
//!   preadv2(RWF_NOWAIT) ── all, or the end of the file ─▶ the result
//!      ├─ a part ─▶ the same for the rest
//!      ├─ EAGAIN ─▶ a disk: hand off the plain call
//!      └─ EOPNOTSUPP ─▶ remember it: this file system cannot tell. The plain call, here and from now on
//! ```
//!
//! So a cached read costs what it costs on a thread, and one from a disk a stand-in, which is little beside a disk. A short result of
//! the try must not be the program's: on a thread a read of a file is short only at its end.
//! (Two who read by one file position at once may get their data in turns then; by pread they do not.)
//!
//! **Writing** goes to the page cache, and no file system tells beforehand whether it will wait for room
//! there: the plain call. If it takes long, the runtime's monitor gives the worker's other fibers to another thread; so it does
//! in file systems that cannot tell, and with `O_DIRECT`, where the try itself waits for the disk.
//!
//! **Synchronising** waits for a disk, always: handed off whole.
//!
//! Sources: preadv2(2), fsync(2), sync(2), sync_file_range(2), msync(2).

use std::ffi::{c_int, c_uint, c_void};

use libc::{iovec, off_t, off64_t, size_t, ssize_t};
use sleave_runtime::interpose;

use crate::handoff::{Call, hand_off, hand_off_whole};
use crate::table::{Descriptor, Kind, State};
use crate::vector::{self, Rest};
use crate::{errno, kernel, next};

const UNSUPPORTED: isize = errno::error(libc::EOPNOTSUPP);

/// The file position, as preadv2(2) knows it.
const POSITION: off64_t = -1;

/// Reads a regular file at `offset`, or at the file [`POSITION`], in a fiber; answers as the kernel does.
///
/// # Safety
/// As preadv2(2), without flags.
unsafe fn read_at(mut d: Descriptor, parts: *const iovec, count: c_int, offset: off64_t) -> isize {
    // SAFETY: the caller's array, here and below.
    let plain = || unsafe { kernel::preadv2(d.fd, parts, count, offset, 0) };
    if d.state.has(State::PLAIN_READ) || !(1..=libc::UIO_MAXIOV).contains(&count) {
        return plain();
    }
    // SAFETY: as above.
    let cached = unsafe { kernel::preadv2(d.fd, parts, count, offset, libc::RWF_NOWAIT) };
    match cached {
        errno::AGAIN => hand_off(Call::Works, plain),
        UNSUPPORTED => {
            let result = plain();
            d.note(State::PLAIN_READ, 0);
            result
        }
        // SAFETY: the kernel has accepted the array.
        1.. if (cached as usize) < unsafe { vector::total(parts, count as usize) } => unsafe {
            read_rest(d.fd, parts, count as usize, offset, cached as usize)
        },
        _ => cached,
    }
}

/// Reads what is left of `count` buffers after the first `read` bytes; answers with the whole number.
///
/// # Safety
/// `parts` is an array of `count` entries that the kernel has accepted.
#[cold]
unsafe fn read_rest(
    fd: c_int,
    parts: *const iovec,
    count: usize,
    offset: off64_t,
    mut read: usize,
) -> isize {
    // SAFETY: the caller's array; its buffers outlive the call.
    let mut rest = unsafe { Rest::after(parts, count, read) };
    while !rest.is_empty() {
        let at = if offset == POSITION { POSITION } else { offset + read as off64_t };
        let left = rest.parts();
        let (parts, count) = (left.as_ptr(), left.len() as c_int);
        // SAFETY: buffers that the kernel has accepted.
        let call = |flags| unsafe { kernel::preadv2(fd, parts, count, at, flags) };
        let mut result = call(libc::RWF_NOWAIT);
        if result == errno::AGAIN {
            result = hand_off(Call::Works, || call(0));
        }
        if result <= 0 {
            break;
        }
        read += result as usize;
        rest.advance(result as usize);
    }
    read as isize
}

/// `readv` of a regular file in a fiber; answers as the kernel does.
///
/// # Safety
/// As readv(2).
pub(crate) unsafe fn readv(d: Descriptor, parts: *const iovec, count: c_int) -> isize {
    // SAFETY: the caller's contract.
    unsafe { read_at(d, parts, count, POSITION) }
}

/// `read` of a regular file in a fiber; answers as the kernel does.
///
/// # Safety
/// As read(2).
pub(crate) unsafe fn read(d: Descriptor, buffer: *mut c_void, len: usize) -> isize {
    // SAFETY: the caller's buffer.
    unsafe { readv(d, &iovec { iov_base: buffer, iov_len: len }, 1) }
}

/// The work of `pread` and its like: `call` is the C library's own function.
///
/// # Safety
/// As preadv(2).
unsafe fn read_file_at(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off64_t,
    call: impl FnOnce() -> ssize_t,
) -> ssize_t {
    // A negative offset is an error here, and not the file position.
    if !interpose::active() || offset < 0 {
        return call();
    }
    let d = Descriptor::of(fd);
    if d.kind() != Kind::File {
        return call();
    }
    // SAFETY: the caller's contract.
    errno::finish(unsafe { read_at(d, parts, count, offset) })
}

/// pread(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pread(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    offset: off_t,
) -> ssize_t {
    let part = iovec { iov_base: buffer, iov_len: len };
    // SAFETY: the caller's arguments for the same function.
    unsafe { read_file_at(fd, &part, 1, offset, || next::pread(fd, buffer, len, offset)) }
}

/// `pread` as glibc's headers name it with 64-bit file offsets.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pread64(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    offset: off64_t,
) -> ssize_t {
    let part = iovec { iov_base: buffer, iov_len: len };
    // SAFETY: the caller's arguments for the same function.
    unsafe { read_file_at(fd, &part, 1, offset, || next::pread64(fd, buffer, len, offset)) }
}

/// preadv(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn preadv(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the caller's arguments for the same function.
    unsafe { read_file_at(fd, parts, count, offset, || next::preadv(fd, parts, count, offset)) }
}

/// `preadv` as glibc's headers name it with 64-bit file offsets.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn preadv64(
    fd: c_int,
    parts: *const iovec,
    count: c_int,
    offset: off64_t,
) -> ssize_t {
    // SAFETY: the caller's arguments for the same function.
    unsafe { read_file_at(fd, parts, count, offset, || next::preadv64(fd, parts, count, offset)) }
}

hand_off_whole! {
    /// fsync(2)
    Works fsync(fd: c_int) -> c_int;
    /// fdatasync(2)
    Works fdatasync(fd: c_int) -> c_int;
    /// sync(2)
    Works sync();
    /// syncfs(2)
    Works syncfs(fd: c_int) -> c_int;
    /// sync_file_range(2)
    Works sync_file_range(fd: c_int, offset: off64_t, len: off64_t, flags: c_uint) -> c_int;
    /// msync(2)
    Works msync(start: *mut c_void, len: size_t, flags: c_int) -> c_int;
}
