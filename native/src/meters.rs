//! What is counted of a log at work: a few additions for each append and each group.
use std::array;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use pyo3::prelude::*;

/// Bucket i holds what is below 2^i and no less than half of that; the last all that is larger.
const BUCKETS: usize = 32;

/// How often values of which size came: microseconds, or records.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: array::from_fn(|_| AtomicU64::default()), sum: AtomicU64::default() }
    }
}

impl Histogram {
    pub fn add(&self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    fn read(&self) -> (u64, Vec<u64>) {
        (self.sum.load(Relaxed), self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect())
    }
}

/// What has been counted since the log was opened.
#[pyclass(frozen, module = "kimberlite._native")]
#[derive(Default)]
pub struct Meters {
    appends: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    /// From the pool to the answer.
    append_us: Histogram,
    /// Of a group, from its write's beginning to the end of its sync.
    group_us: Histogram,
    group_records: Histogram,
    written: AtomicU64,
}

impl Meters {
    /// An append that entered the pool then is answered.
    pub fn appended(&self, born: Instant, now: Instant, records: usize, bytes: usize) {
        self.appends.fetch_add(1, Relaxed);
        self.records.fetch_add(records as u64, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.append_us.add(now.duration_since(born).as_micros() as u64);
    }
}

/// A sum, and how many values fell into each bucket.
type Read = (u64, Vec<u64>);

#[pymethods]
impl Meters {
    /// A group of so many records and bytes is durable, so many seconds after its write began.
    fn durable(&self, seconds: f64, records: u64, bytes: u64) {
        self.group_us.add((seconds * 1e6) as u64);
        self.group_records.add(records);
        self.written.fetch_add(bytes, Relaxed);
    }

    /// Appends, their records and the bytes of those, and bytes written.
    fn counts(&self) -> (u64, u64, u64, u64) {
        let all = [&self.appends, &self.records, &self.bytes, &self.written];
        all.map(|count| count.load(Relaxed)).into()
    }

    /// Microseconds of appends, microseconds of groups, and records of groups.
    fn histograms(&self) -> (Read, Read, Read) {
        (self.append_us.read(), self.group_us.read(), self.group_records.read())
    }
}
