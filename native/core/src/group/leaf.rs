//! From records to leaves: the work that the bytes on disk do not wait for.

use super::Stream;
use crate::format::{Entry, Hash};
use crate::sha256::{self, Job};

/// A run, as the tree sees it.
pub struct RunLeaves<'a> {
    pub stream: &'a Stream,
    pub timestamp: u64,
    pub first_offset: u64,
    /// Which records are the last of their batch, by index, ascending.
    pub ends: Vec<u32>,
    pub commitments: Vec<Hash>,
}

/// The commitments of records, each of its stream, many at a time.
pub fn commitments<'a>(salts: &[Hash], records: impl Iterator<Item = (&'a Stream, &'a [u8])>) -> Vec<Hash> {
    let jobs: Vec<Job> = salts
        .iter()
        .zip(records)
        .map(|(salt, (stream, body))| Job { state: &stream.prefix, absorbed: 64, head: salt, body })
        .collect();
    let mut out = vec![[0; 32]; jobs.len()];
    sha256::many(&jobs, &mut out);
    out
}

/// The leaf hashes of runs in their order.
pub fn hash_leaves(runs: &[RunLeaves]) -> Vec<Hash> {
    let mut entries = Vec::with_capacity(runs.iter().map(|run| run.commitments.len()).sum());
    for run in runs {
        let mut ends = run.ends.iter().peekable();
        for (i, &commitment) in run.commitments.iter().enumerate() {
            let entry = Entry {
                encrypted: run.stream.encrypted,
                ends: ends.next_if_eq(&&(i as u32)).is_some(),
                stream: run.stream.number,
                offset: run.first_offset + i as u64,
                timestamp: run.timestamp,
                commitment,
            };
            entries.push(entry.encode(&run.stream.declaration));
        }
    }
    let mut out = vec![[0; 32]; entries.len()];
    sha256::leaves(&entries, &mut out);
    out
}
