//! The preload object: where it lies, and whether it is this tool's.
//!
//! In this order: `SLEAVE_PRELOAD` in the environment; in `deps`, where cargo leaves the one that it has built with the
//! tool; beside the tool; in `../lib`.
//! The object says its version in a string of a symbol of its own, which is read from the file: no code of a stranger
//! is run to find out that it is one.

use std::path::{Path, PathBuf};

use sleave_preload::{LENGTH, MARK, sleave_preload_version};

use super::Refusal;

/// The name of the file.
const NAME: &str = "libsleave_preload.so";

/// The variable that names the object.
const VARIABLE: &str = "SLEAVE_PRELOAD";

/// Finds the object.
pub(super) fn find() -> Result<PathBuf, Refusal> {
    let object = match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => beside_the_tool()?,
    };
    let object = object
        .canonicalize()
        .map_err(|error| Refusal::ours(format!("{VARIABLE}={}: {error}", object.display())))?;
    check(&object)?;
    Ok(object)
}

fn beside_the_tool() -> Result<PathBuf, Refusal> {
    let tool = std::env::current_exe().map_err(|error| {
        Refusal::ours(format!("where this tool lies cannot be found out: {error}"))
    })?;
    let directory = tool.parent().unwrap_or(Path::new("/"));
    let places = [directory.join("deps"), directory.into(), directory.join("../lib")];
    places.iter().map(|place: &PathBuf| place.join(NAME)).find(|object| object.exists()).ok_or_else(|| {
        Refusal::ours(format!(
            "{NAME} is missing: it belongs beside the tool ({}) or into ../lib; {VARIABLE} may name another place. \
             `cargo build --release` at the top of the checkout makes both.",
            directory.display()
        ))
    })
}

/// Whether `object` is of this very version, and can be named in LD_PRELOAD.
fn check(object: &Path) -> Result<(), Refusal> {
    let shown = object.display();
    // ld.so(8): names are separated by spaces and colons, and there is no way to quote one.
    let text = object.as_os_str().as_encoded_bytes();
    if text.iter().any(|byte| b" :".contains(byte)) || text.contains(&b'$') {
        return Err(Refusal::ours(format!(
            "{shown}: LD_PRELOAD cannot name a path with a space, a colon or a dollar sign; \
             put the object elsewhere, and its path into {VARIABLE}"
        )));
    }
    let bytes =
        std::fs::read(object).map_err(|error| Refusal::ours(format!("{shown}: {error}")))?;
    let expected = version(&sleave_preload_version[MARK.len()..]);
    let found = bytes.windows(MARK.len()).position(|window| window == MARK.as_bytes());
    let Some(at) = found.map(|at| at + MARK.len()) else {
        return Err(Refusal::ours(format!("{shown} is no preload object of sleave's")));
    };
    let found = version(&bytes[at..bytes.len().min(at + LENGTH)]);
    if found != expected {
        return Err(Refusal::ours(format!(
            "{shown} is of version {found}, this tool of version {expected}: they belong together"
        )));
    }
    Ok(())
}

/// The text up to a NUL.
fn version(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
