//! `sleave run`: a program as it is, its threads fibers.
//!
//! ```text
//!   sleave run -- PROGRAM …
//!     ├─ program:  found as a shell finds it; can a preload object get into it?     else: explained, exit code 126 or 127
//!     ├─ object:   libsleave_preload.so of this very version beside the tool        else: explained, exit code 125
//!     └─ LD_PRELOAD, SLEAVE_…, execve(2): this process becomes the program
//! ```
//!
//! ld.so(8) passes over an object that it cannot use, with a message at most, and a statically linked program never asks
//! for one. Then threads would silently be threads. So everything is looked at before.
//!
//! Exit codes are those of env(1) and nohup(1): 125 for a failure of the tool, 126 for a program that cannot be run this way,
//! 127 for one that is not there; else the program's own.

pub mod args;
mod object;
mod program;

use std::ffi::OsString;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use args::Run;

/// Why the program was not run.
#[derive(Debug)]
pub struct Refusal {
    code: u8,
    message: String,
}

impl Refusal {
    /// The tool's own fault, or that of its installation.
    fn ours(message: impl Into<String>) -> Refusal {
        Refusal { code: 125, message: message.into() }
    }

    /// A program that cannot be run with its threads as fibers.
    fn unfit(message: impl Into<String>) -> Refusal {
        Refusal { code: 126, message: message.into() }
    }

    /// A program that is not there.
    fn missing(message: impl Into<String>) -> Refusal {
        Refusal { code: 127, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Becomes the program; returns only if that fails.
pub fn run(arguments: &Run) -> ExitCode {
    let Err(refusal) = become_program(arguments);
    eprintln!("sleave run: {refusal}");
    ExitCode::from(refusal.code)
}

/// Makes the report's file, empty, to which the processes append; where it is, wherever they go.
fn begin_report(file: &Path) -> Result<PathBuf, Refusal> {
    let failed = |error| Refusal::ours(format!("--report {}: {error}", file.display()));
    std::fs::write(file, b"").map_err(failed)?;
    std::path::absolute(file).map_err(failed)
}

fn become_program(arguments: &Run) -> Result<std::convert::Infallible, Refusal> {
    let path = program::find(&arguments.program)?;
    program::examine(&path)?;
    if let Err(why) = sleave::identity() {
        return Err(Refusal::ours(format!("threads cannot be fibers here: {why}")));
    }
    let object = object::find()?;
    let mut preload = object.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let mut command = Command::new(&path);
    command.arg0(&arguments.program).args(&arguments.arguments);
    command.env("LD_PRELOAD", preload).env("SLEAVE_GREEN_THREADS", "1");
    let report = arguments.report.as_deref().map(begin_report).transpose()?;
    let options: [(&str, Option<OsString>); 4] = [
        ("SLEAVE_REPORT", report.map(PathBuf::into_os_string)),
        ("SLEAVE_WORKERS", arguments.workers.map(|workers| workers.to_string().into())),
        ("SLEAVE_MAX_FIBERS", arguments.max_fibers.map(|most| most.to_string().into())),
        ("SLEAVE_STACK", arguments.stack.map(|bytes| bytes.to_string().into())),
    ];
    for (variable, value) in options {
        if let Some(value) = value {
            command.env(variable, value);
        }
    }
    let error = command.exec();
    Err(Refusal::unfit(format!("{}: {error}", path.display())))
}
