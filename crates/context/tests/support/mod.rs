//! What several test programs share: a second process, the kernel's view of our memory, coroutine plumbing.

#![allow(dead_code, reason = "each test program uses its own part of this")]

pub mod backends;

use sleave_context::stack::{Arena, Options};
use std::ffi::OsString;
use std::process::{Command, Output};

/// An arena of a size of its own, so that tests in one process do not see each other's stacks.
pub fn arena(reserve: usize) -> Arena {
    Arena::with_options(Options { reserve: Some(reserve), ..Options::default() }).unwrap()
}

/// Is this process the child that [`in_child`] starts for `name`?
pub fn is_child(name: &str) -> bool {
    std::env::var("SLEAVE_CONTEXT_TEST_CHILD").is_ok_and(|child| child == name)
}

/// What starts programs for the emulator that this one runs in, if it does: set by `.ci/aarch64`.
fn emulator() -> Option<OsString> {
    std::env::var_os("TEST_RUNNER")
}

/// Does this program run in an emulator (qemu's user mode)? Says then what that lacks, so that something cannot be
/// tested.
pub fn emulator_lacks(what: &str) -> bool {
    let emulated = emulator().is_some();
    if emulated {
        println!("not tested in this emulator, as it has no {what}");
    }
    emulated
}

/// Runs the test `name` of this program again, in a process of its own, where [`is_child`] holds.
pub fn in_child(name: &str) -> Output {
    let program = std::env::current_exe().unwrap();
    let mut command = match emulator() {
        Some(emulator) => {
            let mut command = Command::new(emulator);
            command.arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("SLEAVE_CONTEXT_TEST_CHILD", name)
        .output()
        .unwrap()
}

/// Panics, with the child's words, unless it succeeded.
pub fn assert_success(output: &Output) {
    assert!(
        output.status.success(),
        "child: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Asks the kernel whether an address can be read, without touching it here.
pub struct Probe {
    pipe: [i32; 2],
}

impl Probe {
    pub fn new() -> Probe {
        let mut pipe = [0; 2];
        // SAFETY: pipe(2) fills the two integers.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        Probe { pipe }
    }

    pub fn readable(&self, addr: usize) -> bool {
        let mut byte = 0_u8;
        // SAFETY: write(2) answers EFAULT for what cannot be read.
        let written = unsafe { libc::write(self.pipe[1], addr as *const libc::c_void, 1) };
        if written == 1 {
            // SAFETY: one byte is there to be read into one byte.
            assert_eq!(unsafe { libc::read(self.pipe[0], (&raw mut byte).cast(), 1) }, 1);
        } else {
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
        }
        written == 1
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: our own descriptors.
        unsafe {
            libc::close(self.pipe[0]);
            libc::close(self.pipe[1]);
        }
    }
}

/// The kernel's mappings in the arena: how many, and how many bytes of them are in memory.
pub fn mappings(arena: &Arena) -> (usize, usize) {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut count, mut resident, mut inside) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        if let Some((from, _)) = first.split_once('-') {
            inside = arena.contains(usize::from_str_radix(from, 16).unwrap());
            count += usize::from(inside);
        } else if inside && first == "Rss:" {
            resident += words.next().unwrap().parse::<usize>().unwrap() * 1024;
        }
    }
    (count, resident)
}

/// So many bytes of the arena are in memory.
#[track_caller]
pub fn assert_resident(arena: &Arena, bytes: usize) {
    if !emulator_lacks("Rss in /proc/self/smaps: it is always 0") {
        assert_eq!(mappings(arena).1, bytes);
    }
}
