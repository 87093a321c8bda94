//! Several server processes that listen on one address.
//!
//! With `SO_REUSEPORT` each process has a listening socket of its own for the same address, and the kernel gives each
//! new connection to one of them by a hash of its two addresses. So nothing is shared, and each process has its own
//! limit of open files; but the shares are even only on average.
//!
//! ```text
//!   this process: a socket that is bound but does not listen      holds the port, takes no connection
//!   server 0, 1, 2 …  (`sleave echo --reuse-port …`)              bound to the same address, listening
//! ```
//!
//! The socket that only holds the port makes sense of port 0 (all must get the same), finds out beforehand that an
//! address cannot be had, and keeps others out until all are listening. The kernel lets processes share a port
//! only where all of them ask for it and belong to one user.
//!
//! Sources: socket(7) on SO_REUSEPORT, listen(2).

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::process::Command;
use std::time::Instant;

use socket2::{Domain, Protocol, Socket, Type};

use crate::args::Mode;
use crate::children::{Children, Event};
use crate::server::{self, PATIENCE};

/// An address that is ours although nobody listens there yet.
pub struct Port {
    address: SocketAddr,
    _socket: Socket,
}

impl Port {
    /// Takes the first address of `listen` that can be had.
    pub fn hold(listen: impl ToSocketAddrs) -> io::Result<Self> {
        let (socket, address) = bind(listen)?;
        Ok(Self { address, _socket: socket })
    }

    /// The address, with the port that was chosen where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Listens on an address together with any other process that does so by this function.
pub fn listen(listen: impl ToSocketAddrs) -> io::Result<TcpListener> {
    let (socket, _) = bind(listen)?;
    // The kernel cuts this to net.core.somaxconn. std's 128 would be short for what several clients open at once.
    socket.listen(libc::SOMAXCONN)?;
    Ok(socket.into())
}

fn bind(listen: impl ToSocketAddrs) -> io::Result<(Socket, SocketAddr)> {
    let mut outcome = Err(io::Error::new(io::ErrorKind::InvalidInput, "no address of that name"));
    for address in listen.to_socket_addrs()? {
        outcome = bind_one(address);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn bind_one(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // As std does: what an earlier server left in TIME_WAIT is no obstacle.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket();
    Ok((socket, bound.ok_or_else(|| io::Error::other("an address that is none of IP"))?))
}

/// Starts `processes` echo servers on the address of `port` as the first children, and waits until all of them
/// listen. What they say on standard error goes to `complain`, with the number of the child.
pub fn start(
    children: &mut Children,
    port: &Port,
    processes: usize,
    mode: Mode,
    workers: usize,
    complain: &mut dyn FnMut(usize, &str),
) -> io::Result<()> {
    let program = std::env::current_exe()?;
    for _ in 0..processes {
        let mut command = Command::new(&program);
        command.args(["echo", "--reuse-port", "--listen", &port.address().to_string()]);
        command.args(["--mode", mode.name(), "--workers", &workers.to_string()]);
        children.start(&mut command)?;
    }
    let deadline = Instant::now() + PATIENCE;
    let mut listening = 0;
    while listening < processes {
        match children.next(deadline)? {
            Some(Event::Line { text, .. }) if server::address(&text) == Some(port.address()) => {
                listening += 1;
            }
            Some(Event::Line { child, text }) => complain(child, &text),
            Some(Event::Complaint { child, text }) => complain(child, &text),
            Some(Event::Ended { child, status }) => {
                return Err(io::Error::other(format!(
                    "server process {} did not start: {status}",
                    children.pid(child)
                )));
            }
            Some(Event::Signal) => return Err(io::ErrorKind::Interrupted.into()),
            None => {
                return Err(io::Error::other(format!(
                    "{listening} of {processes} server processes were listening after {PATIENCE:?}"
                )));
            }
        }
    }
    Ok(())
}

/// How many connections a server has served, from its last line.
pub fn served(line: &str) -> Option<u64> {
    line.strip_prefix("stopped: ")?.strip_suffix(" connections served")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Port, listen, served};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_held_port_takes_no_connection_and_several_may_listen_on_it() {
        let port = Port::hold("127.0.0.1:0").unwrap();
        assert!(TcpStream::connect(port.address()).is_err());
        let listeners = [listen(port.address()).unwrap(), listen(port.address()).unwrap()];
        for _ in 0..20 {
            TcpStream::connect(port.address()).unwrap();
        }
        drop(listeners);
        assert!(TcpStream::connect(port.address()).is_err());
    }

    #[test]
    fn a_port_that_another_does_not_share_cannot_be_held() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(Port::hold(taken.local_addr().unwrap()).is_err());
    }

    #[test]
    fn the_last_line_of_a_server_is_understood() {
        assert_eq!(served("stopped: 12 connections served"), Some(12));
        assert_eq!(served("stopped: many connections served"), None);
    }
}
