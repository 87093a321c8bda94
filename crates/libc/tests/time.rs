//! Sleeping on threads and on fibers: lengths, deadlines, error numbers.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libc::timespec;
use support::{errno, everywhere, outcome, set_errno};

mod support;

const SHORT: Duration = Duration::from_millis(30);

fn spec(time: Duration) -> timespec {
    timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

/// Runs `sleep`, which must take at least [`SHORT`].
fn takes_its_time<R>(sleep: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = sleep();
    assert!(start.elapsed() >= SHORT, "slept for {:?} only", start.elapsed());
    result
}

fn clock_nanosleep(clock: i32, flags: i32, time: &timespec) -> i32 {
    // SAFETY: clock_nanosleep(2) reads one timespec; the time left is not wanted.
    unsafe { libc::clock_nanosleep(clock, flags, time, std::ptr::null_mut()) }
}

#[test]
fn relative_sleeps_last() {
    everywhere(|| {
        let short = spec(SHORT);
        for clock in [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME] {
            assert_eq!(takes_its_time(|| clock_nanosleep(clock, 0, &short)), 0);
        }
        // SAFETY: nanosleep(2) reads one timespec; usleep(3) takes a number.
        unsafe {
            let nothing = std::ptr::null_mut();
            assert_eq!(outcome(takes_its_time(|| libc::nanosleep(&short, nothing))), Ok(0));
            assert_eq!(outcome(takes_its_time(|| libc::usleep(30_000))), Ok(0));
            assert_eq!(libc::sleep(0), 0);
        }
    });
}

#[test]
fn absolute_sleeps_end_at_their_time_on_their_clock() {
    everywhere(|| {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") + SHORT;
        let sleep = || clock_nanosleep(libc::CLOCK_REALTIME, libc::TIMER_ABSTIME, &spec(wall));
        assert_eq!(sleep(), 0);
        assert!(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") >= wall);

        let mut now = spec(Duration::ZERO);
        // SAFETY: clock_gettime(2) writes one timespec.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        let until = Duration::new(now.tv_sec as u64, now.tv_nsec as u32) + SHORT;
        let absolute = libc::TIMER_ABSTIME;
        let sleep = || clock_nanosleep(libc::CLOCK_MONOTONIC, absolute, &spec(until));
        assert_eq!(takes_its_time(sleep), 0);
        // What has passed ends at once; 1970 would otherwise never come back.
        let past = spec(Duration::from_nanos(1));
        assert_eq!(clock_nanosleep(libc::CLOCK_REALTIME, absolute, &past), 0);
    });
}

#[test]
fn invalid_times_are_refused() {
    everywhere(|| {
        for (tv_sec, tv_nsec) in [(0, 1_000_000_000), (0, -1), (-1, 0)] {
            let time = timespec { tv_sec, tv_nsec };
            set_errno(libc::EXDEV);
            for flags in [0, libc::TIMER_ABSTIME] {
                assert_eq!(clock_nanosleep(libc::CLOCK_MONOTONIC, flags, &time), libc::EINVAL);
            }
            assert_eq!(errno(), libc::EXDEV, "clock_nanosleep returns its error and sets nothing");
            // SAFETY: nanosleep(2) reads one timespec.
            let result = unsafe { libc::nanosleep(&time, std::ptr::null_mut()) };
            assert_eq!(outcome(result), Err(libc::EINVAL));
        }
    });
}

#[test]
fn clocks_that_do_not_exist_are_refused() {
    everywhere(|| {
        let time = spec(Duration::ZERO);
        assert_eq!(clock_nanosleep(4711, 0, &time), libc::EINVAL);
        assert_eq!(clock_nanosleep(libc::CLOCK_THREAD_CPUTIME_ID, 0, &time), libc::EINVAL);
        let raw = clock_nanosleep(libc::CLOCK_MONOTONIC_RAW, 0, &time);
        assert!([libc::EINVAL, libc::ENOTSUP].contains(&raw), "a clock nobody can sleep on: {raw}");
    });
}

#[test]
fn null_time_is_efault() {
    everywhere(|| {
        let nothing = std::ptr::null::<timespec>();
        // SAFETY: nanosleep(2) and clock_nanosleep(2) answer a null pointer with EFAULT.
        unsafe {
            let out = std::ptr::null_mut();
            assert_eq!(outcome(libc::nanosleep(nothing, out)), Err(libc::EFAULT));
            assert_eq!(libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, nothing, out), libc::EFAULT);
        }
    });
}

#[test]
fn success_leaves_errno_alone() {
    everywhere(|| {
        set_errno(libc::EXDEV);
        std::thread::sleep(Duration::from_millis(1));
        // SAFETY: usleep(3) and sched_yield(2) take no pointers.
        unsafe {
            assert_eq!(libc::usleep(1), 0);
            assert_eq!(libc::sched_yield(), 0);
        }
        assert_eq!(errno(), libc::EXDEV);
    });
}
