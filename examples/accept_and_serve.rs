//! A server whose connections are accepted on one worker and served on the others.
//!
//! The acceptor is pinned to worker 0 and has it to itself, so a burst of work never delays a new
//! connection. Each connection gets a fiber that is pinned to one of the other workers, by turns. The code
//! blocks; the pins are all there is to it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use sleave::{Builder, JoinHandle, Runtime};

const WORKERS: usize = 3;
const CLIENTS: usize = 6;

fn here() -> usize {
    sleave::worker().expect("this is a fiber")
}

/// Echoes what it is sent, and adds where that was done.
fn serve(mut stream: TcpStream, accepted: usize) -> io::Result<()> {
    let mut question = String::new();
    stream.read_to_string(&mut question)?;
    write!(stream, "{question}: accepted on worker {accepted}, served on worker {}", here())
}

/// Accepts `CLIENTS` connections, and gives each to a worker.
fn accept(listener: &TcpListener) -> io::Result<()> {
    let serving = (0..CLIENTS).map(|number| {
        let (stream, _) = listener.accept()?;
        let accepted = here();
        Builder::new().pin(1 + number % (WORKERS - 1)).spawn(move || serve(stream, accepted))
    });
    let serving: Vec<JoinHandle<_>> = serving.collect::<io::Result<_>>()?;
    serving.into_iter().try_for_each(|fiber| fiber.join().expect("no panic"))
}

/// One question and its answer.
fn ask(server: SocketAddr, number: usize) -> io::Result<String> {
    let mut stream = TcpStream::connect(server)?;
    write!(stream, "client {number}")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The answers, which say where they come from.
pub fn story() -> Vec<String> {
    let runtime = Runtime::builder().workers(WORKERS).build().expect("a runtime");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("it is bound");
    let acceptor = Builder::new().pin(0).spawn_on(&runtime, move || accept(&listener));
    // One client after the other, so that the acceptor meets them in this order.
    let answers = (0..CLIENTS).map(|number| ask(address, number).expect("an answer")).collect();
    acceptor.expect("a fiber").join().expect("no panic").expect("all were served");
    runtime.stop();
    answers
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
