//! The limit that a runtime has for its fibers.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sleave::{Builder, Runtime};

use crate::support::timing::eventually;
use crate::support::{Company, Host, LONG_PATIENCE, WORKERS, Watchdog};

const MOST: usize = 10;

#[test]
fn one_too_many_is_refused_from_outside_and_inside_until_another_has_ended() {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, LONG_PATIENCE);
            let runtime = Runtime::builder().workers(workers).max_fibers(MOST).build().unwrap();
            let spawn = || Builder::new().spawn_on(&runtime, sleave::park);
            let mut fibers: Vec<_> = (0..MOST).map(|_| spawn().unwrap()).collect();
            let error = spawn().expect_err("one too many");
            assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
            assert!(error.to_string().contains("SLEAVE_MAX_FIBERS"), "{error}");
            let one = fibers.pop().unwrap();
            one.fiber().unpark();
            one.join().unwrap();
            // It counts until a moment after its joiner may go on.
            eventually("there is room again", || match spawn() {
                Ok(fiber) => {
                    fibers.push(fiber);
                    true
                }
                Err(_) => false,
            });
            fibers.iter().for_each(|fiber| fiber.fiber().unpark());
            fibers.into_iter().for_each(|fiber| fiber.join().unwrap());

            eventually("there is room for one", || runtime.statistics().fibers == 0);
            let inside = runtime.run(|| {
                let others: Vec<_> =
                    (1..MOST).map(|_| Builder::new().spawn(sleave::park).unwrap()).collect();
                let refused = Builder::new().spawn(sleave::park).expect_err("one too many").kind();
                others.iter().for_each(|fiber| fiber.fiber().unpark());
                others.into_iter().for_each(|fiber| fiber.join().unwrap());
                refused
            });
            assert_eq!(inside, ErrorKind::QuotaExceeded);
            runtime.stop();
        }
    });
}

#[test]
fn many_who_spawn_at_once_never_exceed_it() {
    Company::Shared.keep(|| {
        for workers in WORKERS {
            let _watchdog = Watchdog::over(Host::Fibers { workers }, LONG_PATIENCE);
            let runtime = Runtime::builder().workers(workers).max_fibers(MOST).build().unwrap();
            let (now, most, made) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
            let counts = Arc::new((now, most, made));
            std::thread::scope(|s| {
                for _ in 0..4 {
                    s.spawn(|| {
                        for _ in 0..2000 {
                            let counts = Arc::clone(&counts);
                            let fiber = Builder::new().spawn_on(&runtime, move || {
                                let (now, most, made) = &*counts;
                                most.fetch_max(
                                    now.fetch_add(1, Ordering::SeqCst) + 1,
                                    Ordering::SeqCst,
                                );
                                made.fetch_add(1, Ordering::SeqCst);
                                sleave::yield_now();
                                now.fetch_sub(1, Ordering::SeqCst);
                            });
                            if let Err(error) = fiber {
                                assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
                            }
                        }
                    });
                }
            });
            runtime.stop();
            let (now, most, made) = &*counts;
            assert_eq!(now.load(Ordering::SeqCst), 0);
            assert!(most.load(Ordering::SeqCst) <= MOST, "{most:?} at once");
            assert!(made.load(Ordering::SeqCst) >= MOST);
        }
    });
}

#[test]
fn nonsense_is_refused() {
    let error = Runtime::builder().max_fibers(0).build().expect_err("nothing could run");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
