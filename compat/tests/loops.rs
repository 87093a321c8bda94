//! Event loops inside fibers: each fiber runs a loop of its own, which waits in `epoll_wait` for everything that it serves. That
//! wait parks the fiber, on the loop's descriptors and until its next timer, so many loops share two workers.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream as Stream};
use mio::{Events, Interest, Poll, Token, Waker};
use sleave_compat::together;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LOOPS: usize = 100;
const CLIENTS: usize = 4;
const ROUNDS: usize = 5;
const PAUSE: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(20);

/// Tasks, timers, sockets and channels of one `current_thread` runtime a fiber. One after the other they would take the
/// pauses of all.
#[test]
fn tokio_runtimes_wait_together() {
    let overlap = together(LOOPS, |number| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                for _ in 0..CLIENTS {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(async move {
                        let (mut from, mut to) = stream.split();
                        tokio::io::copy(&mut from, &mut to).await.unwrap();
                    });
                }
            });
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    tokio::spawn(async move {
                        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                        for round in 0..ROUNDS {
                            let text = format!("{number:03}:{client}:{round}");
                            stream.write_all(text.as_bytes()).await.unwrap();
                            let mut back = [0; 7];
                            stream.read_exact(&mut back).await.unwrap();
                            assert_eq!(back, text.as_bytes());
                            tokio::time::sleep(PAUSE).await;
                        }
                    })
                })
                .collect();
            for client in clients {
                client.await.unwrap();
            }
            server.await.unwrap();
            // What does not come in time.
            let (_sender, mut silence) = tokio::sync::mpsc::channel::<()>(1);
            tokio::time::timeout(PAUSE, silence.recv()).await.unwrap_err();
        });
    });
    overlap.assert(LIMIT);
}

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// An echo server in the manner of mio's examples: edges, until somebody wakes it.
fn serve(mut poll: Poll, listener: TcpListener) {
    let mut streams: HashMap<Token, Stream> = HashMap::new();
    let mut events = Events::with_capacity(16);
    loop {
        match poll.poll(&mut events, Some(Duration::from_secs(30))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled.unwrap(),
        }
        assert!(!events.is_empty(), "nothing came in 30 s");
        for event in &events {
            match event.token() {
                WAKER => return,
                LISTENER => {
                    while let Ok((mut stream, _)) = listener.accept() {
                        let token = Token(streams.len());
                        poll.registry().register(&mut stream, token, Interest::READABLE).unwrap();
                        streams.insert(token, stream);
                    }
                }
                token => {
                    let mut buffer = [0; 64];
                    let stream = streams.get_mut(&token).unwrap();
                    loop {
                        match stream.read(&mut buffer) {
                            Ok(0) => break,
                            Ok(count) => stream.write_all(&buffer[..count]).unwrap(),
                            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            }
        }
    }
}

/// Half of the fibers are servers, the others clients with plain blocking sockets, who wake their server when they are done.
#[test]
fn mio_loops_wait_together() {
    let (places, addresses): (Vec<_>, Vec<_>) = (0..LOOPS / 2)
        .map(|_| {
            let poll = Poll::new().unwrap();
            let mut listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            poll.registry().register(&mut listener, LISTENER, Interest::READABLE).unwrap();
            let waker = Waker::new(poll.registry(), WAKER).unwrap();
            let address = listener.local_addr().unwrap();
            ((poll, listener), (address, waker))
        })
        .unzip();
    let (give, servers) = mpsc::channel();
    places.into_iter().for_each(|place| give.send(place).unwrap());
    let servers = std::sync::Mutex::new(servers);
    let begun = Instant::now();
    let overlap = together(LOOPS, move |number| {
        if number % 2 == 1 {
            let (poll, listener) = servers.lock().unwrap().recv().unwrap();
            return serve(poll, listener);
        }
        let (address, waker) = &addresses[number / 2];
        let mut stream = TcpStream::connect(address).unwrap();
        for round in 0..ROUNDS {
            let text = format!("{number:03}:{round}");
            stream.write_all(text.as_bytes()).unwrap();
            let mut back = [0; 5];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, text.as_bytes());
            std::thread::sleep(PAUSE);
        }
        drop(stream);
        waker.wake().unwrap();
    });
    assert!(begun.elapsed() >= PAUSE * ROUNDS as u32);
    overlap.assert(LIMIT);
}
