//! Calls that block a worker: which, where, how often, how long.
//!
//! A call counts in which the monitor finds a worker's thread at two looks, some 5 ms apart, whether it was
//! [declared](crate::blocking()), by the program or the interposed C library, or not. Nothing is measured by whoever makes the call: at its
//! ticks the monitor sees that a worker is in the same fiber still, asks the kernel where its thread stands, and enters the call here.
//!
//! ```text
//!   monitor's look:   1st          2nd              3rd           4th …       n-th
//!   the worker:       in a fiber   in a call        in the same   the same    has moved on, or computes
//!                                  since: now       enter                     worst, total: now − since
//! ```
//!
//! So a time is right to a tick or two. A thread that runs when it is asked for is in no call; it is asked for again after twice the
//! looks, so a fiber that computes costs little. Calls that are made one after the other from one place, between
//! two looks, look like one.
//!
//! Calls are told apart by system call and by two addresses: the one from which the kernel was called, and, as that is often the same
//! wrapper of the C library's, the first one on the stack that is another object's code, which is taken for the place that the
//! call comes from. That is a guess: an old address may lie there. The table holds [`MOST`] entries; what does not fit is
//! counted.
//!
//! Names of places are looked up when somebody asks, not by the monitor: dladdr(3) takes the loader's lock, and a
//! stuck call may have it. So what is code was learnt before (`place`), when a runtime was made or somebody asked.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sleave_context::lock::Lock;
use syscalls::Sysno;

use super::place::{self, Place};
use super::seconds::Seconds;
use super::visit::look_at;
use crate::fiber::{AtWork, Control, FiberId, in_slots};
use crate::kernel;
use crate::kernel::task::{self, Standing};
use crate::scheduler::{Processor, witness};

/// How many different calls are kept.
const MOST: usize = 64;
/// Nanoseconds of CPU time that a thread in a call does not use.
const COMPUTES: u64 = 2_000_000;
/// Words of stack that are kept.
const STACK: usize = 48;

/// Calls of one kind that blocked a worker: see [`blocked_calls`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct BlockedCall {
    /// The system call, by its name in the kernel; `None` if the thread slept elsewhere: a page had to be read.
    pub call: Option<&'static str>,
    /// The address after the instruction that calls the kernel.
    pub address: usize,
    /// Where that is: `symbol+offset (object)` or `object+offset`.
    pub place: String,
    /// Where the call probably comes from: the first address on the stack that is another object's code.
    pub caller: Option<String>,
    /// The fiber that made the last of them.
    pub fiber: FiberId,
    /// Its name.
    pub name: Option<String>,
    /// How many there were, those that are still on included.
    pub times: u64,
    /// How many are still on.
    pub now: u64,
    /// How long they took altogether, without those that are still on.
    pub total: Duration,
    /// How long the longest took, those that are still on included.
    pub worst: Duration,
}

struct Entry {
    number: Option<usize>,
    address: usize,
    caller: Option<usize>,
    fiber: FiberId,
    name: Option<String>,
    times: u64,
    now: u64,
    total: u64,
    worst: u64,
    /// When the oldest of those began that are still on, as far as is known.
    since: u64,
}

static TABLE: Lock<Vec<Entry>> = Lock::new(Vec::new());
/// Calls for which there was no room.
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// What the monitor keeps of one processor for this file.
#[derive(Clone, Copy, Default)]
pub(crate) struct Watch {
    switches: u64,
    fiber: usize,
    /// Calls that have been declared so far, or found.
    calls: u64,
    /// It was in such a call at the last look.
    blocked: bool,
    looks: u32,
    /// Where its thread stood at the last look, if that was looked at.
    standing: Option<Standing>,
    /// When it was first seen there.
    since: u64,
    /// CPU time of the thread then.
    cpu: u64,
    /// Where the call has been entered; [`MOST`] if there was no room.
    entry: Option<usize>,
}

impl Watch {
    /// The monitor's look at `processor`.
    pub(crate) fn look(&mut self, processor: &Processor) {
        // Relaxed, both: compared with what was read a tick ago.
        let fiber = processor.running.load(Ordering::Relaxed);
        let switches = processor.switches.load(Ordering::Relaxed);
        let (blocked, calls) = (processor.is_blocked(), processor.calls());
        let same = !fiber.is_null()
            && (fiber as usize, switches) == (self.fiber, self.switches)
            && !(self.blocked && (calls != self.calls || !blocked));
        if !same {
            self.ends();
            *self = Watch { switches, fiber: fiber as usize, calls, blocked, ..Watch::default() };
            return;
        }
        (self.blocked, self.calls) = (blocked, calls);
        self.looks = self.looks.saturating_add(1);
        let thread = processor.thread();
        if self.entry.is_some() {
            // What computes has come back from its call.
            if kernel::cpu_time(thread).is_none_or(|cpu| cpu > self.cpu + COMPUTES) {
                self.ends();
                self.looks = 0;
            }
        } else if self.standing.is_some() || self.looks.is_power_of_two() {
            let standing = witness::look(move || task::standing(thread));
            match standing {
                Some(standing) if self.standing == Some(standing) => {
                    self.entry = self.begins(processor, fiber, standing);
                }
                _ => {
                    self.standing = standing;
                    self.since = kernel::now();
                    self.cpu = kernel::cpu_time(thread).unwrap_or(0);
                }
            }
        }
    }

    /// The call that has been entered is over.
    fn ends(&mut self) {
        self.standing = None;
        if let Some(entry) = self.entry.take() {
            let time = kernel::now().saturating_sub(self.since);
            // One that there was no room for is nowhere.
            if let Some(entry) = TABLE.lock().get_mut(entry) {
                entry.now -= 1;
                entry.total += time;
                entry.worst = entry.worst.max(time);
            }
        }
    }

    /// Enters the call that `processor` is in; where.
    fn begins(
        &self,
        processor: &Processor,
        control: *const Control,
        standing: Standing,
    ) -> Option<usize> {
        let stack = copy_stack(standing.stack, control as usize);
        let caller = place::elsewhere(standing.address, &stack);
        let (number, address) = (standing.call.map(|call| call.0), standing.address);
        // SAFETY: a slot's control block, which is never unmapped.
        let (fiber, name) = look_at(unsafe { &*control })?;
        // Relaxed: if it has moved meanwhile, what was read may be another's.
        if processor.switches.load(Ordering::Relaxed) != self.switches {
            return None;
        }
        let _at_work = AtWork::begin();
        let mut table = TABLE.lock();
        let this = (number, address, caller);
        let known = table.iter().position(|one| (one.number, one.address, one.caller) == this);
        let place = known.unwrap_or(table.len());
        if place == MOST {
            // Relaxed: a count only.
            OTHERS.fetch_add(1, Ordering::Relaxed);
            return Some(MOST);
        }
        if known.is_none() {
            let (since, name) = (self.since, None);
            let (times, now, total, worst) = (0, 0, 0, 0);
            table.push(Entry {
                number,
                address,
                caller,
                fiber,
                name,
                times,
                now,
                total,
                worst,
                since,
            });
        }
        let entry = &mut table[place];
        (entry.fiber, entry.name) = (fiber, name);
        entry.since = if entry.now == 0 { self.since } else { entry.since.min(self.since) };
        entry.times += 1;
        entry.now += 1;
        Some(place)
    }
}

/// The words above the stack pointer, if that lies in the slot of `control`.
fn copy_stack(top: usize, control: usize) -> [usize; STACK] {
    let mut words = [0; STACK];
    if in_slots(top) && top.is_multiple_of(size_of::<usize>()) && top < control {
        let count = ((control - top) / size_of::<usize>()).min(STACK);
        for (number, word) in words[..count].iter_mut().enumerate() {
            // SAFETY: between a stack pointer and the control block of the same slot lies its stack, which is never
            // unmapped. Volatile: another thread may write there; a word that is wrong leads to a wrong guess.
            *word = unsafe { (top as *const usize).add(number).read_volatile() };
        }
    }
    words
}

/// The calls that have blocked a worker for some 10 ms or longer since the process began, the one that took most time first.
///
/// Which calls these are and how to make them park instead is told in `docs/blocking-calls.md`. At most 64 different ones
/// are kept, by system call and place.
///
/// # Examples
///
/// ```
/// for call in sleave_runtime::blocked_calls() {
///     println!("{call}");
/// }
/// ```
pub fn blocked_calls() -> Vec<BlockedCall> {
    place::learn();
    let mut calls: Vec<_> = {
        let _at_work = AtWork::begin();
        let now = kernel::now();
        TABLE.lock().iter().map(|entry| entry.told(now)).collect()
    };
    calls.sort_by_key(|(call, _)| std::cmp::Reverse(call.total.max(call.worst)));
    // Outside of the lock: what is asked here may have to wait for the loader.
    let place = |(mut call, caller): (BlockedCall, Option<usize>)| {
        call.place = Place::of(call.address).to_string();
        call.caller = caller.map(|caller| Place::of(caller).to_string());
        call
    };
    calls.into_iter().map(place).collect()
}

impl Entry {
    /// What is told of it at the time `now`, without the names of its places; and the caller's address.
    fn told(&self, now: u64) -> (BlockedCall, Option<usize>) {
        let running = if self.now > 0 { now.saturating_sub(self.since) } else { 0 };
        let call = BlockedCall {
            call: self.number.map(name),
            address: self.address,
            place: String::new(),
            caller: None,
            fiber: self.fiber,
            name: self.name.clone(),
            times: self.times,
            now: self.now,
            total: Duration::from_nanos(self.total),
            worst: Duration::from_nanos(self.worst.max(running)),
        };
        (call, self.caller)
    }
}

/// How many calls there was no room for.
pub(super) fn others() -> u64 {
    // Relaxed: a count only.
    OTHERS.load(Ordering::Relaxed)
}

/// The name of a system call.
fn name(number: usize) -> &'static str {
    Sysno::new(number).map_or("a call that has no name here", |call| call.name())
}

/// A line for people.
impl fmt::Display for BlockedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.call.unwrap_or("no system call"), self.place)?;
        if let Some(caller) = &self.caller {
            write!(f, ", from {caller}")?;
        }
        write!(f, ": {} times, {} in all, ", self.times, Seconds(self.total))?;
        write!(f, "at most {}", Seconds(self.worst))?;
        if self.now > 0 {
            write!(f, ", {} still on", self.now)?;
        }
        write!(f, "; last by fiber {}", self.fiber)?;
        if let Some(name) = &self.name {
            f.write_char(' ')?;
            write!(f, "\"{}\"", name.escape_debug())?;
        }
        Ok(())
    }
}
