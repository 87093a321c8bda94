//! What was found, for people: the tests, `examples/identity_cost.rs`, and whoever meets an unknown glibc.

use std::fmt;

use super::malloc::{Unknown, Words};
use super::template::Word;
use super::{Kit, Patch};

/// What [`super::kit`] found out about the C library.
#[derive(Clone, Debug)]
pub struct Report {
    /// glibc's version.
    pub version: String,
    /// Bytes of `struct pthread`.
    pub pthread_size: usize,
    /// Bytes of static TLS with its surplus, without `struct pthread`.
    pub static_tls: usize,
    /// Bytes of static TLS that modules use now.
    pub static_tls_used: usize,
    /// Alignment of a thread pointer.
    pub align: usize,
    /// Whether a recycled identity gets its static TLS by one copy.
    pub fast_recycle: bool,
    /// Offsets from the thread pointer of malloc's cache and arena, or why they are not followed.
    pub malloc: Result<(isize, isize), &'static str>,
    /// Whether the program allocates with glibc's malloc at all.
    pub malloc_is_glibcs: bool,
    /// Words of `struct pthread` that are not zero in a new thread, by offset.
    pub pthread: Vec<(usize, Word)>,
    /// Words of libc's thread-locals that a starting thread sets, by offset.
    pub libc_tls: Vec<(isize, Patch)>,
}

impl Kit {
    /// What was found.
    pub fn report(&self) -> Report {
        Report {
            version: self.glibc.version.clone(),
            pthread_size: self.glibc.pthread_size,
            static_tls: self.glibc.static_size - self.glibc.pthread_size,
            static_tls_used: self.images.current().len(),
            align: self.glibc.static_align,
            fast_recycle: self.images.current().is_usable(),
            malloc: match self.malloc.found {
                Ok(Words { cache, arena }) => Ok((cache, arena)),
                Err(Unknown::Blind) => Err("no pipe to look through"),
                Err(Unknown::Cache) => Err("no word behaves like malloc's cache"),
                Err(Unknown::Arena) => Err("no word behaves like malloc's arena"),
            },
            malloc_is_glibcs: self.glibc.malloc_is_the_programs(),
            pthread: self.template.kinds.clone(),
            libc_tls: self.images.patches().to_vec(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "identity: glibc {}, struct pthread {} bytes, static TLS {} bytes ({} used), aligned \
             to {}",
            self.version, self.pthread_size, self.static_tls, self.static_tls_used, self.align
        )?;
        match (self.malloc, self.malloc_is_glibcs) {
            (_, false) => {
                writeln!(f, "malloc: not glibc's; what it keeps per thread is per fiber")?
            }
            (Ok((cache, arena)), true) => {
                writeln!(f, "malloc: cache ({cache:+}) and arena ({arena:+}) follow the worker")?;
            }
            (Err(why), true) => writeln!(f, "malloc: a cache per fiber, for {why}")?,
        }
        let how = if self.fast_recycle { "a copy" } else { "glibc (a library opened later)" };
        writeln!(f, "recycled: by {how}")?;
        for (offset, word) in &self.pthread {
            writeln!(f, "struct pthread {offset:5}: {word}")?;
        }
        for (offset, patch) in &self.libc_tls {
            match patch {
                Patch::Constant(value) => writeln!(f, "libc {offset:+5}: constant {value:#x}")?,
                Patch::Relative(distance) => {
                    writeln!(f, "libc {offset:+5}: relative {distance:+}")?
                }
            }
        }
        Ok(())
    }
}
