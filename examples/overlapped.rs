//! Three conversations over sockets, each written as if it were alone and blocked, overlapped on one thread.
//!
//! A client connects, sends its question, receives the answer: three calls, one after the other. The server
//! takes the questions of all three before it answers any, the last one first. On one
//! thread that blocks, the first client's `read` would wait for ever, and nobody would ask the second question.
//! Here it parks its fiber; the thread goes on with the others.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;

use sleave::Runtime;

const CLIENTS: u8 = 3;

/// Connects, sends, receives.
fn client(server: SocketAddr, number: u8, say: &impl Fn(String)) -> io::Result<()> {
    say(format!("client {number}: connects and asks"));
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(&[number])?;
    let mut answer = [0; 1];
    stream.read_exact(&mut answer)?;
    say(format!("client {number}: {} was the answer", answer[0]));
    Ok(())
}

/// Takes all questions, and answers them backwards.
fn server(listener: &TcpListener, say: &impl Fn(String)) -> io::Result<()> {
    let mut asked = Vec::new();
    for stream in listener.incoming().take(CLIENTS.into()) {
        let (mut stream, mut question) = (stream?, [0; 1]);
        stream.read_exact(&mut question)?;
        asked.push((question[0], stream));
    }
    asked.sort_by_key(|(question, _)| *question);
    say(format!("server: all {} have asked, and none has an answer", asked.len()));
    for (question, mut stream) in asked.into_iter().rev() {
        stream.write_all(&[question * 10])?;
        // The client hangs up when it has had its say.
        assert_eq!(stream.read(&mut [0; 1])?, 0);
    }
    Ok(())
}

/// What is said, in its order.
pub fn story() -> Vec<String> {
    let lines = Mutex::new(Vec::new());
    let say = |line| lines.lock().unwrap().push(line);
    let runtime = Runtime::builder().workers(1).use_caller().build().expect("a runtime");
    runtime.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("it is bound");
        sleave::scope(|scope| {
            for number in 1..=CLIENTS {
                scope.spawn(move || client(address, number, &say).expect("a conversation"));
            }
            server(&listener, &say).expect("three conversations");
        });
    });
    runtime.stop();
    lines.into_inner().unwrap()
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
