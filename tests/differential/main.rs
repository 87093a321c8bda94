//! A few hundred small programs, drawn at random, run on threads and on fibers, and compared.
//!
//! sleave claims that a fiber is a thread that the kernel does not know. So whatever a program does with
//! descriptors must come out the same: return values, `errno`, data, and waits that last as long. The
//! programs here make, connect, duplicate, close and shut down sockets, pipes, eventfds and epoll instances,
//! and read, write, splice and wait for them, by several actors.
//!
//! ```text
//!   program ──┬─▶ OS threads ──────────▶ what each step came to
//!             └─▶ fibers, 1, 2, 4 workers ─▶ must be equal
//! ```
//!
//! **A program has one outcome only.** Actors take turns: a step begins when the one before has ended. What
//! might wait for ever waits for a moment, by a timeout. Two actors act at once only in a *meeting*: one waits for
//! what the other makes happen, which comes to the same whoever is first.
//!
//! A difference is a bug of the runtime, or of a program that has more than one outcome: threads are
//! compared with threads, too. proptest shrinks what fails, and prints it. Each run draws the same programs;
//! `PROPTEST_RNG_SEED=n` draws others, `PROPTEST_CASES=n` more.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#[path = "../support/mod.rs"]
mod support;

mod calls;
mod meeting;
mod program;
mod world;

use std::sync::{Condvar, Mutex};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

use meeting::Meeting;
use program::{ACTORS, Step, program};
use support::{Company, Host, PATIENCE, WORKERS};
use world::World;

/// Whose turn it is: the step, and in a meeting how far it has come.
#[derive(Default)]
struct Turn {
    step: usize,
    phase: Phase,
    /// An actor has failed: nobody has a turn any more.
    failed: bool,
}

#[derive(Default)]
enum Phase {
    /// The step has not begun.
    #[default]
    Before,
    /// Both may act; so many have.
    Met(std::sync::Arc<Meeting>, usize),
}

/// One run of a program.
struct Run<'a> {
    program: &'a [Step],
    world: World,
    turn: Mutex<Turn>,
    turned: Condvar,
    /// What came of each step: step, part of it, outcome.
    log: Mutex<Vec<(usize, &'static str, String)>>,
}

impl Run<'_> {
    /// What `actor` does from the first step to the last.
    fn act(&self, actor: usize) {
        let _failing = Failing(self);
        for (number, step) in self.program.iter().enumerate() {
            match step {
                Step::One(one, op) if *one == actor => {
                    self.await_step(number);
                    self.note(number, "does", self.world.run(number, op));
                    self.next(number);
                }
                Step::Pair(one, slot, waiting, waking) if *one == actor => {
                    self.await_step(number);
                    match self.world.arrange(*slot, *waiting, *waking) {
                        None => self.next(number),
                        Some(meeting) => {
                            let meeting = std::sync::Arc::new(meeting);
                            self.lock().phase = Phase::Met(meeting.clone(), 0);
                            self.turned.notify_all();
                            self.note(number, "waits", self.world.wait(&meeting));
                            self.part(number);
                        }
                    }
                }
                Step::Pair(one, ..) if (one + 1) % ACTORS == actor => {
                    if let Some(meeting) = self.await_meeting(number) {
                        self.note(number, "wakes", self.world.wake(number, &meeting));
                        drop(meeting);
                        self.part(number);
                    }
                }
                _ => {}
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Turn> {
        self.turn.lock().expect("no actor has failed")
    }

    fn note(&self, step: usize, part: &'static str, outcome: String) {
        self.log.lock().expect("no actor has failed").push((step, part, outcome));
    }

    fn await_turn(&self, not_yet: impl Fn(&Turn) -> bool) -> std::sync::MutexGuard<'_, Turn> {
        let not_yet = |turn: &mut Turn| !turn.failed && not_yet(turn);
        let turn = self.turned.wait_while(self.lock(), not_yet).expect("no actor has failed");
        assert!(!turn.failed, "another actor has failed");
        turn
    }

    fn await_step(&self, number: usize) {
        drop(self.await_turn(|turn| turn.step != number));
    }

    /// The meeting of step `number`; `None` if there is none.
    fn await_meeting(&self, number: usize) -> Option<std::sync::Arc<Meeting>> {
        let turn = self.await_turn(|turn| {
            turn.step < number || turn.step == number && matches!(turn.phase, Phase::Before)
        });
        match &turn.phase {
            Phase::Met(meeting, _) if turn.step == number => Some(meeting.clone()),
            _ => None,
        }
    }

    /// One of two has done its part of the step.
    fn part(&self, number: usize) {
        let mut turn = self.lock();
        let Phase::Met(meeting, parts) = &mut turn.phase else { unreachable!("a meeting is on") };
        *parts += 1;
        if *parts == 2 {
            self.world.leave(meeting);
            drop(turn);
            self.next(number);
        }
    }

    fn next(&self, number: usize) {
        *self.lock() = Turn { step: number + 1, ..Turn::default() };
        self.turned.notify_all();
    }
}

/// Tells the others when its actor has failed.
struct Failing<'a>(&'a Run<'a>);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Ok(mut turn) = self.0.turn.lock() {
                turn.failed = true;
            }
            self.0.turned.notify_all();
        }
    }
}

/// Runs `program` on `host`; what came of it, in the order of the steps.
fn outcome(host: Host, program: &[Step]) -> Vec<(usize, &'static str, String)> {
    host.run(PATIENCE, &|host: Host| {
        let run = Run {
            program,
            world: World::new(host),
            turn: Mutex::default(),
            turned: Condvar::new(),
            log: Mutex::default(),
        };
        host.scope(|scope| {
            for actor in 0..ACTORS {
                let run = &run;
                scope.spawn(move || run.act(actor));
            }
        });
        let mut log = run.log.into_inner().expect("no actor has failed");
        log.sort_unstable();
        log
    })
}

/// The first step that came out differently.
fn difference(
    program: &[Step],
    reference: &[(usize, &'static str, String)],
    other: &[(usize, &'static str, String)],
) -> Option<String> {
    let at = reference.iter().zip(other).find(|(a, b)| a != b);
    let step = |number: usize| &program[number];
    at.map(|(a, b)| format!("{:?}\n  {} {}\n  {} {}", step(a.0), a.1, a.2, b.1, b.2))
        .or_else(|| (reference.len() != other.len()).then(|| "a step is missing".into()))
}

/// Threads first, twice; then fibers, which must not differ.
fn compare(program: &[Step]) -> Result<(), TestCaseError> {
    let reference = outcome(Host::Threads, program);
    let again = outcome(Host::Threads, program);
    if let Some(difference) = difference(program, &reference, &again) {
        return Err(TestCaseError::fail(format!("threads among themselves: {difference}")));
    }
    for workers in WORKERS {
        let host = Host::Fibers { workers };
        let result = outcome(host, program);
        if let Some(difference) = difference(program, &reference, &result) {
            return Err(TestCaseError::fail(format!("threads, then {host}: {difference}")));
        }
    }
    Ok(())
}

#[test]
fn random_programs_come_out_the_same() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let environment = Config::default();
    let rng_seed = match environment.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        fixed => fixed,
    };
    let config = Config {
        rng_seed,
        cases: cases.unwrap_or(if cfg!(debug_assertions) { 60 } else { 300 }),
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..environment
    };
    Company::Alone.keep(|| {
        let result = TestRunner::new(config).run(&program(), |program| compare(&program));
        match result {
            Ok(()) => {}
            Err(TestError::Fail(reason, program)) => {
                let steps: Vec<_> = program.iter().map(|step| format!("    {step:?}")).collect();
                panic!("{reason}\n  of the program\n{}", steps.join("\n"));
            }
            Err(error) => panic!("{error}"),
        }
    });
}
