//! Regular files: reading from memory and from the disk, and synchronising.

use std::fs::File;
use std::io::{IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::support::everywhere;
use crate::{Directory, outcome};

const SIZE: usize = 1 << 20;

fn pattern(at: usize) -> u8 {
    (at * 31 + at / 4099) as u8
}

/// A file of a pattern, on the disk.
fn file(directory: &Directory) -> File {
    let path = directory.path("pattern");
    let bytes: Vec<u8> = (0..SIZE).map(pattern).collect();
    std::fs::write(&path, bytes).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.sync_all().unwrap();
    file
}

/// Has the kernel forget what it remembers of `file`.
fn forget(file: &File) {
    // SAFETY: posix_fadvise(2) takes numbers.
    let code = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(code, 0);
}

/// `read` once: a file gives all there is.
fn read_once(mut file: &File, len: usize) -> Vec<u8> {
    let mut buffer = vec![0; len];
    let count = file.read(&mut buffer).unwrap();
    buffer.truncate(count);
    buffer
}

fn is_pattern(bytes: &[u8], at: usize) -> bool {
    bytes.iter().enumerate().all(|(i, &byte)| byte == pattern(at + i))
}

#[test]
fn a_read_is_whole_wherever_the_bytes_are() {
    let directory = Directory::make();
    let file = file(&directory);
    everywhere(|_| {
        let mut counts = Vec::new();
        for touched in [&[][..], &[0], &[128], &[0, 64, 65, 255]] {
            forget(&file);
            // Some pages are in memory, others are not.
            for page in touched {
                let mut byte = [0];
                file.read_exact_at(&mut byte, page * 4096).unwrap();
            }
            (&file).rewind().unwrap();
            let bytes = read_once(&file, SIZE - 100);
            assert!(is_pattern(&bytes, 0));
            let rest = read_once(&file, 1000);
            assert!(is_pattern(&rest, SIZE - 100));
            counts.push((bytes.len(), rest.len(), read_once(&file, 10).len()));
            let at = (&file).stream_position().unwrap() as usize;
            assert_eq!(at, SIZE, "the position is behind what was read");
        }
        counts
    });
}

#[test]
fn vectors_and_offsets_are_read_from_the_disk() {
    let directory = Directory::make();
    let file = file(&directory);
    everywhere(|_| {
        forget(&file);
        let (mut one, mut two) = (vec![0; 5000], vec![0; 300_000]);
        (&file).seek(SeekFrom::Start(7)).unwrap();
        let vector = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
        let count = (&file).read_vectored(&mut { vector }).unwrap();
        assert!(is_pattern(&one, 7) && is_pattern(&two, 5007));

        let end = SIZE as u64 - 1000;
        let mut buffer = vec![0; 5000];
        let at_end = file.read_at(&mut buffer, end).unwrap();
        assert!(is_pattern(&buffer[..at_end], end as usize));
        let behind = file.read_at(&mut buffer, 2 * SIZE as u64).unwrap();
        let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: preadv(2) into a buffer of its length, and its refusals.
        let preadv =
            |count, at| outcome(unsafe { libc::preadv(file.as_raw_fd(), &part, count, at) as i64 });
        let preadv = [preadv(1, 99), preadv(1, -1), preadv(-1, 0), preadv(0, 0)];
        (count, at_end, behind, preadv, (&file).stream_position().unwrap())
    });
}

#[test]
fn what_is_no_regular_file_is_read_as_ever() {
    let directory = Directory::make();
    let writable = File::create(directory.path("writable")).unwrap();
    everywhere(|_| {
        let error = |file: std::io::Result<File>| {
            file.and_then(|mut file| file.read(&mut [0; 10])).map_err(|e| e.raw_os_error())
        };
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        let mut byte = [0u8; 4];
        // SAFETY: pread(2) into a buffer of its length, of what has no offsets and of nothing.
        let pread = |fd| outcome(unsafe { libc::pread(fd, byte.as_mut_ptr().cast(), 4, 0) as i64 });
        let pread = [reader.as_raw_fd(), -1].map(pread);
        (
            error(File::open("/proc/self/comm")).is_ok(),
            error(File::open("/dev/zero")),
            error(File::open("/")),
            error(writable.try_clone()),
            pread,
        )
    });
}

#[test]
fn many_read_one_file_at_their_own_offsets() {
    let directory = Directory::make();
    let file = std::sync::Arc::new(file(&directory));
    everywhere(|host| {
        forget(&file);
        let parts = 64;
        let good = host.spawn_many(parts, {
            let file = std::sync::Arc::clone(&file);
            move |i| {
                let at = i * 37 % parts * (SIZE / parts);
                let mut buffer = vec![0; SIZE / parts];
                file.read_exact_at(&mut buffer, at as u64).unwrap();
                is_pattern(&buffer, at)
            }
        });
        good.into_iter().all(|good| good)
    });
}

#[test]
fn synchronising_answers_as_on_a_thread() {
    let directory = Directory::make();
    let file = file(&directory);
    everywhere(|_| {
        (&file).write_all(b"something").unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        // SAFETY: calls on descriptors of our own or on none; msync(2) of a page that is mapped, and of none.
        unsafe {
            let page = libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            let results = [
                outcome(libc::fsync(file.as_raw_fd())),
                outcome(libc::fdatasync(file.as_raw_fd())),
                outcome(libc::syncfs(file.as_raw_fd())),
                outcome(libc::sync_file_range(
                    file.as_raw_fd(),
                    0,
                    4096,
                    libc::SYNC_FILE_RANGE_WRITE,
                )),
                outcome(libc::msync(page, 4096, libc::MS_SYNC)),
                outcome(libc::msync(page, 4096, 77)),
                outcome(libc::fsync(reader.as_raw_fd())),
                outcome(libc::fdatasync(-1)),
                outcome(libc::syncfs(-1)),
                outcome(libc::sync_file_range(file.as_raw_fd(), -1, 1, 0)),
            ];
            assert_eq!(libc::munmap(page, 4096), 0);
            libc::sync();
            results
        }
    });
}
