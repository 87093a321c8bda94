//! The options of `sleave run`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::args::{whole, workers};

/// Options of `run`.
#[derive(Args, Clone, Debug)]
pub struct Run {
    /// Worker threads that run the fibers [default: the CPUs that the process may use]
    #[arg(long, value_name = "N", value_parser = workers, allow_negative_numbers = true)]
    pub workers: Option<usize>,
    /// Stack of a thread that does not ask for a size itself, with an optional K or M [default: as the C library's, 8M]
    #[arg(long, value_name = "SIZE", value_parser = stack, allow_negative_numbers = true)]
    pub stack: Option<usize>,
    /// How many threads there may be at once; one more is refused, EAGAIN [default: as many as memory allows]
    #[arg(long, value_name = "N", value_parser = fibers, allow_negative_numbers = true)]
    pub max_fibers: Option<usize>,
    /// A file that tells at the end what could not be done on fibers; each process writes a section
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// The program, found as a shell finds it
    #[arg(value_name = "PROGRAM")]
    pub program: OsString,
    /// Its arguments, options included
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

fn fibers(text: &str) -> Result<usize, String> {
    whole(text, 1, 1 << 32, "threads")
}

fn stack(text: &str) -> Result<usize, String> {
    const LEAST: usize = 16 << 10;
    const MOST: usize = 1 << 30;
    let expected = || "expected 16K to 1024M, such as 65536, 64K or 8M".to_owned();
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let number = whole(digits, 1, MOST, "bytes").map_err(|_| expected())?;
    let bytes = number.checked_mul(unit).ok_or_else(expected)?;
    if (LEAST..=MOST).contains(&bytes) { Ok(bytes) } else { Err(expected()) }
}

#[cfg(test)]
mod tests {
    use super::stack;

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(stack("65536"), Ok(65536));
        assert_eq!(stack("64K"), Ok(65536));
        assert_eq!(stack("8m"), Ok(8 << 20));
        assert_eq!(stack("1024M"), Ok(1 << 30));
        for nonsense in
            ["", "K", "0", "-1", "8", "15K", "1025M", "1G", "64KiB", "99999999999999999999M"]
        {
            assert!(stack(nonsense).is_err(), "{nonsense}");
        }
    }
}
