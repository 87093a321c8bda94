//! Descriptors that travel: `SCM_RIGHTS` in the control data of a message.
//!
//! A descriptor that was sent names a description that the receiver now shares; one that was
//! received is a new number here for a description from elsewhere. The table and the reactor
//! learn of both.
//!
//! Sources: cmsg(3), unix(7).

use std::ffi::c_int;

use libc::msghdr;
use sleave_runtime::reactor;

use crate::table;

/// Calls `each` with every descriptor in the control data.
///
/// # Safety
/// The control buffer must hold `msg_controllen` bytes of well-formed control data: what the
/// kernel has accepted or written.
unsafe fn rights(message: &msghdr, mut each: impl FnMut(c_int)) {
    // SAFETY: cmsg(3): the macros walk the well-formed control data within its length.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(message);
        while let Some(control) = head.as_ref() {
            if control.cmsg_level == libc::SOL_SOCKET && control.cmsg_type == libc::SCM_RIGHTS {
                let len: usize = control.cmsg_len as _;
                let bytes = len.saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(head).cast::<c_int>();
                for i in 0..bytes / size_of::<c_int>() {
                    each(data.add(i).read_unaligned());
                }
            }
            head = libc::CMSG_NXTHDR(message, head);
        }
    }
}

/// `message` has been sent.
///
/// # Safety
/// As [`rights`].
#[inline]
pub(crate) unsafe fn sent(message: &msghdr) {
    if message.msg_controllen == 0 {
        return;
    }
    let share = |fd| {
        table::share(fd);
        reactor::shared(fd);
    };
    // SAFETY: the caller's contract.
    unsafe { rights(message, share) };
}

/// `message` has been received.
///
/// # Safety
/// As [`rights`].
#[inline]
pub(crate) unsafe fn received(message: &msghdr) {
    if message.msg_controllen == 0 {
        return;
    }
    let adopt = |fd| {
        table::forget(fd);
        reactor::opened(fd);
        reactor::shared(fd);
    };
    // SAFETY: the caller's contract.
    unsafe { rights(message, adopt) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_descriptor_of_every_rights_message_is_seen() {
        let mut buffer = [0u64; 16];
        // SAFETY: zeroes are a msghdr; the buffer is aligned for cmsghdr and large enough for
        // the two messages that cmsg(3)'s macros lay out in it.
        let found = unsafe {
            let mut message = std::mem::zeroed::<msghdr>();
            message.msg_control = buffer.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&buffer) as _;
            let put = |head: *mut libc::cmsghdr, fds: &[c_int]| {
                (*head).cmsg_level = libc::SOL_SOCKET;
                (*head).cmsg_type = libc::SCM_RIGHTS;
                (*head).cmsg_len = libc::CMSG_LEN(size_of_val(fds) as u32) as _;
                let data = libc::CMSG_DATA(head).cast::<c_int>();
                fds.iter().enumerate().for_each(|(i, fd)| data.add(i).write_unaligned(*fd));
            };
            let first = libc::CMSG_FIRSTHDR(&message);
            put(first, &[5, 6, 7]);
            put(libc::CMSG_NXTHDR(&message, first), &[8]);
            let used = libc::CMSG_SPACE(12) + libc::CMSG_SPACE(4);
            message.msg_controllen = used as _;
            let mut found = Vec::new();
            rights(&message, |fd| found.push(fd));
            found
        };
        assert_eq!(found, [5, 6, 7, 8]);
    }
}
