//! The examples say what they are meant to say.
//!
//! Each tells its story in lines. Where one thread decides the order, all of them are compared; where
//! several do, what is determined. Lines that begin with "this time" are another every time.
//!
//! Where each fiber is an OS thread, what one thread does and which worker it is are other stories: those
//! tests are left out there.

#[allow(dead_code, reason = "its main prints")]
#[path = "../examples/accept_and_serve.rs"]
mod accept_and_serve;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/caller_as_worker.rs"]
mod caller_as_worker;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/channel_pipeline.rs"]
mod channel_pipeline;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/echo.rs"]
mod echo;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/events.rs"]
mod events;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/fetch.rs"]
mod fetch;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/interposition.rs"]
mod interposition;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/life_cycle.rs"]
mod life_cycle;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/locks.rs"]
mod locks;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/overlapped.rs"]
mod overlapped;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/pinned.rs"]
mod pinned;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/race.rs"]
mod race;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/reuse_port.rs"]
mod reuse_port;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/runtime.rs"]
mod runtime;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/scheduler.rs"]
mod scheduler;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/thread_locals.rs"]
mod thread_locals;

#[allow(dead_code, reason = "as above")]
#[path = "../examples/timers.rs"]
mod timers;

/// What is the same every time.
fn determined(story: Vec<String>) -> Vec<String> {
    story.into_iter().filter(|line| !line.starts_with("this time: ")).collect()
}

/// Whether fibers are fibers here.
fn fibers() -> bool {
    sleave::identity().is_ok()
}

#[test]
fn a_fiber_lives_through_every_state() {
    if !fibers() {
        return;
    }
    let expected = [
        "main: Ada is spawned, and has not run",
        "  Ada: I run, on a stack of my own, and yield",
        "main: Ada lets me run",
        "  Ada: I sleep",
        "  Ada: I wait for the door",
        "main: I open the door",
        "  Ada: I wait for a letter",
        "main: I send a letter",
        "  Ada: I have read it, and park",
        "main: I unpark her, and wait for her end",
        "  Ada: I end",
        "main: Ada has left \"hello\"",
    ];
    assert_eq!(life_cycle::story(), expected);
}

#[test]
fn a_scheduler_runs_what_is_posted_and_stops() {
    let story = scheduler::story();
    let place = |line: &str| {
        let mut places = story.iter().enumerate().filter(|(_, said)| *said == line);
        let place = places.next().unwrap_or_else(|| panic!("nobody said {line:?}: {story:?}")).0;
        assert_eq!(places.next(), None, "said once");
        place
    };
    // Each task is posted by the one before it.
    let mut lines = 0;
    for task in ['A', 'B', 'C'] {
        let rounds = [3, 2, 1, 0].map(|left| place(&format!("task {task}, {left} to go")));
        assert!(rounds.is_sorted(), "{story:?}");
        lines += rounds.len();
    }
    // A fiber that is posted goes on; whether it had suspended itself already is not determined.
    let goes_on = place("fiber S goes on");
    assert!(place("fiber S suspends itself") < goes_on, "{story:?}");
    assert!(place("task P posts fiber S again") < goes_on, "{story:?}");
    // The end is the end, and there was nothing else.
    assert_eq!(place("the scheduler has stopped"), lines + 3, "{story:?}");
    assert_eq!(story.len(), lines + 4, "{story:?}");
}

#[test]
fn the_caller_decides_when_its_scheduler_runs() {
    if !fibers() {
        return;
    }
    let expected = [
        "main: spawns A and B",
        "main: has yielded, which is no use: it is a plain thread",
        "main: runs until A has ended",
        "  A: begins",
        "  B: begins",
        "  A: ends",
        "  B: ends",
        "main: is back, and spawns C",
        "main: stops",
        "  C: begins",
        "  C: ends",
        "main: has run all that was left",
    ];
    assert_eq!(caller_as_worker::story(), expected);
}

#[test]
fn pinned_fibers_stay_on_their_threads() {
    if !fibers() {
        return;
    }
    let expected = [
        "fiber 0: on worker 0 only: 1 thread",
        "fiber 1: on worker 1 only: 1 thread",
        "fiber 2: on worker 2 only: 1 thread",
        "fiber 3: on worker 0 only: 1 thread",
        "fiber 4: on worker 1 only: 1 thread",
        "fiber 5: on worker 2 only: 1 thread",
        "one that pins itself has been to [2, 0, 1]",
        "worker 3: InvalidInput",
    ];
    assert_eq!(pinned::story(), expected);
}

#[test]
fn a_fiber_parks_or_blocks_its_thread_as_it_likes() {
    if !fibers() {
        return;
    }
    let expected = [
        "sleeps, which parks the fiber",
        "      another fiber runs",
        "has slept",
        "sleeps, which blocks the thread",
        "has slept",
        "      another fiber runs, at last",
        "on a plain thread there is nothing to switch: false",
    ];
    assert_eq!(interposition::story(), expected);
}

#[test]
fn conversations_overlap_on_one_thread() {
    if !fibers() {
        return;
    }
    let expected = [
        "client 1: connects and asks",
        "client 2: connects and asks",
        "client 3: connects and asks",
        "server: all 3 have asked, and none has an answer",
        "client 3: 30 was the answer",
        "client 2: 20 was the answer",
        "client 1: 10 was the answer",
    ];
    assert_eq!(overlapped::story(), expected);
}

#[test]
fn connections_are_accepted_on_one_worker_and_served_on_others() {
    if !fibers() {
        return;
    }
    let expected = [
        "client 0: accepted on worker 0, served on worker 1",
        "client 1: accepted on worker 0, served on worker 2",
        "client 2: accepted on worker 0, served on worker 1",
        "client 3: accepted on worker 0, served on worker 2",
        "client 4: accepted on worker 0, served on worker 1",
        "client 5: accepted on worker 0, served on worker 2",
    ];
    assert_eq!(accept_and_serve::story(), expected);
}

#[test]
fn listeners_share_a_port() {
    if !fibers() {
        return;
    }
    let story = determined(reuse_port::story().expect("sockets"));
    assert_eq!(story, ["2 listeners at one port, 60 answers"]);
}

#[test]
fn an_echo_server_answers_all_its_clients() {
    let story = determined(echo::story().expect("sockets"));
    let expected =
        ["100 clients, all connected at once", "100 echoes for each, and every one was right"];
    assert_eq!(story, expected);
}

#[test]
fn a_page_is_fetched_by_a_write_and_read_events() {
    if !fibers() {
        return;
    }
    let expected = [
        "client: WRITE event, the request goes out",
        "server: GET / HTTP/1.0",
        "client: READ event, the page begins",
        "client: READ event, the page ends",
        "HTTP/1.0 200 OK",
        "Content-Type: text/plain",
        "",
        "a page of one line",
    ];
    assert_eq!(fetch::story().expect("sockets"), expected);
}

#[test]
fn registrations_are_called_deleted_and_cancelled() {
    if !fibers() {
        return;
    }
    let expected = [
        "persistent: Ready, one",
        "persistent: Ready, two",
        "persistent: deleted true",
        "once: cancelled true, told Cancelled",
        "once: cancelled again false",
        "once: 2 at one descriptor cancelled, told [Cancelled, Cancelled]",
        "any of 3, for 5 ms: []",
        "any of 3, after a write to number 1: [1]",
        "any of 3, after a write to number 2: [1, 2]",
    ];
    assert_eq!(events::story().expect("sockets"), expected);
}

#[test]
fn timers_fire_when_they_should() {
    let expected = [
        "once: 10 ms, 20 ms, 30 ms",
        "recurring: call 1, call 2 takes two and a half periods, call 3, call 4",
        "recurring: no drift, and times were left out",
        "condition: tick, tick, and over with its session",
        "cancel: true, and again: false; the callback is dropped",
        "refresh: alive, alive, alive, and idle 20 ms after the last",
        "reset: an hour has become 5 ms",
    ];
    assert_eq!(timers::story().expect("a runtime"), expected);
}

#[test]
fn locks_of_std_are_held_over_waits() {
    let expected = [
        "timed out: true",
        "20 fibers held the lock one after the other",
        "the turn has come to number 20",
    ];
    assert_eq!(determined(locks::story()), expected);
}

#[test]
fn a_pipeline_of_channels_sieves_primes() {
    assert_eq!(channel_pipeline::story(), ["550 primes below 4000, the last is 3989"]);
}

#[test]
fn thread_locals_belong_to_their_fibers() {
    let expected = [
        "1000 fibers, each with its own entries, at one address, to its end",
        "1000 thread ids, 1000 destructors",
    ];
    assert_eq!(determined(thread_locals::story()), expected);
}

#[test]
fn two_runtimes_work_side_by_side() {
    if !fibers() {
        return;
    }
    let expected = [
        "fibers are fibers here",
        "the sum of the first 100 squares is 338350",
        "the clerk has ended and said Some(\"clerk\")",
        "stopped: 0 fibers, 0 workers",
    ];
    assert_eq!(determined(runtime::story().expect("two runtimes")), expected);
}

#[test]
fn no_completion_is_lost_to_a_suspension() {
    assert_eq!(determined(race::story()), ["every operation has woken its fiber, once"]);
}
