//! Threads that write and sync, and one eventfd that says so: the commit path where io_uring is not to be had.
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::errors::os_error;

/// A short write is taken up again at a multiple of this: O_DIRECT takes nothing else.
pub(crate) const BLOCK: usize = 4096;
/// Short writes in a row that did not complete one block before we call it an error.
pub(crate) const STUCK: usize = 16;

enum Work {
    Write { place: i64, data: *const u8, length: usize, durable: bool },
    Sync,
}

struct Job {
    id: u64,
    fd: RawFd,
    work: Work,
}

// SAFETY: `data` points into a Python buffer whose export `Writer::held` keeps until the job has finished.
unsafe impl Send for Job {}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    finished: Vec<(u64, i32)>,
    idle: usize,
    running: usize,
    closing: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    quiet: Condvar,
    /// None when closed.
    event: Mutex<Option<OwnedFd>>,
}

/// A few threads, started as they are needed, that write and sync in any order.
///
/// An id is finished exactly once, whatever happens to it. The eventfd is readable while there is something that
/// `completions` has not yet returned. The threads never take the GIL.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Writer {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    most: usize,
    process: u32,
    held: Mutex<HashMap<u64, PyUntypedBuffer>>,
}

#[pymethods]
impl Writer {
    #[new]
    #[pyo3(signature = (threads = 4))]
    fn new(threads: usize) -> PyResult<Self> {
        if !(1..=64).contains(&threads) {
            return Err(PyValueError::new_err("threads must be from 1 to 64"));
        }
        let shared = Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            quiet: Condvar::new(),
            event: Mutex::new(Some(eventfd().map_err(os_error)?)),
        };
        Ok(Self {
            shared: Arc::new(shared),
            threads: Mutex::default(),
            most: threads,
            process: std::process::id(),
            held: Mutex::default(),
        })
    }

    /// The eventfd, or -1 when closed.
    fn fileno(&self) -> RawFd {
        lock(&self.shared.event).as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Write the whole buffer, which is held until `completions` has returned the id.
    fn submit(&self, id: u64, fd: RawFd, place: i64, buffer: &Bound<'_, PyAny>, durable: bool) -> PyResult<()> {
        let view = contiguous(buffer, place)?;
        let (data, length) = (view.buf_ptr().cast_const().cast(), view.len_bytes());
        match lock(&self.held).entry(id) {
            Entry::Occupied(_) => return Err(PyRuntimeError::new_err("this id has not finished")),
            Entry::Vacant(free) => free.insert(view),
        };
        self.push(Job { id, fd, work: Work::Write { place, data, length, durable } })
    }

    fn submit_sync(&self, id: u64, fd: RawFd) -> PyResult<()> {
        self.push(Job { id, fd, work: Work::Sync })
    }

    /// What has finished since the last call: each id with 0 or the errno.
    fn completions(&self) -> Vec<(u64, i32)> {
        // The eventfd first: a job that finishes in between then leaves it readable, at worst for nothing.
        drain(lock(&self.shared.event).as_ref());
        let finished = std::mem::take(&mut lock(&self.shared.queue).finished);
        // Letting go of a buffer can run any Python at all, so not under the lock.
        let views: Vec<_> = {
            let mut held = lock(&self.held);
            finished.iter().map(|(id, _)| held.remove(id)).collect()
        };
        drop(views);
        finished
    }

    /// Returns when everything submitted has finished.
    fn wait(&self, py: Python<'_>) {
        py.detach(|| {
            let queue = lock(&self.shared.queue);
            drop(self.shared.quiet.wait_while(queue, |queue| queue.running > 0 || !queue.jobs.is_empty()));
        });
    }

    /// Finish what was submitted, end the threads, close the eventfd. What finished can still be fetched.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.stop());
        *lock(&self.shared.event) = None;
    }
}

impl Writer {
    fn push(&self, job: Job) -> PyResult<()> {
        let mut queue = lock(&self.shared.queue);
        if queue.closing {
            drop(queue);
            let view = lock(&self.held).remove(&job.id);
            drop(view);
            return Err(PyRuntimeError::new_err("the writer is closed"));
        }
        queue.jobs.push_back(job);
        let short_of_threads = queue.jobs.len() > queue.idle;
        drop(queue);
        self.shared.work.notify_one();
        if short_of_threads {
            self.start();
        }
        Ok(())
    }

    /// One more thread, unless there are enough. With none at all the jobs could never finish, so they fail.
    fn start(&self) {
        let mut threads = lock(&self.threads);
        if threads.len() == self.most {
            return;
        }
        let shared = self.shared.clone();
        match thread::Builder::new().name("kimberlite-write".into()).spawn(move || shared.serve()) {
            Ok(handle) => threads.push(handle),
            Err(_) if !threads.is_empty() => {}
            Err(error) => self.shared.refuse_all(error.raw_os_error().unwrap_or(libc::EAGAIN)),
        }
    }

    fn stop(&self) {
        lock(&self.shared.queue).closing = true;
        self.shared.work.notify_all();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // A thread of ours ends by returning; a panic in it has been printed already.
            drop(thread.join());
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A forked child has none of the threads.
        if std::process::id() == self.process {
            self.stop();
        }
    }
}

impl Shared {
    fn serve(&self) {
        while let Some(job) = self.next() {
            let errno = job.run().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
            let mut queue = lock(&self.queue);
            let first = queue.finished.is_empty();
            queue.finished.push((job.id, errno));
            queue.running -= 1;
            let quiet = queue.running == 0 && queue.jobs.is_empty();
            drop(queue);
            if first {
                self.signal();
            }
            if quiet {
                self.quiet.notify_all();
            }
        }
    }

    /// The next job, or None when there will be none. It sleeps at once: spinning here first, for
    /// 20 to 400 microseconds, made no write faster and those after a pause slower, on two processors.
    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                queue.running += 1;
                return Some(job);
            }
            if queue.closing {
                return None;
            }
            queue.idle += 1;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    fn refuse_all(&self, errno: i32) {
        let mut queue = lock(&self.queue);
        let jobs = std::mem::take(&mut queue.jobs);
        queue.finished.extend(jobs.iter().map(|job| (job.id, errno)));
        drop(queue);
        self.signal();
    }

    fn signal(&self) {
        signal(lock(&self.event).as_ref());
    }
}

impl Job {
    fn run(&self) -> io::Result<()> {
        match self.work {
            Work::Sync => sync(self.fd),
            Work::Write { place, data, length, durable } => self.write(place, data, length, durable),
        }
    }

    fn write(&self, place: i64, data: *const u8, length: usize, durable: bool) -> io::Result<()> {
        let (mut done, mut stuck) = (0, 0);
        while done < length {
            // SAFETY: `done` is less than `length`, so this is inside the buffer.
            let rest = unsafe { data.add(done) };
            let wrote = write_some(self.fd, place + done as i64, rest, length - done, durable)?;
            let whole = if done + wrote == length { wrote } else { wrote - wrote % BLOCK };
            done += whole;
            stuck = if whole == 0 { stuck + 1 } else { 0 };
            if stuck == STUCK {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
        }
        Ok(())
    }
}

/// One write, which may be short. A durable one is on the disk when it returns, as far as it went.
fn write_some(fd: RawFd, place: i64, data: *const u8, length: usize, durable: bool) -> io::Result<usize> {
    let part = libc::iovec { iov_base: data.cast_mut().cast(), iov_len: length };
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    // SAFETY: `data` and `length` lie in a buffer that is held; the kernel only reads from it.
    match retrying(|| unsafe { libc::pwritev2(fd, &part, 1, place, flags) }) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {}
        written => return written,
    }
    // SAFETY: as above.
    let wrote = retrying(|| unsafe { libc::pwrite(fd, data.cast(), length, place) })?;
    if durable {
        sync(fd)?;
    }
    Ok(wrote)
}

fn sync(fd: RawFd) -> io::Result<()> {
    // SAFETY: a plain system call. Only EINTR is tried again: after any other error the next one would lie.
    retrying(|| unsafe { libc::fdatasync(fd) as isize }).map(drop)
}

fn retrying(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        match call() {
            result if result >= 0 => return Ok(result as usize),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// A buffer that is held where it is, and that can be written at this place.
pub(crate) fn contiguous(buffer: &Bound<'_, PyAny>, place: i64) -> PyResult<PyUntypedBuffer> {
    let view = PyUntypedBuffer::get(buffer)?;
    if !view.is_c_contiguous() {
        return Err(PyValueError::new_err("the buffer is not contiguous"));
    }
    if place < 0 || place.checked_add_unsigned(view.len_bytes() as u64).is_none() {
        return Err(PyValueError::new_err("a place is from 0 to 2**63 - 1"));
    }
    Ok(view)
}

pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor it returns is ours.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Have it readable; None is a closed one.
pub(crate) fn signal(event: Option<&OwnedFd>) {
    let one = 1u64;
    if let Some(event) = event {
        // SAFETY: writes eight bytes from eight bytes. EAGAIN would mean that the counter is full, so readable.
        unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

/// Have it not readable.
pub(crate) fn drain(event: Option<&OwnedFd>) {
    let mut count = 0u64;
    if let Some(event) = event {
        // SAFETY: reads eight bytes into eight bytes; EAGAIN says there is nothing, and then there is nothing.
        unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

/// A panic elsewhere leaves nothing half done in what these locks guard.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The type of the file system that an open file is on, as statfs(2) numbers them.
#[pyfunction]
pub fn file_system(fd: RawFd) -> PyResult<i64> {
    // SAFETY: statfs is plain numbers, for which zero will do, and the call fills it.
    let (result, found) = unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        (libc::fstatfs(fd, &mut found), found)
    };
    if result < 0 { Err(os_error(io::Error::last_os_error())) } else { Ok(found.f_type) }
}

/// Gives the blocks of this range back to the file system: it reads as zeros.
#[pyfunction]
pub fn punch(py: Python<'_>, fd: RawFd, place: i64, length: i64) -> PyResult<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: it takes numbers only.
    let result = py.detach(|| unsafe { libc::fallocate(fd, mode, place, length) });
    if result < 0 { Err(os_error(io::Error::last_os_error())) } else { Ok(()) }
}
