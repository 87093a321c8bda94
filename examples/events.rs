//! Events of descriptors: registered, deleted, cancelled; and waiting for any of several.
//!
//! Most code has no need of them: a fiber reads, and is parked until there is something. They are for who
//! would rather be called, and for who waits for several descriptors at once. A registration that
//! is **deleted** ends in silence; one that is **cancelled** is called once more and told so.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use sleave::Runtime;
use sleave::event::{self, Direction, Event};

/// Called whenever something arrives, until that is deleted.
fn persistent() -> io::Result<Vec<String>> {
    let (mut near, far) = UnixStream::pair()?;
    far.set_nonblocking(true)?;
    let reader = far.try_clone()?;
    let (say, said) = mpsc::channel();
    let registration = event::persistent(&far, Direction::Read, move |event, _| {
        let mut text = String::new();
        // Takes all there is, up to EAGAIN.
        let _ = (&reader).read_to_string(&mut text);
        say.send(format!("persistent: {event:?}, {text}")).unwrap();
    })?;
    let mut lines = Vec::new();
    for text in ["one", "two"] {
        near.write_all(text.as_bytes())?;
        lines.push(said.recv().expect("it is registered"));
    }
    lines.push(format!("persistent: deleted {}", registration.delete()));
    near.write_all(b"three")?;
    // What the callback held has been dropped, so nobody will say anything any more.
    assert!(said.recv().is_err());
    Ok(lines)
}

/// Called once; here because it is cancelled.
fn once() -> io::Result<Vec<String>> {
    let (_near, far) = UnixStream::pair()?;
    let (say, said) = mpsc::channel();
    let told = |say: &mpsc::Sender<Event>| {
        let say = say.clone();
        move |event| say.send(event).unwrap()
    };
    let registration = event::once(&far, Direction::Read, told(&say))?;
    let (first, again) = (registration.cancel(), registration.cancel());
    let mut lines = vec![format!("once: cancelled {first}, told {:?}", said.recv().unwrap())];
    lines.push(format!("once: cancelled again {again}"));

    event::once(&far, Direction::Read, told(&say))?;
    event::once(&far, Direction::Read, told(&say))?;
    let count = event::cancel_all(&far);
    let calls: Vec<_> = said.iter().take(2).collect();
    lines.push(format!("once: {count} at one descriptor cancelled, told {calls:?}"));
    Ok(lines)
}

/// Parks until any of three can be read.
fn any() -> io::Result<Vec<String>> {
    let pairs = [UnixStream::pair()?, UnixStream::pair()?, UnixStream::pair()?];
    let interests = pairs.each_ref().map(|(_, far)| (far.as_fd(), Direction::Read));
    let ready = event::wait_any(&interests, Some(Duration::from_millis(5)))?;
    let mut lines = vec![format!("any of 3, for 5 ms: {ready:?}")];
    for index in [1, 2] {
        (&pairs[index].0).write_all(b"!")?;
        let ready = event::wait_any(&interests, None)?;
        lines.push(format!("any of 3, after a write to number {index}: {ready:?}"));
    }
    Ok(lines)
}

/// What happens, in its order.
pub fn story() -> io::Result<Vec<String>> {
    let runtime = Runtime::builder().workers(1).use_caller().build()?;
    let lines = runtime.run(|| Ok::<_, io::Error>([persistent()?, once()?, any()?].concat()))?;
    runtime.stop();
    Ok(lines)
}

fn main() -> io::Result<()> {
    story()?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
