//! Three members of a group pass control in a circle, with nobody between them. Each frees its own stack in the end.
//!
//! ```text
//!   main ── enter ──▶ Ada ── transfer ──▶ Bob ── transfer ──▶ Eve
//!                      ▲                                       │
//!                      └─────────────── transfer ──────────────┘
//! ```

use sleave_context::symmetric::{Exit, Group, Id};
use std::cell::RefCell;
use std::rc::Rc;

/// What goes round: how many turns there still are, and who is in the circle.
struct Round {
    left: u32,
    circle: Vec<Id>,
}

/// Who has the word when.
pub fn story() -> Vec<String> {
    let trace = Rc::new(RefCell::new(Vec::new()));
    let mut group = Group::new();
    let mut circle = Vec::new();
    for (seat, name) in ["Ada", "Bob", "Eve"].into_iter().enumerate() {
        let trace = trace.clone();
        let say = move |text: String| trace.borrow_mut().push(format!("{name}: {text}"));
        circle.push(group.add(move |member, mut round: Round| {
            while round.left > 0 {
                say(format!("{} to go", round.left));
                round.left -= 1;
                let next = round.circle[(seat + 1) % round.circle.len()];
                round = member.transfer(next, round).expect("nobody ends before the last turn");
            }
            say("I leave the circle".into());
            round.circle.retain(|&id| id != member.id());
            match round.circle.first() {
                // The stack under our feet goes as soon as the next one stands on its own.
                Some(&next) => Exit::To(next, round),
                None => Exit::Leave(round),
            }
        }));
    }
    let round = group.enter(circle[0], Round { left: 7, circle }).expect("it has not ended");
    assert!(round.circle.is_empty() && group.is_empty());
    trace.take()
}

fn main() {
    for line in story() {
        println!("{line}");
    }
}
