//! Timeouts by default: when a wait that states no time of its own gives up.
//!
//! A socket may carry a timeout, `poll` is given one, `connect` is ended by the kernel after some
//! two minutes; a plain `read` waits for ever. For calls that say nothing each fiber has two
//! numbers: **wait**, for what waits for a descriptor, and **connect**.
//!
//! ```text
//!   RuntimeBuilder ─▶ core ─────┐ where the builder is told nothing
//!                               ▼
//!   Builder ──────────────────▶ task ──▶ control block ──▶ a deadline, when a call first parks
//!                             spawned    started  ▲
//!                                                 set_wait_timeout, set_connect_timeout
//! ```
//!
//! * A core's never change; a fiber's own are changed by that fiber alone, so nothing here needs an
//!   atomic. Nothing is inherited from the fiber that spawns.
//! * They are read once a call, when it first parks, from a cache line that a wait touches anyway. A
//!   call that does not wait pays nothing.
//! * Numbers are nanoseconds, and none is the largest: what does not fit, some 584 years, is none.
//!   Zero is no timeout that anybody can mean (as in `std`'s `set_read_timeout`), and is refused
//!   where it would come into force.
//!
//! Where fibers are OS threads the calls are libc's, which knows nothing of this: a timeout is refused
//! there, rather than silently never over.

use std::io;
use std::time::Duration;

use super::Deadline;
use crate::fiber::{current, space};

/// No timeout.
const NONE: u64 = u64::MAX;

/// What is in force for one fiber, or for those of a runtime that say nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    pub(crate) wait: u64,
    pub(crate) connect: u64,
}

impl Timeouts {
    /// No call is given up.
    pub const NONE: Timeouts = Timeouts { wait: NONE, connect: NONE };
}

/// What a builder was told.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Wishes {
    wait: Option<u64>,
    connect: Option<u64>,
}

impl Wishes {
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) {
        self.wait = Some(nanoseconds(timeout));
    }

    pub(crate) fn connect(&mut self, timeout: Option<Duration>) {
        self.connect = Some(nanoseconds(timeout));
    }

    /// The wishes, and `default` where there is none.
    ///
    /// # Errors
    /// As [`set_wait_timeout`], but that the caller need not be a fiber.
    pub(crate) fn or(self, default: Timeouts) -> io::Result<Timeouts> {
        let checked = |wish: Option<u64>, default| wish.map_or(Ok(default), check);
        let wait = checked(self.wait, default.wait)?;
        Ok(Timeouts { wait, connect: checked(self.connect, default.connect)? })
    }
}

/// Zero stays zero, for [`check`] to refuse.
fn nanoseconds(timeout: Option<Duration>) -> u64 {
    timeout.map_or(NONE, |timeout| timeout.as_nanos().try_into().unwrap_or(NONE))
}

/// Whether a fiber can have such a timeout here.
fn check(nanoseconds: u64) -> io::Result<u64> {
    match nanoseconds {
        0 => Err(io::Error::new(io::ErrorKind::InvalidInput, "a timeout of zero")),
        NONE => Ok(NONE),
        _ => match space() {
            Ok(_) => Ok(nanoseconds),
            Err(why) => Err(io::Error::new(io::ErrorKind::Unsupported, why.to_string())),
        },
    }
}

/// Limits how long a call of this fiber waits for a descriptor, if it states no time of its own;
/// returns the limit that was. `None`: for ever, which is the default.
///
/// The calling fiber alone is concerned, and waits that begin after this. It begins with what its
/// [`Builder`](crate::Builder::wait_timeout) was told, else its
/// [`RuntimeBuilder`](crate::RuntimeBuilder::wait_timeout), whoever spawned it. `Duration`s above 584
/// years are as good as `None`.
///
/// # What it limits
///
/// * Reading, writing, receiving, sending and accepting, on any descriptor in blocking mode but
///   sockets that have a timeout of their own (`set_read_timeout`, `set_write_timeout`). What happens
///   when the time is over is what happens with such a timeout, `SO_RCVTIMEO` or `SO_SNDTIMEO`
///   of socket(7): [`WouldBlock`](io::ErrorKind::WouldBlock), or, if a part has been transferred,
///   success with that part. The time counts from when the call begins to wait, and, as in the
///   kernel, anew for each piece that a Unix stream queues.
/// * [`event::wait_any`](crate::event::wait_any) without a timeout: nothing is ready.
///
/// It does not limit what says how long it means to wait, if only by `-1`, or by its nature: `poll`,
/// sleeping, locks, channels, `park`, joining. Nor connecting, which has
/// [a limit of its own](set_connect_timeout).
///
/// Calls that the interposed C library does not park are not limited either: those made with
/// interposition [off](crate::interpose::set), or by a program without that library.
///
/// # Errors
/// `InvalidInput` for zero; `Unsupported` if the caller is no fiber or fibers are OS threads here
/// ([`identity`](fn@crate::identity)). `None` is no error anywhere.
///
/// # Examples
///
/// ```
/// # if sleave_runtime::identity().is_err() { return Ok(()) }
/// use std::os::fd::AsFd;
/// use std::time::Duration;
///
/// use sleave_runtime::event::{Direction, wait_any};
/// use sleave_runtime::set_wait_timeout;
///
/// sleave_runtime::run(|| {
///     let (reader, _writer) = std::io::pipe()?;
///     assert_eq!(set_wait_timeout(Duration::from_millis(5))?, None);
///     assert!(wait_any(&[(reader.as_fd(), Direction::Read)], None)?.is_empty());
///     assert_eq!(set_wait_timeout(None)?, Some(Duration::from_millis(5)));
///     Ok::<(), std::io::Error>(())
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn set_wait_timeout(timeout: impl Into<Option<Duration>>) -> io::Result<Option<Duration>> {
    set(timeout.into(), |timeouts| &mut timeouts.wait)
}

/// Limits how long a `connect` of this fiber may take, if its socket has no `SO_SNDTIMEO`; returns the
/// limit that was. `None`: as long as the kernel tries, some two minutes. That is the default.
///
/// When the time is over, `connect` fails with `ETIMEDOUT`
/// ([`TimedOut`](io::ErrorKind::TimedOut)) as when the kernel gives up, and leaves the socket as the
/// kernel does: the attempt is over, and another `connect` of the same socket begins a new one. (A
/// socket's own timeout is something else: it ends with `EINPROGRESS`, and the attempt goes on.)
///
/// Concerned are connections of TCP sockets in blocking mode that this process has made and shares
/// with nobody; others never wait, or wait in the kernel and block the worker. For whom it holds,
/// and from when on, is as for [`set_wait_timeout`].
///
/// # Errors
/// As [`set_wait_timeout`].
///
/// # Examples
///
/// ```
/// # if sleave_runtime::identity().is_err() { return Ok(()) }
/// use std::time::Duration;
///
/// use sleave_runtime::set_connect_timeout;
///
/// sleave_runtime::run(|| {
///     // A second for what follows, then what there was.
///     let before = set_connect_timeout(Duration::from_secs(1))?;
///     assert_eq!(set_connect_timeout(before)?, Some(Duration::from_secs(1)));
///     Ok::<(), std::io::Error>(())
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn set_connect_timeout(timeout: impl Into<Option<Duration>>) -> io::Result<Option<Duration>> {
    set(timeout.into(), |timeouts| &mut timeouts.connect)
}

fn set(
    timeout: Option<Duration>,
    which: fn(&mut Timeouts) -> &mut u64,
) -> io::Result<Option<Duration>> {
    let new = check(nanoseconds(timeout))?;
    let Some(control) = current() else {
        return match new {
            NONE => Ok(None),
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "the caller is no fiber")),
        };
    };
    // SAFETY: the caller's own control block.
    let own = unsafe { &control.as_ref().timeouts };
    let mut timeouts = own.get();
    let before = std::mem::replace(which(&mut timeouts), new);
    own.set(timeouts);
    Ok((before != NONE).then(|| Duration::from_nanos(before)))
}

/// When a wait of the caller for a descriptor, one that begins now and states no time of its own,
/// gives up. Never on a thread that is no fiber.
pub fn default_deadline() -> Deadline {
    deadline(|timeouts| timeouts.wait)
}

/// The same for a `connect`.
pub fn connect_deadline() -> Deadline {
    deadline(|timeouts| timeouts.connect)
}

fn deadline(which: fn(Timeouts) -> u64) -> Deadline {
    // SAFETY: the caller's own control block.
    match current().map_or(NONE, |control| which(unsafe { control.as_ref() }.timeouts.get())) {
        // Without asking for the time.
        NONE => Deadline::NEVER,
        nanoseconds => Deadline::after(nanoseconds),
    }
}
