//! A page, fetched by events: a WRITE event sends the request, READ events take what comes.
//!
//! Nobody waits for the page in a fiber of its own. When the connection can be written, a callback
//! sends the request and registers for what will come; that one is called whenever something has
//! arrived, takes all of it, and ends when the server has hung up. The server is written as on
//! threads. Everything runs on one worker.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};

use sleave::event::{self, Direction};

/// Answers one request, in two pieces.
fn serve(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut request = String::new();
    BufReader::new(&stream).read_line(&mut request)?;
    println!("server: {}", request.trim_end());
    stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n")?;
    sleave::yield_now();
    stream.write_all(b"a page of one line\n")
}

/// Fetches the page at `/`; `done` is sent all of it.
fn fetch(stream: TcpStream, done: mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let stream = Arc::new(stream);
    event::once(&*stream.clone(), Direction::Write, move |_| {
        println!("client: WRITE event, the request goes out");
        (&*stream).write_all(b"GET / HTTP/1.0\r\n\r\n").expect("room for a line");
        let mut page = Vec::new();
        let reader = stream.clone();
        let read = event::persistent(&*stream, Direction::Read, move |_, registration| {
            let before = page.len();
            let end = (&*reader).read_to_end(&mut page);
            if before == 0 && !page.is_empty() {
                println!("client: READ event, the page begins");
            }
            if !end.is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
                println!("client: READ event, the page ends");
                registration.delete();
                done.send(std::mem::take(&mut page)).expect("somebody waits");
            }
        });
        read.expect("a registration");
    })?;
    Ok(())
}

fn main() -> io::Result<()> {
    let runtime = sleave::Runtime::builder().workers(1).build()?;
    let page = runtime.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let server = sleave::spawn(move || serve(&listener));
        let (send, receive) = mpsc::channel();
        fetch(TcpStream::connect(address)?, send)?;
        let page = receive.recv().expect("a page");
        server.join().expect("the server does not panic")?;
        Ok::<_, io::Error>(page)
    })?;
    println!("{}", String::from_utf8_lossy(&page).replace('\r', "").trim_end());
    runtime.stop();
    Ok(())
}
