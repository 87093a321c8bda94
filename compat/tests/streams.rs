//! Protocols over streams: WebSocket (tungstenite), TLS of OpenSSL (native-tls), ZeroMQ (a C++ library).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use sleave_compat::{certificate, together};
use tungstenite::Message;

const PAIRS: usize = 100;
const ROUNDS: usize = 20;
const LIMIT: Duration = Duration::from_secs(30);

/// Clients have even numbers; each server fiber serves whoever comes.
#[test]
fn tungstenite_echoes_messages() {
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let overlap = together(2 * PAIRS, move |number| {
        if number % 2 == 1 {
            let (stream, _) = listener.accept().unwrap();
            let mut socket = tungstenite::accept(stream).unwrap();
            loop {
                match socket.read() {
                    Ok(message) if message.is_text() => socket.send(message).unwrap(),
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        }
        let stream = TcpStream::connect(address).unwrap();
        let (mut socket, _) = tungstenite::client(format!("ws://{address}/"), stream).unwrap();
        for round in 0..ROUNDS {
            let text = format!("{number}:{round}");
            socket.send(Message::text(text.clone())).unwrap();
            assert_eq!(socket.read().unwrap().into_text().unwrap().as_str(), text);
        }
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    });
    overlap.assert(LIMIT);
}

#[test]
fn openssl_speaks_with_itself() {
    let certified = certificate();
    let identity = native_tls::Identity::from_pkcs8(
        certified.cert.pem().as_bytes(),
        certified.signing_key.serialize_pem().as_bytes(),
    )
    .unwrap();
    let acceptor = native_tls::TlsAcceptor::new(identity).unwrap();
    let root = native_tls::Certificate::from_pem(certified.cert.pem().as_bytes()).unwrap();
    let connector = native_tls::TlsConnector::builder().add_root_certificate(root).build().unwrap();
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let overlap = together(2 * PAIRS, move |number| {
        if number % 2 == 1 {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = acceptor.accept(stream).unwrap();
            let mut buffer = [0; 256];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => return,
                    Ok(count) => stream.write_all(&buffer[..count]).unwrap(),
                }
            }
        }
        let stream = TcpStream::connect(address).unwrap();
        let mut stream = connector.connect("localhost", stream).unwrap();
        for round in 0..ROUNDS {
            let text = format!("{number:03}:{round:03}");
            stream.write_all(text.as_bytes()).unwrap();
            let mut back = [0; 7];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, text.as_bytes());
        }
        stream.shutdown().unwrap();
    });
    overlap.assert(LIMIT);
}

/// Its sockets wait in `poll` for the library's own I/O thread.
#[test]
fn zeromq_requests_are_answered() {
    let context = zmq::Context::new();
    let overlap = together(2 * PAIRS, move |number| {
        let address = format!("inproc://pair-{}", number / 2);
        if number % 2 == 1 {
            let socket = context.socket(zmq::REP).unwrap();
            socket.bind(&address).unwrap();
            for _ in 0..ROUNDS {
                let message = socket.recv_bytes(0).unwrap();
                std::thread::sleep(Duration::from_millis(1));
                socket.send(message, 0).unwrap();
            }
            return;
        }
        let socket = context.socket(zmq::REQ).unwrap();
        socket.connect(&address).unwrap();
        for round in 0..ROUNDS {
            let text = format!("{number}:{round}");
            socket.send(&text, 0).unwrap();
            assert_eq!(socket.recv_string(0).unwrap().unwrap(), text);
        }
    });
    overlap.assert(LIMIT);
}
