//! Pipes and files. A pipe waits like a socket but knows no flag per call; a regular file never
//! waits in a way that poll could see.
//!
//! Sources: pipe(7) (`PIPE_BUF`, capacity), preadv2(2) (`RWF_NOWAIT`).

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use crate::support::everywhere;
use crate::support::random::fresh_seed;

#[test]
fn a_pipe_carries_16_mib_through_its_64_kib() {
    everywhere(|host| {
        const WORDS: u32 = 4 << 20;
        let (mut reader, mut writer) = io::pipe().unwrap();
        let task = host.spawn(move || {
            let mut block = Vec::new();
            for start in (0..WORDS).step_by(25_000) {
                block.clear();
                let words = start..WORDS.min(start + 25_000);
                block.extend(words.flat_map(u32::to_le_bytes));
                // All of it, in one call: the pipe is blocking, and smaller than the block.
                assert_eq!(writer.write(&block).unwrap(), block.len());
            }
        });
        let (mut buffer, mut carry, mut next) = (vec![0; 100_003], Vec::new(), 0);
        loop {
            let count = reader.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            carry.extend_from_slice(&buffer[..count]);
            let whole = carry.len() / 4 * 4;
            for word in carry[..whole].chunks_exact(4) {
                assert_eq!(word, u32::to_le_bytes(next));
                next += 1;
            }
            carry.drain(..whole);
        }
        task.value();
        next
    });
}

#[test]
fn a_pipes_ends_tell_of_each_other() {
    everywhere(|host| {
        let (mut reader, writer) = io::pipe().unwrap();
        let closer = host.spawn(move || {
            thread::sleep(Duration::from_millis(20));
            drop(writer);
        });
        let at_end = reader.read(&mut [0; 8]).unwrap();
        closer.value();
        let (reader, mut writer) = io::pipe().unwrap();
        let closer = host.spawn(move || {
            thread::sleep(Duration::from_millis(20));
            drop(reader);
        });
        // Fills the pipe, waits, and is told.
        let kind = loop {
            if let Err(error) = writer.write(&[0; 10_000]) {
                break error.kind();
            }
        };
        closer.value();
        (at_end, kind, kind == ErrorKind::BrokenPipe)
    });
}

#[test]
fn short_records_of_many_writers_stay_whole() {
    everywhere(|host| {
        // pipe(7): a write of up to PIPE_BUF bytes is atomic, also one that had to wait.
        let (reader, writer) = io::pipe().unwrap();
        let writers: Vec<_> = (0..16_u8)
            .map(|i| {
                let mut writer = File::from(OwnedFd::from(writer.try_clone().unwrap()));
                host.spawn(move || {
                    let mut record = [b'a' + i; 3000];
                    record[2999] = b'\n';
                    for _ in 0..100 {
                        assert_eq!(writer.write(&record).unwrap(), record.len());
                    }
                })
            })
            .collect();
        drop(writer);
        let mut counts = [0; 16];
        let mut reader = BufReader::new(File::from(OwnedFd::from(reader)));
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line).unwrap() == 0 {
                break;
            }
            assert_eq!(line.len(), 3000, "a record was torn");
            assert!(line[..2999].iter().all(|&byte| byte == line[0]), "a record was torn");
            counts[usize::from(line[0] - b'a')] += 1;
        }
        writers.into_iter().for_each(|writer| writer.value());
        counts
    });
}

#[test]
fn a_ring_of_pipes_hands_a_token_round() {
    everywhere(|host| {
        const LENGTH: usize = 50;
        const ROUNDS: u8 = 40;
        let (first_reader, first_writer) = io::pipe().unwrap();
        let mut input = first_reader;
        let mut links = Vec::new();
        for _ in 1..LENGTH {
            let (next_input, mut output) = io::pipe().unwrap();
            let mut from = std::mem::replace(&mut input, next_input);
            links.push(host.spawn(move || {
                let mut token = [0];
                while from.read(&mut token).unwrap() == 1 {
                    assert_eq!(output.write_vectored(&[IoSlice::new(&token)]).unwrap(), 1);
                }
            }));
        }
        let (mut start, mut end) = (first_writer, input);
        let mut seen = Vec::new();
        for round in 0..ROUNDS {
            start.write_all(&[round]).unwrap();
            let mut token = [0];
            end.read_exact(&mut token).unwrap();
            seen.push(token[0]);
        }
        drop(start);
        links.into_iter().for_each(|link| link.value());
        seen
    });
}

#[test]
fn regular_files_are_read_and_written_by_fibers() {
    everywhere(|host| {
        let stem = format!("sleave-{}-{}", std::process::id(), fresh_seed());
        host.spawn_many(8, move |i| {
            let path = std::env::temp_dir().join(format!("{stem}-{i}"));
            let mut file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .expect("a file among the temporary ones");
            std::fs::remove_file(&path).unwrap();
            let block: Vec<u8> = (0..200_000).map(|at| (at * (i + 3)) as u8).collect();
            file.write_all(&block).unwrap();
            file.sync_all().unwrap();
            file.seek(SeekFrom::Start(100)).unwrap();
            let mut back = Vec::new();
            file.read_to_end(&mut back).unwrap();
            (back == block[100..], file.read(&mut [0; 4]).unwrap(), file.metadata().unwrap().len())
        })
    });
}
