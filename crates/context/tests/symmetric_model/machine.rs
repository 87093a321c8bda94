//! The model: groups without coroutines, as a machine whose flows of control are lists of frames.

use super::{Action, Event, Payload};
use std::slice::Iter;

pub fn predict(actions: &[Action]) -> Vec<Event> {
    let mut machine = Machine {
        actions: actions.iter(),
        log: Vec::new(),
        flows: Vec::new(),
        groups: vec![Group::default()],
        current: 0,
        guards: 0,
        values: 0,
        panics: 0,
        cleanups: 0,
    };
    let guard = machine.guard();
    let frames = vec![Frame { guard, kind: Kind::Founds(0) }];
    let owner =
        Flow { group: None, seat: 0, stage: Stage::Begun, captured: 0, frames, unwound: false };
    machine.flows.push((owner, Doing::Acts));
    while machine.step() {}
    machine.log
}

struct Machine<'a> {
    actions: Iter<'a, Action>,
    log: Vec<Event>,
    flows: Vec<(Flow, Doing)>,
    groups: Vec<Group>,
    /// Who runs.
    current: usize,
    guards: u32,
    values: u32,
    panics: u32,
    cleanups: u32,
}

struct Flow {
    group: Option<usize>,
    seat: usize,
    stage: Stage,
    /// The guard in its body.
    captured: u32,
    frames: Vec<Frame>,
    /// Its group is being dropped, and it has been told.
    unwound: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Fresh,
    Begun,
    Ended,
}

struct Frame {
    guard: u32,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Calls,
    Catches,
    Founds(usize),
}

/// What a flow of control is at, or goes on with when control comes back to it.
#[derive(Clone, Copy)]
enum Doing {
    Acts,
    /// Returns from the last function, then goes on.
    Returns,
    /// Returns from all functions; to a member, or out.
    Ends(Option<usize>),
    Unwinds(Payload),
    /// Drops the group, from a seat on, having seen a panic of a member.
    Drops {
        group: usize,
        seat: usize,
        panic: Option<Payload>,
        then: Then,
    },
}

/// What comes after a group has been dropped.
#[derive(Clone, Copy)]
enum Then {
    Acts,
    Ends(Option<usize>),
    Unwinds(Payload),
}

#[derive(Default)]
struct Group {
    enterer: usize,
    seats: Vec<Option<usize>>,
    free: Vec<usize>,
    dropping: bool,
}

impl Machine<'_> {
    fn guard(&mut self) -> u32 {
        self.guards += 1;
        self.guards
    }

    fn value(&mut self) -> u32 {
        self.values += 1;
        self.values
    }

    fn flow(&mut self) -> &mut Flow {
        &mut self.flows[self.current].0
    }

    fn go_on(&mut self, doing: Doing) {
        self.flows[self.current].1 = doing;
    }

    /// One step of whoever runs. `false`: the owner of the program has ended.
    fn step(&mut self) -> bool {
        let (flow, doing) = &self.flows[self.current];
        let in_function = !flow.frames.is_empty();
        match *doing {
            Doing::Acts => self.act(),
            Doing::Returns => self.leave_frame(Then::Acts),
            Doing::Ends(to) if in_function => self.leave_frame(Then::Ends(to)),
            Doing::Unwinds(payload) if in_function => self.leave_frame(Then::Unwinds(payload)),
            Doing::Drops { group, seat, panic, then } => self.drop_group(group, seat, panic, then),
            Doing::Ends(_) if self.current == 0 => return false,
            Doing::Ends(to) => self.end(to),
            Doing::Unwinds(payload) if self.current == 0 => {
                self.log.push(Event::Caught(0, payload));
                return false;
            }
            Doing::Unwinds(payload) => self.end_by_panic(payload),
        }
        true
    }

    fn act(&mut self) {
        self.log.push(Event::Acts(self.current));
        let Some(&action) = self.actions.next() else { return self.return_from_function() };
        let member = self.flow().group;
        let founded = self.flow().frames.iter().rev().find_map(|frame| match frame.kind {
            Kind::Founds(group) => Some(group),
            _ => None,
        });
        let named = |number: usize| match self.flows.len() - 1 {
            0 => None,
            names => Some(number % names + 1),
        };
        match action {
            Action::Call => self.call(Kind::Calls),
            Action::Catch => self.call(Kind::Catches),
            Action::Found => {
                self.groups.push(Group::default());
                self.call(Kind::Founds(self.groups.len() - 1));
            }
            Action::Return => self.return_from_function(),
            Action::EndTo(to) if self.cleanups == 0 && member.is_some() => {
                self.go_on(Doing::Ends(named(to)))
            }
            Action::Panic if self.cleanups == 0 => {
                self.panics += 1;
                self.go_on(Doing::Unwinds(Payload::Own(self.panics)));
            }
            Action::EndTo(_) | Action::Panic => {}
            Action::Add => {
                if let Some(group) = founded.or(member) {
                    self.add(group);
                }
            }
            Action::AddBeside => {
                if let Some(group) = member {
                    self.add(group);
                }
            }
            Action::Enter(to) => {
                if let (Some(group), Some(to)) = (founded, named(to)) {
                    self.groups[group].enterer = self.current;
                    let value = self.value();
                    match self.is_there(group, to) {
                        true => self.deliver(to, value),
                        false => self.log.push(Event::ValueDropped(value)),
                    }
                }
            }
            Action::Transfer(to) => {
                if let (Some(group), Some(to)) = (member, named(to)) {
                    let value = self.value();
                    match self.is_there(group, to) {
                        true => self.suspend(to, value),
                        false => self.log.push(Event::ValueDropped(value)),
                    }
                }
            }
            Action::Leave => {
                if let Some(group) = member {
                    let value = self.value();
                    self.suspend(self.groups[group].enterer, value);
                }
            }
        }
    }

    fn call(&mut self, kind: Kind) {
        let guard = self.guard();
        self.flow().frames.push(Frame { guard, kind });
    }

    fn return_from_function(&mut self) {
        let last = self.flow().frames.len() == 1;
        self.go_on(if last { Doing::Ends(None) } else { Doing::Returns });
    }

    fn add(&mut self, group: usize) {
        let captured = self.guard();
        let number = self.flows.len();
        let seats = &mut self.groups[group];
        let seat = seats.free.pop().unwrap_or_else(|| {
            seats.seats.push(None);
            seats.seats.len() - 1
        });
        seats.seats[seat] = Some(number);
        let (stage, frames) = (Stage::Fresh, Vec::new());
        let flow = Flow { group: Some(group), seat, stage, captured, frames, unwound: false };
        self.flows.push((flow, Doing::Acts));
    }

    /// Is it there to be passed control to?
    fn is_there(&self, group: usize, flow: usize) -> bool {
        let flow = &self.flows[flow].0;
        flow.group == Some(group) && flow.stage != Stage::Ended
    }

    /// A member passes control, with a value; unless it has to unwind.
    fn suspend(&mut self, to: usize, value: u32) {
        if self.flow().unwound {
            self.log.push(Event::ValueDropped(value));
            return self.go_on(Doing::Unwinds(Payload::Unwinding));
        }
        self.deliver(to, value);
    }

    fn deliver(&mut self, to: usize, value: u32) {
        self.current = to;
        self.log.extend([Event::Got(to, value), Event::ValueDropped(value)]);
        if self.flow().stage == Stage::Fresh {
            self.flow().stage = Stage::Begun;
            self.call(Kind::Calls);
        }
    }

    /// The last function is over. What it has founded is dropped before anything else goes on.
    fn leave_frame(&mut self, then: Then) {
        let Frame { guard, kind } = self.flow().frames.pop().expect("there is a function to leave");
        self.log.push(Event::GuardDropped(guard));
        let doing = match (kind, then) {
            (Kind::Founds(group), then) => {
                self.groups[group].dropping = true;
                self.groups[group].free.clear();
                self.groups[group].enterer = self.current;
                self.cleanups += u32::from(matches!(then, Then::Unwinds(_)));
                Doing::Drops { group, seat: 0, panic: None, then }
            }
            (Kind::Catches, Then::Unwinds(payload)) => {
                self.log.push(Event::Caught(self.current, payload));
                Doing::Acts
            }
            (_, Then::Acts) => Doing::Acts,
            (_, Then::Ends(to)) => Doing::Ends(to),
            (_, Then::Unwinds(payload)) => Doing::Unwinds(payload),
        };
        self.go_on(doing);
    }

    fn drop_group(&mut self, group: usize, seat: usize, panic: Option<Payload>, then: Then) {
        let Some(&member) = self.groups[group].seats.get(seat) else {
            let doing = match (then, panic) {
                (Then::Unwinds(payload), panic) => {
                    assert_eq!(panic, None, "a panic in a destructor would abort");
                    self.cleanups -= 1;
                    Doing::Unwinds(payload)
                }
                (_, Some(panic)) => Doing::Unwinds(panic),
                (Then::Acts, None) => Doing::Acts,
                (Then::Ends(to), None) => Doing::Ends(to),
            };
            return self.go_on(doing);
        };
        self.go_on(Doing::Drops { group, seat: seat + 1, panic, then });
        let Some(member) = member else { return };
        let (flow, doing) = &mut self.flows[member];
        if flow.stage == Stage::Fresh {
            flow.stage = Stage::Ended;
            self.log.push(Event::GuardDropped(flow.captured));
        } else {
            flow.unwound = true;
            *doing = Doing::Unwinds(Payload::Unwinding);
            self.current = member;
        }
    }

    /// The body of a member is over: it leaves its seat.
    fn vacate(&mut self) -> usize {
        let flow = self.flow();
        flow.stage = Stage::Ended;
        let (captured, seat) = (flow.captured, flow.seat);
        let group = flow.group.expect("the owner of the program has no body");
        self.log.push(Event::GuardDropped(captured));
        self.groups[group].seats[seat] = None;
        if !self.groups[group].dropping {
            self.groups[group].free.push(seat);
        }
        group
    }

    fn end(&mut self, to: Option<usize>) {
        let value = self.value();
        let group = self.vacate();
        let enterer = self.groups[group].enterer;
        match to {
            _ if self.groups[group].dropping => {
                self.log.push(Event::ValueDropped(value));
                self.current = enterer;
            }
            None => self.deliver(enterer, value),
            Some(to) if self.is_there(group, to) => self.deliver(to, value),
            Some(_) => {
                self.log.push(Event::ValueDropped(value));
                self.current = enterer;
                self.go_on(Doing::Unwinds(Payload::Nowhere));
            }
        }
    }

    fn end_by_panic(&mut self, payload: Payload) {
        let group = self.vacate();
        self.current = self.groups[group].enterer;
        match &mut self.flows[self.current].1 {
            Doing::Drops { panic, .. } => {
                if payload != Payload::Unwinding {
                    panic.get_or_insert(payload);
                }
            }
            doing => *doing = Doing::Unwinds(payload),
        }
    }
}
