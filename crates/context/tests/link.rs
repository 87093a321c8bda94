//! Resume, suspend and exit over a link, on every backend.

mod support;

use sleave_context::backend::{Backend, Link, Message, Native};
use support::arena;
use support::backends::{Tested, bounds};

const MIB: usize = 1 << 20;
const STACK: usize = 16 * 1024;

on_every_backend! {
    words_and_tags_pass_both_ways,
    an_exit_hands_its_message_over,
    a_link_suspends_to_whoever_resumed_it_last,
    links_nest,
    backends_nest_in_one_another,
    a_thousand_links_keep_their_own_state,
    each_resumption_by_another_thread,
}

/// Suspends with what it was resumed with: the word plus one, the tag doubled. (The first tag does
/// not arrive: 7 stands for it.)
unsafe extern "C" fn answers<B: Backend>(data: usize, first: usize) -> ! {
    let mut message = Message { word: first, tag: 7 };
    loop {
        message = Message { word: message.word + 1, tag: message.tag * 2 };
        // SAFETY: `data` is the link of this context, which outlives it.
        message = unsafe { B::suspend(data as *mut Link<B>, message) };
    }
}

fn words_and_tags_pass_both_ways<B: Tested>() {
    let arena = arena(64 * MIB);
    let slot = arena.take(STACK).unwrap();
    let mut link = Link::<B>::empty();
    let link = &raw mut link;
    // SAFETY: the stack is this context's own, and both outlive it.
    unsafe {
        B::prepare_linked(link, bounds(&slot), answers::<B>, link as usize);
        let answer = B::resume(link, Message { word: 99, tag: 5 });
        assert_eq!(answer, Message { word: 100, tag: 14 });
        for n in 0..10_000 {
            let answer = B::resume(link, Message { word: 3 * n, tag: n });
            assert_eq!(answer, Message { word: 3 * n + 1, tag: 2 * n });
        }
    }
    arena.give(slot);
}

fn an_exit_hands_its_message_over<B: Tested>() {
    unsafe extern "C" fn exits<B: Backend>(data: usize, first: usize) -> ! {
        // SAFETY: as in `answers`.
        unsafe { B::exit(data as *mut Link<B>, Message { word: first + 1, tag: 3 }) }
    }
    let arena = arena(64 * MIB);
    let slot = arena.take(STACK).unwrap();
    let mut link = Link::<B>::empty();
    let link = &raw mut link;
    // On one stack and over one link, again and again: an exited context leaves nothing behind.
    for word in 0..1000 {
        // SAFETY: as above; the last context on this stack is never resumed again.
        unsafe {
            B::prepare_linked(link, bounds(&slot), exits::<B>, link as usize);
            let last = B::resume(link, Message { word, tag: 0 });
            assert_eq!(last, Message { word: word + 1, tag: 3 });
        }
    }
    arena.give(slot);
}

/// A context that resumes another one, of the same backend or not, and says what that said.
struct Relay<B: Backend, Next: Backend = B> {
    own: Link<B>,
    next: *mut Link<Next>,
}

/// Passes each word on to the next link, and the answer back, a hundred more.
unsafe extern "C" fn relays<B: Backend, Next: Backend>(data: usize, mut word: usize) -> ! {
    let relay = data as *mut Relay<B, Next>;
    loop {
        // SAFETY: the test's relay; `next` is suspended whenever this context runs.
        unsafe {
            let answer = Next::resume((*relay).next, Message { word, tag: 0 });
            let message = Message { word: answer.word + 100, tag: answer.tag };
            word = B::suspend(&raw mut (*relay).own, message).word;
        }
    }
}

fn a_link_suspends_to_whoever_resumed_it_last<B: Tested>() {
    let arena = arena(64 * MIB);
    let slots = [(); 2].map(|()| arena.take(STACK).unwrap());
    let mut shared = Link::<B>::empty();
    let shared = &raw mut shared;
    let mut relay = Relay { own: Link::empty(), next: shared };
    let relay = &raw mut relay;
    // SAFETY: as above.
    unsafe {
        let own = &raw mut (*relay).own;
        B::prepare_linked(shared, bounds(&slots[0]), answers::<B>, shared as usize);
        B::prepare_linked(own, bounds(&slots[1]), relays::<B, B>, relay as usize);
        for word in 0..100 {
            // By turns from here and from within the relay.
            assert_eq!(B::resume(shared, Message { word, tag: 0 }).word, word + 1);
            assert_eq!(B::resume(own, Message { word, tag: 0 }).word, word + 101);
        }
    }
    slots.into_iter().for_each(|slot| arena.give(slot));
}

fn links_nest<B: Tested>() {
    const DEPTH: usize = 100;
    let arena = arena(64 * MIB);
    let mut slots: Vec<_> = (0..=DEPTH).map(|_| Some(arena.take(STACK).unwrap())).collect();
    let stack = |n: usize| bounds(slots[n].as_ref().unwrap());
    let mut innermost = Link::<B>::empty();
    let innermost = &raw mut innermost;
    let mut chain: Vec<_> =
        (0..DEPTH).map(|_| Relay { own: Link::<B>::empty(), next: innermost }).collect();
    let base = chain.as_mut_ptr();
    // SAFETY: as above; the vector does not grow, so each relay stays where it is.
    unsafe {
        B::prepare_linked(innermost, stack(DEPTH), answers::<B>, innermost as usize);
        for n in 0..DEPTH {
            let relay = base.add(n);
            if n + 1 < DEPTH {
                (*relay).next = &raw mut (*base.add(n + 1)).own;
            }
            B::prepare_linked(&raw mut (*relay).own, stack(n), relays::<B, B>, relay as usize);
        }
        for word in 0..100 {
            let answer = B::resume(&raw mut (*base).own, Message { word, tag: 0 });
            // The tag is the innermost context's, handed out through all the others.
            let tag = if word == 0 { 14 } else { 0 };
            assert_eq!(answer, Message { word: word + 1 + 100 * DEPTH, tag });
        }
    }
    arena.give_many(&mut slots);
}

fn backends_nest_in_one_another<B: Tested>() {
    let arena = arena(64 * MIB);
    let slots = [(); 3].map(|()| arena.take(STACK).unwrap());
    let mut inner = Link::<Native>::empty();
    let inner = &raw mut inner;
    let mut middle = Relay { own: Link::<B>::empty(), next: inner };
    let middle = &raw mut middle;
    // SAFETY: only the address of a field.
    let second = unsafe { &raw mut (*middle).own };
    let mut outer = Relay { own: Link::<Native>::empty(), next: second };
    let outer = &raw mut outer;
    // SAFETY: as above.
    unsafe {
        let first = &raw mut (*outer).own;
        let stack = |n: usize| bounds(&slots[n]);
        Native::prepare_linked(first, stack(0), relays::<Native, B>, outer as usize);
        B::prepare_linked(second, stack(1), relays::<B, Native>, middle as usize);
        Native::prepare_linked(inner, stack(2), answers::<Native>, inner as usize);
        for word in 0..100 {
            let answer = Native::resume(first, Message { word, tag: 0 });
            assert_eq!(answer.word, word + 201);
        }
    }
    slots.into_iter().for_each(|slot| arena.give(slot));
}

fn a_thousand_links_keep_their_own_state<B: Tested>() {
    const LINKS: usize = 1000;
    unsafe extern "C" fn sums<B: Backend>(data: usize, first: usize) -> ! {
        let (mut sum, mut count) = (first, 1);
        loop {
            // SAFETY: as in `answers`.
            let sent =
                unsafe { B::suspend(data as *mut Link<B>, Message { word: sum, tag: count }) };
            sum += sent.word * sent.tag;
            count += 1;
        }
    }
    let arena = arena(64 * MIB);
    let mut slots: Vec<_> = (0..LINKS).map(|_| Some(arena.take(STACK).unwrap())).collect();
    let mut links: Vec<_> = (0..LINKS).map(|_| Link::<B>::empty()).collect();
    let base = links.as_mut_ptr();
    for (n, slot) in slots.iter().flatten().enumerate() {
        let link = base.wrapping_add(n);
        // SAFETY: as above; the vector does not grow, so each link stays where it is.
        unsafe { B::prepare_linked(link, bounds(slot), sums::<B>, link as usize) };
    }
    let mut sums = vec![0; LINKS];
    // In another order each round: the steps have no divisor in common with the number of links.
    for (round, step) in [1, 7, 999, 3, 501].into_iter().cycle().take(30).enumerate() {
        for n in 0..LINKS {
            let at = (n * step + round) % LINKS;
            let (word, tag) = (at + 1, if round == 0 { 1 } else { round });
            sums[at] += word * tag;
            // SAFETY: as above.
            let answer = unsafe { B::resume(base.wrapping_add(at), Message { word, tag }) };
            assert_eq!(answer, Message { word: sums[at], tag: round + 1 });
        }
    }
    arena.give_many(&mut slots);
}

fn each_resumption_by_another_thread<B: Tested>() {
    /// The link, which goes from thread to thread.
    struct Handed<B: Backend>(*mut Link<B>);
    // SAFETY: one thread at a time resumes it, and what the context holds is numbers.
    unsafe impl<B: Backend> Send for Handed<B> {}

    let arena = arena(64 * MIB);
    let slot = arena.take(STACK).unwrap();
    let mut link = Link::<B>::empty();
    let mut handed = Handed(&raw mut link);
    // SAFETY: as above.
    unsafe { B::prepare_linked(handed.0, bounds(&slot), answers::<B>, handed.0 as usize) };
    for n in 0..200 {
        // Starting and joining a thread publish the context in between.
        let thread = std::thread::spawn(move || {
            let handed = handed;
            // SAFETY: as above; this thread alone has the link now.
            let answer = unsafe { B::resume(handed.0, Message { word: n, tag: n }) };
            (handed, answer)
        });
        let answer;
        (handed, answer) = thread.join().unwrap();
        let tag = if n == 0 { 14 } else { 2 * n };
        assert_eq!(answer, Message { word: n + 1, tag });
    }
    arena.give(slot);
}
