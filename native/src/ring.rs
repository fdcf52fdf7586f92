//! One io_uring, and an eventfd that says what has finished: the commit path without a thread of ours.
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::errors::os_error;
use crate::writer::{BLOCK, STUCK, contiguous, drain, eventfd, lock, signal};

/// Bytes in one request; the kernel stops a little below 2 GiB, and at no whole number of our blocks.
const MOST: usize = 1 << 30;

struct Request {
    fd: RawFd,
    place: i64,
    /// None for a sync. The kernel reads from it until the request has completed.
    view: Option<PyUntypedBuffer>,
    durable: bool,
    /// Bytes on which the kernel has reported, always whole blocks.
    done: usize,
    stuck: usize,
}

/// Every id is in `requests` until `completions` returns it. Until then it is in one of: `waiting`; the submission
/// queue (those in `unsubmitted`, in its order) or the kernel, which `flying` counts together; `finished`.
struct State {
    /// None when closed.
    ring: Option<IoUring>,
    event: Option<OwnedFd>,
    entries: usize,
    requests: HashMap<u64, Request>,
    waiting: VecDeque<u64>,
    unsubmitted: VecDeque<u64>,
    flying: usize,
    finished: Vec<(u64, i32)>,
    /// The errno with which the kernel refused the ring itself. It is not asked again, so what is left in the
    /// submission queue is never read.
    broken: Option<i32>,
}

/// A ring that writes and syncs in any order. An id is finished exactly once, whatever happens to it.
///
/// The eventfd is readable while there is something that `completions` has not yet returned. Requests that find the
/// ring full wait here; those that the kernel has not seen when the process ends are lost, as if never submitted.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Ring {
    /// Nothing under this lock runs Python: letting go of a buffer could come back here.
    state: Mutex<State>,
    process: u32,
}

#[pymethods]
impl Ring {
    /// OSError where there is none to be had: ENOSYS, EPERM or EACCES where the kernel or a container forbids it.
    #[new]
    #[pyo3(signature = (entries = 64))]
    fn new(entries: u32) -> PyResult<Self> {
        if !(1..=4096).contains(&entries) {
            return Err(PyValueError::new_err("entries must be from 1 to 4096"));
        }
        let event = eventfd().map_err(os_error)?;
        // The completion queue has twice the room of the submission queue, and so cannot overflow.
        let ring = IoUring::new(entries).map_err(os_error)?;
        ring.submitter().register_eventfd(event.as_raw_fd()).map_err(os_error)?;
        let state = State {
            ring: Some(ring),
            event: Some(event),
            entries: entries as usize,
            requests: HashMap::new(),
            waiting: VecDeque::new(),
            unsubmitted: VecDeque::new(),
            flying: 0,
            finished: Vec::new(),
            broken: None,
        };
        Ok(Self { state: Mutex::new(state), process: std::process::id() })
    }

    /// The eventfd, or -1 when closed.
    fn fileno(&self) -> RawFd {
        lock(&self.state).event.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Write the whole buffer, which is held until `completions` has returned the id.
    fn submit(&self, id: u64, fd: RawFd, place: i64, buffer: &Bound<'_, PyAny>, durable: bool) -> PyResult<()> {
        let view = Some(contiguous(buffer, place)?);
        self.start(id, Request { fd, place, view, durable, done: 0, stuck: 0 })
    }

    fn submit_sync(&self, id: u64, fd: RawFd) -> PyResult<()> {
        self.start(id, Request { fd, place: 0, view: None, durable: true, done: 0, stuck: 0 })
    }

    /// What has finished since the last call: each id with 0 or the errno. It never waits.
    fn completions(&self) -> Vec<(u64, i32)> {
        let mut state = lock(&self.state);
        // The eventfd first: what completes in between then leaves it readable, at worst for nothing.
        drain(state.event.as_ref());
        state.turn();
        let finished = std::mem::take(&mut state.finished);
        let done: Vec<_> = finished.iter().map(|(id, _)| state.requests.remove(id)).collect();
        drop(state);
        drop(done);
        finished
    }

    /// Returns when everything submitted has finished.
    fn wait(&self, py: Python<'_>) {
        py.detach(|| lock(&self.state).settle());
    }

    /// Finish what was submitted, give up the ring and the eventfd. What finished can still be fetched.
    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            let mut state = lock(&self.state);
            state.settle();
            state.ring = None;
            state.event = None;
        });
    }

    /// Closes without waiting, for a kernel that does not finish: what it still reads from is never let go.
    fn abandon(&self) {
        let mut state = lock(&self.state);
        state.waiting.clear();
        state.unsubmitted.clear();
        state.flying = 0;
        std::mem::forget((state.ring.take(), std::mem::take(&mut state.requests)));
        state.event = None;
    }
}

impl Ring {
    fn start(&self, id: u64, request: Request) -> PyResult<()> {
        let mut state = lock(&self.state);
        // The request may hold a buffer, so what is refused is let go only after the lock.
        let refused = if state.ring.is_none() {
            Some((request, "the ring is closed"))
        } else {
            match state.requests.entry(id) {
                Entry::Occupied(_) => Some((request, "this id has not finished")),
                Entry::Vacant(free) => {
                    free.insert(request);
                    None
                }
            }
        };
        if let Some((_request, reason)) = refused {
            drop(state);
            return Err(PyRuntimeError::new_err(reason));
        }
        state.waiting.push_back(id);
        state.push();
        Ok(())
    }
}

impl Drop for Ring {
    /// The kernel may still be reading from buffers that are about to be let go. In a forked child these are copies, and
    /// what completes is for its parent.
    fn drop(&mut self) {
        if std::process::id() == self.process {
            lock(&self.state).settle();
        }
    }
}

impl State {
    /// Take what has completed and hand over what waits for its room.
    fn turn(&mut self) {
        self.collect();
        self.push();
    }

    /// Waits for everything. It sleeps on the eventfd and not in the ring, which may be broken, and looks after a second
    /// whether anything has finished that the eventfd did not tell of.
    fn settle(&mut self) {
        while self.flying > 0 || !self.waiting.is_empty() {
            let fd = self.event.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            let mut event = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd. After EINTR the turn finds nothing and we are here again.
            unsafe { libc::poll(&mut event, 1, 1000) };
            drain(self.event.as_ref());
            self.turn();
        }
        if !self.finished.is_empty() {
            signal(self.event.as_ref());
        }
    }

    fn collect(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        for completion in ring.completion() {
            let id = completion.user_data();
            self.flying -= 1;
            match self.requests.get_mut(&id).map_or(Some(libc::EIO), |request| request.ended(completion.result())) {
                Some(errno) => self.finished.push((id, errno)),
                None => self.waiting.push_front(id),
            }
        }
    }

    /// Hand what is waiting to the kernel, as far as there is room.
    fn push(&mut self) {
        self.prepare();
        while let (false, None, Some(ring)) = (self.unsubmitted.is_empty(), self.broken, &self.ring) {
            match ring.submit() {
                Ok(taken) if taken > 0 => drop(self.unsubmitted.drain(..taken)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if !later(&error) => self.broken = error.raw_os_error().or(Some(libc::EIO)),
                // Nothing was lost: it is still in the submission queue. The loop brings us back.
                _ => return signal(self.event.as_ref()),
            }
        }
        if let Some(errno) = self.broken {
            self.refuse(errno);
        }
    }

    fn prepare(&mut self) {
        let (Some(ring), None) = (&mut self.ring, self.broken) else { return };
        let mut queue = ring.submission();
        while self.flying < self.entries {
            let Some(id) = self.waiting.pop_front() else { return };
            let Some(request) = self.requests.get(&id) else { continue };
            // SAFETY: the request, and with it its buffer, stays in `requests` until it has completed.
            if unsafe { queue.push(&request.entry(id)) }.is_err() {
                return self.waiting.push_front(id);
            }
            self.unsubmitted.push_back(id);
            self.flying += 1;
        }
    }

    /// The ring takes nothing any more; what it took before still completes.
    fn refuse(&mut self, errno: i32) {
        self.flying -= self.unsubmitted.len();
        let refused = self.unsubmitted.drain(..).chain(self.waiting.drain(..));
        self.finished.extend(refused.map(|id| (id, errno)));
        if !self.finished.is_empty() {
            signal(self.event.as_ref());
        }
    }
}

impl Request {
    fn length(&self) -> usize {
        self.view.as_ref().map_or(0, PyUntypedBuffer::len_bytes)
    }

    fn entry(&self, id: u64) -> squeue::Entry {
        let entry = match &self.view {
            None => opcode::Fsync::new(Fd(self.fd)).flags(FsyncFlags::DATASYNC).build(),
            Some(view) => {
                let rest = view.buf_ptr().cast_const().cast::<u8>().wrapping_add(self.done);
                let length = (self.length() - self.done).min(MOST) as u32;
                opcode::Write::new(Fd(self.fd), rest, length)
                    .offset(self.place as u64 + self.done as u64)
                    .rw_flags(if self.durable { libc::RWF_DSYNC } else { 0 })
                    .build()
            }
        };
        entry.user_data(id)
    }

    /// 0 or the errno, or None if it, or what is left of it, has to be submitted again.
    fn ended(&mut self, result: i32) -> Option<i32> {
        let write = self.view.is_some();
        match -result {
            libc::EINTR => None,
            // Not for a sync: after an error of its own the next one would lie.
            libc::EAGAIN if write => self.again(libc::EAGAIN),
            errno if errno > 0 => Some(errno),
            _ if write => self.advance(result as usize),
            _ => Some(0),
        }
    }

    /// A short write is taken up again with the identical bytes, from a whole block: O_DIRECT takes nothing else.
    fn advance(&mut self, wrote: usize) -> Option<i32> {
        let whole = if self.done + wrote == self.length() { wrote } else { wrote - wrote % BLOCK };
        self.done += whole;
        if self.done == self.length() {
            return Some(0);
        }
        if whole == 0 {
            return self.again(libc::EIO);
        }
        self.stuck = 0;
        None
    }

    fn again(&mut self, errno: i32) -> Option<i32> {
        self.stuck += 1;
        (self.stuck == STUCK).then_some(errno)
    }
}

/// The kernel could not take it now.
fn later(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}
