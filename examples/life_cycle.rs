//! The life of a fiber: every state that it can be in, one after the other.
//!
//! ```text
//!   spawned ──▶ ready ──▶ running ──▶ ended ──▶ joined
//!                 ▲          │
//!                 ├─ yields ─┤
//!                 └─ waits ◀─┘  for a timer, a lock, a descriptor, a token
//! ```
//!
//! Ada goes through all of them; the main fiber is there to give her what she waits for. The one worker is the
//! calling thread, so one of the two runs at a time, and the story is the same every time. With
//! `--features trace` and `SLEAVE_TRACE=1` in the environment the runtime tells it from its side.

use std::io::{Read, Write, pipe};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use sleave::{Builder, Runtime};

/// What the two say, in its order.
pub fn story() -> Vec<String> {
    let lines = Mutex::new(Vec::new());
    let say = |line: &str| lines.lock().unwrap().push(line.to_owned());
    let door = Mutex::new(());
    let runtime = Runtime::builder().workers(1).use_caller().build().expect("a runtime");
    runtime.run(|| {
        let main = sleave::current().expect("this runs on a fiber");
        let (mut reader, mut writer) = pipe().expect("a pipe");
        let key = door.lock().unwrap();
        sleave::scope(|scope| {
            let life = || {
                say("  Ada: I run, on a stack of my own, and yield");
                sleave::yield_now();
                say("  Ada: I sleep");
                thread::sleep(Duration::from_millis(1));
                say("  Ada: I wait for the door");
                main.unpark();
                let _inside = door.lock().unwrap();
                say("  Ada: I wait for a letter");
                main.unpark();
                let mut letter = [0; 5];
                reader.read_exact(&mut letter).expect("five bytes");
                say("  Ada: I have read it, and park");
                main.unpark();
                sleave::park();
                say("  Ada: I end");
                String::from_utf8_lossy(&letter).into_owned()
            };
            let ada = Builder::new().name("Ada").spawn_scoped(scope, life).expect("a fiber");
            say("main: Ada is spawned, and has not run");
            sleave::yield_now();
            say("main: Ada lets me run");
            sleave::park();
            say("main: I open the door");
            drop(key);
            sleave::park();
            say("main: I send a letter");
            writer.write_all(b"hello").expect("room in the pipe");
            sleave::park();
            say("main: I unpark her, and wait for her end");
            ada.fiber().unpark();
            let result = ada.join().expect("she does not panic");
            say(&format!("main: Ada has left \"{result}\""));
        });
    });
    runtime.stop();
    lines.into_inner().unwrap()
}

fn main() {
    story().iter().for_each(|line| println!("{line}"));
}
