//! A server in a process of its own: start, find its address, stop, never leave it behind.
//!
//! The protocol is that of any of the echo servers here: the program prints `listening on ADDR` as a line of its standard
//! output, serves until SIGINT, and exits with 0. The end of its standard output is the sign that it ends.
//!
//! It dies with us in any case: by `Drop` when we return early, by the parent-death signal when we are killed.
//!
//! Sources: PR_SET_PDEATHSIG(2const), kill(2).

use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a server may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server.
pub struct Server {
    child: Child,
    address: SocketAddr,
    output: Receiver<String>,
    complaints: Receiver<String>,
}

/// How a server ended.
pub struct LastWords {
    /// Its exit code, or the signal that ended it.
    pub status: ExitStatus,
    /// What it had still said on standard error.
    pub complaints: Vec<String>,
}

impl Server {
    /// Starts `command` and waits for its address.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only async-signal-safe calls are allowed (fork(2)); prctl is a bare
        // system call, and the closure neither allocates nor takes locks.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut child = command.spawn()?;
        let output = lines(child.stdout.take());
        let complaints = lines(child.stderr.take());
        // From here on `Drop` ends the child whatever happens.
        let mut server = Self { child, address: SocketAddr::from(([0; 4], 0)), output, complaints };
        let address = match server.output.recv_timeout(PATIENCE) {
            Ok(line) => {
                line.strip_prefix("listening on ").and_then(|address| address.trim().parse().ok())
            }
            Err(_) => None,
        };
        match address {
            Some(address) => server.address = address,
            None => {
                let said = server.complaints().join("; ");
                return Err(io::Error::other(format!("the server did not start: {said}")));
            }
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on standard error since the last call.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints.try_iter().collect()
    }

    /// Asks it to stop as Ctrl-C would, and waits until it has.
    pub fn stop(mut self) -> io::Result<LastWords> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        // SAFETY: kill(2) has no preconditions; the child is not reaped yet, so the number is still its own.
        if unsafe { libc::kill(pid, libc::SIGINT) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    // Its standard error has ended, too, so this takes the rest and does not hang.
                    return Ok(LastWords { status, complaints: self.complaints.iter().collect() });
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(io::Error::other(format!(
                        "the server did not stop within {} s",
                        PATIENCE.as_secs()
                    )));
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has been waited for already, which is the ordinary way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a pipe as they come. The thread ends with the pipe.
fn lines(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let Some(pipe) = pipe else { return };
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
