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

/// Three server processes behind one address, that address, and their process ids.
fn three_processes() -> (Running, String, Vec<u32>) {
    let server = Running::start(sleave(&["echo", "--listen", "127.0.0.1:0", "--processes", "3"]));
    let line = server.line();
    let address = line.strip_prefix("listening on ").unwrap().to_owned();
    let pids = server.complaint("3 server processes: ");
    let pids = pids.split_once(": ").unwrap().1.split(", ");
    (server, address, pids.map(|pid| pid.parse().unwrap()).collect())
}

#[test]
fn several_processes_serve_one_address_and_stop_together() {
    let (server, address, pids) = three_processes();
    assert_eq!(server.children().len(), 3);
    let mut streams: Vec<_> = (0..60).map(|_| connect(&address)).collect();
    for stream in &mut streams {
        talk(stream, b"to whichever of them");
    }
    server.signal(libc::SIGINT);
    for mut stream in streams {
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    }
    let (status, output, complaint) = server.finish();
    assert_eq!(status.code(), Some(0), "{complaint}");
    assert_eq!(output, "stopped: 60 connections served\n", "{complaint}");
    assert!(pids.into_iter().all(|pid| common::stat(pid).is_none()));
}

#[test]
fn a_server_process_that_dies_is_reported_and_the_others_go_on() {
    let (server, address, pids) = three_processes();
    common::kill(pids[1], libc::SIGKILL);
    let report = server.complaint("ended");
    assert!(report.contains(&pids[1].to_string()) && report.contains("2 go on"), "{report}");
    for _ in 0..20 {
        talk(&mut connect(&address), b"still served");
    }
    server.signal(libc::SIGTERM);
    let (status, output, _) = server.finish();
    assert_eq!((status.code(), output.as_str()), (Some(1), "stopped: 20 connections served\n"));
}

#[test]
fn without_a_server_process_there_is_nothing_to_supervise() {
    let (server, _, pids) = three_processes();
    for pid in pids {
        common::kill(pid, libc::SIGKILL);
    }
    let (status, output, complaint) = server.finish();
    assert_eq!((status.code(), output.as_str()), (Some(1), ""));
    assert!(complaint.contains("no server process is left"), "{complaint}");
}

#[test]
fn server_processes_end_with_a_supervisor_that_is_killed() {
    let (server, address, pids) = three_processes();
    let _open = connect(&address);
    server.signal(libc::SIGKILL);
    pids.into_iter().for_each(common::wait_for_the_end);
}

#[test]
fn independent_servers_share_an_address_if_both_ask_for_it() {
    let arguments = ["echo", "--reuse-port", "--listen"];
    let start = |address| Running::start(sleave(&[&arguments[..], &[address]].concat()));
    let first = start("127.0.0.1:0");
    let line = first.line();
    let address = line.strip_prefix("listening on ").unwrap();
    let second = start(address);
    assert_eq!(second.line(), line);
    for _ in 0..40 {
        talk(&mut connect(address), b"one of two");
    }
    let served: u64 = [first, second]
        .into_iter()
        .map(|server| {
            server.signal(libc::SIGINT);
            let (status, output, _) = server.finish();
            assert_eq!(status.code(), Some(0));
            output.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
        })
        .sum();
    assert_eq!(served, 40);
}

#[test]
fn a_server_without_a_descriptor_left_says_so_once() {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -n 40 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sleave")]);
    shell.args(["echo", "--listen", "127.0.0.1:0"]);
    let server = Running::start(shell);
    let line = server.line();
    let address = line.strip_prefix("listening on ").unwrap();
    let streams: Vec<_> = (0..50).map(|_| connect(address)).collect();
    let complaint = server.complaint("no room after");
    assert!(complaint.contains("Too many open files"), "{complaint}");
    drop(streams);
    // Room again.
    talk(&mut connect(address), b"served after all");
    server.signal(libc::SIGINT);
    let (status, _, complaint) = server.finish();
    assert_eq!(status.code(), Some(0));
    assert!(!complaint.contains("no room"), "{complaint}");
}
