//! The pool of fibers: slots are used again, not more of them are kept than was asked for, and memory that goes back
//! is gone.
//!
//! There is one pool in the process, so every test runs alone. What is counted is counted where nothing moves: on the
//! only worker, or when the runtime has stopped. (A fiber can be joined a moment before its slot is back.)
//!
//! Sources: proc(5) (`smaps_rollup`), mincore(2).

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
mod support;

#[allow(dead_code, reason = "its main prints")]
#[path = "../examples/pool.rs"]
mod example;

use std::env;
use std::hint::black_box;
use std::io::ErrorKind;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sleave::pool::{self, Statistics};
use sleave::{Runtime, spawn};
use support::timing::eventually;
use support::watchdog::Watchdog;
use support::{Company, Flag, Gate, Host, LONG_PATIENCE, WORKERS, scaled};

/// Runs `body` on this plain thread, alone, with an empty pool and no limit, once for each number of workers.
fn for_each_size(body: impl Fn(usize)) {
    Company::Alone.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, LONG_PATIENCE);
            let _unlimited = Unlimited;
            pool::set_limit(None);
            pool::trim();
            body(workers);
        }
    });
}

/// Lifts the limit at the end, however that comes.
struct Unlimited;

impl Drop for Unlimited {
    fn drop(&mut self) {
        pool::set_limit(None);
    }
}

fn runtime(workers: usize) -> Runtime {
    Runtime::builder().workers(workers).build().expect("a runtime")
}

/// Runs `fibers` fibers that are all there at once and call `deed`.
fn at_once(fibers: usize, deed: impl Fn() + Send + Copy + 'static) {
    let (gate, arrived) = (Arc::new(Gate::default()), Arc::new(support::Count::new()));
    let tasks: Vec<_> = (0..fibers)
        .map(|_| {
            let (gate, arrived) = (Arc::clone(&gate), Arc::clone(&arrived));
            spawn(move || {
                deed();
                arrived.up();
                gate.pass();
            })
        })
        .collect();
    while arrived.get() < fibers {
        sleave::yield_now();
    }
    gate.open();
    tasks.into_iter().for_each(|task| task.join().unwrap());
}

/// Writes to `bytes` of the calling fiber's stack; returns an address near the low end of that.
#[inline(never)]
fn dig<const BYTES: usize>() -> usize {
    let mut frame = [0xa5_u8; BYTES];
    black_box(&mut frame).as_ptr() as usize + 4096
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("/proc is mounted");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).expect("Rss is there");
    let kib = line.split_whitespace().next().and_then(|number| number.parse::<usize>().ok());
    kib.expect("a number of KiB") << 10
}

/// Whether the page at `address` is in memory.
fn is_resident(address: usize) -> bool {
    let page = address & !4095;
    let mut answer = 0_u8;
    // SAFETY: mincore(2) writes one byte for one page, and reads nothing there.
    let result = unsafe { libc::mincore(page as *mut _, 4096, &raw mut answer) };
    assert_eq!(result, 0, "the address is mapped");
    answer & 1 != 0
}

/// What has happened since `before`: slots made, used again, trimmed.
fn since(before: Statistics) -> (u64, u64, u64) {
    let now = pool::statistics();
    (now.made - before.made, now.reused - before.reused, now.trimmed - before.trimmed)
}

#[test]
fn fibers_one_after_another_share_a_slot() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let (made, reused, _) = runtime.run(|| {
            let before = pool::statistics();
            (0..1_000).for_each(|_| spawn(|| ()).join().unwrap());
            since(before)
        });
        runtime.stop();
        assert_eq!(made + reused, 1_000, "each fiber that began is counted once");
        // One that runs and one that is on its way back, for each worker.
        let most = if workers == 1 { 1 } else { 2 * workers as u64 };
        assert!(made <= most, "{workers} workers: {made} slots for a fiber at a time");
        let rest = pool::statistics();
        assert_eq!(rest.in_use, 0, "{rest:?}");
        assert_eq!(rest.warm as u64, rest.made - rest.trimmed, "{rest:?}");
    });
}

#[test]
fn as_many_slots_are_made_as_fibers_run_at_once() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let before = pool::statistics();
        for _ in 0..3 {
            runtime.run(|| at_once(300, || ()));
        }
        runtime.stop();
        let (made, reused, _) = since(before);
        assert_eq!(made + reused, 903);
        // A moment may pass until the slots of one round are back for the next.
        assert!((301..=903).contains(&made), "{made}");
        if workers == 1 {
            assert_eq!(made, 301);
        }
    });
}

#[test]
fn odd_sizes_are_used_again_too() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let before = pool::statistics();
        runtime.run(|| {
            for _ in 0..200 {
                let builder = sleave::Builder::new().stack_size(1 << 20);
                builder.spawn(dig::<600_000>).unwrap().join().unwrap();
            }
        });
        runtime.stop();
        let (made, reused, _) = since(before);
        assert_eq!(made + reused, 201);
        assert!(made <= 1 + 2 * workers as u64, "{made}");
    });
}

#[test]
fn no_more_than_the_limit_stay_warm() {
    for_each_size(|workers| {
        for limit in [1, 10, 60] {
            pool::set_limit(Some(limit));
            assert_eq!(pool::limit(), Some(limit));
            let runtime = runtime(workers);
            let before = pool::statistics();
            runtime.run(|| {
                at_once(500, || ());
                if workers == 1 {
                    // The only worker could have them all.
                    assert_eq!(pool::statistics().warm, limit);
                }
            });
            runtime.stop();
            let rest = pool::statistics();
            assert_eq!(rest.in_use, 0, "{rest:?}");
            assert!(rest.warm <= limit, "{workers} workers, limit {limit}: {rest:?}");
            let (made, reused, trimmed) = since(before);
            assert_eq!(made + reused, 501);
            assert!(trimmed >= 500 - limit as u64, "{trimmed} trimmed");
        }
    });
}

#[test]
fn a_lowered_limit_reaches_what_idle_workers_keep() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        // Left on the shelves of workers that sleep from now on.
        runtime.spawn(|| at_once(300, || ())).join().unwrap();
        eventually("all slots are back", || pool::statistics().in_use == 0);
        assert!(pool::statistics().warm > 20);
        pool::set_limit(Some(20));
        assert_eq!(pool::statistics().warm, 20);
        pool::set_limit(Some(0));
        assert_eq!(pool::statistics().warm, 0);
        pool::set_limit(None);
        assert_eq!(pool::limit(), None);
        runtime.spawn(|| at_once(300, || ())).join().unwrap();
        eventually("all slots are back", || pool::statistics().in_use == 0);
        let warm = pool::statistics().warm;
        assert!(warm > 20, "without a limit they stay: {warm}");
        assert_eq!(pool::trim(), warm);
        assert_eq!(pool::statistics().warm, 0);
        runtime.stop();
    });
}

#[test]
fn without_a_pool_each_fiber_is_made_anew_and_leaves_nothing() {
    for_each_size(|workers| {
        const FIBERS: u64 = 200;
        pool::set_limit(Some(0));
        let runtime = runtime(workers);
        let before = pool::statistics();
        runtime.run(|| {
            for _ in 0..FIBERS {
                let (deep, was) = spawn(|| {
                    let deep = dig::<65_536>();
                    (deep, is_resident(deep))
                })
                .join()
                .unwrap();
                assert!(was, "while it runs its stack is in memory");
                if workers == 1 {
                    assert!(!is_resident(deep), "its memory was gone before it could be joined");
                } else {
                    eventually("its memory is gone", || !is_resident(deep));
                }
            }
        });
        runtime.stop();
        // The one that `run` ran on, too.
        assert_eq!(since(before), (FIBERS + 1, 0, FIBERS + 1));
        let rest = pool::statistics();
        assert_eq!((rest.in_use, rest.warm), (0, 0), "{rest:?}");
        assert!(rest.empty > 0, "{rest:?}");
    });
}

#[test]
fn a_trim_returns_the_memory() {
    const FIBERS: usize = 300;
    const DEPTH: usize = 100_000;
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let before = resident();
        runtime.run(|| at_once(FIBERS, || assert_ne!(dig::<DEPTH>(), 0)));
        runtime.stop();
        let grown = resident().saturating_sub(before);
        assert!(
            grown > FIBERS * DEPTH,
            "{grown} bytes for {FIBERS} stacks of which {DEPTH} were used"
        );
        let trimmed = pool::trim();
        assert!(trimmed >= FIBERS, "{trimmed}");
        let left = resident().saturating_sub(before);
        assert!(left < grown / 10, "of {grown} bytes {left} are left");
    });
}

#[test]
fn what_a_deep_fiber_has_touched_is_not_kept_for_ever() {
    // Few enough to stay warm all the time: the memory goes, the slots do not.
    const FIBERS: usize = 50;
    const DEPTH: usize = 180_000;
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let before = resident();
        // All on the shelf of a worker that is idle afterwards.
        runtime.spawn(|| at_once(FIBERS, || assert_ne!(dig::<DEPTH>(), 0))).join().unwrap();
        eventually("all slots are back", || pool::statistics().in_use == 0);
        eventually("the deep part of their stacks is gone", || {
            resident().saturating_sub(before) < FIBERS * 40_000
        });
        let warm = pool::statistics().warm;
        assert!(warm >= FIBERS, "{warm} warm");
        runtime.stop();
    });
}

#[test]
fn a_burst_is_forgotten_while_nothing_runs() {
    const FIBERS: usize = 2_000;
    for_each_size(|workers| {
        let runtime = runtime(workers);
        runtime.spawn(|| at_once(FIBERS, || ())).join().unwrap();
        eventually("most of the burst is forgotten", || pool::statistics().warm <= FIBERS * 3 / 4);
        runtime.stop();
    });
}

/// Owners and visitors of shelves, takers and givers, limits up and down, all at once.
#[test]
fn memory_is_returned_and_limits_change_while_fibers_come_and_go() {
    for_each_size(|workers| {
        let runtime = runtime(workers);
        let stop = Arc::new(Flag::new());
        let before = pool::statistics();
        let meddlers: Vec<_> = (0..2)
            .map(|meddler| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || {
                    let mut rounds = 0;
                    while !stop.is_up() {
                        pool::trim();
                        pool::set_limit([None, Some(0), Some(40), Some(7)][(rounds + meddler) % 4]);
                        let _ = black_box(pool::statistics());
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        let fibers = scaled(20_000);
        let sum = Arc::new(AtomicUsize::new(0));
        runtime.run(|| {
            for chunk in 0..fibers / 50 {
                let tasks: Vec<_> = (0..50)
                    .map(|i| {
                        let sum = Arc::clone(&sum);
                        let stack = if i % 10 == 0 { 300_000 } else { 100_000 };
                        let body = move || {
                            let mark = [chunk * 50 + i; 40];
                            let mark = black_box(&mark);
                            sleave::yield_now();
                            assert!(mark.iter().all(|&word| word == chunk * 50 + i));
                            sum.fetch_add(mark[7], Ordering::Relaxed);
                        };
                        sleave::Builder::new().stack_size(stack).spawn(body).unwrap()
                    })
                    .collect();
                // Some one at a time, of the usual size.
                (0..10).for_each(|_| spawn(|| ()).join().unwrap());
                tasks.into_iter().for_each(|task| task.join().unwrap());
            }
        });
        runtime.stop();
        stop.raise();
        let rounds: usize = meddlers.into_iter().map(|meddler| meddler.join().unwrap()).sum();
        assert!(rounds > 0);
        let fibers = fibers / 50 * 50;
        assert_eq!(sum.load(Ordering::Relaxed), (0..fibers).sum());

        let (made, reused, _) = since(before);
        assert_eq!(made + reused, (fibers + fibers / 50 * 10 + 1) as u64);
        let rest = pool::statistics();
        assert_eq!(rest.in_use, 0, "{rest:?}");
        pool::set_limit(Some(7));
        assert!(pool::statistics().warm <= 7);
        // The books still balance: exactly as many as allowed can be kept.
        pool::trim();
        let runtime = self::runtime(1);
        runtime.run(|| at_once(100, || ()));
        runtime.stop();
        assert_eq!(pool::statistics().warm, 7);
    });
}

/// Runs the test `name` again in a process of its own with `variables`; true in that process.
fn in_child(name: &str, variables: &[(&str, &str)]) -> bool {
    const CHILD: &str = "SLEAVE_TEST_CHILD";
    if env::var_os(CHILD).is_some() {
        return true;
    }
    let output = Command::new(env::current_exe().expect("the path of this test binary"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .envs(variables.iter().copied())
        .output()
        .expect("the child starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    false
}

#[test]
fn the_environment_sets_the_limit() {
    if in_child("the_environment_sets_the_limit", &[("SLEAVE_POOL", "50")]) {
        assert_eq!(pool::limit(), Some(50));
        let runtime = runtime(1);
        runtime.run(|| at_once(300, || ()));
        runtime.stop();
        assert_eq!(pool::statistics().warm, 50);
        pool::set_limit(Some(3));
        assert_eq!(pool::limit(), Some(3));
        self::runtime(1).stop();
        assert_eq!(pool::limit(), Some(3), "what the program says goes before the environment");
    }
}

#[test]
fn an_environment_of_zero_means_no_reuse() {
    if in_child("an_environment_of_zero_means_no_reuse", &[("SLEAVE_POOL", "0")]) {
        let runtime = runtime(1);
        runtime.run(|| (0..10).for_each(|_| spawn(|| ()).join().unwrap()));
        runtime.stop();
        let rest = pool::statistics();
        assert_eq!((rest.made, rest.reused, rest.trimmed, rest.warm), (11, 0, 11, 0));
    }
}

#[test]
fn an_environment_that_is_no_number_is_said() {
    if in_child("an_environment_that_is_no_number_is_said", &[("SLEAVE_POOL", "-1")]) {
        assert_eq!(pool::limit(), None);
        for _ in 0..2 {
            let error = Runtime::builder().workers(1).build().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("SLEAVE_POOL=\"-1\""), "{error}");
        }
        pool::set_limit(None);
        Runtime::builder().workers(1).build().unwrap().stop();
    }
}

#[test]
fn where_fibers_are_threads_there_is_no_pool() {
    if in_child("where_fibers_are_threads_there_is_no_pool", &[("SLEAVE_IDENTITY", "threads")]) {
        sleave::run(|| spawn(|| ()).join().unwrap());
        assert_eq!(pool::statistics(), Statistics::default());
        assert_eq!(pool::trim(), 0);
        pool::set_limit(Some(5));
        assert_eq!(pool::limit(), Some(5));
    }
}

#[test]
fn the_example_tells_what_it_should() {
    Company::Alone.keep(|| {
        let story = example::story();
        let expected = [
            "1,000 fibers, one after another: 1 slots made, 999 times one was used again",
            "1,000 fibers at once: 999 slots made, 1 times one was used again",
            "1,000 at once, again: 0 slots made, 1000 times one was used again",
            "100 fibers without a pool: 100 slots made, 0 times one was used again",
            "when they ran at once, 1001 slots were in use, one by this fiber",
            "with a limit of 100, of 1,000 slots stayed warm: 100",
            "after a trim: 0 warm, 1 in use",
        ];
        assert_eq!(story, expected);
    });
}
