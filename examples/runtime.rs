//! Two runtimes side by side, named fibers, statistics, an orderly stop.
//!
//! Most programs need only `sleave::run` and `spawn`. Runtimes of one's own keep two kinds of work
//! apart, each with its own workers; their fibers may share whatever threads may. `stop` returns
//! when every fiber has ended and every worker is gone.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sleave::{Builder, Runtime};

fn main() -> std::io::Result<()> {
    match sleave::identity() {
        Ok(()) => println!("fibers are fibers here"),
        Err(why) => println!("fibers are OS threads here: {why}"),
    }
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
        println!("back, busy: {:?}", back.statistics());
        replies.iter().sum::<u64>()
    });
    println!("the sum of the first 100 squares is {sum}");
    assert_eq!(sum, 338_350);

    let handle = clerk.fiber().clone();
    println!("{handle:?} has ended and said {:?}", clerk.join().unwrap());
    println!("back, idle: {:?}", back.statistics());
    front.stop();
    back.stop();
    Ok(())
}
