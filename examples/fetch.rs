//! A page, fetched by events: a WRITE event sends the request, READ events take what comes.
//!
//! Nobody waits for the page in a fiber of its own. When the connection can be written, a callback
//! sends the request and registers for what will come; that one is called whenever something has
//! arrived, takes all of it, and ends when the server has hung up. The server is written as on
//! threads. Everything runs on the calling thread.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};

use sleave::Runtime;
use sleave::event::{self, Direction};

type Lines = Arc<Mutex<Vec<String>>>;

fn say(lines: &Lines, line: impl Into<String>) {
    lines.lock().unwrap().push(line.into());
}

/// Answers one request, in two pieces.
fn serve(listener: &TcpListener, lines: &Lines) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut request = String::new();
    BufReader::new(&stream).read_line(&mut request)?;
    say(lines, format!("server: {}", request.trim_end()));
    stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n")?;
    sleave::yield_now();
    stream.write_all(b"a page of one line\n")
}

/// Fetches the page at `/`; `done` is sent all of it.
fn fetch(stream: TcpStream, lines: &Lines, done: mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let (stream, lines) = (Arc::new(stream), lines.clone());
    event::once(&*stream.clone(), Direction::Write, move |_| {
        say(&lines, "client: WRITE event, the request goes out");
        (&*stream).write_all(b"GET / HTTP/1.0\r\n\r\n").expect("room for a line");
        let mut page = Vec::new();
        let reader = stream.clone();
        let read = event::persistent(&*stream, Direction::Read, move |_, registration| {
            let before = page.len();
            let end = (&*reader).read_to_end(&mut page);
            if before == 0 && !page.is_empty() {
                say(&lines, "client: READ event, the page begins");
            }
            if !end.is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
                say(&lines, "client: READ event, the page ends");
                registration.delete();
                done.send(std::mem::take(&mut page)).expect("somebody waits");
            }
        });
        read.expect("a registration");
    })?;
    Ok(())
}

/// What happens, in its order.
pub fn story() -> io::Result<Vec<String>> {
    let lines = Lines::default();
    let runtime = Runtime::builder().workers(1).use_caller().build()?;
    let page = runtime.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let server = sleave::spawn({
            let lines = lines.clone();
            move || serve(&listener, &lines)
        });
        let (send, receive) = mpsc::channel();
        fetch(TcpStream::connect(address)?, &lines, send)?;
        let page = receive.recv().expect("a page");
        server.join().expect("the server does not panic")?;
        Ok::<_, io::Error>(page)
    })?;
    runtime.stop();
    let mut lines = std::mem::take(&mut *lines.lock().unwrap());
    lines.extend(String::from_utf8_lossy(&page).lines().map(str::to_owned));
    Ok(lines)
}

fn main() -> io::Result<()> {
    story()?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
