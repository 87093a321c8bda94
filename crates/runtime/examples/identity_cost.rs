//! What an identity costs: `cargo run --release -p sleave-runtime --example identity_cost`.
//!
//! Prints what was found out about the C library, then nanoseconds for a new identity (with the
//! page faults of its memory), for one that is used again, and for a change of identity.

use std::time::Instant;

use sleave_runtime::identity;

const SLOT: usize = 64 * 1024;
const IDENTITIES: usize = 2_000;
const ROUNDS: usize = 2_000_000;

fn main() {
    let start = Instant::now();
    let kit = match identity::kit() {
        Ok(kit) => kit,
        Err(why) => return println!("no identities: {why}"),
    };
    let probe = start.elapsed();
    print!("{}", kit.report());
    println!("probe: {} µs, {} bytes per identity", probe.as_micros(), kit.size());
    kit.adopt_thread();

    let own = identity::thread_pointer();
    // SAFETY: mmap(2) of fresh, zeroed memory.
    let slots = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            SLOT * IDENTITIES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    } as usize;
    // Equal offsets would fall into the same cache sets: the slots are coloured.
    let tops = (0..IDENTITIES).map(|i| slots + (i + 1) * SLOT - i % 16 * 128);
    let identities: Vec<usize> = tops.map(|top| kit.thread_pointer_below(top)).collect();
    let measure = |what: &str, count: usize, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        println!("{what}: {:.1} ns", start.elapsed().as_nanos() as f64 / count as f64);
    };

    measure("create", IDENTITIES, &mut || {
        for (i, &tp) in identities.iter().enumerate() {
            // SAFETY: fresh memory of a slot of its own; unique ids above those of the kernel.
            unsafe { kit.create(tp, tp - 4096..tp, (1 << 23) + i as u32) }.expect("a dtv");
        }
    });
    for (what, group) in [("recycle, 1 identity", 1), ("recycle, 2,000 in turn", IDENTITIES)] {
        measure(what, ROUNDS, &mut || {
            for i in 0..ROUNDS {
                // SAFETY: nothing runs on it.
                unsafe { kit.recycle(identities[i % group], (1 << 23) + i as u32) };
            }
        });
    }
    measure("enter", 2 * ROUNDS, &mut || {
        for _ in 0..ROUNDS {
            // SAFETY: both are identities, and nothing here uses a thread-local in between.
            unsafe {
                kit.enter(identities[0]);
                kit.enter(own);
            }
        }
    });
    // SAFETY: as above; `start` and `finish` run with the identity in force.
    measure("enter, start, finish, recycle", ROUNDS, &mut || unsafe {
        for i in 0..ROUNDS {
            kit.enter(identities[0]);
            kit.start();
            kit.finish();
            kit.enter(own);
            kit.recycle(identities[0], (1 << 23) + i as u32);
        }
    });
    measure("destroy", IDENTITIES, &mut || {
        for &tp in &identities {
            // SAFETY: nothing runs on it.
            unsafe { kit.destroy(tp) };
        }
    });
}
