//! One port, and a listener for each worker: `SO_REUSEPORT`.
//!
//! The kernel spreads the connections to a port over all sockets that listen there. So each worker has an
//! acceptor of its own, and serves what it accepts: no connection changes its thread. std has no
//! call for that option; `socket2` has one, and its sockets become std's.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use sleave::{Builder, JoinHandle, Runtime};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

const WORKERS: usize = 2;
const CLIENTS: usize = 60;

/// A listener, beside others at the same address.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// Sends back what it gets, and by whom: a fiber of this worker.
fn serve(mut stream: TcpStream, home: usize) -> io::Result<()> {
    let mut question = String::new();
    stream.read_to_string(&mut question)?;
    assert_eq!(sleave::worker(), Some(home));
    write!(stream, "{question} at worker {home}")
}

/// Accepts until the listener is shut down; how many have been served.
fn accept(listener: &TcpListener, home: usize) -> usize {
    let begin = |stream| Builder::new().pin(home).spawn(move || serve(stream, home));
    let serving: Vec<JoinHandle<_>> =
        listener.incoming().map_while(|stream| stream.and_then(begin).ok()).collect();
    serving.into_iter().filter_map(|fiber| fiber.join().expect("no panic").ok()).count()
}

/// One question; the number of the worker that has answered it.
fn ask(server: SocketAddr, number: usize) -> io::Result<usize> {
    let mut stream = TcpStream::connect(server)?;
    write!(stream, "client {number}")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let home = answer.strip_prefix(&format!("client {number} at worker "));
    Ok(home.expect("an answer to this question").parse().expect("a number"))
}

/// What came of it. The last line is another every time.
pub fn story() -> io::Result<Vec<String>> {
    let runtime = Runtime::builder().workers(WORKERS).build()?;
    let first = listen(([127, 0, 0, 1], 0).into())?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..WORKERS {
        listeners.push(listen(address)?);
    }
    let acceptors: Vec<_> = listeners
        .iter()
        .enumerate()
        .map(|(home, listener)| {
            let listener = listener.try_clone()?;
            Builder::new().pin(home).spawn_on(&runtime, move || accept(&listener, home))
        })
        .collect::<io::Result<_>>()?;

    let mut answered = [0; WORKERS];
    for number in 0..CLIENTS {
        answered[ask(address, number)?] += 1;
    }
    for listener in &listeners {
        SockRef::from(listener).shutdown(Shutdown::Both)?; // ends its `accept`
    }
    let served: Vec<_> = acceptors.into_iter().map(|fiber| fiber.join().unwrap()).collect();
    runtime.stop();
    assert_eq!(served, answered);
    Ok(vec![
        format!("{WORKERS} listeners at one port, {} answers", served.iter().sum::<usize>()),
        format!("this time: {served:?} of them by worker"),
    ])
}

fn main() -> io::Result<()> {
    story()?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
