//! Two runtimes side by side, named fibers, statistics, an orderly stop.
//!
//! Most programs need only `sleave::run` and `spawn`. Runtimes of one's own keep two kinds of work
//! apart, each with its own workers; their fibers may share whatever threads may. `stop` returns
//! when every fiber has ended and every worker is gone.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sleave::{Builder, Runtime};

/// What happens. What the statistics count is another every time, but for the last.
pub fn story() -> std::io::Result<Vec<String>> {
    let mut lines = vec![match sleave::identity() {
        Ok(()) => "fibers are fibers here".to_owned(),
        Err(why) => format!("fibers are OS threads here: {why}"),
    }];
    let front = Runtime::builder().workers(1).name("front").build()?;
    let back = Runtime::builder().workers(2).name("back").stack_size(64 << 10).build()?;

    let (ask, questions) = mpsc::channel::<(u64, mpsc::Sender<u64>)>();
    let clerk = Builder::new().name("clerk").spawn_on(&back, move || {
        for (number, reply) in questions {
            // A fiber spawns on the runtime that it runs on.
            sleave::spawn(move || {
                thread::sleep(Duration::from_millis(50));
                reply.send(number * number).unwrap();
            });
        }
        sleave::current().and_then(|fiber| fiber.name().map(str::to_owned))
    })?;

    let sum = front.run(|| {
        let (reply, replies) = mpsc::channel();
        (1..=100).for_each(|number| ask.send((number, reply.clone())).unwrap());
        drop((ask, reply));
        lines.push(format!("this time: back, busy: {:?}", back.statistics()));
        replies.iter().sum::<u64>()
    });
    lines.push(format!("the sum of the first 100 squares is {sum}"));

    lines.push(format!("the clerk has ended and said {:?}", clerk.join().unwrap()));
    front.stop();
    back.stop();
    let left = back.statistics();
    lines.push(format!("stopped: {} fibers, {} workers", left.fibers, left.workers));
    Ok(lines)
}

fn main() -> std::io::Result<()> {
    story()?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
