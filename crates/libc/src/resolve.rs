//! Names and addresses: `getaddrinfo getnameinfo`, `gethostby…`, `res_…`.
//!
//! A resolver reads files, asks daemons over sockets and name servers over the network, for up to many seconds; which of
//! these is decided by plug-ins (nsswitch.conf(5)) that wait by whatever calls they like, and glibc's own part calls
//! itself without symbols. So the call is handed off whole.
//!
//! The `…_r` forms write into the caller's buffers. The others answer from memory of the C library's that
//! all threads share, and all fibers just so.
//!
//! Sources: getaddrinfo(3), getnameinfo(3), gethostbyname(3), getnetbyname, resolver(3).

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_void};

use libc::{addrinfo, hostent, size_t, sockaddr, socklen_t};

use crate::handoff::hand_off_whole;

/// `struct netent`, which is only passed on.
pub(crate) type Net = c_void;
/// `res_state`, which is only passed on.
pub(crate) type Resolver = *mut c_void;

hand_off_whole! {
    /// getaddrinfo(3)
    Works getaddrinfo(node: *const c_char, service: *const c_char, hints: *const addrinfo, found: *mut *mut addrinfo) -> c_int;
    /// getnameinfo(3)
    Works getnameinfo(address: *const sockaddr, len: socklen_t, host: *mut c_char, host_len: socklen_t, service: *mut c_char, service_len: socklen_t, flags: c_int) -> c_int;

    /// gethostbyname(3)
    Works gethostbyname(name: *const c_char) -> *mut hostent;
    /// gethostbyname2(3)
    Works gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent;
    /// gethostbyaddr(3)
    Works gethostbyaddr(address: *const c_void, len: socklen_t, family: c_int) -> *mut hostent;
    /// gethostbyname_r(3)
    Works gethostbyname_r(name: *const c_char, entry: *mut hostent, buffer: *mut c_char, len: size_t, found: *mut *mut hostent, error: *mut c_int) -> c_int;
    /// gethostbyname2_r(3)
    Works gethostbyname2_r(name: *const c_char, family: c_int, entry: *mut hostent, buffer: *mut c_char, len: size_t, found: *mut *mut hostent, error: *mut c_int) -> c_int;
    /// gethostbyaddr_r(3)
    Works gethostbyaddr_r(address: *const c_void, address_len: socklen_t, family: c_int, entry: *mut hostent, buffer: *mut c_char, len: size_t, found: *mut *mut hostent, error: *mut c_int) -> c_int;
    /// getnetbyname(3)
    Works getnetbyname(name: *const c_char) -> *mut Net;
    /// getnetbyaddr(3)
    Works getnetbyaddr(net: c_uint, family: c_int) -> *mut Net;

    /// `res_query` of resolver(3)
    Works res_query(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    /// `res_search` of resolver(3)
    Works res_search(name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    /// `res_querydomain` of resolver(3)
    Works res_querydomain(name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    /// `res_send` of resolver(3)
    Works res_send(query: *const c_uchar, query_len: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    /// `res_nquery` of resolver(3)
    Works res_nquery(state: Resolver, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    /// `res_nsearch` of resolver(3)
    Works res_nsearch(state: Resolver, name: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    /// `res_nquerydomain` of resolver(3)
    Works res_nquerydomain(state: Resolver, name: *const c_char, domain: *const c_char, class: c_int, kind: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
    /// `res_nsend` of resolver(3)
    Works res_nsend(state: Resolver, query: *const c_uchar, query_len: c_int, answer: *mut c_uchar, len: c_int) -> c_int;
}
