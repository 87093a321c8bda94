//! C code that knows nothing of fibers: a library that `cc` makes here, opened by dlopen(3). Its
//! calls find the program's symbols, so its waits park.

use std::ffi::{CStr, CString, c_int, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use crate::support::{Host, everywhere};

const SOURCE: &str = r#"
    #include <pthread.h>
    #include <semaphore.h>
    #include <threads.h>

    /* A queue of one place. */
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t filled = PTHREAD_COND_INITIALIZER;
    static pthread_cond_t emptied = PTHREAD_COND_INITIALIZER;
    static int full, place;

    void put(int value) {
        pthread_mutex_lock(&lock);
        while (full) pthread_cond_wait(&emptied, &lock);
        place = value;
        full = 1;
        pthread_cond_signal(&filled);
        pthread_mutex_unlock(&lock);
    }

    int get(int unused) {
        pthread_mutex_lock(&lock);
        while (!full) pthread_cond_wait(&filled, &lock);
        int value = place;
        full = 0;
        pthread_cond_signal(&emptied);
        pthread_mutex_unlock(&lock);
        return value;
    }

    /* Ping-pong with C11's names. */
    static once_flag once = ONCE_FLAG_INIT;
    static mtx_t turn_lock;
    static cnd_t turned;
    static int turn;

    static void begin(void) {
        mtx_init(&turn_lock, mtx_timed);
        cnd_init(&turned);
    }

    int play(int side) {
        call_once(&once, begin);
        int errors = 0;
        for (int i = 0; i < 100; i++) {
            errors += mtx_lock(&turn_lock) != thrd_success;
            while (turn != side) errors += cnd_wait(&turned, &turn_lock) != thrd_success;
            errors += mtx_trylock(&turn_lock) != thrd_busy;
            turn = !side;
            cnd_broadcast(&turned);
            errors += mtx_unlock(&turn_lock) != thrd_success;
        }
        return errors;
    }

    /* The rest, static and of one shape: `n` members. */
    static pthread_rwlock_t shared = PTHREAD_RWLOCK_INITIALIZER;
    static sem_t places;
    static pthread_barrier_t meeting;
    static int number;

    int prepare(int n) {
        return pthread_barrier_init(&meeting, NULL, n) + sem_init(&places, 0, 1);
    }

    int work(int rounds) {
        for (int i = 0; i < rounds; i++) {
            pthread_barrier_wait(&meeting);
            sem_wait(&places);
            pthread_rwlock_wrlock(&shared);
            number++;
            pthread_rwlock_unlock(&shared);
            sem_post(&places);
            pthread_barrier_wait(&meeting);
            pthread_rwlock_rdlock(&shared);
            int seen = number;
            pthread_rwlock_unlock(&shared);
            pthread_barrier_wait(&meeting);
            if (seen != number) return -1;
        }
        return number;
    }

    int end(int unused) {
        number = 0;
        return pthread_barrier_destroy(&meeting) + sem_destroy(&places);
    }
"#;

/// The library; `None` if there is no C compiler.
struct Library(Option<usize>);

impl Library {
    fn get() -> &'static Library {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        LIBRARY.get_or_init(Library::build)
    }

    fn build() -> Library {
        if Command::new("cc").arg("--version").output().is_err() {
            println!("skipped: this machine has no C compiler");
            return Library(None);
        }
        let name = format!("sleave-pthread-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let file = |name: &str| -> PathBuf { directory.join(name) };
        std::fs::write(file("locks.c"), SOURCE).unwrap();
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([file("locks.so"), file("locks.c")])
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let path = CString::new(file("locks.so").to_str().unwrap()).unwrap();
        // SAFETY: dlopen(3): the library has no constructors.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        // SAFETY: dlerror(3) after a failure.
        assert!(!handle.is_null(), "{:?}", unsafe { CStr::from_ptr(libc::dlerror()) });
        std::fs::remove_dir_all(&directory).unwrap();
        Library(Some(handle as usize))
    }

    /// A function of the library. All take an int, and all but `put` answer one.
    fn function(&self, name: &CStr) -> Option<extern "C" fn(c_int) -> c_int> {
        // SAFETY: dlsym(3); the library's functions have this type (an answer of `put` is not used).
        unsafe {
            let function = libc::dlsym(self.0? as *mut c_void, name.as_ptr());
            assert!(!function.is_null(), "{name:?}");
            Some(std::mem::transmute::<*mut c_void, extern "C" fn(c_int) -> c_int>(function))
        }
    }
}

fn queue(host: Host) -> Option<i32> {
    let library = Library::get();
    let (put, get) = (library.function(c"put")?, library.function(c"get")?);
    let threads = [(); 2].map(|()| {
        thread::spawn(move || {
            for value in 0..50 {
                put(value);
            }
            0
        })
    });
    let producers: Vec<_> = (0..4)
        .map(|_| {
            host.spawn(move || {
                for value in 0..50 {
                    put(value);
                }
            })
        })
        .collect();
    let sum = host.spawn_many(3, move |_| (0..100).map(|_| get(0)).sum::<i32>());
    let _ = threads.map(|thread| thread.join().unwrap());
    producers.into_iter().for_each(|producer| producer.value());
    Some(sum.into_iter().sum())
}

unsafe extern "C" {
    fn flockfile(file: *mut libc::FILE);
    fn funlockfile(file: *mut libc::FILE);
    fn ftrylockfile(file: *mut libc::FILE) -> c_int;
}

/// glibc waits for a stream's lock by itself. The monitor replaces the workers that are held, and the owner goes on.
#[test]
fn a_lock_inside_glibc_that_is_held_over_a_sleep_is_got_by_all() {
    everywhere(|host| {
        // SAFETY: tmpfile(3).
        let file = unsafe { libc::tmpfile() } as usize;
        assert_ne!(file, 0);
        let turns = host.spawn_many(6, move |_| {
            let file = file as *mut libc::FILE;
            // SAFETY: flockfile(3): an open stream; the lock is the caller's, and recursive.
            unsafe {
                flockfile(file);
                thread::sleep(std::time::Duration::from_millis(3));
                let again = ftrylockfile(file);
                libc::fputc(7, file);
                funlockfile(file);
                funlockfile(file);
                again
            }
        });
        let file = file as *mut libc::FILE;
        // SAFETY: ftell(3), fclose(3): nobody uses the stream any more.
        let length = unsafe { (libc::ftell(file), libc::fclose(file)) };
        (turns, length)
    });
}

/// One test, since the library's objects are static.
#[test]
fn unmodified_c_code_parks() {
    let all = |host: Host| -> Option<_> {
        let sum = queue(host)?;
        let play = Library::get().function(c"play")?;
        let errors = host.spawn_many(2, move |side| play(side as c_int));
        let against_thread = thread::spawn(move || play(0));
        let errors_of_fiber = host.spawn(move || play(1)).value();
        let errors_of_thread = against_thread.join().unwrap();
        let function = |name| Library::get().function(name).unwrap();
        let (prepare, work, end) = (function(c"prepare"), function(c"work"), function(c"end"));
        let prepared = prepare(6);
        let outside = thread::spawn(move || work(20));
        let numbers = host.spawn_many(5, move |_| work(20));
        let outside = outside.join().unwrap();
        Some((sum, errors, errors_of_fiber, errors_of_thread, prepared, numbers, outside, end(0)))
    };
    everywhere(all);
}
