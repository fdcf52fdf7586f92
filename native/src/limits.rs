//! What sessions may take, and what they count.
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use pyo3::prelude::*;

use crate::writer::lock;

/// What all sessions of a server may take together or each by itself.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Limits {
    pub requests: usize,
    pub bytes: usize,
    pub pool_bytes: usize,
    inbox_bytes: usize,
    /// Of all inboxes, beyond what is usual.
    grown: AtomicUsize,
    pub received: AtomicU64,
    pub sent: AtomicU64,
    /// Errors that requests were answered with, by their code.
    refused: Mutex<HashMap<String, u64>>,
}

#[pymethods]
impl Limits {
    /// Requests and bytes that may be open of one session; bytes in the pool before nothing more is taken; and what all
    /// inboxes may grow by together.
    #[new]
    #[pyo3(signature = (*, requests, bytes, pool_bytes, inbox_bytes))]
    fn new(requests: usize, bytes: usize, pool_bytes: usize, inbox_bytes: usize) -> Self {
        let (grown, received, sent, refused) = Default::default();
        Self { requests, bytes, pool_bytes, inbox_bytes, grown, received, sent, refused }
    }

    /// Bytes that inboxes have grown by.
    #[getter]
    fn grown(&self) -> usize {
        self.grown.load(Relaxed)
    }

    /// Errors that requests were answered with, by their code.
    #[getter]
    fn refused(&self) -> HashMap<String, u64> {
        lock(&self.refused).clone()
    }

    /// Bytes that have arrived of all clients, and that were sent to them.
    #[getter]
    fn passed(&self) -> (u64, u64) {
        (self.received.load(Relaxed), self.sent.load(Relaxed))
    }
}

impl Limits {
    pub fn count(&self, code: &str) {
        let mut refused = lock(&self.refused);
        match refused.get_mut(code) {
            Some(count) => *count += 1,
            None => drop(refused.insert(code.to_owned(), 1)),
        }
    }

    /// Takes so much of what all inboxes may grow by together; false if there is not so much left.
    pub fn reserve(&self, more: usize) -> bool {
        let fits = self.grown.fetch_add(more, Relaxed) + more <= self.inbox_bytes;
        if !fits {
            self.give_back(more);
        }
        fits
    }

    /// What was taken is not what is used.
    pub fn settle(&self, taken: usize, used: usize) {
        self.grown.fetch_add(used, Relaxed);
        self.give_back(taken);
    }

    pub fn give_back(&self, bytes: usize) {
        self.grown.fetch_sub(bytes, Relaxed);
    }
}
