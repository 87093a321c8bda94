//! `sleave dump`: asks a process for what its fibers do.
//!
//! A process that runs with `SLEAVE_DUMP=SIGNAL` answers that signal by a dump on its standard error. Here that signal is
//! found out and sent. To a process that does not expect it, it would mean something else, mostly its end: so everything is
//! looked at before.
//!
//! Sources: proc_pid_environ(5), proc_pid_status(5) on `SigCgt`, kill(2).

use std::fs;
use std::io;
use std::path::PathBuf;

use sleave_runtime::inspect::dump_signal;

use crate::args::Dump;

/// The variable by which a process says that it answers, and to which signal.
const VARIABLE: &str = "SLEAVE_DUMP";

/// Asks the process; says where the answer goes.
pub fn run(arguments: &Dump) -> io::Result<()> {
    let pid = arguments.pid;
    let about = |file: &str| PathBuf::from(format!("/proc/{pid}/{file}"));
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => no(format!("there is no process {pid}")),
        _ => no(format!("process {pid}: {error}")),
    };
    let environment = fs::read(about("environ")).map_err(failed)?;
    let (name, signal) = expected(&environment).ok_or_else(|| {
        no(format!(
            "process {pid} does not answer: it was started without {VARIABLE} in its environment. \
             Start it so: {VARIABLE}=SIGQUIT PROGRAM, or {VARIABLE}=SIGQUIT sleave run -- PROGRAM"
        ))
    })?;
    let status = fs::read_to_string(about("status")).map_err(failed)?;
    if !catches(&status, signal) {
        return Err(no(format!(
            "process {pid} does not answer to {name} (yet, or any more): it would end it. Its runtime answers from its start on, \
             unless the program handles the signal otherwise"
        )));
    }
    // SAFETY: kill(2) of two numbers.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    match fs::read_link(about("fd/2")) {
        Ok(place) => println!(
            "process {pid} was asked by {name}; the dump goes to its standard error, {}",
            place.display()
        ),
        Err(_) => {
            println!("process {pid} was asked by {name}; the dump goes to its standard error")
        }
    }
    Ok(())
}

fn no(message: String) -> io::Error {
    io::Error::other(message)
}

/// The signal that the process expects: its name there, and its number.
fn expected(environment: &[u8]) -> Option<(String, i32)> {
    let text = String::from_utf8_lossy(environment);
    let value = text.split('\0').find_map(|one| one.strip_prefix(VARIABLE)?.strip_prefix('='))?;
    Some((value.to_owned(), dump_signal(value)?))
}

/// Whether a process with this status has a handler for the signal.
fn catches(status: &str, signal: i32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_expects_stands_in_its_environment() {
        let environment = b"HOME=/\0SLEAVE_DUMPED=1\0SLEAVE_DUMP=SIGUSR1\0";
        assert_eq!(expected(environment), Some(("SIGUSR1".into(), libc::SIGUSR1)));
        assert_eq!(expected(b"HOME=/\0"), None);
        assert_eq!(expected(b"SLEAVE_DUMP=SIGKILL\0"), None);
    }

    #[test]
    fn what_it_catches_stands_in_its_status() {
        let status = "Name:\tx\nSigIgn:\t0000000000000004\nSigCgt:\t0000000000000200\n";
        assert!(catches(status, libc::SIGUSR1));
        assert!(!catches(status, libc::SIGQUIT));
    }
}
