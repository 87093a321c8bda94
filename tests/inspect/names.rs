//! With the feature `backtrace`, places have the names of functions, files and lines.

use super::can;
use super::support::timing::eventually;
use super::support::{Company, Host, PATIENCE};

/// Parks, in a frame of its own.
#[inline(never)]
fn parks_in_a_function_with_a_name() {
    sleave::park();
    std::hint::black_box(());
}

#[test]
fn frames_have_functions_files_and_lines() {
    if !can() {
        return;
    }
    Company::Shared.keep(|| {
        sleave::name_frames();
        Host::Fibers { workers: 2 }.run(PATIENCE, &|_| {
            let parks = sleave::spawn(parks_in_a_function_with_a_name);
            eventually("the function is in the dump", || {
                sleave::dump_with_backtraces().to_string().lines().any(|line| {
                    line.contains("parks_in_a_function_with_a_name") && line.contains("names.rs:")
                })
            });
            parks.fiber().unpark();
            parks.join().unwrap();
        });
    });
}
