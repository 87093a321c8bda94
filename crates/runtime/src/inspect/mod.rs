//! What the runtime can tell about itself while it runs, and when it ends.
//!
//! | part | what it tells |
//! |---|---|
//! | [`report`] | a file at the process's end: what was not, or not for free, as the program asked for |
//!
//! Nothing here is called on the way of a fiber from wait to wait; what the others leave for this room to read costs them a
//! store or two.

pub mod report;

/// What the environment asks for. Called whenever a runtime is made.
///
/// # Errors
/// `InvalidInput` for a variable that is not what it should be.
pub(crate) fn configure() -> std::io::Result<()> {
    report::configure()
}
