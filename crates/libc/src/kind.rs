//! What a descriptor names, as far as it matters to a call that must not block: whether it is a
//! socket, whether a short read says anything, whether it has readiness at all.
//!
//! A descriptor that the interposed calls made tells its kind by their arguments; any other (from
//! `open`, inherited, received) is asked about once, which costs up to six system calls.
//!
//! Sources: socket(7), fstat(2), tcp(7) on `TCP_ULP`.

use std::ffi::c_int;

use crate::kernel;

/// What a descriptor names, as far as it decides how a call is tried without blocking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Not known yet, or no open descriptor.
    Unknown = 0,
    /// A TCP connection or listener without an upper-layer protocol: a short read proves it
    /// drained.
    Tcp = 1,
    /// Another socket of type `SOCK_STREAM`.
    Stream = 2,
    /// A socket that keeps messages apart, other than the next.
    Message = 3,
    /// The same in the Unix domain, where a send may wait for the *receiver's* queue.
    UnixMessage = 4,
    /// A pipe or FIFO.
    Pipe = 5,
    /// A character device, eventfd, timerfd, inotify …
    Device = 6,
    /// A regular file, directory or block device: never "not ready", the kernel just takes long.
    File = 7,
}

impl Kind {
    pub(crate) fn of(bits: u64) -> Kind {
        match bits {
            1 => Kind::Tcp,
            2 => Kind::Stream,
            3 => Kind::Message,
            4 => Kind::UnixMessage,
            5 => Kind::Pipe,
            6 => Kind::Device,
            7 => Kind::File,
            _ => Kind::Unknown,
        }
    }

    /// The kind of a socket made with these arguments of socket(2).
    pub(crate) fn of_socket(domain: c_int, kind: c_int, protocol: c_int) -> Kind {
        let inet = domain == libc::AF_INET || domain == libc::AF_INET6;
        match kind & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) {
            libc::SOCK_STREAM if inet && (protocol == 0 || protocol == libc::IPPROTO_TCP) => {
                Kind::Tcp
            }
            libc::SOCK_STREAM => Kind::Stream,
            _ if domain == libc::AF_UNIX => Kind::UnixMessage,
            _ => Kind::Message,
        }
    }

    /// Any socket.
    #[inline(always)]
    pub(crate) fn is_socket(self) -> bool {
        matches!(self as u8, 1..=4)
    }

    /// A socket without message boundaries: a blocking send goes on until all is written.
    #[inline(always)]
    pub(crate) fn is_stream(self) -> bool {
        matches!(self as u8, 1..=2)
    }
}

/// Asks the kernel what `fd` is, and whether it is a socket with a low-water mark.
pub(crate) fn examine(fd: c_int) -> (Kind, bool) {
    match kernel::file_type(fd) {
        None => (Kind::Unknown, false),
        Some(libc::S_IFSOCK) => examine_socket(fd),
        Some(libc::S_IFIFO) => (Kind::Pipe, false),
        Some(libc::S_IFREG | libc::S_IFDIR | libc::S_IFBLK | libc::S_IFLNK) => (Kind::File, false),
        Some(_) => (Kind::Device, false),
    }
}

fn examine_socket(fd: c_int) -> (Kind, bool) {
    let int = |name| kernel::socket_int(fd, name);
    let (Some(domain), Some(kind)) = (int(libc::SO_DOMAIN), int(libc::SO_TYPE)) else {
        return (Kind::Unknown, false);
    };
    let protocol = int(libc::SO_PROTOCOL).unwrap_or(0);
    let mut kind = Kind::of_socket(domain, kind, protocol);
    if kind == Kind::Tcp {
        // "tls" and its like change what a short read means; a plain socket has an empty name.
        let upper = kernel::option(fd, libc::IPPROTO_TCP, libc::TCP_ULP, [0u8; 16]);
        if upper.is_some_and(|(_, len)| len > 0) {
            kind = Kind::Stream;
        }
    }
    (kind, int(libc::SO_RCVLOWAT).is_some_and(|bytes| bytes > 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_of_socket_arguments() {
        let of = Kind::of_socket;
        let cloexec = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        assert_eq!(of(libc::AF_INET, libc::SOCK_STREAM | cloexec, 0), Kind::Tcp);
        assert_eq!(of(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP), Kind::Tcp);
        assert_eq!(of(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP), Kind::Stream);
        assert_eq!(of(libc::AF_UNIX, libc::SOCK_STREAM, 0), Kind::Stream);
        assert_eq!(of(libc::AF_UNIX, libc::SOCK_DGRAM, 0), Kind::UnixMessage);
        assert_eq!(of(libc::AF_INET, libc::SOCK_DGRAM, 0), Kind::Message);
    }

    #[test]
    fn kernel_tells_what_an_unknown_descriptor_is() {
        use std::os::fd::AsRawFd;
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(examine(file.as_raw_fd()), (Kind::File, false));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(examine(null.as_raw_fd()), (Kind::Device, false));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(examine(reader.as_raw_fd()), (Kind::Pipe, false));
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(examine(stream.as_raw_fd()), (Kind::Stream, false));
        let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert_eq!(examine(datagram.as_raw_fd()), (Kind::UnixMessage, false));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(examine(listener.as_raw_fd()), (Kind::Tcp, false));
        assert_eq!(examine(-1), (Kind::Unknown, false));
    }
}
