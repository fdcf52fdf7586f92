//! Load for a server: many connections that ask as fast as they are answered, or at a pace, with the time of every answer.
pub mod client;
mod poll;
pub mod swarm;
#[cfg(test)]
mod tests;

pub use client::{Client, Failure, Work};
pub use swarm::Swarm;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};

/// Nanoseconds that are told apart: up to an hour, with three digits.
const LONGEST: u64 = 3_600_000_000_000;

/// Times, of which the quantiles are known to three digits.
#[derive(Debug, Clone)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_max(LONGEST, 3).expect("these are bounds"))
    }
}

impl Times {
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What this share of the times is not above.
    pub fn quantile(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share)
    }

    /// Every time that occurs, and the share of those that are not above it.
    pub fn curve(&self) -> Vec<(u64, f64)> {
        let total = self.len() as f64;
        let mut below = 0;
        let steps = self.0.iter_recorded().map(|step| {
            below += step.count_at_value();
            (step.value_iterated_to(), below as f64 / total)
        });
        steps.collect()
    }

    /// HdrHistogram's V2 encoding, deflated.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        V2DeflateSerializer::new().serialize(&self.0, &mut out).expect("memory takes all");
        out
    }

    /// What `encode` made; None if it is something else.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let found = hdrhistogram::serialization::Deserializer::new().deserialize(&mut bytes).ok()?;
        let mut times = Self::default();
        times.0.add(&found).ok()?;
        Some(times)
    }
}

/// What was answered.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub requests: u64,
    pub records: u64,
    /// From when a request was meant to be sent to its last answer.
    pub times: Times,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.records += other.records;
        self.times.add(&other.times);
    }
}
