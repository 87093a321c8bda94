//! Calls that block a worker are recorded: which, by whom, how long.

use std::ffi::c_int;
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sleave::{BlockedCall, Builder};
use syscalls::{Sysno, syscall};

use super::can;
use super::support::timing::eventually;
use super::support::{Company, Host, PATIENCE, WORKERS};

/// What was recorded of `call` by the fiber `name`, if it was.
fn recorded(call: &str, name: &str) -> Option<BlockedCall> {
    sleave::blocked_calls()
        .into_iter()
        .find(|one| one.call == Some(call) && one.name.as_deref() == Some(name))
}

/// How places in this program begin, or end.
fn this_program() -> String {
    let path = std::env::current_exe().expect("a path");
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

#[test]
fn a_raw_system_call_is_recorded_with_its_name_fiber_and_time() {
    if !can() {
        return;
    }
    Company::Alone.keep(|| {
        for workers in WORKERS {
            Host::Fibers { workers }.run(PATIENCE, &|_| {
                let name = format!("raw-{workers}");
                let over = Arc::new(AtomicBool::new(false));
                let sleeper = Builder::new().name(name.clone());
                let sleeper = sleeper.spawn({
                    let over = over.clone();
                    move || {
                        let time = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                        while !over.load(Ordering::Relaxed) {
                            // SAFETY: nanosleep(2) of a time of our own, past the C library.
                            unsafe { syscall!(Sysno::nanosleep, &raw const time, 0) }.unwrap();
                            sleave::yield_now();
                        }
                    }
                });
                let sleeper = sleeper.unwrap();
                eventually("it is recorded", || recorded("nanosleep", &name).is_some());
                let now = recorded("nanosleep", &name).unwrap();
                assert!(now.times >= 1 && now.address != 0, "{now}");
                // The call stands in this very program, and says where.
                assert!(now.place.starts_with(&this_program()), "{now}");
                over.store(true, Ordering::Relaxed);
                sleeper.join().unwrap();
                eventually("it is over", || {
                    recorded("nanosleep", &name).is_some_and(|call| {
                        call.now == 0 && call.total >= call.worst && call.worst > Duration::ZERO
                    })
                });
            });
        }
    });
}

unsafe extern "C" {
    fn fdopen(fd: c_int, mode: *const libc::c_char) -> *mut libc::FILE;
    fn fgetc(stream: *mut libc::FILE) -> c_int;
}

#[test]
fn a_call_inside_the_c_library_is_recorded_with_where_it_comes_from() {
    if !can() {
        return;
    }
    Company::Alone.keep(|| {
        for workers in WORKERS {
            Host::Fibers { workers }.run(PATIENCE, &|_| {
                let name = format!("stdio-{workers}");
                let (reader, mut writer) = std::io::pipe().unwrap();
                let fd = reader.into_raw_fd();
                let blocked = Builder::new().name(name.clone()).spawn(move || {
                    // SAFETY: fdopen(3), fgetc(3), fclose(3) of a descriptor of our own.
                    unsafe {
                        let stream = fdopen(fd, c"r".as_ptr());
                        let byte = fgetc(stream);
                        libc::fclose(stream);
                        byte
                    }
                });
                let blocked = blocked.unwrap();
                eventually("it is recorded", || recorded("read", &name).is_some());
                let call = recorded("read", &name).unwrap();
                assert!(call.now == 1 && call.worst > Duration::ZERO, "{call}");
                assert!(call.place.contains("(libc.so"), "{call}");
                let caller = call.caller.clone().expect("a place in this program");
                assert!(caller.contains(&this_program()), "{call}");
                writer.write_all(b"x").unwrap();
                assert_eq!(blocked.join().unwrap(), c_int::from(b'x'));
                eventually("it is over", || recorded("read", &name).unwrap().now == 0);
                let line = recorded("read", &name).unwrap().to_string();
                assert!(line.starts_with("read in ") && line.contains(&name), "{line}");
            });
        }
    });
}

#[test]
fn a_declared_call_is_recorded_as_well() {
    if !can() {
        return;
    }
    Company::Alone.keep(|| {
        for workers in WORKERS {
            Host::Fibers { workers }.run(PATIENCE, &|_| {
                let name = format!("declared-{workers}");
                let (sender, receiver) = std::sync::mpsc::channel::<()>();
                let declared = Builder::new().name(name.clone());
                let declared =
                    declared.spawn(move || sleave::blocking(|| receiver.recv().is_err())).unwrap();
                eventually("it is recorded", || recorded("futex", &name).is_some());
                drop(sender);
                assert!(declared.join().unwrap());
            });
        }
    });
}
