//! Waiting for several descriptors at once: poll(2) for a fiber.
//!
//! The fiber queues at every descriptor, as one who only looks, and whichever has an event
//! first wakes it. What is ready is then asked of the kernel, whose answer is right whatever
//! the events were.
//!
//! One look before waiting is enough: readiness that was cached is forgotten before it
//! ([`attempt`]), so an event that comes between the look and the wait is found in the flag. And if
//! every descriptor is known to be drained, not even that look is needed.
//!
//! Whoever waits does so for the description that the number named when the call began. If that is
//! closed meanwhile the answer is `POLLNVAL`, whatever the number names by then: a fiber that queued
//! at its successor leaves before it parks, or is woken by the close.
//!
//! [`watch`] is the same for a caller who has a look of his own, select(2): his look comes after the
//! fiber has queued, so whatever happens later wakes it. It needs no flags, and changes none.

use std::os::fd::RawFd;

use super::descriptor::{Direction, Joined};
use super::queue::Waiter;
use super::table::{attempt, drained, driver, generation, join, leave, part};
use crate::inspect::Awaited;
use crate::kernel;
use crate::trace::{self, Why};
use crate::wait::{Deadline, Reason, Wait, interrupt};

/// One queue that the fiber stands in.
struct Place {
    fd: RawFd,
    direction: Direction,
    /// Of the number, when the call began.
    generation: u32,
    waiter: Option<Waiter>,
}

/// Descriptors that are waited for without allocating.
const FEW: usize = 2;

/// Nanoseconds after which what epoll does not watch is looked at again.
const LOOK_AGAIN: u64 = 1_000_000;

impl Place {
    /// Of a number that no descriptor has.
    const NOWHERE: Place =
        Place { fd: -1, direction: Direction::Read, generation: 0, waiter: None };

    fn new(fd: RawFd, direction: Direction) -> Place {
        Place { fd, direction, generation: generation(fd), waiter: None }
    }

    /// Whether what is waited for has been closed.
    fn is_gone(&self) -> bool {
        self.generation != generation(self.fd)
    }
}

/// What a descriptor must be asked for so that the answer "no" proves a direction drained.
const fn proof(direction: Direction) -> i16 {
    match direction {
        Direction::Read => libc::POLLIN,
        Direction::Write => libc::POLLOUT,
    }
}

const WRITING: i16 = libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND;

/// The directions whose events `pollfd` may be waiting for.
fn directions(pollfd: &libc::pollfd) -> impl Iterator<Item = Direction> + use<> {
    let (fd, events) = (pollfd.fd, pollfd.events);
    Direction::BOTH.into_iter().filter(move |direction| {
        let asked = match direction {
            // Errors and hang-ups are reported even if nothing is asked for.
            Direction::Read => events & !WRITING != 0 || events == 0,
            Direction::Write => events & WRITING != 0,
        };
        fd >= 0 && asked
    })
}

/// poll(2) for the calling fiber: parks it until one of `fds` is ready or `deadline` passes.
/// Returns how many are ready, or the negated error number. If the fiber is interrupted, `interrupted` says whether that ends the
/// call, and with which error.
///
/// # Panics
/// If the caller is not a fiber.
pub fn poll(
    fds: &mut [libc::pollfd],
    deadline: Deadline,
    interrupted: fn() -> Option<isize>,
) -> isize {
    let mut places = fds.iter().flat_map(|p| directions(p).map(|d| Place::new(p.fd, d)));
    if fds.len() <= FEW {
        let mut few: [Place; 2 * FEW] =
            std::array::from_fn(|_| places.next().unwrap_or(Place::NOWHERE));
        drop(places);
        poll_at(fds, &mut few, deadline, interrupted)
    } else {
        let mut many: Vec<Place> = places.collect();
        poll_at(fds, &mut many, deadline, interrupted)
    }
}

/// As [`poll`], with the places of `fds`.
fn poll_at(
    fds: &mut [libc::pollfd],
    places: &mut [Place],
    deadline: Deadline,
    interrupted: fn() -> Option<isize>,
) -> isize {
    // Only what proves a direction drained lets the flags stand for a look.
    let provable = fds.iter().all(|pollfd| {
        directions(pollfd).all(|d| pollfd.events & proof(d) != 0)
            && pollfd.events & !(libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP) == 0
    });
    let known = |places: &[Place]| {
        let open = places.iter().filter(|place| place.fd >= 0);
        provable && open.into_iter().all(|p| drained(p.fd, p.direction) && !p.is_gone())
    };
    loop {
        if !known(places) || deadline.passed() {
            match look(fds, places) {
                0 if !deadline.passed() => {}
                answer => return answer,
            }
        }
        let mut look = || kernel::poll_now(fds).is_ok_and(|count| count > 0);
        if wait_once(places, deadline, provable, &mut look)
            && let Some(error) = interrupted()
        {
            return error;
        }
    }
}

/// How a [`watch`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watched<T> {
    /// The look had this answer.
    Seen(T),
    /// The deadline came first.
    TimedOut,
    /// One of the descriptors was closed.
    Closed,
    /// The caller was interrupted, which has ended the wait with this error.
    Interrupted(isize),
}

/// Parks the calling fiber until `look` has an answer, which it is asked for after each event of
/// one of `interests`, or `deadline` passes. It may be asked more often. `interrupted` as for [`poll`].
///
/// # Panics
/// If the caller is not a fiber.
pub fn watch<T>(
    interests: &[(RawFd, Direction)],
    deadline: Deadline,
    interrupted: fn() -> Option<isize>,
    mut look: impl FnMut() -> Option<T>,
) -> Watched<T> {
    let mut places: Vec<Place> = interests.iter().map(|&(fd, d)| Place::new(fd, d)).collect();
    loop {
        let mut seen = None;
        let broken = wait_once(&mut places, deadline, false, &mut || {
            seen = look();
            seen.is_some()
        });
        if let Some(answer) = seen {
            return Watched::Seen(answer);
        }
        if broken && let Some(error) = interrupted() {
            return Watched::Interrupted(error);
        }
        if places.iter().any(Place::is_gone) {
            return Watched::Closed;
        }
        if deadline.passed() {
            return look().map_or(Watched::TimedOut, Watched::Seen);
        }
    }
}

/// Asks the kernel, and keeps the cached readiness true to the answer.
fn look(fds: &mut [libc::pollfd], places: &[Place]) -> isize {
    let proved = |pollfd: &libc::pollfd, d| pollfd.events & proof(d) != 0;
    for pollfd in fds.iter() {
        directions(pollfd).filter(|&d| proved(pollfd, d)).for_each(|d| attempt(pollfd.fd, d));
    }
    let mut answer = match kernel::poll_now(fds) {
        Ok(count) => count as isize,
        Err(e) => -(e.into_raw() as isize),
    };
    if answer != 0 {
        for pollfd in fds.iter().filter(|pollfd| answer < 0 || pollfd.revents != 0) {
            directions(pollfd).for_each(|d| leave(pollfd.fd, d, true));
        }
    }
    // What the kernel has said of a number's next description is not the answer.
    if answer < 0 {
        return answer;
    }
    for gone in places.iter().filter(|place| place.is_gone()) {
        for pollfd in fds.iter_mut().filter(|pollfd| pollfd.fd == gone.fd) {
            answer += isize::from(pollfd.revents == 0);
            pollfd.revents = libc::POLLNVAL;
        }
    }
    answer
}

/// What a wait at these places is for.
fn awaited(places: &[Place]) -> Awaited {
    let mut open = places.iter().filter(|place| place.fd >= 0);
    match (open.next(), open.count()) {
        (None, _) => Awaited::Time,
        (Some(Place { fd, direction: Direction::Read, .. }), 0) => Awaited::Readable(*fd),
        (Some(Place { fd, direction: Direction::Write, .. }), 0) => Awaited::Writable(*fd),
        (_, others) => Awaited::AnyOf(others + 1),
    }
}

/// Waits once: joins all queues and parks, unless something turns out to be ready: by its flag if
/// that is a proof, else by a `look`. Whether the caller was interrupted, and has attended to that.
fn wait_once(
    places: &mut [Place],
    deadline: Deadline,
    provable: bool,
    look: &mut dyn FnMut() -> bool,
) -> bool {
    let driver = driver();
    let wait = Wait::prepare();
    let mut until = deadline;
    let mut ready = false;
    for place in places.iter_mut().filter(|place| place.fd >= 0) {
        place.waiter = Some(Waiter::new(wait.control(), true));
    }
    for place in places.iter() {
        let Some(waiter) = &place.waiter else { continue };
        // SAFETY: the places stay where they are until the waiters are released below.
        match unsafe { join(place.fd, place.direction, driver, waiter, provable) } {
            // One who has queued at the present description is woken when that is closed.
            Joined::Waiting if place.is_gone() => {
                ready = true;
                break;
            }
            Joined::Waiting => {}
            Joined::Ready | Joined::Closed => {
                ready = true;
                break;
            }
            // Neither watched by epoll nor ready, as the look has said: look now and then.
            Joined::Unpollable => until = until.min(Deadline::after(LOOK_AGAIN)),
        }
    }
    let reason = if ready || (!provable && look()) {
        wait.abandon();
        Reason::Woken
    } else {
        let _why = trace::because(Why::Descriptor);
        wait.commit(awaited(places), until)
    };
    for place in places.iter() {
        if let Some(waiter) = &place.waiter {
            part(place.fd, place.direction, waiter);
        }
    }
    interrupt::attended(reason) == Reason::Interrupted
}
