//! A program of std alone. It says the same as it is and under `sleave run`.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, RwLock, mpsc};
use std::thread;
use std::time::Duration;

thread_local!(static OWN: Cell<u32> = const { Cell::new(7) });

struct Ends(mpsc::Sender<u32>, u32);
impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}
thread_local!(static ENDS: Cell<Option<Ends>> = const { Cell::new(None) });

fn os_threads() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
    line.trim().parse().unwrap()
}

fn main() {
    let (send, receive) = mpsc::channel();
    let gate = Arc::new(RwLock::new(()));
    let closed = gate.write().unwrap();
    let threads: Vec<_> = (0..2000)
        .map(|i| {
            let (send, gate) = (send.clone(), Arc::clone(&gate));
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(5));
                drop(gate.read().unwrap());
                OWN.set(OWN.get() + i);
                send.send(i).unwrap();
                OWN.get()
            })
        })
        .collect();
    eprintln!("{}", os_threads());
    drop((send, closed));
    println!("sum of a channel: {}", receive.iter().sum::<u32>());
    println!("sum of locals: {}", threads.into_iter().map(|t| t.join().unwrap()).sum::<u32>());

    let mut parts = vec![0; 16];
    thread::scope(|s| {
        for (i, part) in parts.iter_mut().enumerate() {
            s.spawn(move || *part = i);
        }
    });
    println!("scope: {parts:?}");

    let named = thread::Builder::new().name("named".into()).stack_size(16 << 20);
    let inside = named.spawn(|| thread::current().name().map(str::to_owned)).unwrap();
    println!("name: {:?}", inside.join().unwrap());

    let panicked = thread::spawn(|| std::panic::resume_unwind(Box::new("payload"))).join();
    println!("panic: {:?}", panicked.unwrap_err().downcast_ref::<&str>());

    let (send, receive) = mpsc::channel();
    thread::spawn(move || ENDS.set(Some(Ends(send, 11)))).join().unwrap();
    println!("destructor of a local: {:?}", receive.try_recv());

    let rendezvous = mpsc::sync_channel(0);
    let sender = thread::spawn(move || (0..100).for_each(|i| rendezvous.0.send(i).unwrap()));
    println!("rendezvous: {}", rendezvous.1.iter().sum::<i32>());
    sender.join().unwrap();

    let shared = Arc::new((
        Mutex::new(0),
        Condvar::new(),
        RwLock::new(0),
        Barrier::new(50),
        OnceLock::new(),
    ));
    let threads: Vec<_> = (0..50)
        .map(|i| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (count, changed, total, barrier, once) = &*shared;
                once.get_or_init(|| 1);
                barrier.wait();
                *total.write().unwrap() += i;
                let mut count = count.lock().unwrap();
                *count += 1;
                changed.notify_all();
                while *count < 50 {
                    count = changed.wait(count).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    println!("locks: {} {}", shared.0.lock().unwrap(), shared.2.read().unwrap());

    let sleeper = thread::spawn(thread::park);
    sleeper.thread().unpark();
    sleeper.join().unwrap();
    println!("unparked");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    let clients: Vec<_> = (0..100u32)
        .map(|i| {
            thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(&i.to_le_bytes()).unwrap();
                let mut answer = [0; 4];
                stream.read_exact(&mut answer).unwrap();
                u32::from_le_bytes(answer)
            })
        })
        .collect();
    println!("echo: {}", clients.into_iter().map(|t| t.join().unwrap()).sum::<u32>());

    let child = std::process::Command::new("echo").arg("a child").output().unwrap();
    println!("process: {:?}", String::from_utf8(child.stdout));
}
