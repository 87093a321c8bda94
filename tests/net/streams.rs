//! Stream sockets: bulk data both ways, half close, end of file, clones, peeking, vectors.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::pairs::{Stream, over_both};
use crate::support::random::Random;
use crate::support::{Host, everywhere, everywhere_alone};

over_both! {
    half_close => a_half_closed_connection_still_answers_over_tcp,
        a_half_closed_connection_still_answers_over_unix;
    small_messages => a_hundred_thousand_bytes_one_by_one_over_tcp,
        a_hundred_thousand_bytes_one_by_one_over_unix;
    full_length => a_blocking_write_takes_all_over_tcp, a_blocking_write_takes_all_over_unix;
    shutdown_wakes => shutdown_wakes_a_reader_over_tcp, shutdown_wakes_a_reader_over_unix;
    clones => clones_are_read_and_written_by_two_fibers_over_tcp,
        clones_are_read_and_written_by_two_fibers_over_unix;
    peeks => peek_waits_and_takes_nothing_over_tcp, peek_waits_and_takes_nothing_over_unix;
    vectors => vectors_are_scattered_and_gathered_over_tcp,
        vectors_are_scattered_and_gathered_over_unix;
    shared_reader => several_readers_share_a_stream_over_tcp,
        several_readers_share_a_stream_over_unix;
}

/// A block that repeats in the stream. Its odd length makes the pattern drift against every
/// buffer, so that a lost or doubled piece cannot look right.
struct Pattern(Vec<u8>);

impl Pattern {
    fn new(seed: u64) -> Self {
        let mut block = vec![0; (1 << 20) + 17];
        Random::new(seed).fill(&mut block);
        Pattern(block)
    }

    /// The longest piece of the stream at `position` that lies in one block, up to `limit` bytes.
    fn at(&self, position: usize, limit: usize) -> &[u8] {
        let start = position % self.0.len();
        &self.0[start..self.0.len().min(start + limit)]
    }

    /// Writes `total` bytes in pieces of random sizes, taking every partial count as it comes.
    fn send(&self, stream: &mut impl Write, total: usize, random: &mut Random) {
        let mut position = 0;
        while position < total {
            let limit = random.within(1..400_000).min(total - position);
            let count = stream.write(self.at(position, limit)).expect("the other end reads on");
            assert!(count > 0, "a blocking write of something wrote nothing");
            position += count;
        }
    }

    /// Reads to the end in pieces of random sizes and compares; returns how much came.
    fn receive(&self, stream: &mut impl Read, random: &mut Random) -> usize {
        let mut buffer = vec![0; 400_000];
        let mut position = 0;
        loop {
            let limit = random.within(1..buffer.len());
            let count = stream.read(&mut buffer[..limit]).expect("the other end writes on");
            if count == 0 {
                return position;
            }
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let expected = self.at(position, rest.len());
                let (piece, after) = rest.split_at(expected.len());
                assert!(piece == expected, "wrong bytes after {position}");
                position += piece.len();
                rest = after;
            }
        }
    }
}

/// Sends `total` bytes each way at once, four fibers in all.
fn bulk<S: Stream>(host: Host, total: usize) -> Vec<usize> {
    let (near, far) = S::pair();
    let (ping, pong) = (&Pattern::new(1), &Pattern::new(2));
    host.scope(|scope| {
        let ends = [(near, ping, pong), (far, pong, ping)];
        let mut readers = Vec::new();
        for (seed, (stream, outgoing, incoming)) in ends.into_iter().enumerate() {
            let (mut output, mut input) = (stream.twin(), stream);
            let mut random = Random::new(seed as u64);
            let mut reader_random = random.split();
            scope.spawn(move || {
                outgoing.send(&mut output, total, &mut random);
                output.end(Shutdown::Write);
            });
            readers.push(scope.spawn(move || incoming.receive(&mut input, &mut reader_random)));
        }
        readers.into_iter().map(|reader| reader.value()).collect()
    })
}

#[test]
fn sixty_four_mib_both_ways_at_once_over_tcp() {
    everywhere_alone(|host| bulk::<TcpStream>(host, 64 << 20));
}

#[test]
fn sixty_four_mib_both_ways_at_once_over_unix() {
    everywhere_alone(|host| bulk::<UnixStream>(host, 64 << 20));
}

#[test]
fn many_connections_carry_bulk_data_at_once() {
    everywhere_alone(|host| {
        let sums = host.spawn_many(20, move |i| {
            let total = (1 << 20) + i;
            if i % 2 == 0 {
                bulk::<TcpStream>(host, total)
            } else {
                bulk::<UnixStream>(host, total)
            }
        });
        sums.concat()
    });
}

fn half_close<S: Stream>(host: Host) -> (String, String) {
    let (mut near, mut far) = S::pair();
    let server = host.spawn(move || {
        let mut question = String::new();
        far.read_to_string(&mut question).unwrap();
        thread::sleep(Duration::from_millis(10));
        write!(far, "you said: {question}").unwrap();
        question
    });
    near.write_all(b"is anybody there").unwrap();
    host.yield_now();
    near.write_all(b"?").unwrap();
    near.end(Shutdown::Write);
    let mut answer = String::new();
    near.read_to_string(&mut answer).unwrap();
    (server.value(), answer)
}

fn small_messages<S: Stream>(host: Host) -> (u64, usize) {
    const BYTES: usize = if cfg!(debug_assertions) { 20_000 } else { 100_000 };
    let (mut near, mut far) = S::pair();
    let writer = host.spawn(move || {
        for i in 0..BYTES {
            near.write_all(&[i as u8]).unwrap();
        }
    });
    let (mut sum, mut count) = (0, 0);
    let mut byte = [0];
    while far.read(&mut byte).unwrap() == 1 {
        assert_eq!(byte[0], count as u8);
        sum += u64::from(byte[0]);
        count += 1;
    }
    writer.value();
    (sum, count)
}

fn full_length<S: Stream>(host: Host) -> (usize, usize, usize) {
    // Far more than any socket buffer. A blocking write comes back when all of it has been taken.
    let (mut near, mut far) = S::pair();
    let writer = host.spawn(move || {
        let plain = near.write(&vec![1; 12 << 20]).unwrap();
        let pieces = [vec![2; 3 << 20], vec![3; 5 << 20]];
        let vectored = near.write_vectored(&pieces.each_ref().map(|p| IoSlice::new(p))).unwrap();
        (plain, vectored)
    });
    let mut all = Vec::new();
    far.read_to_end(&mut all).unwrap();
    let (plain, vectored) = writer.value();
    let in_order = all.is_sorted();
    assert!(in_order, "the pieces came in another order");
    (plain, vectored, all.len())
}

fn shutdown_wakes<S: Stream>(host: Host) -> Vec<usize> {
    let (near, far) = S::pair();
    let readers: Vec<_> = (0..5)
        .map(|_| {
            let mut near = near.twin();
            host.spawn(move || near.read(&mut [0; 8]).unwrap())
        })
        .collect();
    // Whether they wait already or come later, they must see the end.
    thread::sleep(Duration::from_millis(20));
    near.end(Shutdown::Read);
    let counts = readers.into_iter().map(|reader| reader.value()).collect();
    drop(far);
    counts
}

fn clones<S: Stream>(host: Host) -> Vec<u32> {
    // Two clones of one end, in two fibers: one only writes, one only reads, both at once.
    const MESSAGES: u32 = 2000;
    let (near, mut far) = S::pair();
    let echo = host.spawn(move || {
        let mut word = [0; 4];
        while far.read_exact(&mut word).is_ok() {
            far.write_all(&word).unwrap();
        }
    });
    let writer = host.spawn({
        let mut near = near.twin();
        move || {
            for i in 0..MESSAGES {
                near.write_all(&i.to_be_bytes()).unwrap();
            }
            near.end(Shutdown::Write);
        }
    });
    let reader = host.spawn({
        let mut near = near;
        move || {
            let mut words = Vec::new();
            let mut word = [0; 4];
            while near.read_exact(&mut word).is_ok() {
                words.push(u32::from_be_bytes(word));
            }
            words
        }
    });
    writer.value();
    echo.value();
    reader.value()
}

fn peeks<S: Stream>(host: Host) -> (usize, Vec<u8>) {
    let (mut near, far) = S::pair();
    let peeker = host.spawn(move || {
        let mut far = far;
        let mut buffer = [0; 16];
        let mut seen = 0;
        // Peeking waits for the first byte, and looks at the same bytes however often.
        while seen < 5 {
            seen = far.peek(&mut buffer).unwrap();
            host.yield_now();
        }
        assert_eq!(far.peek(&mut buffer[..2]).unwrap(), 2);
        let mut read = vec![0; 5];
        far.read_exact(&mut read).unwrap();
        (far.peek(&mut buffer).unwrap(), read)
    });
    thread::sleep(Duration::from_millis(10));
    near.write_all(b"he").unwrap();
    thread::sleep(Duration::from_millis(5));
    near.write_all(b"llo").unwrap();
    near.end(Shutdown::Write);
    peeker.value()
}

fn vectors<S: Stream>(host: Host) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (mut near, mut far) = S::pair();
    let reader = host.spawn(move || {
        let (mut head, mut middle, mut rest) = ([0; 3], [0; 4], Vec::new());
        // The first vectored read waits; it may be short if the pieces come apart.
        let mut count = far
            .read_vectored(&mut [IoSliceMut::new(&mut head), IoSliceMut::new(&mut middle)])
            .unwrap();
        while count < 7 {
            count += if count < 3 {
                far.read(&mut head[count..]).unwrap()
            } else {
                far.read(&mut middle[count - 3..]).unwrap()
            };
        }
        far.read_to_end(&mut rest).unwrap();
        (head.to_vec(), middle.to_vec(), rest)
    });
    thread::sleep(Duration::from_millis(10));
    let pieces = [&b"abcde"[..], b"", b"fghij", b"k"].map(IoSlice::new);
    assert_eq!(near.write_vectored(&pieces).unwrap(), 11);
    near.end(Shutdown::Write);
    reader.value()
}

fn shared_reader<S: Stream>(host: Host) -> (usize, u64) {
    // Eight fibers read from clones of one end; every byte goes to exactly one of them.
    const BYTES: usize = 4096;
    let (near, mut far) = S::pair();
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let mut near = near.twin();
            host.spawn(move || {
                let (mut count, mut sum, mut byte) = (0, 0, [0]);
                while near.read(&mut byte).unwrap() == 1 {
                    count += 1;
                    sum += u64::from(byte[0]);
                }
                (count, sum)
            })
        })
        .collect();
    for i in 0..BYTES {
        far.write_all(&[i as u8]).unwrap();
        if i % 256 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    far.end(Shutdown::Write);
    let parts = readers.into_iter().map(|reader| reader.value());
    parts.fold((0, 0), |(count, sum), part| (count + part.0, sum + part.1))
}

#[test]
fn names_are_resolved_inside_a_fiber() {
    use std::net::ToSocketAddrs;
    // Whatever this machine answers, every fiber hears the same answer as a thread.
    everywhere(|host| {
        host.spawn_many(8, |_| {
            let answer = ("localhost", 80).to_socket_addrs();
            answer.map(|found| found.collect::<Vec<_>>()).map_err(|error| error.kind())
        })
    });
}
