//! No descriptor is left: every call that would make one says `EMFILE`, and works when there are some again.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::child;
use crate::support::Host;

/// As many descriptors as there are, all of them.
pub struct Full(Vec<File>);

impl Full {
    /// Lowers the limit to `room` above what is open, and opens these.
    pub fn with_room(room: u64) -> Full {
        let next = File::open("/dev/null").unwrap().as_raw_fd();
        child::limit(libc::RLIMIT_NOFILE, next as u64 + room);
        let mut full = Full(Vec::new());
        full.fill();
        full
    }

    /// Opens what can be opened.
    pub fn fill(&mut self) {
        let error = loop {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    }

    /// Leaves `n` to others.
    pub fn leave(&mut self, n: usize) {
        self.0.truncate(self.0.len() - n);
    }
}

/// What a call that returns a number said.
fn said(result: libc::c_int) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller's call has just returned it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// Every call that makes a descriptor, and what it says.
fn calls(file: &File) -> Vec<(&'static str, Option<i32>)> {
    let fd = file.as_raw_fd();
    let pair = || {
        let mut ends = [0; 2];
        // SAFETY: pipe2(2) writes two numbers.
        said(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }).map(|zero| {
            // pipe2 returns 0, which is nobody's to close.
            std::mem::forget(zero);
            // SAFETY: it has succeeded, so both are ours.
            drop(ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) }));
        })
    };
    let error = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    // SAFETY: socket(2), dup(2), fcntl(2), eventfd(2), timerfd_create(2), epoll_create1(2), accept4(2) on numbers.
    let made = unsafe {
        [
            ("socket", said(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0))),
            ("dup", said(libc::dup(fd))),
            ("fcntl", said(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0))),
            ("eventfd", said(libc::eventfd(0, 0))),
            ("timerfd", said(libc::timerfd_create(libc::CLOCK_MONOTONIC, 0))),
            ("epoll", said(libc::epoll_create1(0))),
        ]
    };
    let mut all: Vec<_> =
        made.into_iter().map(|(name, result)| (name, error(result.map(drop)))).collect();
    all.push(("pipe2", error(pair())));
    all.push(("open", error(File::open("/dev/zero").map(drop))));
    all.push(("try_clone", error(file.try_clone().map(drop))));
    all.push(("socketpair", error(UnixStream::pair().map(drop))));
    all.push(("bind", error(UdpSocket::bind("127.0.0.1:0").map(drop))));
    all.push(("connect", error(TcpStream::connect("127.0.0.1:9").map(drop))));
    all
}

#[test]
fn without_a_descriptor_every_call_says_emfile() {
    child::run(
        "descriptors::without_a_descriptor_every_call_says_emfile",
        &child::all(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        child::settle();
        host.run(Duration::from_secs(60), &|host: Host| {
            let file = File::open("/dev/null").unwrap();
            let mut full = Full::with_room(16);
            for (name, said) in calls(&file) {
                assert_eq!(said, Some(libc::EMFILE), "{name}");
            }
            // So for all, whichever worker they are on.
            let shared = Arc::new(file);
            let file = Arc::clone(&shared);
            for errors in host.spawn_many(8, move |_| calls(&shared)) {
                assert!(errors.iter().all(|(_, said)| *said == Some(libc::EMFILE)), "{errors:?}");
            }
            // Eight are made together.
            full.leave(8);
            for (name, said) in calls(&file) {
                let expected = (name == "connect").then_some(libc::ECONNREFUSED);
                assert_eq!(said, expected, "{name}, with descriptors to be had");
            }
        });
    }
}

#[test]
fn who_has_its_descriptors_goes_on_and_accepts_when_there_are_more() {
    child::run(
        "descriptors::who_has_its_descriptors_goes_on_and_accepts_when_there_are_more",
        &child::all(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        child::settle();
        host.run(Duration::from_secs(60), &|host: Host| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut near, mut far) = UnixStream::pair().unwrap();
            let mut full = Full::with_room(16);
            // Waits need no descriptor of their own.
            let reader = host.spawn(move || {
                let mut byte = [0];
                far.read_exact(&mut byte).unwrap();
                (byte, far)
            });
            thread::sleep(Duration::from_millis(20));
            near.write_all(b"x").unwrap();
            assert_eq!(&reader.value().0, b"x");
            full.fill();
            // The connection stays where it is until it can be had.
            for _ in 0..3 {
                assert_eq!(listener.accept().unwrap_err().raw_os_error(), Some(libc::EMFILE));
            }
            full.leave(1);
            let (mut server, _) = listener.accept().unwrap();
            server.write_all(b"late").unwrap();
            drop(server);
            let mut answer = String::new();
            (&client).read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "late");
        });
    }
}

#[test]
fn a_closed_or_reused_number_says_what_it_is_now() {
    child::run(
        "descriptors::a_closed_or_reused_number_says_what_it_is_now",
        &child::all(),
        body,
        child::succeeds,
    );
    fn body(host: Host) {
        child::settle();
        host.run(Duration::from_secs(60), &|host: Host| {
            let errno = |result: isize| {
                (result < 0).then(|| io::Error::last_os_error().raw_os_error().unwrap())
            };
            let mut byte = 0u8;
            for round in 0..100 {
                let (near, far) = UnixStream::pair().unwrap();
                let number = near.as_raw_fd();
                // Waited for, so known to the runtime.
                let waker = host.spawn(move || {
                    thread::sleep(Duration::from_micros(100 * (round % 3)));
                    (&far).write_all(b"x").unwrap();
                    far
                });
                (&near).read_exact(std::slice::from_mut(&mut byte)).unwrap();
                let far = waker.value();
                drop(near);
                // SAFETY: a number that nobody has, and a byte of ours.
                let (read, written, closed) = unsafe {
                    let at = (&raw mut byte).cast();
                    (
                        errno(libc::read(number, at, 1)),
                        errno(libc::write(number, at, 1)),
                        errno(libc::close(number) as isize),
                    )
                };
                assert_eq!([read, written, closed], [Some(libc::EBADF); 3], "closed");
                // The lowest free number is taken again, by something else.
                let zero = File::open("/dev/zero").unwrap();
                assert_eq!(zero.as_raw_fd(), number, "round {round}");
                byte = 7;
                (&zero).read_exact(std::slice::from_mut(&mut byte)).unwrap();
                assert_eq!(byte, 0);
                drop(far);
                drop(zero);
                // And by a listener, whose waiters are not the pair's.
                let listener = UnixListener::bind_addr(&address(round)).unwrap();
                assert_eq!(listener.as_raw_fd(), number);
                let connector = host.spawn(move || {
                    drop(UnixStream::connect_addr(&address(round)).unwrap());
                });
                drop(listener.accept().unwrap());
                connector.value();
            }
        });
    }
}

/// An address without a file, of this process.
fn address(round: u64) -> std::os::unix::net::SocketAddr {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("sleave-limits-{}-{round}", std::process::id());
    std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap()
}
