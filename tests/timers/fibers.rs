//! Callbacks are fibers, or what stands for them.

use std::panic::resume_unwind;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use crate::support::timing::{GENEROUS, eventually};
use crate::support::watchdog::Watchdog;
use crate::support::{Company, Gate, Host, LONG_PATIENCE};
use crate::{MS, each, runtime};

#[test]
fn a_callback_that_waits_delays_no_other_timer() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        let gate = Arc::new(Gate::default());
        for _ in 0..20 {
            let (send, gate) = (send.clone(), gate.clone());
            place.after(MS, move || {
                gate.pass();
                send.send("waited").unwrap();
            });
        }
        place.after(2 * MS, {
            let (send, gate) = (send.clone(), gate.clone());
            move || {
                send.send("opened").unwrap();
                gate.open();
            }
        });
        drop(send);
        let heard: Vec<_> = receive.iter().collect();
        assert_eq!(heard[0], "opened", "on one worker too");
        assert_eq!(heard.len(), 21);
    });
}

#[test]
fn a_callback_runs_on_a_fiber_of_its_own() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        let mut calls = 0;
        place.every(MS, move |timer| {
            calls += 1;
            // A stack to use, thread-locals, spawning, joining.
            let child = sleave::spawn(|| thread::sleep(MS / 4));
            child.join().unwrap();
            send.send(sleave::current().map(|fiber| fiber.id())).unwrap();
            if calls == 3 {
                timer.cancel();
            }
        });
        let ids: Vec<_> = receive.iter().map(|id| id.expect("a fiber")).collect();
        assert_eq!(ids.len(), 3);
        assert!(ids[0] < ids[1] && ids[1] < ids[2], "{ids:?}");
    });
}

#[test]
fn a_panic_ends_its_own_timer_and_nothing_else() {
    each(|place| {
        let (send, receive) = mpsc::channel();
        let other = place.every(MS, {
            let send = send.clone();
            move |_| send.send("other").unwrap()
        });
        let mut calls = 0;
        let recurring = place.every(MS, {
            let send = send.clone();
            move |_| {
                calls += 1;
                send.send("panics").unwrap();
                if calls == 2 {
                    // Not `panic!`: it would be reported, amid the test's output.
                    resume_unwind(Box::new("a callback's panic"));
                }
            }
        });
        let once = place.after(MS, move || {
            send.send("panics").unwrap();
            resume_unwind(Box::new("a callback's panic"));
        });
        eventually("both have ended", || once.is_over() && recurring.is_over());
        receive.try_iter().for_each(drop);
        assert!(receive.iter().take(5).all(|call| call == "other"), "the timer has ended");
        assert!(other.cancel());
        assert!(receive.iter().all(|call| call == "other"), "the callbacks are dropped");
    });
}

/// Three that hold the only worker for two milliseconds between their yields. If it looked at its timers
/// every 64th time only, a sleep would be late by up to 130 ms, half of that in the median.
#[test]
fn fibers_that_compute_between_their_yields_hold_up_no_timer() {
    const SLEEPS: usize = 21;
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let runtime = runtime(1);
        let late = runtime.run(|| {
            let over = Arc::new(AtomicBool::new(false));
            let computing = [(); 3].map(|()| {
                let over = over.clone();
                sleave::spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        while begun.elapsed() < 2 * MS {
                            std::hint::spin_loop();
                        }
                        sleave::yield_now();
                    }
                })
            });
            let mut late = [(); SLEEPS].map(|()| {
                let due = Instant::now() + 10 * MS;
                thread::sleep(10 * MS);
                due.elapsed()
            });
            over.store(true, Ordering::Relaxed);
            computing.into_iter().for_each(|fiber| fiber.join().unwrap());
            late.sort_unstable();
            late
        });
        runtime.stop();
        assert!(late[SLEEPS / 2] < 40 * MS, "late by {late:?}");
    });
}

#[test]
fn where_fibers_are_threads_all_of_this_holds_as_well() {
    if sleave::identity().is_err() {
        return;
    }
    // But for what is about numbers that no machine has threads for.
    let skipped =
        ["million", "hundred_thousand", "either_fires_or", "order_in_which", "where_fibers"];
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Threads, LONG_PATIENCE + GENEROUS);
        let output = Command::new(std::env::current_exe().expect("the path of this test binary"))
            .args(skipped.iter().flat_map(|name| ["--skip", name]))
            .arg("--test-threads=2")
            .env("SLEAVE_IDENTITY", "threads")
            .output()
            .expect("the child starts");
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
        assert!(said.contains("a_timer_fires_after_its_delay_and_never_early ... ok"), "{said}");
    });
}
