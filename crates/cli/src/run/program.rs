//! The program: found as execvp(3) finds it, and looked at before it is run.
//!
//! A preload object gets into a program only if ld.so of the C library loads it, on the same processor, and
//! the program has no more rights than its caller. All this is written in the first page of the file and in its
//! permissions.
//!
//! ```text
//!   #! INTERPRETER   ──▶ the same of the interpreter, and of what env(1) would run
//!   ELF  class, machine          else: another processor's
//!        PT_INTERP               none: statically linked;  ld-musl: another C library
//! ```
//!
//! Sources: elf(5), execve(2) on interpreter scripts, ld.so(8) on secure execution, capabilities(7).

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Refusal;

/// Scripts may name scripts, up to a depth; the kernel's limit.
const DEPTH: usize = 5;

/// Finds `program`: a path if there is a slash in it, else in `PATH`.
pub(super) fn find(program: &OsStr) -> Result<PathBuf, Refusal> {
    if program.as_bytes().contains(&b'/') {
        return Ok(PathBuf::from(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| {
            candidate.metadata().is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0)
        })
        .ok_or_else(|| Refusal::missing(format!("{}: not found in PATH", program.display())))
}

/// Whether a preload object gets into the program at `path`.
pub(super) fn examine(path: &Path) -> Result<(), Refusal> {
    let mut path = path.to_owned();
    for _ in 0..DEPTH {
        match kind(&path)? {
            Kind::Program => return Ok(()),
            Kind::Script(interpreter) => path = interpreter,
        }
    }
    Err(Refusal::unfit(format!("{}: scripts that name scripts, too many of them", path.display())))
}

enum Kind {
    /// A program that a preload object gets into.
    Program,
    /// Run by this.
    Script(PathBuf),
}

fn kind(path: &Path) -> Result<Kind, Refusal> {
    let shown = path.display();
    let failed = |error: std::io::Error| {
        let message = format!("{shown}: {error}");
        match error.kind() {
            ErrorKind::NotFound => Refusal::missing(message),
            _ => Refusal::unfit(message),
        }
    };
    let about = path.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(Refusal::unfit(format!("{shown} is no file")));
    }
    if about.permissions().mode() & 0o111 == 0 {
        return Err(Refusal::unfit(format!("{shown} is not executable")));
    }
    let mut file = File::open(path).map_err(|error| {
        Refusal::unfit(format!("{shown}: what kind of program it is cannot be read: {error}"))
    })?;
    let mut head = Vec::new();
    file.by_ref().take(4096).read_to_end(&mut head).map_err(failed)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        return interpreter(path, line).map(Kind::Script);
    }
    if !head.starts_with(b"\x7fELF") {
        return Err(Refusal::unfit(format!(
            "{shown} is neither a program (ELF) nor a script (#!)"
        )));
    }
    same_rights(path, &about)?;
    let loader = Elf { shown: shown.to_string(), head: &head, file: &file }.loader()?;
    match loader.to_str() {
        Ok(name) if name.contains("ld-musl") => Err(Refusal::unfit(format!(
            "{shown} is linked with musl ({name}): fibers need glibc, of which sleave knows the threads"
        ))),
        Ok(name)
            if name.contains("/ld-linux") || name.contains("/ld.so") || name.contains("/nix/") =>
        {
            Ok(Kind::Program)
        }
        _ => Err(Refusal::unfit(format!(
            "{shown} is loaded by {loader:?}, which is not glibc's dynamic linker"
        ))),
    }
}

/// What runs the script whose first line goes on with `line`.
fn interpreter(script: &Path, line: &[u8]) -> Result<PathBuf, Refusal> {
    let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| b" \t\r".contains(byte)).filter(|word| !word.is_empty());
    let Some(interpreter) = words.next() else {
        return Err(Refusal::unfit(format!(
            "{}: a script without an interpreter",
            script.display()
        )));
    };
    let interpreter = PathBuf::from(OsString::from_vec(interpreter.to_vec()));
    if interpreter.file_name() != Some(OsStr::new("env")) {
        return Ok(interpreter);
    }
    // `#!/usr/bin/env -S NAME=value python3`: the first word that is neither an option nor an assignment.
    let name = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='));
    match name {
        Some(name) => find(OsStr::from_bytes(name)).map_err(|refusal| {
            Refusal::missing(format!("the interpreter of {}: {refusal}", script.display()))
        }),
        None => Ok(interpreter),
    }
}

/// Whether the program runs with its caller's rights: else ld.so ignores what the caller preloads.
fn same_rights(path: &Path, about: &std::fs::Metadata) -> Result<(), Refusal> {
    let shown = path.display();
    // SAFETY: geteuid(2), getegid(2) have no arguments.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let mode = about.mode();
    let foreign = mode & libc::S_ISUID != 0 && about.uid() != user
        || mode & libc::S_ISGID != 0 && about.gid() != group;
    if foreign {
        return Err(Refusal::unfit(format!(
            "{shown} runs with another user's rights (setuid, setgid): ld.so preloads nothing into it"
        )));
    }
    let name = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
    // SAFETY: getxattr(2) of terminated names asks for the size only.
    let size = unsafe {
        libc::getxattr(name.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0)
    };
    if size > 0 && user != 0 {
        return Err(Refusal::unfit(format!(
            "{shown} has capabilities that its caller has not: ld.so preloads nothing into it"
        )));
    }
    Ok(())
}

/// The head of an ELF file.
struct Elf<'a> {
    shown: String,
    head: &'a [u8],
    file: &'a File,
}

impl Elf<'_> {
    const CLASS: usize = 4;
    const DATA: usize = 5;
    const TYPE: usize = 16;
    const MACHINE: usize = 18;
    const HEADERS: usize = 32;
    const HEADER_SIZE: usize = 54;
    const HEADER_COUNT: usize = 56;

    #[cfg(target_arch = "x86_64")]
    const OURS: u16 = 62;
    #[cfg(target_arch = "aarch64")]
    const OURS: u16 = 183;

    fn half(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.head.get(at..at + 2)?.try_into().ok()?))
    }

    fn broken(&self) -> Refusal {
        Refusal::unfit(format!(
            "{} is a damaged program: its ELF header makes no sense",
            self.shown
        ))
    }

    /// The dynamic linker that the program names.
    fn loader(&self) -> Result<CString, Refusal> {
        const CLASS_64: u8 = 2;
        const LITTLE: u8 = 1;
        let (Some(&class), Some(&data), Some(machine), Some(kind)) = (
            self.head.get(Self::CLASS),
            self.head.get(Self::DATA),
            self.half(Self::MACHINE),
            self.half(Self::TYPE),
        ) else {
            return Err(self.broken());
        };
        if (class, data, machine) != (CLASS_64, LITTLE, Self::OURS) {
            return Err(Refusal::unfit(format!(
                "{} is for another processor (ELF machine {machine}, {} bits): the preload object is for {}",
                self.shown,
                if class == CLASS_64 { 64 } else { 32 },
                std::env::consts::ARCH
            )));
        }
        if ![libc::ET_EXEC, libc::ET_DYN].contains(&kind) {
            return Err(Refusal::unfit(format!("{} is an object file, not a program", self.shown)));
        }
        let bytes = self.interpreter().ok_or_else(|| self.broken())?;
        if bytes.is_empty() {
            return Err(Refusal::unfit(format!(
                "{} is statically linked: nothing can be preloaded into it. (Go programs, musl's and \
                 `-static` are; link it dynamically, or a Rust program with the crate sleave.)",
                self.shown
            )));
        }
        let name = CStr::from_bytes_until_nul(&bytes).map_err(|_| self.broken())?;
        Ok(name.to_owned())
    }

    /// What `PT_INTERP` holds; empty if there is none. `None` for headers that make no sense.
    fn interpreter(&self) -> Option<Vec<u8>> {
        const LONGEST: u64 = 4096;
        let word = |header: &[u8], at: usize| {
            Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?))
        };
        let start = word(self.head, Self::HEADERS)?;
        let size = u64::from(self.half(Self::HEADER_SIZE)?);
        let count = u64::from(self.half(Self::HEADER_COUNT)?);
        if count > 0 && size < 56 {
            return None;
        }
        for number in 0..count {
            let mut header = [0; 56];
            self.file.read_exact_at(&mut header, start.checked_add(number * size)?).ok()?;
            if header[..4] != libc::PT_INTERP.to_le_bytes() {
                continue;
            }
            let (at, len) = (word(&header, 8)?, word(&header, 32)?);
            let mut bytes = vec![0; usize::try_from(len.min(LONGEST)).ok()?];
            self.file.read_exact_at(&mut bytes, at).ok()?;
            return (!bytes.is_empty()).then_some(bytes);
        }
        Some(Vec::new())
    }
}
