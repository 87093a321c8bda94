//! Child processes: start, hear, tell, end; never leave one behind.
//!
//! Any number of children and one thread: a single poll(2) over their standard outputs, their standard errors
//! and, where asked for, the signals of this process.
//!
//! ```text
//!   this process                               child 0, 1, 2 …
//!   ────────────                               ───────────────
//!   next() ◀── Line, Complaint ◀── pipes ◀──   standard output, standard error
//!          ◀── Ended  (both pipes have ended, then waitpid)
//!          ◀── Signal (SIGINT, SIGTERM of this process, by signalfd)
//!   tell() ──────────────────────▶ pipe ──▶    standard input
//! ```
//!
//! A child ends with us on every path. On an early return by `Drop`. When we are killed by the parent-death signal; that one
//! is lost if we die between fork and its request, so the child looks whether its parent is still the same. A
//! Ctrl-C on the terminal goes to every process of the foreground group: each child has a group of its
//! own, so that it hears of it once, from us.
//!
//! Sources: PR_SET_PDEATHSIG(2const), setpgid(2), signalfd(2), poll(2), kill(2).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Instant;

/// What has happened. Children are numbered in the order of their start.
#[derive(Debug)]
pub enum Event {
    /// A line of a child's standard output.
    Line {
        /// Which.
        child: usize,
        /// The line, without its end.
        text: String,
    },
    /// A line of a child's standard error.
    Complaint {
        /// Which.
        child: usize,
        /// The line, without its end.
        text: String,
    },
    /// A child has ended; nothing more comes from it.
    Ended {
        /// Which.
        child: usize,
        /// Its exit code, or the signal that ended it.
        status: ExitStatus,
    },
    /// SIGINT or SIGTERM has come to this process.
    Signal,
}

/// The children of this process.
#[derive(Default)]
pub struct Children {
    members: Vec<Member>,
    signals: Option<OwnedFd>,
    pending: VecDeque<Event>,
}

struct Member {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines,
    complaints: Lines,
    /// Waited for: until then the process id is its own.
    reaped: bool,
    /// Its end has been returned as an event.
    gone: bool,
}

impl Children {
    /// No children yet. Signals do to this process what they always do.
    pub fn new() -> Self {
        Self::default()
    }

    /// No children yet. From now on SIGINT and SIGTERM are events. To be called while the process has one thread.
    pub fn with_signals() -> io::Result<Self> {
        // SAFETY: sigset_t is a C struct for which all bytes zero is a value; sigemptyset(3) sets it anyway.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: these calls read and write the set alone; signalfd(2) makes a new descriptor, which is nobody
        // else's. Blocking comes first, so that no signal falls between.
        let signals = unsafe {
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) {
                -1 => return Err(io::Error::last_os_error()),
                descriptor => OwnedFd::from_raw_fd(descriptor),
            }
        };
        let mut children = Self::new();
        children.signals = Some(signals);
        Ok(children)
    }

    /// Starts `command` and returns the child's number.
    pub fn start(&mut self, command: &mut Command) -> io::Result<usize> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        // SAFETY: getpid(2) has no preconditions.
        let parent = unsafe { libc::getpid() };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed (signal-safety(7)): prctl and getppid
        // are bare system calls, sigemptyset and sigprocmask are on the list; nothing allocates or takes locks.
        unsafe {
            command.pre_exec(move || {
                let mut none: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut none);
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0
                    || libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
                        != 0
                {
                    return Err(io::Error::last_os_error());
                }
                if libc::getppid() != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        let input = child.stdin.take();
        let output = Lines::of(child.stdout.take().map(OwnedFd::from));
        let complaints = Lines::of(child.stderr.take().map(OwnedFd::from));
        self.members.push(Member { child, input, output, complaints, reaped: false, gone: false });
        Ok(self.members.len() - 1)
    }

    /// How many have not ended, as far as [`Children::next`] has told.
    pub fn running(&self) -> usize {
        self.members.iter().filter(|member| !member.gone).count()
    }

    /// Whether `child` has not ended, as far as [`Children::next`] has told.
    pub fn is_running(&self, child: usize) -> bool {
        !self.members[child].gone
    }

    /// The process id of `child`; another process may have it once the child has ended.
    pub fn pid(&self, child: usize) -> u32 {
        self.members[child].child.id()
    }

    /// Sends `signal` to `child`, if it has not ended.
    pub fn signal(&self, child: usize, signal: libc::c_int) {
        let member = &self.members[child];
        if !member.reaped
            && let Ok(pid) = libc::pid_t::try_from(member.child.id())
        {
            // SAFETY: kill(2) has no preconditions; the child is not reaped, so the number is its own. It
            // fails only where the child is about to end by itself, and then that is what comes next.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Writes a line to the standard input of `child`.
    pub fn tell(&mut self, child: usize, line: &str) -> io::Result<()> {
        match &mut self.members[child].input {
            Some(input) => writeln!(input, "{line}"),
            None => Err(ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends the standard input of `child`.
    pub fn tell_no_more(&mut self, child: usize) {
        self.members[child].input = None;
    }

    /// The next event; `None` if there is none until `deadline`. One that has come already is
    /// returned even when `deadline` has passed.
    pub fn next(&mut self, deadline: Instant) -> io::Result<Option<Event>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                if let Event::Ended { child, .. } = event {
                    self.members[child].gone = true;
                }
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, or the last millisecond would be spent in a loop.
            let milliseconds = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            self.look(milliseconds)?;
            if self.pending.is_empty() && left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// Waits once, and turns whatever is there into events.
    fn look(&mut self, milliseconds: i32) -> io::Result<()> {
        // poll(2) ignores an entry with a negative number.
        let interest =
            |descriptor| libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
        let signals = self.signals.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let mut entries = vec![interest(signals)];
        for member in &self.members {
            entries.push(interest(member.output.descriptor()));
            entries.push(interest(member.complaints.descriptor()));
        }
        // SAFETY: poll(2) reads and writes the entries, as many as are given.
        let ready = unsafe {
            libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, milliseconds)
        };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        if entries[0].revents != 0 {
            self.take_signal()?;
        }
        let mut text = Vec::new();
        for (child, pair) in entries[1..].chunks(2).enumerate() {
            let member = &mut self.members[child];
            if pair[0].revents != 0 {
                member.output.read(&mut text)?;
                self.pending.extend(text.drain(..).map(|text| Event::Line { child, text }));
            }
            if pair[1].revents != 0 {
                member.complaints.read(&mut text)?;
                self.pending.extend(text.drain(..).map(|text| Event::Complaint { child, text }));
            }
            if !member.reaped && member.output.ended() && member.complaints.ended() {
                let status = member.child.wait()?;
                member.reaped = true;
                self.pending.push_back(Event::Ended { child, status });
            }
        }
        Ok(())
    }

    fn take_signal(&mut self) -> io::Result<()> {
        let Some(signals) = &self.signals else { return Ok(()) };
        let mut record = [0_u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: read(2) writes at most so many bytes to a place of that size; the descriptor is open.
        match unsafe { libc::read(signals.as_raw_fd(), record.as_mut_ptr().cast(), record.len()) } {
            -1 => Err(io::Error::last_os_error()),
            _ => {
                self.pending.push_back(Event::Signal);
                Ok(())
            }
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        // First all of them, then one by one: they end side by side.
        for member in self.members.iter_mut().filter(|member| !member.reaped) {
            // Fails if it has just ended.
            let _ = member.child.kill();
        }
        for member in self.members.iter_mut().filter(|member| !member.reaped) {
            let _ = member.child.wait();
        }
    }
}

/// A pipe that is read by lines.
struct Lines {
    pipe: Option<File>,
    begun: Vec<u8>,
}

impl Lines {
    fn of(pipe: Option<OwnedFd>) -> Self {
        Self { pipe: pipe.map(File::from), begun: Vec::new() }
    }

    fn descriptor(&self) -> RawFd {
        self.pipe.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    fn ended(&self) -> bool {
        self.pipe.is_none()
    }

    /// Reads once, from a pipe that is ready; a last line need not have an end.
    fn read(&mut self, lines: &mut Vec<String>) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let mut bytes = [0; 4096];
        let count = match pipe.read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        };
        let mut take = |line: &mut Vec<u8>| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            line.clear();
        };
        if count == 0 {
            self.pipe = None;
            if !self.begun.is_empty() {
                take(&mut self.begun);
            }
            return Ok(());
        }
        for &byte in &bytes[..count] {
            match byte {
                b'\n' => take(&mut self.begun),
                byte => self.begun.push(byte),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Children, Event};
    use std::process::Command;
    use std::time::{Duration, Instant};

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn next(children: &mut Children) -> Event {
        let deadline = Instant::now() + Duration::from_secs(60);
        children.next(deadline).unwrap().expect("an event in time")
    }

    #[test]
    fn what_a_child_says_comes_before_its_end() {
        let mut children = Children::new();
        children.start(&mut shell("echo one; echo two >&2; printf three; exit 7")).unwrap();
        let (mut lines, mut complaints) = (Vec::new(), Vec::new());
        let status = loop {
            match next(&mut children) {
                Event::Line { child: 0, text } => lines.push(text),
                Event::Complaint { child: 0, text } => complaints.push(text),
                Event::Ended { child: 0, status } => break status,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((lines, complaints), (vec!["one".into(), "three".into()], vec!["two".into()]));
        assert_eq!((status.code(), children.running()), (Some(7), 0));
        assert!(children.next(Instant::now()).unwrap().is_none());
    }

    #[test]
    fn each_child_hears_what_it_is_told() {
        let mut children = Children::new();
        for _ in 0..3 {
            children.start(&mut shell("while read line; do echo \"$line\"; done")).unwrap();
        }
        for child in [2, 0, 1] {
            children.tell(child, &format!("for {child}")).unwrap();
            match next(&mut children) {
                Event::Line { child: from, text } => {
                    assert_eq!((from, text), (child, format!("for {child}")));
                }
                other => panic!("{other:?}"),
            }
        }
        children.tell_no_more(1);
        assert!(matches!(next(&mut children), Event::Ended { child: 1, .. }));
        assert!(children.tell(1, "anybody there?").is_err());
        assert_eq!(children.running(), 2);
    }

    #[test]
    fn a_signal_ends_one_child_and_the_drop_ends_the_rest() {
        let mut children = Children::new();
        for _ in 0..3 {
            children.start(&mut shell("exec sleep 1000")).unwrap();
        }
        children.signal(1, libc::SIGTERM);
        match next(&mut children) {
            Event::Ended { child: 1, status } => assert_eq!(status.code(), None),
            other => panic!("{other:?}"),
        }
        let pids = [children.pid(0), children.pid(2)];
        drop(children);
        for pid in pids {
            // SAFETY: kill(2) has no preconditions; signal 0 asks whether there is such a process.
            assert_eq!(unsafe { libc::kill(i32::try_from(pid).unwrap(), 0) }, -1, "{pid} lives");
        }
    }

    #[test]
    fn a_child_counts_as_running_until_its_end_is_heard() {
        let mut children = Children::new();
        for _ in 0..20 {
            children.start(&mut shell("echo a line; exit 3")).unwrap();
        }
        let (mut lines, mut ends) = (0, 0);
        while children.running() > 0 {
            match next(&mut children) {
                Event::Line { .. } => lines += 1,
                Event::Ended { status, .. } => ends += i32::from(status.code() == Some(3)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((lines, ends), (20, 20));
    }

    #[test]
    fn nothing_to_hear_ends_at_the_deadline() {
        let mut children = Children::new();
        children.start(&mut shell("exec sleep 1000")).unwrap();
        let begin = Instant::now();
        assert!(children.next(begin + Duration::from_millis(50)).unwrap().is_none());
        assert!(begin.elapsed() >= Duration::from_millis(50));
    }
}
