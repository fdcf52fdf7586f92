//! The load generator's hot half.
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kimberlite_core::load::{self, Client, Failure, Tally, Work};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::batch::Batch;
use crate::errors;
use crate::histogram::Histogram;
use crate::writer::lock;

/// After which signals are looked at.
const SLICE: Duration = Duration::from_millis(50);

/// Clients that were greeted already, driven in this thread.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Swarm {
    swarm: Mutex<load::Swarm>,
    batches: Arc<Vec<Vec<u8>>>,
}

#[pymethods]
impl Swarm {
    /// Those that append do so with these batches in turn.
    #[new]
    fn new(batches: Vec<Bound<'_, Batch>>) -> Self {
        let batches: Vec<_> = batches.iter().map(|batch| &*batch.get().inner).collect();
        Self { swarm: Mutex::default(), batches: Arc::new(Work::batches(&batches)) }
    }

    /// A client that appends to this stream, with so many appends open; its socket does not block.
    fn append(&self, fd: i32, stream: String, sync: Option<String>, depth: u32) -> PyResult<()> {
        if self.batches.is_empty() {
            return Err(PyValueError::new_err("there is nothing to append"));
        }
        let work = Work::Append { stream, batches: self.batches.clone(), sync, next: 0 };
        self.add(fd, Client::new(work, depth))
    }

    /// A client that reads so many records at a time, from `start` to `end` and from 0 to `end` again.
    fn read(&self, fd: i32, start: u64, end: u64, batch: u64, depth: u32) -> PyResult<()> {
        self.add(fd, Client::new(Work::Read { next: start, end, batch }, depth))
    }

    /// Seconds from one request of a client to its next, from now on; None: as soon as one is answered.
    fn pace(&self, interval: Option<f64>) {
        lock(&self.swarm).pace(interval.map(Duration::from_secs_f64));
    }

    /// Asks and takes answers for so many seconds; not `asking`, only the latter, until nothing is open. Gives whether
    /// something is, and the body of the error that the server refused with.
    fn run<'py>(&self, py: Python<'py>, seconds: f64, asking: bool) -> PyResult<(bool, Option<Bound<'py, PyBytes>>)> {
        let mut left = Duration::from_secs_f64(seconds);
        loop {
            let slice = left.min(SLICE);
            match py.detach(|| lock(&self.swarm).run(slice, asking)) {
                Ok(open) if left <= slice || !(asking || open) => return Ok((open, None)),
                Ok(_) => left -= slice,
                Err(Failure::Refused(body)) => return Ok((true, Some(PyBytes::new(py, &body)))),
                Err(Failure::Malformed(what)) => return Err(errors::raise(py, "ProtocolError", what)),
                Err(Failure::Lost(why)) => return Err(errors::raise(py, "Unavailable", &why)),
            }
            py.check_signals()?;
        }
    }

    /// What was answered so far does not count.
    fn reset(&self) {
        lock(&self.swarm).reset();
    }

    /// Requests and records that were answered so far, of appends and of reads.
    #[getter]
    fn counts(&self) -> ((u64, u64), (u64, u64)) {
        let swarm = lock(&self.swarm);
        let count = |appends: bool| {
            let tallies = swarm.clients().filter(|client| is_append(client) == appends).map(|client| &client.tally);
            tallies.fold((0, 0), |sum, tally| (sum.0 + tally.requests, sum.1 + tally.records))
        };
        (count(true), count(false))
    }

    /// How long the answers took so far, to appends and to reads.
    #[getter]
    fn times(&self) -> (Histogram, Histogram) {
        let swarm = lock(&self.swarm);
        let gather = |appends: bool| {
            let mut sum = Tally::default();
            swarm.clients().filter(|client| is_append(client) == appends).for_each(|client| sum.add(&client.tally));
            Histogram(sum.times)
        };
        (gather(true), gather(false))
    }
}

impl Swarm {
    fn add(&self, fd: i32, client: Client) -> PyResult<()> {
        if fd < 0 {
            return Err(PyValueError::new_err("this is no descriptor"));
        }
        // SAFETY: the caller's socket is open; what is kept is a descriptor of our own.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        lock(&self.swarm).add(socket, client);
        Ok(())
    }
}

fn is_append(client: &Client) -> bool {
    matches!(client.work, Work::Append { .. })
}
