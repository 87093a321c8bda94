//! glibc itself against this crate: random short programs of several actors, answer by answer.
//!
//! The symbols hide glibc's functions, so they are taken from `libc.so.6` by name. Every step is one call that ends
//! at once (a wait whose time is over counts), made by the actor whose turn it is: so the answers are determined. Three runs must
//! agree: glibc on threads, this crate on threads, this crate on fibers.

use std::ffi::{CStr, c_int, c_void};
use std::sync::{Arc, mpsc};

use libc::{clockid_t, timespec};
use proptest::prelude::*;

use crate::objects::{Mutex, RwLock, Semaphore};
use crate::support::{Company, Host, PATIENCE};

const ACTORS: usize = 3;

/// Where a function comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Source {
    Glibc,
    Program,
}

impl Source {
    fn find(self, name: &CStr) -> *mut c_void {
        // SAFETY: dlopen(3) of a library that is there, dlsym(3).
        unsafe {
            let handle = match self {
                Source::Glibc => libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_LAZY),
                Source::Program => libc::RTLD_DEFAULT,
            };
            libc::dlsym(handle, name.as_ptr())
        }
    }
}

/// Calls the function of a name with the object and up to two arguments more.
fn call(source: Source, name: &CStr, object: *mut c_void, a: usize, b: usize) -> c_int {
    let function = source.find(name);
    assert!(!function.is_null(), "{name:?}");
    // SAFETY: all are functions of an object and at most two words more, which those that take
    // fewer ignore (System V psABI, AAPCS64).
    let function: unsafe extern "C" fn(*mut c_void, usize, usize) -> c_int =
        unsafe { std::mem::transmute(function) };
    // SAFETY: live objects and times.
    unsafe { function(object, a, b) }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Time {
    Past,
    Negative,
    Invalid,
}

impl Time {
    fn value(self) -> &'static timespec {
        const TIMES: [timespec; 3] = [
            timespec { tv_sec: 1, tv_nsec: 5 },
            timespec { tv_sec: -7, tv_nsec: 0 },
            timespec { tv_sec: 1, tv_nsec: 2_000_000_000 },
        ];
        &TIMES[self as usize]
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Op {
    Try(usize),
    Timed(usize, Time),
    Clock(usize, clockid_t, Time),
    Unlock(usize),
    TryRead(usize),
    TimedRead(usize, Time),
    TryWrite(usize),
    TimedWrite(usize, Time),
    UnlockRw(usize),
    Post,
    TryWait,
    TimedWait(Time),
    ClockWait(clockid_t, Time),
    Destroy(usize),
}

const MUTEXES: [c_int; 4] = [0, 1, 2, 3];
const RWLOCKS: [c_int; 3] = [0, 1, 2];

struct World {
    source: Source,
    mutexes: Vec<Mutex>,
    rwlocks: Vec<RwLock>,
    semaphore: Semaphore,
}

impl World {
    /// One step; -1 becomes `errno`.
    fn step(&self, op: Op) -> c_int {
        let mutex = |i: usize| self.mutexes[i].get().cast::<c_void>();
        let rwlock = |i: usize| self.rwlocks[i].get().cast::<c_void>();
        let semaphore = self.semaphore.get().cast::<c_void>();
        let at = |time: Time| std::ptr::from_ref(time.value()) as usize;
        let call = |name, object, a, b| call(self.source, name, object, a, b);
        let result = match op {
            Op::Try(i) => call(c"pthread_mutex_trylock", mutex(i), 0, 0),
            Op::Timed(i, time) => call(c"pthread_mutex_timedlock", mutex(i), at(time), 0),
            Op::Clock(i, clock, time) => {
                call(c"pthread_mutex_clocklock", mutex(i), clock as usize, at(time))
            }
            Op::Unlock(i) => call(c"pthread_mutex_unlock", mutex(i), 0, 0),
            Op::TryRead(i) => call(c"pthread_rwlock_tryrdlock", rwlock(i), 0, 0),
            Op::TimedRead(i, time) => call(c"pthread_rwlock_timedrdlock", rwlock(i), at(time), 0),
            Op::TryWrite(i) => call(c"pthread_rwlock_trywrlock", rwlock(i), 0, 0),
            Op::TimedWrite(i, time) => call(c"pthread_rwlock_timedwrlock", rwlock(i), at(time), 0),
            Op::UnlockRw(i) => call(c"pthread_rwlock_unlock", rwlock(i), 0, 0),
            Op::Post => call(c"sem_post", semaphore, 0, 0),
            Op::TryWait => call(c"sem_trywait", semaphore, 0, 0),
            Op::TimedWait(time) => call(c"sem_timedwait", semaphore, at(time), 0),
            Op::ClockWait(clock, time) => {
                call(c"sem_clockwait", semaphore, clock as usize, at(time))
            }
            Op::Destroy(i) => call(c"pthread_mutex_destroy", mutex(i), 0, 0),
        };
        if result == -1 {
            std::io::Error::last_os_error().raw_os_error().expect("errno is set")
        } else {
            result
        }
    }
}

/// What a program may do: unlock what it does not hold is an error of some objects and nonsense
/// for others, and a destroyed mutex is used no more.
#[derive(Default)]
struct Rules {
    held: [u32; MUTEXES.len()],
    destroyed: [bool; MUTEXES.len()],
    readers: [[u32; RWLOCKS.len()]; ACTORS],
    writer: [Option<usize>; RWLOCKS.len()],
}

impl Rules {
    fn allow(&self, actor: usize, op: Op) -> bool {
        match op {
            Op::Unlock(i) => {
                !self.destroyed[i] && (matches!(MUTEXES[i], 1 | 2) || self.held[i] > 0)
            }
            Op::Try(i) | Op::Timed(i, _) | Op::Clock(i, ..) | Op::Destroy(i) => !self.destroyed[i],
            Op::UnlockRw(i) => self.readers[actor][i] > 0 || self.writer[i] == Some(actor),
            _ => true,
        }
    }

    fn done(&mut self, actor: usize, op: Op, code: c_int) {
        if code != 0 {
            return;
        }
        match op {
            Op::Try(i) | Op::Timed(i, _) | Op::Clock(i, ..) => self.held[i] += 1,
            Op::Unlock(i) => self.held[i] -= 1,
            Op::Destroy(i) => self.destroyed[i] = true,
            Op::TryRead(i) | Op::TimedRead(i, _) => self.readers[actor][i] += 1,
            Op::TryWrite(i) | Op::TimedWrite(i, _) => self.writer[i] = Some(actor),
            Op::UnlockRw(i) if self.writer[i] == Some(actor) => self.writer[i] = None,
            Op::UnlockRw(i) => self.readers[actor][i] -= 1,
            _ => {}
        }
    }
}

/// Runs the program; the answers.
fn answers(host: Host, source: Source, program: &[(usize, Op)]) -> Vec<(usize, Op, c_int)> {
    host.run(PATIENCE, &|host: Host| {
        let world = Arc::new(World {
            source,
            mutexes: MUTEXES.map(Mutex::of_type).into(),
            rwlocks: RWLOCKS.map(RwLock::of_kind).into(),
            semaphore: Semaphore::of(1),
        });
        let actors: Vec<_> = (0..ACTORS)
            .map(|_| {
                let (steps, todo) = mpsc::channel::<Op>();
                let (done, codes) = mpsc::channel();
                let world = Arc::clone(&world);
                let actor = host.spawn(move || {
                    todo.into_iter().for_each(|op| done.send(world.step(op)).unwrap());
                });
                (actor, steps, codes)
            })
            .collect();
        let mut rules = Rules::default();
        let mut answers = Vec::new();
        for &(actor, op) in program {
            if rules.allow(actor, op) {
                actors[actor].1.send(op).unwrap();
                let code = actors[actor].2.recv().unwrap();
                rules.done(actor, op, code);
                answers.push((actor, op, code));
            }
        }
        for (actor, steps, _) in actors {
            drop(steps);
            actor.value();
        }
        answers
    })
}

fn time() -> impl Strategy<Value = Time> {
    prop_oneof![Just(Time::Past), Just(Time::Negative), Just(Time::Invalid)]
}

fn clock() -> impl Strategy<Value = clockid_t> {
    prop_oneof![Just(libc::CLOCK_REALTIME), Just(libc::CLOCK_MONOTONIC), Just(libc::CLOCK_BOOTTIME)]
}

fn op() -> impl Strategy<Value = Op> {
    let mutex = 0..MUTEXES.len();
    let rwlock = 0..RWLOCKS.len();
    prop_oneof![
        3 => mutex.clone().prop_map(Op::Try),
        2 => (mutex.clone(), time()).prop_map(|(i, time)| Op::Timed(i, time)),
        2 => (mutex.clone(), clock(), time()).prop_map(|(i, clock, time)| Op::Clock(i, clock, time)),
        4 => mutex.clone().prop_map(Op::Unlock),
        1 => mutex.prop_map(Op::Destroy),
        2 => rwlock.clone().prop_map(Op::TryRead),
        2 => (rwlock.clone(), time()).prop_map(|(i, time)| Op::TimedRead(i, time)),
        1 => rwlock.clone().prop_map(Op::TryWrite),
        1 => (rwlock.clone(), time()).prop_map(|(i, time)| Op::TimedWrite(i, time)),
        4 => rwlock.prop_map(Op::UnlockRw),
        1 => Just(Op::Post),
        1 => Just(Op::TryWait),
        1 => time().prop_map(Op::TimedWait),
        1 => (clock(), time()).prop_map(|(clock, time)| Op::ClockWait(clock, time)),
    ]
}

#[test]
fn answers_are_glibcs() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: crate::support::scaled(400) as u32,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let program = proptest::collection::vec((0..ACTORS, op()), 1..60);
    Company::Shared.keep(|| {
        runner
            .run(&program, |program| {
                let glibcs = answers(Host::Threads, Source::Glibc, &program);
                let threads = answers(Host::Threads, Source::Program, &program);
                prop_assert_eq!(&threads, &glibcs, "on threads");
                let fibers = answers(Host::Fibers { workers: 2 }, Source::Program, &program);
                prop_assert_eq!(&fibers, &glibcs, "on fibers");
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn the_two_sources_differ() {
    for name in [c"pthread_mutex_timedlock", c"pthread_rwlock_unlock", c"sem_timedwait"] {
        assert_ne!(Source::Glibc.find(name), Source::Program.find(name), "{name:?}");
    }
}
