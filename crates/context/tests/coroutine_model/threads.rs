//! The model: a coroutine is a thread of the kernel that runs only while its resumer waits for it.

use crate::{Order, Reply, World};
use sleave_context::CoroutineState;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

pub struct Threads;

enum Message {
    Resume(Order),
    Unwind,
}

enum News {
    Yielded(Reply),
    Complete(Reply),
    Panicked(Box<dyn Any + Send>),
}

/// What an ended coroutine unwinds with: the thread's name for it.
struct Unwinding(*const u8);

// SAFETY: only compared.
unsafe impl Send for Unwinding {}

pub struct ThreadYielder {
    messages: Receiver<Message>,
    news: Sender<News>,
    own: *const u8,
    unwinds: Cell<bool>,
}

/// Let through to another thread: one of the two waits for the other all the time.
struct Lent<T>(T);

// SAFETY: just so; the channels order what both do.
unsafe impl<T> Send for Lent<T> {}

impl<T> Lent<T> {
    fn into_inner(self) -> T {
        self.0
    }
}

type Body<'a> = Box<dyn FnOnce(&ThreadYielder, Order) -> Reply + 'a>;

enum Stage {
    Fresh(Body<'static>),
    Suspended(Sender<Message>, Receiver<News>, JoinHandle<()>),
    Done,
}

pub struct ThreadCoroutine {
    stage: Stage,
    /// Its address is the coroutine's name.
    name: Box<u8>,
}

impl ThreadCoroutine {
    /// Starts its thread.
    fn begin(
        body: Body<'static>,
        own: *const u8,
    ) -> (Sender<Message>, Receiver<News>, JoinHandle<()>) {
        let (send, messages) = channel();
        let (news, receive) = channel();
        let lent = Lent((body, ThreadYielder { messages, news, own, unwinds: Cell::new(false) }));
        let thread = std::thread::spawn(move || {
            let (body, yielder) = lent.into_inner();
            let Ok(Message::Resume(first)) = yielder.messages.recv() else { unreachable!() };
            let last = match catch_unwind(AssertUnwindSafe(|| body(&yielder, first))) {
                Ok(reply) => News::Complete(reply),
                Err(payload) => News::Panicked(payload),
            };
            yielder.news.send(last).unwrap_or_else(|_| unreachable!("somebody waits"));
        });
        (send, receive, thread)
    }

    /// Sends the message and waits for news. The coroutine is done then, unless it has yielded.
    fn exchange(&mut self, message: Message) -> News {
        let (send, receive, thread) = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Fresh(body) => Self::begin(body, &raw const *self.name),
            Stage::Suspended(send, receive, thread) => (send, receive, thread),
            Stage::Done => panic!("a coroutine was resumed after it had ended"),
        };
        send.send(message).unwrap_or_else(|_| unreachable!("it waits"));
        let news = receive.recv().expect("it has ended with news");
        match news {
            News::Yielded(_) => self.stage = Stage::Suspended(send, receive, thread),
            _ => thread.join().expect("a panic is news"),
        }
        news
    }

    fn end(&mut self) {
        if !matches!(self.stage, Stage::Suspended(..)) {
            return drop(std::mem::replace(&mut self.stage, Stage::Done));
        }
        match self.exchange(Message::Unwind) {
            News::Yielded(_) => unreachable!("it is unwound again"),
            News::Complete(reply) => drop(reply),
            News::Panicked(payload) => match payload.downcast_ref() {
                Some(&Unwinding(whose)) if whose == &raw const *self.name => {}
                _ => resume_unwind(payload),
            },
        }
    }
}

impl Drop for ThreadCoroutine {
    fn drop(&mut self) {
        self.end();
    }
}

impl World for Threads {
    type Yielder = ThreadYielder;
    type Coroutine = ThreadCoroutine;

    unsafe fn make<F: FnOnce(&ThreadYielder, Order) -> Reply>(body: F) -> ThreadCoroutine {
        let body: Body<'_> = Box::new(body);
        // SAFETY: dropped before what it borrows, by the caller's promise.
        let body = unsafe { std::mem::transmute::<Body<'_>, Body<'static>>(body) };
        ThreadCoroutine { stage: Stage::Fresh(body), name: Box::new(0) }
    }

    unsafe fn reset<F>(mut old: ThreadCoroutine, body: F) -> ThreadCoroutine
    where
        F: FnOnce(&ThreadYielder, Order) -> Reply,
    {
        old.end();
        // SAFETY: the caller's promise.
        unsafe { Threads::make(body) }
    }

    fn resume(coroutine: &mut ThreadCoroutine, order: Order) -> CoroutineState<Reply, Reply> {
        match coroutine.exchange(Message::Resume(order)) {
            News::Yielded(reply) => CoroutineState::Yielded(reply),
            News::Complete(reply) => CoroutineState::Complete(reply),
            News::Panicked(payload) => resume_unwind(payload),
        }
    }

    fn end(coroutine: &mut ThreadCoroutine) {
        coroutine.end();
    }

    fn is_done(coroutine: &ThreadCoroutine) -> bool {
        matches!(coroutine.stage, Stage::Done)
    }

    fn suspend(yielder: &ThreadYielder, reply: Reply) -> Order {
        let unwind = || resume_unwind(Box::new(Unwinding(yielder.own)));
        if yielder.unwinds.get() {
            unwind();
        }
        yielder.news.send(News::Yielded(reply)).unwrap_or_else(|_| unreachable!("somebody waits"));
        match yielder.messages.recv().expect("it is not dropped without a word") {
            Message::Resume(order) => order,
            Message::Unwind => {
                yielder.unwinds.set(true);
                unwind()
            }
        }
    }
}
