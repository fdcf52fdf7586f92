//! What is counted of a log at work: a few additions for each append and each group.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kimberlite_core::histogram::Recorder;
use pyo3::prelude::*;

use crate::histogram::Histogram;

/// What has been counted since the log was opened. Times are in nanoseconds.
#[pyclass(frozen, module = "kimberlite._native")]
#[derive(Default)]
pub struct Meters {
    appends: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    written: AtomicU64,
    /// From the pool to the answer.
    append: Recorder,
    /// From the pool to the group.
    wait: Recorder,
    /// Making a group's bytes.
    seal: Recorder,
    /// Of a group, from its bytes to the end of its sync.
    sync: Recorder,
    /// From a read to the first of its records.
    read: Recorder,
    group_records: Recorder,
}

/// What is counted of the appends of one group, before it is added.
pub struct Appended {
    now: Instant,
    /// When its bytes were begun, if it is answered for the first time.
    sealed: Option<Instant>,
    appends: u64,
    records: u64,
    bytes: u64,
    append: u64,
    wait: u64,
}

impl Appended {
    pub fn new(sealed: Option<Instant>) -> Self {
        Self { now: Instant::now(), sealed, appends: 0, records: 0, bytes: 0, append: 0, wait: 0 }
    }

    /// An append that entered the pool then is answered.
    pub fn count(&mut self, meters: &Meters, born: Instant, records: usize, bytes: usize) {
        self.appends += 1;
        self.records += records as u64;
        self.bytes += bytes as u64;
        let took = nanoseconds(self.now.duration_since(born));
        self.append += took;
        meters.append.count(took);
        if let Some(sealed) = self.sealed {
            let waited = nanoseconds(sealed.duration_since(born));
            self.wait += waited;
            meters.wait.count(waited);
        }
    }

    pub fn add(&self, meters: &Meters) {
        meters.appends.fetch_add(self.appends, Relaxed);
        meters.records.fetch_add(self.records, Relaxed);
        meters.bytes.fetch_add(self.bytes, Relaxed);
        meters.append.add_to_sum(self.append);
        meters.wait.add_to_sum(self.wait);
    }
}

impl Meters {
    pub fn sealed(&self, took: Duration) {
        self.seal.record(nanoseconds(took));
    }
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// A sum, and how often which values came.
type Read = (u64, Histogram);

#[pymethods]
impl Meters {
    /// A group of so many records and bytes is durable, so many seconds after it was sealed.
    fn durable(&self, seconds: f64, records: u64, bytes: u64) {
        self.sync.record((seconds * 1e9) as u64);
        self.group_records.record(records);
        self.written.fetch_add(bytes, Relaxed);
    }

    /// So many seconds after a read was asked for, the first of its records leave.
    fn began(&self, seconds: f64) {
        self.read.record((seconds * 1e9) as u64);
    }

    /// Appends, their records and the bytes of those, bytes written, and nanoseconds of all appends.
    fn counts(&self) -> (u64, u64, u64, u64, u64) {
        let all = [&self.appends, &self.records, &self.bytes, &self.written];
        let [appends, records, bytes, written] = all.map(|count| count.load(Relaxed));
        (appends, records, bytes, written, self.append.sum())
    }

    /// Times of appends, of their waiting for a group, of sealing, of syncs, of reads; and the records of groups.
    fn histograms(&self) -> (Read, Read, Read, Read, Read, Read) {
        let all = [&self.append, &self.wait, &self.seal, &self.sync, &self.read, &self.group_records];
        all.map(|recorder| (recorder.sum(), Histogram(recorder.histogram()))).into()
    }
}
