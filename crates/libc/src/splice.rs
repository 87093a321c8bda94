//! Moving bytes without reading them: `sendfile sendfile64 splice tee vmsplice`.
//!
//! None of them can be told as a whole not to wait: `SPLICE_F_NONBLOCK` speaks of pipes only, and a socket
//! listens to its `O_NONBLOCK`, which is not ours to set. So each end is made sure of in its own way:
//!
//! | end | without blocking |
//! |---|---|
//! | a pipe | `SPLICE_F_NONBLOCK` |
//! | a socket that is read | `poll` says that it is readable; the kernel then takes what is there |
//! | a socket that is written | `poll` says that it is writable, and no more is moved at once than it has room for (`SO_MEMINFO`) |
//! | a file | it is never "not ready" |
//! | a device | not at all: few can be spliced, and what cannot is never ready. One that waits blocks its worker |
//!
//! The rest is the kernel's own call, with its checks, offsets and partial results. What a blocking call
//! does beyond one try is done here: to a stream socket it goes on until all is sent, `sendfile`
//! to the end of the file, `splice` while its pipe has data. A call that has moved something and
//! then fails reports what it has moved.
//!
//! Between the look and the call somebody else may take the data or the room: then the call blocks its
//! worker until there is more, as any blocking call that is not known here.
//!
//! `copy_file_range` knows only files, and passes.
//!
//! Sources: sendfile(2), splice(2), tee(2), vmsplice(2), sock_diag(7) on `SO_MEMINFO`; `fs/splice.c` of
//! Linux.

use std::ffi::{c_int, c_short, c_uint};

use libc::{iovec, off_t, off64_t, size_t, ssize_t};
use sleave_runtime::interpose;
use sleave_runtime::reactor::{self, Direction};

use crate::message::broken;
use crate::table::{Descriptor, Kind};
use crate::wait::{Next, Wait};
use crate::{errno, kernel, next};

/// One end of a transfer.
struct End {
    d: Descriptor,
    wait: Wait,
    direction: Direction,
}

impl End {
    fn new(fd: c_int, direction: Direction) -> End {
        let d = Descriptor::of(fd);
        End { d, wait: Wait::new(d, direction), direction }
    }

    fn is(&self, kind: Kind) -> bool {
        self.d.kind() == kind
    }

    /// What is to be said of it now, as poll(2) does: 0 if it is not ready.
    fn events(&self) -> c_short {
        let events = match self.direction {
            Direction::Read => libc::POLLIN | libc::POLLRDHUP,
            Direction::Write => libc::POLLOUT,
        };
        reactor::attempt(self.d.fd, self.direction);
        kernel::ready(self.d.fd, events)
    }

    fn is_ready(&self) -> bool {
        self.events() != 0
    }

    /// Whether it is a socket on which a try could block now.
    fn blocks(&self) -> bool {
        self.d.kind().is_socket() && !self.d.known_nonblocking() && !self.is_ready()
    }

    /// Whether it is open for what it is here for. Who listens neither sends nor receives.
    fn is_allowed(&self) -> bool {
        let fd = self.d.fd;
        if self.d.kind().is_socket() && kernel::socket_int(fd, libc::SO_ACCEPTCONN) == Some(1) {
            return false;
        }
        let other = match self.direction {
            Direction::Read => libc::O_WRONLY,
            Direction::Write => libc::O_RDONLY,
        };
        let flags = kernel::status_flags(fd);
        flags >= 0 && flags as c_int & libc::O_ACCMODE != other
    }

    /// There may be more: for whoever waits behind this call.
    fn leave(&self) {
        reactor::leave(self.d.fd, self.direction, true);
    }
}

/// A transfer from one end to another.
struct Transfer {
    from: End,
    to: End,
    /// Whether the call waits for pipes: neither it nor the program has said otherwise.
    waits_for_pipes: bool,
}

impl Transfer {
    fn new(from: c_int, to: c_int, waits_for_pipes: bool) -> Transfer {
        let (from, to) = (End::new(from, Direction::Read), End::new(to, Direction::Write));
        Transfer { from, to, waits_for_pipes }
    }

    /// Whether the kernel refuses it, as far as is known: it knows best with what.
    fn is_hopeless(&self) -> bool {
        self.from.is(Kind::Unknown) || self.to.is(Kind::Unknown)
    }

    /// The end that has to be waited for before a try: the socket, if it could block on that. But first
    /// comes what the kernel looks at first: what is not allowed, and the pipe. If that fails the call
    /// at once, it may be tried.
    fn unready(&mut self) -> Option<&mut End> {
        if !(self.from.blocks() || self.to.blocks()) {
            return None;
        }
        if !(self.from.is_allowed() && self.to.is_allowed()) {
            return None;
        }
        let kinds = (self.from.d.kind(), self.to.d.kind());
        let (from, to) = (&mut self.from, &mut self.to);
        let (pipe, socket, good) = match kinds {
            (Kind::Pipe, _) => (Some(from), to, libc::POLLIN),
            (_, Kind::Pipe) => (Some(to), from, libc::POLLOUT),
            // From a file.
            _ => (None, to, 0),
        };
        if let Some(pipe) = pipe {
            let events = pipe.events();
            if events == 0 {
                let waits = self.waits_for_pipes && !pipe.wait.nonblocking();
                return waits.then_some(pipe);
            }
            // The end of its data, or nobody to read them.
            if events & good == 0 || events & libc::POLLERR != 0 {
                return None;
            }
        }
        Some(socket)
    }

    /// Moves `len` bytes by tries that do not wait for pipes; answers as the kernel does.
    fn run(&mut self, len: usize, mut attempt: impl FnMut(usize) -> isize) -> isize {
        let to_stream = self.to.d.kind().is_stream();
        let mut moved = 0;
        loop {
            if let Some(end) = self.unready() {
                match end.wait.park() {
                    Next::Retry => continue,
                    _ if moved > 0 => return moved as isize,
                    Next::Fail(error) => return error,
                    // Nobody can tell: the call blocks the worker.
                    Next::Block => {}
                }
            }
            if moved > 0 && broken(self.to.d.fd, Direction::Write) {
                break;
            }
            let limit = if to_stream { (len - moved).min(self.room()) } else { len };
            let result = attempt(limit);
            if result != errno::AGAIN {
                self.from.leave();
                self.to.leave();
            }
            match result {
                1.. => moved += result as usize,
                _ if moved > 0 => break,
                errno::AGAIN if self.waits_for_pipes => match self.await_pipe() {
                    Next::Retry => continue,
                    Next::Fail(error) => return error,
                    Next::Block => return errno::AGAIN,
                },
                _ => return result,
            }
            // A stream socket takes all. Less than it was offered means that there is no more.
            let all = moved == len || (result as usize) < limit;
            if !to_stream || all || self.from.is(Kind::Pipe) && !self.from.is_ready() {
                break;
            }
        }
        moved as isize
    }

    /// What the stream socket at the end takes without waiting, now that it is writable. Each packet
    /// costs a little more than its bytes. If the kernel does not say: a page.
    fn room(&self) -> usize {
        kernel::room(self.to.d.fd).map_or(0, |room| room - room / 8).max(4096)
    }

    /// Parks until a pipe that has made a try fail may be ready.
    fn await_pipe(&mut self) -> Next {
        let mut others_wait = true;
        let mut nonblocking = false;
        for end in [&mut self.from, &mut self.to] {
            match end.d.kind() {
                Kind::Pipe => nonblocking |= end.wait.nonblocking(),
                Kind::File => {}
                _ => others_wait &= !end.wait.nonblocking(),
            }
        }
        if nonblocking {
            return Next::Fail(errno::AGAIN);
        }
        for end in [&mut self.from, &mut self.to] {
            if end.is(Kind::Pipe) && !end.is_ready() {
                return end.wait.park();
            }
        }
        // It was the other end, or a pipe that has become ready since.
        if others_wait { Next::Retry } else { Next::Fail(errno::AGAIN) }
    }
}

/// `sendfile` in a fiber; answers as the kernel does.
///
/// # Safety
/// As sendfile(2).
unsafe fn send_file(to: c_int, from: c_int, offset: *mut off64_t, len: usize) -> isize {
    let mut transfer = Transfer::new(from, to, true);
    let to_pipe = transfer.to.is(Kind::Pipe);
    // Files only can be sent; what else it is, the kernel refuses. It takes no word not to wait for a
    // pipe, so that is waited for as a socket is.
    let ours = transfer.from.is(Kind::File) && !transfer.is_hopeless();
    if !ours || len == 0 || transfer.to.d.known_nonblocking() {
        // SAFETY: the caller's arguments.
        return unsafe { kernel::sendfile(to, from, offset, len) };
    }
    if to_pipe && transfer.to.is_allowed() && transfer.from.is_allowed() {
        while !transfer.to.is_ready() {
            match transfer.to.wait.park() {
                Next::Retry => {}
                Next::Fail(error) => return error,
                Next::Block => break,
            }
        }
    }
    // SAFETY: the caller's arguments.
    transfer.run(len, |len| unsafe { kernel::sendfile(to, from, offset, len) })
}

/// sendfile(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendfile(
    to: c_int,
    from: c_int,
    offset: *mut off_t,
    len: size_t,
) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::sendfile(to, from, offset, len);
        }
        errno::finish(send_file(to, from, offset, len))
    }
}

/// `sendfile` as glibc's headers name it with 64-bit file offsets.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendfile64(
    to: c_int,
    from: c_int,
    offset: *mut off64_t,
    len: size_t,
) -> ssize_t {
    // SAFETY: the caller's arguments for the same function.
    unsafe { sendfile(to, from, offset, len) }
}

/// splice(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn splice(
    from: c_int,
    from_offset: *mut off64_t,
    to: c_int,
    to_offset: *mut off64_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::splice(from, from_offset, to, to_offset, len, flags);
        }
        let attempt = |len, flags| kernel::splice(from, from_offset, to, to_offset, len, flags);
        let mut transfer = Transfer::new(from, to, flags & libc::SPLICE_F_NONBLOCK == 0);
        let pipes = [transfer.from.is(Kind::Pipe), transfer.to.is(Kind::Pipe)];
        let offsets = [!from_offset.is_null(), !to_offset.is_null()];
        // One end must be a pipe, and a pipe has no offset.
        let refused = pipes == [false; 2] || pipes[0] && offsets[0] || pipes[1] && offsets[1];
        if refused || transfer.is_hopeless() || len == 0 || flags & !ALL_FLAGS != 0 {
            return errno::finish(attempt(len, flags));
        }
        errno::finish(transfer.run(len, |len| attempt(len, flags | libc::SPLICE_F_NONBLOCK)))
    }
}

/// The flags of splice(2), tee(2) and vmsplice(2).
const ALL_FLAGS: c_uint =
    libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MORE | libc::SPLICE_F_GIFT;

/// tee(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tee(from: c_int, to: c_int, len: size_t, flags: c_uint) -> ssize_t {
    if !interpose::active() {
        // SAFETY: the caller's arguments for the same function.
        return unsafe { next::tee(from, to, len, flags) };
    }
    let mut transfer = Transfer::new(from, to, flags & libc::SPLICE_F_NONBLOCK == 0);
    if !transfer.from.is(Kind::Pipe) || !transfer.to.is(Kind::Pipe) || flags & !ALL_FLAGS != 0 {
        return errno::finish(kernel::tee(from, to, len, flags));
    }
    let flags = flags | libc::SPLICE_F_NONBLOCK;
    errno::finish(transfer.run(len, |len| kernel::tee(from, to, len, flags)))
}

/// `vmsplice` in a fiber; answers as the kernel does.
///
/// # Safety
/// As vmsplice(2).
unsafe fn splice_memory(fd: c_int, parts: *const iovec, count: usize, flags: c_uint) -> isize {
    let end = End::new(fd, Direction::Write);
    let direction = if end.is_allowed() { Direction::Write } else { Direction::Read };
    let End { d, mut wait, .. } = End::new(fd, direction);
    loop {
        reactor::attempt(fd, direction);
        let waits = d.kind() == Kind::Pipe && flags & libc::SPLICE_F_NONBLOCK == 0;
        let try_flags = if waits { flags | libc::SPLICE_F_NONBLOCK } else { flags };
        // SAFETY: the caller's array.
        let result = unsafe { kernel::vmsplice(fd, parts, count, try_flags) };
        if result != errno::AGAIN || !waits {
            if result != errno::AGAIN {
                reactor::leave(fd, direction, true);
            }
            return result;
        }
        match wait.park() {
            Next::Retry => {}
            Next::Fail(error) => return error,
            // SAFETY: the caller's array.
            Next::Block => return unsafe { kernel::vmsplice(fd, parts, count, flags) },
        }
    }
}

/// vmsplice(2)
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vmsplice(
    fd: c_int,
    parts: *const iovec,
    count: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the caller's arguments, for the same function or the same call of the kernel.
    unsafe {
        if !interpose::active() {
            return next::vmsplice(fd, parts, count, flags);
        }
        errno::finish(splice_memory(fd, parts, count, flags))
    }
}
