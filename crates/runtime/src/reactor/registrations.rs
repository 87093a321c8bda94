//! The registrations at one descriptor: what is to be told to whom, and by which call.
//!
//! A **registration** is a fiber that waits for a descriptor, less the stack: an entry in the
//! descriptor's list. When there is something to tell, a fiber is begun which calls the callback; so a
//! callback may do and wait for whatever a fiber may, and never holds up the driver.
//!
//! ```text
//!   Descriptor { …, Lock { …, registrations ─▶ [Entry, Entry, …] } }
//!                                                 │ callback, news?, last?, served?
//!        event, cancel, close: note it, and ──────┤
//!        begin a fiber unless there is one        ▼
//!                                 serve: next() ─▶ callback(event) ─▶ next() ─▶ … ─▶ nothing to tell
//! ```
//!
//! # Who decides what
//!
//! Entries belong to their list, and everything about them is decided under the lock of the
//! descriptor; nothing here is lock-free. What an event, a cancellation or a close does is to leave a
//! note in the entry and to see to it that a fiber serves it (`summon`). That fiber looks at the notes
//! when a call **begins** (`next`), and only there. From this everything follows:
//!
//! * **Nothing is told twice, or in the wrong order.** An entry has at most one fiber (`served`), so
//!   calls of a registration never overlap. `next` takes the notes; the last call takes the entry as well.
//! * **Nothing is lost.** A note that comes before `next` is taken by it. One that comes after it finds
//!   `served` set, and the fiber will call `next` again; or it finds it cleared, under the same lock, and
//!   begins another fiber.
//! * **Delete is silent.** Whoever removes the entry has prevented every call that has not begun. A fiber
//!   on its way finds no entry and ends. Keys are never reused, so it cannot find another one's.
//! * **Readiness is true.** `next` asks the kernel, under the lock, before it says "ready": what another
//!   has taken meanwhile is no news. Who closes the descriptor takes the same lock first, and notes
//!   it: so whoever is asked about is the description that was registered, not its successor.
//!
//! While a call runs, its callback is out of the entry, on the fiber's stack. If the entry is gone when the
//! call ends, or the call panics, the callback dies there. User code, destructors included, is
//! never run under the lock.
//!
//! # Readiness and registrations
//!
//! A registration takes no readiness from anybody, and no part in the cached flags: every event of the
//! kernel is noted in every entry of its direction. So it needs no share in what
//! [`leave`](super::leave) passes on, and a callback that writes is not called again because it has written.

use std::mem;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::descriptor::{Descriptor, Direction};
use super::event::Registration;
use crate::wait::Batch;

/// What a callback is told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A try in the registered direction would not block: the kernel said so right before the call.
    Ready,
    /// The same, and there was an error or the peer has hung up. There may still be something to be
    /// read; a try tells.
    HungUp,
    /// The registration was cancelled. This is its last call.
    Cancelled,
    /// The descriptor was closed, and its number may be another's already. This is the last call.
    Closed,
}

pub(super) type Callback = Box<dyn FnMut(Event, &Registration) + Send>;

/// Runtime and kernel of a registration, or what stands for them in a model.
pub(super) trait Host: Sync {
    /// There is one more registration.
    fn begins(&self);
    /// There is one less.
    fn ends(&self);
    /// Has [`Descriptor::serve`] called for `registration` on a fiber. What becomes runnable by that
    /// goes to `woken`.
    fn launch(&'static self, registration: Registration, woken: &mut Batch);
    /// What is to be told of `direction` of `fd` at this moment.
    fn ask(&self, fd: RawFd, direction: Direction) -> Option<Event>;
}

/// The registrations at one descriptor, in the order of their coming.
pub(super) struct Registrations {
    entries: Vec<Entry>,
}

struct Entry {
    registration: Registration,
    host: &'static dyn Host,
    direction: Direction,
    /// It goes on after a call.
    lasting: bool,
    /// There is a fiber that will look at what is noted here.
    served: bool,
    /// The kernel has reported something since the last look.
    news: bool,
    /// What the last call will say.
    last: Option<Event>,
    /// `None` while a call is running.
    callback: Option<Callback>,
}

impl Entry {
    /// Has a fiber look at the notes.
    fn summon(&mut self, woken: &mut Batch) {
        if !mem::replace(&mut self.served, true) {
            self.host.launch(self.registration, woken);
        }
    }

    /// Notes that the registration ends with a call that says `last`; whether it was not ending yet.
    fn end(&mut self, last: Event, woken: &mut Batch) -> bool {
        if self.last.is_some() {
            return false;
        }
        self.last = Some(last);
        self.summon(woken);
        true
    }
}

impl Registrations {
    fn place(&self, key: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&key, |entry| entry.registration.key).ok()
    }

    fn get(&mut self, key: u64) -> Option<&mut Entry> {
        self.place(key).map(|place| &mut self.entries[place])
    }

    /// Puts a new one into `list`, and has it called if there is `news` already.
    pub(super) fn add(
        list: &mut Option<Box<Registrations>>,
        new: New,
        news: bool,
        woken: &mut Batch,
    ) -> Registration {
        static KEYS: AtomicU64 = AtomicU64::new(0);
        let New { fd, host, direction, lasting, callback } = new;
        // Relaxed: only uniqueness matters; that keys of one list ascend is due to the lock.
        let registration = Registration { fd, key: KEYS.fetch_add(1, Ordering::Relaxed) };
        let mut entry = Entry {
            registration,
            host,
            direction,
            lasting,
            served: false,
            news,
            last: None,
            callback: Some(callback),
        };
        host.begins();
        if news {
            entry.summon(woken);
        }
        let none = || Box::new(Registrations { entries: Vec::with_capacity(1) });
        list.get_or_insert_with(none).entries.push(entry);
        registration
    }

    /// Notes that the kernel has reported something for `direction`.
    pub(super) fn announce(&mut self, direction: Direction, woken: &mut Batch) {
        for entry in self.entries.iter_mut().filter(|entry| entry.direction == direction) {
            entry.news = true;
            entry.summon(woken);
        }
    }

    /// Notes that all end with a call that says `last`; how many were not ending yet.
    pub(super) fn end_all(&mut self, last: Event, woken: &mut Batch) -> usize {
        self.entries.iter_mut().filter_map(|entry| entry.end(last, woken).then_some(())).count()
    }
}

/// A registration that is to be.
pub(super) struct New {
    pub(super) fd: RawFd,
    pub(super) host: &'static dyn Host,
    pub(super) direction: Direction,
    pub(super) lasting: bool,
    pub(super) callback: Callback,
}

/// Removes `key` from `list`, which goes with its last entry.
fn remove(list: &mut Option<Box<Registrations>>, key: u64) -> Option<Entry> {
    let registrations = list.as_mut()?;
    let place = registrations.place(key)?;
    let entry = registrations.entries.remove(place);
    if registrations.entries.is_empty() {
        *list = None;
    }
    Some(entry)
}

impl Descriptor {
    /// See [`Registration::delete`].
    pub(super) fn delete(&self, key: u64) -> bool {
        let removed = remove(&mut self.state.lock().registrations, key);
        let Some(Entry { host, callback, .. }) = removed else { return false };
        drop(callback);
        host.ends();
        true
    }

    /// See [`Registration::cancel`].
    pub(super) fn cancel(&self, key: u64, woken: &mut Batch) -> bool {
        let mut state = self.state.lock();
        let entry = state.registrations.as_mut().and_then(|all| all.get(key));
        entry.is_some_and(|entry| entry.end(Event::Cancelled, woken))
    }

    /// See [`cancel_all`](super::event::cancel_all).
    pub(super) fn cancel_all(&self, woken: &mut Batch) -> usize {
        let mut state = self.state.lock();
        state.registrations.as_mut().map_or(0, |all| all.end_all(Event::Cancelled, woken))
    }

    /// See [`Registration::is_over`].
    pub(super) fn is_over(&self, key: u64) -> bool {
        let mut state = self.state.lock();
        state.registrations.as_mut().and_then(|all| all.get(key)).is_none()
    }

    /// The fiber of a registration: makes its calls until there is nothing to tell.
    pub(super) fn serve(&self, registration: Registration) {
        /// A call that panics ends its registration.
        struct Call<'a>(&'a Descriptor, Registration);
        impl Drop for Call<'_> {
            fn drop(&mut self) {
                self.0.delete(self.1.key);
            }
        }
        let mut returned = None;
        while let Some((event, mut callback)) = self.next(registration, returned) {
            let call = Call(self, registration);
            callback(event, &registration);
            mem::forget(call);
            returned = Some(callback);
        }
    }

    /// Takes what there is to tell, and the callback to tell it to, which `returned` from a former call.
    /// `None`: nothing, and the caller serves the registration no longer.
    fn next(
        &self,
        Registration { fd, key }: Registration,
        returned: Option<Callback>,
    ) -> Option<(Event, Callback)> {
        let (event, over) = {
            let mut state = self.state.lock();
            let entry = state.registrations.as_mut()?.get(key)?;
            if returned.is_some() {
                entry.callback = returned;
            }
            let news = mem::replace(&mut entry.news, false);
            let told =
                entry.last.or_else(|| news.then(|| entry.host.ask(fd, entry.direction)).flatten());
            let Some(event) = told else {
                entry.served = false;
                return None;
            };
            let over = !entry.lasting || matches!(event, Event::Cancelled | Event::Closed);
            if !over {
                return entry.callback.take().map(|callback| (event, callback));
            }
            (event, remove(&mut state.registrations, key)?)
        };
        over.host.ends();
        over.callback.map(|callback| (event, callback))
    }
}

#[cfg(all(test, loom))]
mod loom_models;
