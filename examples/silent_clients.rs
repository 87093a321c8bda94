//! A server that drops clients which have fallen silent, by a limit of its runtime.
//!
//! Nobody sets a timeout on any socket, and the server is written as if clients always talked. But its
//! runtime was told how long a wait for a descriptor may take, so a `read` that nothing comes for
//! ends with `WouldBlock`, `serve` returns, and the connection is closed. The fiber that accepts waits for
//! as long as it takes: it was spawned without a limit. The clients are on a runtime of their own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use sleave::{Builder, Runtime};

/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(1);

/// Echoes what comes.
fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

/// Serves `clients` clients, each on a fiber; `done` is sent how each ended.
fn listen(listener: TcpListener, clients: usize, done: mpsc::Sender<String>) -> io::Result<()> {
    for stream in listener.incoming().take(clients) {
        let (stream, done) = (stream?, done.clone());
        sleave::spawn(move || {
            let how = match serve(stream) {
                Ok(()) => "has hung up".to_owned(),
                Err(e) if e.kind() == ErrorKind::WouldBlock => "was silent, and dropped".to_owned(),
                Err(e) => e.to_string(),
            };
            done.send(how).expect("somebody waits");
        });
    }
    Ok(())
}

/// Two clients, one after the other; `ends` tells how each ended on the server's side.
fn talk(server: SocketAddr, ends: mpsc::Receiver<String>) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut silent = TcpStream::connect(server)?;
    silent.write_all(b"hello")?;
    silent.read_exact(&mut [0; 5])?;
    lines.push("client 1: said hello, and says no more".to_owned());
    // This runtime has no limit: it waits until the server closes the connection.
    let count = silent.read(&mut [0; 64])?;
    lines.push(format!("server: client 1 {}", ends.recv().expect("an end")));
    lines.push(format!("client 1: has read {count} bytes, the end"));

    let mut polite = TcpStream::connect(server)?;
    polite.write_all(b"hello")?;
    polite.read_exact(&mut [0; 5])?;
    drop(polite);
    lines.push("client 2: said hello, and hung up".to_owned());
    lines.push(format!("server: client 2 {}", ends.recv().expect("an end")));
    Ok(lines)
}

fn both_sides() -> io::Result<Vec<String>> {
    let server = Runtime::builder().workers(1).wait_timeout(PATIENCE).build()?;
    let clients = Runtime::builder().workers(1).build()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (send, ends) = mpsc::channel();
    let accepting =
        Builder::new().wait_timeout(None).spawn_on(&server, move || listen(listener, 2, send))?;
    let lines = clients.run(move || talk(address, ends))?;
    accepting.join().expect("the server does not panic")?;
    server.stop();
    clients.stop();
    Ok(lines)
}

/// What there is to say, line by line.
pub fn story() -> Vec<String> {
    match sleave::identity() {
        Ok(()) => both_sides().expect("a loopback interface and some descriptors"),
        Err(why) => vec![format!("fibers are OS threads here, whose waits have no limit: {why}")],
    }
}

fn main() {
    for line in story() {
        println!("{line}");
    }
}
