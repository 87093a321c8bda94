//! `sleave echo`: starts, talks, stops.

#[allow(dead_code, reason = "each test binary uses its part of the helpers")]
mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{Running, run, sleave};

/// A server on a free port, and its address.
fn echo(mode: &str) -> (Running, String) {
    let server = Running::start(sleave(&["echo", "--listen", "127.0.0.1:0", "--mode", mode]));
    let line = server.line();
    let address =
        line.strip_prefix("listening on ").unwrap_or_else(|| panic!("first line: {line}"));
    (server, address.to_owned())
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    // So that a server which does not answer fails the test instead of hanging it.
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn talk(stream: &mut TcpStream, words: &[u8]) {
    stream.write_all(words).unwrap();
    let mut back = vec![0; words.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, words);
}

#[test]
fn it_echoes_and_a_signal_stops_it_cleanly() {
    for mode in ["threads", "fibers"] {
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let (server, address) = echo(mode);
            for _ in 0..2 {
                let mut stream = connect(&address);
                talk(&mut stream, b"first");
                talk(&mut stream, b"and second");
            }
            let mut open = connect(&address);
            talk(&mut open, b"still here");
            server.signal(signal);
            // A connection that is open then comes to its end, not to a reset.
            assert_eq!(open.read(&mut [0; 8]).unwrap(), 0);
            let (status, output, complaint) = server.finish();
            assert_eq!(status.code(), Some(0), "{mode}: {complaint}");
            assert_eq!(output, "stopped: 3 connections served\n", "{mode}: {complaint}");
        }
    }
}

#[test]
fn nobody_is_accepted_after_the_stop() {
    for mode in ["threads", "fibers"] {
        let (server, address) = echo(mode);
        server.signal(libc::SIGINT);
        let (status, output, _) = server.finish();
        assert_eq!((status.code(), output.as_str()), (Some(0), "stopped: 0 connections served\n"));
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_client_that_resets_harms_no_other() {
    for mode in ["threads", "fibers"] {
        let (server, address) = echo(mode);
        let mut other = connect(&address);
        talk(&mut other, b"before");
        let mut rude = connect(&address);
        talk(&mut rude, b"hello");
        socket2::SockRef::from(&rude).set_linger(Some(Duration::ZERO)).unwrap();
        drop(rude);
        talk(&mut other, b"after");
        talk(&mut connect(&address), b"a new one");
        server.signal(libc::SIGINT);
        let (status, output, _) = server.finish();
        assert_eq!((status.code(), output.as_str()), (Some(0), "stopped: 3 connections served\n"));
    }
}

/// A client that sends without end and never reads. Returns when the server must be stuck in `write`; the
/// sending goes on in a thread until the connection is cut, which is when it ends.
fn flood(address: &str) -> JoinHandle<ErrorKind> {
    let mut stream = connect(address);
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let (stuck, is_stuck) = channel();
    let sender = thread::spawn(move || {
        let block = [7; 65536];
        loop {
            match stream.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Nobody listens any more after the first time.
                    let _ = stuck.send(());
                }
                Err(error) => return error.kind(),
            }
        }
    });
    is_stuck
        .recv_timeout(Duration::from_secs(60))
        .expect("a server that stops reading at some point");
    sender
}

#[test]
fn a_client_that_does_not_read_cannot_prevent_the_stop() {
    for mode in ["threads", "fibers"] {
        let (server, address) = echo(mode);
        let client = flood(&address);
        server.signal(libc::SIGINT);
        let (status, output, _) = server.finish();
        assert_eq!((status.code(), output.as_str()), (Some(0), "stopped: 1 connections served\n"));
        let end = client.join().unwrap();
        assert!(matches!(end, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{end:?}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for mode in ["threads", "fibers"] {
        // The flood holds the server up for the second of grace that it gives, or less when the server happens to
        // find nothing to read for a moment. Where it ended before the second signal came nothing is learnt.
        let learnt = (0..50).any(|_| {
            let (server, address) = echo(mode);
            let client = flood(&address);
            server.signal(libc::SIGINT);
            // Two signals at a time are one to the kernel: wait for the effect of the first.
            while TcpStream::connect(&address).is_ok() {}
            server.signal(libc::SIGINT);
            let (status, output, _) = server.finish();
            client.join().unwrap();
            let stopped_by_itself = !output.is_empty();
            let code = status.code();
            assert!(
                code == Some(130) || (code == Some(0) && stopped_by_itself),
                "{mode}: {status}"
            );
            !stopped_by_itself
        });
        assert!(learnt, "{mode}: fifty servers, and none that a second signal has ended");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(sleave(&["echo", "--listen", &address]));
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains(&format!("cannot listen on {address}")), "{complaint}");
    assert!(complaint.contains("in use"), "{complaint}");
    assert!(output.stdout.is_empty());
}

#[test]
fn an_address_that_is_none_is_named() {
    for address in ["nonsense", "127.0.0.1:99999", "256.0.0.1:80"] {
        let output = run(sleave(&["echo", "--listen", address]));
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains(&format!("cannot listen on {address}")), "{complaint}");
        assert!(output.stdout.is_empty());
    }
}
