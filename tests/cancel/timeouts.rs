//! Time limits: what they end, how they nest, and that nothing of them stays.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use sleave::{JoinHandle, park, timeout};

use crate::on_runtimes;

const SHORT: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_secs(600);

#[test]
fn what_waits_too_long_ends_and_what_does_not_goes_on() {
    on_runtimes(|runtime| {
        runtime.run(|| {
            let begin = Instant::now();
            assert!(timeout(SHORT, park).is_err());
            assert!(begin.elapsed() >= SHORT, "too early");
            assert_eq!(timeout(LONG, || 7), Ok(7));
            // Afterwards waits are as ever.
            let begin = Instant::now();
            thread::sleep(SHORT);
            assert!(begin.elapsed() >= SHORT);
            assert!(!sleave::cancel::is_due());
        });
    });
}

#[test]
fn calls_for_descriptors_fail_by_time_and_sleeps_are_over() {
    on_runtimes(|runtime| {
        runtime.run(|| {
            let (mut near, _far) = UnixStream::pair().unwrap();
            let code = timeout(SHORT, || near.read(&mut [0]).unwrap_err().raw_os_error());
            assert_eq!(code, Ok(Some(libc::ETIMEDOUT)));
            let begin = Instant::now();
            assert_eq!(timeout(SHORT, || thread::sleep(LONG)), Ok(()));
            assert!(begin.elapsed() >= SHORT && begin.elapsed() < LONG / 2);
        });
    });
}

#[test]
fn the_outer_limit_ends_the_inner_work_and_is_not_caught_inside() {
    on_runtimes(|runtime| {
        runtime.run(|| {
            let mut inner = None;
            let outer = timeout(SHORT, || inner = Some(timeout(LONG, park)));
            assert!(outer.is_err());
            assert_eq!(inner, None, "the inner one has caught what was not its own");
            let outer = timeout(LONG, || timeout(SHORT, park).is_err());
            assert_eq!(outer, Ok(true));
            // The limit of a fiber is not that of those that it spawns.
            let child: Result<JoinHandle<()>, _> =
                timeout(LONG, || sleave::spawn(|| thread::sleep(2 * SHORT)));
            child.unwrap().join().unwrap();
        });
    });
}

#[test]
fn a_panic_passes_through() {
    on_runtimes(|runtime| {
        let fiber = runtime.spawn(|| timeout(LONG, || std::panic::resume_unwind(Box::new(7))));
        let payload: Box<dyn std::any::Any + Send> = match fiber.join() {
            Err(payload) => payload,
            Ok(_) => panic!("it has returned"),
        };
        assert_eq!(payload.downcast_ref(), Some(&7));
    });
}

#[test]
fn a_cancelled_fiber_is_not_held_by_its_limits() {
    on_runtimes(|runtime| {
        let fiber = runtime.spawn(|| timeout(LONG, park).is_err());
        crate::support::timing::eventually("it waits", || runtime.statistics().waiting == 1);
        fiber.cancel();
        crate::assert_cancelled(fiber);
    });
}

#[test]
fn joins_give_up_and_give_the_handle_back() {
    on_runtimes(|runtime| {
        let fiber = runtime.spawn(park);
        let begin = Instant::now();
        let fiber = fiber.join_timeout(SHORT).expect_err("it parks");
        assert!(begin.elapsed() >= SHORT);
        fiber.fiber().unpark();
        assert!(fiber.join_timeout(LONG).expect("it has ended").is_ok());
        runtime.run(|| {
            let fiber = sleave::spawn(park);
            let fiber = fiber.join_timeout(SHORT).expect_err("it parks");
            fiber.cancel();
            crate::assert_cancelled(fiber);
        });
    });
}
