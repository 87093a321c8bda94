//! Other threads of this process, as proc(5) shows them.
//!
//! What opens a file takes a number of the caller's descriptor table for a moment: so only
//! [the witness](crate::scheduler::witness) calls these, if it can be had.

use std::os::fd::RawFd;

use syscalls::{Sysno, syscall};

use super::close;

/// Runs `f` with a descriptor for the file or directory at `path`, which ends in a NUL.
fn with_file<T>(path: &str, flags: i32, f: impl FnOnce(RawFd) -> T) -> Option<T> {
    debug_assert!(path.ends_with('\0'));
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | flags;
    // SAFETY: openat(2) of a NUL-terminated path.
    let fd = unsafe { syscall!(Sysno::openat, libc::AT_FDCWD, path.as_ptr(), flags) }.ok()?;
    let value = f(fd as RawFd);
    close(fd as RawFd);
    Some(value)
}

/// The beginning of the file at `path`, which ends in a NUL.
fn read<'a>(path: &str, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: read(2) into a buffer of the caller's.
    let read =
        |fd| unsafe { syscall!(Sysno::read, fd, buffer.as_mut_ptr(), buffer.len()) }.unwrap_or(0);
    let count = with_file(path, 0, read)?;
    Some(&buffer[..count])
}

/// The state of the OS thread `tid`, a letter of proc(5); `None` if that cannot be found out.
pub(crate) fn state(tid: u32) -> Option<u8> {
    let mut stat = [0u8; 128];
    let stat = read(&format!("/proc/self/task/{tid}/stat\0"), &mut stat)?;
    // The name stands in parentheses and may hold any; the state follows the last.
    let name_ends = stat.iter().rposition(|&byte| byte == b')')?;
    stat.get(name_ends + 2).copied()
}

/// Whether the OS thread `tid` runs or is about to; `false` also if that cannot be found out.
pub(crate) fn is_runnable(tid: u32) -> bool {
    state(tid) == Some(b'R')
}

/// Where a thread is that is not running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Standing {
    /// The system call that it is in, with its arguments; `None` if it was stopped elsewhere.
    pub(crate) call: Option<(usize, [u64; 6])>,
    /// Its stack pointer.
    pub(crate) stack: usize,
    /// What it executes next.
    pub(crate) address: usize,
}

/// Where the OS thread `tid` is; `None` if it runs, is gone, or that cannot be found out. proc(5), `/proc/[pid]/syscall`
pub(crate) fn standing(tid: u32) -> Option<Standing> {
    let mut line = [0u8; 256];
    let line = read(&format!("/proc/self/task/{tid}/syscall\0"), &mut line)?;
    parse(std::str::from_utf8(line).ok()?)
}

fn parse(line: &str) -> Option<Standing> {
    let mut words = line.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let mut next = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let call = match usize::try_from(number) {
        Ok(number) => {
            let mut arguments = [0; 6];
            for argument in &mut arguments {
                *argument = next()?;
            }
            Some((number, arguments))
        }
        Err(_) => None,
    };
    Some(Standing { call, stack: next()? as usize, address: next()? as usize })
}

/// The ids of all OS threads of this process; `None` if they cannot be found out. getdents64(2)
pub(crate) fn threads() -> Option<Vec<u32>> {
    const NAME: usize = 19;
    with_file("/proc/self/task\0", libc::O_DIRECTORY, |fd| {
        let mut threads = Vec::new();
        let mut buffer = [0u64; 512];
        loop {
            let size = size_of_val(&buffer);
            // SAFETY: getdents64(2) into a buffer of ours.
            let count = unsafe { syscall!(Sysno::getdents64, fd, buffer.as_mut_ptr(), size) };
            let count = count.ok()?;
            if count == 0 {
                return Some(threads);
            }
            // SAFETY: the kernel has written so many bytes.
            let mut entries =
                unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), count) };
            while entries.len() > NAME {
                // struct linux_dirent64: the length of the entry at 16, the name at 19.
                let length = usize::from(u16::from_ne_bytes([entries[16], entries[17]]));
                let (entry, rest) = entries.split_at_checked(length.max(1))?;
                let name = entry.get(NAME..)?.split(|&byte| byte == 0).next()?;
                let name = std::str::from_utf8(name).ok();
                threads.extend(name.and_then(|name| name.parse::<u32>().ok()));
                entries = rest;
            }
        }
    })?
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let line = "202 0x7f00 0x189 0x2 0x0 0x0 0xffffffff 0x7ffd10 0x7f20\n";
        let call = Some((202, [0x7f00, 0x189, 2, 0, 0, 0xffff_ffff]));
        assert_eq!(parse(line), Some(Standing { call, stack: 0x7ffd10, address: 0x7f20 }));
        let elsewhere = Standing { call: None, stack: 0x10, address: 0x20 };
        assert_eq!(parse("-1 0x10 0x20\n"), Some(elsewhere));
        for other in ["running\n", "", "202 0x7f00\n", "202 7f00\n"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn threads_of_the_process_are_listed_with_where_they_stand() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (keep, until) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            sender.send(crate::kernel::gettid()).unwrap();
            let _ = until.recv();
        });
        let tid = receiver.recv().unwrap();
        let threads = threads().expect("a list");
        assert!(threads.contains(&tid) && threads.contains(&crate::kernel::gettid()));
        let standing = loop {
            match standing(tid) {
                Some(Standing { call: Some(call), .. }) => break call,
                _ => std::thread::yield_now(),
            }
        };
        assert_eq!(standing.0, Sysno::futex as usize);
        drop(keep);
        thread.join().unwrap();
        assert_eq!(state(crate::kernel::gettid()), Some(b'R'));
    }
}
