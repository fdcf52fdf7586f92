//! Waiting for sockets.
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// What may be done without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    pub readable: bool,
    pub writable: bool,
}

/// Sockets that are waited for, each for what may be read and, where it says so, for room to write.
#[derive(Debug, Default)]
pub struct Poll(Vec<libc::pollfd>);

impl Poll {
    pub fn add(&mut self, fd: RawFd) {
        self.0.push(libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    }

    /// Whether the i-th is waited for until it has room.
    pub fn want_room(&mut self, i: usize, wanted: bool) {
        self.0[i].events = libc::POLLIN | if wanted { libc::POLLOUT } else { 0 };
    }

    /// Waits no longer than this, which may be less than a millisecond.
    pub fn wait(&mut self, most: Duration) -> io::Result<()> {
        let most = libc::timespec { tv_sec: most.as_secs() as _, tv_nsec: most.subsec_nanos().into() };
        // SAFETY: the kernel writes to `revents` of as many as there are, and reads the time.
        let found = unsafe { libc::ppoll(self.0.as_mut_ptr(), self.0.len() as _, &most, std::ptr::null()) };
        if found < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
            self.0.iter_mut().for_each(|each| each.revents = 0);
        }
        Ok(())
    }

    pub fn ready(&self, i: usize) -> Ready {
        let events = self.0[i].revents;
        // An end or an error is found by reading.
        Ready { readable: events & !libc::POLLOUT != 0, writable: events & libc::POLLOUT != 0 }
    }
}
