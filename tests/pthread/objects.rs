//! The objects of pthreads as shared Rust values. A method is the C function of its name and answers
//! what that answers; for semaphores, `errno` or 0.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libc::{clockid_t, timespec};

/// A C object at an address that does not change.
pub struct Object<T>(Box<UnsafeCell<T>>);

// SAFETY: the objects of pthreads are made to be shared.
unsafe impl<T> Send for Object<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Object<T> {}

impl<T> Object<T> {
    /// What `init` makes of zeroes.
    fn made(init: impl FnOnce(*mut T)) -> Object<T> {
        // SAFETY: these C objects are structs and unions of integers and pointers.
        let object = Object(Box::new(UnsafeCell::new(unsafe { std::mem::zeroed() })));
        init(object.0.get());
        object
    }

    pub fn get(&self) -> *mut T {
        self.0.get()
    }
}

pub type Mutex = Object<libc::pthread_mutex_t>;
pub type Cond = Object<libc::pthread_cond_t>;
pub type RwLock = Object<libc::pthread_rwlock_t>;
pub type Barrier = Object<libc::pthread_barrier_t>;
pub type Semaphore = Object<libc::sem_t>;

/// What `clock` shows in `after`.
pub fn at(clock: clockid_t, after: Duration) -> timespec {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec.
    unsafe { libc::clock_gettime(clock, &mut time) };
    let nanos = time.tv_nsec + i64::from(after.subsec_nanos());
    time.tv_sec += after.as_secs() as i64 + nanos / 1_000_000_000;
    time.tv_nsec = nanos % 1_000_000_000;
    time
}

/// The C functions, those included that the crate `libc` does not declare.
mod c {
    use libc::{
        c_int, clockid_t, pthread_cond_t, pthread_mutex_t, pthread_rwlock_t, sem_t, timespec,
    };
    pub use libc::{
        pthread_barrier_destroy, pthread_barrier_wait, pthread_cond_broadcast,
        pthread_cond_destroy, pthread_cond_signal, pthread_mutex_destroy, pthread_mutex_lock,
        pthread_mutex_timedlock, pthread_mutex_trylock, pthread_mutex_unlock,
        pthread_rwlock_destroy, pthread_rwlock_rdlock, pthread_rwlock_tryrdlock,
        pthread_rwlock_trywrlock, pthread_rwlock_unlock, pthread_rwlock_wrlock,
    };

    unsafe extern "C" {
        pub fn pthread_mutex_clocklock(
            mutex: *mut pthread_mutex_t,
            clock: clockid_t,
            at: *const timespec,
        ) -> c_int;
        pub fn pthread_cond_clockwait(
            cond: *mut pthread_cond_t,
            mutex: *mut pthread_mutex_t,
            clock: clockid_t,
            at: *const timespec,
        ) -> c_int;
        pub fn pthread_rwlock_timedrdlock(
            lock: *mut pthread_rwlock_t,
            at: *const timespec,
        ) -> c_int;
        pub fn pthread_rwlock_timedwrlock(
            lock: *mut pthread_rwlock_t,
            at: *const timespec,
        ) -> c_int;
        pub fn sem_clockwait(semaphore: *mut sem_t, clock: clockid_t, at: *const timespec)
        -> c_int;
    }
}

/// Defines methods that call the C function of a name with the object first.
macro_rules! methods {
    ($object:ty: $($name:ident = $function:ident($($arg:ident: $type:ty),*);)*) => {
        impl $object {
            $(
                pub fn $name(&self, $($arg: $type),*) -> c_int {
                    // SAFETY: an initialised object, and arguments that live.
                    unsafe { c::$function(self.get(), $($arg),*) }
                }
            )*
        }
    };
}

methods! { Mutex:
    lock = pthread_mutex_lock();
    try_lock = pthread_mutex_trylock();
    timed_lock = pthread_mutex_timedlock(at: &timespec);
    unlock = pthread_mutex_unlock();
    destroy = pthread_mutex_destroy();
}

methods! { RwLock:
    read = pthread_rwlock_rdlock();
    write = pthread_rwlock_wrlock();
    try_read = pthread_rwlock_tryrdlock();
    try_write = pthread_rwlock_trywrlock();
    timed_read = pthread_rwlock_timedrdlock(at: &timespec);
    timed_write = pthread_rwlock_timedwrlock(at: &timespec);
    unlock = pthread_rwlock_unlock();
    destroy = pthread_rwlock_destroy();
}

methods! { Barrier:
    wait = pthread_barrier_wait();
    destroy = pthread_barrier_destroy();
}

methods! { Cond:
    signal = pthread_cond_signal();
    broadcast = pthread_cond_broadcast();
    destroy = pthread_cond_destroy();
}

impl Mutex {
    /// `PTHREAD_MUTEX_INITIALIZER`, in memory of its own.
    pub fn initializer() -> Mutex {
        Object(Box::new(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER)))
    }

    pub fn of_type(kind: c_int) -> Mutex {
        Mutex::with(kind, libc::PTHREAD_PROCESS_PRIVATE, libc::PTHREAD_PRIO_NONE)
    }

    pub fn with(kind: c_int, shared: c_int, protocol: c_int) -> Mutex {
        Object::made(|object| {
            let mut how = MaybeUninit::uninit();
            // SAFETY: pthread_mutexattr_init(3), pthread_mutex_init(3).
            unsafe {
                libc::pthread_mutexattr_init(how.as_mut_ptr());
                libc::pthread_mutexattr_settype(how.as_mut_ptr(), kind);
                libc::pthread_mutexattr_setpshared(how.as_mut_ptr(), shared);
                libc::pthread_mutexattr_setprotocol(how.as_mut_ptr(), protocol);
                assert_eq!(libc::pthread_mutex_init(object, how.as_ptr()), 0);
            }
        })
    }

    pub fn robust() -> Mutex {
        Object::made(|object| {
            let mut how = MaybeUninit::uninit();
            // SAFETY: pthread_mutexattr_init(3), pthread_mutex_init(3).
            unsafe {
                libc::pthread_mutexattr_init(how.as_mut_ptr());
                libc::pthread_mutexattr_setrobust(how.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST);
                assert_eq!(libc::pthread_mutex_init(object, how.as_ptr()), 0);
            }
        })
    }

    pub fn clock_lock(&self, clock: clockid_t, at: &timespec) -> c_int {
        // SAFETY: an initialised object, and a time that lives.
        unsafe { c::pthread_mutex_clocklock(self.get(), clock, at) }
    }

    /// Holds it while `f` runs.
    pub fn with_lock<T>(&self, f: impl FnOnce() -> T) -> T {
        assert_eq!(self.lock(), 0);
        let value = f();
        assert_eq!(self.unlock(), 0);
        value
    }
}

impl Cond {
    pub fn new() -> Cond {
        Cond::with(libc::CLOCK_REALTIME, libc::PTHREAD_PROCESS_PRIVATE)
    }

    pub fn with(clock: clockid_t, shared: c_int) -> Cond {
        Object::made(|object| {
            let mut how = MaybeUninit::uninit();
            // SAFETY: pthread_condattr_init(3), pthread_cond_init(3).
            unsafe {
                libc::pthread_condattr_init(how.as_mut_ptr());
                libc::pthread_condattr_setclock(how.as_mut_ptr(), clock);
                libc::pthread_condattr_setpshared(how.as_mut_ptr(), shared);
                assert_eq!(libc::pthread_cond_init(object, how.as_ptr()), 0);
            }
        })
    }

    pub fn wait(&self, mutex: &Mutex) -> c_int {
        // SAFETY: initialised objects.
        unsafe { libc::pthread_cond_wait(self.get(), mutex.get()) }
    }

    pub fn timed_wait(&self, mutex: &Mutex, at: &timespec) -> c_int {
        // SAFETY: initialised objects, and a time that lives.
        unsafe { libc::pthread_cond_timedwait(self.get(), mutex.get(), at) }
    }

    pub fn clock_wait(&self, mutex: &Mutex, clock: clockid_t, at: &timespec) -> c_int {
        // SAFETY: initialised objects, and a time that lives.
        unsafe { c::pthread_cond_clockwait(self.get(), mutex.get(), clock, at) }
    }
}

impl RwLock {
    /// With a preference, `PTHREAD_RWLOCK_PREFER_*_NP`.
    pub fn of_kind(kind: c_int) -> RwLock {
        Object::made(|object| {
            let mut how = MaybeUninit::uninit();
            // SAFETY: pthread_rwlockattr_init(3), pthread_rwlock_init(3).
            unsafe {
                libc::pthread_rwlockattr_init(how.as_mut_ptr());
                libc::pthread_rwlockattr_setkind_np(how.as_mut_ptr(), kind);
                assert_eq!(libc::pthread_rwlock_init(object, how.as_ptr()), 0);
            }
        })
    }
}

impl Barrier {
    pub fn of(count: u32) -> Barrier {
        Object::made(|object| {
            // SAFETY: pthread_barrier_init(3p).
            assert_eq!(unsafe { libc::pthread_barrier_init(object, std::ptr::null(), count) }, 0);
        })
    }

    /// How many have arrived in this round: the first word of sleave-libc's barrier. POSIX has no way to ask.
    pub fn arrived(&self) -> u32 {
        // SAFETY: the object is live, aligned, and changed by atomic operations only.
        unsafe { &*self.get().cast::<AtomicU32>() }.load(Ordering::Acquire)
    }
}

/// `errno` of a call that answers -1, else its answer.
fn outcome(result: c_int) -> c_int {
    if result == -1 {
        std::io::Error::last_os_error().raw_os_error().expect("errno is set")
    } else {
        result
    }
}

impl Semaphore {
    pub fn of(value: u32) -> Semaphore {
        Semaphore::with(value, 0)
    }

    pub fn with(value: u32, shared: c_int) -> Semaphore {
        Object::made(|object| {
            // SAFETY: sem_init(3).
            assert_eq!(unsafe { libc::sem_init(object, shared, value) }, 0);
        })
    }

    pub fn post(&self) -> c_int {
        // SAFETY: an initialised object, here and below.
        outcome(unsafe { libc::sem_post(self.get()) })
    }

    pub fn wait(&self) -> c_int {
        // SAFETY: as above.
        outcome(unsafe { libc::sem_wait(self.get()) })
    }

    pub fn try_wait(&self) -> c_int {
        // SAFETY: as above.
        outcome(unsafe { libc::sem_trywait(self.get()) })
    }

    pub fn timed_wait(&self, at: &timespec) -> c_int {
        // SAFETY: as above.
        outcome(unsafe { libc::sem_timedwait(self.get(), at) })
    }

    pub fn clock_wait(&self, clock: clockid_t, at: &timespec) -> c_int {
        // SAFETY: as above.
        outcome(unsafe { c::sem_clockwait(self.get(), clock, at) })
    }

    pub fn value(&self) -> c_int {
        let mut value = 0;
        // SAFETY: as above.
        unsafe { libc::sem_getvalue(self.get(), &mut value) };
        value
    }
}
