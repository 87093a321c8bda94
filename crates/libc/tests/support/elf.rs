//! The functions that a shared library exports: its dynamic symbol table, read from its file.
//!
//! ```text
//!   section headers ─▶ .dynsym     one entry for each symbol: name, kind, section
//!                  ─▶ .dynstr     the names
//!                  ─▶ .gnu.version     a version number for each symbol
//!                  ─▶ .gnu.version_d   the names of the versions
//! ```
//!
//! Sources: elf(5), "ELF Symbol Versioning" by Ulrich Drepper.

use std::collections::{BTreeSet, HashMap};

const SYMBOLS: u32 = 11;
const VERSIONS: u32 = 0x6fff_ffff;
const VERSION_NAMES: u32 = 0x6fff_fffd;
const FUNCTION: u8 = 2;
const INDIRECT_FUNCTION: u8 = 10;

struct Bytes(Vec<u8>);

impl Bytes {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("inside the file")
    }

    fn half(&self, at: usize) -> usize {
        u16::from_le_bytes(self.array(at)).into()
    }

    fn word(&self, at: usize) -> usize {
        u32::from_le_bytes(self.array(at)) as usize
    }

    fn long(&self, at: usize) -> usize {
        u64::from_le_bytes(self.array(at)) as usize
    }

    fn text(&self, at: usize) -> String {
        let bytes = self.0[at..].iter().take_while(|&&byte| byte != 0);
        String::from_utf8(bytes.copied().collect()).expect("names are ASCII")
    }
}

/// Where a section lies: offset, size, and the section that it refers to.
struct Section {
    at: usize,
    size: usize,
    link: usize,
}

/// The names of the functions that the 64-bit little-endian library `path` exports, but those of
/// versions whose name ends in `PRIVATE`.
pub fn functions(path: &str) -> BTreeSet<String> {
    let file = Bytes(std::fs::read(path).expect("the library's file"));
    assert_eq!(file.0[..6], *b"\x7fELF\x02\x01", "{path}: ELF, 64 bits, little-endian");
    let (headers, size, count) = (file.long(40), file.half(58), file.half(60));
    let section = |index: usize| {
        let at = headers + index * size;
        Section { at: file.long(at + 24), size: file.long(at + 32), link: file.word(at + 40) }
    };
    let find = |kind: u32| {
        let index = (0..count).find(|&i| file.word(headers + i * size + 4) == kind as usize);
        section(index.unwrap_or_else(|| panic!("{path} has no section of kind {kind:#x}")))
    };
    let versions = find(VERSIONS);
    let private = private_versions(&file, &find(VERSION_NAMES), section);
    let symbols = find(SYMBOLS);
    let names = section(symbols.link).at;
    let entry = |i: usize| {
        let at = symbols.at + i * 24;
        let kind = file.0[at + 4] & 0xf;
        let defined = file.half(at + 6) != 0;
        let version = file.half(versions.at + i * 2) & 0x7fff;
        let is_function = kind == FUNCTION || kind == INDIRECT_FUNCTION;
        let wanted = is_function && defined && !private.get(&version).copied().unwrap_or(false);
        wanted.then(|| file.text(names + file.word(at)))
    };
    (0..symbols.size / 24).filter_map(entry).collect()
}

/// Which version numbers are private.
fn private_versions(
    file: &Bytes,
    definitions: &Section,
    section: impl Fn(usize) -> Section,
) -> HashMap<usize, bool> {
    let names = section(definitions.link).at;
    let mut private = HashMap::new();
    let mut at = definitions.at;
    loop {
        let (number, auxiliary, next) = (file.half(at + 4), file.word(at + 12), file.word(at + 16));
        let name = file.text(names + file.word(at + auxiliary));
        private.insert(number, name.ends_with("PRIVATE"));
        if next == 0 {
            return private;
        }
        at += next;
    }
}
