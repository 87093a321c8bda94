//! The symbols are the executable's: that is how std and every shared C library come to them. And
//! none is forgotten: each function that the C library exports has a verdict in `docs/symbols.md`,
//! and each verdict is true.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_void};

mod support;

/// The page of the book: `## Verdict`, or `## Verdict: more`, and the names below it.
const PAGE: &str = include_str!("../../../docs/symbols.md");

/// The page of the book that tells how those behave that sleave defines.
const STORY: &str = include_str!("../../../docs/blocking-calls.md");

/// Verdicts on functions that sleave defines.
const OURS: [&str; 6] = ["Parks", "Wakes", "Hands off", "Yields", "Fibers", "Tracks"];
/// Verdicts on all others.
const OTHERS: [&str; 2] = ["Blocks", "Never waits"];

/// The words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Every verdict of the page.
fn verdicts() -> BTreeMap<&'static str, &'static str> {
    let mut verdicts = BTreeMap::new();
    for section in PAGE.split("\n## ").skip(1) {
        let (title, text) = section.split_once('\n').expect("a title and text");
        let verdict = title.split(':').next().expect("a verdict");
        assert!(OURS.contains(&verdict) || OTHERS.contains(&verdict), "no such verdict: {verdict}");
        // The names stand in paragraphs of their own, behind what is said of them.
        let paragraphs = text.split("\n\n").filter(|paragraph| paragraph.starts_with('`'));
        for name in paragraphs.flat_map(quoted) {
            let other = verdicts.insert(name, verdict);
            assert_eq!(other, None, "two verdicts on {name}");
        }
    }
    verdicts
}

/// The functions that sleave defines, by the page.
fn ours() -> BTreeSet<&'static str> {
    let ours = verdicts().into_iter().filter(|(_, verdict)| OURS.contains(verdict));
    ours.map(|(name, _)| name).collect()
}

/// The file of the object that holds `address`.
fn object(address: *const c_void) -> String {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr(3) fills the structure if it knows the address.
    let known = unsafe { libc::dladdr(address, info.as_mut_ptr()) };
    assert_ne!(known, 0, "an address in no object");
    // SAFETY: dladdr has filled it; the name is a NUL-terminated string.
    unsafe { CStr::from_ptr(info.assume_init().dli_fname) }.to_string_lossy().into_owned()
}

fn lookup(handle: *mut c_void, name: &str) -> *mut c_void {
    let name = CString::new(name).expect("no NUL in a symbol");
    // SAFETY: dlsym(3) with a NUL-terminated name.
    unsafe { libc::dlsym(handle, name.as_ptr()) }
}

/// This very program, as the dynamic linker names it.
fn this_object() -> String {
    object(this_object as *const c_void)
}

/// The functions of the C library that this program runs with.
fn exported() -> BTreeSet<String> {
    support::elf::functions(&object(lookup(libc::RTLD_NEXT, "read")))
}

#[test]
fn every_function_of_the_c_library_has_a_verdict() {
    let verdicts = verdicts();
    let missing: Vec<_> =
        exported().into_iter().filter(|name| !verdicts.contains_key(name.as_str())).collect();
    assert!(missing.is_empty(), "no verdict in docs/symbols.md on {missing:?}");
}

#[test]
fn the_page_lists_as_ours_exactly_what_we_define() {
    let (ours, here) = (ours(), this_object());
    let is_defined_here = |name: &str| {
        let found = lookup(libc::RTLD_DEFAULT, name);
        !found.is_null() && object(found) == here
    };
    for name in exported() {
        let listed = ours.contains(name.as_str());
        assert_eq!(is_defined_here(&name), listed, "{name}: defined here, listed as ours");
    }
    for name in ours {
        assert!(is_defined_here(name), "{name} is somebody else's");
    }
}

#[test]
fn the_book_tells_of_each_that_we_define() {
    let told: BTreeSet<_> = quoted(STORY).flat_map(str::split_whitespace).collect();
    let silent: Vec<_> = ours().into_iter().filter(|name| !told.contains(name)).collect();
    assert!(silent.is_empty(), "docs/blocking-calls.md does not tell of {silent:?}");
}

#[test]
fn next_lookup_finds_the_c_librarys() {
    for name in ours() {
        let found = lookup(libc::RTLD_NEXT, name);
        assert!(!found.is_null(), "{name} is not in the C library");
        assert_ne!(object(found), this_object(), "{name} would call itself");
    }
}

#[test]
fn rust_code_is_linked_to_the_same_definition() {
    let pairs: [(*const c_void, &str); 8] = [
        (libc::read as *const c_void, "read"),
        (libc::close as *const c_void, "close"),
        (libc::poll as *const c_void, "poll"),
        (libc::select as *const c_void, "select"),
        (libc::epoll_wait as *const c_void, "epoll_wait"),
        (libc::fcntl as *const c_void, "fcntl"),
        (libc::syscall as *const c_void, "syscall"),
        (libc::clock_nanosleep as *const c_void, "clock_nanosleep"),
    ];
    for (address, name) in pairs {
        assert_eq!(address, lookup(libc::RTLD_DEFAULT, name).cast_const(), "{name}");
    }
}
