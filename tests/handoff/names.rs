//! The resolver: names to addresses and back. (No name server is asked: there may be none.)

use std::ffi::CStr;
use std::mem::zeroed;
use std::net::ToSocketAddrs;
use std::ptr::null_mut;

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
