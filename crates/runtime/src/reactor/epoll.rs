//! The epoll driver.
//!
//! One epoll instance for each runtime, in which every idle worker sleeps: the kernel wakes one
//! of them for each event, so no worker has to be elected to watch. Beside the program's descriptors
//! it holds four of its own:
//!
//! * **ring** (eventfd, edge-triggered): wakes one sleeper, see the essay in
//!   [`crate::scheduler`]. Its event stays until somebody collects it.
//! * **alarm** (timerfd, edge-triggered): wakes one sleeper at the earliest deadline.
//! * **bell** (eventfd semaphore, level-triggered): wakes every sleeper until it is taken. A
//!   thread in `run` must wake, itself, when its fiber has ended.
//! * **dismissal** (eventfd, level-triggered): wakes all, for good.
//!
//! Sources: epoll(7), eventfd(2), timerfd_create(2).

use std::io;
use std::os::fd::RawFd;

use sleave_context::lock::Lock;
use syscalls::Errno;

use super::{own, table};
use crate::kernel::{self, OwnFd};
use crate::wait::Batch;

/// Numbers that cannot be those of a descriptor and its generation.
const RING: u64 = u64::MAX;
const ALARM: u64 = u64::MAX - 1;
const BELL: u64 = u64::MAX - 2;

/// Events collected by one call.
const EVENTS: usize = 256;

/// What is reported of a program's descriptor: everything, at its edges. `EPOLLERR` and
/// `EPOLLHUP` come unasked.
const INTEREST: u32 =
    (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLPRI | libc::EPOLLET) as u32;

/// Which of the driver's own events somebody has collected, and must answer for.
pub(crate) struct Collected {
    /// The ring: somebody was to be woken, and this is who.
    pub(crate) rung: bool,
    /// The alarm: timers may be due, and no alarm is set for those that come later.
    pub(crate) alarmed: bool,
}

pub(crate) struct Driver {
    epoll: OwnFd,
    ring: OwnFd,
    alarm: OwnFd,
    bell: OwnFd,
    dismissal: OwnFd,
    /// When the alarm goes off, in nanoseconds; `u64::MAX` if it does not.
    armed: Lock<u64>,
    /// Tells drivers apart; never 0.
    id: u32,
}

impl Driver {
    pub(crate) fn new() -> io::Result<Driver> {
        static IDS: Lock<u32> = Lock::new(0);
        kernel::claim_process();
        let id = {
            let mut last = IDS.lock();
            *last += 1;
            *last
        };
        let driver = Driver {
            epoll: kernel::epoll_create()?,
            ring: kernel::eventfd(0)?,
            alarm: kernel::timerfd()?,
            bell: kernel::eventfd(libc::EFD_SEMAPHORE)?,
            dismissal: kernel::eventfd(0)?,
            armed: Lock::new(u64::MAX),
            id,
        };
        let edge = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let level = libc::EPOLLIN as u32;
        for (fd, events, data) in [
            (&driver.ring, edge, RING),
            (&driver.alarm, edge, ALARM),
            (&driver.bell, level, BELL),
            (&driver.dismissal, level, BELL),
        ] {
            let (epoll, fd) = (driver.epoll.number(), fd.number());
            kernel::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, events, data)
                .map_err(kernel::error)?;
        }
        let Driver { epoll, ring, alarm, bell, dismissal, .. } = &driver;
        own::claim([epoll, ring, alarm, bell, dismissal].map(OwnFd::number));
        Ok(driver)
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Has the events of `fd` reported under the name `data` from now on.
    pub(super) fn register(&self, fd: RawFd, data: u64) -> Result<(), Errno> {
        let epoll = self.epoll.number();
        match kernel::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, INTEREST, data) {
            // The same description under the same number, from before another runtime used it:
            // setting it anew reports what is ready as well.
            Err(Errno::EEXIST) => kernel::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, INTEREST, data),
            other => other,
        }
    }

    /// Has nothing more of `fd` reported. Needed only where closing does not see to it: the
    /// description has other descriptors.
    pub(super) fn unregister(&self, fd: RawFd) {
        let _ = kernel::epoll_ctl(self.epoll.number(), libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// Collects events and adds the fibers that they wake to `woken`; sleeps for the first event
    /// if `block`, with the signals of `mask` blocked. Returns which of the driver's own were among them.
    pub(crate) fn poll(&self, block: bool, mask: Option<&u64>, woken: &mut Batch) -> Collected {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let count = kernel::epoll_wait(self.epoll.number(), &mut events, block, mask);
        let mut collected = Collected { rung: false, alarmed: false };
        for event in &events[..count] {
            match event.u64 {
                RING => collected.rung = true,
                ALARM => {
                    *self.armed.lock() = u64::MAX;
                    collected.alarmed = true;
                }
                BELL => {}
                data => table::event(data, event.events, woken),
            }
        }
        collected
    }

    /// Wakes one sleeper.
    pub(crate) fn ring(&self) {
        kernel::eventfd_write(self.ring.number());
    }

    /// Wakes one sleeper at `deadline` (nanoseconds), or earlier.
    pub(crate) fn arm(&self, deadline: u64) {
        let mut armed = self.armed.lock();
        if deadline < *armed {
            *armed = deadline;
            kernel::timerfd_arm(self.alarm.number(), deadline);
        }
    }

    /// Wakes every sleeper until the bell is taken by [`Driver::await_bell`].
    pub(crate) fn ring_bell(&self) {
        kernel::eventfd_write(self.bell.number());
    }

    /// Takes one ringing of the bell, waiting for it if it has not come yet.
    pub(crate) fn await_bell(&self) {
        while !kernel::eventfd_read(self.bell.number()) {
            kernel::await_readable(self.bell.number());
        }
    }

    /// Wakes every sleeper, for good or no longer.
    pub(crate) fn dismiss(&self, yes: bool) {
        if yes {
            kernel::eventfd_write(self.dismissal.number());
        } else {
            kernel::eventfd_read(self.dismissal.number());
        }
    }
}
