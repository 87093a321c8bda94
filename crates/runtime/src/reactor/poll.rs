//! Waiting for several descriptors at once: poll(2) for a fiber.
//!
//! The fiber queues at every descriptor, as one who only looks, and whichever has an event
//! first wakes it. What is ready is then asked of the kernel, whose answer is right whatever
//! the events were.
//!
//! One look before waiting is enough: readiness that was cached is forgotten before it
//! ([`attempt`]), so an event that comes between the look and the wait is found in the flag. And if
//! every descriptor is known to be drained, not even that look is needed.

use std::os::fd::RawFd;

use super::descriptor::{Direction, Joined, Waiter, attempt, drained, driver, join, leave, part};
use crate::kernel;
use crate::wait::{Deadline, Wait};

/// One queue that the fiber stands in.
struct Place {
    fd: RawFd,
    direction: Direction,
    waiter: Option<Waiter>,
}

/// Descriptors that are waited for without allocating.
const FEW: usize = 2;

/// Nanoseconds after which what epoll does not watch is looked at again.
const LOOK_AGAIN: u64 = 1_000_000;

impl Place {
    /// Of a number that no descriptor has.
    const NOWHERE: Place = Place { fd: -1, direction: Direction::Read, waiter: None };

    fn new(fd: RawFd, direction: Direction) -> Place {
        Place { fd, direction, waiter: None }
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
/// Returns how many are ready, or the negated error number.
///
/// # Panics
/// If the caller is not a fiber.
pub fn poll(fds: &mut [libc::pollfd], deadline: Deadline) -> isize {
    // Only what proves a direction drained lets the flags stand for a look.
    let provable = fds.iter().all(|pollfd| {
        directions(pollfd).all(|d| pollfd.events & proof(d) != 0)
            && pollfd.events & !(libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP) == 0
    });
    let known = |fds: &[libc::pollfd]| {
        provable && fds.iter().all(|pollfd| directions(pollfd).all(|d| drained(pollfd.fd, d)))
    };
    loop {
        if !known(fds) || deadline.passed() {
            match look(fds) {
                0 if !deadline.passed() => {}
                answer => return answer,
            }
        }
        let mut places = fds.iter().flat_map(|p| directions(p).map(|d| Place::new(p.fd, d)));
        if fds.len() <= FEW {
            let mut few: [Place; 2 * FEW] =
                std::array::from_fn(|_| places.next().unwrap_or(Place::NOWHERE));
            drop(places);
            wait_once(fds, &mut few, deadline, provable);
        } else {
            let mut many: Vec<Place> = places.collect();
            wait_once(fds, &mut many, deadline, provable);
        }
    }
}

/// Asks the kernel, and keeps the cached readiness true to the answer.
fn look(fds: &mut [libc::pollfd]) -> isize {
    let proved = |pollfd: &libc::pollfd, d| pollfd.events & proof(d) != 0;
    for pollfd in fds.iter() {
        directions(pollfd).filter(|&d| proved(pollfd, d)).for_each(|d| attempt(pollfd.fd, d));
    }
    let answer = match kernel::poll_now(fds) {
        Ok(count) => count as isize,
        Err(e) => -(e.into_raw() as isize),
    };
    if answer != 0 {
        for pollfd in fds.iter().filter(|pollfd| answer < 0 || pollfd.revents != 0) {
            directions(pollfd).for_each(|d| leave(pollfd.fd, d, true));
        }
    }
    answer
}

/// Waits once: joins all queues and parks, unless something turns out to be ready.
fn wait_once(fds: &mut [libc::pollfd], places: &mut [Place], deadline: Deadline, provable: bool) {
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
            Joined::Waiting => {}
            Joined::Ready | Joined::Closed => {
                ready = true;
                break;
            }
            // Neither watched by epoll nor ready, as the look has said: look now and then.
            Joined::Unpollable => until = until.min(Deadline::after(LOOK_AGAIN)),
        }
    }
    if ready || (!provable && kernel::poll_now(fds).is_ok_and(|count| count > 0)) {
        wait.abandon();
    } else {
        wait.commit(until);
    }
    for place in places.iter() {
        if let Some(waiter) = &place.waiter {
            part(place.fd, place.direction, waiter);
        }
    }
}
