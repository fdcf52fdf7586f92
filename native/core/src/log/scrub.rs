//! A closed segment that is read again, and what its hashes and its index must be if they are right.

use std::sync::Arc;

use super::read::SOME_LEAVES;
use super::replay::Replayed;
use super::segment::{append, entry};
use super::walk::Walk;
use super::{Log, Segment};
use crate::format::{Checked, Damage, Hash, Packed, SegmentHeader, ensure};
use crate::group::{self, Expected, Group, hash_leaves};
use crate::index::SegmentIndex;
use crate::tree::Tree;

/// As the segment was when this began: it may be packed or dropped meanwhile.
pub struct Scrub {
    pub header: SegmentHeader,
    after: SegmentHeader,
    walk: Walk,
    /// None if the hashes of what is before it cannot be told.
    tree: Option<Tree>,
    index: SegmentIndex,
    end: u64,
}

impl Log {
    /// None if there is no closed segment of this number.
    pub fn scrub(&self, number: u64) -> Option<Scrub> {
        let (header, after) = self.headers(number)?;
        let position = header.first_position;
        let peaks = self.peaks_at(position, SOME_LEAVES);
        let tree = peaks.and_then(|peaks| Tree::from_peaks(position, peaks).ok());
        Some(Scrub { header, after, walk: Walk::new(header), tree, index: SegmentIndex::new(&header), end: 0 })
    }

    /// Whether the segment is still there, in the same file.
    pub fn is_current(&self, scrub: &Scrub) -> bool {
        let same = |segment: &Arc<Segment>| segment.header == scrub.header;
        self.segments.read().unwrap().get(&scrub.header.number).is_some_and(same)
    }

    /// The leaves of a group by what it says in the clear: whoever has its keys verifies more.
    fn stated(&self, group: &Group) -> Checked<Vec<Hash>> {
        let time = group.header.timestamp;
        let streams: Vec<_> = {
            let streams = self.streams.read().unwrap();
            group.runs.iter().map(|run| streams.list.get(run.header.stream as usize).cloned()).collect()
        };
        let mut runs = Vec::with_capacity(group.runs.len());
        for (run, stream) in group.runs.iter().zip(&streams) {
            let stream = stream.as_ref().ok_or(Damage("a run's stream was never declared"))?;
            ensure(run.header.encrypted() == stream.encrypted, "a run's mode is not its stream's")?;
            runs.push(match stream.encrypted {
                true => run.stated_leaves(stream, time),
                false => {
                    let opened = group::open_run(&self.database, stream, run)?;
                    opened.ok_or(Damage("a plain run does not open"))?.leaves(stream, time)
                }
            });
        }
        Ok(hash_leaves(&runs))
    }
}

impl Scrub {
    /// Whether the hashes before the segment are known, and so what those of its own are.
    pub fn is_rooted(&self) -> bool {
        self.tree.is_some()
    }

    /// Checks the groups in `data`, which starts at `place` of the segment; and the hashes that they make, as the file has
    /// them, with the index of the first.
    pub fn take(&mut self, log: &Log, place: u64, data: &[u8]) -> (Replayed, (u64, Vec<Hash>)) {
        let (index, mut leaves) = (&self.index, Vec::new());
        let replayed = self.walk.take(&log.database, place, data, |group, _| {
            let runs: Vec<_> = group.runs.iter().map(|run| entry(&run.header, run.place)).collect();
            append(index, &group.header, group.place, &runs)?;
            leaves.extend(log.stated(group)?);
            Ok(())
        });
        self.end = replayed.place;
        let hashes = self.tree.as_mut().map(|tree| {
            tree.push(&leaves);
            let hashes = tree.take_pending(usize::MAX);
            tree.flushed(u64::MAX);
            hashes
        });
        (replayed, hashes.unwrap_or_default())
    }

    /// What is next of the segment.
    pub fn expected(&self) -> &Expected {
        self.walk.expected()
    }

    /// Its index without the MAC around it, when all groups were taken of a file of this size.
    pub fn finish(&self, size: u64) -> Checked<Vec<u8>> {
        self.walk.leads_to(&self.after)?;
        let last = self.walk.expected();
        let packed = Packed { length: self.end, last_group: last.number - 1, last_chain: last.previous };
        let as_said = self.header.packed.is_none_or(|said| said == packed && said.length == size);
        ensure(as_said, "it does not end as its header says")?;
        Ok(self.index.encode())
    }
}
