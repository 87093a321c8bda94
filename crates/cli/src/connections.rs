//! The open connections of a server, so that stopping can reach them.
//!
//! ```text
//!   enter(stream) ─▶ Guest { stream } ── served ──▶ dropped: leaves the table, wakes who waits for it to be empty
//! ```
//!
//! Stopping ends the reading side first: what a client has sent is still answered, then `read` returns 0 and
//! the server function comes to its end as after any client's farewell. A client that does not take its replies
//! would hold that up for ever, so after a time of grace the rest is cut.
//!
//! All of it is `std::sync`, and is used from threads and from fibers alike.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The table of open connections.
#[derive(Default)]
pub struct Connections {
    table: Mutex<Table>,
    left: Condvar,
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Arc<TcpStream>>,
    entered: u64,
}

/// A connection that is in the table as long as this value lives.
pub struct Guest {
    connections: Arc<Connections>,
    number: u64,
    stream: Arc<TcpStream>,
}

impl Connections {
    /// Takes a connection in.
    pub fn enter(self: &Arc<Self>, stream: TcpStream) -> Guest {
        let stream = Arc::new(stream);
        let mut table = self.table();
        let number = table.entered;
        table.entered += 1;
        table.open.insert(number, Arc::clone(&stream));
        Guest { connections: Arc::clone(self), number, stream }
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.table().open.len()
    }

    /// Waits until one leaves, at most `timeout`.
    pub fn wait_for_a_departure(&self, timeout: Duration) {
        let table = self.table();
        let open = table.open.len();
        let _ = self.left.wait_timeout_while(table, timeout, |table| table.open.len() >= open);
    }

    /// Ends all connections; returns when the last has left.
    pub fn end_all(&self, grace: Duration) {
        self.shut_down(Shutdown::Read);
        if !self.wait_until_empty(grace) {
            self.shut_down(Shutdown::Both);
            while !self.wait_until_empty(grace) {}
        }
    }

    fn shut_down(&self, how: Shutdown) {
        for stream in self.table().open.values() {
            // Fails when the client has gone already; then it is on its way out.
            let _ = stream.shutdown(how);
        }
    }

    /// Whether all have left within `timeout`.
    fn wait_until_empty(&self, timeout: Duration) -> bool {
        let waited =
            self.left.wait_timeout_while(self.table(), timeout, |table| !table.open.is_empty());
        let (table, _) = waited.unwrap_or_else(PoisonError::into_inner);
        table.open.is_empty()
    }

    /// The table is right after each single operation; a panic elsewhere does not change that.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let departed = self.connections.table().open.remove(&self.number);
        drop(departed);
        self.connections.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::Connections;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn ending_lets_the_pending_answer_out() {
        let connections = Arc::new(Connections::default());
        let (mut client, server) = pair();
        client.write_all(b"last words").unwrap();
        let guest = connections.enter(server);
        let served = thread::spawn(move || {
            let mut all = Vec::new();
            guest.stream().read_to_end(&mut all).unwrap();
            guest.stream().write_all(&all).unwrap();
        });
        connections.end_all(Duration::from_secs(30));
        served.join().unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"last words");
        assert_eq!(connections.open(), 0);
    }

    #[test]
    fn a_client_that_does_not_read_is_cut() {
        let connections = Arc::new(Connections::default());
        let (client, server) = pair();
        let guest = connections.enter(server);
        let served = thread::spawn(move || {
            let block = [0; 65536];
            while guest.stream().write_all(&block).is_ok() {}
        });
        let begin = Instant::now();
        connections.end_all(Duration::from_millis(50));
        served.join().unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(50));
        drop(client);
    }
}
