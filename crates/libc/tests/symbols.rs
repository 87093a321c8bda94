//! The symbols are the executable's: that is how std and every shared C library come to them.

use std::ffi::{CStr, CString, c_void};

mod support;

/// Every symbol that the crate documents.
const SYMBOLS: &[&str] = &[
    "__open64_2",
    "__open_2",
    "__openat64_2",
    "__openat_2",
    "__poll_chk",
    "__read_chk",
    "__recv_chk",
    "__recvfrom_chk",
    "accept",
    "accept4",
    "call_once",
    "clock_nanosleep",
    "close",
    "cnd_broadcast",
    "cnd_destroy",
    "cnd_signal",
    "cnd_timedwait",
    "cnd_wait",
    "connect",
    "creat",
    "creat64",
    "dup",
    "dup2",
    "dup3",
    "eventfd",
    "fcntl",
    "fcntl64",
    "fdatasync",
    "flock",
    "fsync",
    "getaddrinfo",
    "gethostbyaddr",
    "gethostbyaddr_r",
    "gethostbyname",
    "gethostbyname2",
    "gethostbyname2_r",
    "gethostbyname_r",
    "getnameinfo",
    "getnetbyaddr",
    "getnetbyname",
    "getsockopt",
    "ioctl",
    "lockf",
    "lockf64",
    "msync",
    "mtx_lock",
    "mtx_timedlock",
    "mtx_trylock",
    "mtx_unlock",
    "nanosleep",
    "open",
    "open64",
    "openat",
    "openat64",
    "pause",
    "pclose",
    "pipe",
    "pipe2",
    "poll",
    "ppoll",
    "pread",
    "pread64",
    "preadv",
    "preadv64",
    "pthread_barrier_destroy",
    "pthread_barrier_wait",
    "pthread_clockjoin_np",
    "pthread_cond_broadcast",
    "pthread_cond_clockwait",
    "pthread_cond_destroy",
    "pthread_cond_signal",
    "pthread_cond_timedwait",
    "pthread_cond_wait",
    "pthread_join",
    "pthread_mutex_clocklock",
    "pthread_mutex_lock",
    "pthread_mutex_timedlock",
    "pthread_mutex_trylock",
    "pthread_mutex_unlock",
    "pthread_once",
    "pthread_rwlock_clockrdlock",
    "pthread_rwlock_clockwrlock",
    "pthread_rwlock_rdlock",
    "pthread_rwlock_timedrdlock",
    "pthread_rwlock_timedwrlock",
    "pthread_rwlock_tryrdlock",
    "pthread_rwlock_trywrlock",
    "pthread_rwlock_unlock",
    "pthread_rwlock_wrlock",
    "pthread_timedjoin_np",
    "read",
    "readv",
    "recv",
    "recvfrom",
    "recvmsg",
    "res_nquery",
    "res_nquerydomain",
    "res_nsearch",
    "res_nsend",
    "res_query",
    "res_querydomain",
    "res_search",
    "res_send",
    "sched_yield",
    "sem_clockwait",
    "sem_post",
    "sem_timedwait",
    "sem_wait",
    "send",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "sigsuspend",
    "sigtimedwait",
    "sigwait",
    "sigwaitinfo",
    "sleep",
    "socket",
    "socketpair",
    "sync",
    "sync_file_range",
    "syncfs",
    "syscall",
    "system",
    "thrd_join",
    "timerfd_create",
    "usleep",
    "wait",
    "wait3",
    "wait4",
    "waitid",
    "waitpid",
    "write",
    "writev",
];

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

#[test]
fn default_lookup_finds_the_executables_definition() {
    for name in SYMBOLS {
        let found = lookup(libc::RTLD_DEFAULT, name);
        assert!(!found.is_null(), "{name} is nowhere");
        assert_eq!(object(found), this_object(), "{name} is somebody else's");
    }
}

#[test]
fn next_lookup_finds_the_c_librarys() {
    for name in SYMBOLS {
        let found = lookup(libc::RTLD_NEXT, name);
        assert!(!found.is_null(), "{name} is not in the C library");
        assert_ne!(object(found), this_object(), "{name} would call itself");
    }
}

#[test]
fn rust_code_is_linked_to_the_same_definition() {
    let pairs: [(*const c_void, &str); 6] = [
        (libc::read as *const c_void, "read"),
        (libc::close as *const c_void, "close"),
        (libc::poll as *const c_void, "poll"),
        (libc::fcntl as *const c_void, "fcntl"),
        (libc::syscall as *const c_void, "syscall"),
        (libc::clock_nanosleep as *const c_void, "clock_nanosleep"),
    ];
    for (address, name) in pairs {
        assert_eq!(address, lookup(libc::RTLD_DEFAULT, name).cast_const(), "{name}");
    }
}
