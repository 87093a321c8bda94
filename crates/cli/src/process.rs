//! What the kernel says of a process: memory, threads, open files, processor time.
//!
//! Memory is what the process has resident (`VmRSS`) *and* its page tables (`VmPTE`): a stack of which one page is
//! touched may need a page of page table besides, and a count that leaves it out flatters large sparse stacks.
//! The kernel's own side of a connection (socket, buffers, thread structures and their kernel stacks) is in
//! neither figure.
//!
//! Processor time is exact although shown in ticks of 10 ms: Linux scales user and system time to the scheduler's
//! own sum of nanoseconds.
//!
//! Sources: proc_pid_status(5), proc_pid_stat(5), proc_pid_fd(5).

use std::time::Duration;
use std::{fs, io};

/// Bytes of memory that a process holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Pages in memory.
    pub resident: u64,
    /// Page tables.
    pub page_tables: u64,
}

impl Memory {
    /// Both together.
    pub fn total(self) -> u64 {
        self.resident + self.page_tables
    }
}

/// The memory of process `pid`.
pub fn memory(pid: u32) -> io::Result<Memory> {
    let status = status(pid)?;
    let bytes = |name| field(&status, name).map(|kibibytes| kibibytes * 1024);
    Ok(Memory { resident: bytes("VmRSS:")?, page_tables: bytes("VmPTE:")? })
}

/// The number of OS threads of process `pid`.
pub fn threads(pid: u32) -> io::Result<u64> {
    field(&status(pid)?, "Threads:")
}

/// The number of open files of process `pid`, which must be one of this user.
pub fn open_files(pid: u32) -> io::Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
}

/// User and system time that process `pid` has used, all its threads together.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // Counted from the third field: utime is the fourteenth, stime the fifteenth.
    let mut times = after_name.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    let (Some(Ok(user)), Some(Ok(system))) = (times.next(), times.next()) else {
        return Err(io::Error::other("unexpected form of /proc/PID/stat"));
    };
    // SAFETY: sysconf(3) has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let per_second = u64::try_from(per_second).ok().filter(|&ticks| ticks > 0).unwrap_or(100);
    Ok(Duration::from_nanos((user + system) * (1_000_000_000 / per_second)))
}

fn status(pid: u32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/status"))
}

/// The number that stands behind `name` in the text of a status file.
pub fn field(status: &str, name: &str) -> io::Result<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no {name} in /proc/PID/status")))
}

#[cfg(test)]
mod tests {
    use super::{cpu_time, memory, threads};
    use std::hint::black_box;
    use std::time::Duration;

    #[test]
    fn touched_memory_shows() {
        let before = memory(std::process::id()).unwrap();
        let block = black_box(vec![1_u8; 64 << 20]);
        let after = memory(std::process::id()).unwrap();
        let grown = after.total().saturating_sub(before.total());
        assert!(grown >= 60 << 20, "{grown} bytes after touching {}", block.len());
    }

    #[test]
    fn a_thread_more_is_counted() {
        // Other tests of this process run beside; so the number is only bounded from below.
        let barrier = std::sync::Barrier::new(9);
        let seen = std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| barrier.wait());
            }
            let seen = threads(std::process::id());
            barrier.wait();
            seen
        });
        assert!(seen.unwrap() >= 9);
    }

    #[test]
    fn work_uses_processor_time() {
        let before = cpu_time(std::process::id()).unwrap();
        let wanted = before + Duration::from_millis(50);
        let mut rounds = 0_u64;
        while cpu_time(std::process::id()).unwrap() < wanted {
            rounds = black_box(rounds + 1);
        }
        assert!(rounds > 0);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(memory(u32::MAX).is_err());
    }
}
