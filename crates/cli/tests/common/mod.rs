//! The built tool as a child process, with every wait bounded.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// Far beyond what a loaded machine needs: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);

/// The tool with `arguments`.
pub fn sleave(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sleave"));
    command.args(arguments);
    command
}

/// A started tool; killed when a test fails half way.
pub struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Running {
    /// Starts `command`.
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the tool");
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// The next line of standard output.
    pub fn line(&self) -> String {
        self.stdout.recv_timeout(PATIENCE).expect("a line of output in time")
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: kill(2) has no preconditions; the child is not reaped, so the number is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Waits for the end; returns the exit status and the rest of both outputs.
    pub fn finish(mut self) -> (ExitStatus, String, String) {
        // Both pipes end when the process does.
        let stdout = rest(&self.stdout);
        let stderr = rest(&self.stderr);
        (self.child.wait().expect("wait for the tool"), stdout, stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended already, which is the ordinary case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end.
pub fn run(command: Command) -> Output {
    let (status, stdout, stderr) = Running::start(command).finish();
    Output { status, stdout: stdout.into_bytes(), stderr: stderr.into_bytes() }
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn rest(lines: &Receiver<String>) -> String {
    let mut all = String::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                all.push_str(&line);
                all.push('\n');
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return all,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                panic!("the tool hangs after: {all}")
            }
        }
    }
}
