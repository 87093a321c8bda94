//! Listening sockets: one connection goes to one acceptor, and many are served at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::pairs::listen;
use crate::support::{Count, Host, everywhere, everywhere_alone};

/// Echoes until the end of input; the same function that a thread would run.
fn echo(mut stream: impl Read + Write) -> usize {
    let mut buffer = [0; 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return total,
            count => {
                stream.write_all(&buffer[..count]).unwrap();
                total += count;
            }
        }
    }
}

#[test]
fn several_acceptors_on_one_listener_serve_each_connection_once() {
    const ACCEPTORS: usize = 8;
    const CLIENTS: usize = 200;
    everywhere(|host| {
        let listener = Arc::new(listen());
        let address = listener.local_addr().unwrap();
        let (report, served) = mpsc::channel();
        let acceptors: Vec<_> = (0..ACCEPTORS)
            .map(|i| {
                let report = report.clone();
                // Half of them share the descriptor, half have one of their own.
                let own = (i % 2 == 0).then(|| listener.try_clone().unwrap());
                let shared = Arc::clone(&listener);
                host.spawn(move || {
                    let listener = own.as_ref().unwrap_or(&shared);
                    loop {
                        let (mut stream, _) = listener.accept().unwrap();
                        let mut number = [0; 4];
                        stream.read_exact(&mut number).unwrap();
                        stream.write_all(&number).unwrap();
                        let number = u32::from_be_bytes(number) as usize;
                        if number >= CLIENTS {
                            return;
                        }
                        report.send(number).unwrap();
                    }
                })
            })
            .collect();
        drop(report);
        let ask = move |i: usize| {
            let mut stream = TcpStream::connect(address).unwrap();
            let number = (i as u32).to_be_bytes();
            stream.write_all(&number).unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, number);
            // The server's answer is the last word.
            assert_eq!(stream.read(&mut answer).unwrap(), 0);
        };
        host.spawn_many(CLIENTS, ask);
        // One last word for each acceptor.
        host.spawn_many(ACCEPTORS, move |i| ask(CLIENTS + i));
        acceptors.into_iter().for_each(|acceptor| acceptor.value());
        let mut served: Vec<_> = served.iter().collect();
        served.sort_unstable();
        served
    });
}

#[test]
fn an_acceptor_spawns_a_server_per_connection() {
    const CLIENTS: usize = 200;
    const MESSAGES: usize = 20;
    everywhere_alone(|host| {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let served = Arc::new(Count::new());
        let acceptor = host.spawn({
            let served = Arc::clone(&served);
            move || {
                let servers: Vec<_> = listener
                    .incoming()
                    .take(CLIENTS)
                    .map(|stream| {
                        let served = Arc::clone(&served);
                        let stream = stream.unwrap();
                        host.spawn(move || served.add(echo(stream)))
                    })
                    .collect();
                servers.into_iter().for_each(|server| server.value());
            }
        });
        let sums = host.spawn_many(CLIENTS, move |i| {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            let mut line = String::new();
            for message in 0..MESSAGES {
                writeln!(writer, "message {message} of client {i}").unwrap();
                line.clear();
                reader.read_line(&mut line).unwrap();
                assert_eq!(line, format!("message {message} of client {i}\n"));
            }
            writer.shutdown(Shutdown::Write).unwrap();
            reader.read_line(&mut line).unwrap()
        });
        acceptor.value();
        (sums, served.get())
    });
}

#[test]
fn a_unix_listener_by_path_serves_fibers() {
    everywhere(|host| {
        let name =
            format!("sleave-{}-{}", std::process::id(), crate::support::random::fresh_seed());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let acceptor = host.spawn(move || {
            let servers: Vec<_> = listener
                .incoming()
                .take(50)
                .map(|stream| host.spawn(move || echo(stream.unwrap())))
                .collect();
            servers.into_iter().map(|server| server.value()).sum::<usize>()
        });
        let answers = host.spawn_many(50, {
            let path = path.clone();
            move |i| {
                let mut stream = UnixStream::connect(&path).unwrap();
                stream.write_all(&vec![i as u8; 3000]).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                answer.iter().all(|&byte| byte == i as u8) && answer.len() == 3000
            }
        });
        std::fs::remove_file(&path).unwrap();
        (answers, acceptor.value())
    });
}

#[test]
fn plain_threads_talk_to_fibers() {
    everywhere(|host| {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let server = host.spawn(move || serve(host, &listener, 10));
        let clients: Vec<_> = (0..10)
            .map(|i| {
                thread::spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    let mut answer = [0; 4];
                    for round in 0..100_u32 {
                        let word = (round * 10 + i).to_be_bytes();
                        stream.write_all(&word).unwrap();
                        stream.read_exact(&mut answer).unwrap();
                        assert_eq!(answer, word);
                        if round % 50 == 0 {
                            thread::sleep(Duration::from_millis(1));
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        server.value()
    });
}

/// Serves `count` connections, each on a task of its own, borrowed listener and all.
fn serve(host: Host, listener: &TcpListener, count: usize) -> Vec<usize> {
    host.scope(|scope| {
        let servers: Vec<_> = (0..count)
            .map(|_| {
                let (stream, _) = listener.accept().unwrap();
                scope.spawn(move || echo(stream))
            })
            .collect();
        servers.into_iter().map(|server| server.value()).collect()
    })
}
