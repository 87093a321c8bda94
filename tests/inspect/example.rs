//! The example says what it is meant to say.

use super::can;
use super::support::{Company, Host, PATIENCE, Watchdog};

#[allow(dead_code, reason = "its main prints")]
#[path = "../../examples/dump.rs"]
mod dump;

#[test]
fn the_dump_names_what_each_waits_for() {
    if !can() {
        return;
    }
    let mut told = Company::Alone.keep(|| {
        let _watchdog = Watchdog::over(Host::Fibers { workers: 2 }, PATIENCE);
        dump::tell(&dump::story())
    });
    // `reader` and the others may begin in any order.
    told.sort_unstable();
    let expected = [
        "holder sleeps, with a deadline",
        "joiner waits for a fiber's end",
        "locker waits for a lock",
        "parked waits to be unparked",
        "reader waits to read",
    ];
    assert_eq!(told, expected);
}
