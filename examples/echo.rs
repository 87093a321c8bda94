//! An echo server and 100 clients that are all connected at once, in one process, on two workers.
//!
//! Nothing outside of `story` knows of fibers: it is the server and the client that anyone would write
//! with `std::net`. A read that finds nothing parks its fiber, and the worker runs another.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::time::Instant;

/// Fewer than the 128 that std lets a listener keep waiting: beyond that the kernel has a client
/// try again after a second, on threads as on fibers.
const CLIENTS: usize = 100;
const ROUNDS: usize = 100;

fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

fn talk(server: SocketAddr, number: usize, all_here: &Barrier) -> io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    all_here.wait();
    for round in 0..ROUNDS {
        let question = format!("client {number}, round {round}");
        stream.write_all(question.as_bytes())?;
        let mut answer = vec![0; question.len()];
        stream.read_exact(&mut answer)?;
        assert_eq!(answer, question.as_bytes());
    }
    Ok(())
}

/// What came of it. The last line is another every time.
pub fn story() -> io::Result<Vec<String>> {
    let runtime = sleave::Runtime::builder().workers(2).build()?;
    let took = runtime.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let server = listener.local_addr()?;
        sleave::spawn(move || {
            for stream in listener.incoming().take(CLIENTS) {
                stream.map(|stream| sleave::spawn(move || serve(stream)))?;
            }
            Ok::<_, io::Error>(())
        });

        let (start, all_here) = (Instant::now(), Barrier::new(CLIENTS));
        sleave::scope(|scope| {
            let all_here = &all_here;
            let clients: Vec<_> =
                (0..CLIENTS).map(|i| scope.spawn(move || talk(server, i, all_here))).collect();
            clients.into_iter().try_for_each(|client| client.join().unwrap())
        })?;
        Ok::<_, io::Error>(start.elapsed())
    })?;
    runtime.stop();
    Ok(vec![
        format!("{CLIENTS} clients, all connected at once"),
        format!("{ROUNDS} echoes for each, and every one was right"),
        format!("this time: it took {took:?}"),
    ])
}

fn main() -> io::Result<()> {
    story()?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
