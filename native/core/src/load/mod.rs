//! Load for a server: many connections that ask as fast as they are answered, or at a pace, with the time of every answer.
pub mod client;
mod poll;
pub mod swarm;
#[cfg(test)]
mod tests;

pub use client::{Client, Failure, Work};
pub use swarm::Swarm;

use crate::histogram::Histogram;

/// What was answered.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub requests: u64,
    pub records: u64,
    /// From when a request was meant to be sent to its last answer.
    pub times: Histogram,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.records += other.records;
        self.times.add(&other.times);
    }
}
