//! Many fibers on many pipes: read, write, polled, timed out, closed and opened again under the
//! same numbers, on four workers. Nobody may be forgotten and no byte lost.
//!
//! The C library is not interposed here, so the fibers speak the protocol of the reactor's essay
//! themselves: `attempt`, try, `leave`, else `wait`.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use syscalls::{Errno, Sysno, syscall};

use super::*;
use crate::wait::{Deadline, sleep_until};
use crate::{JoinHandle, Runtime, kernel, spawn, yield_now};

/// Pipes at a time, and one after the other.
const LANES: u64 = 48;
const ROUNDS: u64 = 250;
/// Fibers that read one pipe.
const READERS: u64 = 3;

/// A generator of numbers, the same ones in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        // Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    /// Lets others go first, in one way or another.
    fn pause(&mut self) {
        match self.below(8) {
            0 => sleep_until(Deadline::after(self.below(1_500_000))),
            1..4 => yield_now(),
            _ => {}
        }
    }

    /// Never, or soon.
    fn deadline(&mut self) -> Deadline {
        match self.below(3) {
            0 => Deadline::after(self.below(1_000_000)),
            _ => Deadline::NEVER,
        }
    }
}

/// One end of a pipe, which may be closed while it is used. A try and `close` exclude each other,
/// so that none meets the next pipe of the same number.
struct End {
    fd: RawFd,
    direction: Direction,
    open: Mutex<bool>,
}

impl End {
    fn close(&self) {
        let mut open = self.open.lock().unwrap();
        if std::mem::replace(&mut *open, false) {
            close(self.fd, || {
                kernel::close(self.fd);
                0
            });
        }
    }

    /// One try of `call` with `len` bytes; `None` if the end has been closed.
    fn attempt(&self, call: Sysno, len: usize) -> Option<Result<usize, Errno>> {
        let mut bytes = vec![0u8; len];
        let open = self.open.lock().unwrap();
        if !*open {
            drop(open);
            // Its wait may have been one for the next pipe of this number, and the wake meant
            // for somebody else.
            leave(self.fd, self.direction, true);
            return None;
        }
        attempt(self.fd, self.direction);
        // SAFETY: read(2) or write(2) on bytes of ours.
        let result = unsafe { syscall!(call, self.fd, bytes.as_mut_ptr(), len) };
        if result != Err(Errno::EAGAIN) {
            let full = result == Ok(len) || result == Ok(0) || result.is_err();
            leave(self.fd, self.direction, full || hung_up(self.fd));
        }
        Some(result)
    }

    /// Waits, by one call or the other.
    fn wait(&self, dice: &mut Dice) {
        if dice.below(4) == 0 {
            let events = match self.direction {
                Direction::Read => libc::POLLIN,
                Direction::Write => libc::POLLOUT,
            };
            poll(&mut [libc::pollfd { fd: self.fd, events, revents: 0 }], dice.deadline(), || None);
        } else {
            wait(self.fd, self.direction, dice.deadline());
        }
    }

    /// Moves bytes until there is an end of it or `limit` is reached; how many.
    fn transfer(&self, call: Sysno, limit: usize, dice: &mut Dice) -> usize {
        let (mut total, mut waited) = (0, false);
        while total < limit {
            let len = (1 + dice.below(6000) as usize).min(limit - total);
            // Only before the first try: who has waited must try, for the wait took the readiness.
            if !waited && self.direction == Direction::Read && drained(self.fd, self.direction) {
                self.wait(dice);
            }
            waited = false;
            match self.attempt(call, len) {
                Some(Ok(0)) | None => break,
                Some(Ok(count)) => total += count,
                Some(Err(Errno::EAGAIN)) => {
                    self.wait(dice);
                    waited = true;
                }
                Some(Err(Errno::EPIPE)) => break,
                Some(Err(e)) => panic!("{call:?}: {e}"),
            }
            dice.pause();
        }
        total
    }
}

fn open_pipe() -> [Arc<End>; 2] {
    let mut ends: [RawFd; 2] = [-1; 2];
    // SAFETY: pipe2(2) writes two numbers; fcntl(2) makes the pipe as small as it can be.
    unsafe {
        syscall!(Sysno::pipe2, ends.as_mut_ptr(), libc::O_NONBLOCK).unwrap();
        syscall!(Sysno::fcntl, ends[1], libc::F_SETPIPE_SZ, 4096).unwrap();
    }
    let [read, write] = ends;
    [(read, Direction::Read), (write, Direction::Write)].map(|(fd, direction)| {
        opened(fd);
        Arc::new(End { fd, direction, open: Mutex::new(true) })
    })
}

/// Life of one pipe.
fn round(mut dice: Dice) {
    let [read, write] = open_pipe();
    let amount = 1 + dice.below(30_000) as usize;
    let cut = dice.below(3) == 0;
    let received = Arc::new(AtomicUsize::new(0));
    let readers: Vec<JoinHandle<()>> = (0..READERS)
        .map(|_| {
            let (read, received, mut dice) =
                (read.clone(), received.clone(), Dice(dice.below(u64::MAX)));
            spawn(move || {
                let count = read.transfer(Sysno::read, usize::MAX, &mut dice);
                received.fetch_add(count, Ordering::Relaxed);
            })
        })
        .collect();
    let writer = spawn({
        let (write, mut dice) = (write.clone(), Dice(dice.below(u64::MAX)));
        move || {
            let sent = write.transfer(Sysno::write, amount, &mut dice);
            dice.pause();
            write.close();
            sent
        }
    });
    if cut {
        // While they read, write and wait.
        sleep_until(Deadline::after(dice.below(3_000_000)));
        read.close();
    }
    let sent = writer.join().unwrap();
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    if !cut {
        assert_eq!(sent, amount);
        assert_eq!(received.load(Ordering::Relaxed), amount);
        read.close();
    }
}

#[test]
fn no_fiber_is_forgotten_and_no_byte_is_lost() {
    let _turn = turn();
    // Writing to a pipe that nobody reads shall be an error, as Rust programs have it.
    // SAFETY: signal(2), before the fibers exist.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let runtime = Runtime::builder().workers(4).build().unwrap();
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| {
            runtime.spawn(move || {
                for number in 0..ROUNDS {
                    round(Dice(lane << 32 | number));
                }
            })
        })
        .collect();
    let begin = Instant::now();
    while !lanes.iter().all(JoinHandle::is_finished) {
        let waiting = lanes.iter().filter(|lane| !lane.is_finished()).count();
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{waiting} of {LANES} lanes wait for ever: {:?}",
            runtime.statistics()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    lanes.into_iter().for_each(|lane| lane.join().unwrap());
    runtime.stop();
}
