//! The built tool as a child process, with every wait bounded.

use std::borrow::BorrowMut;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use std::{fs, thread};

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
    pub fn start(command: impl BorrowMut<Command>) -> Self {
        Self::start_on(command, Stdio::null())
    }

    /// Starts `command`, whose standard input stays open until the end.
    pub fn start_with_input(command: impl BorrowMut<Command>) -> Self {
        Self::start_on(command, Stdio::piped())
    }

    fn start_on(mut command: impl BorrowMut<Command>, input: Stdio) -> Self {
        let mut child = command
            .borrow_mut()
            .stdin(input)
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

    /// The next line of standard error that contains `words`.
    pub fn complaint(&self, words: &str) -> String {
        let mut before = Vec::new();
        loop {
            let Ok(line) = self.stderr.recv_timeout(PATIENCE) else {
                panic!("no line with `{words}` in time, but {before:?}");
            };
            if line.contains(words) {
                return line;
            }
            before.push(line);
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: i32) {
        kill(self.child.id(), signal);
    }

    /// The processes that it has started and not waited for.
    pub fn children(&self) -> Vec<u32> {
        let processes = fs::read_dir("/proc").expect("read /proc");
        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| stat(pid).is_some_and(|(_, parent)| parent == self.child.id()))
            .collect()
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

/// Sends `signal` to a process that the caller knows to be there.
pub fn kill(pid: u32, signal: i32) {
    // SAFETY: kill(2) has no preconditions. The process is not reaped, so the number is its own.
    assert_eq!(unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) }, 0);
}

/// Waits until `pid` has ended. Whether its parent has waited for it does not matter.
pub fn wait_for_the_end(pid: u32) {
    let begin = Instant::now();
    while stat(pid).is_some_and(|(state, _)| state != 'Z') {
        assert!(begin.elapsed() < PATIENCE, "process {pid} lives on");
        thread::yield_now();
    }
}

/// State and parent of a process, if there is one of that number. Source: proc_pid_stat(5).
pub fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Runs `command` to its end.
pub fn run(command: impl BorrowMut<Command>) -> Output {
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
