//! The object that `sleave run` puts before a program's libraries: sleave-libc as `libsleave_preload.so`, nothing more.
//!
//! ```text
//!   LD_PRELOAD=libsleave_preload.so SLEAVE_GREEN_THREADS=1 PROGRAM
//!
//!   search order of a symbol:  PROGRAM ─▶ libsleave_preload.so ─▶ its libraries ─▶ libc.so.6
//!                                              └─ dlsym(RTLD_NEXT) ───────────────▲
//! ```
//!
//! Rust's std is inside, once more if the program is a Rust program, and calls these symbols as the program does. The
//! object does nothing until it is called: its one constructor looks up libc's functions and reads one variable of the
//! environment, and what is called before it, by another object's constructor, looks up its own. The runtime starts with the
//! first thread.
//!
//! Sources: ld.so(8) on `LD_PRELOAD`, dlsym(3).

pub use sleave_libc as libc;

/// Length of [`sleave_preload_version`].
pub const LENGTH: usize = MARK.len() + VERSION.len() + 1;

/// What the version begins with in the object.
pub const MARK: &str = "sleave preload object, version ";

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Which version this is: [`MARK`], the version, a NUL. The tool looks for it in the file, and runs no code of an
/// object that is not its own.
#[unsafe(no_mangle)]
#[used]
#[allow(non_upper_case_globals, reason = "a symbol of the object")]
pub static sleave_preload_version: [u8; LENGTH] = {
    let mut text = [0; LENGTH];
    let mut at = 0;
    while at < MARK.len() {
        text[at] = MARK.as_bytes()[at];
        at += 1;
    }
    while at < MARK.len() + VERSION.len() {
        text[at] = VERSION.as_bytes()[at - MARK.len()];
        at += 1;
    }
    text
};
