//! Opening: a FIFO waits for its other end, everything else is as ever.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::support::{Company, Host, LONG_PATIENCE, everywhere, watchdog::Watchdog};
use crate::{Directory, MANY, all_wait, outcome};

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in it")
}

/// What a call that opens has answered, closed again.
fn opened(fd: i32) -> Result<(), i32> {
    // SAFETY: a descriptor that the call has just made.
    outcome(fd).map(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

#[test]
fn both_ends_of_a_fifo_meet() {
    let directory = Directory::make();
    everywhere(|host| {
        let path = directory.fifo(&format!("meet {host}"));
        let writer = host.spawn({
            let path = path.clone();
            move || {
                let mut end = File::options().write(true).open(path).unwrap();
                end.write_all(b"through").unwrap();
            }
        });
        let mut text = String::new();
        File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        writer.value();
        std::fs::remove_file(path).unwrap();
        text
    });
}

#[test]
fn what_need_not_wait_does_not() {
    let directory = Directory::make();
    let path = directory.fifo("hasty");
    everywhere(|_| {
        let hasty = |options: &mut std::fs::OpenOptions| {
            options
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
                .map(drop)
                .map_err(|e| e.raw_os_error())
        };
        (
            hasty(File::options().read(true)),
            // Nobody reads.
            hasty(File::options().write(true)),
            // Its own other end.
            File::options().read(true).write(true).open(&path).map(drop).is_ok(),
        )
    });
}

#[test]
fn every_name_of_open_opens_and_refuses_as_on_a_thread() {
    let directory = Directory::make();
    everywhere(|_| {
        let (new, missing) = (c_path(&directory.path("new")), c_path(&directory.path("no/where")));
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        // SAFETY: open(2) and its siblings of strings, and of an address that is none.
        unsafe {
            let wild = std::ptr::dangling::<libc::c_char>();
            let here = libc::AT_FDCWD;
            [
                opened(libc::open(new.as_ptr(), flags, 0o600)),
                opened(libc::open64(new.as_ptr(), libc::O_RDONLY)),
                opened(libc::openat(here, new.as_ptr(), flags | libc::O_EXCL, 0o600)),
                opened(libc::openat64(here, missing.as_ptr(), libc::O_RDONLY)),
                opened(libc::openat64(-5, c"relative".as_ptr(), libc::O_RDONLY)),
                opened(libc::creat(new.as_ptr(), 0o600)),
                opened(libc::creat64(missing.as_ptr(), 0o600)),
                opened(libc::open(wild, libc::O_RDONLY)),
                opened(libc::open(new.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY)),
                opened(libc::open(c"/dev/null".as_ptr(), libc::O_RDWR)),
            ]
        }
    });
}

#[test]
fn mode_reaches_the_new_file() {
    let directory = Directory::make();
    everywhere(|_| {
        use std::os::unix::fs::PermissionsExt;
        let path = directory.path("moded");
        drop(File::options().create_new(true).write(true).mode(0o640).open(&path).unwrap());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        std::fs::remove_file(path).unwrap();
        mode
    });
}

#[test]
fn many_open_fifos_at_once_on_one_worker() {
    Company::Shared.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let directory = Directory::make();
        let paths: Vec<_> = (0..MANY).map(|i| directory.fifo(&format!("many {i}"))).collect();
        let writing = paths.clone();
        let read = move |i: usize| {
            let mut byte = [0];
            File::open(&paths[i]).unwrap().read_exact(&mut byte).unwrap();
            usize::from(byte[0])
        };
        let write = || {
            for (i, path) in writing.iter().enumerate() {
                File::options().write(true).open(path).unwrap().write_all(&[i as u8]).unwrap();
            }
        };
        let bytes = all_wait(MANY, read, write);
        assert!(bytes.into_iter().eq(0..MANY));
    });
}
