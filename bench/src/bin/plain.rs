//! What a plain thread pays for the interposition: the same calls through sleave's symbols and through the C
//! library's own, by turns in one run.
//!
//! ```text
//! cargo run --release --bin plain [rounds]
//! ```
//!
//! A thread that is no fiber gets the C library's call after one load and one compare. Calls that the kernel answers
//! at once are shown, so that little hides the difference. Two do more: `close` also tells the table of
//! descriptors, whoever calls, and a futex's wake looks for fibers that wait before it asks the kernel for threads.

use std::ffi::{CStr, c_int, c_long, c_void};
use std::hint::black_box;
use std::time::Duration;

use sleave_bench::{Comparison, Figure, rounds};

const SLICE: Duration = Duration::from_micros(500);
const ROUNDS: usize = 1001;

type Transfer = unsafe extern "C" fn(c_int, *mut c_void, usize) -> isize;
type Message = unsafe extern "C" fn(c_int, *mut c_void, usize, c_int) -> isize;
type Poll = unsafe extern "C" fn(*mut libc::pollfd, libc::nfds_t, c_int) -> c_int;
type Nothing = unsafe extern "C" fn() -> c_int;
type Close = unsafe extern "C" fn(c_int) -> c_int;
type Syscall = unsafe extern "C" fn(c_long, *const u32, c_int, c_int) -> c_long;
type Sleep =
    unsafe extern "C" fn(c_int, c_int, *const libc::timespec, *mut libc::timespec) -> c_int;

/// The same functions, from one of two places.
#[derive(Clone, Copy)]
struct Calls {
    read: Transfer,
    write: Transfer,
    send: Message,
    recv: Message,
    poll: Poll,
    sched_yield: Nothing,
    close: Close,
    syscall: Syscall,
    clock_nanosleep: Sleep,
}

impl Calls {
    /// All of them, as `find` knows them.
    fn find(find: impl Fn(&CStr) -> *mut c_void) -> Calls {
        let find = |name: &CStr| {
            let address = find(name);
            assert!(!address.is_null(), "no function {name:?}");
            address
        };
        // SAFETY: each is the C function of that name, whose arguments travel as those of the type here do: a
        // variadic number or pointer as a fixed one (psABI).
        unsafe {
            use std::mem::transmute as function;
            Calls {
                read: function::<*mut c_void, Transfer>(find(c"read")),
                write: function::<*mut c_void, Transfer>(find(c"write")),
                send: function::<*mut c_void, Message>(find(c"send")),
                recv: function::<*mut c_void, Message>(find(c"recv")),
                poll: function::<*mut c_void, Poll>(find(c"poll")),
                sched_yield: function::<*mut c_void, Nothing>(find(c"sched_yield")),
                close: function::<*mut c_void, Close>(find(c"close")),
                syscall: function::<*mut c_void, Syscall>(find(c"syscall")),
                clock_nanosleep: function::<*mut c_void, Sleep>(find(c"clock_nanosleep")),
            }
        }
    }

    /// This program's: sleave's, which its linker has put before the C library's.
    fn interposed() -> Calls {
        let symbol = |name: &CStr| match name.to_bytes() {
            b"read" => libc::read as *mut c_void,
            b"write" => libc::write as *mut c_void,
            b"send" => libc::send as *mut c_void,
            b"recv" => libc::recv as *mut c_void,
            b"poll" => libc::poll as *mut c_void,
            b"sched_yield" => libc::sched_yield as *mut c_void,
            b"close" => libc::close as *mut c_void,
            b"syscall" => libc::syscall as *mut c_void,
            b"clock_nanosleep" => libc::clock_nanosleep as *mut c_void,
            _ => std::ptr::null_mut(),
        };
        Calls::find(|name| {
            assert_ne!(symbol(name), next(name), "{name:?} is the C library's own");
            symbol(name)
        })
    }

    /// The C library's own.
    fn own() -> Calls {
        Calls::find(next)
    }
}

/// The function behind this program's.
fn next(name: &CStr) -> *mut c_void {
    // SAFETY: dlsym(3) with a name.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

/// What the calls work on.
struct Things {
    zero: c_int,
    null: c_int,
    pipe: [c_int; 2],
    sockets: [c_int; 2],
}

impl Things {
    fn open() -> Things {
        let (mut pipe, mut sockets) = ([0; 2], [0; 2]);
        // SAFETY: open(2), pipe(2), socketpair(2) with what they ask for.
        unsafe {
            let zero = libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY);
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY);
            assert!(zero >= 0 && null >= 0);
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            let pair = libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, sockets.as_mut_ptr());
            assert_eq!(pair, 0);
            Things { zero, null, pipe, sockets }
        }
    }
}

/// A row: its name, and the call, which is right if it returns what it should.
type Row = (&'static str, fn(&Calls, &Things) -> bool);

const ROWS: [Row; 9] = [
    ("read, 1 byte of /dev/zero", |calls, things| {
        let mut byte = 0u8;
        // SAFETY: read(2) of one byte of ours.
        unsafe { (calls.read)(things.zero, (&raw mut byte).cast(), 1) == 1 }
    }),
    ("write, 1 byte to /dev/null", |calls, things| {
        let mut byte = 0u8;
        // SAFETY: write(2) of one byte of ours.
        unsafe { (calls.write)(things.null, (&raw mut byte).cast(), 1) == 1 }
    }),
    ("write and read, 1 byte through a pipe", |calls, Things { pipe: [out, into], .. }| {
        let mut byte = 0u8;
        let at = (&raw mut byte).cast();
        // SAFETY: as above.
        unsafe { (calls.write)(*into, at, 1) + (calls.read)(*out, at, 1) == 2 }
    }),
    ("send and recv, 1 byte over a socket pair", |calls, Things { sockets: [near, far], .. }| {
        let mut byte = 0u8;
        let at = (&raw mut byte).cast();
        // SAFETY: send(2) and recv(2) of one byte of ours.
        unsafe { (calls.send)(*near, at, 1, 0) + (calls.recv)(*far, at, 1, 0) == 2 }
    }),
    ("poll, one descriptor, no waiting", |calls, Things { pipe: [out, _], .. }| {
        let mut one = libc::pollfd { fd: *out, events: libc::POLLIN, revents: 0 };
        // SAFETY: poll(2) of one entry of ours.
        unsafe { (calls.poll)(&mut one, 1, 0) == 0 }
    }),
    ("sched_yield", |calls, _| {
        // SAFETY: sched_yield(2) takes nothing.
        unsafe { (calls.sched_yield)() == 0 }
    }),
    ("syscall(SYS_futex), a wake without a waiter", |calls, _| {
        let word = 0u32;
        let wake = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: futex(2): the word is only an address.
        unsafe { (calls.syscall)(libc::SYS_futex, &raw const word, wake, 1) == 0 }
    }),
    ("clock_nanosleep, refused", |calls, _| {
        // Any time at all costs a timer, microseconds; a wrong one is refused at once.
        let wrong = libc::timespec { tv_sec: 0, tv_nsec: -1 };
        let (clock, flags) = (libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME);
        let none = std::ptr::null_mut();
        // SAFETY: clock_nanosleep(2) reads the time; an absolute one leaves no rest.
        unsafe { (calls.clock_nanosleep)(clock, flags, &wrong, none) == libc::EINVAL }
    }),
    ("close of a number that is nobody's", |calls, _| {
        // SAFETY: close(2) of a number that no process can have.
        unsafe { (calls.close)(c_int::MAX) == -1 }
    }),
];

fn main() {
    let rounds = rounds(ROUNDS);
    let (things, own, ours) =
        (Things::open(), black_box(Calls::own()), black_box(Calls::interposed()));
    // A program that has fibers, on one of its other threads.
    sleave::run(|| sleave::spawn(|| ()).join()).expect("a fiber");
    let mut comparison = Comparison::new();
    for (name, call) in ROWS {
        for calls in [&own, &ours] {
            let things = &things;
            comparison.add(name, 1, move |n| {
                for _ in 0..n {
                    assert!(call(calls, things), "{name} failed");
                }
            });
        }
    }
    let figures = comparison.measure(rounds, SLICE);
    println!("| a plain thread's call | libc's own, ns | through sleave, ns | difference, ns |");
    println!("|---|---:|---:|---:|");
    for pair in figures.chunks(2) {
        let [Figure { name, median: own, .. }, Figure { median: ours, .. }] = pair else {
            unreachable!("two of each")
        };
        println!("| {name} | {own:.1} | {ours:.1} | {:.1} |", ours - own);
    }
}
