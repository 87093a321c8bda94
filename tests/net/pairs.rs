//! Connected pairs of stream sockets, TCP and Unix behind one trait, so that every behaviour of a
//! stream is asked of both.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What both kinds of stream have.
pub trait Stream: Read + Write + AsFd + Send + Sized + 'static {
    /// Two ends of one connection.
    fn pair() -> (Self, Self);
    /// As `try_clone`.
    fn twin(&self) -> Self;
    /// As `shutdown`.
    fn end(&self, how: Shutdown);
    /// As `set_read_timeout`.
    fn read_timeout(&self, timeout: Option<Duration>);
    /// As `set_write_timeout`.
    fn write_timeout(&self, timeout: Option<Duration>);
    /// As `set_nonblocking`.
    fn nonblocking(&self, nonblocking: bool);
    /// As `peek`, through a borrowed socket2 socket where std has it for TCP only.
    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize>;
}

/// A TCP listener on a free port of the loopback interface.
pub fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener on the loopback interface")
}

/// A new TCP connection through `listener`: the connecting end, the accepted end.
pub fn connect(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(listener.local_addr().unwrap()).expect("a connection");
    let (far, _) = listener.accept().expect("its other end");
    (near, far)
}

macro_rules! stream_methods {
    ($type:ty) => {
        fn twin(&self) -> Self {
            self.try_clone().unwrap()
        }
        fn end(&self, how: Shutdown) {
            self.shutdown(how).unwrap();
        }
        fn read_timeout(&self, timeout: Option<Duration>) {
            self.set_read_timeout(timeout).unwrap();
        }
        fn write_timeout(&self, timeout: Option<Duration>) {
            self.set_write_timeout(timeout).unwrap();
        }
        fn nonblocking(&self, nonblocking: bool) {
            self.set_nonblocking(nonblocking).unwrap();
        }
        fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len();
            let mut space = Vec::with_capacity(length);
            let count = socket2::SockRef::from(self).peek(space.spare_capacity_mut())?;
            // SAFETY: recv(2) has filled the first `count` bytes of the spare capacity.
            unsafe { space.set_len(count) };
            buffer[..count].copy_from_slice(&space);
            Ok(count)
        }
    };
}

impl Stream for TcpStream {
    fn pair() -> (Self, Self) {
        connect(&listen())
    }
    stream_methods!(TcpStream);
}

impl Stream for UnixStream {
    fn pair() -> (Self, Self) {
        UnixStream::pair().expect("a pair of Unix sockets")
    }
    stream_methods!(UnixStream);
}

/// Makes two tests of a generic one: `NAME_over_tcp` and `NAME_over_unix`.
macro_rules! over_both {
    ($($generic:ident => $tcp:ident, $unix:ident;)*) => {$(
        #[test]
        fn $tcp() {
            $crate::support::everywhere($generic::<std::net::TcpStream>);
        }
        #[test]
        fn $unix() {
            $crate::support::everywhere($generic::<std::os::unix::net::UnixStream>);
        }
    )*};
}
pub(crate) use over_both;
