//! Peer: the echo server as one writes it with tokio, a task for each connection.
//!
//! The same shape as the server function of `sleave echo`: a buffer of 1 KiB in the task, read, write all, again.
//! `echo_tokio WORKERS` listens on a free port of 127.0.0.1, prints `listening on ADDR`, stops at SIGINT.

use std::io::{self, Write};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}

async fn accept() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    io::stdout().flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        // A connection that fails, fails alone.
        tokio::spawn(async move { drop(serve(stream).await) });
    }
}

fn main() -> io::Result<()> {
    let workers = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    runtime.block_on(async {
        // Accepting is a task like any other; the main thread only waits for the signal.
        let accepting = tokio::spawn(accept());
        tokio::select! {
            ended = accepting => ended.map_err(io::Error::other)?,
            signal = tokio::signal::ctrl_c() => signal,
        }
    })
}
