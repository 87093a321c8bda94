//! The C library's own functions, behind the symbols that this crate takes over.
//!
//! `dlsym(RTLD_NEXT)` finds the definition after the object that holds this code: the C
//! library's (or another interposer's). Each function has a slot, one word:
//!
//! ```text
//!             before the constructor            after it
//!   slot  ─►  first::read ─ resolves, stores,   slot ─► libc's read
//!             then calls                    
//! ```
//!
//! so a call is one load and one indirect jump, without a test for "resolved yet?". A
//! constructor (`.init_array`) fills all slots before `main`; a call that comes earlier still,
//! from the constructor of a shared library, fills its own. Two threads that do so at once store
//! the same value, hence no lock; and nothing here allocates or parks.
//!
//! A name that this C library does not have (`fcntl64`, the fortified names outside glibc) keeps
//! its first function, which says so and aborts when the program calls what does not exist.
//!
//! Sources: dlsym(3), ELF gABI on `.init_array`.

use std::ffi::{CStr, c_char, c_int, c_long, c_uchar, c_uint, c_void};
use std::mem::transmute;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{
    DIR, FILE, addrinfo, clockid_t, epoll_event, fd_set, hostent, id_t, idtype_t, iovec, mmsghdr,
    mode_t, mqd_t, msghdr, nfds_t, off_t, off64_t, pid_t, pollfd, pthread_attr_t,
    pthread_barrier_t, pthread_cond_t, pthread_mutex_t, pthread_once_t, pthread_rwlock_t,
    pthread_t, rusage, sched_param, sem_t, sembuf, siginfo_t, sigset_t, sigval, size_t, sockaddr,
    socklen_t, ssize_t, stack_t, timespec, timeval, useconds_t,
};

use crate::resolve::{Net, Resolver};

/// Looks `name` up behind this object.
pub(crate) fn resolve(name: &CStr) -> *mut c_void {
    #[cfg(target_env = "gnu")]
    if name.to_bytes().starts_with(b"pthread_cond_") {
        // On x86-64 conditions have an older form as well, and dlsym gives that one before glibc 2.36.
        // SAFETY: dlsym(3) with NUL-terminated strings.
        let newer =
            unsafe { libc::dlvsym(libc::RTLD_NEXT, name.as_ptr(), c"GLIBC_2.3.2".as_ptr()) };
        if !newer.is_null() {
            return newer;
        }
    }
    // SAFETY: dlsym(3) with a NUL-terminated name.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

/// The program called a function that neither it nor its C library has.
#[cold]
fn missing(name: &CStr) -> ! {
    crate::kernel::complain(b"sleave: the C library has no function ");
    crate::kernel::complain(name.to_bytes());
    crate::kernel::complain(b" to pass the call on to\n");
    std::process::abort()
}

/// A string literal with its NUL.
macro_rules! name {
    ($name:ident) => {
        // SAFETY: the literal ends in its only NUL.
        unsafe { CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) }
    };
}

/// Slot, first function and caller for each C function. What stands behind `;` in a parameter
/// list is passed as a variadic argument, by C's rules for those.
macro_rules! next {
    ($( $name:ident($($arg:ident: $type:ty),* $(; $($more:ident: $word:ty),+)?) -> $ret:ty; )*) => {
        $(
            /// The C library's own.
            #[allow(clippy::too_many_arguments, reason = "the C library's own")]
            #[inline(always)]
            pub(crate) unsafe fn $name(
                $($arg: $type,)* $($($more: $word,)+)?
            ) -> $ret {
                // Relaxed: the word is all there is to see; what it points to is code.
                let f = slot::$name.load(Ordering::Relaxed);
                // SAFETY: a slot holds a function of this C type: `first`'s, which has the same
                // fixed parameters, or the C library's of that name.
                unsafe {
                    let f = transmute::<*mut c_void, next!(@type ($($type),*) ($($($word),+)?) $ret)>(f);
                    f($($arg,)* $($($more,)+)?)
                }
            }
        )*

        #[allow(non_upper_case_globals)]
        mod slot {
            use super::*;
            $(
                pub(super) static $name: AtomicPtr<c_void> =
                    AtomicPtr::new(first::$name as *const () as *mut c_void);
            )*
        }

        mod first {
            use super::*;
            $(
                #[allow(clippy::too_many_arguments, reason = "the C library's own")]
                #[cold]
                pub(super) unsafe extern "C-unwind" fn $name(
                    $($arg: $type,)* $($($more: $word,)+)?
                ) -> $ret {
                    let f = resolve(name!($name));
                    if f.is_null() {
                        missing(name!($name));
                    }
                    // Relaxed: see the load.
                    slot::$name.store(f, Ordering::Relaxed);
                    // SAFETY: the caller's arguments for the function of this very name.
                    unsafe { super::$name($($arg,)* $($($more,)+)?) }
                }
            )*
        }

        extern "C" fn fill() {
            $(
                let f = resolve(name!($name));
                if !f.is_null() {
                    // Relaxed: see the load.
                    slot::$name.store(f, Ordering::Relaxed);
                }
            )*
            crate::table::watch_fork();
            crate::pthread::watch_fork();
            crate::pthread::know_objects();
            crate::green::configure();
            sleave_runtime::inspect::prepare();
        }
    };
    (@type ($($type:ty),*) () $ret:ty) => { unsafe extern "C-unwind" fn($($type),*) -> $ret };
    (@type ($($type:ty),*) ($($word:ty),+) $ret:ty) => {
        unsafe extern "C-unwind" fn($($type,)* ...) -> $ret
    };
}

/// Runs [`fill`] before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = fill;

next! {
    clock_nanosleep(clock: clockid_t, flags: c_int, time: *const timespec, left: *mut timespec) -> c_int;
    nanosleep(time: *const timespec, left: *mut timespec) -> c_int;
    sleep(seconds: c_uint) -> c_uint;
    usleep(microseconds: useconds_t) -> c_int;
    sched_yield() -> c_int;

    read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t;
    readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t;
    write(fd: c_int, buffer: *const c_void, len: size_t) -> ssize_t;
    writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t;
    __read_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t) -> ssize_t;

    preadv2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    pwritev2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;

    recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t;
    recvfrom(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t;
    recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
    send(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int) -> ssize_t;
    sendto(fd: c_int, buffer: *const c_void, len: size_t, flags: c_int, name: *const sockaddr, name_len: socklen_t) -> ssize_t;
    sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    __recv_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t;
    __recvfrom_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t, flags: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> ssize_t;

    recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int;
    sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int;

    sendfile(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t;
    splice(from: c_int, from_offset: *mut off64_t, to: c_int, to_offset: *mut off64_t, len: size_t, flags: c_uint) -> ssize_t;
    tee(from: c_int, to: c_int, len: size_t, flags: c_uint) -> ssize_t;
    vmsplice(fd: c_int, parts: *const iovec, count: size_t, flags: c_uint) -> ssize_t;

    poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int;
    ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    __poll_chk(fds: *mut pollfd, count: nfds_t, timeout: c_int, room: size_t) -> c_int;

    __ppoll_chk(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, room: size_t) -> c_int;
    select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int;
    pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    epoll_create(size: c_int) -> c_int;
    epoll_create1(flags: c_int) -> c_int;
    epoll_wait(epoll: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int;
    epoll_pwait(epoll: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t) -> c_int;
    epoll_pwait2(epoll: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int;

    socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    socketpair(domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int;
    accept(fd: c_int, name: *mut sockaddr, name_len: *mut socklen_t) -> c_int;
    accept4(fd: c_int, name: *mut sockaddr, name_len: *mut socklen_t, flags: c_int) -> c_int;
    connect(fd: c_int, name: *const sockaddr, len: socklen_t) -> c_int;
    shutdown(fd: c_int, how: c_int) -> c_int;
    setsockopt(fd: c_int, level: c_int, option: c_int, value: *const c_void, len: socklen_t) -> c_int;
    getsockopt(fd: c_int, level: c_int, option: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int;

    close(fd: c_int) -> c_int;
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    closefrom(first: c_int) -> ();
    fclose(stream: *mut FILE) -> c_int;
    pclose(stream: *mut FILE) -> c_int;
    freopen(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE;
    freopen64(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE;
    closedir(directory: *mut DIR) -> c_int;
    mq_close(queue: mqd_t) -> c_int;
    mq_timedreceive(queue: mqd_t, message: *mut c_char, len: size_t, priority: *mut c_uint, at: *const timespec) -> ssize_t;
    mq_timedsend(queue: mqd_t, message: *const c_char, len: size_t, priority: c_uint, at: *const timespec) -> c_int;
    msgrcv(queue: c_int, message: *mut c_void, len: size_t, kind: c_long, flags: c_int) -> ssize_t;
    msgsnd(queue: c_int, message: *const c_void, len: size_t, flags: c_int) -> c_int;
    semop(set: c_int, operations: *mut sembuf, count: size_t) -> c_int;
    semtimedop(set: c_int, operations: *mut sembuf, count: size_t, timeout: *const timespec) -> c_int;
    dup(fd: c_int) -> c_int;
    dup2(fd: c_int, new: c_int) -> c_int;
    dup3(fd: c_int, new: c_int, flags: c_int) -> c_int;
    pipe(ends: *mut c_int) -> c_int;
    pipe2(ends: *mut c_int, flags: c_int) -> c_int;
    eventfd(value: c_uint, flags: c_int) -> c_int;
    timerfd_create(clock: clockid_t, flags: c_int) -> c_int;
    signalfd(fd: c_int, signals: *const sigset_t, flags: c_int) -> c_int;
    inotify_init() -> c_int;
    inotify_init1(flags: c_int) -> c_int;
    fanotify_init(flags: c_uint, file_flags: c_uint) -> c_int;
    pidfd_open(process: pid_t, flags: c_uint) -> c_int;
    pidfd_getfd(process: c_int, theirs: c_int, flags: c_uint) -> c_int;
    memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    fcntl(fd: c_int, command: c_int; argument: usize) -> c_int;
    fcntl64(fd: c_int, command: c_int; argument: usize) -> c_int;
    ioctl(fd: c_int, request: libc::c_ulong; argument: usize) -> c_int;

    pthread_mutex_lock(mutex: *mut pthread_mutex_t) -> c_int;
    pthread_mutex_trylock(mutex: *mut pthread_mutex_t) -> c_int;
    pthread_mutex_timedlock(mutex: *mut pthread_mutex_t, at: *const timespec) -> c_int;
    pthread_mutex_clocklock(mutex: *mut pthread_mutex_t, clock: clockid_t, at: *const timespec) -> c_int;
    pthread_mutex_unlock(mutex: *mut pthread_mutex_t) -> c_int;
    pthread_cond_wait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t) -> c_int;
    pthread_cond_timedwait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, at: *const timespec) -> c_int;
    pthread_cond_clockwait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, clock: clockid_t, at: *const timespec) -> c_int;
    pthread_cond_signal(cond: *mut pthread_cond_t) -> c_int;
    pthread_cond_broadcast(cond: *mut pthread_cond_t) -> c_int;
    pthread_cond_destroy(cond: *mut pthread_cond_t) -> c_int;
    pthread_rwlock_rdlock(lock: *mut pthread_rwlock_t) -> c_int;
    pthread_rwlock_wrlock(lock: *mut pthread_rwlock_t) -> c_int;
    pthread_rwlock_tryrdlock(lock: *mut pthread_rwlock_t) -> c_int;
    pthread_rwlock_trywrlock(lock: *mut pthread_rwlock_t) -> c_int;
    pthread_rwlock_clockrdlock(lock: *mut pthread_rwlock_t, clock: clockid_t, at: *const timespec) -> c_int;
    pthread_rwlock_clockwrlock(lock: *mut pthread_rwlock_t, clock: clockid_t, at: *const timespec) -> c_int;
    pthread_rwlock_unlock(lock: *mut pthread_rwlock_t) -> c_int;
    pthread_barrier_wait(barrier: *mut pthread_barrier_t) -> c_int;
    pthread_barrier_destroy(barrier: *mut pthread_barrier_t) -> c_int;
    pthread_once(once: *mut pthread_once_t, routine: unsafe extern "C-unwind" fn()) -> c_int;
    sem_wait(semaphore: *mut sem_t) -> c_int;
    sem_timedwait(semaphore: *mut sem_t, at: *const timespec) -> c_int;
    sem_clockwait(semaphore: *mut sem_t, clock: clockid_t, at: *const timespec) -> c_int;
    sem_post(semaphore: *mut sem_t) -> c_int;

    open(path: *const c_char, flags: c_int; mode: mode_t) -> c_int;
    open64(path: *const c_char, flags: c_int; mode: mode_t) -> c_int;
    __open(path: *const c_char, flags: c_int; mode: mode_t) -> c_int;
    __open64(path: *const c_char, flags: c_int; mode: mode_t) -> c_int;
    openat(directory: c_int, path: *const c_char, flags: c_int; mode: mode_t) -> c_int;
    openat64(directory: c_int, path: *const c_char, flags: c_int; mode: mode_t) -> c_int;
    creat(path: *const c_char, mode: mode_t) -> c_int;
    creat64(path: *const c_char, mode: mode_t) -> c_int;
    __open_2(path: *const c_char, flags: c_int) -> c_int;
    __open64_2(path: *const c_char, flags: c_int) -> c_int;
    __openat_2(directory: c_int, path: *const c_char, flags: c_int) -> c_int;
    __openat64_2(directory: c_int, path: *const c_char, flags: c_int) -> c_int;
    open_by_handle_at(mount: c_int, handle: *mut c_void, flags: c_int) -> c_int;

    pread(fd: c_int, buffer: *mut c_void, len: size_t, offset: off_t) -> ssize_t;
    pread64(fd: c_int, buffer: *mut c_void, len: size_t, offset: off64_t) -> ssize_t;
    preadv(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t;
    preadv64(fd: c_int, parts: *const iovec, count: c_int, offset: off64_t) -> ssize_t;
    fsync(fd: c_int) -> c_int;
    fdatasync(fd: c_int) -> c_int;
    sync() -> ();
    syncfs(fd: c_int) -> c_int;
    sync_file_range(fd: c_int, offset: off64_t, len: off64_t, flags: c_uint) -> c_int;
    msync(start: *mut c_void, len: size_t, flags: c_int) -> c_int;

    flock(fd: c_int, operation: c_int) -> c_int;
    lockf(fd: c_int, command: c_int, len: off_t) -> c_int;
    lockf64(fd: c_int, command: c_int, len: off_t) -> c_int;

    getaddrinfo(node: *const c_char, service: *const c_char, hints: *const addrinfo, found: *mut *mut addrinfo) -> c_int;
    getnameinfo(address: *const sockaddr, len: socklen_t, host: *mut c_char, host_len: socklen_t, service: *mut c_char, service_len: socklen_t, flags: c_int) -> c_int;
    gethostbyname(name: *const c_char) -> *mut hostent;
    gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent;
    gethostbyaddr(address: *const c_void, len: socklen_t, family: c_int) -> *mut hostent;
    gethostbyname_r(name: *const c_char, entry: *mut hostent, buffer: *mut c_char, len: size_t, found: *mut *mut hostent, error: *mut c_int) -> c_int;
    gethostbyname2_r(name: *const c_char, family: c_int, entry: *mut hostent, buffer: *mut c_char, len: size_t, found: *mut *mut hostent, error: *mut c_int) -> c_int;
    gethostbyaddr_r(address: *const c_void, address_len: socklen_t, family: c_int, entry: *mut hostent, buffer: *mut c_char, len: size_t, found: *mut *mut hostent, error: *mut c_int) -> c_int;
    getnetbyname(name: *const c_char) -> *mut Net;
    getnetbyaddr(net: c_uint, family: c_int) -> *mut Net;
    res_query(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    res_search(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    res_querydomain(name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    res_send(query: *const c_uchar, query_len: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    res_nquery(state: Resolver, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    res_nsearch(state: Resolver, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    res_nquerydomain(state: Resolver, name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    res_nsend(state: Resolver, query: *const c_uchar, query_len: c_int, answer: *mut c_uchar, len: c_int) -> c_int;

    waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t;
    waitid(kind: idtype_t, id: id_t, info: *mut siginfo_t, options: c_int) -> c_int;
    wait4(pid: pid_t, status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t;
    system(command: *const c_char) -> c_int;

    pthread_create(thread: *mut pthread_t, attr: *const pthread_attr_t, start: *mut c_void, argument: *mut c_void) -> c_int;
    thrd_create(thread: *mut pthread_t, start: *mut c_void, argument: *mut c_void) -> c_int;
    pthread_detach(thread: pthread_t) -> c_int;
    pthread_getattr_np(thread: pthread_t, attr: *mut pthread_attr_t) -> c_int;
    pthread_setname_np(thread: pthread_t, name: *const c_char) -> c_int;
    pthread_getname_np(thread: pthread_t, name: *mut c_char, len: size_t) -> c_int;
    pthread_kill(thread: pthread_t, signal: c_int) -> c_int;
    pthread_sigqueue(thread: pthread_t, signal: c_int, value: sigval) -> c_int;
    pthread_cancel(thread: pthread_t) -> c_int;
    pthread_getschedparam(thread: pthread_t, policy: *mut c_int, parameters: *mut sched_param) -> c_int;
    pthread_setschedparam(thread: pthread_t, policy: c_int, parameters: *const sched_param) -> c_int;
    sigaltstack(new: *const stack_t, old: *mut stack_t) -> c_int;
    pthread_join(thread: pthread_t, result: *mut *mut c_void) -> c_int;
    pthread_tryjoin_np(thread: pthread_t, result: *mut *mut c_void) -> c_int;
    pthread_clockjoin_np(thread: pthread_t, result: *mut *mut c_void, clock: clockid_t, at: *const timespec) -> c_int;

    pthread_sigmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int;
    sigprocmask(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int;
    sigpending(set: *mut sigset_t) -> c_int;
    raise(signal: c_int) -> c_int;
    siglongjmp(buffer: *mut c_void, value: c_int) -> ();
    longjmp(buffer: *mut c_void, value: c_int) -> ();
    _longjmp(buffer: *mut c_void, value: c_int) -> ();
    __longjmp_chk(buffer: *mut c_void, value: c_int) -> ();
    pthread_testcancel() -> ();
    pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
    pthread_setcanceltype(kind: c_int, before: *mut c_int) -> c_int;
    sigwait(set: *const sigset_t, signal: *mut c_int) -> c_int;
    sigtimedwait(set: *const sigset_t, info: *mut siginfo_t, timeout: *const timespec) -> c_int;
    pause() -> c_int;
    sigsuspend(mask: *const sigset_t) -> c_int;

    syscall(number: c_long; a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long;
}

/// A name's address in the C library, for the test that none of the slots is ours.
#[cfg(test)]
fn object_of(address: *const c_void) -> String {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr(3) fills the structure if it knows the address; zeroed is a valid one.
    let name = unsafe {
        libc::dladdr(address, info.as_mut_ptr());
        info.assume_init().dli_fname
    };
    if name.is_null() {
        return String::new();
    }
    // SAFETY: dladdr(3): the name is a NUL-terminated string that lives as long as the object.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constructor_found_the_c_librarys_functions() {
        for slot in [&slot::read, &slot::__read_chk, &slot::syscall, &slot::close, &slot::fcntl] {
            let object = object_of(slot.load(Ordering::Relaxed));
            assert!(object.contains("libc.so"), "a slot points into {object:?}");
        }
    }

    #[test]
    fn first_function_resolves_and_calls() {
        // SAFETY: getpid(2) and close(2) of no descriptor; the first functions themselves.
        unsafe {
            assert_eq!(
                first::syscall(libc::SYS_getpid, 0, 0, 0, 0, 0, 0),
                c_long::from(std::process::id() as i32)
            );
            assert_eq!(first::close(-1), -1);
        }
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn unknown_name_resolves_to_nothing() {
        assert!(resolve(c"sleave_no_such_function").is_null());
    }
}
