//! Names for the places of backtraces: the feature `backtrace`.
//!
//! The runtime knows addresses, and of those the names that the dynamic linker knows. Functions, files and lines stand in the
//! debugging information, which the crate `backtrace`, the one that std is built with, can read.

use std::fmt::Write;

/// From now on the places in dumps, reports and [`blocked_calls`](crate::blocked_calls) have the names of functions, and files and lines as
/// far as the program has debugging information.
///
/// The first name costs reading that information: some milliseconds, and memory of about its size. A dump on a signal and a
/// report of a dead-lock read it then.
///
/// # Examples
///
/// ```
/// sleave::name_frames();
/// println!("{}", sleave::dump_with_backtraces());
/// ```
pub fn name_frames() {
    sleave_runtime::inspect::name_places_by(name);
}

/// What stands at `address`, the innermost of inlined functions first; `None` if nothing is known.
fn name(address: usize) -> Option<String> {
    let mut text = String::new();
    backtrace::resolve(address as *mut _, |symbol| {
        let Some(name) = symbol.name() else { return };
        if !text.is_empty() {
            text.push_str(", inlined into ");
        }
        // Without the hash. Writing to a string does not fail.
        let _ = write!(text, "{name:#}");
        if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
            let _ = write!(text, " ({}:{line})", file.display());
        }
    });
    (!text.is_empty()).then_some(text)
}
