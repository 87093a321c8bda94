//! Addresses of code, as the dynamic linker knows them: by exported symbols, else by object and offset, which addr2line(1)
//! and a debugger understand.

use std::ffi::{CStr, c_int, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use sleave_context::lock::Lock;

use crate::fiber::AtWork;

/// Who knows more of addresses than the dynamic linker; null if nobody does.
static NAMER: AtomicPtr<()> = AtomicPtr::new(null_mut());

/// Has `namer` name places from now on, where it can: for whoever reads debugging information. It is called when a dump, a report or a
/// list of blocked calls is made, on whatever thread or fiber does that, without a lock of the runtime's.
pub fn name_places_by(namer: fn(usize) -> Option<String>) {
    // Release: with what it relies on.
    NAMER.store(namer as *mut (), Ordering::Release);
}

fn named(address: usize) -> Option<String> {
    // Acquire pairs with `name_places_by`.
    let namer = NAMER.load(Ordering::Acquire);
    if namer.is_null() || address == 0 {
        return None;
    }
    // SAFETY: not null, so it is a function of this type.
    let namer = unsafe { std::mem::transmute::<*mut (), fn(usize) -> Option<String>>(namer) };
    namer(address)
}

/// An address in a program.
pub(super) struct Place {
    address: usize,
    /// Where the object begins that it lies in.
    object: Option<usize>,
    file: String,
    /// What whoever knows more has called it.
    name: Option<String>,
    symbol: Option<(String, usize)>,
}

impl Place {
    pub(super) fn of(address: usize) -> Place {
        let mut info = libc::Dl_info {
            dli_fname: std::ptr::null(),
            dli_fbase: std::ptr::null_mut(),
            dli_sname: std::ptr::null(),
            dli_saddr: std::ptr::null_mut(),
        };
        // SAFETY: dladdr(3) of any address; it writes the struct, with strings that are there as long as the object.
        let found = address != 0 && unsafe { libc::dladdr(address as *const _, &mut info) } != 0;
        let text = |name: *const libc::c_char| {
            // SAFETY: as above.
            (!name.is_null())
                .then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
        };
        let file = text(info.dli_fname).unwrap_or_default();
        Place {
            address,
            object: found.then_some(info.dli_fbase as usize),
            file: file.rsplit('/').next().unwrap_or_default().to_owned(),
            name: named(address),
            symbol: text(info.dli_sname)
                .map(|symbol| (symbol, address.wrapping_sub(info.dli_saddr as usize))),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.symbol, self.object) {
            _ if self.address == 0 => f.write_str("a place that is not known"),
            _ if self.name.is_some() => f.write_str(self.name.as_deref().unwrap_or_default()),
            (Some((symbol, offset)), _) => write!(f, "{symbol}+{offset:#x} ({})", self.file),
            (None, Some(object)) => write!(f, "{}+{:#x}", self.file, self.address - object),
            (None, None) => write!(f, "{:#x}", self.address),
        }
    }
}

/// Code of one object.
#[derive(Clone, Copy)]
struct Code {
    start: usize,
    len: usize,
    /// Where its object has been loaded: tells objects apart.
    object: usize,
}

/// What is known of the objects in this process.
static CODE: Lock<Vec<Code>> = Lock::new(Vec::new());

/// Learns which objects there are. Takes a lock of the loader's: not for the monitor, which may look after one who holds it.
pub(super) fn learn() {
    unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _: usize, all: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr(3): an object with so many headers, alive during the call; `all` is `learn`'s own.
        let (info, headers, all) = unsafe {
            let info = &*info;
            if info.dlpi_phdr.is_null() {
                return 0;
            }
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
            (info, headers, &mut *all.cast::<Vec<Code>>())
        };
        let code = |header: &&libc::Elf64_Phdr| {
            header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0
        };
        all.extend(headers.iter().filter(code).map(|header| Code {
            start: info.dlpi_addr.wrapping_add(header.p_vaddr) as usize,
            len: header.p_memsz as usize,
            object: info.dlpi_addr as usize,
        }));
        0
    }
    let _at_work = AtWork::begin();
    let mut all = Vec::new();
    // SAFETY: dl_iterate_phdr(3) calls `look` with its argument, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut all).cast()) };
    *CODE.lock() = all;
}

/// The first of `addresses` that is code of another object than `own`, among those learnt.
pub(super) fn elsewhere(own: usize, addresses: &[usize]) -> Option<usize> {
    let all = CODE.lock();
    let object = |address: usize| {
        let code = all.iter().find(|code| address.wrapping_sub(code.start) < code.len);
        code.map(|code| code.object)
    };
    let own = object(own)?;
    let other = |&&address: &&usize| object(address).is_some_and(|object| object != own);
    addresses.iter().find(other).copied()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    static DATA: u8 = 1;

    #[test]
    fn code_of_another_object_is_found_and_has_a_name() {
        learn();
        let exit = libc::exit as *const () as usize;
        let test = code_of_another_object_is_found_and_has_a_name as fn() as usize;
        let addresses = [0, exit + 1, &raw const DATA as usize, 1, test, exit];
        assert_eq!(elsewhere(exit, &addresses), Some(test));
        assert_eq!(elsewhere(test, &addresses), Some(exit + 1));
        assert_eq!(elsewhere(0, &addresses), None);
        let name = Place::of(exit + 1).to_string();
        assert!(name.starts_with("exit+0x1 (libc"), "{name}");
        assert_eq!(Place::of(0).to_string(), "a place that is not known");
    }
}
