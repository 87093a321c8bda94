//! The echo server: one function in plain `std`, on a thread or on a fiber for each connection.
//!
//! [`serve`] is the program that anyone would write first: read, write, again. It knows nothing of fibers. Which of the two
//! it runs on is decided in [`Mode::spawn`], and nowhere else; the accept loop is shared, too.
//!
//! ```text
//!   main ─ bind ─ signals ─┬─ threads: accept loop on the main thread, a std::thread per connection
//!                          └─ fibers:  accept loop on a fiber of a runtime with W workers, a fiber per connection
//!   accept fails, a signal has come ─▶ end the open connections ─▶ all have left ─▶ closing line
//! ```
//!
//! One process serves as many connections as it may have open files. More need more processes: with
//! `--reuse-port` any number of them share an address, with `--processes` a supervisor starts them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::args::{Echo, Mode};
use crate::connections::Connections;
use crate::console::print;
use crate::{fleet, limits, signals, supervisor};

/// Bytes that go to and fro at once. The buffer lies on the connection's stack and so is most of its memory: small
/// keeps a connection within the page or two that any stack has touched anyway.
const BUFFER: usize = 1024;
/// How long open connections have to take their last replies when the server stops.
const GRACE: Duration = Duration::from_secs(1);
/// How long to wait for room when the process has no descriptor left for another connection.
const PAUSE: Duration = Duration::from_millis(100);

/// The server function: sends back what comes until the client is done.
fn serve(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; BUFFER];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => stream.write_all(&buffer[..count])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Mode {
    /// Runs `job` beside the caller: the only line in which the two modes differ.
    fn spawn(self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        match self {
            Self::Threads => std::thread::Builder::new().spawn(job).map(drop),
            Self::Fibers => sleave::Builder::new().spawn(job).map(drop),
        }
    }
}

/// `sleave echo`: serves until a signal comes. Says whether all went well.
pub fn run(arguments: &Echo) -> io::Result<bool> {
    if arguments.processes > 1 {
        return supervisor::run(arguments);
    }
    eprintln!("{}", limits::raise_open_files()?);
    let listener = if arguments.reuse_port {
        fleet::listen(&*arguments.listen)
    } else {
        TcpListener::bind(&arguments.listen)
    };
    let listener = listener.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {}: {error}", arguments.listen))
    })?;
    // One socket per process, and a signal handler that may look at it at any time: it is never closed.
    let listener: &'static TcpListener = Box::leak(Box::new(listener));
    signals::stop_on_signal(listener)?;
    // The line comes after the handlers are in place: whoever has read it may stop us.
    print(&format!("listening on {}", listener.local_addr()?))?;

    let served = match arguments.mode {
        Mode::Threads => accept_until_stopped(listener, Mode::Threads),
        Mode::Fibers => {
            if let Err(why) = sleave::identity() {
                eprintln!("fibers are OS threads here: {why}");
            }
            let runtime = sleave::Runtime::builder().workers(arguments.workers).build()?;
            let served = runtime.run(|| accept_until_stopped(listener, Mode::Fibers));
            runtime.stop();
            served
        }
    }?;
    print(&format!("stopped: {served} connections served"))?;
    Ok(true)
}

/// Accepts, and lets each connection be served, until a signal has come and the last connection has ended.
/// Returns how many were served.
fn accept_until_stopped(listener: &TcpListener, mode: Mode) -> io::Result<u64> {
    let connections = Arc::new(Connections::default());
    let ceiling = match mode {
        Mode::Threads => limits::thread_allowance(),
        Mode::Fibers => usize::MAX,
    };
    let (mut served, mut refused, mut lacked) = (0, 0_u64, false);
    let end = loop {
        match listener.accept() {
            Ok((stream, _)) => match start(mode, ceiling, &connections, stream) {
                Ok(()) => served += 1,
                Err(error) => {
                    // Said once: the next thousand refusals have the same cause.
                    if refused == 0 {
                        eprintln!("no room after {} connections: {error}", connections.open());
                    }
                    refused += 1;
                }
            },
            Err(_) if signals::stopping() => break Ok(served),
            Err(error) if is_of_the_client(&error) => {}
            Err(error) if is_lack_of_room(&error) => {
                if !lacked {
                    let open = connections.open();
                    eprintln!(
                        "no room after {open} connections: {error}; the next waits until one ends"
                    );
                    lacked = true;
                }
                connections.wait_for_a_departure(PAUSE);
            }
            Err(error) => break Err(error),
        }
    };
    connections.end_all(GRACE);
    end
}

/// Begins to serve one connection. Where that fails it is closed.
fn start(
    mode: Mode,
    ceiling: usize,
    connections: &Arc<Connections>,
    stream: TcpStream,
) -> io::Result<()> {
    if connections.open() >= ceiling {
        return Err(io::Error::other("another thread would exceed vm.max_map_count"));
    }
    let guest = connections.enter(stream);
    mode.spawn(move || {
        // A client that resets the connection ends it in its own way: that is no concern of the others.
        let _ = serve(guest.stream());
    })
}

/// Failures of accept(2) that belong to the one connection that was just being accepted.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO))
}

/// Failures of accept(2) that pass when another connection ends.
fn is_lack_of_room(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::{BUFFER, Mode, serve};
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::sync::mpsc;

    #[test]
    fn what_is_sent_comes_back_in_both_modes() {
        for mode in [Mode::Threads, Mode::Fibers] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            let (done, finished) = mpsc::channel();
            mode.spawn(move || done.send(serve(&stream)).unwrap()).unwrap();
            let sent: Vec<u8> = (0..3 * BUFFER + 1).map(|at| (at % 251) as u8).collect();
            client.write_all(&sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut back = Vec::new();
            client.read_to_end(&mut back).unwrap();
            assert!(back == sent);
            finished.recv().unwrap().unwrap();
        }
    }
}
