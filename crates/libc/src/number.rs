//! System calls by their number: what `syscall(SYS_read, …)` means.
//!
//! Some code does not trust the C library to have a function, and calls by number: `close_range`,
//! `pidfd_open`, `epoll_pwait2`, and whatever its author is used to. Where the function of that name takes the
//! same arguments and answers in the same way, the number stands for the function, and does as it
//! does: parks, or tracks. `SYS_futex` is a family of its own (`futex`).
//!
//! Every other number is the C library's own `syscall`. That includes calls whose function differs from
//! the kernel's (`clock_nanosleep`, `ppoll`, `pselect6`): they block the worker.
//!
//! Sources: syscall(2), syscalls(2).

use std::ffi::c_long;

use crate::{batch, create, descriptor, epoll, message, next, open, poll, socket, splice, stream};
use crate::{thread, time};

/// Argument of a system call as what a function takes: a number or an address.
trait Word {
    fn of(word: usize) -> Self;
}

macro_rules! numbers {
    ($($type:ty)*) => { $( impl Word for $type {
        fn of(word: usize) -> $type {
            // The upper bits of a shorter argument mean nothing, as in the kernel.
            word as $type
        }
    } )* };
}
numbers! { i32 u32 usize i64 u64 }

impl<T> Word for *mut T {
    fn of(word: usize) -> *mut T {
        word as *mut T
    }
}

impl<T> Word for *const T {
    fn of(word: usize) -> *const T {
        word as *const T
    }
}

/// Calls the function that the number names, if it is one of these.
macro_rules! functions {
    ($number:ident, $words:ident;
     $( $(#[$cfg:meta])* $name:ident => $function:path[$($at:literal)*]; )*) => {
        match $number {
            $(
                $(#[$cfg])*
                libc::$name => {
                    // SAFETY: the caller's arguments for the same call.
                    Some(unsafe { $function($(Word::of($words[$at])),*) } as c_long)
                }
            )*
            _ => None,
        }
    };
}

/// syscall(2) of any number but `SYS_futex`.
///
/// # Safety
/// As the call of that number.
pub(crate) unsafe fn call(number: c_long, words: [usize; 6]) -> c_long {
    let function = functions! { number, words;
        SYS_read => stream::read[0 1 2];
        SYS_write => stream::write[0 1 2];
        SYS_readv => stream::readv[0 1 2];
        SYS_writev => stream::writev[0 1 2];
        SYS_recvfrom => message::recvfrom[0 1 2 3 4 5];
        SYS_recvmsg => message::recvmsg[0 1 2];
        SYS_recvmmsg => batch::recvmmsg[0 1 2 3 4];
        SYS_sendto => message::sendto[0 1 2 3 4 5];
        SYS_sendmsg => message::sendmsg[0 1 2];
        SYS_sendmmsg => batch::sendmmsg[0 1 2 3];
        SYS_sendfile => splice::sendfile[0 1 2 3];
        SYS_splice => splice::splice[0 1 2 3 4 5];
        SYS_tee => splice::tee[0 1 2 3];
        SYS_vmsplice => splice::vmsplice[0 1 2 3];
        SYS_accept => socket::accept[0 1 2];
        SYS_accept4 => socket::accept4[0 1 2 3];
        SYS_connect => socket::connect[0 1 2];
        SYS_setsockopt => socket::setsockopt[0 1 2 3 4];
        SYS_epoll_pwait => epoll::epoll_pwait[0 1 2 3 4];
        SYS_epoll_pwait2 => epoll::epoll_pwait2[0 1 2 3 4];
        SYS_epoll_create1 => epoll::epoll_create1[0];
        SYS_nanosleep => time::nanosleep[0 1];
        SYS_close => descriptor::close[0];
        SYS_close_range => descriptor::close_range[0 1 2];
        SYS_dup => descriptor::dup[0];
        SYS_dup3 => descriptor::dup3[0 1 2];
        SYS_fcntl => descriptor::fcntl[0 1 2];
        SYS_ioctl => descriptor::ioctl[0 1 2];
        SYS_socket => create::socket[0 1 2];
        SYS_socketpair => create::socketpair[0 1 2 3];
        SYS_pipe2 => create::pipe2[0 1];
        SYS_eventfd2 => create::eventfd[0 1];
        SYS_timerfd_create => create::timerfd_create[0 1];
        SYS_inotify_init1 => create::inotify_init1[0];
        SYS_fanotify_init => create::fanotify_init[0 1];
        SYS_pidfd_open => create::pidfd_open[0 1];
        SYS_pidfd_getfd => create::pidfd_getfd[0 1 2];
        SYS_memfd_create => create::memfd_create[0 1];
        SYS_openat => open::openat[0 1 2 3];
        SYS_open_by_handle_at => open::open_by_handle_at[0 1 2];
        #[cfg(target_arch = "x86_64")]
        SYS_poll => poll::poll[0 1 2];
        #[cfg(target_arch = "x86_64")]
        SYS_select => crate::select::select[0 1 2 3 4];
        #[cfg(target_arch = "x86_64")]
        SYS_epoll_wait => epoll::epoll_wait[0 1 2 3];
        #[cfg(target_arch = "x86_64")]
        SYS_epoll_create => epoll::epoll_create[0];
        #[cfg(target_arch = "x86_64")]
        SYS_dup2 => descriptor::dup2[0 1];
        #[cfg(target_arch = "x86_64")]
        SYS_pipe => create::pipe[0];
        #[cfg(target_arch = "x86_64")]
        SYS_inotify_init => create::inotify_init[];
        #[cfg(target_arch = "x86_64")]
        SYS_open => open::open[0 1 2];
        #[cfg(target_arch = "x86_64")]
        SYS_creat => open::creat[0 1];
        SYS_sched_yield => thread::sched_yield[];
    };
    let [a, b, c, d, e, f] = words;
    // SAFETY: the caller's arguments for the same function.
    function.unwrap_or_else(|| unsafe { next::syscall(number, a, b, c, d, e, f) })
}

#[cfg(test)]
mod tests {
    use std::ffi::c_int;

    use super::*;

    #[test]
    fn numbers_mean_their_functions() {
        let mut ends = [-1 as c_int; 2];
        let call = |number, words: &[usize]| {
            let mut all = [0; 6];
            all[..words.len()].copy_from_slice(words);
            // SAFETY: calls on descriptors and memory of the test's own.
            unsafe { call(number, all) }
        };
        assert_eq!(call(libc::SYS_pipe2, &[ends.as_mut_ptr() as usize, 0]), 0);
        let [from, to] = ends.map(|fd| fd as usize);
        let mut byte = b'x';
        let at = &raw mut byte as usize;
        assert_eq!(call(libc::SYS_write, &[to, at, 1]), 1);
        byte = 0;
        assert_eq!(call(libc::SYS_read, &[from, at, 1]), 1);
        assert_eq!(byte, b'x');
        assert_eq!(call(libc::SYS_close, &[from]), 0);
        assert_eq!(call(libc::SYS_close, &[to]), 0);
        assert_eq!(call(libc::SYS_close, &[usize::MAX]), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EBADF));
        assert_eq!(call(libc::SYS_getpid, &[]), c_long::from(std::process::id() as c_int));
    }
}
