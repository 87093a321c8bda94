//! More calls than a runtime has threads for: they wait for their turn, and nothing else does.

use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sleave::Runtime;

use crate::Directory;
use crate::support::kernel::{cpu_time, os_threads};
use crate::support::timing::eventually;
use crate::support::{Company, Count, Host, LONG_PATIENCE, watchdog::Watchdog};

/// Processors of a runtime, of which one stays free for its only worker.
const MOST: usize = 512 - 1;
const CALLS: usize = MOST + 89;

#[test]
fn calls_beyond_the_limit_wait_and_others_go_on() {
    Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 1 }, LONG_PATIENCE);
        let directory = Directory::make();
        let before = os_threads();
        let runtime = Runtime::builder().workers(1).build().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (reader, inside) = (Arc::new(reader), Arc::new(Count::new()));
        let calls: Vec<_> = (0..CALLS)
            .map(|_| {
                let (reader, inside) = (Arc::clone(&reader), Arc::clone(&inside));
                let call = move || {
                    inside.up();
                    (&*reader).read_exact(&mut [0])
                };
                runtime.spawn(move || sleave::blocking(call).unwrap())
            })
            .collect();
        eventually("as many as there may be are in their calls", || {
            runtime.statistics().blocked == MOST
        });

        // Nobody spins for his turn.
        let (cpu, start) = (cpu_time(), Instant::now());
        thread::sleep(Duration::from_millis(500));
        let (used, took) = (cpu_time() - cpu, start.elapsed());
        assert!(used < took / 4, "{used:?} of CPU time in {took:?}, in which all wait");
        assert_eq!((runtime.statistics().blocked, inside.get()), (MOST, MOST));

        // Fibers run, sleep, and make calls that end by themselves.
        let path = directory.path("file");
        let works = runtime.spawn(move || {
            thread::sleep(Duration::from_millis(1));
            let mut file = std::fs::File::create(path).unwrap();
            file.write_all(b"written").unwrap();
            file.sync_all().unwrap();
            sleave::spawn(|| 7).join().unwrap()
        });
        assert_eq!(works.join().unwrap(), 7);

        writer.write_all(&[0; CALLS]).unwrap();
        calls.into_iter().for_each(|call| call.join().unwrap());
        assert_eq!((runtime.statistics().blocked, inside.get()), (0, CALLS));
        runtime.stop();
        eventually("the threads are gone", || os_threads() <= before + 1);
    });
}
