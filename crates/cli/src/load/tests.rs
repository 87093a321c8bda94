//! The witness must see what is wrong: each test runs it against a server with one particular fault.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::payload::Payload;
use super::{Load, Outcome, Plan, Refusal};

const CONNECTIONS: usize = 8;
const PAYLOAD: usize = 100;

/// Starts a server that calls `reply(connection, request, bytes)` for each whole request and sends what it
/// leaves in `bytes`; a `false` from it closes the connection instead.
fn server(
    reply: impl Fn(usize, usize, &mut Vec<u8>) -> bool + Clone + Send + 'static,
) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (connection, stream) in listener.incoming().enumerate() {
            let (mut stream, reply): (TcpStream, _) = (stream.unwrap(), reply.clone());
            thread::spawn(move || {
                for request in 0.. {
                    let mut bytes = vec![0; PAYLOAD];
                    if stream.read_exact(&mut bytes).is_err()
                        || !reply(connection, request, &mut bytes)
                        || stream.write_all(&bytes).is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn load(address: std::net::SocketAddr, patience: Duration) -> (Load, Option<Refusal>) {
    let plan =
        Plan { server: address, connections: CONNECTIONS, first: 0, payload: PAYLOAD, patience };
    Load::open(plan, &mut |_| {}).unwrap()
}

fn outcome(
    reply: impl Fn(usize, usize, &mut Vec<u8>) -> bool + Clone + Send + 'static,
    patience: Duration,
) -> Outcome {
    let (mut load, refusal) = load(server(reply), patience);
    assert!(refusal.is_none(), "{refusal:?}");
    assert_eq!(load.connections(), CONNECTIONS);
    load.run(CONNECTIONS, Duration::from_millis(200), &mut |_, _| {}).unwrap()
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(3);

#[test]
fn an_honest_server_has_no_errors_and_every_reply_is_timed() {
    let outcome = outcome(|_, _, _| true, LONG);
    assert_eq!(outcome.errors, 0, "{:?}", outcome.first_error);
    assert!(outcome.replies >= CONNECTIONS as u64);
    assert_eq!(outcome.latency.len(), outcome.replies);
    assert!(outcome.replies_in_time <= outcome.replies);
}

#[test]
fn one_flipped_bit_is_an_error() {
    // Request 0 opens the connection, request 1 is sent by every run however short.
    let outcome = outcome(
        |connection, request, bytes| {
            if (connection, request) == (3, 1) {
                bytes[57] ^= 0x10;
            }
            true
        },
        LONG,
    );
    assert_eq!(outcome.errors, 1);
    assert!(outcome.first_error.unwrap().contains("differs"));
}

#[test]
fn an_earlier_reply_is_an_error() {
    let first = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let outcome = outcome(
        move |connection, request, bytes| {
            match (connection, request) {
                (0, 0) => first.lock().unwrap().clone_from(bytes),
                (0, 1) => bytes.clone_from(&first.lock().unwrap()),
                _ => {}
            }
            true
        },
        LONG,
    );
    assert_eq!(outcome.errors, 1);
}

#[test]
fn a_byte_too_many_is_an_error() {
    let outcome = outcome(
        |connection, request, bytes| {
            if (connection, request) == (5, 1) {
                bytes.push(0);
            }
            true
        },
        LONG,
    );
    assert_eq!(outcome.errors, 1);
}

#[test]
fn a_connection_that_the_server_drops_is_an_error() {
    let outcome = outcome(|connection, request, _| (connection, request) != (1, 1), LONG);
    assert_eq!(outcome.errors, 1);
}

#[test]
fn a_reply_that_never_comes_is_an_error() {
    let outcome = outcome(
        |connection, request, _| {
            if (connection, request) == (2, 1) {
                // Parking may end without a cause, hence the loop; the thread ends with the tests.
                loop {
                    thread::park();
                }
            }
            true
        },
        SHORT,
    );
    assert_eq!(outcome.errors, 1);
    assert!(outcome.first_error.unwrap().contains("1 replies missing"));
}

#[test]
fn a_silent_connection_that_is_dropped_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut bytes = [0; PAYLOAD];
        let mut streams: Vec<(usize, TcpStream)> = (0..CONNECTIONS)
            .map(|_| {
                let mut stream = listener.accept().unwrap().0;
                stream.read_exact(&mut bytes).unwrap();
                // The first request tells which of the client's connections this is.
                let is = |&number: &usize| Payload::new(number as u64, 1).matches(0, &bytes);
                let number = (0..CONNECTIONS).find(is).unwrap();
                stream.write_all(&bytes).unwrap();
                (number, stream)
            })
            .collect();
        streams.sort_by_key(|&(number, _)| number);
        let (_, silent) = streams.pop().unwrap();
        let (_, busy) = &mut streams[0];
        busy.read_exact(&mut bytes).unwrap();
        // Closed before the reply to the busy one, and so seen before that one is done.
        drop(silent);
        while busy.write_all(&bytes).is_ok() && busy.read_exact(&mut bytes).is_ok() {}
    });
    let (mut load, refusal) = load(address, LONG);
    assert!(refusal.is_none(), "{refusal:?}");
    let outcome = load.run(1, Duration::from_millis(200), &mut |_, _| {}).unwrap();
    assert_eq!(outcome.errors, 1);
    assert!(outcome.first_error.unwrap().contains("hung up"));
    assert_eq!(load.connections(), CONNECTIONS - 1);
}

#[test]
fn a_server_that_takes_only_some_is_noticed_and_the_rest_runs() {
    let (mut load, refusal) = load(server(|connection, _, _| connection < 5), LONG);
    assert!(refusal.is_some());
    assert_eq!(load.connections(), 5);
    let outcome = load.run(5, Duration::from_millis(100), &mut |_, _| {}).unwrap();
    assert_eq!(outcome.errors, 0, "{:?}", outcome.first_error);
    assert!(outcome.replies >= 5);
}

#[test]
fn a_round_asks_every_connection_once_and_few_at_a_time() {
    let asked = std::sync::Arc::new(std::sync::Mutex::new(vec![0; CONNECTIONS]));
    let counting = std::sync::Arc::clone(&asked);
    let count = move |connection: usize, _, _: &mut Vec<u8>| {
        counting.lock().unwrap()[connection] += 1;
        true
    };
    let (mut load, refusal) = load(server(count), LONG);
    assert!(refusal.is_none(), "{refusal:?}");
    let outcome = load.round(3, &mut |_| {}).unwrap();
    assert_eq!((outcome.errors, outcome.replies), (0, CONNECTIONS as u64));
    assert_eq!(outcome.latency.len(), CONNECTIONS as u64);
    // The exchange that opened it, and the round.
    assert_eq!(*asked.lock().unwrap(), [2; CONNECTIONS]);
}

#[test]
fn a_round_finds_each_fault() {
    // Dropped, changed and silent, one of each; the round goes on with the others.
    let fault = |connection, request, bytes: &mut Vec<u8>| {
        match (connection, request) {
            (1, 1) => return false,
            (4, 1) => bytes[0] ^= 1,
            (6, 1) => loop {
                thread::park();
            },
            _ => {}
        }
        true
    };
    let (mut load, _) = load(server(fault), SHORT);
    let outcome = load.round(2, &mut |_| {}).unwrap();
    assert_eq!((outcome.errors, outcome.replies), (3, CONNECTIONS as u64 - 3));
}
