//! The resolver: names to addresses and back; and a name server of our own that takes its time. (No other is asked: there
//! may be none.)

use std::ffi::{CStr, c_int, c_ulong};
use std::mem::zeroed;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::ptr::null_mut;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::kernel::os_threads;
use crate::support::{everywhere, on_fibers};

#[test]
fn names_are_resolved_as_on_a_thread() {
    everywhere(|host| {
        host.spawn_many(20, |i| {
            let found = |name: &str| {
                let mut found: Vec<_> = (name, 80 + i as u16).to_socket_addrs()?.collect();
                found.sort();
                std::io::Result::Ok(found)
            };
            let localhost = found("localhost").expect("localhost has an address");
            assert!(localhost.iter().any(|address| address.ip().is_loopback()));
            (localhost, found("127.0.0.1").unwrap(), found("::1").unwrap())
        })
    });
}

#[test]
fn c_functions_answer_as_on_a_thread() {
    everywhere(|_| {
        // SAFETY: resolver functions with strings, zeroed structures and buffers of their own sizes; what
        // they point to is copied before the next call.
        unsafe {
            let mut hints = zeroed::<libc::addrinfo>();
            hints.ai_flags = libc::AI_NUMERICHOST;
            let mut list = null_mut();
            let no_number = libc::getaddrinfo(c"a name".as_ptr(), null_mut(), &hints, &mut list);

            let mut address = zeroed::<libc::sockaddr_in>();
            address.sin_family = libc::AF_INET as libc::sa_family_t;
            address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
            let len = size_of_val(&address) as libc::socklen_t;
            let name = |flags| {
                let mut name = [0; 256];
                let code = libc::getnameinfo(
                    (&raw const address).cast(),
                    len,
                    name.as_mut_ptr(),
                    256,
                    null_mut(),
                    0,
                    flags,
                );
                (code, CStr::from_ptr(name.as_ptr()).to_owned())
            };

            let (mut host, mut buffer) = (zeroed::<libc::hostent>(), vec![0; 4096]);
            let (mut found, mut error) = (null_mut(), 0);
            let code = gethostbyname_r(
                c"localhost".as_ptr(),
                &mut host,
                buffer.as_mut_ptr(),
                buffer.len(),
                &mut found,
                &mut error,
            );
            assert!(!found.is_null());
            let official = CStr::from_ptr((*found).h_name).to_owned();
            let small = gethostbyname_r(
                c"localhost".as_ptr(),
                &mut host,
                buffer.as_mut_ptr(),
                1,
                &mut found,
                &mut error,
            );
            (no_number, name(0), name(libc::NI_NUMERICHOST), name(-1).0, code, official, small)
        }
    });
}

unsafe extern "C" {
    fn gethostbyname_r(
        name: *const libc::c_char,
        host: *mut libc::hostent,
        buffer: *mut libc::c_char,
        len: usize,
        found: *mut *mut libc::hostent,
        error: *mut i32,
    ) -> i32;
}

#[test]
fn interposition_is_on_again_afterwards() {
    on_fibers(|_| {
        ("localhost", 0).to_socket_addrs().unwrap().for_each(drop);
        assert!(sleave::interpose(true));
    });
}

/// A name server that knows an address for every name, and tells it only when `DELAY` is over.
fn slow_name_server() -> SocketAddr {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut late: std::collections::VecDeque<(Instant, Vec<u8>, SocketAddr)> =
            Default::default();
        let mut query = [0; 512];
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            let next = late.front().map_or(end, |(due, ..)| *due);
            let left = next.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            if let Ok((len, asker)) = socket.recv_from(&mut query) {
                late.push_back((Instant::now() + DELAY, answer(&query[..len]), asker));
            }
            while late.front().is_some_and(|(due, ..)| *due <= Instant::now()) {
                let (_, answer, asker) = late.pop_front().unwrap();
                socket.send_to(&answer, asker).unwrap();
            }
        }
    });
    address
}

const DELAY: Duration = Duration::from_millis(500);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 1, 2, 3);

/// RFC 1035, 4.1: the query's header and question, and one record of type A.
fn answer(query: &[u8]) -> Vec<u8> {
    // After the header a name, whose last label is empty, type and class.
    let end = 12 + query[12..].iter().position(|&byte| byte == 0).unwrap() + 1 + 4;
    let mut answer = query[..end].to_vec();
    answer[2] |= 0x84; // A response, from who knows.
    answer[3] = 0x80;
    answer[4..12].copy_from_slice(&[0, 1, 0, 1, 0, 0, 0, 0]);
    // The name of the question; type A, class IN, one minute, four bytes.
    answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(ADDRESS.octets());
    answer
}

/// The beginning of `struct __res_state` of resolv.h.
#[repr(C)]
struct Resolver {
    again_after: c_int,
    tries: c_int,
    options: c_ulong,
    servers: c_int,
    server: [libc::sockaddr_in; 3],
}

unsafe extern "C" {
    fn __res_state() -> *mut Resolver;
    fn __res_init() -> c_int;
    fn res_query(
        name: *const libc::c_char,
        class: c_int,
        kind: c_int,
        answer: *mut u8,
        len: c_int,
    ) -> c_int;
}

/// Asks `server` alone for the address of `name`, in this thread or fiber.
fn ask(server: SocketAddr, name: &CStr) -> Option<Ipv4Addr> {
    let SocketAddr::V4(server) = server else { unreachable!("bound to an IPv4 address") };
    // SAFETY: resolver(3): the caller's own state, initialised; a name, a buffer of that length.
    unsafe {
        assert_eq!(__res_init(), 0);
        let state = &mut *__res_state();
        (state.servers, state.again_after, state.tries) = (1, 30, 1);
        state.server[0].sin_family = libc::AF_INET as libc::sa_family_t;
        state.server[0].sin_port = server.port().to_be();
        state.server[0].sin_addr.s_addr = u32::from(*server.ip()).to_be();
        let mut answer = [0; 512];
        let (class_in, type_a) = (1, 1);
        let len = res_query(name.as_ptr(), class_in, type_a, answer.as_mut_ptr(), 512);
        let len = usize::try_from(len).ok()?;
        let octets: [u8; 4] = answer[..len].last_chunk().copied()?;
        Some(octets.into())
    }
}

/// A hundred who ask a name server that takes half a second wait for it together, each with a resolver state of
/// its own, beside fibers that do something else.
#[test]
fn a_slow_name_server_is_waited_for_together() {
    const ASKERS: usize = 100;
    on_fibers(|host| {
        let server = slow_name_server();
        let begin = Instant::now();
        let busy = host.spawn(move || {
            let mut worst = Duration::ZERO;
            while begin.elapsed() < DELAY {
                let due = Instant::now() + Duration::from_millis(5);
                thread::sleep(Duration::from_millis(5));
                worst = worst.max(due.elapsed());
            }
            worst
        });
        let answers = host.spawn_many(ASKERS, move |_| ask(server, c"sleave.test."));
        let (took, worst) = (begin.elapsed(), busy.value());
        println!(
            "{ASKERS} took {took:?}, another fiber was late by {worst:?}, {} OS threads",
            os_threads()
        );
        assert_eq!(answers, [Some(ADDRESS); ASKERS]);
        assert!(took >= DELAY && took < DELAY * ASKERS as u32 / 4, "{ASKERS} took {took:?}");
        assert!(worst < DELAY / 2, "another fiber was late by {worst:?}");
    });
}
