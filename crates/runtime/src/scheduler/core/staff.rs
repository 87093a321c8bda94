//! Who works at a runtime: threads come, take a processor and a seat, are missed, and go.
//!
//! ```text
//!   places:  workers                 in a runtime that uses its caller one of them is the caller's
//!   live:    own threads + callers   those that have a processor
//!   blocked: of these, those in calls that block them (`call`); each leaves its place to another
//!   room:    places of own threads that are free; below 0 there are too many, and whoever
//!            notices first, and holds no bound seat, becomes a spare thread
//! ```
//!
//! Everything is decided under one lock; `active` and `room` repeat the outcome for those who only want
//! to know whether they should ask.

use std::io;
use std::sync::atomic::Ordering;

use super::{Core, MOST_PROCESSORS, WORKER_STACK};
use crate::kernel::{self, OsThread};
use crate::scheduler::monitor;
use crate::scheduler::processor::Processor;
use crate::scheduler::seat::Seat;
use crate::signal;
use crate::wait::Deadline;

#[derive(Default)]
pub(super) struct Staff {
    /// Threads that have a processor.
    pub(super) live: usize,
    /// Of these, threads in calls that block them, see `call`.
    pub(super) blocked: usize,
    /// Fibers that wait until fewer are in calls.
    pub(super) queued: usize,
    /// Of these, callers of `run`.
    callers: usize,
    /// The first seat, and the place that goes with it, is for a caller.
    reserved: bool,
    /// Threads without a processor that wait to be called.
    spare: usize,
    /// Calls that no spare thread has answered yet.
    called: usize,
    pub(super) threads: Vec<OsThread>,
    /// Processors without a worker.
    free: Vec<&'static Processor>,
    /// Who holds each of the seats.
    holders: Vec<Option<&'static Processor>>,
}

impl Staff {
    /// Whether nobody is there and nobody is counted.
    pub(super) fn is_gone(&self) -> bool {
        let counted = [self.live, self.blocked, self.queued, self.callers, self.spare, self.called];
        counted == [0; 6] && self.holders.iter().all(Option::is_none)
    }

    /// As many as shall run fibers at the same time.
    pub(super) fn places(&self) -> usize {
        self.holders.len()
    }

    /// Places of own threads that are free.
    fn room(&self) -> isize {
        let (places, live, blocked) = (self.holders.len(), self.live, self.blocked);
        if !self.reserved {
            return places as isize - (live - blocked) as isize;
        }
        // The caller has its own place whether it is there, is stuck, or is not. Relaxed: under the lock.
        let caller = self.holders[0];
        let stuck = caller.is_some_and(|caller| caller.blocked.load(Ordering::Relaxed));
        let active = (live - self.callers) - (blocked - usize::from(stuck));
        places as isize - 1 - active as isize
    }

    /// A free seat for an own thread: bound ones first, for what is pinned there waits.
    fn free_seat(&self, core: &Core) -> Option<usize> {
        let free = |&seat: &usize| self.holders[seat].is_none();
        let own = usize::from(self.reserved)..self.holders.len();
        let bound = |&seat: &usize| core.seats()[seat].is_bound();
        own.clone().filter(free).find(bound).or_else(|| own.clone().find(free))
    }

    /// Gives up the seat of `processor`, if it has one; says which.
    fn leave_seat(&mut self, processor: &'static Processor) -> Option<usize> {
        let seat = usize::from(processor.leaves_seat()?.number());
        self.holders[seat] = None;
        Some(seat)
    }
}

impl Core {
    /// Prepares for `workers`, of which one is the caller if so `reserved`.
    pub(super) fn open_staff(&self, workers: usize, reserved: bool) {
        let mut staff = self.staff.lock();
        staff.holders.clear();
        staff.holders.resize(workers, None);
        staff.reserved = reserved;
        self.count_active(&staff);
    }

    /// Starts a worker, or calls a spare one, if there is room for one. The caller has counted it
    /// as searching.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room; what pthread_create(3) says.
    pub(super) fn start_worker(&self) -> io::Result<()> {
        let mut staff = self.staff.lock();
        if staff.room() <= 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.hire(&mut staff)
    }

    /// One more own thread, whether there is room or not.
    fn hire(&self, staff: &mut Staff) -> io::Result<()> {
        let core = self.forever();
        // Relaxed: `end` sets it and then takes the lock.
        if staff.live >= MOST_PROCESSORS || self.stopped.load(Ordering::Relaxed) != 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if staff.spare > staff.called {
            staff.called += 1;
            // Release, and the futex: the spare thread looks under the lock.
            self.calls.fetch_add(1, Ordering::Release);
            kernel::futex_wake(self.calls.as_ptr() as usize, 1);
        } else {
            let name = format!("{}-{}", *self.name.lock(), staff.threads.len());
            let body = move || {
                // It blocks what its fibers do, and before it has any, all.
                kernel::set_signal_mask(signal::ALL);
                crate::scheduler::worker::worker_main(core);
            };
            staff.threads.push(OsThread::start(name, WORKER_STACK, body)?);
        }
        staff.live += 1;
        self.count_active(staff);
        Ok(())
    }

    /// Makes sure that somebody will run what is spawned from outside: a worker, or in a runtime that uses
    /// its caller whoever calls.
    ///
    /// # Errors
    /// If there is no worker and none can be started: what pthread_create(3) says.
    pub(crate) fn ensure_worker(&self) -> io::Result<()> {
        if self.active() > 0 || self.room() <= 0 {
            return Ok(());
        }
        match self.start_worker_searching() {
            Err(e) if self.active() == 0 && self.room() > 0 => Err(e),
            _ => Ok(()),
        }
    }

    pub(super) fn start_worker_searching(&self) -> io::Result<()> {
        self.as_searching(|| self.start_worker())
    }

    /// Counts one more who searches, who is to be started by `start`.
    fn as_searching(&self, start: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        // SeqCst, both: part of the argument in `scheduler`.
        self.searching.fetch_add(1, Ordering::SeqCst);
        start().inspect_err(|_| {
            self.searching.fetch_sub(1, Ordering::SeqCst);
        })
    }

    pub(super) fn count_active(&self, staff: &Staff) {
        // Relaxed: a hint, as in `room`.
        self.room.store(staff.room(), Ordering::Relaxed);
        // SeqCst: before the look in `monitor::awake`, see there.
        self.active.store(staff.live - staff.blocked, Ordering::SeqCst);
    }

    /// A processor, and a seat if one is free, for a thread that is counted in `live`.
    pub(in crate::scheduler) fn take_processor(&self, caller: bool) -> &'static Processor {
        monitor::awake();
        let mut staff = self.staff.lock();
        let processor = staff.free.pop().unwrap_or_else(|| self.make_processor());
        let seat = match caller {
            false => staff.free_seat(self),
            true => staff.reserved.then_some(0),
        };
        if let Some(seat) = seat {
            staff.holders[seat] = Some(processor);
        }
        processor.takes_seat(seat.map(|seat| self.seats()[seat]), staff.holders.len());
        self.count_active(&staff);
        processor
    }

    pub(in crate::scheduler) fn give_processor(&self, processor: &'static Processor) {
        self.staff.lock().free.push(processor);
    }

    // ---- one too many ----

    /// Whether there may be a worker too many, the one of `processor` for one.
    pub(in crate::scheduler) fn is_crowded(&self, processor: &Processor) -> bool {
        self.unblock(processor);
        // Acquire pairs with the Release in `end`.
        self.stopped.load(Ordering::Acquire) != 0 || (self.room() < 0 && !processor.is_bound())
    }

    /// Counts the calling worker out if there is one too many; whether it did.
    pub(in crate::scheduler) fn leaves_crowd(&self, processor: &'static Processor) -> bool {
        let (leaves, awaited) = {
            let mut staff = self.staff.lock();
            let awaited = staff.unblock(processor);
            // Acquire: as in `is_crowded`.
            let stopped = self.stopped.load(Ordering::Acquire) != 0;
            let leaves = stopped || (staff.room() < 0 && !processor.is_bound());
            if leaves {
                staff.live -= 1;
                staff.leave_seat(processor);
            }
            self.count_active(&staff);
            (leaves, awaited)
        };
        self.let_in(awaited);
        leaves
    }

    /// Waits, without a processor, to be called again; `false` when the runtime has stopped.
    pub(in crate::scheduler) fn spare(&self) -> bool {
        self.staff.lock().spare += 1;
        loop {
            // Acquire pairs with the Release in `hire` and `end`.
            let calls = self.calls.load(Ordering::Acquire);
            {
                let mut staff = self.staff.lock();
                // A call is answered even if the runtime has stopped since: who called has
                // counted this thread, and as a worker it counts itself out again.
                if staff.called > 0 {
                    staff.called -= 1;
                    staff.spare -= 1;
                    return true;
                }
                if self.stopped.load(Ordering::Acquire) != 0 {
                    staff.spare -= 1;
                    return false;
                }
            }
            kernel::futex_wait(&self.calls, calls, None);
        }
    }

    // ---- callers of `run` and `stop` ----

    /// Whether one of the workers is whoever is inside `run` or `stop`.
    pub(crate) fn uses_caller(&self) -> bool {
        self.staff.lock().reserved
    }

    /// How many seats are bound. The caller has the lock of `staff`.
    fn bound_seats(&self) -> usize {
        self.seats().iter().filter(|seat| seat.is_bound()).count()
    }

    /// Whether the calling thread may become a worker for the time of a `run`; counts it.
    pub(crate) fn caller_enters(&self) -> bool {
        let mut staff = self.staff.lock();
        // Threads that hold bound seats cannot make room for a caller.
        let most = if staff.reserved { 1 } else { staff.holders.len() - self.bound_seats() };
        if staff.callers >= most || staff.live >= MOST_PROCESSORS {
            return false;
        }
        staff.callers += 1;
        staff.live += 1;
        self.count_active(&staff);
        true
    }

    /// A caller that has been counted does not come.
    pub(crate) fn caller_turns_back(&self) {
        {
            let mut staff = self.staff.lock();
            staff.callers -= 1;
            staff.live -= 1;
            self.count_active(&staff);
        }
        self.next_turn();
    }

    /// Whether a caller had better wait for its fiber without working: threads that hold bound seats
    /// have come since it entered, and cannot make room for it.
    pub(in crate::scheduler) fn caller_is_surplus(&self) -> bool {
        if self.room() >= 0 {
            return false;
        }
        let staff = self.staff.lock();
        !staff.reserved && staff.callers + self.bound_seats() > staff.holders.len()
    }

    /// A caller of `run` is a worker no longer. The last worker to go leaves another in its place:
    /// fibers that it does not know of may wait for a descriptor or a deadline, for which somebody
    /// has to sleep in the driver. That must not be left to [`Core::notify`], which trusts in a
    /// ring that went to a sleeper, and that sleeper may be this one, woken by its bell just then.
    /// (In a runtime confined to its callers there is nobody to be left; they wait for the next one.)
    pub(in crate::scheduler) fn caller_leaves(&self, processor: &'static Processor) {
        let (nobody_left, awaited) = {
            let mut staff = self.staff.lock();
            let awaited = staff.unblock(processor);
            staff.callers -= 1;
            staff.live -= 1;
            let seat = staff.leave_seat(processor);
            self.count_active(&staff);
            // What is pinned to a seat that is the callers' no longer needs a holder.
            let deserted =
                !staff.reserved && seat.is_some_and(|seat| self.seats()[seat].is_bound());
            (staff.live == staff.blocked || deserted, awaited)
        };
        self.let_in(awaited);
        if nobody_left {
            // Without a thread to be had the next that comes, or the monitor, tries again.
            let _ = self.start_worker_searching();
        }
        self.next_turn();
    }

    /// Lets threads look again that wait for their turn as callers, or for a fiber's end meanwhile.
    pub(in crate::scheduler) fn next_turn(&self) {
        // Release: with the load in `await_turn`.
        self.turns.fetch_add(1, Ordering::Release);
        kernel::futex_wake(self.turns.as_ptr() as usize, i32::MAX);
    }

    /// The turn that is on; to be asked for before the look that [`Core::await_turn`] follows.
    pub(crate) fn turn(&self) -> u32 {
        // Acquire: with `next_turn`.
        self.turns.load(Ordering::Acquire)
    }

    /// Blocks the thread until `turn` is over, or until `deadline`.
    pub(crate) fn await_turn(&self, turn: u32, deadline: Deadline) {
        kernel::futex_wait(&self.turns, turn, deadline.until());
    }

    /// From now on the runtime has threads of its own for all places: no caller will come.
    pub(crate) fn expects_no_caller(&self) {
        {
            let mut staff = self.staff.lock();
            staff.reserved = false;
            self.count_active(&staff);
        }
        // Fails if there are enough; without a thread to be had the monitor tries again.
        let _ = self.start_worker_searching();
    }

    // ---- pinned tasks ----

    /// The seat numbered `worker`.
    ///
    /// # Errors
    /// `InvalidInput` if there is no such worker.
    pub(crate) fn seat(&self, worker: usize) -> io::Result<&'static Seat> {
        self.seats().get(worker).copied().ok_or_else(|| {
            let workers = self.seats().len();
            let message = format!("no worker {worker}: the runtime has {workers}, numbered from 0");
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })
    }

    /// Binds the seat numbered `worker`: from now on the same OS thread holds it.
    ///
    /// # Errors
    /// As [`Core::seat`]; what pthread_create(3) says if it needs a thread and none can be started.
    pub(crate) fn bind(&self, worker: usize) -> io::Result<u8> {
        let seat = self.seat(worker)?;
        if !seat.is_bound() {
            let mut staff = self.staff.lock();
            let awaits_caller = staff.reserved && worker == 0;
            let deserted = staff.holders[worker].is_none() && !awaits_caller;
            let bound = seat.bind(true);
            if deserted && !bound {
                // The thread takes this seat, as a bound one; or another one does that is on its way.
                self.as_searching(|| self.hire(&mut staff)).inspect_err(|_| {
                    seat.bind(false);
                })?;
            }
        }
        Ok(seat.number())
    }
}
