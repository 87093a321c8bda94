//! Queues and semaphores between processes: POSIX's, which park, and System V's, which are handed off.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sleave::Runtime;

use crate::support::everywhere;
use crate::support::timing::eventually;
use crate::{MANY, all_wait, outcome};

/// A POSIX queue of the test's own, with room for `room` messages of 8 bytes.
struct Queue(libc::mqd_t);

impl Queue {
    fn make(room: i64, flags: i32) -> Queue {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!("/sleave-{}-{number}", std::process::id())).unwrap();
        // SAFETY: zeroes are attributes; mq_open(3), mq_unlink(3) with a name and them.
        unsafe {
            let mut attributes = std::mem::zeroed::<libc::mq_attr>();
            (attributes.mq_maxmsg, attributes.mq_msgsize) = (room, 8);
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | flags;
            let queue = libc::mq_open(name.as_ptr(), flags, 0o600, &raw const attributes);
            assert!(queue >= 0, "mq_open: {}", std::io::Error::last_os_error());
            libc::mq_unlink(name.as_ptr());
            Queue(queue)
        }
    }

    fn send(&self, value: u64) -> Result<i64, i32> {
        let bytes = value.to_ne_bytes();
        // SAFETY: mq_send(3) of eight bytes.
        outcome(unsafe { libc::mq_send(self.0, bytes.as_ptr().cast(), 8, 0) })
    }

    fn receive(&self) -> Result<u64, i32> {
        let mut bytes = [0u8; 8];
        // SAFETY: mq_receive(3) into eight bytes.
        let got =
            unsafe { libc::mq_receive(self.0, bytes.as_mut_ptr().cast(), 8, std::ptr::null_mut()) };
        outcome(got as i64).map(|_| u64::from_ne_bytes(bytes))
    }

    fn receive_until(&self, at: libc::timespec) -> Result<u64, i32> {
        let mut bytes = [0u8; 8];
        let (into, none) = (bytes.as_mut_ptr().cast(), std::ptr::null_mut());
        // SAFETY: mq_timedreceive(3) into eight bytes.
        let got = unsafe { libc::mq_timedreceive(self.0, into, 8, none, &at) };
        outcome(got as i64).map(|_| u64::from_ne_bytes(bytes))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the queue is ours.
        unsafe { libc::mq_close(self.0) };
    }
}

#[test]
fn messages_come_in_order_through_a_queue_that_is_full_and_empty_by_turns() {
    everywhere(|host| {
        let queue = Arc::new(Queue::make(2, 0));
        let sender = host.spawn({
            let queue = Arc::clone(&queue);
            move || (0..200).for_each(|value| assert_eq!(queue.send(value), Ok(0)))
        });
        let receiver = host.spawn(move || (0..200).map(|_| queue.receive().unwrap()).collect());
        sender.value();
        let received: Vec<u64> = receiver.value();
        assert!(received.iter().copied().eq(0..200));
    });
}

#[test]
fn those_who_wait_for_a_message_wait_together_and_block_nobody() {
    let runtime = Runtime::builder().workers(1).build().unwrap();
    let queue = Arc::new(Queue::make(10, 0));
    let receivers: Vec<_> = (0..MANY)
        .map(|_| {
            let queue = Arc::clone(&queue);
            runtime.spawn(move || queue.receive().unwrap())
        })
        .collect();
    eventually("all wait", || runtime.statistics().waiting == MANY);
    assert_eq!(runtime.statistics().blocked, 0);
    for value in 0..MANY as u64 {
        assert_eq!(queue.send(value), Ok(0));
    }
    let mut received: Vec<_> = receivers.into_iter().map(|r| r.join().unwrap()).collect();
    received.sort_unstable();
    assert!(received.into_iter().eq(0..MANY as u64));
    runtime.stop();
}

#[test]
fn times_and_errors_are_the_kernels() {
    everywhere(|_| {
        let queue = Queue::make(1, 0);
        let invalid = libc::timespec { tv_sec: 0, tv_nsec: -1 };
        let over = libc::timespec { tv_sec: 1, tv_nsec: 0 };
        let mut soon = over;
        // SAFETY: clock_gettime(2) writes the time.
        unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut soon) };
        soon.tv_sec += 1;
        let begin = Instant::now();
        let empty = [invalid, over, soon].map(|at| queue.receive_until(at));
        let took = begin.elapsed();
        assert!(took > Duration::from_millis(900), "over after {took:?}");
        assert_eq!(queue.send(7), Ok(0));
        let full = [invalid, over].map(|at| queue.receive_until(at));
        let small = {
            let mut byte = 0u8;
            let into = (&raw mut byte).cast();
            // SAFETY: mq_receive(3) into one byte.
            outcome(unsafe { libc::mq_receive(queue.0, into, 1, std::ptr::null_mut()) } as i64)
        };
        let impatient = Queue::make(1, libc::O_NONBLOCK);
        let nothing = impatient.receive();
        let sent = (impatient.send(1), impatient.send(2));
        // SAFETY: mq_receive(3) of no queue.
        let closed =
            outcome(unsafe { libc::mq_receive(-1, std::ptr::null_mut(), 0, std::ptr::null_mut()) }
                as i64);
        (empty, full, small, nothing, sent, closed)
    });
}

/// A System V object, removed when it goes.
struct SystemV(i32, fn(i32));

impl Drop for SystemV {
    fn drop(&mut self) {
        self.1(self.0);
    }
}

fn message_queue() -> SystemV {
    // SAFETY: msgget(2), msgctl(2) with numbers.
    let queue = unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600) };
    assert!(queue >= 0, "msgget: {}", std::io::Error::last_os_error());
    SystemV(queue, |queue| {
        // SAFETY: msgctl(2), which needs no structure to remove a queue.
        unsafe { libc::msgctl(queue, libc::IPC_RMID, std::ptr::null_mut()) };
    })
}

fn semaphores() -> SystemV {
    // SAFETY: semget(2), semctl(2) with numbers.
    let set = unsafe { libc::semget(libc::IPC_PRIVATE, 1, 0o600) };
    assert!(set >= 0, "semget: {}", std::io::Error::last_os_error());
    SystemV(set, |set| {
        // SAFETY: semctl(2), which needs no structure to remove a set.
        unsafe { libc::semctl(set, 0, libc::IPC_RMID) };
    })
}

#[repr(C)]
struct Message {
    kind: libc::c_long,
    value: u64,
}

fn send(queue: i32, kind: i64, value: u64) -> Result<i64, i32> {
    let message = Message { kind, value };
    // SAFETY: msgsnd(2) of a kind and eight bytes.
    outcome(unsafe { libc::msgsnd(queue, (&raw const message).cast(), 8, 0) })
}

fn receive(queue: i32, kind: i64, flags: i32) -> Result<u64, i32> {
    let mut message = Message { kind: 0, value: 0 };
    // SAFETY: msgrcv(2) into a kind and eight bytes.
    let got = unsafe { libc::msgrcv(queue, (&raw mut message).cast(), 8, kind, flags) };
    outcome(got as i64).map(|_| message.value)
}

fn change(set: i32, by: i16, flags: i32) -> Result<i64, i32> {
    let mut operation = libc::sembuf { sem_num: 0, sem_op: by, sem_flg: flags as i16 };
    // SAFETY: semop(2) with one operation.
    outcome(unsafe { libc::semop(set, &mut operation, 1) })
}

unsafe extern "C" {
    fn semtimedop(
        set: libc::c_int,
        operations: *mut libc::sembuf,
        count: usize,
        timeout: *const libc::timespec,
    ) -> libc::c_int;
}

#[test]
fn many_wait_for_messages_of_system_v() {
    let queue = Arc::new(message_queue());
    let (to, from) = (Arc::clone(&queue), queue);
    let received = all_wait(
        MANY,
        move |i| receive(from.0, i as i64 + 1, 0).unwrap(),
        || (0..MANY as u64).for_each(|i| assert_eq!(send(to.0, i as i64 + 1, i), Ok(0))),
    );
    assert!(received.into_iter().eq(0..MANY as u64));
}

#[test]
fn many_wait_for_a_semaphore_of_system_v() {
    let set = Arc::new(semaphores());
    let (up, down) = (Arc::clone(&set), set);
    let changed = all_wait(
        MANY,
        move |_| change(down.0, -1, 0),
        || (0..MANY).for_each(|_| assert_eq!(change(up.0, 1, 0), Ok(0))),
    );
    assert_eq!(changed, vec![Ok(0); MANY]);
}

#[test]
fn system_v_answers_as_on_a_thread() {
    everywhere(|_| {
        let (queue, set) = (message_queue(), semaphores());
        let nothing = receive(queue.0, 0, libc::IPC_NOWAIT);
        let there = (send(queue.0, 5, 50), receive(queue.0, 5, 0));
        let not_free = change(set.0, -1, libc::IPC_NOWAIT);
        let free = (change(set.0, 2, 0), change(set.0, -2, 0), change(set.0, 0, 0));
        let short = libc::timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let mut operation = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
        // SAFETY: semtimedop(2) with one operation and a time.
        let late = outcome(unsafe { semtimedop(set.0, &mut operation, 1, &short) });
        let wrong = (receive(-1, 0, 0), change(-1, 1, 0));
        // One who waits for what is removed is told.
        let gone = message_queue();
        let number = gone.0;
        let waits = thread::scope(|s| {
            let waits = s.spawn(|| receive(number, 0, 0));
            thread::sleep(Duration::from_millis(20));
            drop(gone);
            waits.join().unwrap()
        });
        // Whether it waited already when that happened, is up to chance.
        assert!([Err(libc::EIDRM), Err(libc::EINVAL)].contains(&waits));
        (nothing, there, not_free, free, late, wrong)
    });
}
